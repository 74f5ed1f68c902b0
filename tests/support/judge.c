/* SPDX-License-Identifier: MIT */
/* The reference's and the naive answers, then each kernel's. */
#include "support/judge.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One problem with the reference's and the naive answers. */
typedef struct answered {
  test_problem p;
  run_outputs reference, naive[NAIVE_ORDERS];
} answered;

static bool answer(answered *a, const problem_spec *spec, attend_direction direction, void (*change)(test_problem *)) {
  problem_make(&a->p, spec);
  if (change) change(&a->p);
  if (direction == ATTEND_BACKWARD) run_for_backward(&a->p);
  attend_status status = run_kernel(&a->p, direction, NULL, 1, &a->reference);
  if (status != ATTEND_OK) {
    printf("reference: %s\n", attend_error_message());
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
                                  void (*change)(test_problem *), gate_result *result) {
  static answered a;
  double error = result->error, naive_error = result->naive_error, largest = result->largest;
  operand_id id = result->id;
  for (int n = 1; n <= MORE_PROBLEMS; n++) {
    problem_spec spec = *first;
    spec.seed = first->seed + (uint64_t)n * 1000003;
    if (!answer(&a, &spec, direction, change)) return false;
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

int judge_kernels(const problem_spec *spec, attend_direction direction, void (*change)(test_problem *p),
                  int64_t *checks) {
  static answered a;
  if (!answer(&a, spec, direction, change)) return 1;
  int failed = 0;
  kernel_names kernels = usable_kernels(direction, spec->dtype);
  const char *only = getenv("ATTEND_TEST_ONLY");
  for (int k = 0; k < kernels.count; k++) {
    if (only && strcmp(only, kernels.name[k]) != 0) continue;
    attend_status status;
    gate_result result = judge(&a, direction, kernels.name[k], &status);
    if (status == ATTEND_ERROR_NO_BACKEND) continue;
    ++*checks;
    if (result.passed) continue;
    if (result.id != OPERAND_COUNT && passes_with_more_data(spec, direction, kernels.name[k], change, &result))
      continue;
    char text[512];
    problem_describe(&a.p.spec, text, sizeof text);
    printf("ATTEND_TEST_ONLY=%s\n  %s\n  %s\n", kernels.name[k], result.message, text);
    failed++;
  }
  answer_free(&a);
  return failed;
}
