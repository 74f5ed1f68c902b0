/* SPDX-License-Identifier: MIT */
/* The flags: one table says what each is called, which subcommands take it, what it sets, and what --help says of it.
 */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stddef.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int cli_error(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "attend: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  return EXIT_BAD_INPUT;
}

double cli_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cli_print_json(cJSON *json) {
  char *text = cJSON_Print(json);
  if (text) puts(text);
  free(text);
  cJSON_Delete(json);
}

static const struct {
  const char *name;
  uint32_t bit;
} backends[] = {{"flash", ATTEND_BACKEND_FLASH},
                {"efficient", ATTEND_BACKEND_EFFICIENT},
                {"math", ATTEND_BACKEND_MATH},
                {"reference", ATTEND_BACKEND_REFERENCE}};

const char *cli_backend_name(uint32_t backend) {
  for (int i = 0; i < 4; i++)
    if (backends[i].bit == backend) return backends[i].name;
  return "none";
}

static const struct {
  const char *name;
  attend_dtype dtype;
} dtypes[] = {{"f32", {2, 32, 1}}, {"f16", {2, 16, 1}}, {"bf16", {4, 16, 1}}, {"f64", {2, 64, 1}}};

const char *cli_dtype_name(attend_dtype d) {
  for (int i = 0; i < 4; i++)
    if (dtypes[i].dtype.code == d.code && dtypes[i].dtype.bits == d.bits) return dtypes[i].name;
  return "any";
}

/* ---- Values ---------------------------------------------------------------------------------------------------- */

static bool number(const char *text, double *out) {
  char *end;
  errno = 0;
  *out = strtod(text, &end);
  return end != text && !*end && !(errno == ERANGE && fabs(*out) > 1); /* what underflows is a number all the same */
}

static bool integer(const char **text, int64_t *out) {
  char *end;
  errno = 0;
  *out = strtoll(*text, &end, 10);
  bool good = end != *text && !errno;
  *text = end;
  return good;
}

/* All 64 bits: a seed may be any. */
static bool bits(const char *text, uint64_t *out) {
  char *end;
  errno = 0;
  *out = strtoull(text, &end, 0);
  return end != text && !*end && !errno && !strchr(text, '-');
}

/* A or A/B: B defaults to A. */
static bool pair(const char **text, int64_t *a, int64_t *b) {
  if (!integer(text, a)) return false;
  *b = *a;
  if (**text != '/') return true;
  ++*text;
  return integer(text, b);
}

static bool shape(const char *text, cli_request *r) {
  if (!integer(&text, &r->batch) || *text++ != ',') return false;
  if (!pair(&text, &r->heads, &r->kv_heads) || *text++ != ',') return false;
  if (!pair(&text, &r->q_len, &r->k_len) || *text++ != ',') return false;
  if (!pair(&text, &r->head_dim, &r->v_dim) || *text) return false;
  return r->batch >= 0 && r->heads >= 0 && r->kv_heads >= 0 && r->q_len >= 0 && r->k_len >= 0 && r->head_dim >= 0 &&
         r->v_dim >= 0;
}

static bool backend_list(const char *text, uint32_t *set) {
  *set = 0;
  while (*text) {
    size_t n = strcspn(text, ",");
    int i = 0;
    while (i < 4 && (strlen(backends[i].name) != n || strncmp(text, backends[i].name, n))) i++;
    if (i == 4) return false;
    *set |= backends[i].bit;
    text += n + (text[n] == ',');
  }
  return *set != 0;
}

static bool device(const char *text, attend_device *d) {
  *d = (attend_device){ATTEND_CPU, 0};
  if (!strcmp(text, "cpu")) return true;
  if (strncmp(text, "cuda", 4)) return false;
  d->type = ATTEND_CUDA;
  text += 4;
  int64_t id = 0;
  if (*text == ':') {
    ++text;
    if (!integer(&text, &id) || id < 0 || id > 1023) return false;
  }
  d->id = (int32_t)id;
  return !*text;
}

/* ---- Values that need more than a place to put them ------------------------------------------------------------- */

static bool take_shape(cli_request *r, const char *text) { return r->has_shape = shape(text, r); }
static bool take_softcap(cli_request *r, const char *text) { return number(text, &r->options.softcap); }
static bool take_dropout(cli_request *r, const char *text) { return number(text, &r->options.dropout); }
static bool take_scale(cli_request *r, const char *text) { return number(text, &r->options.scale); }
static bool take_seed(cli_request *r, const char *text) { return r->has_seed = bits(text, &r->seed); }
static bool take_offset(cli_request *r, const char *text) { return bits(text, &r->offset); }
static bool take_backend(cli_request *r, const char *text) { return backend_list(text, &r->options.backends); }
static bool take_device(cli_request *r, const char *text) { return r->has_device = device(text, &r->device); }

static bool take_window(cli_request *r, const char *text) {
  attend_options *o = &r->options;
  return integer(&text, &o->window_left) && *text++ == ',' && integer(&text, &o->window_right) && !*text;
}

static bool take_layout(cli_request *r, const char *text) {
  r->bnhd = !strcmp(text, "bnhd");
  return r->has_layout = r->bnhd || !strcmp(text, "bhnd");
}

static bool take_dtype(cli_request *r, const char *text) {
  for (int i = 0; i < 4; i++)
    if (!strcmp(text, dtypes[i].name)) {
      r->dtype = dtypes[i].dtype;
      return r->has_dtype = true;
    }
  return false;
}

static bool take_kernel(cli_request *r, const char *text) {
  snprintf(r->kernel, sizeof r->kernel, "%s", text);
  r->options.kernel = r->kernel;
  return true;
}

static bool take_threads(cli_request *r, const char *text) {
  int64_t n;
  if (!integer(&text, &n) || *text || n < 0 || n > 65536) return false;
  r->options.threads = (int)n;
  return true;
}

static bool take_seconds(cli_request *r, const char *text) {
  return number(text, &r->seconds) && r->seconds > 0 && r->seconds < 1e6;
}

static bool take_batch(cli_request *r, const char *text) {
  return integer(&text, &r->batch_shown) && !*text && r->batch_shown >= 0;
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

enum { INFO = 1, RUN = 2, EXPLAIN = 4, CHECK = 8, BENCH = 16, VIEW = 32, CALL = RUN | EXPLAIN | BENCH | VIEW };
static const char *const commands[] = {"info", "run", "explain", "check", "bench", "view"};

typedef struct flag {
  const char *name;                               /* NULL: a heading of --help */
  const char *value;                              /* what --help calls its value; NULL: it takes none */
  unsigned commands;                              /* those that take it */
  uint32_t bit;                                   /* sets this bit of options.flags */
  size_t text, on;                                /* or this const char *, or this bool, of cli_request; 0: none */
  bool (*take)(cli_request *r, const char *text); /* or calls this, which says whether the value is one */
  const char *says;                               /* NULL: said by the flag above */
} flag;

#define TEXT(member) .text = offsetof(cli_request, member)
#define SWITCH(member) .on = offsetof(cli_request, member)

static const flag flags[] = {
    {.says = "Inputs"},
    {"q", "F", RUN | EXPLAIN | VIEW, TEXT(q), .says = "queries [B,H,Nq,D], an .npy file"},
    {"k", "F", RUN | EXPLAIN | VIEW, TEXT(k), .says = "keys [B,Hkv,Nk,D], or [B,Nk,D]: one head for all"},
    {"v", "F", RUN | EXPLAIN | VIEW, TEXT(v), .says = "values [B,Hkv,Nk,Dv], or [B,Nk,Dv]"},
    {"tensors", "F", RUN | EXPLAIN | VIEW, TEXT(tensors),
     .says = "a .safetensors file with q, k, v and other operands"},
    {"prefix", "P", RUN | EXPLAIN | VIEW, TEXT(prefix), .says = "what stands before their names there"},
    {"shape", "S", CALL, .take = take_shape, .says = "B,H[/HKV],NQ[/NK],D[/DV]: random tensors of these sizes"},
    {"mask", "F", CALL, TEXT(mask), .says = "bool, true = attend: [B,Nk], or rank 4 broadcasting to [B,H,Nq,Nk]"},
    {"bias", "F", CALL, TEXT(bias), .says = "added to the scores; rank 4, broadcasts to [B,H,Nq,Nk]"},
    {"alibi", "F", CALL, TEXT(alibi), .says = "slopes, f4, [H] or [B,H]"},
    {"sink", "F", CALL, TEXT(sink), .says = "a score of each head, [H], that has no value"},
    {"kv-len", "F", CALL, TEXT(kv_len), .says = "keys of each sequence, i4 or i8, [B]"},
    {"d-out", "F", RUN, TEXT(d_out), .says = "the output's gradient, for --backward; random if not given"},
    {"layout", "bhnd|bnhd", CALL, .take = take_layout, .says = "order of dimensions; bhnd if not given"},
    {"dtype", "f32|bf16|f16|f64", CALL, .take = take_dtype, .says = "of random tensors; those of files are converted"},

    {.says = "The attention"},
    {"causal", NULL, CALL, .bit = ATTEND_CAUSAL,
     .says = "key j is visible to query i only if j <= i + off; off = Nk - Nq, or kv_len - Nq"},
    {"top-left", NULL, CALL, .bit = ATTEND_TOP_LEFT,
     .says = "off = 0: i and j start together, for causal, window and ALiBi"},
    {"window", "L,R", CALL, .bit = ATTEND_WINDOW, .take = take_window,
     .says = "keys i + off - L to i + off + R; -1 is unbounded"},
    {"scale", "X", CALL, .bit = ATTEND_SCALE, .take = take_scale, .says = "1/sqrt(D) if not given"},
    {"softcap", "X", CALL, .take = take_softcap, .says = "scores become X tanh(score / X)"},
    {"dropout", "P", CALL, .take = take_dropout, .says = "drop probabilities, each with probability P"},
    {"seed", "N", CALL, .take = take_seed, .says = "what is dropped is a function of seed, offset and place alone"},
    {"offset", "N", CALL, .take = take_offset, .says = "see --seed"},
    {"backward", NULL, RUN | EXPLAIN | BENCH, SWITCH(backward), .says = "the backward pass"},

    {.says = "The kernel"},
    {"backend", "LIST", CALL | CHECK, .take = take_backend, .says = "only these of flash,efficient,math,reference"},
    {"kernel", "NAME", CALL | CHECK, .take = take_kernel, .says = "only this one; attend info lists them"},
    {"device", "cpu|cuda[:N]", CALL | CHECK, .take = take_device, .says = "where the tensors are during the call"},
    {"threads", "N", CALL | CHECK, .take = take_threads, .says = "at most so many; 0, the default: all there are"},

    {.says = "Results"},
    {"out", "F", RUN, TEXT(out), .says = "the output as .npy; all results, if F ends in .safetensors"},
    {"lse", "F", RUN, TEXT(lse), .says = "log-sum-exp of each row as .npy, [B,H,Nq]"},
    {"probs", "F", RUN, TEXT(probs), .says = "probabilities before dropout as .npy; by a back-end that has them"},
    {"gradients", "F", RUN, TEXT(gradients), .says = "with --backward: d_q, d_k, d_v, d_bias, d_sink as .safetensors"},
    {"out", "F", VIEW, TEXT(out), .says = "the picture, a .png file"},
    {"heads", "LIST", VIEW, TEXT(heads_shown), .says = "those to draw, such as 0,3,7; all if not given"},
    {"batch", "N", VIEW, .take = take_batch, .says = "the sequence to draw; 0 if not given"},
    {"check", NULL, RUN, SWITCH(check), .says = "compare all results with the f64 reference"},
    {"seed", "N", CHECK, .take = take_seed, .says = "of the random inputs: repeats a run, which prints its seed"},
    {"seconds", "T", BENCH, .take = take_seconds, .says = "time for each case; 0.3 if not given"},
    {"cached", NULL, BENCH, SWITCH(cached), .says = "the same inputs each time, not rotated past the cache"},
    {"json", NULL, INFO | RUN | EXPLAIN | CHECK | BENCH, SWITCH(json), .says = "print JSON"},
    {"no-progress", NULL, RUN | CHECK | BENCH | VIEW, SWITCH(no_progress), .says = "no progress on the terminal"},
    {"help", NULL, CALL | CHECK | INFO, .says = "print this"},
};
enum { FLAGS = sizeof flags / sizeof *flags };

static void print_help(const char *usage, unsigned command) {
  printf("%s", usage);
  const char *heading = NULL;
  for (const flag *f = flags; f < flags + FLAGS; f++) {
    if (!f->name) heading = f->says;
    if (!f->name || !(f->commands & command)) continue;
    if (heading) printf("\n%s:\n", heading);
    heading = NULL;
    char left[64];
    snprintf(left, sizeof left, "--%s%s%s", f->name, f->value ? " " : "", f->value ? f->value : "");
    printf("  %-24s %s\n", left, f->says);
  }
}

/* Does another subcommand take it? Then the message can say more than that it is unknown. */
static bool known_elsewhere(const char *argument) {
  size_t n = strcspn(argument, "=");
  for (const flag *f = flags; n > 2 && f < flags + FLAGS; f++)
    if (f->name && strlen(f->name) == n - 2 && !strncmp(argument + 2, f->name, n - 2)) return true;
  return false;
}

static bool apply(const flag *f, cli_request *r, const char *text) {
  r->options.flags |= f->bit;
  if (f->text) *(const char **)(void *)((char *)r + f->text) = text;
  if (f->on) *(bool *)((char *)r + f->on) = true;
  return !f->take || f->take(r, text);
}

bool cli_may_hold(const char *path, const char *formats) {
  const char *name = strrchr(path, '/'), *ending = strrchr(name ? name + 1 : path, '.');
  if (!ending || ending == (name ? name + 1 : path)) return true;
  const char *found = strstr(formats, ending);
  size_t n = strlen(ending);
  return n > 1 && found && (found[n] == 0 || found[n] == ' ');
}

int cli_parse(const char *command, const char *usage, int argc, char **argv, cli_request *r) {
  memset(r, 0, sizeof *r);
  r->dtype = ATTEND_F32;
  r->device.type = ATTEND_CPU;
  r->prefix = "";
  r->seconds = 0.3;
  unsigned bit = 0;
  for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++)
    if (!strcmp(command, commands[i])) bit = 1u << i;
  struct option taken[FLAGS + 1];
  int count = 0;
  for (int i = 0; i < FLAGS; i++)
    if (flags[i].name && flags[i].commands & bit)
      taken[count++] = (struct option){flags[i].name, flags[i].value != NULL, NULL, 256 + i};
  taken[count] = (struct option){NULL, 0, NULL, 0};
  opterr = optopt = 0;
  optind = 1;
  for (int found; (found = getopt_long(argc, argv, ":h", taken, NULL)) != -1;) {
    char written[64];
    if (optopt > 0 && optopt < 256)
      snprintf(written, sizeof written, "-%c", optopt);
    else
      snprintf(written, sizeof written, "%s", found == ':' ? flags[optopt - 256].name : argv[optind - 1]);
    const flag *f = found < 256 ? NULL : &flags[found - 256];
    if (found == 'h' || (f && !strcmp(f->name, "help"))) {
      print_help(usage, bit);
      return EXIT_GOOD;
    }
    if (found == ':') return cli_error("%s: --%s: expected a value (attend %s --help)", command, written, command);
    if (!f && known_elsewhere(written))
      return cli_error("%s: %s means nothing here (attend %s --help)", command, written, command);
    if (!f) return cli_error("%s: unknown option: %s (attend %s --help)", command, written, command);
    if (!apply(f, r, optarg))
      return cli_error("%s: --%s: expected %s (%s), got %s (attend %s --help)", command, f->name, f->value, f->says,
                       optarg, command);
  }
  if (optind < argc)
    return cli_error("%s: expected options only, got \"%s\" (attend %s --help)", command, argv[optind], command);
  if (r->has_shape && (r->q || r->k || r->v || r->tensors))
    return cli_error("%s: --shape is of random tensors; with tensors from files leave it out", command);
  return -1;
}
