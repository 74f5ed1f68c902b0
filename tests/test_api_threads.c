/* SPDX-License-Identifier: MIT */
/* The library from several threads: one plan with separate workspaces, messages of one's own, calls from inside a
 * parallel region, and from a forked child. */
#include "attend.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1 /* ThreadSanitizer refuses threads in a forked child */
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

enum { H = 4, N = 70, D = 16, COUNT = H * N * D, CALLERS = 4, CALLS = 10 };

static const int64_t shape[] = {1, H, N, D}, lse_shape[] = {1, H, N};
static float q_data[COUNT], k_data[COUNT], v_data[COUNT], d_out_data[COUNT];

/* The outputs of one caller; the inputs are everybody's. */
typedef struct caller {
  attend_tensor q, k, v, out, lse, d_out, d_q, d_k, d_v;
  attend_args args;
  float out_data[COUNT], lse_data[H * N], d_q_data[COUNT], d_k_data[COUNT], d_v_data[COUNT];
  const attend_plan *forward, *backward;
  bool good;
} caller;

static void caller_make(caller *c) {
  memset(c, 0, sizeof *c);
  for (int i = 0; i < COUNT; i++) {
    q_data[i] = (float)((i * 7919) % 1000) / 500 - 1;
    k_data[i] = (float)((i * 10473LL) % 991) / 500 - 1;
    v_data[i] = (float)((i * 1299LL) % 997) / 500 - 1;
    d_out_data[i] = (float)((i * 15485863LL) % 1000) / 500 - 1;
  }
  c->q = attend_tensor_of(q_data, ATTEND_F32, 4, shape);
  c->k = attend_tensor_of(k_data, ATTEND_F32, 4, shape);
  c->v = attend_tensor_of(v_data, ATTEND_F32, 4, shape);
  c->d_out = attend_tensor_of(d_out_data, ATTEND_F32, 4, shape);
  c->out = attend_tensor_of(c->out_data, ATTEND_F32, 4, shape);
  c->lse = attend_tensor_of(c->lse_data, ATTEND_F32, 3, lse_shape);
  c->d_q = attend_tensor_of(c->d_q_data, ATTEND_F32, 4, shape);
  c->d_k = attend_tensor_of(c->d_k_data, ATTEND_F32, 4, shape);
  c->d_v = attend_tensor_of(c->d_v_data, ATTEND_F32, 4, shape);
  c->args = (attend_args){.q = &c->q,
                          .k = &c->k,
                          .v = &c->v,
                          .out = &c->out,
                          .lse = &c->lse,
                          .d_out = &c->d_out,
                          .d_q = &c->d_q,
                          .d_k = &c->d_k,
                          .d_v = &c->d_v};
}

static bool same_results(const caller *a, const caller *b) {
  return !memcmp(a->out_data, b->out_data, sizeof a->out_data) &&
         !memcmp(a->d_q_data, b->d_q_data, sizeof a->d_q_data) &&
         !memcmp(a->d_k_data, b->d_k_data, sizeof a->d_k_data) && !memcmp(a->d_v_data, b->d_v_data, sizeof a->d_v_data);
}

static const attend_options causal = {.flags = ATTEND_CAUSAL, .threads = 2};

static bool compute_once(caller *c) {
  return attend_forward_once(&c->args, &causal) == ATTEND_OK && attend_backward_once(&c->args, &causal) == ATTEND_OK;
}

static caller *expected(void) {
  static caller c;
  if (!c.good) {
    caller_make(&c);
    assert_true(compute_once(&c));
    c.good = true;
  }
  return &c;
}

static void *workspace_of(const attend_plan *plan) {
  size_t unit = ATTEND_WORKSPACE_ALIGNMENT;
  return aligned_alloc(unit, (attend_plan_workspace_bytes(plan) / unit + 1) * unit);
}

static void *execute_often(void *argument) {
  caller *c = argument;
  void *forward = workspace_of(c->forward), *backward = workspace_of(c->backward);
  c->good = true;
  for (int i = 0; i < CALLS; i++) {
    memset(c->out_data, 0, sizeof c->out_data);
    c->good = c->good &&
              !attend_forward(c->forward, &c->args, forward, attend_plan_workspace_bytes(c->forward), NULL) &&
              !attend_backward(c->backward, &c->args, backward, attend_plan_workspace_bytes(c->backward), NULL) &&
              same_results(c, expected());
  }
  free(forward);
  free(backward);
  return NULL;
}

static void one_plan_serves_many_threads(void **state) {
  (void)state;
  static caller callers[CALLERS];
  pthread_t threads[CALLERS];
  attend_plan *forward, *backward;
  expected();
  caller_make(&callers[0]);
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &callers[0].args, &causal, &forward), ATTEND_OK);
  assert_int_equal(attend_plan_create(ATTEND_BACKWARD, &callers[0].args, &causal, &backward), ATTEND_OK);
  for (int i = 0; i < CALLERS; i++) {
    caller_make(&callers[i]);
    callers[i].forward = forward;
    callers[i].backward = backward;
  }
  for (int i = 0; i < CALLERS; i++) assert_int_equal(pthread_create(&threads[i], NULL, execute_often, &callers[i]), 0);
  for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < CALLERS; i++) assert_true(callers[i].good);
  attend_plan_destroy(forward);
  attend_plan_destroy(backward);
}

/* ---- Messages --------------------------------------------------------------------------------------------------- */

static void *fail_elsewhere(void *good) {
  attend_plan *plan;
  bool empty = !attend_error_message()[0];
  bool failed = attend_plan_create(ATTEND_FORWARD, NULL, NULL, &plan) == ATTEND_ERROR_NULL;
  *(bool *)good = empty && failed && strstr(attend_error_message(), "args");
  return NULL;
}

static void messages_belong_to_their_thread(void **state) {
  (void)state;
  attend_kernel kernel;
  char before[1024];
  bool good = false;
  pthread_t thread;
  memset(&kernel, 0, sizeof kernel);
  assert_int_equal(attend_kernel_at(-5, &kernel), ATTEND_ERROR_INDEX);
  strncpy(before, attend_error_message(), sizeof before - 1);
  before[sizeof before - 1] = 0;
  assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &good), 0);
  pthread_join(thread, NULL);
  assert_true(good);
  assert_string_equal(attend_error_message(), before);
}

/* ---- Inside a parallel region ----------------------------------------------------------------------------------- */

typedef struct inner {
  caller *callers;
  bool good[CALLERS];
} inner;

static void call_inside(inner *work, int index) {
  work->good[index] = compute_once(&work->callers[index]) && same_results(&work->callers[index], expected());
}

/* The library's own pool runs the region: the outer call's hook makes whole attention calls before its tasks. */
static inner region;
static void hook_with_calls(void *user, int count, void (*task)(void *, int), void *context) {
  (void)user;
  for (int i = 0; i < count; i++) {
    call_inside(&region, i % CALLERS);
    task(context, i);
  }
}

static void *call_in_thread(void *argument) {
  call_inside(&region, (int)(intptr_t)argument);
  return NULL;
}

static void calls_inside_a_parallel_region(void **state) {
  (void)state;
  static caller callers[CALLERS], outer;
  expected();
  for (int i = 0; i < CALLERS; i++) caller_make(&callers[i]);
  region.callers = callers;
  pthread_t threads[CALLERS];
  for (intptr_t i = 0; i < CALLERS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, call_in_thread, (void *)i), 0);
  for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < CALLERS; i++) assert_true(region.good[i]);

  attend_hooks hooks = {.parallel_for = hook_with_calls};
  attend_options options = causal;
  options.hooks = &hooks;
  caller_make(&outer);
  assert_int_equal(attend_forward_once(&outer.args, &options), ATTEND_OK);
  assert_memory_equal(outer.out_data, expected()->out_data, sizeof outer.out_data);
  assert_true(region.good[0]);
}

/* ---- Fork ------------------------------------------------------------------------------------------------------- */

static void a_forked_child_computes(void **state) {
  (void)state;
#if defined(SANITIZED)
  skip();
#else
  static caller c;
  expected(); /* the parent's threads are running */
  pid_t child = fork();
  if (child == 0) {
    alarm(30);
    caller_make(&c);
    _exit(compute_once(&c) && same_results(&c, expected()) ? 0 : 1);
  }
  int status = 1;
  assert_true(child > 0 && waitpid(child, &status, 0) == child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_plan_serves_many_threads),
      cmocka_unit_test(messages_belong_to_their_thread),
      cmocka_unit_test(calls_inside_a_parallel_region),
      cmocka_unit_test(a_forked_child_computes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
