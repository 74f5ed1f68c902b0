/* SPDX-License-Identifier: MIT */
/* attend bench: medians over repetitions, inputs rotated past the cache, as a fraction of the ceiling that binds. */
#include "ceiling.h"
#include "device_tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: attend bench [--shape B,H[/HKV],NQ[/NK],D[/DV]] [OPTION...]\n\n"
    "Time attention on random inputs: one shape, or a built-in grid (long, decode and short sequences; full and\n"
    "causal; forward and backward; f32 and bf16; of these, --dtype, --causal, --backward and --layout choose), on one\n"
    "thread and on all, or on --threads. Prints the median and its fraction of the ceiling: multiply-adds, or memory\n"
    "bandwidth where that binds (reads for decode, else three reads to one streaming write; on a GPU, copying). These\n"
    "are measured in the same run, but for a GPU's multiply-adds and reads, which follow from its clocks and units.\n"
    "Cases and ceilings go by the same clock, with one thread its processor time, which other work on the machine "
    "does\n"
    "not stretch, else the wall clock; and their memory comes in huge pages, where the system has them.\n";

/* ---- The grid --------------------------------------------------------------------------------------------------- */

enum { FULL = 1, CAUSAL = 2 };
enum { FORWARD = 1, BACKWARD = 2 };
enum { BHND = 1, BNHD = 2 };
enum { F32 = 1, BF16 = 2 };

/* Every combination of what is named. */
typedef struct family {
  int64_t batch, heads, kv_heads, q_len, k_len, head_dim;
  int masks, directions, layouts, dtypes;
} family;

static const family grid[] = {
    {1, 8, 8, 512, 512, 64, FULL | CAUSAL, FORWARD, BHND, F32 | BF16},
    {1, 8, 8, 2048, 2048, 64, FULL | CAUSAL, FORWARD | BACKWARD, BHND, F32 | BF16},
    {1, 8, 8, 2048, 2048, 128, FULL | CAUSAL, FORWARD | BACKWARD, BHND, F32 | BF16},
    {1, 32, 8, 1, 4096, 128, FULL, FORWARD, BHND, F32 | BF16},
    {1, 32, 8, 1, 32768, 128, FULL, FORWARD, BHND, F32 | BF16},
    {1, 32, 8, 16, 32768, 128, FULL, FORWARD, BHND, F32 | BF16},
    {4096, 8, 8, 5, 5, 64, CAUSAL, FORWARD | BACKWARD, BHND | BNHD, F32 | BF16},
    {2048, 8, 8, 8, 8, 64, CAUSAL, FORWARD | BACKWARD, BHND | BNHD, F32 | BF16},
    {1024, 8, 8, 16, 16, 64, CAUSAL, FORWARD | BACKWARD, BHND | BNHD, F32 | BF16},
};
enum { FAMILIES = sizeof grid / sizeof *grid };

/* Number `wanted` of the grid's cases that the request's flags leave, put into the request; false past the last. */
static bool grid_case(int wanted, cli_request *r) {
  int at = 0;
  for (const family *f = grid; f < grid + FAMILIES; f++)
    for (int c = 0; c < 16; c++) {
      int mask = c & 1 ? CAUSAL : FULL, dtype = c & 2 ? BF16 : F32, layout = c & 4 ? BNHD : BHND,
          direction = c & 8 ? BACKWARD : FORWARD;
      if (!(f->masks & mask && f->directions & direction && f->layouts & layout && f->dtypes & dtype)) continue;
      if (r->has_dtype && (r->dtype.bits != (dtype == BF16 ? 16 : 32) || r->dtype.code != (dtype == BF16 ? 4 : 2)))
        continue;
      if ((r->has_layout && r->bnhd != (layout == BNHD)) || (r->backward && direction != BACKWARD) ||
          (r->options.flags & ATTEND_CAUSAL && mask != CAUSAL) || at++ != wanted)
        continue;
      r->has_shape = true;
      r->batch = f->batch, r->heads = f->heads, r->kv_heads = f->kv_heads, r->q_len = f->q_len, r->k_len = f->k_len;
      r->head_dim = r->v_dim = f->head_dim;
      r->bnhd = layout == BNHD, r->backward = direction == BACKWARD,
      r->dtype = dtype == BF16 ? ATTEND_BF16 : ATTEND_F32;
      if (mask == CAUSAL) r->options.flags |= ATTEND_CAUSAL;
      return true;
    }
  return false;
}

/* ---- Timing ----------------------------------------------------------------------------------------------------- */

enum { MOST_SETS = 512, MOST_GPU_SETS = 32, MOST_TIMES = 4096, ROTATED_BYTES = 300000000 };

typedef struct measurement {
  double seconds, flops, bytes;
  attend_explanation explanation;
} measurement;

/* The sets of tensors that executions go round: so many that none is in a cache when its turn comes again. */
typedef struct rotation {
  cli_call *sets;
  int count, next;
} rotation;

static bool refused(io_error *error) { return io_fail(error, "%s", attend_error_message()); }

/* Backward reads out and lse: forward has to have been there, by whatever kernel serves. */
static bool make_set(const cli_request *r, uint64_t seed, cli_call *c, io_error *error) {
  if (!cli_call_make(r, seed, c, error) || (r->backward && !cli_call_add_gradients(r, c, error)) ||
      !device_take(r->device, c, error))
    return false;
  attend_options any = r->options;
  any.kernel = NULL, any.backends = 0;
  return !r->backward || !attend_forward_once(&c->args, &any) || refused(error);
}

static bool make_rotation(const cli_request *r, rotation *s, io_error *error) {
  int wanted = 1, most = r->device.type == ATTEND_CPU ? MOST_SETS : MOST_GPU_SETS;
  memset(s, 0, sizeof *s);
  s->sets = calloc(MOST_SETS, sizeof *s->sets);
  if (!s->sets) return io_fail(error, "out of memory");
  while (s->count < wanted) {
    s->count++;
    if (!make_set(r, 6 + (uint64_t)s->count, &s->sets[s->count - 1], error)) return false;
    double bytes = cli_call_bytes(&s->sets[0], r->backward);
    wanted = bytes > 0 && !r->cached ? (int)fmin(most, ceil(ROTATED_BYTES / bytes)) : 1;
  }
  return true;
}

static void free_rotation(const cli_request *r, rotation *s) {
  io_error ignored;
  for (int i = 0; i < s->count; i++) {
    device_return(r->device, &s->sets[i], &ignored);
    cli_call_free(&s->sets[i]);
  }
  free(s->sets);
}

/* A GPU's work is done by no thread of the CPU. */
static double clock_of(const cli_request *r) {
  return r->device.type == ATTEND_CPU ? work_seconds(r->options.threads) : cli_seconds();
}

/* Seconds of one execution: of `batch` together, since waiting for a GPU, or reading the clock, takes longer than a
 * small kernel. */
static bool time_batch(const cli_request *r, const attend_plan *plan, rotation *s, void *workspace, size_t bytes,
                       int batch, double *seconds, io_error *error) {
  double start = clock_of(r);
  for (int i = 0; i < batch; i++) {
    const attend_args *args = &s->sets[s->next++ % s->count].args;
    if (r->backward ? attend_backward(plan, args, workspace, bytes, NULL)
                    : attend_forward(plan, args, workspace, bytes, NULL))
      return refused(error);
  }
  if (!device_wait(r->device, error)) return false;
  *seconds = (clock_of(r) - start) / batch;
  return true;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The median of what fits into the time asked for, at least three, after a warm-up of a fifth of it. */
static bool time_plan(const cli_request *r, const attend_plan *plan, rotation *s, double *median, io_error *error) {
  size_t bytes = attend_plan_workspace_bytes(plan);
  void *workspace = device_workspace(r->device, bytes, error);
  double *times = malloc(MOST_TIMES * sizeof *times), once = 0, start = cli_seconds();
  if (workspace && !times) io_fail(error, "out of memory");
  bool good = workspace && times;
  while (good && (once == 0 || cli_seconds() - start < r->seconds / 5))
    good = time_batch(r, plan, s, workspace, bytes, 1, &once, error);
  double least = r->device.type == ATTEND_CPU ? 20e-6 : 2e-3;
  int count = 0, batch = (int)fmax(1, fmin(1000, least / fmax(once, 1e-7)));
  start = cli_seconds();
  while (good && count < MOST_TIMES && (count < 3 || cli_seconds() - start < r->seconds))
    good = time_batch(r, plan, s, workspace, bytes, batch, &times[count++], error);
  if (good) {
    qsort(times, (size_t)count, sizeof *times, by_value);
    *median = times[count / 2];
  }
  device_workspace_free(r->device, workspace);
  free(times);
  return good;
}

static bool time_case(const cli_request *r, measurement *m, io_error *error) {
  rotation s;
  attend_plan *plan = NULL;
  const attend_direction direction = r->backward ? ATTEND_BACKWARD : ATTEND_FORWARD;
  bool good = make_rotation(r, &s, error);
  memset(m, 0, sizeof *m);
  m->explanation.size = sizeof m->explanation;
  if (good && (attend_plan_create(direction, &s.sets[0].args, &r->options, &plan) ||
               attend_explain(direction, &s.sets[0].args, &r->options, &m->explanation)))
    good = refused(error);
  good = good && time_plan(r, plan, &s, &m->seconds, error);
  if (good) {
    m->flops = cli_call_flops(r, &s.sets[0], r->backward);
    m->bytes = cli_call_bytes(&s.sets[0], r->backward);
  }
  attend_plan_destroy(plan);
  free_rotation(r, &s);
  return good;
}

/* ---- Telling ---------------------------------------------------------------------------------------------------- */

static void add_rate(cJSON *row, const char *key, double value) {
  if (value > 0)
    cJSON_AddNumberToObject(row, key, value);
  else
    cJSON_AddNullToObject(row, key);
}

static void report(const cli_request *r, const measurement *m, const ceilings *c, cJSON *json) {
  bool gpu = r->device.type == ATTEND_CUDA, decode = r->q_len <= 16 && r->k_len >= 64 * r->q_len;
  bool half = r->dtype.code == 4 || (gpu && r->dtype.bits == 16);
  double flops_ceiling = half ? c->bf16_gflops : c->f32_gflops,
         bytes_ceiling = decode ? c->read_gbytes : c->stream_gbytes;
  double gflops = m->flops / m->seconds * 1e-9, gbytes = m->bytes / m->seconds * 1e-9, fraction = 0;
  if (flops_ceiling > 0 && bytes_ceiling > 0) fraction = fmax(gflops / flops_ceiling, gbytes / bytes_ceiling);
  char shape[128];
  snprintf(shape, sizeof shape, "%lld,%lld/%lld,%lld/%lld,%lld/%lld%s", (long long)r->batch, (long long)r->heads,
           (long long)r->kv_heads, (long long)r->q_len, (long long)r->k_len, (long long)r->head_dim,
           (long long)r->v_dim, r->bnhd ? " bnhd" : "");
  bool causal = r->options.flags & ATTEND_CAUSAL;
  if (!r->json)
    printf("%-32s %-4s %-8s %-6s %-34s %9.3g %8.1f %7.1f %8.1f%%\n", shape, cli_dtype_name(r->dtype),
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
  add_rate(row, "ceiling_gflops", flops_ceiling);
  add_rate(row, "ceiling_gbytes_per_s", bytes_ceiling);
  add_rate(row, "fraction", fraction);
  cJSON_AddItemToArray(json, row);
}

static void head(const cli_request *r, const ceilings *c, int threads) {
  if (r->json) return;
  if (r->device.type == ATTEND_CUDA)
    printf("cuda:%d, by its clocks and units: f32 %.0f GFLOP/s, tensor cores %.0f GFLOP/s, read %.0f GB/s; measured: "
           "copy %.0f GB/s\n",
           (int)r->device.id, c->f32_gflops, c->bf16_gflops, c->read_gbytes, c->stream_gbytes);
  else
    printf("%d thread%s: f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, read %.1f GB/s, three reads to one streaming write %.1f "
           "GB/s\n",
           threads, threads == 1 ? "" : "s", c->f32_gflops, c->bf16_gflops, c->read_gbytes, c->stream_gbytes);
  printf("%-32s %-4s %-8s %-6s %-34s %9s %8s %7s %9s\n", "B,H/Hkv,Nq/Nk,D/Dv", "type", "", "", "kernel", "seconds",
         "GFLOP/s", "GB/s", "ceiling");
}

/* One shape or the grid, on so many threads. */
static bool bench_threads(const cli_request *r, int threads, cJSON *json, io_error *error) {
  cli_request one = *r;
  one.options.threads = threads;
  cli_progress(r, "measuring the ceilings");
  ceilings c = r->device.type == ATTEND_CUDA ? gpu_ceilings(r->device.id) : measure_ceilings(threads);
  cli_progress(r, NULL);
  head(r, &c, threads);
  int cases = r->has_shape;
  for (cli_request any = one; !r->has_shape && grid_case(cases, &any); any = one) cases++;
  if (!cases) return io_fail(error, "bench: no case of the grid is of this --dtype; give --shape too");
  for (int i = 0; i < cases; i++) {
    cli_request each = one;
    measurement m;
    if (!r->has_shape) grid_case(i, &each);
    cli_progress(r, "case %d of %d on %d thread%s", i + 1, cases, threads, threads == 1 ? "" : "s");
    bool good = time_case(&each, &m, error);
    cli_progress(r, NULL);
    if (!good) return false;
    report(&each, &m, &c, json);
  }
  return true;
}

int cli_bench(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("bench", usage, argc, argv, &r);
  if (code >= 0) return code;
  io_error error;
  cJSON *json = cJSON_CreateArray();
  int most = attend_cpu_threads(), threads = r.options.threads ? r.options.threads : most;
  bool both = !r.has_shape && !r.options.threads && most > 1 && r.device.type == ATTEND_CPU;
  bool good = device_usable(r.device, &error) && (!both || bench_threads(&r, 1, json, &error)) &&
              bench_threads(&r, threads, json, &error);
  if (good && r.json)
    cli_print_json(json);
  else
    cJSON_Delete(json);
  return good ? EXIT_GOOD : cli_error("%s", error.text);
}
