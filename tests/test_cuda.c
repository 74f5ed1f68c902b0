/* SPDX-License-Identifier: MIT */
/* Every CUDA kernel on random problems against the f64 reference, at the gate of house rule 6, with a band around every
 * buffer; the same bits whatever else is in the batch; the dropout mask that the header defines. The GPU is the first
 * one; where a test puts tests/fake in front of the driver, it is an emulated one.
 *
 *   ATTEND_TEST_SECONDS=600 ATTEND_TEST_SEED=1000 tests/test_cuda     more problems, from another seed
 *   ATTEND_TEST_ONLY=forward_bf16_short_cuda …                        one kernel
 *   ATTEND_TEST_LARGE=0 …                                             nothing large: for compute-sanitizer
 *   ATTEND_TEST_NAME=backward_is_exact …                              one test; with a seed: one problem a type */
#include "cuda/device.h"
#include "support/gate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct {
  attend_dtype dtype;
  const char *name;
} types[] = {{{2, 32, 1}, "f32"}, {{2, 16, 1}, "f16"}, {{4, 16, 1}, "bf16"}, {{2, 64, 1}, "f64"}};

static size_t band = 256;   /* bytes around a buffer; the emulated driver has a page of its own behind it */
static bool large;          /* take problems of many sequences and of many bytes */
static int64_t head_stride; /* elements from head to head of q, k, v, out and their gradients; 0: as on the host */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double from_environment(const char *name, double otherwise) {
  const char *text = getenv(name);
  return text ? atof(text) : otherwise;
}

/* ---- A tensor on the GPU ---------------------------------------------------------------------------------------- */

typedef struct gpu_tensor {
  attend_tensor view;
  char *device, *host; /* the whole buffer, and what it held */
  size_t bytes, at, size;
  int64_t strides[4]; /* of heads far apart */
} gpu_tensor;

static void must(attend_status status) {
  if (status) fail_msg("%s", attend_error_message());
}

/* Heads of a compact tensor of one sequence, far apart on the GPU: what is between them is not looked at. */
static int64_t spread_bytes(const gpu_tensor *g) {
  return head_stride && g->view.ndim == 4 ? head_stride * (g->view.dtype.bits / 8) : 0;
}
static void copy_heads(const gpu_tensor *g, char *host, bool in) {
  size_t heads = (size_t)g->view.shape[1], bytes = g->size / heads;
  for (size_t h = 0; h < heads; h++) {
    char *at = g->device + h * (size_t)spread_bytes(g);
    must(in ? cuda_copy_in(0, at, host + h * bytes, bytes) : cuda_copy_out(0, host + h * bytes, at, bytes));
  }
}

/* At the end of the buffer, to the byte, or aligned as the kernels for aligned rows need it. */
static gpu_tensor to_gpu(const test_tensor *from, bool aligned) {
  gpu_tensor g = {.view = from->view, .size = from->memory.bytes};
  size_t inside = (g.size + 255) / 256 * 256;
  g.view.device = (attend_device){ATTEND_CUDA, 0};
  if (spread_bytes(&g)) {
    for (int d = 0; d < 4; d++) g.strides[d] = d == 1 ? head_stride : from->view.strides[d];
    must(cuda_allocate(0, (size_t)(from->view.shape[1] - 1) * (size_t)spread_bytes(&g) + inside, (void **)&g.device));
    copy_heads(&g, from->memory.data, true);
    g.view.data = g.device;
    return g;
  }
  g.at = band + (aligned ? (inside - g.size) / 16 * 16 : inside - g.size);
  if (aligned && (uintptr_t)from->view.data % 16 == 0 && g.size % 16) g.at = band;
  g.bytes = inside + 2 * band;
  if (!g.bytes) g.bytes = 256;
  g.host = malloc(g.bytes);
  assert_non_null(g.host);
  memset(g.host, 0xFF, g.bytes);
  if (g.size) memcpy(g.host + g.at, from->memory.data, g.size);
  must(cuda_allocate(0, g.bytes, (void **)&g.device));
  must(cuda_copy_in(0, g.device, g.host, g.bytes));
  g.view.data = g.device + g.at;
  return g;
}

/* What it holds now goes to `to`; the band, and all of an input, must be as they were. */
static bool from_gpu(gpu_tensor *g, test_tensor *to) {
  if (spread_bytes(g)) {
    if (to) copy_heads(g, to->memory.data, false);
    cuda_release(0, g->device);
    return true;
  }
  char *found = malloc(g->bytes);
  assert_non_null(found);
  must(cuda_copy_out(0, found, g->device, g->bytes));
  if (to && g->size) {
    memcpy(to->memory.data, found + g->at, g->size);
    memcpy(g->host + g->at, found + g->at, g->size);
  }
  bool intact = !memcmp(found, g->host, g->bytes);
  cuda_release(0, g->device);
  free(found);
  free(g->host);
  return intact;
}

static bool takes_part(const test_problem *p, attend_direction direction, operand_id id) {
  if (!p->t[id].view.data) return false;
  if (direction == ATTEND_FORWARD) return id < OPERAND_D_OUT && (id != OPERAND_LSE || p->spec.lse);
  return id != OPERAND_PROBS && id != OPERAND_SCORES;
}

/* As run_kernel of gate.h, on the GPU. `intact`: nothing was written outside the outputs. */
static attend_status run_on_gpu(test_problem *p, attend_direction direction, const char *kernel, run_outputs *outputs,
                                bool *intact) {
  static gpu_tensor g[OPERAND_COUNT];
  *outputs = (run_outputs){0};
  *intact = true;
  attend_args args = {.dropout_seed = p->spec.dropout_seed, .dropout_offset = p->spec.dropout_offset};
  const attend_tensor **slots = &args.q; /* attend_args has its tensors in the order of operand_id */
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    if (!takes_part(p, direction, id)) continue;
    if (is_output_of(direction, id)) tensor_clone(&outputs->t[id], &p->t[id], true);
    g[id] = to_gpu(&p->t[id], p->spec.seed % 4 != 0);
    if (g[id].strides[3]) g[id].view.strides = g[id].strides;
    slots[id] = &g[id].view;
  }
  attend_options options = p->options;
  options.kernel = kernel;
  options.backends = ATTEND_BACKEND_ALL;
  attend_plan *plan = NULL;
  void *workspace = NULL;
  attend_status status = attend_plan_create(direction, &args, &options, &plan);
  if (status == ATTEND_OK) {
    size_t bytes = attend_plan_workspace_bytes(plan);
    must(cuda_allocate(0, bytes, &workspace));
    if (bytes) {
      void *junk = memset(malloc(bytes), 0xFF, bytes);
      must(cuda_copy_in(0, workspace, junk, bytes));
      free(junk);
    }
    must(attend_check_indices(plan, &args, NULL));
    status = (direction == ATTEND_FORWARD ? attend_forward : attend_backward)(plan, &args, workspace, bytes, NULL);
    if (status == ATTEND_OK) status = cuda_wait(0, NULL);
    attend_plan_destroy(plan);
    cuda_release(0, workspace);
  }
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (takes_part(p, direction, id)) {
      bool kept = from_gpu(&g[id], is_output_of(direction, id) ? &outputs->t[id] : NULL);
      *intact = *intact && kept;
    }
  if (status != ATTEND_OK) run_free(outputs);
  return status;
}

static int gpu_kernels(attend_direction direction, attend_dtype dtype, attend_kernel list[16]) {
  int count = 0;
  const char *only = getenv("ATTEND_TEST_ONLY");
  attend_kernel kernel = {.size = sizeof kernel};
  for (int64_t i = 0; attend_kernel_at(i, &kernel) == ATTEND_OK; i++)
    if (kernel.device == ATTEND_CUDA && kernel.direction == (int32_t)direction && kernel.usable && count < 16 &&
        !memcmp(&kernel.dtype, &dtype, sizeof dtype) && (!only || !strcmp(only, kernel.name)))
      list[count++] = kernel;
  return count;
}

/* ---- Random problems -------------------------------------------------------------------------------------------- */

/* Two problems in three are of the sizes that the kernels for short sequences, for decoding and in tiles take. */
static problem_spec spec_of(uint64_t seed, attend_dtype dtype, attend_direction direction) {
  problem_spec s = random_spec(seed, dtype, direction);
  uint64_t state = seed ^ 0xC0DA;
  uint64_t draw = random_next(&state);
  if (seed % 3 == 1) {
    static const int64_t lengths[] = {1, 4, 5, 7, 8, 9, 12, 16, 17, 24, 25, 32};
    s.q_len = lengths[draw % 12];
    s.k_len = draw >> 8 & 1 ? s.q_len : lengths[draw / 16 % 12];
    s.form = s.form == FORM_PAGED ? FORM_DENSE : s.form;
    s.ragged_q = s.form == FORM_RAGGED;
    s.head_dim = draw >> 9 & 1 ? 64 : 8 * (1 + (int64_t)(draw >> 16) % 17);
    s.v_dim = draw >> 10 & 1 ? s.head_dim : 8 * (1 + (int64_t)(draw >> 24) % 17);
    s.batch = 1 + (int64_t)(draw >> 32) % 4;
    s.plain_layout = draw >> 11 & 1;
    if (draw >> 12 & 1)
      s.mask_rank = s.bias = s.alibi = s.sink = 0, s.dropout = 0, s.d_bias = s.d_sink = s.kv_len = false;
  } else if (seed % 3 == 2 && direction == ATTEND_FORWARD && draw >> 20 & 1) {
    s.q_len = draw % 3 ? 1 : 1 + (int64_t)(draw >> 8) % 9;
    s.k_len = 1 + (int64_t)(draw >> 16) % (draw >> 12 & 1 ? 1500 : 300);
    s.head_dim = s.v_dim = draw >> 13 & 1 ? 128 : 8 * (1 + (int64_t)(draw >> 32) % 20);
    s.batch = 1 + (int64_t)(draw >> 40) % 2;
    s.plain_layout = draw >> 14 & 1;
    if (draw >> 15 & 1) s.dropout = 0;
  } else if (seed % 3 == 2) { /* several tiles of queries and of keys */
    s.form = s.form == FORM_PAGED ? FORM_DENSE : s.form;
    s.ragged_q = s.form == FORM_RAGGED;
    s.q_len = 1 + (int64_t)(draw >> 8) % 300;
    s.k_len = draw >> 12 & 1 ? s.q_len : 1 + (int64_t)(draw >> 16) % 300;
    if (draw >> 21 & 1) s.k_len = (s.k_len + 15) / 16 * 16; /* rows of masks and biases are whole words */
    s.head_dim = draw >> 13 & 1 ? draw >> 22 & 1 ? 128 : 64 : 8 * (1 + (int64_t)(draw >> 24) % 16);
    s.v_dim = draw >> 14 & 3 ? s.head_dim : 8 * (1 + (int64_t)(draw >> 32) % 16);
    s.batch = 1 + (int64_t)(draw >> 40) % 2;
    s.kv_heads = 1, s.heads = 1 + (int64_t)(draw >> 44) % 2;
    s.plain_layout = draw >> 16 & 3;
    if (draw >> 18 & 1) {
      s.mask_rank = s.bias = s.alibi = s.sink = 0, s.dropout = s.options.softcap = 0;
      s.d_bias = s.d_sink = false;
    }
    if (direction == ATTEND_BACKWARD) s.d_q = s.d_q || !(s.d_k || s.d_v || s.d_bias || s.d_sink);
  }
  s.one_key_head = s.one_key_head && s.form == FORM_DENSE;
  if (direction == ATTEND_FORWARD && seed % 7 == 0) { /* only math serves these */
    s.probs = seed % 2 == 0;
    s.scores = true;
    s.options.scores_stage = (attend_stage)(seed / 7 % 3);
  }
  return s;
}

/* Returns how many kernels failed on this problem. */
static int check_problem(uint64_t seed, int type, attend_direction direction, int64_t *checks) {
  static test_problem p;
  static run_outputs reference, naive[NAIVE_ORDERS], outputs;
  attend_kernel kernels[16];
  int count = gpu_kernels(direction, types[type].dtype, kernels), failed = 0;
  problem_spec spec = spec_of(seed, types[type].dtype, direction);
  problem_make(&p, &spec);
  if (direction == ATTEND_BACKWARD) run_for_backward(&p);
  must(run_kernel(&p, direction, NULL, 2, &reference));
  for (int n = 0; n < NAIVE_ORDERS; n++) run_naive(&p, direction, n, &naive[n]);
  for (int k = 0; k < count; k++) {
    bool intact;
    attend_status status = run_on_gpu(&p, direction, kernels[k].name, &outputs, &intact);
    if (status == ATTEND_ERROR_NO_BACKEND) continue;
    gate_result result = {.passed = status == ATTEND_OK};
    if (status != ATTEND_OK)
      snprintf(result.message, sizeof result.message, "%s", attend_error_message());
    else
      result = check_gate(&p, direction, &outputs, &reference, naive);
    if (result.passed) result = check_gaps(direction, &outputs);
    if (result.passed && !intact) {
      result.passed = false;
      snprintf(result.message, sizeof result.message, "wrote outside the outputs");
    }
    ++*checks;
    if (!result.passed) {
      char text[512];
      problem_describe(&p.spec, text, sizeof text);
      print_message("ATTEND_TEST_SEED=%" PRIu64 " ATTEND_TEST_ONLY=%s tests/test_cuda\n  %s\n  %s\n", seed,
                    kernels[k].name, result.message, text);
      failed++;
    }
    if (status == ATTEND_OK) run_free(&outputs);
  }
  run_free(&reference);
  for (int n = 0; n < NAIVE_ORDERS; n++) run_free(&naive[n]);
  problem_free(&p);
  return failed;
}

/* A fixed number of problems, or as many as ATTEND_TEST_SECONDS allow. */
static void check_random(attend_direction direction) {
  double seconds = from_environment("ATTEND_TEST_SECONDS", 0), end = now() + seconds;
  uint64_t first = (uint64_t)from_environment("ATTEND_TEST_SEED", 1), seed = first;
  uint64_t most = seconds > 0 ? UINT64_MAX : getenv("ATTEND_TEST_SEED") ? 1 : 12;
  int failed = 0, problems = 0;
  int64_t checks = 0;
  for (; seed - first < most && failed < 10 && (seconds <= 0 || now() < end); seed++)
    for (int t = 0; t < 4; t++, problems++) failed += check_problem(seed, t, direction, &checks);
  print_message("%d problems, %" PRId64 " runs of a kernel, %d failed, next seed %" PRIu64 "\n", problems, checks,
                failed, seed);
  assert_int_equal(failed, 0);
}

static void forward_is_exact(void **state) {
  (void)state;
  check_random(ATTEND_FORWARD);
}
static void backward_is_exact(void **state) {
  (void)state;
  check_random(ATTEND_BACKWARD);
}

/* ---- The same bits ---------------------------------------------------------------------------------------------- */

/* A view of sequence b alone. */
static void take_sequence(test_problem *one, const test_problem *all, int64_t b) {
  *one = *all;
  one->spec.batch = 1;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    test_tensor *t = &one->t[id];
    if (!t->view.data) continue;
    t->shape[0] = 1;
    tensor_clone(t, t, true);
    for (int64_t i = 0, n = tensor_count(t); i < n; i++) tensor_set(t, i, tensor_get(&all->t[id], b * n + i));
  }
}

static void sequences_do_not_know_each_other(void **state) {
  (void)state;
  const int64_t shapes[][5] = {{5, 5, 64, 2, 3},
                               {8, 8, 32, 1, 3},
                               {13, 16, 64, 2, 3},
                               {29, 32, 64, 1, 3},
                               {1, 700, 64, 4, 3},
                               {4, 4, 16, 2, large ? 65536 : 9},
                               {1, 1100, 8, large ? 8 : 1, large ? 600 : 4}};
  static test_problem all, one;
  static run_outputs batch, again, alone;
  for (attend_direction direction = ATTEND_FORWARD; direction <= ATTEND_BACKWARD; direction++)
    for (int t = 0; t < 3; t++)
      for (int s = 0; s < 7; s++) {
        problem_spec spec = {.seed = 7,
                             .dtype = types[t].dtype,
                             .batch = shapes[s][4],
                             .heads = shapes[s][3],
                             .kv_heads = 1,
                             .q_len = shapes[s][0],
                             .k_len = shapes[s][1],
                             .head_dim = shapes[s][2],
                             .v_dim = shapes[s][2],
                             .plain_layout = true,
                             .lse = true,
                             .options.flags = ATTEND_CAUSAL};
        if (direction == ATTEND_BACKWARD) spec.d_q = spec.d_k = spec.d_v = true;
        if (direction == ATTEND_BACKWARD && spec.k_len > 64) continue;
        problem_make(&all, &spec);
        if (direction == ATTEND_BACKWARD) run_for_backward(&all);
        attend_kernel kernels[16];
        int count = gpu_kernels(direction, types[t].dtype, kernels);
        for (int k = 0; k < count; k++) {
          bool intact;
          attend_status status = run_on_gpu(&all, direction, kernels[k].name, &batch, &intact);
          if (status == ATTEND_ERROR_NO_BACKEND) continue;
          must(status);
          must(run_on_gpu(&all, direction, kernels[k].name, &again, &intact));
          for (int64_t b = 0; b < spec.batch; b += (spec.batch + 1) / 3) {
            take_sequence(&one, &all, b);
            must(run_on_gpu(&one, direction, kernels[k].name, &alone, &intact));
            for (operand_id id = 0; id < OPERAND_COUNT; id++) {
              if (!alone.t[id].view.data) continue;
              if (b == 0) assert_true(tensor_same_bits(&batch.t[id], &again.t[id]));
              for (int64_t i = 0, n = tensor_count(&alone.t[id]); i < n; i++)
                if (tensor_get(&alone.t[id], i) != tensor_get(&batch.t[id], b * n + i))
                  fail_msg("%s: sequence %d, operand %d, element %d differs", kernels[k].name, (int)b, (int)id, (int)i);
            }
            run_free(&alone);
            problem_free(&one);
          }
          run_free(&batch);
          run_free(&again);
        }
        problem_free(&all);
      }
}

/* ---- Offsets beyond 2^31 elements ------------------------------------------------------------------------------- */

static void heads_may_lie_far_apart(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{7, 7, 64}, {1, 300, 128}, {70, 130, 64}, {90, 80, 128}};
  static test_problem p;
  static run_outputs near, far;
  attend_gpu gpu = {.size = sizeof gpu};
  must(attend_gpu_at(0, &gpu));
  if (!large || gpu.memory_bytes < 80000000000u) skip(); /* eight tensors of 8.6 GB */
  for (attend_direction direction = ATTEND_FORWARD; direction <= ATTEND_BACKWARD; direction++)
    for (int t = 0; t < 3; t++)
      for (int s = 0; s < 4; s++) {
        problem_spec spec = {.seed = 5,
                             .dtype = types[t].dtype,
                             .batch = 1,
                             .heads = 2,
                             .kv_heads = 2,
                             .q_len = shapes[s][0],
                             .k_len = shapes[s][1],
                             .head_dim = shapes[s][2],
                             .v_dim = shapes[s][2],
                             .plain_layout = true,
                             .lse = true,
                             .options.flags = ATTEND_CAUSAL};
        if (direction == ATTEND_BACKWARD) spec.d_q = spec.d_k = spec.d_v = true;
        problem_make(&p, &spec);
        if (direction == ATTEND_BACKWARD) run_for_backward(&p);
        attend_kernel kernels[16];
        int count = gpu_kernels(direction, types[t].dtype, kernels);
        for (int k = 0; k < count; k++) {
          bool intact;
          attend_status status = run_on_gpu(&p, direction, kernels[k].name, &near, &intact);
          if (status == ATTEND_ERROR_NO_BACKEND) continue;
          must(status);
          head_stride = INT64_C(0x80000000) + 512;
          status = run_on_gpu(&p, direction, kernels[k].name, &far, &intact);
          head_stride = 0;
          must(status);
          for (operand_id id = 0; id < OPERAND_COUNT; id++)
            if (near.t[id].view.data && !tensor_same_bits(&near.t[id], &far.t[id]))
              fail_msg("%s, %d queries: operand %d differs", kernels[k].name, (int)spec.q_len, (int)id);
          run_free(&near);
          run_free(&far);
        }
        problem_free(&p);
      }
}

/* ---- NaN, Inf, and what may not be seen ------------------------------------------------------------------------- */

/* Every kernel that serves the problem is as exact as a naive one. */
static void expect_exact(test_problem *p, attend_direction direction, attend_dtype dtype) {
  static run_outputs reference, naive[NAIVE_ORDERS], outputs;
  must(run_kernel(p, direction, NULL, 2, &reference));
  for (int n = 0; n < NAIVE_ORDERS; n++) run_naive(p, direction, n, &naive[n]);
  attend_kernel kernels[16];
  int count = gpu_kernels(direction, dtype, kernels);
  for (int k = 0; k < count; k++) {
    bool intact;
    attend_status status = run_on_gpu(p, direction, kernels[k].name, &outputs, &intact);
    if (status == ATTEND_ERROR_NO_BACKEND) continue;
    must(status);
    gate_result result = check_gate(p, direction, &outputs, &reference, naive);
    if (!result.passed) {
      char text[512];
      problem_describe(&p->spec, text, sizeof text);
      fail_msg("%s: %s\n  %s", kernels[k].name, result.message, text);
    }
    run_free(&outputs);
  }
  run_free(&reference);
  for (int n = 0; n < NAIVE_ORDERS; n++) run_free(&naive[n]);
}

/* NaN in rows that causal and kv_len hide: rows that do not see them are as the reference says, the others NaN. */
static void hidden_values_do_not_matter(void **state) {
  (void)state;
  static const int64_t shapes[][2] = {{5, 7}, {16, 16}, {20, 31}, {2, 600}, {40, 64}, {130, 300}};
  static test_problem p;
  for (attend_direction direction = ATTEND_FORWARD; direction <= ATTEND_BACKWARD; direction++)
    for (int t = 0; t < 3; t++)
      for (int s = 0; s < 6; s++) {
        problem_spec spec = {.seed = 11,
                             .dtype = types[t].dtype,
                             .batch = 3,
                             .heads = 2,
                             .kv_heads = 2,
                             .q_len = shapes[s][0],
                             .k_len = shapes[s][1],
                             .head_dim = 64,
                             .v_dim = 64,
                             .plain_layout = true,
                             .kv_len = true,
                             .lse = true,
                             .options.flags = ATTEND_CAUSAL};
        if (direction == ATTEND_BACKWARD) spec.d_q = spec.d_k = spec.d_v = true;
        if (direction == ATTEND_BACKWARD && spec.k_len > 64) continue;
        problem_make(&p, &spec);
        for (int b = 0; b < 3; b++) tensor_set(&p.t[OPERAND_KV_LEN], b, (double)(spec.k_len - b));
        for (int c = 0; c < 64; c += 9) { /* the last key of every sequence and head, and the one before it */
          for (int64_t pair = 0; pair < 6; pair++) {
            tensor_set(&p.t[OPERAND_V], ((pair + 1) * spec.k_len - 1) * 64 + c, c % 2 ? NAN : -INFINITY);
            tensor_set(&p.t[OPERAND_K], ((pair + 1) * spec.k_len - 2) * 64 + c, NAN);
          }
        }
        if (direction == ATTEND_BACKWARD) run_for_backward(&p);
        expect_exact(&p, direction, types[t].dtype);
        problem_free(&p);
      }
}

/* ---- Extreme options --------------------------------------------------------------------------------------------- */

/* A softcap that caps nothing, and a scale that is 0 in f32: legal, and what fast formulas lose. */
static void extreme_options_are_exact(void **state) {
  (void)state;
  static const double options[][2] = {{1e6, 0}, {300, 0}, {0, 1e-60}, {30, 1e-60}}; /* softcap, scale; 0: the default */
  static const int64_t lengths[] = {7, 150};
  static test_problem p;
  for (attend_direction direction = ATTEND_FORWARD; direction <= ATTEND_BACKWARD; direction++)
    for (int t = 0; t < 3; t++)
      for (int c = 0; c < 8; c++) {
        problem_spec spec = {.seed = 13,
                             .dtype = types[t].dtype,
                             .batch = 1,
                             .heads = 1,
                             .kv_heads = 1,
                             .q_len = lengths[c / 4],
                             .k_len = lengths[c / 4],
                             .head_dim = 64,
                             .v_dim = 64,
                             .plain_layout = true,
                             .lse = true,
                             .options = {.flags = ATTEND_CAUSAL, .softcap = options[c % 4][0]}};
        if (options[c % 4][1] != 0) spec.options.flags |= ATTEND_SCALE, spec.options.scale = options[c % 4][1];
        if (direction == ATTEND_BACKWARD) spec.d_q = spec.d_k = spec.d_v = true;
        problem_make(&p, &spec);
        if (direction == ATTEND_BACKWARD) run_for_backward(&p);
        expect_exact(&p, direction, types[t].dtype);
        problem_free(&p);
      }
}

/* ---- Dropout ---------------------------------------------------------------------------------------------------- */

/* With V the identity, what is dropped is what is zero in the output: compared with the header bit for bit. */
static void dropout_drops_what_the_header_says(void **state) {
  (void)state;
  static test_problem p;
  static run_outputs outputs;
  for (int t = 0; t < 3; t++)
    for (int64_t length = 5; length < 65; length += 9) {
      problem_spec spec = {.seed = 3,
                           .dtype = types[t].dtype,
                           .batch = 2,
                           .heads = 3,
                           .kv_heads = 3,
                           .q_len = length,
                           .k_len = length,
                           .head_dim = 16,
                           .v_dim = 64,
                           .plain_layout = true,
                           .magnitude = 0.1,
                           .dropout = 0.3,
                           .dropout_seed = 0x123456789ABCDEFu,
                           .dropout_offset = 0xFEDCBA987654321u};
      problem_make(&p, &spec);
      for (int64_t i = 0; i < tensor_count(&p.t[OPERAND_V]); i++)
        tensor_set(&p.t[OPERAND_V], i, i / 64 % length == i % 64);
      attend_kernel kernels[16];
      int count = gpu_kernels(ATTEND_FORWARD, types[t].dtype, kernels);
      for (int k = 0; k < count; k++) {
        bool intact;
        attend_status status = run_on_gpu(&p, ATTEND_FORWARD, kernels[k].name, &outputs, &intact);
        if (status == ATTEND_ERROR_NO_BACKEND) continue;
        must(status);
        for (int64_t x = 0; x < tensor_count(&outputs.t[OPERAND_OUT]); x++) {
          int64_t j = x % 64, i = x / 64 % length, pair = x / 64 / length;
          if (j >= length) continue;
          bool kept = attend_dropout_keep(spec.dropout_seed, spec.dropout_offset, spec.dropout, (uint32_t)(pair / 3),
                                          (uint32_t)(pair % 3), (uint64_t)i, (uint64_t)j);
          if (kept != (tensor_get(&outputs.t[OPERAND_OUT], x) != 0))
            fail_msg("%s: (%d, %d) of pair %d", kernels[k].name, (int)i, (int)j, (int)pair);
        }
        run_free(&outputs);
      }
      problem_free(&p);
    }
}

int main(void) {
  attend_gpu gpu = {.size = sizeof gpu};
  if (attend_gpu_at(0, &gpu)) {
    print_message("skipped: %s\n", attend_error_message());
    return 77;
  }
  if (gpu.reason[0]) {
    print_message("skipped: %s: %s\n", gpu.name, gpu.reason);
    return 77;
  }
  bool emulated = !strcmp(gpu.name, "emulated GPU");
  if (emulated) band = 0;
  large = !emulated && from_environment("ATTEND_TEST_LARGE", 1) > 0;
  if (getenv("ATTEND_TEST_NAME")) cmocka_set_test_filter(getenv("ATTEND_TEST_NAME"));
  const struct CMUnitTest tests[] = {cmocka_unit_test(forward_is_exact),
                                     cmocka_unit_test(backward_is_exact),
                                     cmocka_unit_test(sequences_do_not_know_each_other),
                                     cmocka_unit_test(heads_may_lie_far_apart),
                                     cmocka_unit_test(hidden_values_do_not_matter),
                                     cmocka_unit_test(extreme_options_are_exact),
                                     cmocka_unit_test(dropout_drops_what_the_header_says)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
