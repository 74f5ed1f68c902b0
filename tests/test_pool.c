/* SPDX-License-Identifier: MIT */
/* The thread pool: every task runs once whatever happens around it. Needs no test framework, so that it also runs under
 * ThreadSanitizer and valgrind without suppressions. */
#include "api/problem.h"
#include "cpu/pool.h"

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1 /* they need address space, and ThreadSanitizer refuses threads in a forked child */
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                                  \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

enum { TASKS = 9 };

typedef struct tally {
  atomic_int runs[TASKS];
  atomic_int nested;
} tally;

static void count_task(void *context, int index) {
  tally *t = context;
  atomic_fetch_add(&t->runs[index], 1);
}

static void each_runs_once(int count) {
  tally t = {0};
  attend_pool_parallel_for(NULL, count, count_task, &t);
  for (int i = 0; i < TASKS; i++) CHECK(atomic_load(&t.runs[i]) == (i < count));
}

static void nested_task(void *context, int index) {
  tally *t = context, inner = {0};
  atomic_fetch_add(&t->runs[index], 1);
  attend_pool_parallel_for(NULL, TASKS, count_task, &inner);
  for (int i = 0; i < TASKS; i++) atomic_fetch_add(&t->nested, atomic_load(&inner.runs[i]));
}

static void nested(void) {
  tally t = {0};
  attend_pool_parallel_for(NULL, TASKS, nested_task, &t);
  CHECK(atomic_load(&t.nested) == TASKS * TASKS);
}

static void *caller(void *unused) {
  (void)unused;
  for (int i = 0; i < 200; i++) each_runs_once(2 + i % (TASKS - 1));
  return NULL;
}

static void concurrent_callers(void) {
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) CHECK(!pthread_create(&threads[i], NULL, caller, NULL));
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}

#if !defined(SANITIZED)
static void child_succeeds(pid_t child) {
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The parent's threads are asleep, spinning or busy when it forks; the child has none of them. */
static void forks(void) {
  for (int i = 0; i < 4; i++) {
    each_runs_once(TASKS);
    if (i == 2) usleep(2000);
    pid_t child = fork();
    if (!child) {
      alarm(20);
      each_runs_once(TASKS);
      nested();
      exit(0);
    }
    child_succeeds(child);
  }
}

static void forking_task(void *context, int index) {
  count_task(context, index);
  if (index != 0) return;
  pid_t child = fork();
  if (!child) {
    alarm(20);
    each_runs_once(TASKS);
    exit(0);
  }
  child_succeeds(child);
}

static void fork_inside_a_task(void) {
  tally t = {0};
  attend_pool_parallel_for(NULL, TASKS, forking_task, &t);
  for (int i = 0; i < TASKS; i++) CHECK(atomic_load(&t.runs[i]) == 1);
}

/* In a child without address space for another stack, no thread can be made; all tasks run all the same. */
static void without_threads(void) {
  pid_t child = fork();
  if (!child) {
    alarm(20);
    struct rlimit nothing_more = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_AS, &nothing_more)) _exit(1);
    pthread_t thread;
    if (!pthread_create(&thread, NULL, caller, NULL)) _exit(0); /* a cached stack, or a system without this limit */
    for (int i = 0; i < 600; i++) each_runs_once(TASKS);
    _exit(0);
  }
  child_succeeds(child);
}
#endif

static void rounding_item(void *context, int worker, int64_t index) {
  (void)worker;
  (void)index;
  volatile float one = 1, little = 0x1p-30f; /* fegetround would ask the x87 unit */
  if (one + little != 1) atomic_fetch_add((atomic_int *)context, 1);
}

/* Items see round to nearest in every thread, and the caller keeps the mode it had set. */
static void float_state(void) {
  attend_services services = {.parallel_for = attend_pool_parallel_for};
  atomic_int wrong = 0;
  fesetround(FE_UPWARD);
  for (int threads = 1; threads <= 4; threads++) attend_for_each(&services, threads, 64, rounding_item, &wrong);
  volatile float one = 1, little = 0x1p-30f;
  CHECK(one + little > 1);
  fesetround(FE_TONEAREST);
  CHECK(atomic_load(&wrong) == 0);
}

int main(void) {
  alarm(120);
  CHECK(attend_pool_default_threads() >= 1);
  for (int count = 0; count <= TASKS; count++) each_runs_once(count);
#if !defined(SANITIZED)
  without_threads();
  forks();
  fork_inside_a_task();
#endif
  nested();
  concurrent_callers();
  float_state();
  puts("pool: ok");
  return 0;
}
