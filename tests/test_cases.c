/* SPDX-License-Identifier: MIT */
/* Cases that random data does not meet: sizes of zero, one and beyond a tile, infinite and extreme scores, expanded
 * inputs. Every kernel of this machine, against the reference, at the gate. test_hidden.c has those about masks. */
#include "support/judge.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

static const attend_dtype types[] = {{2, 32, 1}, {2, 16, 1}, {4, 16, 1}, {2, 64, 1}};

static problem_spec base_spec(attend_dtype dtype) {
  return (problem_spec){.seed = 7,
                        .dtype = dtype,
                        .batch = 2,
                        .heads = 4,
                        .kv_heads = 2,
                        .q_len = 9,
                        .k_len = 12,
                        .head_dim = 16,
                        .v_dim = 16,
                        .lse = true,
                        .d_q = true,
                        .d_k = true,
                        .d_v = true,
                        .options = {.threads = 1}};
}

/* Both directions, every type. */
static int judge_all(problem_spec spec, void (*change)(test_problem *)) {
  int failed = 0;
  int64_t checks = 0;
  for (int t = 0; t < 4; t++) {
    spec.dtype = types[t];
    failed += judge_kernels(&spec, ATTEND_FORWARD, change, &checks);
    if (spec.form != FORM_PAGED) failed += judge_kernels(&spec, ATTEND_BACKWARD, change, &checks);
  }
  assert_true(checks > 0);
  return failed;
}

/* ---- Sizes ------------------------------------------------------------------------------------------------------ */

static void sizes_of_zero(void **state) {
  (void)state;
  int failed = 0;
  for (int what = 0; what < 9; what++)
    for (int extras = 0; extras < 2; extras++) {
      problem_spec spec = base_spec(types[0]);
      spec.plain_layout = true;
      if (what == 0) spec.batch = 0;
      if (what == 1) spec.heads = spec.kv_heads = 0;
      if (what == 2) spec.heads = 0;
      if (what == 3) spec.q_len = 0;
      if (what == 4) spec.k_len = 0;
      if (what == 5) spec.head_dim = 0;
      if (what == 6) spec.v_dim = 0;
      if (what == 7) spec.head_dim = spec.v_dim = 0;
      if (what == 8) spec.q_len = spec.k_len = 0;
      if (extras) {
        spec.options.flags = ATTEND_CAUSAL | ATTEND_ACCUMULATE;
        spec.bias = spec.sink = spec.alibi = 1;
        spec.d_bias = spec.d_sink = spec.d_lse = spec.kv_len = true;
        spec.mask_rank = 2;
        spec.dropout = 0.3;
      }
      failed += judge_all(spec, NULL);
      spec.form = FORM_RAGGED, spec.ragged_q = true;
      spec.kv_len = false;
      failed += judge_all(spec, NULL);
    }
  assert_int_equal(failed, 0);
}

static void sizes_beyond_tiles(void **state) {
  (void)state;
  static const struct {
    int64_t q_len, k_len, head_dim, v_dim;
  } sizes[] = {{1, 1, 1, 1},     {5, 5, 1, 3},     {3, 700, 64, 64},  {1, 1100, 16, 24}, {270, 3, 32, 32},
               {133, 61, 17, 9}, {20, 20, 257, 4}, {9, 13, 300, 520}, {32, 32, 64, 64},  {129, 257, 9, 17}};
  int failed = 0;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    problem_spec spec = base_spec(types[0]);
    spec.batch = spec.kv_heads = 1;
    spec.heads = i < 4 ? 2 : 1;
    spec.q_len = sizes[i].q_len, spec.k_len = sizes[i].k_len;
    spec.head_dim = sizes[i].head_dim, spec.v_dim = sizes[i].v_dim;
    spec.options.flags = i % 2 ? ATTEND_CAUSAL : 0;
    failed += judge_all(spec, NULL);
  }
  assert_int_equal(failed, 0);
}

/* As many keys as queries, causal: some instruction sets have code of its own for each number of them. */
static void few_tokens(void **state) {
  (void)state;
  int failed = 0;
  for (int n = 1; n <= 32; n += n < 9 ? 1 : n == 9 ? 3 : 4)
    for (int t = 0; t < 4; t++) {
      problem_spec spec = base_spec(types[t]);
      spec.batch = 1, spec.heads = 2, spec.kv_heads = (n + t) % 3 == 1 ? 1 : 2;
      spec.q_len = spec.k_len = n, spec.head_dim = spec.v_dim = n % 2 ? 64 : 128;
      spec.options.flags = ATTEND_CAUSAL | ((n + t) % 3 == 2 ? ATTEND_ACCUMULATE : 0);
      failed += judge_all(spec, NULL);
    }
  assert_int_equal(failed, 0);
}

static void windows(void **state) {
  (void)state;
  static const int64_t sides[] = {-1, 0, 1, 40, INT64_MAX};
  int failed = 0;
  for (int left = 0; left < 5; left++)
    for (int right = 0; right < 5; right++)
      for (int flags = 0; flags < 4; flags++) {
        problem_spec spec = base_spec(types[0]);
        int64_t checks = 0;
        spec.batch = 1, spec.q_len = left % 2 ? 40 : 80, spec.k_len = right % 2 ? 35 : 140;
        spec.heads = 2, spec.kv_heads = 1, spec.head_dim = spec.v_dim = 8;
        spec.options.flags = ATTEND_WINDOW | (flags & 1 ? ATTEND_CAUSAL : 0) | (flags & 2 ? ATTEND_TOP_LEFT : 0);
        spec.options.window_left = sides[left];
        spec.options.window_right = sides[right];
        attend_direction direction = (left + right + flags) % 2 ? ATTEND_FORWARD : ATTEND_BACKWARD;
        failed += judge_kernels(&spec, direction, NULL, &checks);
      }
  assert_int_equal(failed, 0);
}

/* ---- Values ----------------------------------------------------------------------------------------------------- */

/* A score of one query is +Inf, of another -Inf, of a third NaN. */
static void infinite_queries(test_problem *p) {
  test_tensor *q = &p->t[OPERAND_Q];
  int64_t dim = p->spec.head_dim;
  tensor_set(q, 1 * dim, INFINITY);
  tensor_set(q, 3 * dim + 2, -INFINITY);
  tensor_set(q, 5 * dim + 1, NAN);
}
static void infinite_keys(test_problem *p) {
  tensor_set(&p->t[OPERAND_K], 2 * p->spec.head_dim, INFINITY);
  tensor_set(&p->t[OPERAND_V], 4 * p->spec.v_dim, INFINITY);
  tensor_set(&p->t[OPERAND_V], 5 * p->spec.v_dim + 1, NAN);
}
/* All scores of a row are -Inf, though it may see every key. */
static void infinite_bias(test_problem *p) {
  for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_BIAS]); i++)
    if (i / p->spec.k_len % p->spec.q_len == 2) tensor_set(&p->t[OPERAND_BIAS], i, -INFINITY);
  tensor_set(&p->t[OPERAND_BIAS], 1, INFINITY);
  tensor_set(&p->t[OPERAND_BIAS], 5 * p->spec.k_len, NAN);
}

static void infinite_scores(void **state) {
  (void)state;
  int failed = 0;
  for (int length = 0; length < 3; length++)
    for (int flags = 0; flags < 2; flags++) {
      problem_spec spec = base_spec(types[0]);
      spec.batch = 1;
      spec.q_len = length == 0 ? 9 : length == 1 ? 40 : 6;
      spec.k_len = length == 2 ? 200 : spec.q_len;
      spec.options.flags = flags ? ATTEND_CAUSAL : 0;
      failed += judge_all(spec, infinite_queries);
      failed += judge_all(spec, infinite_keys);
      spec.bias = 1;
      for (int d_bias = 0; d_bias < 2; d_bias++) { /* the kernels of short sequences have no gradient of a bias */
        spec.d_bias = d_bias;
        failed += judge_all(spec, infinite_bias);
      }
      spec.options.softcap = 5;
      failed += judge_all(spec, infinite_queries);
    }
  assert_int_equal(failed, 0);
}

static double scale_of_q, scale_of_k;
static void scaled(test_problem *p) {
  for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_Q]); i++)
    tensor_set(&p->t[OPERAND_Q], i, scale_of_q * tensor_get(&p->t[OPERAND_Q], i));
  for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_K]); i++)
    tensor_set(&p->t[OPERAND_K], i, scale_of_k * tensor_get(&p->t[OPERAND_K], i));
}

/* Scores as far as f32 goes, and products that vanish. f16 has less room for its elements. */
static void extreme_magnitudes(void **state) {
  (void)state;
  static const double magnitudes[][2] = {{1e15, 1e15}, {1e3, 1e3},    {90, 90},   {1e-25, 1e-25},
                                         {1e-6, 1e-6}, {1e30, 1e-30}, {3e4, 1e-7}};
  int failed = 0;
  for (int m = 0; m < 7; m++)
    for (int length = 0; length < 3; length++) {
      problem_spec spec = base_spec(types[0]);
      int64_t checks = 0;
      spec.batch = 1;
      spec.q_len = length == 0 ? 9 : length == 1 ? 70 : 2;
      spec.k_len = length == 2 ? 300 : spec.q_len;
      scale_of_q = magnitudes[m][0], scale_of_k = magnitudes[m][1];
      for (int t = 0; t < 4; t++) {
        spec.dtype = types[t];
        bool f16 = types[t].bits == 16 && types[t].code == 2, fits = !f16 || scale_of_q * scale_of_k < 1e4;
        if (fits) failed += judge_kernels(&spec, ATTEND_FORWARD, scaled, &checks);
        if (fits && m != 0) failed += judge_kernels(&spec, ATTEND_BACKWARD, scaled, &checks);
      }
    }
  assert_int_equal(failed, 0);
}

static void large_values(test_problem *p) {
  for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_V]); i++) tensor_set(&p->t[OPERAND_V], i, i % 2 ? 60000 : -60000);
}
/* One visible key and dropout of a half: O is 0 or beyond what f16 can hold, and then infinite. */
static void outputs_that_overflow(void **state) {
  (void)state;
  problem_spec spec = base_spec(types[1]);
  int64_t checks = 0;
  int failed = 0;
  for (int length = 0; length < 2; length++) {
    spec.q_len = spec.k_len = length ? 80 : 8;
    spec.dropout = 0.5;
    spec.options.flags = ATTEND_WINDOW;
    failed += judge_kernels(&spec, ATTEND_FORWARD, large_values, &checks);
  }
  assert_int_equal(failed, 0);
}

/* ---- Layouts ---------------------------------------------------------------------------------------------------- */

static void expand(test_tensor *t, int dimension) {
  if (t->view.data) t->strides[dimension] = 0;
}
static void expand_heads_and_batch(test_problem *p) {
  static const operand_id inputs[] = {OPERAND_Q, OPERAND_K, OPERAND_V, OPERAND_D_OUT, OPERAND_MASK, OPERAND_BIAS};
  for (int i = 0; i < 6; i++) expand(&p->t[inputs[i]], i % 2), expand(&p->t[inputs[i]], 0);
}
static void expand_rows_and_columns(test_problem *p) {
  expand(&p->t[OPERAND_Q], 3), expand(&p->t[OPERAND_K], 2), expand(&p->t[OPERAND_V], 3);
  expand(&p->t[OPERAND_D_OUT], 2), expand(&p->t[OPERAND_MASK], 2), expand(&p->t[OPERAND_BIAS], 3);
}

static void expanded_inputs(void **state) {
  (void)state;
  int failed = 0;
  for (int length = 0; length < 3; length++) {
    problem_spec spec = base_spec(types[0]);
    spec.q_len = length == 0 ? 9 : length == 1 ? 70 : 2;
    spec.k_len = length == 2 ? 300 : spec.q_len;
    spec.mask_rank = 4;
    spec.bias = 1;
    failed += judge_all(spec, expand_heads_and_batch);
    failed += judge_all(spec, expand_rows_and_columns);
  }
  assert_int_equal(failed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sizes_of_zero),
      cmocka_unit_test(sizes_beyond_tiles),
      cmocka_unit_test(few_tokens),
      cmocka_unit_test(windows),
      cmocka_unit_test(infinite_scores),
      cmocka_unit_test(extreme_magnitudes),
      cmocka_unit_test(outputs_that_overflow),
      cmocka_unit_test(expanded_inputs),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
