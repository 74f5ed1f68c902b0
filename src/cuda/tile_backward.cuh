/* SPDX-License-Identifier: MIT */
/* Backward in tiles: one kernel owns keys (dK, dV), one owns queries (dQ), so that every sum has one owner and one
 * order (seven products instead of five, and no atomics). A warp holds its 16 rows of K and V (or Q and dO) and the
 * gradients of them in registers; the others' rows come through shared memory, and every product finds them there as it
 * needs them, straight or transposed. The scores of a warp are accumulators of one product and, packed, operand A of
 * the next.
 *
 *   owns keys      S' = K Q'   dP' = V dO'   dV += P' dO   dK += dS' Q
 *   owns queries   S = Q K'    dP = dO V'                  dQ += dS K
 *
 * A block whose gradient came out NaN does its tiles again, carefully. */
#ifndef ATTEND_CUDA_TILE_BACKWARD_CUH
#define ATTEND_CUDA_TILE_BACKWARD_CUH

#include "fragment.cuh"
#include "tile_backward.h"

/* What an entry point fixes: warps of a block, tiles of 16 rows of a warp, chunks of 64 columns (1, 2), and whether all
 * options are there. */
struct gradient_kind {
  int warps, tiles, chunks;
  bool general;
};

enum { STAGE_UNITS = 512 /* of 16 bytes: 64 rows of 64 columns, or 32 of 128 */, GRADIENT_TILES = 2 };

struct gradient_memory {
  uint4 rows[2][2][STAGE_UNITS]; /* [stage][Q or K; dO or V] */
  uint4 values[2][2][16];        /* [stage][lse; delta] of 64 queries */
  int flags[8];
};

/* No query sees anything where lse is this: exp2(x - it) is 0, whatever x. */
#define NO_LSE 3.0e38f

WORD int staged_rows(const gradient_kind kind) { return 64 / kind.chunks; }

/* ---- lse in units of log 2, and delta_i = <dO_i, o_i> - dlse_i, in the workspace ------------------------------------
 */

WORD int64_t gradient_padded(const attend_problem &p) {
  return (p.q_len + GRADIENT_PAD - 1) / GRADIENT_PAD * GRADIENT_PAD;
}
WORD float *gradient_values(const cuda_call &call, int64_t b, int64_t h) {
  return (float *)call.workspace + (b * call.problem.heads + h) * gradient_padded(call.problem);
}
WORD int64_t gradient_delta_at(const attend_problem &p) { return p.batch * p.heads * gradient_padded(p); }

/* Eight lanes a query. */
WORD void gradient_delta(const cuda_call &call) {
  const attend_problem &p = call.problem;
  int64_t tiles = gradient_padded(p) / GRADIENT_PAD, key_rows;
  int64_t pair = blockIdx.x / (uint32_t)tiles, q0 = blockIdx.x % (uint32_t)tiles * GRADIENT_PAD;
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  float *lse = gradient_values(call, s.b, s.h), *delta = lse + gradient_delta_at(p);
  int unit = (int)threadIdx.x & 7;
  for (int row = (int)threadIdx.x >> 3; row < GRADIENT_PAD; row += GRADIENT_DELTA_THREADS / 8) {
    int64_t i = q0 + row;
    float sum = 0;
    for (int c = 8 * unit; c < (int)p.v_dim; c += 64) {
      bool exists = i < s.q_len;
      uint4 x = word_load_if(s.d_out.data + 2 * (i * s.d_out.row + c), exists);
      uint4 y = word_load_if(s.out.data + 2 * (i * s.out.row + c), exists);
      uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
      for (int e = 0; e < 4; e++)
        sum += half_of(xs[e], false) * half_of(ys[e], false) + half_of(xs[e], true) * half_of(ys[e], true);
    }
    sum = quad_sum(sum);
    sum += word_shuffle_xor_f32(sum, 4);
    if (unit) continue;
    float row_lse = i < s.q_len ? load_any(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type) : -INFINITY;
    if (s.d_lse && i < s.q_len) sum -= load_any(s.d_lse, i * s.d_lse_row, p.layout[OPERAND_D_LSE].type);
    lse[i] = row_lse == -INFINITY ? NO_LSE : row_lse * LOG2_E;
    delta[i] = sum;
  }
}

/* ---- Rows in shared memory, in units of 16 bytes, swizzled so that eight rows of a column of units touch all banks --
 */

WORD int stage_at(int row, int unit, const gradient_kind kind) {
  return unit / 8 * 8 * staged_rows(kind) + 8 * row + (unit % 8 ^ (row & 7));
}

WORD void stage_copy(uint4 *to, const attend_matrix &m, int64_t first, int64_t end, int columns,
                     const gradient_kind kind) {
  const int units = 8 * kind.chunks;
  UNROLLED
  for (int n = 0; n < STAGE_UNITS / (32 * kind.warps); n++) {
    int e = (int)threadIdx.x + 32 * kind.warps * n, row = e / units, unit = e % units;
    word_copy_async(to + stage_at(row, unit, kind), m.data + 2 * ((first + row) * m.row + 8 * unit),
                    first + row < end && 8 * unit < columns);
  }
}

/* 16 rows from `first` on as operands A, one for each 16 columns. */
WORD void operand_load(uint32_t a[8][4], const attend_matrix &m, int64_t first, int64_t end, int columns,
                       const gradient_kind kind) {
  UNROLLED
  for (int x = 0; x < 4 * kind.chunks; x++) UNROLLED
  for (int r = 0; r < 4; r++) {
    int64_t row = first + lane_row() + 8 * (r & 1);
    int column = 16 * x + 8 * (r >> 1) + 2 * lane_column();
    a[x][r] =
        row < end && column < columns ? *(const uint32_t *)(const void *)(m.data + 2 * (row * m.row + column)) : 0;
  }
}

/* c[tile][n] += rows of A x the staged rows at + 8n .. at + 8n + 7, over all columns. */
WORD void stage_dots(float c[GRADIENT_TILES][2][4], const uint32_t a[GRADIENT_TILES][8][4], const uint4 *stage, int at,
                     const gradient_kind kind) {
  int lane = (int)threadIdx.x & 31;
  UNROLLED
  for (int n = 0; n < 2; n++) UNROLLED
  for (int x = 0; x < 2 * kind.chunks; x++) {
    uint32_t b[4];
    word_load_matrices(b, stage + stage_at(at + 8 * n + (lane & 7), 4 * x + (lane >> 3), kind));
    UNROLLED
    for (int m = 0; m < kind.tiles; m++) {
      multiply(c[m][n], a[m][2 * x], b[0], b[1]);
      multiply(c[m][n], a[m][2 * x + 1], b[2], b[3]);
    }
  }
}

/* sum[tile][chunk] += A x the staged rows at .. at + 15. */
WORD void stage_product(float sum[GRADIENT_TILES][2][8][4], const uint32_t a[GRADIENT_TILES][4],
                        const uint32_t allowed[GRADIENT_TILES][4], const uint4 *stage, int at, const bool careful,
                        const gradient_kind kind) {
  int lane = (int)threadIdx.x & 31;
  UNROLLED
  for (int x = 0; x < kind.chunks; x++) {
    block low, high;
    UNROLLED
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      word_load_matrices_transposed(b, stage + stage_at(at + (lane & 15), 8 * x + n + (lane >> 4), kind));
      low.r[n] = b[0], high.r[n] = b[1], low.r[n + 1] = b[2], high.r[n + 1] = b[3];
    }
    UNROLLED
    for (int m = 0; m < kind.tiles; m++)
      if (careful)
        block_product_careful(sum[m][x], a[m], allowed[m], low, high);
      else
        block_product(sum[m][x], a[m], low, high);
  }
}

/* ---- Scores ---------------------------------------------------------------------------------------------------------
 *
 * Rows are what a warp owns, columns what is staged. Query i sees key j iff least <= i - j <= most (and both exist). */

struct gradient_band {
  int64_t least, most;
};

WORD gradient_band band_of(const attend_problem &p, const attend_slice &s) {
  const int64_t far = (int64_t)1 << 60;
  int64_t right = p.causal ? 0 : p.window_right >= 0 && p.window_right < far ? p.window_right : far;
  int64_t left = p.window_left >= 0 && p.window_left < far ? p.window_left : far;
  gradient_band band = {-s.off - right, left - s.off};
  return band;
}

/* The same for a warp and its stage: `least` <= column - row <= `most`, and how many rows and columns exist. */
struct gradient_window {
  int least, most, rows, columns;
};

WORD int gradient_small(int64_t x) { return (int)(x < -1000000 ? -1000000 : x > 1000000 ? 1000000 : x); }

/* Where the warp's first row is `row`, and the first staged one `column`. */
WORD gradient_window window_of(const gradient_band &band, int64_t row, int64_t row_end, int64_t column,
                               int64_t column_end, const bool owns_keys) {
  gradient_window w;
  int64_t between = owns_keys ? column - row : row - column;
  int least = gradient_small(band.least - between), most = gradient_small(band.most - between);
  w.least = owns_keys ? least : -most;
  w.most = owns_keys ? most : -least;
  w.rows = gradient_small(row_end - row), w.columns = gradient_small(column_end - column);
  return w;
}

/* Of the 16 columns from `at` on: does no row see any; does every row see all? */
WORD bool window_empty(const gradient_window &w, int at, const int rows) {
  return at + 15 < w.least || at - (rows - 1) > w.most || w.rows <= 0 || at >= w.columns;
}
WORD bool window_full(const gradient_window &w, int at, const int rows) {
  return at - (rows - 1) >= w.least && at + 15 <= w.most && w.rows >= rows && at + 16 <= w.columns;
}

/* 1 where query i keeps key j, else 0. */
WORD float gradient_keep(const attend_problem &p, const attend_slice &s, int64_t i, int64_t j) {
  int64_t block_number = 4 * (j >> 5) + (j >> 1 & 3);
  uint32_t counter[4] = {(uint32_t)block_number, (uint32_t)(block_number >> 32), (uint32_t)i, (uint32_t)(i >> 32)};
  uint32_t word[4];
  attend_philox(counter, s.dropout_key, word);
  uint32_t draw = j & 16 ? (j & 8 ? word[3] : word[2]) : (j & 8 ? word[1] : word[0]);
  return (j & 1 ? draw >> 16 : draw & 0xFFFF) >= p.dropout_threshold ? 1.0f : 0.0f;
}

/* c: dot products of Q and K, d: of dO and V, for 16 rows (tile m of the warp) and 16 columns from `at` on. They become
 * P keep (not yet times 1/(1-dropout)) and dS. lse[] and delta[]: of columns 2n + e, or of rows g + 8 half. Returns who
 * sees whom, bits 2n + e of the two halves. */
WORD void gradient_scores(float c[2][4], float d[2][4], uint32_t seen[2], const float *lse, const float *delta, int m,
                          int at, bool full, const gradient_window &w, const attend_problem &p, const attend_slice &s,
                          int64_t row, int64_t column, const bool owns_keys, const gradient_kind kind) {
  const float unit = (float)p.scale * LOG2_E;
  seen[0] = seen[1] = 0;
  UNROLLED
  for (int n = 0; n < 2; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    int r = 16 * m + lane_row() + 8 * (e >> 1), col = at + 8 * n + 2 * lane_column() + (e & 1);
    int value = owns_keys ? 2 * n + (e & 1) : e >> 1;
    bool sees = full || (col - r >= w.least && col - r <= w.most && r < w.rows && col < w.columns);
    if (kind.general) {
      int64_t i = owns_keys ? column + col : row + r, j = owns_keys ? row + r : column + col;
      sees = sees && lse[value] != NO_LSE && unmasked(p, s, i, j);
      float prob = 0, d_score = 0, keep = 1, drop = 1;
      if (sees) {
        pair_score x = score_of(p, s, i, j, c[n][e]);
        prob = word_exp2(x.biased * LOG2_E - lse[value]);
        if (p.dropout_threshold) keep = gradient_keep(p, s, i, j), drop = keep * (float)p.dropout_scale;
        d_score = prob * (drop * d[n][e] - delta[value]) * x.d_capped;
      }
      c[n][e] = prob * keep, d[n][e] = d_score;
    } else {
      float prob = word_exp2(c[n][e] * unit - lse[value]);
      sees = sees && lse[value] != NO_LSE;
      d[n][e] = prob * (d[n][e] - delta[value]);
      c[n][e] = prob;
      if (!full && !sees) c[n][e] = d[n][e] = 0;
    }
    if (sees) seen[e >> 1] |= 1u << (2 * n + (e & 1));
  }
}

WORD void gradient_operand(uint32_t a[4], const float c[2][4]) {
  a[0] = pack(c[0][0], c[0][1]), a[1] = pack(c[0][2], c[0][3]);
  a[2] = pack(c[1][0], c[1][1]), a[3] = pack(c[1][2], c[1][3]);
}

/* Rows from `first` on of a gradient. */
WORD void gradient_store(const attend_problem &p, const attend_matrix &to, const float sum[2][8][4], int64_t first,
                         int64_t end, int columns, float factor, const gradient_kind kind) {
  UNROLLED
  for (int x = 0; x < kind.chunks; x++) UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t row = first + lane_row() + 8 * half;
    int column = 64 * x + 8 * n + 2 * lane_column();
    if (row >= end || column >= columns) continue;
    uint32_t *at = (uint32_t *)(void *)(to.data + 2 * (row * to.row + column));
    float lo = sum[x][n][2 * half] * factor, hi = sum[x][n][2 * half + 1] * factor;
    if (p.accumulate) {
      uint32_t old = *at, fresh = pack(lo, hi);
      lo = half_of(old, false) + half_of(fresh, false), hi = half_of(old, true) + half_of(fresh, true);
    }
    *at = pack(lo, hi);
  }
}

/* Is it so in any warp of the block? */
WORD bool gradient_any(bool x, gradient_memory &memory, const gradient_kind kind) {
  bool warp = word_any(x), any = false;
  if ((threadIdx.x & 31) == 0) memory.flags[threadIdx.x >> 5] = warp;
  word_sync_block();
  for (int n = 0; n < kind.warps; n++) any |= memory.flags[n] != 0;
  return any;
}
WORD bool gradient_nan(const float sum[GRADIENT_TILES][2][8][4], const gradient_kind kind) {
  bool nan = false;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) UNROLLED
  for (int x = 0; x < kind.chunks; x++) nan |= block_any_nan(sum[m][x]);
  return nan;
}
WORD void gradient_clear(float sum[GRADIENT_TILES][2][8][4], const gradient_kind kind) {
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) UNROLLED
  for (int x = 0; x < kind.chunks; x++) UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum[m][x][n][e] = 0;
}

/* ---- dK, dV ---------------------------------------------------------------------------------------------------------
 */

/* Stage `n` of the group: queries of one head after the other. */
WORD void keys_stage(const cuda_call &call, const attend_slice &s, int64_t q0, int member, int at,
                     gradient_memory &memory, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  attend_matrix q = s.q, d_out = s.d_out;
  q.data += 2 * (member * p.layout[OPERAND_Q].head);
  d_out.data += 2 * (member * p.layout[OPERAND_D_OUT].head);
  stage_copy(memory.rows[at][0], q, q0, s.q_len, (int)p.head_dim, kind);
  stage_copy(memory.rows[at][1], d_out, q0, s.q_len, (int)p.v_dim, kind);
  int units = staged_rows(kind) / 4, which = (int)threadIdx.x / units, unit = (int)threadIdx.x % units;
  const float *values = gradient_values(call, s.b, s.h + member) + q0 + 4 * unit;
  if (which < 2) word_copy_async(&memory.values[at][which][unit], values + which * gradient_delta_at(p), true);
  word_copy_commit();
}

WORD void keys_pass(const cuda_call &call, const attend_slice &first, int64_t k0, gradient_memory &memory,
                    float d_k[GRADIENT_TILES][2][8][4], float d_v[GRADIENT_TILES][2][8][4], const bool careful,
                    const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, step = staged_rows(kind);
  int64_t mine = k0 + (threadIdx.x >> 5) * owned;
  gradient_band band = band_of(p, first);
  gradient_clear(d_k, kind);
  gradient_clear(d_v, kind);
  uint32_t k[GRADIENT_TILES][8][4], v[GRADIENT_TILES][8][4];
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) {
    operand_load(k[m], first.k, mine + 16 * m, first.k_len, (int)p.head_dim, kind);
    operand_load(v[m], first.v, mine + 16 * m, first.k_len, (int)p.v_dim, kind);
  }
  /* The queries that see any key of the block: from k0 + least to its last key + most. */
  int64_t begin = k0 + band.least, end = k0 + kind.warps * owned + band.most;
  begin = begin < 0 ? 0 : begin / step * step;
  if (end > first.q_len) end = first.q_len;
  int64_t steps = begin < end && k0 < first.k_len ? (end - begin + step - 1) / step : 0;
  int members = (int)(p.heads / p.kv_heads);
  int64_t q0 = begin, next = begin;
  int member = 0, next_member = 0;
  attend_slice s = first;
  if (steps) keys_stage(call, first, next, 0, 0, memory, kind);
  for (int stage = 0; member < members && steps; stage ^= 1) {
    next += step;
    if (next >= end) next = begin, next_member++;
    if (next_member < members)
      keys_stage(call, first, next, next_member, stage ^ 1, memory, kind);
    else
      word_copy_commit();
    word_copy_wait(1);
    word_sync_block();
    if (kind.general && member && q0 == begin) {
      int64_t unused;
      s = slice_make(p, call.operands, first.b, first.h + member, unused);
    }
    gradient_window w = window_of(band, mine, first.k_len, q0, first.q_len, true);
    const float *values = (const float *)(const void *)memory.values[stage][0];
    UNROLLED
    for (int at = 0; at < step; at += 16) {
      if (window_empty(w, at, owned)) continue;
      bool full = window_full(w, at, owned);
      float c[GRADIENT_TILES][2][4] = {}, d[GRADIENT_TILES][2][4] = {}, lse[4], delta[4];
      stage_dots(c, k, memory.rows[stage][0], at, kind);
      stage_dots(d, v, memory.rows[stage][1], at, kind);
      UNROLLED
      for (int n = 0; n < 4; n++) {
        int column = at + 8 * (n / 2) + 2 * lane_column() + n % 2;
        lse[n] = values[column], delta[n] = values[64 + column];
      }
      uint32_t a_p[GRADIENT_TILES][4], a_d[GRADIENT_TILES][4], allowed[GRADIENT_TILES][4];
      UNROLLED
      for (int m = 0; m < kind.tiles; m++) {
        uint32_t seen[2];
        gradient_scores(c[m], d[m], seen, lse, delta, m, at, full, w, p, s, mine, q0, true, kind);
        gradient_operand(a_p[m], c[m]);
        gradient_operand(a_d[m], d[m]);
        if (careful) allowed_pairs(allowed[m], seen[0], seen[1]);
      }
      stage_product(d_v, a_p, allowed, memory.rows[stage][1], at, careful, kind);
      stage_product(d_k, a_d, allowed, memory.rows[stage][0], at, careful, kind);
    }
    word_sync_block();
    q0 = next, member = next_member;
  }
}

WORD void gradient_keys(const cuda_call &call, const gradient_kind kind) {
  __shared__ gradient_memory memory;
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, rows = owned * kind.warps;
  int64_t tiles = (p.k_len + rows - 1) / rows, key_rows;
  int64_t pair = blockIdx.x / (uint32_t)tiles, k0 = blockIdx.x % (uint32_t)tiles * rows;
  attend_slice s =
      slice_make(p, call.operands, pair / p.kv_heads, pair % p.kv_heads * (p.heads / p.kv_heads), key_rows);
  if (k0 >= key_rows) return;
  float d_k[GRADIENT_TILES][2][8][4], d_v[GRADIENT_TILES][2][8][4];
  keys_pass(call, s, k0, memory, d_k, d_v, false, kind);
  if (gradient_any(gradient_nan(d_k, kind) || gradient_nan(d_v, kind), memory, kind))
    keys_pass(call, s, k0, memory, d_k, d_v, true, kind);
  int64_t mine = k0 + (threadIdx.x >> 5) * owned;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) {
    if (s.d_k.data) gradient_store(p, s.d_k, d_k[m], mine + 16 * m, key_rows, (int)p.head_dim, (float)p.scale, kind);
    if (s.d_v.data)
      gradient_store(p, s.d_v, d_v[m], mine + 16 * m, key_rows, (int)p.v_dim, (float)p.dropout_scale, kind);
  }
}

/* ---- dQ -------------------------------------------------------------------------------------------------------------
 */

WORD void queries_stage(const attend_problem &p, const attend_slice &s, int64_t k0, int at, gradient_memory &memory,
                        const gradient_kind kind) {
  stage_copy(memory.rows[at][0], s.k, k0, s.k_len, (int)p.head_dim, kind);
  stage_copy(memory.rows[at][1], s.v, k0, s.k_len, (int)p.v_dim, kind);
  word_copy_commit();
}

WORD void queries_pass(const cuda_call &call, const attend_slice &s, int64_t q0, gradient_memory &memory,
                       float d_q[GRADIENT_TILES][2][8][4], const bool careful, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, step = staged_rows(kind);
  int64_t mine = q0 + (threadIdx.x >> 5) * owned;
  gradient_band band = band_of(p, s);
  gradient_clear(d_q, kind);
  uint32_t q[GRADIENT_TILES][8][4], d_out[GRADIENT_TILES][8][4];
  float lse[GRADIENT_TILES][2], delta[GRADIENT_TILES][2];
  const float *values = gradient_values(call, s.b, s.h);
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) {
    operand_load(q[m], s.q, mine + 16 * m, s.q_len, (int)p.head_dim, kind);
    operand_load(d_out[m], s.d_out, mine + 16 * m, s.q_len, (int)p.v_dim, kind);
    UNROLLED
    for (int half = 0; half < 2; half++) {
      int64_t i = mine + 16 * m + 8 * half + lane_row();
      lse[m][half] = i < s.q_len ? values[i] : NO_LSE;
      delta[m][half] = i < s.q_len ? values[gradient_delta_at(p) + i] : 0;
    }
  }
  /* The keys that any query of the block sees: from q0 - most to its last query - least. */
  int64_t begin = q0 - band.most, end = q0 + kind.warps * owned - band.least;
  begin = begin < 0 ? 0 : begin / step * step;
  if (end > s.k_len) end = s.k_len;
  if (begin < end) queries_stage(p, s, begin, 0, memory, kind);
  int stage = 0;
  for (int64_t k0 = begin; k0 < end; k0 += step, stage ^= 1) {
    if (k0 + step < end)
      queries_stage(p, s, k0 + step, stage ^ 1, memory, kind);
    else
      word_copy_commit();
    word_copy_wait(1);
    word_sync_block();
    gradient_window w = window_of(band, mine, s.q_len, k0, s.k_len, false);
    UNROLLED
    for (int at = 0; at < step; at += 16) {
      if (window_empty(w, at, owned)) continue;
      bool full = window_full(w, at, owned);
      float c[GRADIENT_TILES][2][4] = {}, d[GRADIENT_TILES][2][4] = {};
      stage_dots(c, q, memory.rows[stage][0], at, kind);
      stage_dots(d, d_out, memory.rows[stage][1], at, kind);
      uint32_t a_d[GRADIENT_TILES][4], allowed[GRADIENT_TILES][4];
      UNROLLED
      for (int m = 0; m < kind.tiles; m++) {
        uint32_t seen[2];
        gradient_scores(c[m], d[m], seen, lse[m], delta[m], m, at, full, w, p, s, mine, k0, false, kind);
        gradient_operand(a_d[m], d[m]);
        if (careful) allowed_pairs(allowed[m], seen[0], seen[1]);
      }
      stage_product(d_q, a_d, allowed, memory.rows[stage][0], at, careful, kind);
    }
    word_sync_block();
  }
}

WORD void gradient_queries(const cuda_call &call, const gradient_kind kind) {
  __shared__ gradient_memory memory;
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, rows = owned * kind.warps;
  int64_t tiles = (p.q_len + rows - 1) / rows, key_rows;
  int64_t pair = blockIdx.x / (uint32_t)tiles;
  int64_t q0 = (tiles - 1 - blockIdx.x % (uint32_t)tiles) * rows; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  if (q0 >= s.q_len) return;
  float d_q[GRADIENT_TILES][2][8][4];
  queries_pass(call, s, q0, memory, d_q, false, kind);
  if (gradient_any(gradient_nan(d_q, kind), memory, kind)) queries_pass(call, s, q0, memory, d_q, true, kind);
  int64_t mine = q0 + (threadIdx.x >> 5) * owned;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++)
    gradient_store(p, s.d_q, d_q[m], mine + 16 * m, s.q_len, (int)p.head_dim, (float)p.scale, kind);
}

#endif
