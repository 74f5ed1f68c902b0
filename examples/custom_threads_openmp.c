/* SPDX-License-Identifier: MIT */
/* Your own threads: OpenMP serves instead of the library's pool, through the parallel_for hook, and the bits are the same.
 * cc -fopenmp custom_threads_openmp.c $(pkg-config --cflags --libs attend) */
#include <attend.h>

#include <omp.h>
#include <stdio.h>
#include <string.h>

enum { B = 2, H = 4, N = 100, D = 32, SIZE = B * H * N * D };

static void openmp_parallel_for(void *user, int count, void (*task)(void *context, int index), void *context) {
  int *calls = user;
  ++*calls;
#pragma omp parallel for schedule(dynamic, 1)
  for (int index = 0; index < count; index++) task(context, index);
}

int main(void) {
  static float q[SIZE], k[SIZE], v[SIZE], ours[SIZE], theirs[SIZE];
  for (int i = 0; i < SIZE; i++) {
    q[i] = (float)((i * 37) % 101) / 50 - 1;
    k[i] = (float)((i * 53) % 103) / 51 - 1;
    v[i] = (float)((i * 71) % 107) / 53 - 1;
  }
  int64_t shape[] = {B, H, N, D};
  attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 4, shape), K = attend_tensor_of(k, ATTEND_F32, 4, shape);
  attend_tensor V = attend_tensor_of(v, ATTEND_F32, 4, shape), O = attend_tensor_of(ours, ATTEND_F32, 4, shape);
  attend_options options = {.flags = ATTEND_CAUSAL, .threads = 4};
  if (attend(&Q, &K, &V, &options, &O) != ATTEND_OK) goto failed;

  int calls = 0;
  attend_hooks hooks = {.user = &calls, .parallel_for = openmp_parallel_for};
  options.hooks = &hooks;
  O.data = theirs;
  if (attend(&Q, &K, &V, &options, &O) != ATTEND_OK) goto failed;

  int same = memcmp(ours, theirs, sizeof ours) == 0;
  printf("%d parallel loops on OpenMP's %d threads: bits %s\n", calls, omp_get_max_threads(), same ? "equal" : "DIFFER");
  return !(same && calls > 0);

failed:
  fprintf(stderr, "%s\n", attend_error_message());
  return 1;
}
