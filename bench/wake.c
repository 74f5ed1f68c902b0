/* SPDX-License-Identifier: MIT */
/* How long until all threads of a parallel region are inside it: the library's pool beside OpenMP's, right after
 * another region and after the caller has been away for a while. Medians and 90th percentiles of 500 regions.
 *
 *   make && make -C bench wake THREADS=2 */
#include "cpu/pool.h"

#include <omp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static atomic_int inside;
static int threads;

static double microseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void meet(void *context, int index) {
  (void)context;
  (void)index;
  atomic_fetch_add(&inside, 1);
  while (atomic_load(&inside) < threads) {
  }
}

static void with_pool(void) { attend_pool_parallel_for(NULL, threads, meet, NULL); }
static void with_openmp(void) {
#pragma omp parallel num_threads(threads)
  meet(NULL, 0);
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

enum { REGIONS = 500 };

static void measure(const char *name, void (*region)(void), double away) {
  double times[REGIONS];
  for (int i = -10; i < REGIONS; i++) {
    for (double until = microseconds() + away; microseconds() < until;) {
    } /* computes something of its own */
    atomic_store(&inside, 0);
    double begin = microseconds();
    region();
    if (i >= 0) times[i] = microseconds() - begin;
  }
  qsort(times, REGIONS, sizeof *times, by_value);
  printf("%-8s  %7.0f  %9.1f  %9.1f\n", name, away, times[REGIONS / 2], times[REGIONS * 9 / 10]);
}

int main(int count, char **argument) {
  threads = count > 1 ? atoi(argument[1]) : 2;
  printf("threads of  away/us  median/us     90%%/us\n");
  const double away[] = {0, 10, 100, 1000};
  for (int i = 0; i < 4; i++) {
    measure("attend", with_pool, away[i]);
    measure("OpenMP", with_openmp, away[i]);
  }
  return 0;
}
