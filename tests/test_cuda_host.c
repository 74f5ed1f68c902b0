/* SPDX-License-Identifier: MIT */
/* The host side of CUDA on the emulated driver (tests/fake): every error is a status with the driver's words, execution
 * neither allocates nor waits, contexts and devices are the caller's. Each case is a process of its own, since a
 * process finds its driver once. On a real driver, and without one, these are skipped. */
#include "cuda/device.h"
#include "cuda/driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { B = 1, H = 2, N = 6, D = 8, COUNT = B * H * N * D };

/* In the child: report and leave. */
#define EXPECT(condition)                                                                                              \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "%s:%d: %s\n  message: %s\n", __FILE__, __LINE__, #condition, attend_error_message());           \
      _exit(1);                                                                                                        \
    }                                                                                                                  \
  } while (0)
#define EXPECT_WORDS(words) EXPECT(strstr(attend_error_message(), words))

/* FAKE_CUDA_<name>=value pairs, then the case. */
static void in_child(void (*body)(void), const char *const settings[][2]) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    for (int i = 0; settings && settings[i][0]; i++) setenv(settings[i][0], settings[i][1], 1);
    body();
    _exit(0);
  }
  int status = 1;
  assert_true(child > 0 && waitpid(child, &status, 0) == child);
  assert_int_equal(status, 0);
}

typedef struct call {
  attend_args args;
  attend_tensor t[4];
  int64_t shape[4];
  float *memory[4];
} call;

static void make_call(call *c, int gpu) {
  float values[COUNT];
  for (int i = 0; i < COUNT; i++) values[i] = (float)(i % 7) * 0.25f;
  memcpy(c->shape, (int64_t[]){B, H, N, D}, sizeof c->shape);
  for (int i = 0; i < 4; i++) {
    EXPECT(!cuda_allocate(gpu, sizeof values, (void **)&c->memory[i]));
    EXPECT(!cuda_copy_in(gpu, c->memory[i], values, sizeof values));
    c->t[i] = attend_tensor_strided(c->memory[i], ATTEND_F32, 4, c->shape, NULL);
    c->t[i].device = (attend_device){ATTEND_CUDA, gpu};
  }
  c->args = (attend_args){.q = &c->t[0], .k = &c->t[1], .v = &c->t[2], .out = &c->t[3]};
}

static void expect_result(const call *c, int gpu) { /* rows of V are alike enough for a bound: a mean of them */
  float out[COUNT];
  EXPECT(!cuda_copy_out(gpu, out, c->memory[3], sizeof out));
  for (int i = 0; i < COUNT; i++) EXPECT(out[i] > 0 && out[i] < 1.5f);
}

/* ---- Drivers that cannot be used ------------------------------------------------------------------------------- */

static char expected_words[64];

static void plan_has_no_backend(void) {
  static float memory[COUNT];
  int64_t shape[] = {B, H, N, D};
  attend_tensor t = attend_tensor_strided(memory, ATTEND_F32, 4, shape, NULL), out = t;
  static float other[COUNT];
  out.data = other;
  t.device.type = out.device.type = ATTEND_CUDA;
  attend_args args = {.q = &t, .k = &t, .v = &t, .out = &out};
  attend_explanation e = {.size = sizeof e};
  EXPECT(attend_explain(ATTEND_FORWARD, &args, NULL, &e) == ATTEND_OK);
  EXPECT(e.status == ATTEND_ERROR_NO_BACKEND && e.candidate_count > 0);
  for (int i = 0; i < e.candidate_count; i++) EXPECT(strstr(e.candidates[i].reason, expected_words));
  attend_plan *plan;
  EXPECT(attend_plan_create(ATTEND_FORWARD, &args, NULL, &plan) == ATTEND_ERROR_NO_BACKEND && !plan);
  EXPECT_WORDS(expected_words);
  attend_kernel kernel = {.size = sizeof kernel};
  EXPECT(attend_kernel_at(0, &kernel) == ATTEND_OK && kernel.device == ATTEND_CUDA);
}

static void unusable(const char *name, const char *value, const char *words) {
  const char *const settings[][2] = {{name, value}, {NULL, NULL}};
  snprintf(expected_words, sizeof expected_words, "%s", words);
  in_child(plan_has_no_backend, settings);
}

static void unusable_drivers_are_reasons(void **state) {
  (void)state;
  unusable("FAKE_CUDA_VERSION", "11080", "too old: 11.8, needed is 12.0");
  unusable("FAKE_CUDA_GPUS", "0", "sees no GPU");
  unusable("FAKE_CUDA_FAIL", "cuInit:100", "does not start: the emulated driver's words");
  unusable("FAKE_CUDA_CAPABILITY", "70", "compute capability 7.0, needed is");
}

static void indices_say_why(void) {
  attend_gpu gpu = {.size = sizeof gpu};
  EXPECT(attend_gpu_at(0, &gpu) == ATTEND_ERROR_INDEX);
  EXPECT_WORDS("too old");
}
static void gpu_at_says_why(void **state) {
  (void)state;
  const char *const settings[][2] = {{"FAKE_CUDA_VERSION", "11080"}, {NULL, NULL}};
  in_child(indices_say_why, settings);
}

/* ---- Errors on the way ------------------------------------------------------------------------------------------ */

static void errors_have_words(void) {
  call c;
  make_call(&c, 0);
  attend_plan *plan;
  EXPECT(!attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan));

  setenv("FAKE_CUDA_FAIL", "cuLaunchKernel:700", 1); /* a sticky error: an earlier kernel of somebody's went astray */
  EXPECT(attend_forward(plan, &c.args, NULL, 0, NULL) == ATTEND_ERROR_CUDA);
  EXPECT_WORDS("CUDA_ERROR_ILLEGAL_ADDRESS (700)");
  EXPECT(attend_forward_once(&c.args, NULL) == ATTEND_ERROR_CUDA);
  EXPECT_WORDS("launching a kernel");

  setenv("FAKE_CUDA_FAIL", "cuStreamSynchronize:700", 1);
  EXPECT(attend_forward_once(&c.args, NULL) == ATTEND_ERROR_CUDA);
  EXPECT_WORDS("waiting for the GPU");

  unsetenv("FAKE_CUDA_FAIL");
  EXPECT(!attend_forward(plan, &c.args, NULL, 0, NULL));
  expect_result(&c, 0);
  attend_plan_destroy(plan);
}

static void out_of_memory_has_words(void) {
  call c;
  make_call(&c, 0);
  setenv("FAKE_CUDA_FAIL", "cuMemAlloc_v2:2", 1);
  void *memory;
  EXPECT(cuda_allocate(0, 100, &memory) == ATTEND_ERROR_OUT_OF_MEMORY && !memory);
  EXPECT_WORDS("CUDA_ERROR_OUT_OF_MEMORY (2): out of memory");
}

static void images_that_do_not_load(void) {
  call c;
  make_call(&c, 0);
  setenv("FAKE_CUDA_FAIL", "cuLibraryLoadFromFile:2", 1);
  attend_plan *plan;
  EXPECT(attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan) == ATTEND_ERROR_NO_BACKEND);
  EXPECT_WORDS("loading a kernel: the CUDA driver says CUDA_ERROR_OUT_OF_MEMORY");
  unsetenv("FAKE_CUDA_FAIL");
  EXPECT(!attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan)); /* nothing of the failure is kept */
  attend_plan_destroy(plan);
}

static void errors_are_statuses(void **state) {
  (void)state;
  in_child(errors_have_words, NULL);
  in_child(out_of_memory_has_words, NULL);
  in_child(images_that_do_not_load, NULL);
}

/* ---- Execution ------------------------------------------------------------------------------------------------- */

static void execute_captured(void) {
  call c;
  make_call(&c, 0);
  attend_plan *plan;
  EXPECT(!attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan));
  setenv("FAKE_CUDA_CAPTURE", "1", 1);
  EXPECT(!attend_forward(plan, &c.args, NULL, 0, (void *)&c));
  EXPECT(attend_forward_once(&c.args, NULL) == ATTEND_ERROR_CUDA); /* it waits: not for a capture, and it says so */
  EXPECT_WORDS("CAPTURE");
  unsetenv("FAKE_CUDA_CAPTURE");
  expect_result(&c, 0);
  attend_plan_destroy(plan);
}
static void capture_needs_no_memory(void **state) {
  (void)state;
  in_child(execute_captured, NULL);
}

static void on_the_second_gpu(void) {
  const cuda_driver *driver = cuda_driver_get(NULL);
  call c, other;
  make_call(&c, 1);
  make_call(&other, 0);
  void *before, *context, *popped;
  EXPECT(!driver->primary_retain(&context, 0)); /* somebody's context, of another device, is current */
  EXPECT(!driver->context_push(context));
  EXPECT(!attend_forward_once(&c.args, NULL));
  expect_result(&c, 1);
  EXPECT(!attend_forward_once(&other.args, NULL));
  expect_result(&other, 0);
  EXPECT(!driver->context_current(&before) && before == context); /* and still is */
  EXPECT(!driver->context_pop(&popped));
  EXPECT(!driver->context_current(&before) && !before);

  c.args.v = &other.t[2];
  EXPECT(attend_forward_once(&c.args, NULL) == ATTEND_ERROR_DEVICE);
  EXPECT_WORDS("v: expected q's device");
  c.args.v = &c.t[2];
  attend_plan *plan;
  EXPECT(!attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan));
  EXPECT(attend_forward(plan, &other.args, NULL, 0, NULL) == ATTEND_ERROR_SHAPE);
  EXPECT_WORDS("device");
  attend_plan_destroy(plan);
  for (int i = 0; i < 4; i++) c.t[i].device.id = 2;
  EXPECT(attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan) == ATTEND_ERROR_NO_BACKEND);
  EXPECT_WORDS("sees no GPU 2");
}
static void devices_are_the_tensors(void **state) {
  (void)state;
  const char *const settings[][2] = {{"FAKE_CUDA_GPUS", "2"}, {NULL, NULL}};
  in_child(on_the_second_gpu, settings);
}

static void check_indices_on_gpu(void) {
  call c;
  make_call(&c, 0);
  int32_t lengths[] = {N, 0, 0, 0, N + 1}, *on_gpu; /* plans assume that words of 16 bytes stay whole */
  EXPECT(!cuda_allocate(0, sizeof lengths, (void **)&on_gpu));
  EXPECT(!cuda_copy_in(0, on_gpu, lengths, sizeof lengths));
  int64_t one = 1;
  attend_tensor kv_len = attend_tensor_strided(on_gpu, ATTEND_I32, 1, &one, NULL);
  kv_len.device = c.t[0].device;
  c.args.kv_len = &kv_len;
  attend_plan *plan;
  EXPECT(!attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan));
  EXPECT(!attend_check_indices(plan, &c.args, NULL));
  kv_len.data = on_gpu + 4;
  EXPECT(attend_check_indices(plan, &c.args, NULL) == ATTEND_ERROR_INDEX);
  EXPECT_WORDS("kv_len[0]: expected 0 to 6, got 7");
  EXPECT(!attend_forward(plan, &c.args, NULL, 0, NULL)); /* clamped */
  expect_result(&c, 0);
  attend_plan_destroy(plan);
}
static void indices_on_the_gpu_are_checked_on_request(void **state) {
  (void)state;
  in_child(check_indices_on_gpu, NULL);
}

/* ---- The products of cuBLASLt ------------------------------------------------------------------------------------ */

static void products(void) {
  call c;
  make_call(&c, 0);
  attend_options options = {.backends = ATTEND_BACKEND_MATH};
  attend_explanation e = {.size = sizeof e};
  attend_plan *plan;
  setenv("FAKE_CUDA_FAIL", "cublasLtCreate:1", 1);
  EXPECT(!attend_explain(ATTEND_FORWARD, &c.args, &options, &e) && !strcmp(e.kernel, "forward_f32_math_cuda"));
  int declined = 0;
  for (int i = 0; i < e.candidate_count; i++)
    declined += strstr(e.candidates[i].reason, "cuBLASLt does not start: status 1") != NULL;
  EXPECT(declined == 1);
  setenv("FAKE_CUDA_FAIL", "cublasLtMatmulAlgoGetHeuristic:15", 1);
  EXPECT(!attend_explain(ATTEND_FORWARD, &c.args, &options, &e) && !strcmp(e.kernel, "forward_f32_math_cuda"));

  setenv("FAKE_CUDA_FAIL", "cublasLtMatmul:13", 1);
  options.kernel = "forward_f32_math_cublaslt_cuda";
  EXPECT(attend_forward_once(&c.args, &options) == ATTEND_ERROR_CUDA);
  EXPECT_WORDS("cuBLASLt says status 13");
  unsetenv("FAKE_CUDA_FAIL");
  EXPECT(!attend_plan_create(ATTEND_FORWARD, &c.args, &options, &plan));
  void *workspace;
  EXPECT(!cuda_allocate(0, attend_plan_workspace_bytes(plan), &workspace));
  setenv("FAKE_CUDA_CAPTURE", "1", 1);
  EXPECT(!attend_forward(plan, &c.args, workspace, attend_plan_workspace_bytes(plan), (void *)&c));
  unsetenv("FAKE_CUDA_CAPTURE");
  expect_result(&c, 0);
  attend_plan_destroy(plan);
}
static void products_are_cublaslts_or_ours(void **state) {
  (void)state;
  in_child(products, NULL);
}

/* ---- Sizes of zero, and indices that point nowhere --------------------------------------------------------------- */

/* A tensor on GPU 0 of `count` elements, each `value`, with room to spare; strides are compact. */
static attend_tensor filled(attend_dtype dtype, int rank, const int64_t *shape, int count, float value) {
  float *memory, values[1024];
  EXPECT(count <= 1024);
  for (int i = 0; i < count; i++) values[i] = value;
  EXPECT(!cuda_allocate(0, sizeof values, (void **)&memory));
  EXPECT(!cuda_copy_in(0, memory, values, sizeof *values * (size_t)count));
  attend_tensor t = attend_tensor_strided(memory, dtype, rank, (int64_t *)(uintptr_t)shape, NULL);
  t.device = (attend_device){ATTEND_CUDA, 0};
  return t;
}
static void expect_all(const attend_tensor *t, int count, float value) {
  float values[1024];
  EXPECT(!cuda_copy_out(0, values, t->data, sizeof *values * (size_t)count));
  for (int i = 0; i < count; i++) EXPECT(values[i] == value);
}

static void gradients_without_heads(void) {
  for (int heads = 0; heads <= 2; heads += 2) { /* of keys; there are none of queries */
    int64_t q_shape[] = {1, 0, N, D}, k_shape[] = {1, heads, N, D}, lse_shape[] = {1, 0, N},
            bias_shape[] = {1, 1, N, N};
    int count = heads * N * D;
    attend_tensor q = filled(ATTEND_F32, 4, q_shape, 0, 0), out = q, d_out = q, d_q = q;
    attend_tensor lse = filled(ATTEND_F32, 3, lse_shape, 0, 0), k = filled(ATTEND_F32, 4, k_shape, count, 1), v = k;
    attend_tensor d_k = filled(ATTEND_F32, 4, k_shape, count, 7), d_v = filled(ATTEND_F32, 4, k_shape, count, 7);
    attend_tensor bias = filled(ATTEND_F32, 4, bias_shape, N * N, 1),
                  d_bias = filled(ATTEND_F32, 4, bias_shape, N * N, 7);
    attend_args args = {
        .q = &q, .k = &k, .v = &v, .out = &out, .lse = &lse, .d_out = &d_out, .d_q = &d_q, .d_k = &d_k, .d_v = &d_v};
    EXPECT(!attend_forward_once(&args, NULL));
    EXPECT(!attend_backward_once(&args, NULL));
    expect_all(&d_k, count, 0);
    expect_all(&d_v, count, 0);
    args.bias = &bias, args.d_bias = &d_bias;
    EXPECT(!attend_backward_once(&args, NULL));
    expect_all(&d_bias, N * N, 0);
  }
}

/* A ragged bias may be larger than the longest sequence: its gradient there is 0. */
static void gradients_of_a_larger_bias(void) {
  enum { LONG = 9, ROWS = 70 };
  int64_t shape[] = {LONG, 1, 3}, lse_shape[] = {1, LONG}, bias_shape[] = {1, 1, ROWS, LONG}, two = 2;
  int32_t offsets[] = {0, LONG};
  attend_tensor q = filled(ATTEND_F32, 3, shape, LONG * 3, 1), k = filled(ATTEND_F32, 3, shape, LONG * 3, 1), v = k;
  attend_tensor out = filled(ATTEND_F32, 3, shape, LONG * 3, 1), d_out = filled(ATTEND_F32, 3, shape, LONG * 3, 1);
  attend_tensor lse = filled(ATTEND_F32, 2, lse_shape, LONG, 1);
  attend_tensor bias = filled(ATTEND_F32, 4, bias_shape, ROWS * LONG, 0);
  attend_tensor d_bias = filled(ATTEND_F32, 4, bias_shape, ROWS * LONG, 7);
  attend_tensor index = filled(ATTEND_I32, 1, &two, 2, 0);
  EXPECT(!cuda_copy_in(0, index.data, offsets, sizeof offsets));
  attend_args args = {.q = &q,
                      .k = &k,
                      .v = &v,
                      .out = &out,
                      .lse = &lse,
                      .d_out = &d_out,
                      .bias = &bias,
                      .d_bias = &d_bias,
                      .q_offsets = &index,
                      .k_offsets = &index};
  EXPECT(!attend_backward_once(&args, NULL));
  attend_tensor beyond = d_bias;
  beyond.data = (float *)d_bias.data + LONG * LONG;
  expect_all(&beyond, (ROWS - LONG) * LONG, 0);
}

/* kv_len and a block table that name keys of which there is not one block: rows see nothing. */
static void pages_without_blocks(void) {
  const attend_dtype dtypes[] = {ATTEND_F32, ATTEND_F16};
  for (int t = 0; t < 2; t++) {
    int64_t q_shape[] = {1, 2, 1, D}, k_shape[] = {0, 1, 4, D}, table_shape[] = {1, 2}, one = 1;
    int32_t indices[] = {5, 3};
    attend_tensor q = filled(dtypes[t], 4, q_shape, 2 * D, 1), out = filled(dtypes[t], 4, q_shape, 2 * D, 1);
    attend_tensor k = filled(dtypes[t], 4, k_shape, 0, 0), v = k;
    attend_tensor kv_len = filled(ATTEND_I32, 1, &one, 1, 0), table = filled(ATTEND_I32, 2, table_shape, 2, 0);
    EXPECT(!cuda_copy_in(0, kv_len.data, indices, sizeof *indices));
    EXPECT(!cuda_copy_in(0, table.data, indices, sizeof indices));
    attend_args args = {.q = &q, .k = &k, .v = &v, .out = &out, .kv_len = &kv_len, .block_table = &table};
    EXPECT(!attend_forward_once(&args, NULL));
    expect_all(&out, t ? D : 2 * D, 0);
  }
}

static void nothing_is_a_size(void **state) {
  (void)state;
  in_child(gradients_without_heads, NULL);
  in_child(gradients_of_a_larger_bias, NULL);
  in_child(pages_without_blocks, NULL);
}

/* ---- Words ----------------------------------------------------------------------------------------------------- */

static void count_notice(void *user, attend_log_level level, const char *message) {
  EXPECT(level == ATTEND_LOG_INFO && strstr(message, "emulated GPU, compute capability 9.0"));
  ++*(int *)user;
}
static void notices(void) {
  call c;
  make_call(&c, 0);
  int count = 0;
  attend_hooks hooks = {.user = &count, .log = count_notice};
  attend_options options = {.hooks = &hooks};
  EXPECT(!attend_forward_once(&c.args, NULL)); /* nobody listens: kept for who does */
  for (int i = 0; i < 3; i++) EXPECT(!attend_forward_once(&c.args, &options));
  EXPECT(count == 1);
}
static void the_hardware_is_noticed_once(void **state) {
  (void)state;
  in_child(notices, NULL);
}

int main(void) {
  attend_gpu gpu = {.size = sizeof gpu};
  pid_t child = fork(); /* here too, the process that asks has found its driver */
  if (child == 0) _exit(attend_gpu_at(0, &gpu) || strcmp(gpu.name, "emulated GPU") || gpu.reason[0]);
  int status = 1;
  if (child < 0 || waitpid(child, &status, 0) != child || status) {
    print_message("skipped: these need the emulated driver in front of the real one\n");
    return 77;
  }
  const struct CMUnitTest tests[] = {cmocka_unit_test(unusable_drivers_are_reasons),
                                     cmocka_unit_test(gpu_at_says_why),
                                     cmocka_unit_test(errors_are_statuses),
                                     cmocka_unit_test(capture_needs_no_memory),
                                     cmocka_unit_test(devices_are_the_tensors),
                                     cmocka_unit_test(indices_on_the_gpu_are_checked_on_request),
                                     cmocka_unit_test(products_are_cublaslts_or_ours),
                                     cmocka_unit_test(nothing_is_a_size),
                                     cmocka_unit_test(the_hardware_is_noticed_once)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
