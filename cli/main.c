/* SPDX-License-Identifier: MIT */
/* attend: exact attention from the command line. */
#include "cli.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *says;
} commands[] = {
    {"info", cli_info, "this machine: CPU, GPUs, kernels and why any cannot be used"},
    {"run", cli_run, "attention on tensors from files; writes the results"},
    {"explain", cli_explain, "which kernel a call would get, and why not another"},
    {"check", cli_check, "every kernel of this machine against the f64 reference"},
    {"bench", cli_bench, "time, as a fraction of what the machine allows"},
    {"view", cli_view, "attention maps as a picture"},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void usage(FILE *f) {
  fprintf(f, "attend %s: exact attention\n\nusage: attend COMMAND [OPTION...]\n\n", attend_version());
  for (int i = 0; i < COMMANDS; i++) fprintf(f, "  %-8s %s\n", commands[i].name, commands[i].says);
  fprintf(f, "\nattend COMMAND --help says more, and so does man attend.\n"
             "Exit status: 0 success, 1 a check failed, 2 bad usage or input.\n");
}

/* Started with a standard stream closed, the next file opened would take its number, and what is printed would get into
 * that file. Standing in is a stream that cannot be used: writing to it fails as it should. */
static void occupy_standard_streams(void) {
  while (true) {
    int stream = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (stream < 0) return;
    if (stream <= 2) continue;
    close(stream);
    return;
  }
}

int main(int argc, char **argv) {
  occupy_standard_streams();
  if (argc < 2) {
    usage(stderr);
    return EXIT_BAD_INPUT;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
    usage(stdout);
    return EXIT_GOOD;
  }
  if (!strcmp(argv[1], "--version")) {
    printf("attend %s\n", attend_version());
    return EXIT_GOOD;
  }
  for (int i = 0; i < COMMANDS; i++)
    if (!strcmp(argv[1], commands[i].name)) {
      int code = commands[i].run(argc - 1, argv + 1);
      if (fflush(stdout) || ferror(stdout)) return cli_error("standard output: cannot be written");
      return code;
    }
  return cli_error("no command \"%s\"; attend --help lists them", argv[1]);
}
