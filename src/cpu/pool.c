/* SPDX-License-Identifier: MIT */
/* A pool of threads that help whoever calls. A call is a job on its caller's stack, linked into one list; idle threads
 * attach to the first job that has tasks left, and the caller works on its own job like any helper. Nobody ever waits
 * for a task that has not been taken by a running thread, so nesting, concurrent callers and missing threads cannot
 * deadlock.
 *
 * Idle threads and waiting callers spin for some microseconds before they sleep: a futex wake costs 5 to 50 us, which
 * is longer than many a short attention call. They do not spin when there are more threads than CPUs. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* sched_getaffinity */
#endif
#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SPIN_NANOSECONDS = 20000, RETRY_CALLS = 256 };

typedef struct job {
  struct job *next;
  void (*task)(void *context, int index);
  void *context;
  int count;
  atomic_int taken;   /* tasks handed out so far; may run past count */
  atomic_int helpers; /* threads of the pool inside this job; written under the lock */
} job;

static struct {
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  job *jobs;             /* oldest first */
  atomic_uint published; /* counts jobs ever published: what idle threads spin on */
  int size;              /* threads that run */
  int sleepers;          /* of them, those waiting on `work` */
  int waiting;           /* callers waiting on `done` */
  int retry;             /* calls until the next try to start threads, after one could not be started */
  unsigned generation;   /* forks survived */
  bool spin, stopped, fork_handlers;
  pthread_t threads[MAX_THREADS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

int attend_pool_default_threads(void) {
  int result = 0;
  for (int cpus = 1024; cpus <= 1 << 18 && !result; cpus *= 4) { /* the kernel refuses a set smaller than its own */
    cpu_set_t *set = CPU_ALLOC((size_t)cpus);
    if (!set) break;
    if (!sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)cpus), set))
      result = CPU_COUNT_S(CPU_ALLOC_SIZE((size_t)cpus), set);
    CPU_FREE(set);
  }
  if (!result) result = (int)sysconf(_SC_NPROCESSORS_ONLN);
  return result > 1 ? result : 1;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- Both sides ------------------------------------------------------------------------------------------------ */

static bool has_tasks(job *j) { return atomic_load_explicit(&j->taken, memory_order_relaxed) < j->count; }

static void take_tasks(job *j) {
  for (;;) {
    int index = atomic_fetch_add_explicit(&j->taken, 1, memory_order_relaxed);
    if (index >= j->count) return;
    j->task(j->context, index);
  }
}

/* ---- Threads of the pool --------------------------------------------------------------------------------------- */

static job *find_job(void) {
  job *j = pool.jobs;
  while (j && !has_tasks(j)) j = j->next;
  return j;
}

/* Called and returns with the lock held; drops it meanwhile. */
static void await_job(void) {
  unsigned seen = atomic_load_explicit(&pool.published, memory_order_relaxed);
  if (pool.spin) {
    pthread_mutex_unlock(&pool.lock);
    int64_t end = nanoseconds() + SPIN_NANOSECONDS;
    do {
      for (int i = 0; i < 8 && atomic_load_explicit(&pool.published, memory_order_acquire) == seen; i++) relax();
    } while (atomic_load_explicit(&pool.published, memory_order_acquire) == seen && nanoseconds() < end);
    pthread_mutex_lock(&pool.lock);
  }
  if (pool.stopped || atomic_load_explicit(&pool.published, memory_order_relaxed) != seen) return;
  pool.sleepers++;
  pthread_cond_wait(&pool.work, &pool.lock);
  pool.sleepers--;
}

static void *help(void *unused) {
  (void)unused;
  pthread_mutex_lock(&pool.lock);
  unsigned generation = pool.generation;
  while (!pool.stopped) {
    job *j = find_job();
    if (!j) {
      await_job();
      continue;
    }
    atomic_fetch_add_explicit(&j->helpers, 1, memory_order_relaxed);
    pthread_mutex_unlock(&pool.lock);
    take_tasks(j);
    pthread_mutex_lock(&pool.lock);
    if (generation != pool.generation)
      break; /* the task forked and this is the child: no longer a thread of the pool */
    /* The last access to *j: its caller may return as soon as it sees 0 and has had the lock. */
    if (atomic_fetch_sub_explicit(&j->helpers, 1, memory_order_release) == 1 && pool.waiting)
      pthread_cond_broadcast(&pool.done);
  }
  pthread_mutex_unlock(&pool.lock);
  return NULL;
}

/* ---- Fork: the child has one thread, and state that no other thread was changing ------------------------------- */

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&pool.lock); }
static void after_fork_child(void) {
  pool.size = pool.sleepers = pool.waiting = pool.retry = 0;
  pool.jobs = NULL;
  pool.generation++;
  pool.work = (pthread_cond_t)PTHREAD_COND_INITIALIZER; /* still counts waiters that do not exist here */
  pool.done = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  pthread_mutex_unlock(&pool.lock);
}

/* ---- Callers --------------------------------------------------------------------------------------------------- */

/* With the lock held: have `wanted` threads, or as many as can be made. */
static void start_threads(int wanted) {
  if (wanted > MAX_THREADS) wanted = MAX_THREADS;
  if (pool.size >= wanted || pool.stopped) return;
  if (pool.retry > 0) {
    pool.retry--;
    return;
  }
  if (!pool.fork_handlers) {
    if (pthread_atfork(before_fork, after_fork_parent, after_fork_child)) return;
    pool.fork_handlers = true;
  }
  sigset_t all, before; /* the program's signals are not for these threads */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; pool.size < wanted; pool.size++) {
    if (pthread_create(&pool.threads[pool.size], NULL, help, NULL)) {
      pool.retry = RETRY_CALLS;
      break;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pool.spin = pool.size < attend_pool_default_threads();
}

static unsigned publish(job *j) {
  pthread_mutex_lock(&pool.lock);
  unsigned generation = pool.generation;
  start_threads(j->count - 1);
  job **end = &pool.jobs;
  while (*end) end = &(*end)->next;
  *end = j;
  atomic_fetch_add_explicit(&pool.published, 1, memory_order_release);
  int wake = pool.sleepers < j->count - 1 ? pool.sleepers : j->count - 1;
  bool all = wake == pool.sleepers;
  pthread_mutex_unlock(&pool.lock);
  if (wake > 1 && all)
    pthread_cond_broadcast(&pool.work);
  else
    for (; wake > 0; wake--) pthread_cond_signal(&pool.work);
  return generation;
}

/* Take the job off the list, so that nobody joins it any more, and wait for those inside. */
static void retire(job *j, unsigned generation) {
  pthread_mutex_lock(&pool.lock);
  if (generation == pool.generation) {
    job **link = &pool.jobs;
    while (*link != j) link = &(*link)->next;
    *link = j->next;
    if (pool.spin && atomic_load_explicit(&j->helpers, memory_order_relaxed)) {
      pthread_mutex_unlock(&pool.lock);
      int64_t end = nanoseconds() + SPIN_NANOSECONDS;
      do {
        for (int i = 0; i < 8 && atomic_load_explicit(&j->helpers, memory_order_acquire); i++) relax();
      } while (atomic_load_explicit(&j->helpers, memory_order_acquire) && nanoseconds() < end);
      pthread_mutex_lock(&pool.lock);
    }
    while (atomic_load_explicit(&j->helpers, memory_order_acquire) && generation == pool.generation) {
      pool.waiting++;
      pthread_cond_wait(&pool.done, &pool.lock);
      pool.waiting--;
    }
  }
  pthread_mutex_unlock(&pool.lock);
}

void attend_pool_parallel_for(void *user, int count, void (*task)(void *context, int index), void *context) {
  (void)user;
  if (count <= 1) {
    if (count == 1) task(context, 0);
    return;
  }
  job j = {.task = task, .context = context, .count = count};
  unsigned generation = publish(&j);
  take_tasks(&j);
  retire(&j, generation);
}

/* Before the library's code is unmapped, and before leak checkers count threads. Calls that come later run alone. */
__attribute__((destructor)) static void stop_threads(void) {
  pthread_mutex_lock(&pool.lock);
  pool.stopped = true;
  atomic_fetch_add_explicit(&pool.published, 1, memory_order_release);
  int size = pool.size;
  pool.size = 0;
  pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.lock);
  for (int i = 0; i < size; i++) {
    if (pthread_equal(pool.threads[i], pthread_self()))
      pthread_detach(pool.threads[i]); /* a task called exit() */
    else
      pthread_join(pool.threads[i], NULL);
  }
}
