/* SPDX-License-Identifier: MIT */
/* Tile words of the f32 kernels: who owns what, chunks of rows on their way to shared memory, the two products.
 *
 * Chunks come in two forms: `rows`, all inner rows and 32 columns, for products of rows with rows; `positions`, 32
 * inner rows and all columns, for products of weights with rows. Weights lie as [row][position]; inner rows are in
 * another order there, so that a thread's weights are 16-byte words: position_row says which. */
#ifndef ATTEND_CUDA_SIMT_CUH
#define ATTEND_CUDA_SIMT_CUH

#include "call.h"
#include "simt.h"
#include "slice.cuh"

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

struct alignas(16) simt_four {
  float at[4];
};
WORD simt_four simt_load(const float *p) { return *(const simt_four *)(const void *)p; }
WORD void simt_store(float *p, simt_four x) { *(simt_four *)(void *)p = x; }

/* A thread's place. Of the lanes of a warp, `lanes` share the rows and differ in the columns; the mapping lets the
 * reads of half a warp fall on few addresses. A thread owns rows first + 8 (r / 4) + r % 4 and columns x + lanes c. */
struct simt_place {
  int lanes, x, team, team_threads, thread, warp_first, first;
  float *own, *weights, *chunks; /* weights: of the team */
  int turn;                      /* which of the two chunks is read next */
};

WORD simt_place simt_place_of(float *memory, const int columns, const int matrices) {
  simt_place t;
  int lane = (int)(threadIdx.x & 31);
  t.lanes = columns / 8;
  t.team_threads = columns; /* 64 rows of 32 * 256 / columns */
  t.team = (int)threadIdx.x / t.team_threads;
  t.thread = (int)threadIdx.x % t.team_threads;
  t.x = lane >> 1 & (t.lanes - 1);
  t.warp_first = t.thread / 32 * (2048 / columns);
  t.first = t.warp_first + 4 * (lane & 1) + (columns == 64 ? lane & 16 : 0);
  t.own = memory;
  t.weights = memory + matrices * SIMT_OWN(columns) + t.team * SIMT_WEIGHTS(columns);
  t.chunks = memory + matrices * SIMT_OWN(columns) + SIMT_TEAMS(columns) * SIMT_WEIGHTS(columns) +
             t.team * 2 * SIMT_CHUNK(columns);
  t.turn = 0;
  return t;
}
WORD int simt_row(const simt_place &t, const int r) { return t.first + 8 * (r / 4) + r % 4; }
WORD int simt_column(const simt_place &t, const int c) { return t.x + t.lanes * c; }
/* Where column c of a product lies among the weights, and which column of the result it is. */
WORD int simt_position(const simt_place &t, const int c) { return 4 * t.lanes * (c / 4) + 4 * t.x + c % 4; }
WORD int simt_position_row(const int position, const int lanes) {
  return position / 4 % lanes + lanes * (position / (4 * lanes) * 4 + position % 4);
}

WORD float simt_row_sum(float x, const simt_place &t) {
  UNROLLED
  for (int lanes = 2; lanes <= t.lanes; lanes *= 2) x += word_shuffle_xor_f32(x, lanes);
  return x;
}
WORD float simt_row_max(float x, const simt_place &t) {
  UNROLLED
  for (int lanes = 2; lanes <= t.lanes; lanes *= 2) x = word_max(x, word_shuffle_xor_f32(x, lanes));
  return x;
}

/* ---- Rows on their way to shared memory ---- */

struct simt_source {
  const char *data;
  int64_t row, end;
  int width;
  bool positions;
};
WORD simt_source simt_rows(const attend_matrix &m, int64_t end, int64_t width) {
  simt_source s = {m.data, m.row, end, (int)width, false};
  return s;
}
WORD simt_source simt_positions(const attend_matrix &m, int64_t end, int64_t width) {
  simt_source s = {m.data, m.row, end, (int)width, true};
  return s;
}

/* Ask for chunk `number` of the tile of inner rows from `first` on; zeros beyond the matrix. */
WORD void simt_ask(const simt_place &t, const simt_source &from, int64_t first, int number, const int columns) {
  float *to = t.chunks + t.turn * SIMT_CHUNK(columns);
  int row, column, step; /* of this thread's first piece, and how many rows on the next one is */
  if (from.positions) {  /* pieces 4 positions apart are neighbouring rows */
    row = t.thread / (columns / 4), column = t.thread % (columns / 4) * 4, step = 1;
    to += row * columns + column;
    row = simt_position_row(number * SIMT_DEPTH + row, t.lanes);
  } else {
    row = t.thread / (SIMT_DEPTH / 4), column = t.thread % (SIMT_DEPTH / 4) * 4, step = columns / 8;
    to += row * (SIMT_DEPTH + SIMT_PAD) + column;
    column += number * SIMT_DEPTH;
  }
  int64_t rows = from.end - first;
  int left = column >= from.width ? 0 : rows > columns ? columns : (int)rows;
  const char *data = from.data + 4 * ((first + row) * from.row + column);
  UNROLLED
  for (int n = 0; n < 8; n++)
    word_copy_async(to + n * (from.positions ? 4 * columns : step * (SIMT_DEPTH + SIMT_PAD)),
                    data + 4 * n * step * from.row, row + n * step < left);
  word_copy_commit();
}

/* The chunk asked for last, now here for the whole team; then ask for the next. */
WORD const float *simt_chunk(simt_place &t, const simt_source &now, int64_t first, int number, const simt_source &next,
                             int64_t next_first, const int columns) {
  const float *here = t.chunks + t.turn * SIMT_CHUNK(columns);
  word_copy_wait(0);
  word_sync_team(t.team, t.team_threads);
  t.turn ^= 1;
  if (number + 1 < columns / SIMT_DEPTH)
    simt_ask(t, now, first, number + 1, columns);
  else
    simt_ask(t, next, next_first, 0, columns);
  return here;
}

/* The owner's rows from `first` on, transposed: [column][row], by all threads of the block. So a thread's factors of
 * one multiply-add lie in different banks of registers: reads of 16 bytes along the rows here, along the sum there. */
WORD void simt_take(float *to, const attend_matrix &m, int64_t first, int64_t end, int64_t width, const int columns) {
  const int row = (int)threadIdx.x % SIMT_ROWS;
  for (int column = (int)threadIdx.x / SIMT_ROWS * 4; column < columns; column += 4 * (SIMT_THREADS / SIMT_ROWS)) {
    simt_four x = {{0, 0, 0, 0}};
    if (first + row < end && column < width)
      x = simt_load((const float *)(const void *)m.data + (first + row) * m.row + column);
    UNROLLED
    for (int e = 0; e < 4; e++) to[(column + e) * SIMT_ROWS + row] = x.at[e];
  }
}

/* ---- Products ---- */

/* product[r][c] = <row r of own, inner row c>; the chunks of `now` have been asked for, those of `next` are then. */
WORD void simt_dots(float product[8][8], const float *own, simt_place &t, const simt_source &now, int64_t first,
                    const simt_source &next, int64_t next_first, bool idle, const int columns) {
  UNROLLED
  for (int r = 0; r < 8; r++) UNROLLED
  for (int c = 0; c < 8; c++) product[r][c] = 0;
  UNROLLED_BY_1
  for (int number = 0; number < columns / SIMT_DEPTH; number++) {
    const float *b = simt_chunk(t, now, first, number, next, next_first, columns) + t.x * (SIMT_DEPTH + SIMT_PAD);
    const float *a = own + number * SIMT_DEPTH * SIMT_ROWS + t.first;
    if (idle) continue;
    UNROLLED_BY_2
    for (int k = 0; k < SIMT_DEPTH; k += 4) {
      simt_four x[4][2];
      UNROLLED
      for (int e = 0; e < 4; e++) {
        x[e][0] = simt_load(a + (k + e) * SIMT_ROWS);
        x[e][1] = simt_load(a + (k + e) * SIMT_ROWS + 8);
      }
      UNROLLED
      for (int c = 0; c < 8; c += 2) { /* two columns in turn: one alone would wait for its own sums */
        simt_four y[2] = {simt_load(b + t.lanes * c * (SIMT_DEPTH + SIMT_PAD) + k),
                          simt_load(b + t.lanes * (c + 1) * (SIMT_DEPTH + SIMT_PAD) + k)};
        UNROLLED
        for (int e = 0; e < 4; e++) UNROLLED
        for (int n = 0; n < 2; n++) UNROLLED
        for (int r = 0; r < 8; r++) product[r][c + n] += x[e][r / 4].at[r % 4] * y[n].at[e];
      }
    }
  }
}

/* A weight of a pair that may not see each other, where a careful product has to know: no sum comes out as -0. */
WORD float simt_hidden(void) { return word_f32_from_bits(0x80000000u); }
WORD bool simt_is_hidden(float x) { return word_bits_from_f32(x) == 0x80000000u; }

WORD void simt_put_weights(const float w[8][8], const simt_place &t, const int columns) {
  UNROLLED
  for (int r = 0; r < 8; r++) UNROLLED
  for (int c = 0; c < 8; c += 4) {
    simt_four x = {{w[r][c], w[r][c + 1], w[r][c + 2], w[r][c + 3]}};
    simt_store(t.weights + simt_row(t, r) * SIMT_STRIDE(columns) + simt_position(t, c), x);
  }
}

/* sum[r][c] += sum over inner rows of weight [row r][inner row] * column simt_position(c) of the inner row. */
WORD void simt_values(float sum[8][8], simt_place &t, const simt_source &now, int64_t first, const simt_source &next,
                      int64_t next_first, bool idle, const bool careful, const int columns) {
  UNROLLED_BY_1
  for (int number = 0; number < columns / SIMT_DEPTH; number++) {
    const float *b = simt_chunk(t, now, first, number, next, next_first, columns) + 4 * t.x;
    const float *a = t.weights + t.first * SIMT_STRIDE(columns) + number * SIMT_DEPTH;
    if (idle) continue;
    UNROLLED_BY_2
    for (int k = 0; k < SIMT_DEPTH; k += 4) {
      simt_four x[8];
      UNROLLED
      for (int r = 0; r < 8; r++) x[r] = simt_load(a + (8 * (r / 4) + r % 4) * SIMT_STRIDE(columns) + k);
      UNROLLED
      for (int e = 0; e < 4; e++) {
        simt_four y[2] = {simt_load(b + (k + e) * columns), simt_load(b + (k + e) * columns + 4 * t.lanes)};
        UNROLLED
        for (int c = 0; c < 8; c++) UNROLLED
        for (int r = 0; r < 8; r++)
          if (!careful || !simt_is_hidden(x[r].at[e])) sum[r][c] += x[r].at[e] * y[c / 4].at[c % 4];
      }
    }
  }
}

/* ---- What is seen ---- */

enum simt_sight { SIMT_NONE, SIMT_SOME, SIMT_ALL };

/* Of queries [i, i + queries) and keys [j, j + keys): do they see each other? */
WORD simt_sight simt_sight_of(const attend_problem &p, const attend_slice &s, int64_t i, int queries, int64_t j,
                              int keys) {
  if (i >= s.q_len) return SIMT_NONE;
  int64_t first[2], last[2];
  attend_visible_range(&p, &s, i, &first[0], &last[0]);
  attend_visible_range(&p, &s, i + queries <= s.q_len ? i + queries - 1 : s.q_len - 1, &first[1], &last[1]);
  if (last[1] <= j || first[0] >= j + keys) return SIMT_NONE;
  return i + queries <= s.q_len && first[1] <= j && last[0] >= j + keys ? SIMT_ALL : SIMT_SOME;
}

/* Bit 8 r + c: do row r of own and inner row c see each other? */
WORD uint64_t simt_seen(const attend_problem &p, const attend_slice &s, const simt_place &t, int64_t own0,
                        int64_t inner0, const bool keys_own) {
  uint64_t seen = 0;
  UNROLLED_BY_1
  for (int q = 0; q < 8; q++) {
    int64_t i = keys_own ? inner0 + simt_column(t, q) : own0 + simt_row(t, q), first = 0, last = 0;
    if (i < s.q_len) attend_visible_range(&p, &s, i, &first, &last);
    UNROLLED
    for (int k = 0; k < 8; k++) {
      int64_t j = keys_own ? own0 + simt_row(t, k) : inner0 + simt_column(t, k);
      if (j >= first && j < last) seen |= (uint64_t)1 << (keys_own ? 8 * k + q : 8 * q + k);
    }
  }
  return seen;
}
WORD void simt_hide(float x[8][8], uint64_t seen, float value) {
  UNROLLED
  for (int r = 0; r < 8; r++) UNROLLED
  for (int c = 0; c < 8; c++) x[r][c] = seen >> (8 * r + c) & 1 ? x[r][c] : value;
}

/* ---- Sums of the teams ---- */

/* Add to team 0's sums those of the others, each row times factors[team][row]; `parts` holds (teams - 1) * 64 rows. All
 * threads of the block call it. */
WORD void simt_gather(float sum[8][8], float *parts, const float *factors, const simt_place &t, const int columns) {
  word_sync_block();
  word_sync_block(); /* one is enough, but racecheck loses sight of teams that wait at it for others' barriers */
  if (t.team > 0) {
    UNROLLED
    for (int r = 0; r < 8; r++) UNROLLED
    for (int c = 0; c < 8; c += 4) {
      simt_four x = {{sum[r][c], sum[r][c + 1], sum[r][c + 2], sum[r][c + 3]}};
      simt_store(parts + ((t.team - 1) * SIMT_ROWS + simt_row(t, r)) * SIMT_STRIDE(columns) + simt_position(t, c), x);
    }
  }
  word_sync_block();
  if (t.team > 0) return;
  UNROLLED
  for (int r = 0; r < 8; r++) {
    if (factors) UNROLLED
    for (int c = 0; c < 8; c++) sum[r][c] *= factors[simt_row(t, r)];
    for (int team = 1; team < SIMT_TEAMS(columns); team++) {
      const float *row = parts + ((team - 1) * SIMT_ROWS + simt_row(t, r)) * SIMT_STRIDE(columns);
      float factor = factors ? factors[team * SIMT_ROWS + simt_row(t, r)] : 1;
      UNROLLED
      for (int c = 0; c < 8; c += 4) {
        simt_four x = simt_load(row + simt_position(t, c));
        UNROLLED
        for (int e = 0; e < 4; e++) sum[r][c + e] += factor * x.at[e];
      }
    }
  }
}

/* A row of team 0's sums times `factor` to memory, or added to what is there. */
WORD void simt_put(char *row, const float sum[8], float factor, int64_t width, bool accumulate, const simt_place &t) {
  UNROLLED
  for (int c = 0; c < 8; c += 4) {
    if (simt_position(t, c) >= width) continue;
    float *to = (float *)(void *)row + simt_position(t, c);
    simt_four x = {{0, 0, 0, 0}};
    if (accumulate) x = simt_load(to);
    UNROLLED
    for (int e = 0; e < 4; e++) x.at[e] += sum[c + e] * factor;
    simt_store(to, x);
  }
}

#endif
