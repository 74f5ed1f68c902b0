/* SPDX-License-Identifier: MIT */
/* What each option costs over plain attention: time per visible pair and dimension with the option, over the time
 * without, one thread, both taken by turns in one process. 1.00 is free. Bias gradients are those of backward.
 *
 *   make && make -C bench options        prints a table in Markdown */
#include "attend.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { B = 2, H = 8, N = 1024, D = 64, PAGE = 16, WINDOW = 128, TURNS = 9 };

typedef struct call {
  attend_args args;
  attend_options options;
  attend_tensor tensor[24];
  int64_t shape[24][4], strides[24][4];
  int tensors;
  double work; /* visible pairs times dimensions of q and v */
  attend_plan *plan[2];
  void *workspace[2];
} call;

static void *memory(size_t bytes) {
  void *p =
      aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, (bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT);
  if (!p) exit(1);
  return p;
}

static void must(attend_status status) {
  if (!status) return;
  fprintf(stderr, "%s\n", attend_error_message());
  exit(1);
}

/* A tensor of random numbers around 0; [B,N,H,D] memory under the shape [B,H,N,D] with `bnhd`. */
static const attend_tensor *make(call *c, attend_dtype dtype, int rank, int64_t a, int64_t b, int64_t n, int64_t d,
                                 bool bnhd) {
  int64_t *shape = c->shape[c->tensors], *strides = c->strides[c->tensors], sizes[] = {a, b, n, d}, count = 1;
  for (int i = 0; i < rank; i++) count *= shape[i] = sizes[i];
  char *data = memory((size_t)count * 4);
  for (int64_t i = 0; i < count; i++) {
    uint32_t random = (uint32_t)(i * 2654435761u) >> 8;
    if (dtype.code == ATTEND_BOOL.code)
      data[i] = random % 8 != 0;
    else if (dtype.bits == 16)
      ((uint16_t *)(void *)data)[i] = (uint16_t)(0x3F00 | (random & 0x80FF)); /* of either sign, 0.5 to 2 */
    else
      ((float *)(void *)data)[i] = (float)(random % 2001) / 1000 - 1;
  }
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; i--) strides[i] = step, step *= shape[i];
  if (bnhd) strides[0] = n * b * d, strides[1] = d, strides[2] = b * d;
  c->tensor[c->tensors] = attend_tensor_strided(data, dtype, rank, shape, strides);
  return &c->tensor[c->tensors++];
}

typedef enum option {
  PLAIN,
  CAUSAL,
  WINDOWED,
  PADDING,
  MASK,
  BIAS,
  BIAS_GRADIENT,
  ALIBI,
  SOFTCAP,
  SINK,
  DROPOUT,
  KV_LEN,
  GROUPED,
  ONE_HEAD,
  NARROW_V,
  ODD_DIM,
  BNHD,
  RAGGED,
  PAGED,
  OPTIONS
} option;
static const char *const names[OPTIONS] = {"plain",
                                           "causal",
                                           "window of 128 before",
                                           "key padding mask",
                                           "mask [B,H,N,N]",
                                           "bias [1,H,N,N]",
                                           "bias and its gradient",
                                           "ALiBi",
                                           "softcap",
                                           "sink",
                                           "dropout",
                                           "kv_len",
                                           "8 heads on 2",
                                           "8 heads on 1, rank 3",
                                           "Dv = 32",
                                           "D = Dv = 50",
                                           "[B,N,H,D] memory",
                                           "ragged",
                                           "paged, 16 keys a page"};

static void *indices(call *c, int64_t rows, int64_t columns, int64_t step, int rank) {
  int32_t *data = memory((size_t)(rows * columns) * 4);
  for (int64_t i = 0; i < rows * columns; i++) data[i] = (int32_t)(i * step);
  c->shape[c->tensors][0] = rows, c->shape[c->tensors][1] = columns;
  if (rank == 1) c->shape[c->tensors][0] = rows * columns;
  c->tensor[c->tensors] = attend_tensor_of(data, ATTEND_I32, rank, c->shape[c->tensors]);
  return &c->tensor[c->tensors++];
}

static void prepare(call *c, option o, attend_dtype dtype) {
  const int64_t d = o == ODD_DIM ? 50 : D, dv = o == NARROW_V ? 32 : d, kv = o == GROUPED ? 2 : H;
  const bool bnhd = o == BNHD;
  attend_args *a = &c->args;
  attend_options *p = &c->options;
  p->threads = 1;
  c->work = (double)B * H * N * N * (double)(d + dv);
  const attend_tensor **slots[] = {&a->q, &a->k, &a->v, &a->out, &a->d_out, &a->d_q, &a->d_k, &a->d_v};
  for (int i = 0; i < 8; i++) {
    bool key = i == 1 || i == 2 || i == 6 || i == 7;
    int64_t width = i == 2 || i == 3 || i == 4 || i == 7 ? dv : d;
    if (o == RAGGED)
      *slots[i] = make(c, dtype, 3, B * N, H, width, 0, false);
    else if (o == ONE_HEAD && key)
      *slots[i] = make(c, dtype, 3, B, N, width, 0, false);
    else if (o == PAGED && key)
      *slots[i] = make(c, dtype, 4, B * N / PAGE, H, PAGE, width, false);
    else
      *slots[i] = make(c, dtype, 4, B, key ? kv : H, N, width, bnhd);
  }
  a->lse = o == RAGGED ? make(c, ATTEND_F32, 2, H, B * N, 0, 0, false) : make(c, ATTEND_F32, 3, B, H, N, 0, false);
  if (o == CAUSAL) p->flags |= ATTEND_CAUSAL, c->work *= (N + 1) / 2.0 / N;
  if (o == WINDOWED) {
    p->flags |= ATTEND_WINDOW, p->window_left = WINDOW - 1, p->window_right = 0;
    c->work *= (WINDOW * (N - WINDOW) + WINDOW * (WINDOW + 1) / 2.0) / ((double)N * N);
  }
  if (o == PADDING) a->mask = make(c, ATTEND_BOOL, 2, B, N, 0, 0, false);
  if (o == MASK) a->mask = make(c, ATTEND_BOOL, 4, B, H, N, N, false);
  if (o == BIAS || o == BIAS_GRADIENT) a->bias = make(c, ATTEND_F32, 4, 1, H, N, N, false);
  if (o == BIAS_GRADIENT) a->d_bias = make(c, ATTEND_F32, 4, 1, H, N, N, false);
  if (o == ALIBI) a->alibi_slopes = make(c, ATTEND_F32, 1, H, 0, 0, 0, false);
  if (o == SOFTCAP) p->softcap = 20;
  if (o == SINK) a->sink = make(c, ATTEND_F32, 1, H, 0, 0, 0, false);
  if (o == DROPOUT) p->dropout = 0.1;
  if (o == RAGGED) a->q_offsets = a->k_offsets = indices(c, B + 1, 1, N, 1), p->max_q_len = p->max_k_len = N;
  if (o == PAGED) a->block_table = indices(c, B, N / PAGE, 1, 2);
  if (o == PAGED || o == KV_LEN) {
    int32_t *length = memory(B * sizeof *length);
    for (int b = 0; b < B; b++) length[b] = N;
    c->shape[c->tensors][0] = B;
    c->tensor[c->tensors] = attend_tensor_of(length, ATTEND_I32, 1, c->shape[c->tensors]);
    a->kv_len = &c->tensor[c->tensors++];
  }
  for (attend_direction way = ATTEND_FORWARD; way <= ATTEND_BACKWARD; way++) {
    if (o == PAGED && way == ATTEND_BACKWARD) continue;
    must(attend_plan_create(way, a, p, &c->plan[way]));
    c->workspace[way] = memory(attend_plan_workspace_bytes(c->plan[way]));
  }
}

static double seconds(const call *c, attend_direction way) {
  struct timespec before, after;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
  size_t bytes = attend_plan_workspace_bytes(c->plan[way]);
  must((way == ATTEND_FORWARD ? attend_forward : attend_backward)(c->plan[way], &c->args, c->workspace[way], bytes,
                                                                  NULL));
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
  return (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(void) {
  static call calls[2][OPTIONS];
  const attend_dtype types[] = {ATTEND_F32, ATTEND_BF16};
  printf("| option | f32 forward | backward | bf16 forward | backward |\n|---|---|---|---|---|\n");
  for (int t = 0; t < 2; t++) prepare(&calls[t][PLAIN], PLAIN, types[t]);
  for (option o = CAUSAL; o < OPTIONS; o++) {
    printf("| %s |", names[o]);
    for (int t = 0; t < 2; t++) {
      call *plain = &calls[t][PLAIN], *c = &calls[t][o];
      prepare(c, o, types[t]);
      for (attend_direction way = ATTEND_FORWARD; way <= ATTEND_BACKWARD; way++) {
        double ratio[TURNS];
        for (int turn = -1; turn < TURNS && c->plan[way]; turn++) {
          double without = seconds(plain, way), with = seconds(c, way);
          if (turn >= 0) ratio[turn] = with / c->work / (without / plain->work);
        }
        qsort(ratio, TURNS, sizeof *ratio, by_value);
        if (c->plan[way])
          printf(" %.2f |", ratio[TURNS / 2]);
        else
          printf(" |");
        fflush(stdout);
        attend_plan_destroy(c->plan[way]);
        free(c->workspace[way]);
      }
      for (int i = 0; i < c->tensors; i++) free(c->tensor[i].data);
    }
    printf("\n");
  }
  return 0;
}
