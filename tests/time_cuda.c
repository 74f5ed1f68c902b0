/* SPDX-License-Identifier: MIT */
/* Times the CUDA kernels of this machine: medians of event times of graphs over rotated inputs, beside the copy
 * bandwidth of the same run. scripts/gpu-check and `make bench-gpu` run it; `time_cuda 0.001` is a dry run, `time_cuda
 * 1 decode` runs the cases whose names contain "decode". */
#include "cuda/device.h"
#include "cuda/driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct timing_case {
  const char *name;
  int64_t batch, heads, kv_heads, q_len, k_len, dim;
  bool causal, bnhd, paged, f32, mask, bias; /* bias: [1,heads,q_len,k_len], with its gradient */
  double dropout;
} timing_case;

/* clang-format off */
#define SHORT(n, name) {"short " #n name, 8192, 8, 8, n, n, 64, .causal = true
#define DECODE(name, b, n) {"decode " name, b, 32, 8, 1, n, 128, .causal = true, .bnhd = true
#define LONG(name, b, h, n, d) {name " " #n "x" #d, b, h, h, n, n, .dim = d
static const timing_case cases[] = {
    SHORT(5, "")}, SHORT(5, " bnhd"), .bnhd = true},
    SHORT(8, "")}, SHORT(8, " bnhd"), .bnhd = true},
    SHORT(9, "")}, SHORT(9, " bnhd"), .bnhd = true},
    SHORT(16, "")}, SHORT(16, " bnhd"), .bnhd = true},
    SHORT(17, "")}, SHORT(17, " bnhd"), .bnhd = true},
    SHORT(32, "")}, SHORT(32, " bnhd"), .bnhd = true},
    SHORT(5, " f32"), .f32 = true}, SHORT(16, " f32"), .f32 = true}, SHORT(32, " f32"), .f32 = true},
    DECODE("64x4096", 64, 4096)}, DECODE("64x4096 paged", 64, 4096), .paged = true},
    DECODE("1x131072", 1, 131072)}, DECODE("1x4096", 1, 4096)},
    LONG("f32", 2, 32, 2048, 64), .f32 = true}, LONG("f32 causal", 2, 32, 2048, 64), .causal = true, .f32 = true},
    LONG("f32", 2, 16, 2048, 128), .f32 = true}, LONG("f32 causal", 2, 16, 2048, 128), .causal = true, .f32 = true},
    LONG("f32", 1, 8, 8192, 64), .f32 = true}, LONG("f32", 1, 8, 8192, 128), .f32 = true},
    LONG("bf16", 8, 32, 512, 64)}, LONG("bf16 causal", 8, 32, 512, 64), .causal = true},
    LONG("bf16", 8, 32, 2048, 64)}, LONG("bf16 causal", 8, 32, 2048, 64), .causal = true},
    LONG("bf16", 1, 32, 16384, 64)}, LONG("bf16 causal", 1, 32, 16384, 64), .causal = true},
    LONG("bf16", 8, 16, 2048, 128)}, LONG("bf16 causal", 8, 16, 2048, 128), .causal = true},
    LONG("bf16", 1, 16, 16384, 128)}, LONG("bf16 causal", 1, 16, 16384, 128), .causal = true},
    LONG("bf16 bias", 8, 16, 2048, 64), .bias = true},
    LONG("bf16 mask", 8, 16, 2048, 64), .mask = true},
    LONG("bf16 dropout", 8, 16, 2048, 64), .dropout = 0.1},
};
#undef SHORT
#undef DECODE
#undef LONG
/* clang-format on */
enum { CASES = sizeof cases / sizeof *cases, MOST_SETS = 32, MOST_TENSORS = 16, REPEATS = 5, PAGE = 16 };
static const double ROTATED_BYTES = 2e8; /* beyond every L2 */

/* Entry points of the driver that the library itself does not need. */
static struct {
  int (*event_create)(void **event, unsigned flags);
  int (*event_record)(void *event, void *stream);
  int (*event_synchronize)(void *event);
  int (*event_elapsed)(float *milliseconds, void *begin, void *end);
  int (*stream_create)(void **stream, unsigned flags);
  int (*capture_begin)(void *stream, int mode);
  int (*capture_end)(void *stream, void **graph);
  int (*graph_instantiate)(void **executable, void *graph, unsigned long long flags);
  int (*graph_launch)(void *executable, void *stream);
  int (*executable_destroy)(void *executable);
  int (*graph_destroy)(void *graph);
} driver;
enum { STREAM_NON_BLOCKING = 1 };
static void *stream; /* everything is timed on it */

static void must(attend_status status) {
  if (!status) return;
  fprintf(stderr, "%s\n", attend_error_message());
  exit(1);
}
static void must_driver(int error) {
  if (!error) return;
  fprintf(stderr, "the CUDA driver says %d\n", error);
  exit(1);
}

static void find_driver(void) {
  static const char *const names[] = {
      "cuEventCreate",  "cuEventRecord",           "cuEventSynchronize", "cuEventElapsedTime",
      "cuStreamCreate", "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags",
      "cuGraphLaunch",  "cuGraphExecDestroy",      "cuGraphDestroy"};
  enum { ENTRIES = sizeof names / sizeof *names };
  void *library = dlopen("libcuda.so.1", RTLD_NOW), *entries[ENTRIES];
  for (int i = 0; i < ENTRIES; i++) {
    entries[i] = library ? dlsym(library, names[i]) : NULL;
    if (!entries[i]) {
      fprintf(stderr, "no %s\n", names[i]);
      exit(1);
    }
  }
  memcpy(&driver, entries, sizeof driver);
}

/* ---- One input set ---------------------------------------------------------------------------------------------- */

typedef struct input_set {
  attend_args args;
  attend_tensor t[MOST_TENSORS];
  int64_t shape[MOST_TENSORS][4], strides[MOST_TENSORS][4];
} input_set;

static char *random_bytes; /* host: small normal-looking numbers in the type at hand */
static size_t random_size;

static void *device_memory(size_t bytes) {
  char *memory;
  must(cuda_allocate(0, bytes, (void **)&memory));
  for (size_t at = 0; at < bytes; at += random_size) /* random inputs: zeros run faster than real data */
    must(cuda_copy_in(0, memory + at, random_bytes, bytes - at < random_size ? bytes - at : random_size));
  return memory;
}

static const attend_tensor *tensor(input_set *s, int *used, const timing_case *c, int64_t batch, int64_t heads,
                                   int64_t rows) {
  int n = (*used)++;
  int64_t size = c->f32 ? 4 : 2, d = c->dim;
  memcpy(s->shape[n], (int64_t[]){batch, heads, rows, d}, sizeof s->shape[n]);
  memcpy(s->strides[n], (int64_t[]){heads * rows * d, c->bnhd ? d : rows * d, c->bnhd ? heads * d : d, 1},
         sizeof s->strides[n]);
  s->t[n] = attend_tensor_strided(device_memory((size_t)(batch * heads * rows * d * size)),
                                  c->f32 ? ATTEND_F32 : ATTEND_BF16, 4, s->shape[n], s->strides[n]);
  s->t[n].device = (attend_device){ATTEND_CUDA, 0};
  return &s->t[n];
}

static const attend_tensor *indices(input_set *s, int *used, int ndim, int64_t rows, int64_t columns, int64_t first,
                                    int64_t step) {
  int n = (*used)++;
  size_t count = (size_t)(rows * columns);
  int32_t *host = malloc(count * sizeof *host), *memory;
  for (size_t i = 0; i < count; i++) host[i] = (int32_t)(first + step * (int64_t)i);
  must(cuda_allocate(0, count * sizeof *host, (void **)&memory));
  must(cuda_copy_in(0, memory, host, count * sizeof *host));
  free(host);
  memcpy(s->shape[n], (int64_t[]){rows, columns, 0, 0}, sizeof s->shape[n]);
  s->t[n] = attend_tensor_strided(memory, ATTEND_I32, ndim, s->shape[n], NULL);
  s->t[n].device = (attend_device){ATTEND_CUDA, 0};
  return &s->t[n];
}

/* [batch, heads, q_len, k_len], in the case's type or bool. */
static const attend_tensor *pairs(input_set *s, int *used, const timing_case *c, int64_t heads, bool is_mask) {
  int n = (*used)++;
  size_t count = (size_t)(heads * c->q_len * c->k_len);
  memcpy(s->shape[n], (int64_t[]){1, heads, c->q_len, c->k_len}, sizeof s->shape[n]);
  s->t[n] = attend_tensor_strided(device_memory(count * (is_mask  ? 1
                                                         : c->f32 ? 4
                                                                  : 2)),
                                  is_mask  ? ATTEND_BOOL
                                  : c->f32 ? ATTEND_F32
                                           : ATTEND_BF16,
                                  4, s->shape[n], NULL);
  s->t[n].device = (attend_device){ATTEND_CUDA, 0};
  return &s->t[n];
}

/* Returns the bytes that one execution has to move. */
static double make_set(input_set *s, const timing_case *c, attend_direction direction) {
  int used = 0;
  int64_t pages = c->batch * (c->k_len / PAGE), size = c->f32 ? 4 : 2;
  *s = (input_set){0};
  s->args.q = tensor(s, &used, c, c->batch, c->heads, c->q_len);
  s->args.k =
      c->paged ? tensor(s, &used, c, pages, c->kv_heads, PAGE) : tensor(s, &used, c, c->batch, c->kv_heads, c->k_len);
  s->args.v =
      c->paged ? tensor(s, &used, c, pages, c->kv_heads, PAGE) : tensor(s, &used, c, c->batch, c->kv_heads, c->k_len);
  s->args.out = tensor(s, &used, c, c->batch, c->heads, c->q_len);
  if (c->paged) {
    s->args.kv_len = indices(s, &used, 1, c->batch, 1, c->k_len, 0);
    s->args.block_table = indices(s, &used, 2, c->batch, c->k_len / PAGE, 0, 1);
  }
  if (c->mask) s->args.mask = pairs(s, &used, c, 1, true);
  if (c->bias) s->args.bias = pairs(s, &used, c, c->heads, false);
  double q = (double)(c->batch * c->heads * c->q_len * c->dim * size),
         k = (double)(c->batch * c->kv_heads * c->k_len * c->dim * size);
  int n = used++;
  memcpy(s->shape[n], (int64_t[]){c->batch, c->heads, c->q_len, 0}, sizeof s->shape[n]);
  s->t[n] = attend_tensor_strided(device_memory((size_t)(c->batch * c->heads * c->q_len * 4)), ATTEND_F32, 3,
                                  s->shape[n], NULL);
  s->t[n].device = (attend_device){ATTEND_CUDA, 0};
  s->args.lse = &s->t[n]; /* forward too: whoever trains wants it */
  if (direction == ATTEND_FORWARD) return 2 * q + 2 * k;
  s->args.d_out = tensor(s, &used, c, c->batch, c->heads, c->q_len);
  s->args.d_q = tensor(s, &used, c, c->batch, c->heads, c->q_len);
  s->args.d_k = tensor(s, &used, c, c->batch, c->kv_heads, c->k_len);
  s->args.d_v = tensor(s, &used, c, c->batch, c->kv_heads, c->k_len);
  if (c->bias) s->args.d_bias = pairs(s, &used, c, c->heads, false);
  return 3 * q + 4 * k;
}

static void free_set(input_set *s) {
  for (int i = 0; i < MOST_TENSORS; i++) cuda_release(0, s->t[i].data);
}

/* ---- Times ------------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

/* Median milliseconds of one step(context, number): REPEATS runs of `count` steps between two events. */
static double median_time(void (*step)(void *context, int number), void *context, int count) {
  static void *begin, *end;
  float times[REPEATS];
  if (!begin) must_driver(driver.event_create(&begin, 0));
  if (!end) must_driver(driver.event_create(&end, 0));
  for (int r = 0; r < REPEATS; r++) {
    must_driver(driver.event_record(begin, stream));
    for (int i = 0; i < count; i++) step(context, r * count + i);
    must_driver(driver.event_record(end, stream));
    must_driver(driver.event_synchronize(end));
    must_driver(driver.event_elapsed(&times[r], begin, end));
  }
  qsort(times, REPEATS, sizeof *times, by_value);
  return times[REPEATS / 2] / count;
}

typedef struct execution {
  attend_plan *plan;
  attend_direction direction;
  input_set *sets;
  int set_count;
  void *workspace;
  size_t workspace_bytes;
} execution;

static void execute(void *context, int number) {
  execution *e = context;
  const attend_args *args = &e->sets[number % e->set_count].args;
  must((e->direction == ATTEND_FORWARD ? attend_forward : attend_backward)(e->plan, args, e->workspace,
                                                                           e->workspace_bytes, stream));
}

enum { CAPTURE_MODE_RELAXED = 2 };
static void launch_graph(void *executable, int number) {
  (void)number;
  must_driver(driver.graph_launch(executable, stream));
}
/* Milliseconds of an execution, by a graph of `count`: launched one by one, short ones would wait for the host. */
static double graph_time(execution *e, int count) {
  void *graph, *executable;
  must_driver(driver.capture_begin(stream, CAPTURE_MODE_RELAXED));
  for (int i = 0; i < count; i++) execute(e, i);
  must_driver(driver.capture_end(stream, &graph));
  must_driver(driver.graph_instantiate(&executable, graph, 0));
  launch_graph(executable, 0);
  double milliseconds = median_time(launch_graph, executable, 1) / count;
  must_driver(driver.executable_destroy(executable));
  must_driver(driver.graph_destroy(graph));
  return milliseconds;
}

typedef struct copying {
  char *from, *to;
  size_t bytes;
} copying;

static void copy(void *context, int number) {
  copying *c = context;
  bool odd = number % 2;
  must_driver(cuda_driver_get(NULL)->copy((uint64_t)(uintptr_t)(odd ? c->from : c->to),
                                          (uint64_t)(uintptr_t)(odd ? c->to : c->from), c->bytes, stream));
}

static double copy_bandwidth(double scale) {
  copying c = {.bytes = (size_t)(1e9 * scale) / 256 * 256 + 256};
  c.from = device_memory(c.bytes), c.to = device_memory(c.bytes);
  median_time(copy, &c, 2);
  double milliseconds = median_time(copy, &c, 10);
  cuda_release(0, c.from);
  cuda_release(0, c.to);
  return 2 * (double)c.bytes / milliseconds * 1e-6;
}

/* A kernel that only reads: 32 KB a block, 8 loads of 16 bytes a thread, xor so that none is left out. */
static const char read_text[] =
    ".version 7.0\n.target sm_80\n.address_size 64\n"
    ".visible .entry read_all(.param .u64 from) {\n"
    ".reg .pred p; .reg .b32 n, x<32>; .reg .b64 at, offset;\n"
    "ld.param.u64 at, [from]; mov.u32 n, %ctaid.x; mul.wide.u32 offset, n, 32768; add.u64 at, at, offset;\n"
    "mov.u32 n, %tid.x; mul.wide.u32 offset, n, 16; add.u64 at, at, offset;\n"
#define READ(a, b, c, d, bytes) "ld.global.v4.u32 {x" #a ", x" #b ", x" #c ", x" #d "}, [at+" #bytes "];\n"
    READ(0, 1, 2, 3, 0) READ(4, 5, 6, 7, 4096) READ(8, 9, 10, 11, 8192) READ(12, 13, 14, 15, 12288)
        READ(16, 17, 18, 19, 16384) READ(20, 21, 22, 23, 20480) READ(24, 25, 26, 27, 24576) READ(28, 29, 30, 31, 28672)
#undef READ
#define FOLD(n) "xor.b32 x0, x0, x" #n ";\n"
            FOLD(1) FOLD(2) FOLD(3) FOLD(4) FOLD(5) FOLD(6) FOLD(7) FOLD(8) FOLD(9) FOLD(10) FOLD(11) FOLD(12) FOLD(13)
                FOLD(14) FOLD(15) FOLD(16) FOLD(17) FOLD(18) FOLD(19) FOLD(20) FOLD(21) FOLD(22) FOLD(23) FOLD(24)
                    FOLD(25) FOLD(26) FOLD(27) FOLD(28) FOLD(29) FOLD(30) FOLD(31)
#undef FOLD
                        "setp.eq.u32 p, x0, 0x9E3779B9; @p st.global.u32 [at], x0;\nret;\n}\n";
enum { READ_BYTES = 32768, READ_THREADS = 256 };

static void read_all(void *context, int number) {
  copying *c = context;
  (void)number;
  must(cuda_launch(c->to, (int64_t)(c->bytes / READ_BYTES), READ_THREADS, &c->from, stream));
}

/* 0 where a kernel from PTX cannot be loaded, as with tests/fake. */
static double read_bandwidth(double scale) {
  const cuda_driver *library_driver = cuda_driver_get(NULL);
  void *library, *kernel, *function;
  if (library_driver->library_load(&library, read_text, NULL, NULL, 0, NULL, NULL, 0) ||
      library_driver->library_kernel(&kernel, library, "read_all") ||
      library_driver->kernel_function(&function, kernel))
    return 0;
  copying c = {.to = kernel, .bytes = ((size_t)(2e9 * scale) / READ_BYTES + 1) * READ_BYTES};
  c.from = device_memory(c.bytes);
  median_time(read_all, &c, 2);
  double milliseconds = median_time(read_all, &c, 10);
  cuda_release(0, c.from);
  return (double)c.bytes / milliseconds * 1e-6;
}

static void time_case(timing_case c, attend_direction direction, double scale, double ceiling) {
  static input_set sets[MOST_SETS];
  if (scale < 1)
    c.heads /= c.kv_heads, c.kv_heads = c.batch = 1, c.k_len = c.k_len < 64 ? c.k_len : 64,
                           c.q_len = c.q_len < 64 ? c.q_len : 64;
  execution e = {.direction = direction, .sets = sets, .set_count = 1};
  double bytes = make_set(&sets[0], &c, direction);
  while (scale == 1 && e.set_count < MOST_SETS && bytes * e.set_count < ROTATED_BYTES)
    make_set(&sets[e.set_count++], &c, direction);
  attend_options options = {.flags = c.causal ? ATTEND_CAUSAL : 0, .dropout = c.dropout};
  attend_explanation explanation = {.size = sizeof explanation};
  must(attend_explain(direction, &sets[0].args, &options, &explanation));
  must(attend_plan_create(direction, &sets[0].args, &options, &e.plan));
  e.workspace_bytes = attend_plan_workspace_bytes(e.plan);
  must(cuda_allocate(0, e.workspace_bytes, &e.workspace));
  execute(&e, 0);
  double once = scale < 1 ? 1 : median_time(execute, &e, 1);
  int count = scale < 1 ? 1 : (int)(5 / once) + 1;
  double milliseconds = graph_time(&e, count);
  double flops = 4.0 * (double)(c.batch * c.heads * c.q_len * c.k_len) * (double)c.dim *
                 (c.causal && c.q_len > 1 ? 0.5 : 1) * (direction == ATTEND_BACKWARD ? 2.5 : 1);
  double rate = bytes / milliseconds * 1e-6;
  printf("%-22s %-9s %-30s %10.1f %8.0f %6.1f%% %9.2f\n", c.name, direction == ATTEND_FORWARD ? "forward" : "backward",
         explanation.kernel, milliseconds * 1e3, rate, 100 * rate / ceiling, flops / milliseconds * 1e-9);
  fflush(stdout);
  attend_plan_destroy(e.plan);
  cuda_release(0, e.workspace);
  for (int i = 0; i < e.set_count; i++) free_set(&sets[i]);
}

int main(int argc, char **argv) {
  double scale = argc > 1 ? atof(argv[1]) : 1;
  const char *only = argc > 2 ? argv[2] : "";
  attend_gpu gpu = {.size = sizeof gpu};
  if (attend_gpu_at(0, &gpu)) {
    printf("skipped: %s\n", attend_error_message());
    return 77;
  }
  find_driver();
  random_size = scale < 1 ? 4096 : 1 << 24;
  random_bytes = malloc(random_size);
  if (!random_bytes) return 1;
  uint64_t state = 1;
  for (size_t i = 0; i < random_size / 2;
       i++) { /* as bf16: of either sign, from 1/16 to 2; as f32: their high halves */
    state = state * 6364136223846793005u + 1442695040888963407u;
    uint16_t bits = (uint16_t)((state >> 63) << 15 | (0x3D80 + (state >> 33) % 0x280));
    memcpy(random_bytes + 2 * i, &bits, 2);
  }
  /* Events need a current context: the primary one. */
  cuda_scope scope;
  must(cuda_enter(0, &scope));
  must_driver(driver.stream_create(&stream, STREAM_NON_BLOCKING));
  double ceiling = copy_bandwidth(scale);
  printf("%s, compute capability %d.%d, copy %.0f GB/s, read %.0f GB/s\n\n%-22s %-9s %-30s %10s %8s %7s %9s\n",
         gpu.name, (int)gpu.major, (int)gpu.minor, ceiling, read_bandwidth(scale), "case", "direction", "kernel", "us",
         "GB/s", "of copy", "TFLOP/s");
  for (int i = 0; i < CASES; i++)
    for (attend_direction d = ATTEND_FORWARD; d <= ATTEND_BACKWARD; d++)
      if (strstr(cases[i].name, only) && (d == ATTEND_FORWARD || cases[i].q_len > 1))
        time_case(cases[i], d, scale, ceiling);
  cuda_leave(&scope);

  free(random_bytes);
  return 0;
}
