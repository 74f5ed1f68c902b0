/* SPDX-License-Identifier: MIT */
/* What the subcommands of `attend` share: one request, parsed from the command line, and the tensors it asks for. */
#ifndef ATTEND_CLI_H
#define ATTEND_CLI_H

#include "io/io.h"

#include <cjson/cJSON.h>

enum { EXIT_GOOD = 0, EXIT_CHECK_FAILED = 1, EXIT_BAD_INPUT = 2 };

typedef struct cli_request {
  bool has_shape, has_seed, bnhd, backward, json, check, cached, no_progress, no_data;
  int64_t batch, heads, kv_heads, q_len, k_len, head_dim, v_dim;
  attend_dtype dtype;
  bool has_dtype, has_layout, has_device;
  attend_device device;
  attend_options options;
  char kernel[ATTEND_NAME_SIZE];
  uint64_t seed, offset;
  double seconds;                                                                         /* bench: per case */
  const char *tensors, *prefix, *q, *k, *v, *mask, *bias, *alibi, *sink, *kv_len, *d_out; /* inputs */
  const char *out, *lse, *probs, *gradients;                                              /* outputs */
  const char *heads_shown;
  int64_t batch_shown;
} cli_request;

/* Parse argv[1..] of a subcommand. Returns -1 to go on, otherwise the exit code (0 after --help, which prints `usage`
 * and the flags). */
int cli_parse(const char *command, const char *usage, int argc, char **argv, cli_request *request);
/* Does a file's name end in one of `formats` (".npy or .safetensors"), or, as that of a pipe, in none at all? */
bool cli_may_hold(const char *path, const char *formats);
/* Print "attend: ..." on stderr; EXIT_BAD_INPUT. */
int cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *cli_backend_name(uint32_t backend);
const char *cli_dtype_name(attend_dtype dtype);
double cli_seconds(void);
/* What is being done, in a few words: progress.c shows it, with the seconds, on a terminal and after two seconds. NULL
 * clears it, which has to be before anything else is printed. */
void cli_progress(const cli_request *request, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cli_print_json(cJSON *json); /* and delete it */

enum { CLI_ARRAYS = 17, CLI_FIRST_RESULT = 9 };

/* All tensors of a call, owned. */
typedef struct cli_call {
  io_array q, k, v, mask, bias, alibi, sink, kv_len, d_out;
  io_array out, lse, probs, d_q, d_k, d_v, d_bias, d_sink; /* results */
  attend_args args;
  io_tensors file;
  void *on_host[CLI_ARRAYS]; /* see device_tensors.h */
} cli_call;

/* The arrays in the order above. */
void cli_call_arrays(cli_call *call, io_array *arrays[CLI_ARRAYS]);

/* Inputs from the request's files, or random ones of its shape and types; with request->no_data these have addresses
 * only, which nothing may read. */
bool cli_call_make(const cli_request *request, uint64_t random_seed, cli_call *call, io_error *error);
/* Fill dropout_seed, d_out and the gradients that `backward` needs. */
bool cli_call_add_gradients(const cli_request *request, cli_call *call, io_error *error);
bool cli_call_add_probs(cli_call *call, io_error *error);
void cli_call_free(cli_call *call);
/* Multiply-adds count twice; of causal and window what is visible counts. Forward or backward of the request. */
double cli_call_flops(const cli_request *request, const cli_call *call, bool backward);
/* What has to move, once: backward can be done without out and lse, which therefore do not count. */
double cli_call_bytes(const cli_call *call, bool backward);
void cli_fill_random(io_array *array, uint64_t *state);                                         /* uniform in [-1, 1] */
double cli_largest_difference(const attend_tensor *a, const attend_tensor *b, double *largest); /* NaN equals NaN */

int cli_info(int argc, char **argv);
int cli_run(int argc, char **argv);
int cli_explain(int argc, char **argv);
int cli_check(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_view(int argc, char **argv);

#endif
