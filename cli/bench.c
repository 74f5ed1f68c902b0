/* SPDX-License-Identifier: MIT */
/* attend bench: medians over repetitions, inputs rotated past the cache, as a fraction of the ceiling that binds. */
#include "ceiling.h"
#include "cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: attend bench [--shape B,H[/HKV],NQ[/NK],D[/DV]] [--seconds S] [OPTION...]\n\n"
    "Time attention on random inputs: one shape, or a built-in grid (forward and backward, full and causal, decode, "
    "short\n"
    "sequences, f32 and bf16). Prints the median and its fraction of the ceiling measured in the same run: "
    "multiply-adds,\n"
    "or memory bandwidth where that binds (reads for decode, else three reads to one streaming write).\n\n"
    "  --seconds S   time for each case (default 0.3)\n";

typedef struct shape_row {
  int64_t s[7];
  bool causal, backward, bnhd, bf16;
} shape_row;

#define LONG(b, h, n, d)                                                                                               \
  {{b, h, h, n, n, d, d}, 0, 0, 0, 0}, {{b, h, h, n, n, d, d}, 1, 0, 0, 0}, {{b, h, h, n, n, d, d}, 0, 0, 0, 1}, {     \
    {b, h, h, n, n, d, d}, 1, 0, 0, 1                                                                                  \
  }
#define LONG_BACKWARD(b, h, n, d)                                                                                      \
  {{b, h, h, n, n, d, d}, 0, 1, 0, 0}, {{b, h, h, n, n, d, d}, 1, 1, 0, 0}, { {b, h, h, n, n, d, d}, 1, 1, 0, 1 }
#define SHORT(b, n)                                                                                                    \
  {{b, 8, 8, n, n, 64, 64}, 1, 0, 0, 0}, {{b, 8, 8, n, n, 64, 64}, 1, 0, 1, 0}, {{b, 8, 8, n, n, 64, 64}, 1, 1, 0, 0}, \
  {                                                                                                                    \
    {b, 8, 8, n, n, 64, 64}, 1, 0, 0, 1                                                                                \
  }
#define DECODE(n)                                                                                                      \
  {{1, 32, 8, 1, n, 128, 128}, 0, 0, 0, 0}, { {1, 32, 8, 1, n, 128, 128}, 0, 0, 0, 1 }

/* The shapes of published comparisons: B, H, Hkv, Nq, Nk, D, Dv. */
static const shape_row grid[] = {LONG(1, 8, 512, 64),
                                 LONG(1, 8, 2048, 64),
                                 LONG(1, 16, 2048, 128),
                                 LONG_BACKWARD(1, 8, 2048, 64),
                                 LONG_BACKWARD(1, 8, 2048, 128),
                                 DECODE(4096),
                                 DECODE(32768),
                                 SHORT(4096, 5),
                                 SHORT(2048, 8),
                                 SHORT(1024, 16)};

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

enum { MOST_SETS = 8, MOST_TIMES = 4096 };

typedef struct measurement {
  double seconds, flops, bytes;
  attend_explanation explanation;
} measurement;

static bool time_case(const cli_request *r, measurement *m, io_error *error) {
  cli_call *sets = calloc(MOST_SETS, sizeof *sets);
  double *times = malloc(MOST_TIMES * sizeof *times);
  void *workspace = NULL;
  attend_plan *plan = NULL;
  int made = 0, count = 0, wanted = 1;
  bool good = sets && times;
  if (!good) io_fail(error, "out of memory");
  while (good && made < wanted) {
    good = cli_call_make(r, 7 + (uint64_t)made, &sets[made], error) &&
           (!r->backward || cli_call_add_gradients(r, &sets[made], error));
    made++;
    if (made == 1 && good) { /* enough sets that none is in a cache when its turn comes again */
      m->bytes = cli_call_bytes(&sets[0], r->backward);
      wanted = m->bytes > 0 ? (int)fmin(MOST_SETS, ceil(3e8 / m->bytes)) : 1;
    }
  }
  m->explanation.size = sizeof m->explanation;
  if (good && r->backward) /* backward reads out and lse */
    for (int i = 0; i < made && good; i++) {
      attend_options any = r->options;
      any.kernel = NULL;
      good = !attend_forward_once(&sets[i].args, &any) || io_fail(error, "%s", attend_error_message());
    }
  attend_direction direction = r->backward ? ATTEND_BACKWARD : ATTEND_FORWARD;
  if (good && (attend_plan_create(direction, &sets[0].args, &r->options, &plan) ||
               attend_explain(direction, &sets[0].args, &r->options, &m->explanation)))
    good = io_fail(error, "%s", attend_error_message());
  size_t bytes = attend_plan_workspace_bytes(plan);
  if (good && !(workspace = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT,
                                          (bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT)))
    good = io_fail(error, "out of memory");
  double start = cli_seconds();
  for (int i = -1; good && count < MOST_TIMES && (count < 3 || cli_seconds() - start < r->seconds); i++) {
    const cli_call *c = &sets[(i + 1) % made];
    double before = cli_seconds();
    attend_status s = r->backward ? attend_backward(plan, &c->args, workspace, bytes, NULL)
                                  : attend_forward(plan, &c->args, workspace, bytes, NULL);
    if (s) good = io_fail(error, "%s", attend_error_message());
    if (i >= 0) times[count++] = cli_seconds() - before;
  }
  if (good) {
    qsort(times, (size_t)count, sizeof *times, by_value);
    m->seconds = times[count / 2];
    m->flops = cli_call_flops(r, &sets[0], r->backward);
  }
  for (int i = 0; i < made; i++) cli_call_free(&sets[i]);
  attend_plan_destroy(plan);
  free(workspace);
  free(times);
  free(sets);
  return good;
}

static void report(const cli_request *r, const measurement *m, const ceilings *c, cJSON *json) {
  bool half = r->dtype.code == 4, decode = r->q_len <= 16 && r->k_len >= 64 * r->q_len;
  double flops_ceiling = half ? c->bf16_gflops : c->f32_gflops,
         bytes_ceiling = decode ? c->read_gbytes : c->stream_gbytes;
  double gflops = m->flops / m->seconds * 1e-9, gbytes = m->bytes / m->seconds * 1e-9;
  double fraction = fmax(gflops / flops_ceiling, gbytes / bytes_ceiling);
  char shape[128];
  snprintf(shape, sizeof shape, "%lld,%lld/%lld,%lld/%lld,%lld/%lld%s", (long long)r->batch, (long long)r->heads,
           (long long)r->kv_heads, (long long)r->q_len, (long long)r->k_len, (long long)r->head_dim,
           (long long)r->v_dim, r->bnhd ? " bnhd" : "");
  bool causal = r->options.flags & ATTEND_CAUSAL;
  if (!r->json)
    printf("%-28s %-4s %-8s %-6s %-34s %10.3g %8.1f %7.1f %7.1f%%\n", shape, cli_dtype_name(r->dtype),
           r->backward ? "backward" : "forward", causal ? "causal" : "full", m->explanation.kernel, m->seconds, gflops,
           gbytes, 100 * fraction);
  fflush(stdout);
  cJSON *row = cJSON_CreateObject();
  cJSON_AddStringToObject(row, "shape", shape);
  cJSON_AddStringToObject(row, "dtype", cli_dtype_name(r->dtype));
  cJSON_AddStringToObject(row, "direction", r->backward ? "backward" : "forward");
  cJSON_AddBoolToObject(row, "causal", causal);
  cJSON_AddStringToObject(row, "backend", cli_backend_name(m->explanation.backend));
  cJSON_AddStringToObject(row, "kernel", m->explanation.kernel);
  cJSON_AddNumberToObject(row, "threads", (double)m->explanation.threads);
  cJSON_AddNumberToObject(row, "seconds", m->seconds);
  cJSON_AddNumberToObject(row, "gflops", gflops);
  cJSON_AddNumberToObject(row, "gbytes_per_s", gbytes);
  cJSON_AddNumberToObject(row, "ceiling_gflops", flops_ceiling);
  cJSON_AddNumberToObject(row, "ceiling_gbytes_per_s", bytes_ceiling);
  cJSON_AddNumberToObject(row, "fraction", fraction);
  cJSON_AddItemToArray(json, row);
}

int cli_bench(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("bench", help, argc, argv, &r);
  if (code >= 0) return code;
  if (r.device.type != ATTEND_CPU) return cli_error("bench: --device cuda: times are taken on the CPU");
  double start = cli_seconds();
  cli_progress(&r, start, "measuring the ceilings");
  ceilings c = measure_ceilings(r.options.threads ? r.options.threads : attend_cpu_threads());
  if (!r.json) {
    printf(
        "ceilings: f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, read %.1f GB/s, three reads to one streaming write %.1f GB/s\n",
        c.f32_gflops, c.bf16_gflops, c.read_gbytes, c.stream_gbytes);
    printf("%-28s %-4s %-8s %-6s %-34s %10s %8s %7s %8s\n", "B,H/Hkv,Nq/Nk,D/Dv", "type", "", "", "kernel", "seconds",
           "GFLOP/s", "GB/s", "ceiling");
  }
  cJSON *json = cJSON_CreateArray();
  int cases = r.has_shape ? 1 : (int)(sizeof grid / sizeof *grid);
  for (int i = 0; i < cases; i++) {
    cli_request one = r;
    if (!r.has_shape) {
      const shape_row *g = &grid[i];
      one.has_shape = true;
      one.batch = g->s[0], one.heads = g->s[1], one.kv_heads = g->s[2], one.q_len = g->s[3], one.k_len = g->s[4],
      one.head_dim = g->s[5], one.v_dim = g->s[6];
      one.bnhd = g->bnhd, one.backward = g->backward, one.dtype = g->bf16 ? ATTEND_BF16 : ATTEND_F32;
      if (g->causal) one.options.flags |= ATTEND_CAUSAL;
    }
    measurement m = {0};
    io_error error;
    cli_progress(&r, start, "case %d of %d", i + 1, cases);
    bool good = time_case(&one, &m, &error);
    cli_progress(&r, start, NULL);
    if (!good) {
      cJSON_Delete(json);
      return cli_error("%s", error.text);
    }
    report(&one, &m, &c, json);
  }
  if (r.json)
    cli_print_json(json);
  else
    cJSON_Delete(json);
  return EXIT_GOOD;
}
