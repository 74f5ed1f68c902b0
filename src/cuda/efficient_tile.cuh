/* SPDX-License-Identifier: MIT */
/* Tile words of the efficient kernels: the two products, the scores of a tile, elements. Included once for each element
 * type; the includer defines ELEMENT (an attend_type) and `real`, the type of sums.
 *
 * A weights tile W lies in shared memory as W[inner][owner], owners swizzled in groups of four by the inner index, so
 * that both the writers (a thread: four owners of one inner index) and the readers (the same of the next product) touch
 * all banks. hidden[inner][owner] says which weights belong to pairs that may not see each other: a careful product
 * leaves them out instead of multiplying by 0, as NaN and Inf behind a mask require. */
#include "efficient.h"
#include "pair.cuh"

enum {
  DEPTH = EFFICIENT_DEPTH,
  QUERIES = EFFICIENT_QUERIES,
  KEYS = ELEMENT == TYPE_F64 ? EFFICIENT_KEYS_F64 : EFFICIENT_KEYS,
  ROWS = QUERIES / 16, /* of a thread */
  COLS = KEYS / 16,
  PAD = 4,
  MAX_COLUMNS = ELEMENT == TYPE_F64 ? 64 : 128,
  STAGE_SCORES = DEPTH * (QUERIES + PAD) + DEPTH * (KEYS + PAD),
  STAGE_VALUES = DEPTH * (MAX_COLUMNS + PAD),
  STAGE = STAGE_SCORES > STAGE_VALUES ? STAGE_SCORES : STAGE_VALUES
};

struct tile_memory {
  real stage[STAGE];
  real weights[QUERIES * KEYS];
  uint8_t hidden[QUERIES * KEYS];
};

/* Sum and maximum over the 16 threads of a row of the tile, in a fixed order; all get the result. */
WORD real shuffle_xor(real x, int lanes) {
  if (sizeof(real) == 4) return (real)word_shuffle_xor_f32((float)x, lanes);
  uint32_t half[2];
  memcpy(half, &x, sizeof x);
  half[0] = word_shuffle_xor(half[0], lanes);
  if (sizeof(real) == 8) half[1] = word_shuffle_xor(half[1], lanes);
  memcpy(&x, half, sizeof x);
  return x;
}
WORD real row_sum(real x) {
  for (int lanes = 8; lanes; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}
WORD real row_max(real x) {
  for (int lanes = 8; lanes; lanes /= 2) x = max_of(x, shuffle_xor(x, lanes));
  return x;
}

WORD int thread_x(void) { return (int)(threadIdx.x & 15); }
WORD int thread_y(void) { return (int)(threadIdx.x >> 4); }

/* DEPTH columns from d on of `rows` rows from `first` on, transposed: to[d][row]; 0 beyond the matrix. */
WORD void stage_transposed(real *to, const int rows, const slice_rows &m, int64_t first, int64_t d, int64_t depth) {
  for (int e = (int)threadIdx.x; e < rows * DEPTH; e += EFFICIENT_THREADS) {
    int row = e / DEPTH, column = e % DEPTH;
    real x = 0;
    if (first + row < m.end && d + column < depth)
      x = load_element(m.data, slice_row_offset(m, first + row) + (d + column) * m.col);
    to[column * (rows + PAD) + row] = x;
  }
}

/* product[r][c] = <row 4y + r of a from a_first on, row COLS x + c of b from b_first on> over depth columns. */
WORD void tile_scores(real product[ROWS][COLS], const slice_rows &a, int64_t a_first, const slice_rows &b,
                      int64_t b_first, int64_t depth, real *stage) {
  real *stage_b = stage + DEPTH * (QUERIES + PAD);
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLS; c++) product[r][c] = 0;
  for (int64_t d = 0; d < depth; d += DEPTH) {
    word_sync_block();
    stage_transposed(stage, QUERIES, a, a_first, d, depth);
    stage_transposed(stage_b, KEYS, b, b_first, d, depth);
    word_sync_block();
    UNROLLED
    for (int k = 0; k < DEPTH; k++) {
      real x[ROWS], y[COLS];
      for (int r = 0; r < ROWS; r++) x[r] = stage[k * (QUERIES + PAD) + ROWS * thread_y() + r];
      for (int c = 0; c < COLS; c++) y[c] = stage_b[k * (KEYS + PAD) + COLS * thread_x() + c];
      for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) product[r][c] += x[r] * y[c];
    }
  }
}

/* Where owners o .. o+3 (o a multiple of 4, or of 2 and then o, o+1) of an inner index lie. */
WORD int weight_at(int inner, int owner, const int owners) {
  return inner * owners + (owner ^ ((inner >> 2 & 7) << 2));
}

/* Column e of a thread: neighbouring threads read neighbouring 16 bytes. */
WORD int column_of(int e) { return 64 * (e / 4) + 4 * thread_x() + e % 4; }

/* sum[o][e] += sum over inner of W[inner][owner o of this thread] * x[first + inner][column + column_of(e)]. */
WORD void tile_values(real (*sum)[MAX_COLUMNS / 16], const int owners, const int inners, const int columns,
                      const slice_rows &x, int64_t first, int64_t column, int64_t width, tile_memory &m, bool careful) {
  const int mine = owners / 16;
  for (int k0 = 0; k0 < inners; k0 += DEPTH) {
    word_sync_block();
    for (int e = (int)threadIdx.x; e < DEPTH * columns; e += EFFICIENT_THREADS) {
      int row = e / columns, c = e % columns;
      int64_t j = first + k0 + row;
      m.stage[row * (columns + PAD) + c] =
          j < x.end && column + c < width ? load_element(x.data, slice_row_offset(x, j) + (column + c) * x.col) : 0;
    }
    word_sync_block();
    if (careful) {
      for (int k = 0; k < DEPTH; k++)
        for (int o = 0; o < mine; o++) {
          int at = weight_at(k0 + k, mine * thread_y(), owners) + o;
          if (m.hidden[at]) continue;
          for (int e = 0; e < columns / 16; e++)
            sum[o][e] += m.weights[at] * m.stage[k * (columns + PAD) + column_of(e)];
        }
    } else {
      UNROLLED
      for (int k = 0; k < DEPTH; k++) {
        real w[ROWS], y[MAX_COLUMNS / 16];
        for (int o = 0; o < mine; o++) w[o] = m.weights[weight_at(k0 + k, mine * thread_y(), owners) + o];
        for (int e = 0; e < columns / 16; e++) y[e] = m.stage[k * (columns + PAD) + column_of(e)];
        for (int o = 0; o < mine; o++)
          for (int e = 0; e < columns / 16; e++) sum[o][e] += w[o] * y[e];
      }
    }
  }
}

/* Write a thread's part of a score tile as weights: inner = key, owner = query, or the other way round. */
WORD void tile_put_weights(real w[ROWS][COLS], const bool visible[ROWS][COLS], const bool owner_is_query,
                           tile_memory &m) {
  word_sync_block(); /* until the last product has read the last weights */
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLS; c++) {
      int query = ROWS * thread_y(), key = COLS * thread_x();
      int at = owner_is_query ? weight_at(key + c, query, QUERIES) + r : weight_at(query + r, key, KEYS) + c;
      m.weights[at] = w[r][c];
      m.hidden[at] = !visible[r][c];
    }
}

/* scores[r][c] of the tile at (q0, k0) from its dot products; hidden pairs get -inf. d_capped may be NULL. */
WORD void tile_finish_scores(real scores[ROWS][COLS], real (*d_capped)[COLS], bool visible[ROWS][COLS],
                             const attend_problem &p, const attend_slice &s, int64_t q0, int64_t k0) {
  for (int r = 0; r < ROWS; r++) {
    int64_t i = q0 + ROWS * thread_y() + r, first = 0, last = 0;
    if (i < s.q_len) attend_visible_range(&p, &s, i, &first, &last);
    for (int c = 0; c < COLS; c++) {
      int64_t j = k0 + COLS * thread_x() + c;
      visible[r][c] = j >= first && j < last && unmasked(p, s, i, j);
      if (d_capped) d_capped[r][c] = 0;
      if (visible[r][c]) {
        pair_score x = score_of(p, s, i, j, scores[r][c]);
        scores[r][c] = x.biased;
        if (d_capped) d_capped[r][c] = x.d_capped;
      } else
        scores[r][c] = (real)-INFINITY;
    }
  }
}

/* w[r][c] *= keep / (1 - dropout). */
WORD void tile_drop(real w[ROWS][COLS], const attend_problem &p, const attend_slice &s, int64_t q0, int64_t k0) {
  if (!p.dropout_threshold) return;
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLS; c += 2)
      drop_pair(w[r][c], w[r][c + 1], (real)p.dropout_scale, p, s, q0 + ROWS * thread_y() + r,
                k0 + COLS * thread_x() + c);
}

/* The keys, in whole tiles, that some query of the tile at q0 may see. */
WORD void tile_key_range(const attend_problem &p, const attend_slice &s, int64_t q0, int64_t &first, int64_t &last) {
  int64_t top = q0 + QUERIES < s.q_len ? q0 + QUERIES - 1 : s.q_len - 1, unused;
  attend_visible_range(&p, &s, q0, &first, &unused);
  attend_visible_range(&p, &s, top, &unused, &last);
  first = first / KEYS * KEYS;
}

/* Does any thread of the block hold a NaN among its sums? */
WORD bool tile_any_nan(real (*sum)[MAX_COLUMNS / 16], const int owners, const int columns, tile_memory &m) {
  bool nan = false;
  for (int o = 0; o < owners / 16; o++)
    for (int e = 0; e < columns / 16; e++) nan |= sum[o][e] != sum[o][e];
  word_sync_block();
  if (threadIdx.x < EFFICIENT_THREADS / 32) m.hidden[threadIdx.x] = 0;
  word_sync_block();
  if (word_any(nan) && (threadIdx.x & 31) == 0) m.hidden[threadIdx.x / 32] = 1;
  word_sync_block();
  bool any = false;
  for (int w = 0; w < EFFICIENT_THREADS / 32; w++) any |= m.hidden[w] != 0;
  word_sync_block();
  return any;
}
