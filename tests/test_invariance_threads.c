/* SPDX-License-Identifier: MIT */
/* The same bits: for every number of threads, on every run, whoever provides the threads, in any layout of the memory,
 * and whatever else is in the batch. Every kernel of this machine, and the library's own choice. */
#include "support/gate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>

static const attend_dtype types[] = {{2, 32, 1}, {2, 16, 1}, {4, 16, 1}, {2, 64, 1}};

/* ---- Threads, runs and hooks ------------------------------------------------------------------------------------ */

/* The tasks one after another, last first. */
static void backwards(void *user, int count, void (*task)(void *, int), void *context) {
  (void)user;
  while (count-- > 0) task(context, count);
}

typedef struct one_task {
  void (*task)(void *, int);
  void *context;
  int index;
} one_task;
static void *run_one(void *argument) {
  one_task *t = argument;
  t->task(t->context, t->index);
  return NULL;
}
/* As an OpenMP runtime would: a team of threads per call, each with one index. */
static void team(void *user, int count, void (*task)(void *, int), void *context) {
  (void)user;
  pthread_t threads[16];
  one_task tasks[16];
  assert_true(count <= 16);
  for (int i = 1; i < count; i++) {
    tasks[i] = (one_task){task, context, i};
    assert_int_equal(pthread_create(&threads[i], NULL, run_one, &tasks[i]), 0);
  }
  if (count) task(context, 0);
  for (int i = 1; i < count; i++) pthread_join(threads[i], NULL);
}

static const char *first_difference(attend_direction direction, const run_outputs *a, const run_outputs *b) {
  static const char *const names[OPERAND_COUNT] = {
      [OPERAND_OUT] = "out", [OPERAND_LSE] = "lse",       [OPERAND_D_Q] = "d_q",      [OPERAND_D_K] = "d_k",
      [OPERAND_D_V] = "d_v", [OPERAND_D_BIAS] = "d_bias", [OPERAND_D_SINK] = "d_sink"};
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (is_output_of(direction, id) && a->t[id].view.data && !tensor_same_bits(&a->t[id], &b->t[id])) return names[id];
  return NULL;
}

static int check_threads(const problem_spec *spec, attend_direction direction) {
  static const int threads[] = {1, 2, 3, 8, 8, 3, 2};
  static const attend_hooks hooks[] = {{.parallel_for = backwards}, {.parallel_for = team}};
  int failed = 0;
  test_problem p;
  problem_make(&p, spec);
  if (direction == ATTEND_BACKWARD) run_for_backward(&p);
  kernel_names kernels = usable_kernels(direction, spec->dtype);
  for (int k = 0; k < kernels.count; k++) {
    run_outputs first, other;
    p.options.hooks = NULL;
    if (run_kernel(&p, direction, kernels.name[k], threads[0], &first)) continue;
    for (int n = 1; n < 7; n++) {
      p.options.hooks = n < 5 ? NULL : &hooks[n - 5];
      if (run_kernel(&p, direction, kernels.name[k], threads[n], &other)) fail_msg("%s", attend_error_message());
      const char *differs = first_difference(direction, &first, &other);
      if (differs) {
        char text[512];
        problem_describe(&p.spec, text, sizeof text);
        print_message("%s, %d threads%s: %s differs\n  %s\n", kernels.name[k], threads[n], n < 5 ? "" : " by a hook",
                      differs, text);
        failed++;
      }
      run_free(&other);
    }
    run_free(&first);
  }
  problem_free(&p);
  return failed;
}

/* One query over many keys whose heads may lie side by side, whole rows of 128-bit, 256-bit or 512-bit lanes. */
static problem_spec decode_spec(uint64_t seed, attend_dtype dtype) {
  int64_t dim = seed % 3 == 0 ? 32 : seed % 3 == 1 ? 64 : 128;
  return (problem_spec){.seed = seed,
                        .dtype = dtype,
                        .form = seed % 4 == 3 ? FORM_PAGED : FORM_DENSE,
                        .batch = 2,
                        .heads = 6,
                        .kv_heads = 3,
                        .q_len = 1 + (int64_t)seed % 2,
                        .k_len = 1501,
                        .head_dim = dim,
                        .v_dim = dim,
                        .block_size = 16,
                        .mask_rank = seed % 4 == 2 ? 2 : 0,
                        .lse = true};
}

static void same_bits_for_any_threads(void **state) {
  (void)state;
  int failed = 0;
  for (uint64_t seed = 1; seed <= 6; seed++)
    for (int t = 0; t < 4; t++)
      for (attend_direction d = ATTEND_FORWARD; d <= ATTEND_BACKWARD; d++) {
        problem_spec spec = random_spec(seed, types[t], d);
        if (seed > 4 && d == ATTEND_BACKWARD) { /* several chunks of keys to add up */
          spec.batch = 1, spec.heads = 2, spec.kv_heads = 1, spec.q_len = 150, spec.k_len = 400;
          spec.head_dim = spec.v_dim = 16, spec.form = FORM_DENSE, spec.ragged_q = false;
        }
        failed += check_threads(&spec, d);
      }
  for (uint64_t seed = 1; seed <= 8; seed++)
    for (int t = 0; t < 4; t++) {
      problem_spec spec = decode_spec(seed, types[t]);
      failed += check_threads(&spec, ATTEND_FORWARD);
    }
  assert_int_equal(failed, 0);
}

/* ---- Layouts and batch neighbours ------------------------------------------------------------------------------- */

static void copy_elements(test_tensor *to, const test_tensor *from) {
  for (int64_t i = 0; to->view.data && i < tensor_count(to); i++) tensor_set(to, i, tensor_get(from, i));
}

static int compared;

/* Run two problems of the same data, and compare what the first has of sequence `b`, all of it if b < 0. */
static int check_same(test_problem *all, test_problem *other, attend_direction direction, int64_t b, const char *what) {
  int failed = 0;
  kernel_names kernels = usable_kernels(direction, all->spec.dtype);
  for (int k = 0; k <= kernels.count; k++) {
    run_outputs x, y;
    const char *name = k < kernels.count ? kernels.name[k] : NULL, *differs = NULL;
    if (run_kernel(all, direction, name, 2, &x)) continue;
    if (run_kernel(other, direction, name, 3, &y)) fail_msg("%s: %s", what, attend_error_message());
    for (operand_id id = 0; id < OPERAND_COUNT; id++) {
      if (!is_output_of(direction, id) || !x.t[id].view.data) continue;
      if (id == OPERAND_D_BIAS || id == OPERAND_D_SINK) continue; /* sums over the batch */
      test_tensor part = x.t[id];
      if (b >= 0) {
        int axis = id == OPERAND_LSE && all->spec.form == FORM_RAGGED;
        bool keys = id == OPERAND_D_K || id == OPERAND_D_V;
        const test_tensor *offsets = &all->t[keys ? OPERAND_K_OFFSETS : OPERAND_Q_OFFSETS];
        int64_t first = offsets->view.data ? (int64_t)tensor_get(offsets, b) : b;
        part.view.shape = part.shape, part.view.strides = part.strides;
        part.shape[axis] = y.t[id].shape[axis];
        part.view.byte_offset += (uint64_t)(first * part.strides[axis] * (part.view.dtype.bits / 8));
      }
      if (!tensor_same_bits(&part, &y.t[id]))
        differs = id == OPERAND_OUT ? "out" : id == OPERAND_LSE ? "lse" : "a gradient";
    }
    compared++;
    run_free(&x);
    run_free(&y);
    if (!differs) continue;
    char text[512];
    problem_describe(&all->spec, text, sizeof text);
    print_message("%s: %s: %s of sequence %d differs\n  %s\n", what, name ? name : "the reference", differs, (int)b,
                  text);
    failed++;
  }
  return failed;
}

/* ---- Heads alone ------------------------------------------------------------------------------------------------- */

static void copy_head(test_tensor *to, const test_tensor *from, int64_t head) {
  for (int64_t i = 0, n = tensor_count(to); i < n; i++) tensor_set(to, i, tensor_get(from, head * n + i));
}

/* Eight heads of so many keys that decoding divides them, and some of them alone. */
static void a_head_has_the_same_bits_alone(void **state) {
  (void)state;
  int failed = 0, runs = 0;
  for (int t = 0; t < 4; t++) {
    problem_spec spec = {.seed = 9, .dtype = types[t], .form = FORM_DENSE, .batch = 1, .heads = 8, .kv_heads = 8};
    spec.q_len = 1, spec.k_len = 6000, spec.head_dim = spec.v_dim = 64, spec.plain_layout = true;
    test_problem all, alone;
    problem_make(&all, &spec);
    spec.heads = spec.kv_heads = 1;
    problem_make(&alone, &spec);
    kernel_names kernels = usable_kernels(ATTEND_FORWARD, spec.dtype);
    for (int64_t head = 0; head < 8; head += 3) {
      for (operand_id id = OPERAND_Q; id <= OPERAND_V; id++) copy_head(&alone.t[id], &all.t[id], head);
      for (int k = 0; k < kernels.count; k++) {
        run_outputs x, y;
        if (run_kernel(&all, ATTEND_FORWARD, kernels.name[k], 2, &x)) continue;
        if (run_kernel(&alone, ATTEND_FORWARD, kernels.name[k], 2, &y)) fail_msg("%s", attend_error_message());
        bool differs = false;
        for (int64_t i = 0; i < 64; i++)
          differs |= tensor_get(&x.t[OPERAND_OUT], head * 64 + i) != tensor_get(&y.t[OPERAND_OUT], i);
        if (differs) print_message("%s: head %d differs alone\n", kernels.name[k], (int)head);
        failed += differs, runs++;
        run_free(&x);
        run_free(&y);
      }
    }
    problem_free(&all);
    problem_free(&alone);
  }
  assert_int_equal(failed, 0);
  assert_true(runs > 0);
}

static problem_spec neighbour_spec(uint64_t seed, attend_dtype dtype, attend_direction direction) {
  problem_spec s = random_spec(seed, dtype, direction);
  s.form = FORM_DENSE, s.ragged_q = s.one_key_head = false;
  s.batch = 3;
  s.dropout = 0; /* a function of b */
  s.plain_layout = true;
  s.lse = true;
  s.mask_rank = s.bias = s.alibi = 0;
  s.kv_len = s.d_bias = s.d_lse = false;
  s.d_q = s.d_k = s.d_v = true;
  s.options.flags &= ~(uint32_t)ATTEND_ACCUMULATE;
  if (s.q_len > 150) s.q_len = 150;
  return s;
}

static int check_layouts(problem_spec spec, attend_direction d) {
  test_problem plain, other;
  spec.plain_layout = true;
  problem_make(&plain, &spec);
  if (d == ATTEND_BACKWARD) run_for_backward(&plain);
  spec.plain_layout = false;
  problem_make(&other, &spec);
  for (operand_id id = 0; id < OPERAND_D_Q; id++) copy_elements(&other.t[id], &plain.t[id]);
  int failed = check_same(&plain, &other, d, -1, "another layout");
  problem_free(&plain);
  problem_free(&other);
  return failed;
}

static void same_bits_in_any_layout(void **state) {
  (void)state;
  int failed = 0;
  for (uint64_t seed = 1; seed <= 6; seed++)
    for (int t = 0; t < 4; t++)
      for (attend_direction d = ATTEND_FORWARD; d <= ATTEND_BACKWARD; d++)
        failed += check_layouts(neighbour_spec(seed, types[t], d), d);
  for (uint64_t seed = 1; seed <= 24; seed++)
    for (int t = 0; t < 4; t++) failed += check_layouts(decode_spec(seed, types[t]), ATTEND_FORWARD);
  print_message("%d pairs of runs compared\n", compared);
  assert_int_equal(failed, 0);
}

static void same_bits_in_any_batch(void **state) {
  (void)state;
  int failed = 0;
  for (uint64_t seed = 1; seed <= 8; seed++)
    for (int t = 0; t < 4; t++)
      for (attend_direction d = ATTEND_FORWARD; d <= ATTEND_BACKWARD; d++) {
        problem_spec spec = neighbour_spec(seed, types[t], d);
        if (seed % 2) spec.form = FORM_RAGGED, spec.ragged_q = true;
        test_problem all;
        problem_make(&all, &spec);
        if (d == ATTEND_BACKWARD) run_for_backward(&all);
        for (int64_t b = 0; b < 3; b++) {
          problem_spec one = all.spec;
          one.batch = 1;
          int64_t first[2] = {b, b};
          if (all.spec.form == FORM_RAGGED) {
            for (int side = 0; side < 2; side++) {
              const test_tensor *offsets = &all.t[side ? OPERAND_K_OFFSETS : OPERAND_Q_OFFSETS];
              first[side] = (int64_t)tensor_get(offsets, b);
              *(side ? &one.k_len : &one.q_len) = (int64_t)tensor_get(offsets, b + 1) - first[side];
            }
            if (one.q_len == 0 || one.k_len == 0) continue;
          }
          test_problem alone = {.spec = one, .options = all.options}; /* its tensors are parts of those of `all` */
          for (operand_id id = 0; id < OPERAND_COUNT; id++) {
            test_tensor *to = &alone.t[id];
            if (!all.t[id].view.data) continue;
            tensor_clone(to, &all.t[id], true);
            bool keys = id == OPERAND_K || id == OPERAND_V || id == OPERAND_D_K || id == OPERAND_D_V;
            int axis = id == OPERAND_LSE && all.spec.form == FORM_RAGGED;
            if (id == OPERAND_SINK || id == OPERAND_D_SINK) continue;
            if (id == OPERAND_Q_OFFSETS || id == OPERAND_K_OFFSETS) {
              to->shape[0] = 2;
              tensor_set(to, 1, (double)(id == OPERAND_K_OFFSETS ? one.k_len : one.q_len));
              continue;
            }
            to->shape[axis] = all.spec.form == FORM_DENSE ? 1 : keys ? one.k_len : one.q_len;
            to->view.byte_offset += (uint64_t)(first[keys] * to->strides[axis] * (to->view.dtype.bits / 8));
          }
          failed += check_same(&all, &alone, d, b, "alone");
          for (operand_id id = 0; id < OPERAND_COUNT; id++) guarded_free(&alone.t[id].memory);
        }
        problem_free(&all);
      }
  print_message("%d pairs of runs compared\n", compared);
  assert_int_equal(failed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(same_bits_for_any_threads), cmocka_unit_test(a_head_has_the_same_bits_alone),
      cmocka_unit_test(same_bits_in_any_layout), cmocka_unit_test(same_bits_in_any_batch)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
