/* SPDX-License-Identifier: MIT */
/* Tiles of backward through the asynchronous products of sm_90: their way into shared memory, their products, and what
 * scores become without options. Included once for each element type. */
#ifndef ATTEND_CUDA_ASYNC_TILE_CUH
#define ATTEND_CUDA_ASYNC_TILE_CUH

#include "tile_backward.cuh"
#include "tile_backward_sm90.h"

/* Which options an entry point has: none; mask, dropout, ALiBi and a bias whose tiles can be copied to shared memory;
 * all. (With all of them in one loop, what a call does not use still costs: registers, branches, and jumps over more
 * instructions than are near at hand.) */
typedef enum async_options { ASYNC_PLAIN, ASYNC_COMMON, ASYNC_ALL } async_options;

/* What an entry point fixes: groups of a block, panels of 64 columns (1, 2), and options. */
struct async_kind {
  int groups, panels;
  async_options options;
};

/* ---- Tiles in shared memory ------------------------------------------------------------------------------------- */

/* Where a thread reads of one matrix, and where it writes of its tile: from row tid / words on. */
struct async_stream {
  const char *at;
  int64_t row_bytes;
  bool exists;
};

WORD async_stream async_stream_of(const attend_matrix &m, int first, int columns, const int panels) {
  const int words = 8 * panels;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  async_stream s = {m.data + 2 * ((first + row) * m.row + 8 * word), 2 * m.row, 8 * word < columns};
  return s;
}

/* Start copying `rows` rows, of which `left` exist; the others become 0. */
WORD void async_copy(char *tile, const int rows, const async_stream &s, int left, const int panels, const int groups) {
  const int words = 8 * panels, every = 128 * groups / words;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  char *to = tile + (word >> 3) * rows * 128 + row * 128 + (((word ^ row) & 7) << 4);
  UNROLLED
  for (int n = 0; n < rows / every; n++)
    word_copy_async(to + n * every * 128, s.at + n * every * s.row_bytes, s.exists && row + n * every < left);
}

/* c = 64 rows of `own`, of `rows`, x the staged rows. */
WORD void async_dots(float c[8][4], const char *own, const int rows, const char *stage, const int panels) {
  UNROLLED
  for (int x = 0; x < 4 * panels; x++) {
    word_tile a = word_tile_at(own + (x >> 2) * rows * 128 + 32 * (x & 3), 0);
    word_tile b = word_tile_at(stage + (x >> 2) * ASYNC_STEP * 128 + 32 * (x & 3), 0);
    if (ELEMENT == TYPE_BF16)
      word_dots_bf16_64(c, a, b, x);
    else
      word_dots_f16_64(c, a, b, x);
  }
  word_products_commit();
}

/* sum += A x the staged rows. */
WORD void async_product(float sum[16][4], const uint32_t a[4][4], const char *stage, const int panels) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < ASYNC_STEP / 16; x++) {
    word_tile b = word_tile_at(stage + 2048 * x, 128 * ASYNC_STEP);
    if (ELEMENT == TYPE_BF16)
      panels == 1 ? word_values_bf16_64(sum, a[x], b) : word_values_bf16_128(sum, a[x], b);
    else
      panels == 1 ? word_values_f16_64(sum, a[x], b) : word_values_f16_128(sum, a[x], b);
  }
  word_products_commit();
}

WORD void async_clear(float sum[16][4], const int panels) {
  UNROLLED
  for (int n = 0; n < 8 * panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum[n][e] = 0;
}
WORD void async_done(float c[][4], const int count) {
  UNROLLED
  for (int n = 0; n < count; n++) word_products_done(c[n]);
}
WORD bool async_nan(const float sum[16][4], const int panels) {
  float total = 0;
  UNROLLED
  for (int n = 0; n < 8 * panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) total += sum[n][e] * 0; /* NaN of Inf too: then once more, in vain */
  return total != total;
}

/* ---- Scores ------------------------------------------------------------------------------------------------------ */

/* c: dot products of 16 rows and the staged columns; they become P. `lse`: of columns, or of rows g and g + 8. */
WORD void async_probs(float c[8][4], const float *lse, const bool full, const gradient_window &w, float unit,
                      const bool owns_keys) {
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    int r = lane_row() + 8 * (e >> 1), col = 8 * n + 2 * lane_column() + (e & 1);
    float value = owns_keys ? lse[col] : lse[e >> 1];
    float x = word_exp2(word_multiply_add(c[n][e], unit, -value));
    if (!full) x = col - r >= w.least && col - r <= w.most && r < w.rows && col < w.columns && value != NO_LSE ? x : 0;
    c[n][e] = x;
  }
}

/* d: products of dO and V; they become dS. A pair that may not meet has c = 0: what is NaN then comes out. */
WORD void async_d_scores(float d[8][4], const float c[8][4], const float *delta, const bool owns_keys) {
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++)
    d[n][e] = c[n][e] * (d[n][e] - delta[owns_keys ? 8 * n + 2 * lane_column() + (e & 1) : e >> 1]);
}

WORD void async_operand(uint32_t a[4][4], const float c[8][4]) {
  UNROLLED
  for (int x = 0; x < 4; x++) UNROLLED
  for (int r = 0; r < 4; r++) a[x][r] = pack(c[2 * x + r / 2][r % 2 * 2], c[2 * x + r / 2][r % 2 * 2 + 1]);
}

#endif
