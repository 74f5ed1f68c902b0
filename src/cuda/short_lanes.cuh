/* SPDX-License-Identifier: MIT */
/* Short sequences (at most 32 queries and keys) in f32, on ordinary multiply-adds, since tensor cores would round.
 *
 * A warp owns one (sequence, head), in its part of shared memory. Lane 8y + x owns rows y + 4r of every product, of a
 * product of rows with rows columns x + 8c, of one of weights with rows columns 4x .. 4x + 3 and 32 more. Rows are
 * padded, so that neither reads of 16 bytes from 8 rows nor transposed writes of weights meet in a bank. Heads wider
 * than 64 columns pass in chunks of 64. */
#ifndef ATTEND_CUDA_SHORT_LANES_CUH
#define ATTEND_CUDA_SHORT_LANES_CUH

#include "pair.cuh"
#include "short.h"
#include "short_slice.cuh"

/* What an entry point fixes: rows of a tile (8, 16, 24, 32), and whether all options are there. `lower`: no query sees
 * keys beyond its own number, so blocks above the diagonal are left out. */
struct lanes_kind {
  int rows;
  bool general, lower;
};

struct alignas(16) lanes_four {
  float at[4];
};
WORD lanes_four lanes_read(const float *p) { return *(const lanes_four *)(const void *)p; }

WORD int lanes_x(void) { return (int)(threadIdx.x & 7); }
WORD int lanes_y(void) { return (int)(threadIdx.x >> 3 & 3); }

/* A weight of a pair that may not see each other: adds nothing, and a careful product knows it. Others are never -0. */
WORD float lanes_hidden(void) { return word_f32_from_bits(0x80000000u); }
WORD bool lanes_is_hidden(float x) { return word_bits_from_f32(x) == 0x80000000u; }

/* Sum and maximum over a row of a product of rows with rows. */
WORD float lanes_sum(float x) {
  UNROLLED
  for (int lanes = 1; lanes < 8; lanes *= 2) x += word_shuffle_xor_f32(x, lanes);
  return x;
}
WORD float lanes_max(float x) {
  UNROLLED
  for (int lanes = 1; lanes < 8; lanes *= 2) x = word_max(x, word_shuffle_xor_f32(x, lanes));
  return x;
}

/* Ask for a chunk of 64 columns of `count` rows; zeros beyond the matrix. */
WORD void lanes_ask(float *to, const attend_matrix &m, int64_t count, int chunk, int columns, const lanes_kind kind) {
  int row = (int)(threadIdx.x >> 4 & 1), column = 4 * (int)(threadIdx.x & 15);
  const char *from = m.data + 4 * (row * m.row + 64 * chunk + column);
  int left = 64 * chunk + column < columns ? (int)count : 0;
  UNROLLED
  for (int n = 0; n < kind.rows; n += 2)
    word_copy_async(to + (row + n) * SHORT_LANES_STRIDE + column, from + 4 * n * m.row, row + n < left);
}
/* All that this warp asked for is here. */
WORD void lanes_wait(void) {
  word_copy_commit();
  word_copy_wait(0);
  word_sync_warp();
}

/* product[r][c] += <row y + 4r of a, row x + 8c of b>. */
WORD void lanes_dots(float product[8][4], const float *a, const float *b, int columns, const lanes_kind kind) {
  a += lanes_y() * SHORT_LANES_STRIDE, b += lanes_x() * SHORT_LANES_STRIDE;
  UNROLLED_BY_2
  for (int k = 0; k < columns; k += 4) {
    lanes_four y[4];
    UNROLLED
    for (int c = 0; c < kind.rows / 8; c++) y[c] = lanes_read(b + 8 * c * SHORT_LANES_STRIDE + k);
    UNROLLED
    for (int r = 0; r < kind.rows / 4; r++) {
      lanes_four x = lanes_read(a + 4 * r * SHORT_LANES_STRIDE + k);
      UNROLLED
      for (int c = 0; c < kind.rows / 8; c++) {
        if (kind.lower && 8 * c > 4 * r + 3) continue;
        UNROLLED
        for (int e = 0; e < 4; e++) product[r][c] += x.at[e] * y[c].at[e];
      }
    }
  }
}

/* Weights w[r][c] of (row y + 4r, column x + 8c), where the product of them, or of their transpose, reads them. */
WORD void lanes_put(float *weights, const float w[8][4], bool transposed, const lanes_kind kind) {
  const int stride = kind.rows + 4;
  word_sync_warp(); /* what lay there has been read */
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) UNROLLED
  for (int c = 0; c < kind.rows / 8; c++) {
    int row = lanes_y() + 4 * r, column = lanes_x() + 8 * c;
    weights[transposed ? column * stride + row : row * stride + column] = w[r][c];
  }
  word_sync_warp();
}

/* sum[r] += for inner rows 4k .. 4k + 3, k in [first, last), weight (row y + 4r, inner row) times this lane's columns
 * of the inner row, for r in [top, bottom). */
WORD void lanes_values_of(float sum[8][8], const float *weights, const float *from, int first, int last, const int top,
                          const int bottom, bool careful, const lanes_kind kind) {
  const int stride = kind.rows + 4;
  weights += lanes_y() * stride, from += 4 * lanes_x();
  UNROLLED_BY_1
  for (int k = 4 * first; k < 4 * last; k += 4) {
    lanes_four b[4][2];
    UNROLLED
    for (int e = 0; e < 4; e++) UNROLLED
    for (int half = 0; half < 2; half++) b[e][half] = lanes_read(from + (k + e) * SHORT_LANES_STRIDE + 32 * half);
    UNROLLED
    for (int r = top; r < bottom; r++) {
      lanes_four w = lanes_read(weights + 4 * r * stride + k);
      UNROLLED
      for (int e = 0; e < 4; e++) {
        if (careful && lanes_is_hidden(w.at[e])) continue;
        UNROLLED
        for (int c = 0; c < 8; c++) sum[r][c] += w.at[e] * b[e][c / 4].at[c % 4];
      }
    }
  }
}

/* sum += weights x the first `count` rows. `upper`: the weights are the transpose of lower ones. */
WORD void lanes_values(float sum[8][8], const float *weights, const float *from, int64_t count, const bool upper,
                       bool careful, const lanes_kind kind) {
  const int all = kind.rows / 4, half = kind.lower ? kind.rows / 8 : 0;
  int last = (int)(count + 3) / 4, middle = last < half ? last : half;
  lanes_values_of(sum, weights, from, 0, middle, 0, upper ? half : all, careful, kind);
  lanes_values_of(sum, weights, from, middle, last, upper ? 0 : half, all, careful, kind);
}

/* As above; where NaN came out, again, without what hidden pairs contribute. */
WORD void lanes_fresh_values(float sum[8][8], const float *weights, const float *from, int64_t count, const bool upper,
                             const lanes_kind kind) {
  lanes_values(sum, weights, from, count, upper, false, kind);
  bool nan = false;
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) UNROLLED
  for (int c = 0; c < 8; c++) nan |= sum[r][c] != sum[r][c];
  if (!word_any(nan)) return;
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) UNROLLED
  for (int c = 0; c < 8; c++) sum[r][c] = 0;
  const lanes_kind whole = {kind.rows, kind.general, false};
  lanes_values(sum, weights, from, count, upper, true, whole);
}

/* The first `count` rows of a product times factor[r], to a chunk of 64 columns. */
WORD void lanes_store(const attend_matrix &m, const float sum[8][8], const float factor[8], int64_t count, int chunk,
                      int columns, bool accumulate, const lanes_kind kind) {
  if (!m.data) return;
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int row = lanes_y() + 4 * r, column = 64 * chunk + 32 * half + 4 * lanes_x();
    if (row >= (int)count || column >= columns) continue;
    float *to = (float *)(void *)m.data + row * m.row + column, x[4];
    UNROLLED
    for (int e = 0; e < 4; e++) {
      x[e] = sum[r][4 * half + e] * factor[r];
      if (accumulate) x[e] += to[e];
    }
    uint4 bits = {word_bits_from_f32(x[0]), word_bits_from_f32(x[1]), word_bits_from_f32(x[2]),
                  word_bits_from_f32(x[3])};
    word_store_once(to, bits);
  }
}

/* The scores of a lane's pairs, then their weights. */
struct lanes_scores {
  float w[8][4], d_capped[8][4]; /* d_capped: general */
  uint32_t seen;                 /* bit 4r + c: the query may see the key */
  float top[8], total[8];        /* of the rows: the largest score, and the sum of the weights */
};

/* From dot products in s.w: weights exp(score - top). */
WORD void lanes_softmax(lanes_scores &x, const attend_problem &p, const attend_slice &s, const lanes_kind kind) {
  x.seen = 0;
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) {
    int i = lanes_y() + 4 * r;
    int64_t first = 0, last = 0;
    if (i < (int)s.q_len) attend_visible_range(&p, &s, i, &first, &last);
    float sink = kind.general ? (float)s.sink : -INFINITY, top = sink, total = 0;
    UNROLLED
    for (int c = 0; c < kind.rows / 8; c++) {
      int j = lanes_x() + 8 * c;
      bool seen = j >= (int)first && j < (int)last;
      if (kind.general) seen = seen && unmasked(p, s, i, j);
      float score = -INFINITY;
      x.d_capped[r][c] = 1;
      if (!kind.general)
        score = seen ? x.w[r][c] * (float)p.scale : -INFINITY;
      else if (seen) {
        pair_score made = score_of(p, s, i, j, x.w[r][c]);
        score = made.biased;
        x.d_capped[r][c] = made.d_capped;
      }
      if (seen) x.seen |= 1u << (4 * r + c);
      x.w[r][c] = score;
      top = word_max(top, score);
    }
    top = lanes_max(top);
    float shift = top == -INFINITY ? 0 : top;
    UNROLLED
    for (int c = 0; c < kind.rows / 8; c++) total += x.w[r][c] = exp_of(x.w[r][c] - shift);
    total = lanes_sum(total);
    if (kind.general) total += exp_of(sink - shift);
    x.top[r] = shift, x.total[r] = total;
  }
}
WORD bool lanes_seen(const lanes_scores &x, int r, int c) { return x.seen >> (4 * r + c) & 1; }

/* Bit c: dropout keeps key x + 8c of row y + 4r. */
WORD uint32_t lanes_kept(const attend_problem &p, const attend_slice &s, int r) {
  uint32_t counter[4] = {(uint32_t)lanes_x() >> 1, 0, (uint32_t)(lanes_y() + 4 * r), 0}, word[4], kept = 0;
  attend_philox(counter, s.dropout_key, word);
  UNROLLED
  for (int c = 0; c < 4; c++)
    if ((lanes_x() & 1 ? word[c] >> 16 : word[c] & 0xFFFF) >= p.dropout_threshold) kept |= 1u << c;
  return kept;
}

#endif
