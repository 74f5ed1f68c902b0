/* SPDX-License-Identifier: MIT */
/* Backward in f32, as backward in tiles of 16-bit elements goes: one kernel owns keys, one queries, one tiles of dBias.
 *
 *   owns keys      S' = K Q'   dP' = V dO'   dV += P' dO   dK += dS' Q
 *   owns queries   S = Q K'    dP = dO V'                  dQ += dS K
 */
#ifndef ATTEND_CUDA_SPLIT_BACKWARD_CUH
#define ATTEND_CUDA_SPLIT_BACKWARD_CUH

#include "split.cuh"

/* lse in units of log 2, and delta_i = <dO_i, o_i> - dlse_i, in the workspace: eight lanes a query. */
WORD void split_delta(const cuda_call &call) {
  const attend_problem &p = call.problem;
  int64_t tiles = gradient_padded(p) / GRADIENT_PAD, key_rows;
  int64_t pair = blockIdx.x / (uint32_t)tiles, q0 = blockIdx.x % (uint32_t)tiles * GRADIENT_PAD;
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  float *lse = gradient_values(call, s.b, s.h), *delta = lse + gradient_delta_at(p);
  int unit = (int)threadIdx.x & 7;
  for (int row = (int)threadIdx.x >> 3; row < GRADIENT_PAD; row += 32 * SPLIT_WARPS / 8) {
    int64_t i = q0 + row;
    bool exists = i < s.q_len;
    float sum = 0;
    for (int c = 4 * unit; exists && c < (int)p.v_dim; c += 32) {
      split_four x = split_load((const float *)(const void *)s.d_out.data + i * s.d_out.row + c);
      split_four y = split_load((const float *)(const void *)s.out.data + i * s.out.row + c);
      for (int e = 0; e < 4; e++) sum = word_multiply_add(x.at[e], y.at[e], sum);
    }
    sum = quad_sum(sum);
    sum += word_shuffle_xor_f32(sum, 4);
    if (unit) continue;
    float row_lse = exists ? load_any(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type) : -INFINITY;
    if (s.d_lse && exists) sum -= load_any(s.d_lse, i * s.d_lse_row, p.layout[OPERAND_D_LSE].type);
    lse[i] = row_lse == -INFINITY ? NO_LSE : row_lse * LOG2_E;
    delta[i] = sum;
  }
}

/* c, d of the staged rows: P keep and dS, of a warp's 16 rows of own. lse, delta: as gradient_general takes them. The
 * stage begins at column `at` of the window, whose first is `origin`. Returns who sees whom; who does not has 0. */
WORD uint32_t split_gradients(float c[SPLIT_COUNT][4], float d[SPLIT_COUNT][4], const split_memory &m, int stage,
                              const gradient_bits &bits, const int words, const float *lse, const float *delta, int at,
                              const gradient_window &w, const attend_problem &p, const attend_slice &s, int mine,
                              int origin, const bool capped, const bool owns_keys, const split_kind kind) {
  const int count = kind.rows / 8, warp_row = 16 * (int)(threadIdx.x >> 5);
  const float *first = split_stage(m, stage, 0, kind), *second = split_stage(m, stage, 1, kind);
  if (kind.careful) {
    split_dots_careful(c, count, m.own[0], warp_row, first, kind.columns);
    split_dots_careful(d, count, m.own[1], warp_row, second, kind.columns);
  } else {
    split_dots(c, count, m.own[0], warp_row, first, kind.columns);
    split_dots(d, count, m.own[1], warp_row, second, kind.columns);
  }
  if (kind.general)
    return gradient_general(c, d, count, lse, delta, at, w, p, s, mine, origin, warp_row + lane_row(), bits, words,
                            capped, owns_keys);
  bool full = window_full(w, at, kind.rows, 16);
  uint32_t seen = 0;
  UNROLLED
  for (int n = 0; n < count; n++) {
    float row_lse[2] = {lse[owns_keys ? 8 * n : 0], lse[owns_keys ? 8 * n + 1 : 1]};
    float row_delta[2] = {delta[owns_keys ? 8 * n : 0], delta[owns_keys ? 8 * n + 1 : 1]};
    seen |= gradient_scores(c[n], d[n], row_lse, row_delta, 0, at + 8 * n, full, w, p, owns_keys) << 4 * n;
  }
  return seen;
}

WORD void split_gradient(split_sum &sum, const float weights[SPLIT_COUNT][4], uint32_t seen, const float *staged,
                         const split_kind kind) {
  const float one[2] = {1, 1};
  if (kind.careful)
    split_product_careful(sum, one, weights, seen, kind.rows / 8, staged, kind.columns);
  else
    split_product(sum, one, weights, kind.rows / 8, staged, kind.columns);
}

/* ---- dK, dV ------------------------------------------------------------------------------------------------------ */

/* Start copying queries q0 .. and what belongs to them. */
WORD void split_stage_queries(const split_memory &m, int stage, const cuda_call &call, const attend_slice &s, int q0,
                              const split_kind kind) {
  const attend_problem &p = call.problem;
  const int units = kind.rows / 4;
  int which = (int)threadIdx.x / units, unit = (int)threadIdx.x % units;
  split_copy(split_stage(m, stage, 0, kind), kind.rows, s.q, q0, s.q_len, p.head_dim, kind);
  split_copy(split_stage(m, stage, 1, kind), kind.rows, s.d_out, q0, s.q_len, p.v_dim, kind);
  if (which < 2)
    word_copy_async(m.values + (2 * stage + which) * SPLIT_VALUES + 4 * unit,
                    gradient_values(call, s.b, s.h) + (which ? gradient_delta_at(p) : 0) + q0 + 4 * unit, true);
  word_copy_commit();
}

WORD void split_keys_pass(const cuda_call &call, const attend_slice &own, int k0, const split_memory &m, split_sum &d_k,
                          split_sum &d_v, const split_kind kind) {
  const attend_problem &p = call.problem;
  const int rows = kind.rows, own_rows = 16 * kind.warps, words = own_rows / 32, threads = 32 * kind.warps;
  int mine = k0 + 16 * (int)(threadIdx.x >> 5), q_len = (int)own.q_len, k_len = (int)own.k_len;
  gradient_band band = band_of(p, own);
  split_clear(d_k, kind.columns);
  split_clear(d_v, kind.columns);
  /* The queries that see any key of the block: from k0 + least to its last key + most. */
  int begin = k0 + band.least, end = band.most < q_len - k0 - own_rows ? k0 + own_rows + band.most : q_len;
  begin = begin < 0 ? 0 : begin / rows * rows;
  if (begin >= end || k0 >= k_len) return;
  int steps = (end - begin + rows - 1) / rows, stages = steps * (int)(p.heads / p.kv_heads), q0 = begin;
  attend_slice s = own, next = own;
  split_copy(m.own[0], own_rows, s.k, k0, k_len, p.head_dim, kind);
  split_copy(m.own[1], own_rows, s.v, k0, k_len, p.v_dim, kind);
  split_stage_queries(m, 0, call, s, begin, kind);
  if (kind.general) gradient_prepare(split_bits(m, 0), p, s, begin, rows, k0, words, threads);
  UNROLLED_BY_1
  for (int n = 0, stage = 0; n < stages; n++, stage ^= 1) {
    int next_q0 = q0 + rows;
    if (next_q0 >= end) {
      int64_t unused;
      next_q0 = begin;
      if (n + 1 < stages) next = slice_make(p, call.operands, own.b, own.h + (n + 1) / steps, unused);
    }
    word_copy_wait(0);
    word_sync_block(); /* this stage is here, and the last one has been read */
    if (n + 1 < stages) split_stage_queries(m, stage ^ 1, call, next, next_q0, kind);
    gradient_window w = window_of(band, mine, k_len, q0, q_len, true);
    if (!split_blind(w, 0, rows)) {
      const float *lse = m.values + 2 * stage * SPLIT_VALUES + 2 * lane_column();
      float c[SPLIT_COUNT][4], d[SPLIT_COUNT][4];
      uint32_t seen = split_gradients(c, d, m, stage, split_bits(m, stage), words, lse, lse + SPLIT_VALUES, 0, w, p, s,
                                      mine, q0, false, true, kind);
      split_gradient(d_v, c, seen, split_stage(m, stage, 1, kind), kind);
      split_gradient(d_k, d, seen, split_stage(m, stage, 0, kind), kind);
    }
    if (n + 1 < stages) {
      s = next, q0 = next_q0;
      if (kind.general) gradient_prepare(split_bits(m, stage ^ 1), p, s, q0, rows, k0, words, threads);
    }
  }
}

/* Returns true, and leaves the gradients alone, if one came out NaN. */
WORD bool split_backward_keys(const cuda_call &call, const split_kind kind) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  const int rows = 16 * kind.warps;
  int64_t tiles = (p.k_len + rows - 1) / rows, key_rows;
  uint32_t pair = blockIdx.x / (uint32_t)tiles;
  int k0 = (int)(blockIdx.x % (uint32_t)tiles) * rows, mine = k0 + 16 * (int)(threadIdx.x >> 5);
  attend_slice s =
      slice_make(p, call.operands, pair / p.kv_heads, pair % p.kv_heads * (p.heads / p.kv_heads), key_rows);
  if (k0 >= key_rows) return false;
  split_sum d_k, d_v;
  if (kind.careful) word_sync_block();
  split_keys_pass(call, s, k0, split_memory_of(memory, 2, kind), d_k, d_v, kind);
  float spoilt = split_spoilt(d_k, kind.columns) + split_spoilt(d_v, kind.columns);
  if (!kind.careful && word_sync_block_any(spoilt != spoilt)) return true;
  const float k_factor[2] = {(float)p.scale, (float)p.scale};
  const float v_factor[2] = {(float)p.dropout_scale, (float)p.dropout_scale};
  if (s.d_k.data) split_put(s.d_k, d_k, k_factor, mine, key_rows, p.head_dim, p.accumulate, kind.columns);
  if (s.d_v.data) split_put(s.d_v, d_v, v_factor, mine, key_rows, p.v_dim, p.accumulate, kind.columns);
  return false;
}

/* ---- dQ ---------------------------------------------------------------------------------------------------------- */

WORD void split_load_values(float lse[2], float delta[2], const cuda_call &call, const attend_slice &s, int mine) {
  const float *values = gradient_values(call, s.b, s.h);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = mine + lane_row() + 8 * half;
    lse[half] = i < s.q_len ? values[i] : NO_LSE;
    delta[half] = i < s.q_len ? values[gradient_delta_at(call.problem) + i] : 0;
  }
}

WORD void split_stage_keys(const split_memory &m, int stage, const attend_problem &p, const attend_slice &s, int k0,
                           const split_kind kind) {
  split_copy(split_stage(m, stage, 0, kind), kind.rows, s.k, k0, s.k_len, p.head_dim, kind);
  split_copy(split_stage(m, stage, 1, kind), kind.rows, s.v, k0, s.k_len, p.v_dim, kind);
  word_copy_commit();
}

/* Bits of mask and dropout are worked out for 32 keys at a time, whatever a stage has. */
WORD void split_prepare_keys(const split_memory &m, const attend_problem &p, const attend_slice &s, int q0, int k0,
                             const split_kind kind) {
  if (kind.general && k0 % 32 == 0)
    gradient_prepare(split_bits(m, k0 / 32 & 1), p, s, q0, 16 * kind.warps, k0, 1, 32 * kind.warps);
}

WORD void split_queries_pass(const cuda_call &call, const attend_slice &s, int q0, const split_memory &m,
                             split_sum &d_q, const split_kind kind) {
  const attend_problem &p = call.problem;
  const int rows = kind.rows, own_rows = 16 * kind.warps;
  int mine = q0 + 16 * (int)(threadIdx.x >> 5), q_len = (int)s.q_len, k_len = (int)s.k_len;
  gradient_band band = band_of(p, s);
  split_clear(d_q, kind.columns);
  /* The keys that any query of the block sees: from q0 - most to its last query - least. */
  int begin = q0 - band.most, end = q0 + own_rows - band.least;
  begin = begin < 0 ? 0 : begin / 32 * 32;
  if (end > k_len) end = k_len;
  if (begin >= end) return;
  float lse[2], delta[2];
  split_load_values(lse, delta, call, s, mine);
  split_copy(m.own[0], own_rows, s.q, q0, q_len, p.head_dim, kind);
  split_copy(m.own[1], own_rows, s.d_out, q0, q_len, p.v_dim, kind);
  split_stage_keys(m, 0, p, s, begin, kind);
  split_prepare_keys(m, p, s, q0, begin, kind);
  UNROLLED_BY_1
  for (int k0 = begin, stage = 0; k0 < end; k0 += rows, stage ^= 1) {
    word_copy_wait(0);
    word_sync_block(); /* this stage is here, and the last one has been read */
    if (k0 + rows < end) split_stage_keys(m, stage ^ 1, p, s, k0 + rows, kind);
    int at = k0 % 32;
    gradient_window w = window_of(band, mine, q_len, k0 - at, k_len, false);
    if (!split_blind(w, at, rows)) {
      float c[SPLIT_COUNT][4], d[SPLIT_COUNT][4];
      uint32_t seen = split_gradients(c, d, m, stage, split_bits(m, k0 / 32 & 1), 1, lse, delta, at, w, p, s, mine,
                                      k0 - at, false, false, kind);
      split_gradient(d_q, d, seen, split_stage(m, stage, 0, kind), kind);
    }
    if (k0 + rows < end) split_prepare_keys(m, p, s, q0, k0 + rows, kind);
  }
}

/* As split_backward_keys. */
WORD bool split_backward_queries(const cuda_call &call, const split_kind kind) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  const int rows = 16 * kind.warps;
  int64_t tiles = (p.q_len + rows - 1) / rows, key_rows;
  uint32_t pair = blockIdx.x / (uint32_t)tiles;
  int q0 = ((int)tiles - 1 - (int)(blockIdx.x % (uint32_t)tiles)) * rows; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  if (q0 >= s.q_len) return false;
  split_sum d_q;
  if (kind.careful) word_sync_block();
  split_queries_pass(call, s, q0, split_memory_of(memory, 2, kind), d_q, kind);
  float spoilt = split_spoilt(d_q, kind.columns);
  if (!kind.careful && word_sync_block_any(spoilt != spoilt)) return true;
  const float factor[2] = {(float)p.scale, (float)p.scale};
  split_put(s.d_q, d_q, factor, q0 + 16 * (int)(threadIdx.x >> 5), s.q_len, p.head_dim, p.accumulate, kind.columns);
  return false;
}

/* ---- dBias ------------------------------------------------------------------------------------------------------- */

/* Add dS of the 64 queries and keys at (q0, k0) of one sequence and head. */
WORD void split_bias_tile(const cuda_call &call, const attend_slice &s, int q0, int k0, const split_memory &m,
                          float sum[8][4], const split_kind kind) {
  const attend_problem &p = call.problem;
  int mine = q0 + 16 * (int)(threadIdx.x >> 5), q_len = (int)s.q_len, k_len = (int)s.k_len;
  gradient_band band = band_of(p, s);
  gradient_window block = window_of(band, q0, q_len, k0, k_len, false);
  if (63 < block.least || -63 > block.most || block.rows <= 0 || block.columns <= 0) return;
  float lse[2], delta[2];
  split_load_values(lse, delta, call, s, mine);
  word_sync_block(); /* until nobody reads an earlier tile */
  split_copy(m.own[0], 16 * kind.warps, s.q, q0, q_len, p.head_dim, kind);
  split_copy(m.own[1], 16 * kind.warps, s.d_out, q0, q_len, p.v_dim, kind);
  UNROLLED
  for (int part = 0; part < 64 / kind.rows; part++) {
    if (part) word_sync_block();
    split_stage_keys(m, 0, p, s, k0 + part * kind.rows, kind);
    split_prepare_keys(m, p, s, q0, k0 + part * kind.rows, kind);
    word_copy_wait(0);
    word_sync_block();
    int at = part * kind.rows % 32, origin = k0 + part * kind.rows - at;
    gradient_window w = window_of(band, mine, q_len, origin, k_len, false);
    if (split_blind(w, at, kind.rows)) continue;
    float c[SPLIT_COUNT][4], d[SPLIT_COUNT][4];
    split_gradients(c, d, m, 0, split_bits(m, origin / 32 & 1), 1, lse, delta, at, w, p, s, mine, origin, true, false,
                    kind);
    UNROLLED
    for (int n = 0; n < kind.rows / 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) sum[part * kind.rows / 8 + n][e] += d[n][e];
  }
}

/* A block owns a tile of dBias, and goes through all that the bias is broadcast over; a broadcast dimension is one
 * tile, whose sum is finished in order at the end. */
WORD void split_bias(const cuda_call &call, const split_kind kind) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_D_BIAS];
  const int rows = 16 * kind.warps, columns = 64;
  split_memory m = split_memory_of(memory, 2, kind);
  bool one_row = p.bias_shape[2] == 1, one_column = p.bias_shape[3] == 1;
  int64_t q_tiles = (p.bias_shape[2] + rows - 1) / rows, k_tiles = (p.bias_shape[3] + columns - 1) / columns;
  int64_t pair = blockIdx.x / (q_tiles * k_tiles), at_b = pair / p.bias_shape[1], at_h = pair % p.bias_shape[1];
  int at_k = (int)(blockIdx.x % k_tiles) * columns, at_q = (int)(blockIdx.x / k_tiles % q_tiles) * rows;
  float sum[8][4] = {};
  for (int64_t b = at_b; b < (p.bias_shape[0] == 1 ? p.batch : at_b + 1); b++)
    for (int64_t h = at_h; h < (p.bias_shape[1] == 1 ? p.heads : at_h + 1); h++) {
      int64_t key_rows;
      attend_slice s = slice_make(p, call.operands, b, h, key_rows);
      for (int q0 = at_q; q0 < (one_row ? (int)s.q_len : at_q + 1); q0 += rows)
        for (int k0 = at_k; k0 < (one_column ? (int)s.k_len : at_k + 1); k0 += columns)
          split_bias_tile(call, s, q0, k0, m, sum, kind);
    }
  float *sums = m.own[0];
  int first = 16 * (int)(threadIdx.x >> 5) + lane_row();
  word_sync_block();
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) sums[(first + 8 * (e >> 1)) * columns + 8 * n + 2 * lane_column() + (e & 1)] = sum[n][e];
  word_sync_block();
  for (int at = (int)threadIdx.x; at < rows * columns; at += 32 * kind.warps) {
    int row = at / columns, column = at % columns;
    if (at_q + row >= p.bias_shape[2] || at_k + column >= p.bias_shape[3]) continue;
    float x = 0;
    for (int r = row; r < (one_row ? rows : row + 1); r++)
      for (int c = column; c < (one_column ? columns : column + 1); c++) x += sums[r * columns + c];
    put_element(p, (char *)call.operands.data[OPERAND_D_BIAS],
                at_b * l.batch + at_h * l.head + (at_q + row) * l.row + (at_k + column) * l.col, l.type, x);
  }
}

#endif
