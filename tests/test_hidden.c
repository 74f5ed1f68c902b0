/* SPDX-License-Identifier: MIT */
/* What may not be seen changes nothing, bit for bit: NaN and Inf in every key, value, bias and query that is hidden
 * from everybody; and NaN that some rows see reaches those rows alone. */
#include "support/judge.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

static const attend_dtype types[] = {{2, 32, 1}, {2, 16, 1}, {4, 16, 1}, {2, 64, 1}};

enum { HIDES = 7 };

static problem_spec hiding_spec(attend_dtype dtype, int how, int length) {
  problem_spec s = {.seed = 11,
                    .dtype = dtype,
                    .batch = 2,
                    .heads = 2,
                    .kv_heads = 1,
                    .head_dim = 16,
                    .v_dim = 16,
                    .lse = true,
                    .d_q = true,
                    .d_k = true,
                    .d_v = true,
                    .options = {.threads = 1}};
  s.q_len = length == 0 ? 6 : length == 1 ? 40 : 2;
  s.k_len = length == 2 ? 300 : s.q_len + 3;
  if (how == 0) s.kv_len = true;
  if (how == 1) s.mask_rank = 2;
  if (how == 2) s.mask_rank = 4, s.mask_shape = 6; /* every head and query alike */
  if (how == 3)
    s.options.flags = ATTEND_WINDOW | ATTEND_TOP_LEFT, s.options.window_left = 2, s.options.window_right = 0;
  if (how == 4) s.options.flags = ATTEND_CAUSAL | ATTEND_TOP_LEFT;
  if (how == 5) s.options.flags = ATTEND_WINDOW, s.options.window_left = 2, s.options.window_right = 0;
  if (how == 6) s.bias = 1, s.d_bias = true, s.options.flags = ATTEND_CAUSAL, s.mask_rank = 2;
  return s;
}

/* May query i see key j of sequence b, by everything but the bias? */
static bool seen(const test_problem *p, int64_t b, int64_t i, int64_t j) {
  const problem_spec *s = &p->spec;
  int64_t length = s->kv_len ? (int64_t)tensor_get(&p->t[OPERAND_KV_LEN], b) : s->k_len;
  int64_t off = s->options.flags & ATTEND_TOP_LEFT ? 0 : length - s->q_len;
  if (j >= length) return false;
  if (s->options.flags & ATTEND_CAUSAL && j > i + off) return false;
  if (s->options.flags & ATTEND_WINDOW &&
      (j < i + off - s->options.window_left || j > i + off + s->options.window_right))
    return false;
  return !s->mask_rank || tensor_get(&p->t[OPERAND_MASK], b * s->k_len + j) != 0; /* both shapes are [B,…,Nk] */
}

/* Poison, in turn NaN, Inf and -Inf, in all that nobody sees; returns how many elements. */
static int64_t poison(test_problem *p) {
  static const double poisons[] = {NAN, INFINITY, -INFINITY};
  const problem_spec *s = &p->spec;
  int64_t count = 0;
  for (int64_t b = 0; b < s->batch; b++) {
    for (int64_t j = 0; j < s->k_len; j++) {
      bool any = false;
      for (int64_t i = 0; i < s->q_len; i++) any = any || seen(p, b, i, j);
      for (int64_t c = 0; !any && c < 16; c++, count++) {
        tensor_set(&p->t[OPERAND_K], (b * s->k_len + j) * 16 + c, poisons[(j + c) % 3]);
        tensor_set(&p->t[OPERAND_V], (b * s->k_len + j) * 16 + c, poisons[(j + c + 1) % 3]);
      }
    }
    for (int64_t h = 0; h < s->heads; h++)
      for (int64_t i = 0; i < s->q_len; i++) {
        bool any = false;
        int64_t row = (b * s->heads + h) * s->q_len + i;
        for (int64_t j = 0; j < s->k_len; j++) {
          any = any || seen(p, b, i, j);
          if (s->bias && !seen(p, b, i, j))
            tensor_set(&p->t[OPERAND_BIAS], row * s->k_len + j, poisons[(i + j) % 3]), count++;
        }
        for (int64_t c = 0; !any && c < 16; c++, count++) {
          tensor_set(&p->t[OPERAND_Q], row * 16 + c, poisons[c % 3]);
          tensor_set(&p->t[OPERAND_D_OUT], row * 16 + c, poisons[(c + 1) % 3]);
        }
      }
  }
  return count;
}

static void hidden_elements_change_nothing(void **state) {
  (void)state;
  int failed = 0;
  int64_t poisoned = 0;
  for (int how = 0; how < HIDES; how++)
    for (int length = 0; length < 3; length++)
      for (int t = 0; t < 4; t++)
        for (attend_direction d = ATTEND_FORWARD; d <= ATTEND_BACKWARD; d++) {
          problem_spec spec = hiding_spec(types[t], how, length);
          test_problem clean, dirty;
          problem_make(&clean, &spec);
          problem_make(&dirty, &spec);
          poisoned += poison(&dirty);
          if (d == ATTEND_BACKWARD) run_for_backward(&clean), run_for_backward(&dirty);
          kernel_names kernels = usable_kernels(d, spec.dtype);
          for (int k = -1; k < kernels.count; k++) {
            run_outputs x, y;
            const char *name = k < 0 ? NULL : kernels.name[k];
            if (run_kernel(&clean, d, name, 1, &x)) continue;
            if (run_kernel(&dirty, d, name, 1, &y)) fail_msg("%s", attend_error_message());
            for (operand_id id = 0; id < OPERAND_COUNT; id++)
              if (is_output_of(d, id) && x.t[id].view.data && !tensor_same_bits(&x.t[id], &y.t[id])) {
                char text[512];
                problem_describe(&spec, text, sizeof text);
                print_message("%s: operand %d differs\n  %s\n", name ? name : "reference", (int)id, text);
                failed++;
              }
            run_free(&x);
            run_free(&y);
          }
          problem_free(&clean);
          problem_free(&dirty);
        }
  assert_true(poisoned > 10000);
  assert_int_equal(failed, 0);
}

/* Key 4 and its value are NaN and Inf: who sees them is NaN, as the reference says, and nobody else. */
static void spoil_one_key(test_problem *p) {
  for (int64_t c = 0; c < 16; c++) {
    tensor_set(&p->t[OPERAND_K], 4 * 16 + c, NAN);
    tensor_set(&p->t[OPERAND_V], 4 * 16 + c, INFINITY);
  }
}
static void spoil_one_value(test_problem *p) { tensor_set(&p->t[OPERAND_V], 4 * 16 + 3, NAN); }

static void what_some_rows_see_reaches_no_other(void **state) {
  (void)state;
  int failed = 0;
  int64_t checks = 0;
  for (int how = 3; how < HIDES; how++)
    for (int length = 0; length < 3; length++)
      for (int t = 0; t < 4; t++) {
        problem_spec spec = hiding_spec(types[t], how, length);
        failed += judge_kernels(&spec, ATTEND_FORWARD, spoil_one_key, &checks);
        failed += judge_kernels(&spec, ATTEND_FORWARD, spoil_one_value, &checks);
        failed += judge_kernels(&spec, ATTEND_BACKWARD, spoil_one_key, &checks);
        failed += judge_kernels(&spec, ATTEND_BACKWARD, spoil_one_value, &checks);
      }
  assert_int_equal(failed, 0);
}

/* Causal, as many keys as queries: the last value is NaN, which the last query alone sees. P does not depend on it, so
 * that dV is what it was, and dQ but for that query. */
static void the_last_value_changes_only_what_sees_it(void **state) {
  (void)state;
  int failed = 0;
  for (int64_t length = 2; length <= 23; length += length < 9 ? 1 : 7)
    for (int t = 0; t < 8; t++) {
      problem_spec spec = hiding_spec(types[t % 4], 4, 0);
      const int64_t dim = t < 4 ? 16 : 64;
      spec.q_len = spec.k_len = length, spec.batch = 1, spec.heads = 1, spec.head_dim = spec.v_dim = dim;
      test_problem clean, dirty;
      problem_make(&clean, &spec);
      problem_make(&dirty, &spec);
      tensor_set(&dirty.t[OPERAND_V], length * dim - 1, NAN);
      run_for_backward(&clean), run_for_backward(&dirty);
      kernel_names kernels = usable_kernels(ATTEND_BACKWARD, spec.dtype);
      for (int k = -1; k < kernels.count; k++) {
        run_outputs x, y;
        const char *name = k < 0 ? NULL : kernels.name[k];
        if (run_kernel(&clean, ATTEND_BACKWARD, name, 1, &x)) continue;
        if (run_kernel(&dirty, ATTEND_BACKWARD, name, 1, &y)) fail_msg("%s", attend_error_message());
        bool same = tensor_same_bits(&x.t[OPERAND_D_V], &y.t[OPERAND_D_V]);
        for (int64_t e = 0; e < (length - 1) * dim; e++) {
          const double a = tensor_get(&x.t[OPERAND_D_Q], e), b = tensor_get(&y.t[OPERAND_D_Q], e);
          same = same && memcmp(&a, &b, sizeof a) == 0;
        }
        if (!same) print_message("%s: %d tokens\n", name ? name : "reference", (int)length), failed++;
        run_free(&x);
        run_free(&y);
      }
      problem_free(&clean);
      problem_free(&dirty);
    }
  assert_int_equal(failed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(hidden_elements_change_nothing),
                                     cmocka_unit_test(the_last_value_changes_only_what_sees_it),
                                     cmocka_unit_test(what_some_rows_see_reaches_no_other)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
