/* SPDX-License-Identifier: MIT */
/* A pool of threads that help whoever calls. A call is a job on its caller's stack, published in a slot; idle threads
 * enter every open slot and work on what is left there, and the caller works on its own job like any helper. Nobody
 * ever waits for a task that has not been taken by a running thread, so nesting, concurrent callers and missing threads
 * cannot deadlock.
 *
 * Idle threads and waiting callers spin for some microseconds before they sleep: a futex wake costs 5 to 50 us, which
 * is longer than many a short attention call. They do not spin when there are more threads than CPUs. Threads come and
 * go without a lock, which 16 of them would take in turns for 30 us, and those that are awake wake the others. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* sched_getaffinity */
#endif
#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SLOTS = 64, SPIN_NANOSECONDS = 20000, RETRY_CALLS = 256 };

typedef struct job {
  void (*task)(void *context, int index);
  void *context;
  int count;
  atomic_int taken;   /* tasks handed out so far; may run past count */
  atomic_int to_wake; /* sleeping threads that are still wanted; may run below 0 */
} job;

/* A slot's state: 0 is free, else INSIDE for each thread that may use the job, its caller among them, and flags. */
enum { OPEN = 1, CALLER_SLEEPS = 2, INSIDE = 4 };
typedef struct slot {
  _Alignas(64) atomic_int state;
  job *job;   /* valid for those inside */
  sem_t done; /* posted by the last helper that leaves, if the caller sleeps */
} slot;

static struct {
  slot slots[SLOTS];
  atomic_int published; /* counts jobs ever published: what idle threads spin on */
  atomic_int sleepers;  /* threads that wait on `work` and have not been posted for */
  sem_t work;
  atomic_int size; /* threads that run; they and what follows change under the lock */
  atomic_bool spin, stopped;
  pthread_mutex_t lock;
  int retry;           /* calls until the next try to start threads, after one could not be started */
  unsigned generation; /* forks survived */
  bool prepared;       /* for forks */
  pthread_t threads[MAX_THREADS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

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

/* Until *word has another value than `old`, but not for long; the value that it has then. */
static int spin_while(atomic_int *word, int old) {
  int64_t end = nanoseconds() + SPIN_NANOSECONDS;
  int now;
  do {
    for (int i = 0; i < 8 && (now = atomic_load_explicit(word, memory_order_acquire)) == old; i++) relax();
  } while (now == old && nanoseconds() < end);
  return now;
}

/* ---- Both sides ------------------------------------------------------------------------------------------------ */

static bool has_tasks(const job *j) { return atomic_load_explicit(&j->taken, memory_order_relaxed) < j->count; }

static void take_tasks(job *j) {
  for (;;) {
    int index = atomic_fetch_add_explicit(&j->taken, 1, memory_order_relaxed);
    if (index >= j->count) return;
    j->task(j->context, index);
  }
}

/* One sleeper less: who gets true owes `work` a post, or is the sleeper itself and need not wait. */
static bool take_sleeper(void) {
  int n = atomic_load(&pool.sleepers);
  while (n > 0)
    if (atomic_compare_exchange_weak(&pool.sleepers, &n, n - 1)) return true;
  return false;
}

/* Everybody who is awake helps with it, so that the number of them doubles by each wake's time. */
static void wake_others(job *j) {
  while (atomic_load(&pool.sleepers) && has_tasks(j) && atomic_fetch_sub(&j->to_wake, 1) > 0 && take_sleeper())
    sem_post(&pool.work);
}

static void wait_for(sem_t *semaphore) {
  while (sem_wait(semaphore)) {
  } /* a signal came */
}

/* ---- Threads of the pool --------------------------------------------------------------------------------------- */

/* Enter the slot if it is open: its caller does not return until we have left. */
static bool enter(slot *s) {
  int state = atomic_load_explicit(&s->state, memory_order_relaxed);
  while (state & OPEN)
    if (atomic_compare_exchange_weak_explicit(&s->state, &state, state + INSIDE, memory_order_acquire,
                                              memory_order_relaxed))
      return true;
  return false;
}

static void leave(slot *s) {
  if (atomic_fetch_sub_explicit(&s->state, INSIDE, memory_order_acq_rel) == (INSIDE * 2 | CALLER_SLEEPS))
    sem_post(&s->done);
}

/* Until another job than those of `seen` is published. */
static void await_job(int seen) {
  if (atomic_load_explicit(&pool.spin, memory_order_relaxed) && spin_while(&pool.published, seen) != seen) return;
  atomic_fetch_add(&pool.sleepers, 1);
  if (atomic_load(&pool.published) != seen && take_sleeper()) return;
  wait_for(&pool.work);
}

static void *help(void *unused) {
  (void)unused;
  const unsigned generation = pool.generation;
  for (;;) {
    int seen = atomic_load_explicit(&pool.published, memory_order_acquire); /* before what it announces */
    if (atomic_load_explicit(&pool.stopped, memory_order_relaxed)) return NULL;
    for (slot *s = pool.slots; s < pool.slots + SLOTS; s++) {
      if (!enter(s)) continue;
      wake_others(s->job);
      take_tasks(s->job);
      if (generation != pool.generation) return NULL; /* a task forked, this is the child: no thread of the pool */
      leave(s);
    }
    await_job(seen);
  }
}

/* ---- Fork: the child has one thread, and state that no other thread was changing ------------------------------- */

static void make_semaphores(void) {
  sem_init(&pool.work, 0, 0);
  for (int i = 0; i < SLOTS; i++) sem_init(&pool.slots[i].done, 0, 0);
}

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&pool.lock); }
static void after_fork_child(void) {
  for (int i = 0; i < SLOTS; i++) atomic_store(&pool.slots[i].state, 0);
  make_semaphores(); /* those of before still count waiters that do not exist here */
  atomic_store(&pool.sleepers, 0);
  atomic_store(&pool.size, 0);
  pool.retry = 0;
  pool.generation++;
  pthread_mutex_unlock(&pool.lock);
}

/* ---- Callers --------------------------------------------------------------------------------------------------- */

/* Have `wanted` threads, or as many as can be made. */
static void start_threads(int wanted) {
  if (wanted > MAX_THREADS) wanted = MAX_THREADS;
  if (atomic_load_explicit(&pool.size, memory_order_acquire) >= wanted) return;
  pthread_mutex_lock(&pool.lock);
  if (!pool.prepared && !pthread_atfork(before_fork, after_fork_parent, after_fork_child)) {
    make_semaphores();
    pool.prepared = true;
  }
  if (pool.retry > 0) {
    pool.retry--;
  } else if (pool.prepared && !atomic_load(&pool.stopped)) {
    sigset_t all, before; /* the program's signals are not for these threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int size = atomic_load(&pool.size);
    atomic_store(&pool.spin, wanted < attend_pool_default_threads());
    while (size < wanted && !pthread_create(&pool.threads[size], NULL, help, NULL)) size++;
    if (size < wanted) pool.retry = RETRY_CALLS;
    atomic_store_explicit(&pool.size, size, memory_order_release);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  pthread_mutex_unlock(&pool.lock);
}

/* The job in a slot of its own, open to helpers; NULL if none is free. */
static slot *publish(job *j) {
  for (slot *s = pool.slots; s < pool.slots + SLOTS; s++) {
    int state = 0;
    if (atomic_load_explicit(&s->state, memory_order_relaxed) ||
        !atomic_compare_exchange_strong_explicit(&s->state, &state, INSIDE, memory_order_acquire, memory_order_relaxed))
      continue;
    s->job = j;
    atomic_fetch_or_explicit(&s->state, OPEN, memory_order_release);
    atomic_fetch_add(&pool.published, 1);
    wake_others(j);
    return s;
  }
  return NULL;
}

/* Nobody enters any more; wait for those inside. */
static void retire(slot *s) {
  int state = atomic_fetch_and_explicit(&s->state, ~OPEN, memory_order_acq_rel) & ~OPEN;
  while (state != INSIDE && atomic_load_explicit(&pool.spin, memory_order_relaxed)) {
    int now = spin_while(&s->state, state);
    if (now == state) break;
    state = now;
  }
  if (state != INSIDE && (atomic_fetch_or_explicit(&s->state, CALLER_SLEEPS, memory_order_acq_rel)) != INSIDE)
    wait_for(&s->done);
  atomic_store_explicit(&s->state, 0, memory_order_release);
}

void attend_pool_parallel_for(void *user, int count, void (*task)(void *context, int index), void *context) {
  (void)user;
  if (count <= 1) {
    if (count == 1) task(context, 0);
    return;
  }
  job j = {.task = task, .context = context, .count = count, .to_wake = count - 1};
  start_threads(count - 1);
  const unsigned generation = pool.generation;
  slot *s = publish(&j);
  take_tasks(&j);
  if (s && generation == pool.generation) retire(s); /* in a forked child its helpers do not exist */
}

/* Before the library's code is unmapped, and before leak checkers count threads. Calls that come later run alone. */
__attribute__((destructor)) static void stop_threads(void) {
  pthread_mutex_lock(&pool.lock);
  atomic_store(&pool.stopped, true);
  int size = atomic_exchange(&pool.size, 0);
  pthread_mutex_unlock(&pool.lock);
  atomic_fetch_add(&pool.published, 1);
  while (take_sleeper()) sem_post(&pool.work);
  for (int i = 0; i < size; i++) {
    if (pthread_equal(pool.threads[i], pthread_self()))
      pthread_detach(pool.threads[i]); /* a task called exit() */
    else
      pthread_join(pool.threads[i], NULL);
  }
}
