/* SPDX-License-Identifier: MIT */
/* The flags, which mean the same in every subcommand. */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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

void cli_progress(const cli_request *request, double start, const char *format, ...) {
  if (request->no_progress || !isatty(STDERR_FILENO) || cli_seconds() - start < 2) return;
  fprintf(stderr, "\r\033[K");
  if (!format) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fflush(stderr);
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
  return end != text && !*end && errno != ERANGE;
}

static bool integer(const char **text, int64_t *out) {
  char *end;
  errno = 0;
  *out = strtoll(*text, &end, 10);
  bool good = end != *text && !errno;
  *text = end;
  return good;
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

enum {
  F_Q = 256,
  F_K,
  F_V,
  F_MASK,
  F_BIAS,
  F_OUT,
  F_LSE,
  F_PROBS,
  F_TENSORS,
  F_PREFIX,
  F_CAUSAL,
  F_TOP_LEFT,
  F_WINDOW,
  F_SOFTCAP,
  F_ALIBI,
  F_SINK,
  F_KV_LEN,
  F_DROPOUT,
  F_SEED,
  F_OFFSET,
  F_SCALE,
  F_LAYOUT,
  F_DTYPE,
  F_BACKEND,
  F_KERNEL,
  F_DEVICE,
  F_THREADS,
  F_BACKWARD,
  F_D_OUT,
  F_GRADIENTS,
  F_SHAPE,
  F_JSON,
  F_CHECK,
  F_SECONDS,
  F_HEADS,
  F_BATCH,
  F_NO_PROGRESS,
  F_HELP
};

static const struct option flags[] = {{"q", 1, 0, F_Q},
                                      {"k", 1, 0, F_K},
                                      {"v", 1, 0, F_V},
                                      {"mask", 1, 0, F_MASK},
                                      {"bias", 1, 0, F_BIAS},
                                      {"out", 1, 0, F_OUT},
                                      {"lse", 1, 0, F_LSE},
                                      {"probs", 1, 0, F_PROBS},
                                      {"tensors", 1, 0, F_TENSORS},
                                      {"prefix", 1, 0, F_PREFIX},
                                      {"causal", 0, 0, F_CAUSAL},
                                      {"top-left", 0, 0, F_TOP_LEFT},
                                      {"window", 1, 0, F_WINDOW},
                                      {"softcap", 1, 0, F_SOFTCAP},
                                      {"alibi", 1, 0, F_ALIBI},
                                      {"sink", 1, 0, F_SINK},
                                      {"kv-len", 1, 0, F_KV_LEN},
                                      {"dropout", 1, 0, F_DROPOUT},
                                      {"seed", 1, 0, F_SEED},
                                      {"offset", 1, 0, F_OFFSET},
                                      {"scale", 1, 0, F_SCALE},
                                      {"layout", 1, 0, F_LAYOUT},
                                      {"dtype", 1, 0, F_DTYPE},
                                      {"backend", 1, 0, F_BACKEND},
                                      {"kernel", 1, 0, F_KERNEL},
                                      {"device", 1, 0, F_DEVICE},
                                      {"threads", 1, 0, F_THREADS},
                                      {"backward", 0, 0, F_BACKWARD},
                                      {"d-out", 1, 0, F_D_OUT},
                                      {"gradients", 1, 0, F_GRADIENTS},
                                      {"shape", 1, 0, F_SHAPE},
                                      {"json", 0, 0, F_JSON},
                                      {"check", 0, 0, F_CHECK},
                                      {"seconds", 1, 0, F_SECONDS},
                                      {"heads", 1, 0, F_HEADS},
                                      {"batch", 1, 0, F_BATCH},
                                      {"no-progress", 0, 0, F_NO_PROGRESS},
                                      {"help", 0, 0, F_HELP},
                                      {0, 0, 0, 0}};

static const char common_help[] =
    "\nOptions of the attention:\n"
    "  --causal                key j is visible to query i only if j <= i + Nk - Nq\n"
    "  --top-left              i and j start together, for causal, window and ALiBi\n"
    "  --window L,R            keys i - L to i + R; -1 is unbounded\n"
    "  --scale X               default 1/sqrt(D)\n"
    "  --softcap X             scores become X tanh(score / X)\n"
    "  --dropout P --seed N --offset N\n"
    "  --mask F --bias F --alibi F --sink F --kv-len F     operands from .npy files\n"
    "Choice of the kernel:\n"
    "  --backend LIST          of flash,efficient,math,reference (default: the first three)\n"
    "  --kernel NAME           this one or none\n"
    "  --device cpu|cuda[:N]   --threads N   --dtype f32|bf16|f16|f64   --layout bhnd|bnhd\n"
    "  --backward              the gradients\n"
    "  --json                  print JSON\n"
    "  --no-progress           print no progress on the terminal\n";

int cli_parse(const char *command, const char *help, int argc, char **argv, cli_request *r) {
  memset(r, 0, sizeof *r);
  r->dtype = ATTEND_F32;
  r->device.type = ATTEND_CPU;
  r->prefix = "";
  r->seconds = 0.3;
  opterr = 0;
  optind = 1;
  double x;
  int which = 0;
  for (int flag; (flag = getopt_long(argc, argv, "h", flags, &which)) != -1;) {
    bool good = true;
    const char *rest = optarg;
    int64_t n = 0;
    switch (flag) {
    case F_Q:
      r->q = optarg;
      break;
    case F_K:
      r->k = optarg;
      break;
    case F_V:
      r->v = optarg;
      break;
    case F_MASK:
      r->mask = optarg;
      break;
    case F_BIAS:
      r->bias = optarg;
      break;
    case F_OUT:
      r->out = optarg;
      break;
    case F_LSE:
      r->lse = optarg;
      break;
    case F_PROBS:
      r->probs = optarg;
      break;
    case F_TENSORS:
      r->tensors = optarg;
      break;
    case F_PREFIX:
      r->prefix = optarg;
      break;
    case F_ALIBI:
      r->alibi = optarg;
      break;
    case F_SINK:
      r->sink = optarg;
      break;
    case F_KV_LEN:
      r->kv_len = optarg;
      break;
    case F_D_OUT:
      r->d_out = optarg;
      break;
    case F_GRADIENTS:
      r->gradients = optarg;
      break;
    case F_HEADS:
      r->heads_shown = optarg;
      break;
    case F_CAUSAL:
      r->options.flags |= ATTEND_CAUSAL;
      break;
    case F_TOP_LEFT:
      r->options.flags |= ATTEND_TOP_LEFT;
      break;
    case F_WINDOW:
      r->options.flags |= ATTEND_WINDOW;
      good = integer(&rest, &r->options.window_left) && *rest++ == ',' && integer(&rest, &r->options.window_right) &&
             !*rest;
      break;
    case F_SOFTCAP:
      good = number(optarg, &r->options.softcap);
      break;
    case F_DROPOUT:
      good = number(optarg, &r->options.dropout);
      break;
    case F_SCALE:
      r->options.flags |= ATTEND_SCALE;
      good = number(optarg, &r->options.scale);
      break;
    case F_SEED:
    case F_OFFSET:
      good = integer(&rest, &n) && !*rest;
      *(flag == F_SEED ? &r->seed : &r->offset) = (uint64_t)n;
      break;
    case F_LAYOUT:
      r->bnhd = !strcmp(optarg, "bnhd");
      good = r->bnhd || !strcmp(optarg, "bhnd");
      break;
    case F_DTYPE:
      good = false;
      for (int i = 0; i < 4; i++)
        if (!strcmp(optarg, dtypes[i].name)) r->dtype = dtypes[i].dtype, r->has_dtype = good = true;
      break;
    case F_BACKEND:
      good = backend_list(optarg, &r->options.backends);
      break;
    case F_KERNEL:
      snprintf(r->kernel, sizeof r->kernel, "%s", optarg);
      r->options.kernel = r->kernel;
      break;
    case F_DEVICE:
      good = r->has_device = device(optarg, &r->device);
      break;
    case F_THREADS:
      good = integer(&rest, &n) && !*rest && n >= 0 && n <= 65536;
      r->options.threads = (int)n;
      break;
    case F_BACKWARD:
      r->backward = true;
      break;
    case F_SHAPE:
      good = r->has_shape = shape(optarg, r);
      break;
    case F_JSON:
      r->json = true;
      break;
    case F_CHECK:
      r->check = true;
      break;
    case F_SECONDS:
      good = number(optarg, &x) && x > 0 && x < 1e6;
      r->seconds = x;
      break;
    case F_BATCH:
      good = integer(&rest, &r->batch_shown) && !*rest && r->batch_shown >= 0;
      break;
    case F_NO_PROGRESS:
      r->no_progress = true;
      break;
    case 'h':
    case F_HELP:
      printf("%s%s", help, strcmp(command, "info") ? common_help : "");
      return EXIT_GOOD;
    default:
      return cli_error("%s: unknown option or missing value: %s (attend %s --help)", command, argv[optind - 1],
                       command);
    }
    if (!good)
      return cli_error("%s: --%s: %s is not a value it takes (attend %s --help)", command, flags[which].name, optarg,
                       command);
  }
  if (optind < argc)
    return cli_error("%s: expected options only, got \"%s\" (attend %s --help)", command, argv[optind], command);
  return -1;
}
