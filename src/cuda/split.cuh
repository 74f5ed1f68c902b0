/* SPDX-License-Identifier: MIT */
/* Tile words of the f32 kernels: products on tensor cores of numbers split in two.
 *
 * A number of 24 bits is a sum of two that TF32 holds, x = high + low to 2^-23 of x, and x y = high high + high low +
 * low high to about that: three products, where a product of TF32 is worth eight or sixteen multiply-adds (Ootomo &
 * Yokota 2022). Tensor cores cut off what their sums cannot hold, instead of rounding it; so a sum is made of products
 * of at most 64 terms, which ordinary additions put together, and what high and low give is kept apart until then.
 *
 * Tiles are rows of 64 or 128 columns in shared memory, in words of four, of which word w of row r lies where
 * split_word says: lanes that read along rows (dots) and those that read across them (products with weights) both find
 * their words in different banks. Either order of the k index of a product is as good if both operands have it, so a
 * lane takes whole words: in dots, columns 4t .. 4t+3 of 16 for its k = t, t + 4 of two products; of weights, which
 * are accumulators of dots, columns 2t and 2t + 1 as they are. */
#ifndef ATTEND_CUDA_SPLIT_CUH
#define ATTEND_CUDA_SPLIT_CUH

#include "gradient_scores.cuh"
#include "split.h"

/* What an entry point fixes: columns, warps, rows of a stage, whether all options are there, and whether hidden
 * elements that are NaN or Inf are kept apart. */
struct split_kind {
  int columns, warps, rows;
  bool general, careful;
};

struct alignas(16) split_four {
  float at[4];
};
WORD split_four split_load(const float *p) { return *(const split_four *)(const void *)p; }
WORD void split_store(float *p, split_four x) { *(split_four *)(void *)p = x; }

WORD int split_word(int row, int word, const int columns) {
  return row * columns + 4 * (word ^ (row & 6) ^ (row & 1) << 2);
}

/* Start copying `rows` rows from `first` on; what is beyond `end` or `width` becomes 0. By all threads of the block. */
WORD void split_copy(float *tile, const int rows, const attend_matrix &m, int64_t first, int64_t end, int64_t width,
                     const split_kind kind) {
  const int columns = kind.columns, words = columns / 4, step = 32 * kind.warps / words;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  const char *from = m.data + 4 * ((first + row) * m.row + 4 * word);
  int64_t left = end - first;
  UNROLLED
  for (int n = 0; n < rows / step; n++, row += step, from += 4 * step * m.row)
    word_copy_async(tile + split_word(row, word, columns), from, row < left && 4 * word < width);
}

/* ---- Numbers split in two ---------------------------------------------------------------------------------------- */

/* The products ignore the last 13 bits. Rounding to the other 11 makes `low` half as great, which then loses one bit of
 * its twelve; cut off, x would lose up to three, all downwards. Inf and NaN make `low` NaN. */
WORD void split_of(float x, uint32_t &high, uint32_t &low) {
  high = (word_bits_from_f32(x) + 0x1000) & 0xFFFFE000;
  low = word_bits_from_f32(x - word_f32_from_bits(high));
}

/* Operand A [16,8] or B [8,8]. */
struct split_a {
  uint32_t high[4], low[4];
};
WORD split_a split_a_of(float a0, float a1, float a2, float a3) {
  split_a a;
  split_of(a0, a.high[0], a.low[0]), split_of(a1, a.high[1], a.low[1]);
  split_of(a2, a.high[2], a.low[2]), split_of(a3, a.high[3], a.low[3]);
  return a;
}
WORD void split_multiply(float high[4], float low[4], const split_a &a, float b0, float b1) {
  uint32_t high0, low0, high1, low1;
  split_of(b0, high0, low0), split_of(b1, high1, low1);
  word_mma_tf32(low, a.low, high0, high1);
  word_mma_tf32(low, a.high, low0, low1);
  word_mma_tf32(high, a.high, high0, high1);
}

/* ---- Products ---------------------------------------------------------------------------------------------------- */

enum { SPLIT_COUNT = 8 /* accumulators of 16 x 8, at most */ };

/* c = rows row .. row + 15 of `own` x the first 8 `count` of `staged`. */
WORD void split_dots(float c[SPLIT_COUNT][4], const int count, const float *own, int row, const float *staged,
                     const int columns) {
  float low[SPLIT_COUNT][4] = {};
  UNROLLED
  for (int chunk = 0; chunk < columns / 64; chunk++) {
    float high[SPLIT_COUNT][4] = {};
    UNROLLED
    for (int x = 4 * chunk; x < 4 * chunk + 4; x++) {
      int word = 4 * x + lane_column();
      split_four top = split_load(own + split_word(row + lane_row(), word, columns));
      split_four bottom = split_load(own + split_word(row + 8 + lane_row(), word, columns));
      split_a first = split_a_of(top.at[0], bottom.at[0], top.at[1], bottom.at[1]);
      split_a second = split_a_of(top.at[2], bottom.at[2], top.at[3], bottom.at[3]);
      UNROLLED
      for (int n = 0; n < count; n++) {
        split_four b = split_load(staged + split_word(8 * n + lane_row(), word, columns));
        split_multiply(high[n], low[n], first, b.at[0], b.at[1]);
        split_multiply(high[n], low[n], second, b.at[2], b.at[3]);
      }
    }
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) c[n][e] = chunk ? c[n][e] + high[n][e] : high[n][e];
  }
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) c[n][e] += low[n][e];
}

/* Sums of 16 rows: [column / 32][column % 4][row g, columns 8t + .., 8t + 4 + ..; row g + 8, the same]. */
struct split_sum {
  float at[4][4][4];
};

/* sum = sum x factor of the row + weights x the first 8 `count` staged rows. (Rejected: one accumulator where sums are
 * of 16 terms; the products then wait for each other, and backward of wide heads takes 6% longer.) */
WORD void split_product(split_sum &sum, const float factor[2], const float weights[SPLIT_COUNT][4], const int count,
                        const float *staged, const int columns) {
  UNROLLED
  for (int y = 0; y < columns / 32; y++) {
    float high[4][4] = {}, low[4][4] = {};
    UNROLLED
    for (int n = 0; n < count; n++) {
      split_a a = split_a_of(weights[n][0], weights[n][2], weights[n][1], weights[n][3]);
      int row = 8 * n + 2 * lane_column(), word = 8 * y + lane_row();
      split_four b0 = split_load(staged + split_word(row, word, columns));
      split_four b1 = split_load(staged + split_word(row + 1, word, columns));
      UNROLLED
      for (int j = 0; j < 4; j++) split_multiply(high[j], low[j], a, b0.at[j], b1.at[j]);
    }
    UNROLLED
    for (int j = 0; j < 4; j++) UNROLLED
    for (int e = 0; e < 4; e++)
      sum.at[y][j][e] = word_multiply_add(sum.at[y][j][e], factor[e / 2], high[j][e] + low[j][e]);
  }
}

/* The same by ordinary multiply-adds, where hidden pairs may hold NaN or Inf: they are left out. `seen`: bit 4n + e
 * says whether the pair of weights[n][e] see each other. */
WORD void split_dots_careful(float c[SPLIT_COUNT][4], const int count, const float *own, int row, const float *staged,
                             const int columns) {
  UNROLLED_BY_1
  for (int at = 0; at < 4 * count; at++) {
    int r = row + lane_row() + 8 * (at / 2 % 2), s = 8 * (at / 4) + 2 * lane_column() + at % 2;
    float sum = 0;
    UNROLLED_BY_1
    for (int word = 0; word < columns / 4; word++) {
      split_four a = split_load(own + split_word(r, word, columns));
      split_four b = split_load(staged + split_word(s, word, columns));
      for (int e = 0; e < 4; e++) sum = word_multiply_add(a.at[e], b.at[e], sum);
    }
    c[at / 4][at % 4] = sum;
  }
}
WORD void split_product_careful(split_sum &sum, const float factor[2], const float weights[SPLIT_COUNT][4],
                                uint32_t seen, const int count, const float *staged, const int columns) {
  for (int y = 0; y < columns / 32; y++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) sum.at[y][j][e] *= factor[e / 2];
  UNROLLED_BY_1
  for (int inner = 0; inner < 8 * count; inner++) {
    int from = (int)(threadIdx.x & 28) + inner / 2 % 4, n = inner / 8, e = inner % 2;
    uint32_t sees = word_shuffle(seen, from) >> (4 * n + e);
    float top = word_f32_from_bits(word_shuffle(word_bits_from_f32(weights[n][e]), from));
    float bottom = word_f32_from_bits(word_shuffle(word_bits_from_f32(weights[n][2 + e]), from));
    UNROLLED_BY_1
    for (int word = 0; word < columns / 16; word++) {
      int y = word / 2, h = word % 2;
      split_four b = split_load(staged + split_word(inner, 8 * y + 2 * lane_column() + h, columns));
      for (int j = 0; j < 4; j++) {
        if (sees & 1) sum.at[y][j][h] = word_multiply_add(top, b.at[j], sum.at[y][j][h]);
        if (sees & 4) sum.at[y][j][2 + h] = word_multiply_add(bottom, b.at[j], sum.at[y][j][2 + h]);
      }
    }
  }
}

WORD void split_clear(split_sum &sum, const int columns) {
  UNROLLED
  for (int y = 0; y < columns / 32; y++) UNROLLED
  for (int j = 0; j < 4; j++) UNROLLED
  for (int e = 0; e < 4; e++) sum.at[y][j][e] = 0;
}
/* NaN if any is NaN or Inf. */
WORD float split_spoilt(const split_sum &sum, const int columns) {
  float all = 0;
  UNROLLED
  for (int y = 0; y < columns / 32; y++) UNROLLED
  for (int j = 0; j < 4; j++) UNROLLED
  for (int e = 0; e < 4; e++) all += sum.at[y][j][e] * 0;
  return all;
}

/* Rows from `first` on of a result, times a factor of the row; or added to what is there. */
WORD void split_put(const attend_matrix &to, const split_sum &sum, const float factor[2], int64_t first, int64_t end,
                    int64_t width, bool accumulate, const int columns) {
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t row = first + lane_row() + 8 * half;
    if (row >= end) continue;
    UNROLLED
    for (int word = 0; word < columns / 16; word++) {
      int column = 32 * (word / 2) + 8 * lane_column() + 4 * (word % 2);
      if (column >= width) continue;
      float *at = (float *)(void *)to.data + row * to.row + column;
      split_four x = {{0, 0, 0, 0}};
      if (accumulate) x = split_load(at);
      UNROLLED
      for (int j = 0; j < 4; j++) x.at[j] += sum.at[word / 2][j][2 * half + word % 2] * factor[half];
      split_store(at, x);
    }
  }
}

/* ---- Memory of a block ------------------------------------------------------------------------------------------- */

struct split_memory {
  float *own[2], *stages, *values; /* values: [stage][lse, delta][row of the stage] */
  uint32_t *bits;                  /* [stage][mask, kept] */
};
WORD split_memory split_memory_of(char *memory, const int matrices, const split_kind kind) {
  split_memory m;
  m.own[0] = (float *)(void *)memory, m.own[1] = m.own[0] + 16 * kind.warps * kind.columns;
  m.stages = m.own[0] + matrices * 16 * kind.warps * kind.columns;
  m.values = m.stages + 4 * kind.rows * kind.columns;
  m.bits = (uint32_t *)(void *)(m.values + 4 * SPLIT_VALUES);
  return m;
}
WORD float *split_stage(const split_memory &m, int stage, const int which, const split_kind kind) {
  return m.stages + (2 * stage + which) * kind.rows * kind.columns;
}
WORD gradient_bits split_bits(const split_memory &m, int stage) {
  gradient_bits bits = {m.bits + 2 * SPLIT_WORDS * stage, m.bits + 2 * SPLIT_WORDS * stage + SPLIT_WORDS};
  return bits;
}

/* Does no row of a warp see any of the columns at .. at + rows - 1? */
WORD bool split_blind(const gradient_window &w, int at, const int rows) {
  return at + rows - 1 < w.least || at - 15 > w.most || w.rows <= 0 || at >= w.columns;
}

#endif
