/* SPDX-License-Identifier: MIT */
/* Random problems: every kernel that this machine can run, on every problem that it accepts, against the f64 reference
 * at the gate of house rule 6, between guard pages.
 *
 *   ATTEND_TEST_SECONDS=600 ATTEND_TEST_SEED=1000 tests/test_property     more problems, from another seed
 *   ATTEND_TEST_ONLY=forward_f32_tiled_avx2 …                             one kernel */
#include "support/judge.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdlib.h>
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

static int check_problem(uint64_t seed, attend_dtype dtype, attend_direction direction, int64_t *checks) {
  problem_spec spec = random_spec(seed, dtype, direction);
  if (direction == ATTEND_FORWARD && seed % 5 == 0) { /* only math serves these */
    spec.probs = seed % 10 == 0;
    spec.scores = true;
    spec.options.scores_stage = (attend_stage)(seed / 5 % 3);
  }
  int failed = judge_kernels(&spec, direction, NULL, checks);
  if (failed) print_message("ATTEND_TEST_SEED=%" PRIu64 " tests/test_property repeats this\n", seed);
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
