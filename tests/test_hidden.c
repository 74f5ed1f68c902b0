/* SPDX-License-Identifier: MIT */
/* What may not be seen changes nothing, bit for bit: NaN and Inf in every key, value, bias and query that is hidden
 * from everybody; and NaN that some rows see, or come to by an overflow, reaches those rows alone. */
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

/* How many kernels give other bits to a problem that is spoiled than to the same one that is not, in dQ of another
 * query than `query` (of the first head) or in the gradient `of_keys` from `key` on. */
static int reach_others(const problem_spec *spec, void (*spoil)(test_problem *p, bool spoiled), int64_t query,
                        operand_id of_keys, int64_t key) {
  int failed = 0;
  test_problem clean, dirty;
  problem_make(&clean, spec);
  problem_make(&dirty, spec);
  spoil(&clean, false), spoil(&dirty, true);
  run_for_backward(&clean), run_for_backward(&dirty);
  kernel_names kernels = usable_kernels(ATTEND_BACKWARD, spec->dtype);
  for (int k = -1; k < kernels.count; k++) {
    run_outputs x, y;
    const char *name = k < 0 ? NULL : kernels.name[k];
    if (run_kernel(&clean, ATTEND_BACKWARD, name, 1, &x)) continue;
    if (run_kernel(&dirty, ATTEND_BACKWARD, name, 1, &y)) fail_msg("%s", attend_error_message());
    bool same = true;
    for (int of = 0; of < 2; of++) {
      const operand_id id = of ? of_keys : OPERAND_D_Q;
      const int64_t rows = of ? spec->k_len : spec->heads * spec->q_len, dim = spec->head_dim;
      for (int64_t e = of ? key * dim : 0; e < rows * dim; e++) {
        const double a = tensor_get(&x.t[id], e), b = tensor_get(&y.t[id], e);
        same = same && (memcmp(&a, &b, sizeof a) == 0 || (!of && e / dim == query));
      }
    }
    if (!same) print_message("%s: %d tokens\n", name ? name : "reference", (int)spec->q_len), failed++;
    run_free(&x);
    run_free(&y);
  }
  problem_free(&clean);
  problem_free(&dirty);
  return failed;
}

/* Causal, as many keys as queries: the last value is NaN, which the last query alone sees. P does not depend on it, so
 * that dV is what it was, and dQ but for that query. */
static void spoil_last_value(test_problem *p, bool spoiled) {
  if (spoiled) tensor_set(&p->t[OPERAND_V], p->spec.k_len * p->spec.v_dim - 1, NAN);
}
static void the_last_value_changes_only_what_sees_it(void **state) {
  (void)state;
  int failed = 0;
  for (int64_t length = 2; length <= 23; length += length < 9 ? 1 : 7)
    for (int t = 0; t < 8; t++) {
      problem_spec spec = hiding_spec(types[t % 4], 4, 0);
      spec.q_len = spec.k_len = length, spec.batch = 1, spec.heads = 1, spec.head_dim = spec.v_dim = t < 4 ? 16 : 64;
      failed += reach_others(&spec, spoil_last_value, length - 1, OPERAND_D_V, 0);
    }
  assert_int_equal(failed, 0);
}

/* Query 1 sees two keys alike, and dP of each is finite, but not their sum: dS is NaN or Inf for these two alone. */
static void spoil_delta(test_problem *p, bool spoiled) {
  const problem_spec *s = &p->spec;
  for (int64_t c = 0; c < s->head_dim; c++) {
    tensor_set(&p->t[OPERAND_Q], s->head_dim + c, 0);
    tensor_set(&p->t[OPERAND_D_OUT], s->head_dim + c, c ? 0 : spoiled ? 3e38 : 1);
    for (int64_t j = 0; j < 2; j++) tensor_set(&p->t[OPERAND_V], j * s->head_dim + c, c ? 0 : 1);
  }
}
static void a_sum_that_overflows_reaches_no_key_behind(void **state) {
  (void)state;
  int failed = 0;
  for (int64_t length = 2; length <= 20; length++)
    for (int t = 0; t < 8; t++) {
      problem_spec spec = hiding_spec(types[t % 2 * 2], 4, 0); /* f32 and bf16: those that reach 3e38 */
      spec.q_len = spec.k_len = length, spec.batch = 1, spec.heads = t / 2 % 2 + 1;
      spec.head_dim = spec.v_dim = t < 4 ? 16 : 64;
      failed += reach_others(&spec, spoil_delta, 1, OPERAND_D_K, 2);
    }
  assert_int_equal(failed, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(hidden_elements_change_nothing),
                                     cmocka_unit_test(the_last_value_changes_only_what_sees_it),
                                     cmocka_unit_test(a_sum_that_overflows_reaches_no_key_behind),
                                     cmocka_unit_test(what_some_rows_see_reaches_no_other)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
