/* SPDX-License-Identifier: MIT */
/* Random problems: every kernel that this machine can run, on every problem that it accepts, against the f64 reference
 * at the gate of house rule 6, between guard pages.
 *
 *   ATTEND_TEST_SECONDS=600 ATTEND_TEST_SEED=1000 tests/test_property     more problems, from another seed
 *   ATTEND_TEST_ONLY=forward_f32_tiled_avx2 …                             one kernel */
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

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double from_environment(const char *name, double otherwise) {
  const char *text = getenv(name);
  return text ? atof(text) : otherwise;
}

/* One problem with the reference's and the naive answers. */
typedef struct answered {
  test_problem p;
  run_outputs reference, naive[NAIVE_ORDERS];
} answered;

static bool answer(answered *a, const problem_spec *spec, attend_direction direction) {
  problem_make(&a->p, spec);
  if (direction == ATTEND_BACKWARD) run_for_backward(&a->p);
  attend_status status = run_kernel(&a->p, direction, NULL, 2, &a->reference);
  if (status != ATTEND_OK) {
    print_message("ATTEND_TEST_SEED=%" PRIu64 ": reference: %s\n", spec->seed, attend_error_message());
    problem_free(&a->p);
    return false;
  }
  for (int n = 0; n < NAIVE_ORDERS; n++) run_naive(&a->p, direction, n, &a->naive[n]);
  return true;
}

static void answer_free(answered *a) {
  run_free(&a->reference);
  for (int n = 0; n < NAIVE_ORDERS; n++) run_free(&a->naive[n]);
  problem_free(&a->p);
}

static gate_result judge(answered *a, attend_direction direction, const char *kernel, attend_status *status) {
  run_outputs outputs;
  *status = run_kernel(&a->p, direction, kernel, a->p.options.threads, &outputs);
  gate_result result = {.passed = *status == ATTEND_OK, .id = OPERAND_COUNT};
  if (!result.passed) {
    snprintf(result.message, sizeof result.message, "%s", attend_error_message());
    return result;
  }
  result = check_gate(&a->p, direction, &outputs, &a->reference, a->naive);
  if (result.passed) result = check_gaps(direction, &outputs);
  run_free(&outputs);
  return result;
}

/* The naive error of a small problem is small by luck now and then: a kernel that misses the gate is judged again by
 * the largest errors, its own and the naive, over as many other problems of the same kind. */
enum { MORE_PROBLEMS = 16 };
static bool passes_with_more_data(const problem_spec *first, attend_direction direction, const char *kernel,
                                  gate_result *result) {
  static answered a;
  double error = result->error, naive_error = result->naive_error, largest = result->largest;
  operand_id id = result->id;
  for (int n = 1; n <= MORE_PROBLEMS; n++) {
    problem_spec spec = *first;
    spec.seed = first->seed + (uint64_t)n * 1000003;
    if (!answer(&a, &spec, direction)) return false;
    attend_status status;
    run_outputs outputs;
    status = run_kernel(&a.p, direction, kernel, a.p.options.threads, &outputs);
    if (status == ATTEND_OK) {
      gate_result numbers = check_numbers(&outputs, &a.reference, a.naive, id);
      error = fmax(error, numbers.error), naive_error = fmax(naive_error, numbers.naive_error);
      largest = fmax(largest, numbers.largest);
      run_free(&outputs);
    }
    if (n == MORE_PROBLEMS) result->passed = error <= allowed_error(&a.p, direction, id, naive_error, largest);
    answer_free(&a);
    if (status != ATTEND_OK) return false;
  }
  return result->passed;
}

/* Returns how many kernels failed on this problem. */
static int check_problem(uint64_t seed, attend_dtype dtype, attend_direction direction, int64_t *checks) {
  problem_spec spec = random_spec(seed, dtype, direction);
  if (direction == ATTEND_FORWARD && seed % 5 == 0) { /* only math serves these */
    spec.probs = seed % 10 == 0;
    spec.scores = true;
    spec.options.scores_stage = (attend_stage)(seed / 5 % 3);
  }
  static answered a;
  if (!answer(&a, &spec, direction)) return 1;
  int failed = 0;
  kernel_names kernels = usable_kernels(direction, dtype);
  const char *only = getenv("ATTEND_TEST_ONLY");
  for (int k = 0; k < kernels.count; k++) {
    if (only && strcmp(only, kernels.name[k]) != 0) continue;
    attend_status status;
    gate_result result = judge(&a, direction, kernels.name[k], &status);
    if (status == ATTEND_ERROR_NO_BACKEND) continue;
    ++*checks;
    if (result.passed) continue;
    if (result.id != OPERAND_COUNT && passes_with_more_data(&spec, direction, kernels.name[k], &result)) continue;
    char text[512];
    problem_describe(&a.p.spec, text, sizeof text);
    print_message("ATTEND_TEST_SEED=%" PRIu64 " ATTEND_TEST_ONLY=%s tests/test_property\n  %s\n  %s\n", seed,
                  kernels.name[k], result.message, text);
    failed++;
  }
  answer_free(&a);
  return failed;
}

static void check_random(attend_direction direction) {
  static const struct {
    attend_dtype dtype;
    const char *name;
  } types[] = {{{2, 32, 1}, "f32"}, {{2, 16, 1}, "f16"}, {{4, 16, 1}, "bf16"}, {{2, 64, 1}, "f64"}};
  double seconds = from_environment("ATTEND_TEST_SECONDS", 4), end = now() + seconds;
  uint64_t seed = (uint64_t)from_environment("ATTEND_TEST_SEED", 1);
  int failed = 0, problems = 0;
  int64_t checks = 0;
  bool one = getenv("ATTEND_TEST_SEED") && !getenv("ATTEND_TEST_SECONDS");
  for (; now() < end && failed < 20; seed++) {
    for (int t = 0; t < 4; t++, problems++) failed += check_problem(seed, types[t].dtype, direction, &checks);
    if (one) break;
  }
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

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(forward_is_exact), cmocka_unit_test(backward_is_exact)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
