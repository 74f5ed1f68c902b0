/* SPDX-License-Identifier: MIT */
/* The efficient back-end beside the loops that a C program writes when it has no library: one query after another, a
 * dot product a key, softmax, one addition a key, as llm.c's attention_forward and attention_backward do (causal, f32,
 * [B,N,3,H,D] memory, probabilities kept for backward; threads over batch, heads and queries). Compiled as that project
 * compiles, with -Ofast -march=native -fopenmp. Prints the ratio of times, both taken by turns in one run, each after a
 * pause: OpenMP's threads spin for milliseconds after their work, on the cores that the other side is about to use.
 *
 *   make && make -C bench plain                              # all shapes on one thread, then on two
 *   make -C bench plain CASES="1,1,5,64,1 512,8,5,64,2"      # B,H,N,D,threads */
#include "attend.h"

#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct problem {
  int b, h, n, d;
  float *qkv, *out, *att, *d_qkv, *d_out, *lse; /* qkv [B,N,3,H,D], out [B,N,H,D], att [B,H,N,N] */
} problem;

static void loops_forward(const problem *p) {
  const int H = p->h, N = p->n, D = p->d;
  const float scale = 1 / sqrtf((float)D);
#pragma omp parallel for collapse(3)
  for (int b = 0; b < p->b; b++)
    for (int t = 0; t < N; t++)
      for (int h = 0; h < H; h++) {
        const float *q = p->qkv + (((size_t)b * N + t) * 3 * H + h) * D;
        float *row = p->att + (((size_t)b * H + h) * N + t) * N, *o = p->out + (((size_t)b * N + t) * H + h) * D;
        float most = -INFINITY, sum = 0;
        for (int j = 0; j <= t; j++) {
          const float *k = p->qkv + (((size_t)b * N + j) * 3 * H + H + h) * D;
          float s = 0;
          for (int c = 0; c < D; c++) s += q[c] * k[c];
          row[j] = s * scale;
          if (row[j] > most) most = row[j];
        }
        for (int j = 0; j <= t; j++) sum += row[j] = expf(row[j] - most);
        for (int j = 0; j < N; j++) row[j] = j <= t ? row[j] / sum : 0;
        for (int c = 0; c < D; c++) o[c] = 0;
        for (int j = 0; j <= t; j++) {
          const float *v = p->qkv + (((size_t)b * N + j) * 3 * H + 2 * H + h) * D;
          for (int c = 0; c < D; c++) o[c] += row[j] * v[c];
        }
      }
}

/* As there, on one thread: threads would add to one dK. */
static void loops_backward(const problem *p) {
  const int H = p->h, N = p->n, D = p->d;
  const float scale = 1 / sqrtf((float)D);
  memset(p->d_qkv, 0, (size_t)p->b * N * 3 * H * D * sizeof(float));
  float *d_row = malloc((size_t)N * sizeof *d_row);
  if (!d_row) exit(1);
  for (int b = 0; b < p->b; b++)
    for (int t = 0; t < N; t++)
      for (int h = 0; h < H; h++) {
        const float *row = p->att + (((size_t)b * H + h) * N + t) * N,
                    *d_o = p->d_out + (((size_t)b * N + t) * H + h) * D;
        const size_t at = (((size_t)b * N + t) * 3 * H + h) * D;
        float sum = 0;
        for (int j = 0; j <= t; j++) {
          const size_t v = (((size_t)b * N + j) * 3 * H + 2 * H + h) * D;
          float s = 0;
          for (int c = 0; c < D; c++) s += p->qkv[v + c] * d_o[c];
          for (int c = 0; c < D; c++) p->d_qkv[v + c] += row[j] * d_o[c];
          d_row[j] = s;
          sum += s * row[j];
        }
        for (int j = 0; j <= t; j++) {
          const size_t k = (((size_t)b * N + j) * 3 * H + H + h) * D;
          const float ds = row[j] * (d_row[j] - sum) * scale;
          for (int c = 0; c < D; c++) p->d_qkv[at + c] += ds * p->qkv[k + c];
          for (int c = 0; c < D; c++) p->d_qkv[k + c] += ds * p->qkv[at + c];
        }
      }
  free(d_row);
}

/* The library's side: planned once, as a program that calls it again and again does. */
typedef struct planned {
  int64_t shape[4], rows[3], packed[4], plain[4];
  attend_tensor q, k, v, out, lse, d_out, d_q, d_k, d_v;
  attend_args args;
  attend_plan *plan;
  void *workspace;
  size_t bytes;
} planned;

static void must(attend_status status) {
  if (!status) return;
  fprintf(stderr, "%s\n", attend_error_message());
  exit(1);
}

static void plan_efficient(planned *x, const problem *p, bool backward, int threads) {
  const int64_t shape[] = {p->b, p->h, p->n, p->d}, width = (int64_t)p->h * p->d;
  const int64_t packed[] = {p->n * 3 * width, p->d, 3 * width, 1}, plain[] = {p->n * width, p->d, width, 1};
  memcpy(x->shape, shape, sizeof shape);
  memcpy(x->rows, shape, sizeof x->rows);
  memcpy(x->packed, packed, sizeof packed);
  memcpy(x->plain, plain, sizeof plain);
  x->q = attend_tensor_strided(p->qkv, ATTEND_F32, 4, x->shape, x->packed);
  x->k = attend_tensor_strided(p->qkv + width, ATTEND_F32, 4, x->shape, x->packed);
  x->v = attend_tensor_strided(p->qkv + 2 * width, ATTEND_F32, 4, x->shape, x->packed);
  x->d_q = attend_tensor_strided(p->d_qkv, ATTEND_F32, 4, x->shape, x->packed);
  x->d_k = attend_tensor_strided(p->d_qkv + width, ATTEND_F32, 4, x->shape, x->packed);
  x->d_v = attend_tensor_strided(p->d_qkv + 2 * width, ATTEND_F32, 4, x->shape, x->packed);
  x->out = attend_tensor_strided(p->out, ATTEND_F32, 4, x->shape, x->plain);
  x->d_out = attend_tensor_strided(p->d_out, ATTEND_F32, 4, x->shape, x->plain);
  x->lse = attend_tensor_of(p->lse, ATTEND_F32, 3, x->rows);
  x->args = (attend_args){.q = &x->q, .k = &x->k, .v = &x->v, .out = &x->out, .lse = &x->lse};
  if (backward) x->args.d_out = &x->d_out, x->args.d_q = &x->d_q, x->args.d_k = &x->d_k, x->args.d_v = &x->d_v;
  attend_options options = {.flags = ATTEND_CAUSAL, .backends = ATTEND_BACKEND_EFFICIENT, .threads = threads};
  must(attend_plan_create(backward ? ATTEND_BACKWARD : ATTEND_FORWARD, &x->args, &options, &x->plan));
  x->bytes = attend_plan_workspace_bytes(x->plan);
  x->workspace = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT,
                               (x->bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT);
  if (!x->workspace) exit(1);
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pause_between(void) { nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL); }

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

enum { TURNS = 15 };

static int slower;

static void compare(int b, int h, int n, int d, int threads) {
  problem p = {b, h, n, d, NULL, NULL, NULL, NULL, NULL, NULL};
  size_t rows = (size_t)b * n * h, elements = rows * d;
  float **arrays[] = {&p.qkv, &p.out, &p.att, &p.d_qkv, &p.d_out, &p.lse};
  size_t counts[] = {3 * elements, elements, rows * n, 3 * elements, elements, rows};
  for (int i = 0; i < 6; i++) {
    if (!(*arrays[i] = malloc(counts[i] * sizeof(float) + 1))) exit(1);
    for (size_t x = 0; x < counts[i]; x++) (*arrays[i])[x] = (float)((x * 2654435761u >> 16) % 1000) / 500 - 1;
  }
  omp_set_num_threads(threads);
  for (int backward = 0; backward < 2; backward++) {
    planned x;
    plan_efficient(&x, &p, backward, threads);
    double loops[TURNS], ours[TURNS];
    const int calls =
        rows * n * d < 1000000 ? (int)(1000000 / (rows * n * d)) : 1; /* a turn takes long enough to time */
    for (int turn = -1; turn < TURNS; turn++) {
      pause_between();
      double start = seconds();
      for (int c = 0; c < calls; c++) (backward ? loops_backward : loops_forward)(&p);
      double between = seconds();
      pause_between();
      double again = seconds();
      for (int c = 0; c < calls; c++)
        must((backward ? attend_backward : attend_forward)(x.plan, &x.args, x.workspace, x.bytes, NULL));
      if (turn >= 0) loops[turn] = (between - start) / calls, ours[turn] = (seconds() - again) / calls;
    }
    qsort(loops, TURNS, sizeof *loops, by_value);
    qsort(ours, TURNS, sizeof *ours, by_value);
    double ratio = loops[TURNS / 2] / ours[TURNS / 2];
    printf("%4d,%2d,%4d,%3d  %-8s  %7d  %10.3g  %11.3g  %6.2f\n", b, h, n, d, backward ? "backward" : "forward",
           threads, loops[TURNS / 2], ours[TURNS / 2], ratio);
    fflush(stdout);
    slower += ratio < 1;
    attend_plan_destroy(x.plan);
    free(x.workspace);
  }
  for (int i = 0; i < 6; i++) free(*arrays[i]);
}

int main(int count, char **cases) {
  static const int shapes[][4] = {{1, 1, 1, 64},     {1, 1, 5, 64},    {1, 1, 64, 64},    {4, 3, 33, 7},
                                  {2048, 8, 1, 64},  {512, 8, 5, 64},  {512, 8, 8, 32},   {256, 8, 16, 64},
                                  {128, 8, 32, 128}, {64, 8, 33, 64},  {64, 8, 64, 64},   {16, 8, 128, 96},
                                  {8, 8, 256, 64},   {1, 8, 1024, 64}, {1, 8, 1024, 128}, {1, 12, 2048, 64}};
  printf("   B, H,   N,  D  direction  threads     loops/s  efficient/s  loops / efficient\n");
  for (int i = 1; i < count; i++) {
    int b, h, n, d, threads;
    if (sscanf(cases[i], "%d,%d,%d,%d,%d", &b, &h, &n, &d, &threads) != 5) {
      fprintf(stderr, "%s: expected B,H,N,D,threads\n", cases[i]);
      return 2;
    }
    compare(b, h, n, d, threads);
  }
  for (int threads = 1; count == 1 && threads <= 2; threads++)
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
      compare(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], threads);
  printf("slower than the loops: %d\n", slower);
  return 0;
}
