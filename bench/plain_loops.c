/* SPDX-License-Identifier: MIT */
/* The efficient back-end beside the loops that a C program writes when it has no library: one query after another, a
 * dot product a key, softmax, one addition a key, as llm.c's attention_forward and attention_backward do (causal, f32,
 * [B,N,3,H,D] memory, probabilities kept for backward; threads over batch, heads and queries). Compiled as that project
 * compiles, with -Ofast -march=native -fopenmp. Prints the ratio of times, both taken by turns in one run.
 *
 *   make && make -C bench plain */
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

static void efficient(const problem *p, bool backward, int threads) {
  int64_t shape[] = {p->b, p->h, p->n, p->d}, rows[] = {p->b, p->h, p->n};
  int64_t packed[] = {(int64_t)p->n * 3 * p->h * p->d, p->d, (int64_t)3 * p->h * p->d, 1};
  int64_t plain[] = {(int64_t)p->n * p->h * p->d, p->d, (int64_t)p->h * p->d, 1};
  int64_t part = (int64_t)p->h * p->d;
  attend_tensor q = attend_tensor_strided(p->qkv, ATTEND_F32, 4, shape, packed);
  attend_tensor k = attend_tensor_strided(p->qkv + part, ATTEND_F32, 4, shape, packed);
  attend_tensor v = attend_tensor_strided(p->qkv + 2 * part, ATTEND_F32, 4, shape, packed);
  attend_tensor d_q = attend_tensor_strided(p->d_qkv, ATTEND_F32, 4, shape, packed);
  attend_tensor d_k = attend_tensor_strided(p->d_qkv + part, ATTEND_F32, 4, shape, packed);
  attend_tensor d_v = attend_tensor_strided(p->d_qkv + 2 * part, ATTEND_F32, 4, shape, packed);
  attend_tensor out = attend_tensor_strided(p->out, ATTEND_F32, 4, shape, plain);
  attend_tensor d_out = attend_tensor_strided(p->d_out, ATTEND_F32, 4, shape, plain);
  attend_tensor lse = attend_tensor_of(p->lse, ATTEND_F32, 3, rows);
  attend_args args = {.q = &q, .k = &k, .v = &v, .out = &out, .lse = &lse};
  if (backward) args.d_out = &d_out, args.d_q = &d_q, args.d_k = &d_k, args.d_v = &d_v;
  attend_options options = {.flags = ATTEND_CAUSAL, .backends = ATTEND_BACKEND_EFFICIENT, .threads = threads};
  if ((backward ? attend_backward_once : attend_forward_once)(&args, &options)) {
    fprintf(stderr, "%s\n", attend_error_message());
    exit(1);
  }
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

enum { TURNS = 15 };

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
    double loops[TURNS], ours[TURNS];
    for (int turn = -1; turn < TURNS; turn++) {
      double start = seconds();
      if (backward)
        loops_backward(&p);
      else
        loops_forward(&p);
      double middle = seconds();
      efficient(&p, backward, threads);
      if (turn >= 0) loops[turn] = middle - start, ours[turn] = seconds() - middle;
    }
    qsort(loops, TURNS, sizeof *loops, by_value);
    qsort(ours, TURNS, sizeof *ours, by_value);
    printf("%4d,%2d,%4d,%3d  %-8s  %7d  %10.3g  %10.3g  %6.2f\n", b, h, n, d, backward ? "backward" : "forward",
           threads, loops[TURNS / 2], ours[TURNS / 2], loops[TURNS / 2] / ours[TURNS / 2]);
    fflush(stdout);
  }
  for (int i = 0; i < 6; i++) free(*arrays[i]);
}

int main(void) {
  static const int shapes[][4] = {{512, 8, 5, 64},  {256, 8, 16, 64},  {64, 8, 64, 64},   {8, 8, 256, 64},
                                  {1, 8, 1024, 64}, {1, 8, 1024, 128}, {1, 12, 2048, 64}, {4, 3, 33, 7}};
  printf("B,H,N,D            direction  threads  loops/s     efficient/s  loops / efficient\n");
  for (int threads = 1; threads <= 2; threads++)
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
      compare(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], threads);
  return 0;
}
