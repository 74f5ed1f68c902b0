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

/* Returns how many kernels failed on this problem. */
static int check_problem(uint64_t seed, attend_dtype dtype, const char *type, attend_direction direction,
                         int64_t *checks) {
  problem_spec spec = random_spec(seed, dtype, direction);
  if (direction == ATTEND_FORWARD && seed % 5 == 0) { /* only math serves these */
    spec.probs = seed % 10 == 0;
    spec.scores = true;
    spec.options.scores_stage = (attend_stage)(seed / 5 % 3);
  }
  static test_problem p;
  static run_outputs reference, naive[NAIVE_ORDERS], outputs;
  problem_make(&p, &spec);
  if (direction == ATTEND_BACKWARD) run_for_backward(&p);
  int failed = 0;
  attend_status status = run_kernel(&p, direction, NULL, 2, &reference);
  if (status != ATTEND_OK) {
    print_message("ATTEND_TEST_SEED=%" PRIu64 " %s: reference: %s\n", seed, type, attend_error_message());
    problem_free(&p);
    return 1;
  }
  for (int n = 0; n < NAIVE_ORDERS; n++) run_naive(&p, direction, n, &naive[n]);
  kernel_names kernels = usable_kernels(direction, dtype);
  const char *only = getenv("ATTEND_TEST_ONLY");
  for (int k = 0; k < kernels.count; k++) {
    if (only && strcmp(only, kernels.name[k]) != 0) continue;
    status = run_kernel(&p, direction, kernels.name[k], p.options.threads, &outputs);
    if (status == ATTEND_ERROR_NO_BACKEND) continue;
    gate_result result = {.passed = status == ATTEND_OK};
    if (status != ATTEND_OK)
      snprintf(result.message, sizeof result.message, "%s", attend_error_message());
    else
      result = check_gate(&p, direction, &outputs, &reference, naive);
    if (result.passed) result = check_gaps(direction, &outputs);
    ++*checks;
    if (!result.passed) {
      char text[512];
      problem_describe(&p.spec, text, sizeof text);
      print_message("ATTEND_TEST_SEED=%" PRIu64 " ATTEND_TEST_ONLY=%s tests/test_property\n  %s\n  %s\n", seed,
                    kernels.name[k], result.message, text);
      failed++;
    }
    if (status == ATTEND_OK) run_free(&outputs);
  }
  run_free(&reference);
  for (int n = 0; n < NAIVE_ORDERS; n++) run_free(&naive[n]);
  problem_free(&p);
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
    for (int t = 0; t < 4; t++, problems++)
      failed += check_problem(seed, types[t].dtype, types[t].name, direction, &checks);
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
