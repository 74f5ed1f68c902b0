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
 * A third kernel, where asked for, owns tiles of dBias, and repeats the two products of dS for them.
 *
 * A block whose gradient came out NaN does its tiles again, carefully: in a function that is not inlined, so that what
 * it needs does not take registers from the others. */
#ifndef ATTEND_CUDA_TILE_BACKWARD_CUH
#define ATTEND_CUDA_TILE_BACKWARD_CUH

#include "gradient_tile.cuh"

/* ---- Delta ------------------------------------------------------------------------------------------------------ */

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

/* ---- dK, dV ------------------------------------------------------------------------------------------------------ */

/* What comes next: Q, dO, and lse or delta. */
struct keys_streams {
  gradient_stream q, d_out;
  const float *values;
};

WORD keys_streams keys_streams_of(const cuda_call &call, const attend_slice &s, int q0, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int units = staged_rows(kind) / 4;
  int which = (int)threadIdx.x / units, unit = (int)threadIdx.x % units;
  keys_streams next = {stream_of(s.q, q0, (int)p.head_dim, kind), stream_of(s.d_out, q0, (int)p.v_dim, kind),
                       gradient_values(call, s.b, s.h) + (which ? gradient_delta_at(p) : 0) + q0 + 4 * unit};
  return next;
}

WORD void keys_stage(const keys_streams &from, int left, int at, gradient_memory &memory, const gradient_kind kind) {
  const int units = staged_rows(kind) / 4;
  int which = (int)threadIdx.x / units, unit = (int)threadIdx.x % units;
  stage_copy(memory.rows[at][0], from.q, left, kind);
  stage_copy(memory.rows[at][1], from.d_out, left, kind);
  if (which < 2) word_copy_async(&memory.values[at][which][unit], from.values, true);
}

/* Forward by so many queries and heads. */
WORD void keys_advance(keys_streams &next, const attend_problem &p, int64_t queries, int64_t heads) {
  next.q.at += 2 * (queries * p.layout[OPERAND_Q].row + heads * p.layout[OPERAND_Q].head);
  next.d_out.at += 2 * (queries * p.layout[OPERAND_D_OUT].row + heads * p.layout[OPERAND_D_OUT].head);
  next.values += queries + heads * gradient_padded(p);
}

/* What a warp that owns keys holds. */
struct keys_state {
  uint32_t k[GRADIENT_TILES][8][4], v[GRADIENT_TILES][8][4];
  float d_k[GRADIENT_TILES][2][8][4], d_v[GRADIENT_TILES][2][8][4];
};

/* Staged queries at .. at + 15, the first of the stage being q0. */
WORD void keys_step(keys_state &state, gradient_memory &memory, const int stage, int at, const bool full,
                    const gradient_window &w, const attend_problem &p, const attend_slice &s, int mine, int q0,
                    const bool careful, const gradient_kind kind) {
  const float *values = (const float *)(const void *)memory.values[stage][0] + at + 2 * lane_column();
  uint32_t a_p[GRADIENT_TILES][4], a_d[GRADIENT_TILES][4], allowed[GRADIENT_TILES][4];
  if (kind.general) {
    float c[2][4], d[2][4];
    UNROLLED
    for (int n = 0; n < 2; n++) {
      stage_dots(&c[n], state.k, memory.rows[stage][0], at + 8 * n, kind);
      stage_dots(&d[n], state.v, memory.rows[stage][1], at + 8 * n, kind);
    }
    int own = 16 * (int)(threadIdx.x >> 5) + lane_row();
    uint32_t seen = gradient_general(c, d, 2, values, values + 64, at, w, p, s, mine, q0, own,
                                     bits_of_stage(memory, stage), kind.warps / 2, kind.capped, true);
    UNROLLED
    for (int n = 0; n < 2; n++) {
      gradient_operand(a_p[0], n, c[n]);
      gradient_operand(a_d[0], n, d[n]);
      if (careful) gradient_allowed(allowed[0], n, seen >> 4 * n);
    }
  } else {
    UNROLLED
    for (int n = 0; n < 2; n++) {
      float c[GRADIENT_TILES][4], d[GRADIENT_TILES][4];
      float lse[2] = {values[8 * n], values[8 * n + 1]}, delta[2] = {values[64 + 8 * n], values[64 + 8 * n + 1]};
      stage_dots(c, state.k, memory.rows[stage][0], at + 8 * n, kind);
      stage_dots(d, state.v, memory.rows[stage][1], at + 8 * n, kind);
      UNROLLED
      for (int m = 0; m < kind.tiles; m++) {
        uint32_t seen = gradient_scores(c[m], d[m], lse, delta, m, at + 8 * n, full, w, p, true);
        gradient_operand(a_p[m], n, c[m]);
        gradient_operand(a_d[m], n, d[m]);
        if (careful) gradient_allowed(allowed[m], n, seen);
      }
    }
  }
  stage_product(state.d_v, a_p, allowed, memory.rows[stage][1], at, careful, kind);
  stage_product(state.d_k, a_d, allowed, memory.rows[stage][0], at, careful, kind);
}

WORD void keys_pass(const cuda_call &call, const attend_slice &first, int k0, gradient_memory &memory,
                    keys_state &state, const bool careful, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, step = staged_rows(kind);
  int mine = k0 + (int)(threadIdx.x >> 5) * owned, q_len = (int)first.q_len, k_len = (int)first.k_len;
  gradient_band band = band_of(p, first);
  gradient_clear(state.d_k, kind);
  gradient_clear(state.d_v, kind);
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) {
    operand_load(state.k[m], first.k, mine + 16 * m, k_len, (int)p.head_dim, kind);
    operand_load(state.v[m], first.v, mine + 16 * m, k_len, (int)p.v_dim, kind);
  }
  /* The queries that see any key of the block: from k0 + least to its last key + most. */
  int begin = k0 + band.least,
      end = band.most < q_len - k0 - kind.warps * owned ? k0 + kind.warps * owned + band.most : q_len;
  begin = begin < 0 ? 0 : begin / step * step;
  if (begin >= end || k0 >= k_len) return;
  int steps = (end - begin + step - 1) / step, stages = steps * (int)(p.heads / p.kv_heads), q0 = begin;
  keys_streams next = keys_streams_of(call, first, begin, kind);
  keys_stage(next, q_len - begin, 0, memory, kind);
  word_copy_commit();
  attend_slice s = first;
  if (kind.general) gradient_prepare(bits_of_stage(memory, 0), p, s, begin, step, k0, kind.warps / 2, 32 * kind.warps);
  for (int n = 0; n < stages; n++) {
    const int stage = n & 1;
    int next_q0 = q0 + step;
    if (next_q0 < end)
      keys_advance(next, p, step, 0);
    else {
      keys_advance(next, p, begin - q0, 1);
      next_q0 = begin;
    }
    word_copy_wait(0);
    word_sync_block(); /* this stage is here, and the last one has been read */
    if (n + 1 < stages) keys_stage(next, q_len - next_q0, stage ^ 1, memory, kind);
    word_copy_commit();
    gradient_window w = window_of(band, mine, k_len, q0, q_len, true);
    if (!careful && !kind.general && window_full(w, 0, step, owned)) {
      UNROLLED
      for (int at = 0; at < step; at += 16) keys_step(state, memory, stage, at, true, w, p, s, mine, q0, careful, kind);
    } else {
      for (int at = 0; at < step; at += 16)
        if (!window_empty(w, at, owned)) keys_step(state, memory, stage, at, false, w, p, s, mine, q0, careful, kind);
    }
    q0 = next_q0;
    if (kind.general && n + 1 < stages) {
      int64_t unused;
      if (q0 == begin) s = slice_make(p, call.operands, first.b, first.h + (n + 1) / steps, unused);
      gradient_prepare(bits_of_stage(memory, stage ^ 1), p, s, q0, step, k0, kind.warps / 2, 32 * kind.warps);
    }
  }
}

/* Of tile number `tile`. Returns true, and leaves the gradients alone, if one came out NaN. */
WORD bool gradient_keys(const cuda_call &call, uint32_t tile, gradient_memory &memory, const bool careful,
                        const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, rows = owned * kind.warps;
  int64_t tiles = (p.k_len + rows - 1) / rows, key_rows;
  uint32_t pair = tile / (uint32_t)tiles;
  int k0 = (int)(tile % (uint32_t)tiles) * rows;
  attend_slice s =
      slice_make(p, call.operands, pair / p.kv_heads, pair % p.kv_heads * (p.heads / p.kv_heads), key_rows);
  if (k0 >= key_rows) return false;
  keys_state state;
  keys_pass(call, s, k0, memory, state, careful, kind);
  if (!careful && gradient_any(gradient_nan(state.d_k, kind) || gradient_nan(state.d_v, kind), memory, kind))
    return true;
  int mine = k0 + (int)(threadIdx.x >> 5) * owned;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) {
    if (s.d_k.data)
      gradient_store(p, s.d_k, state.d_k[m], mine + 16 * m, (int)key_rows, (int)p.head_dim, (float)p.scale, kind);
    if (s.d_v.data)
      gradient_store(p, s.d_v, state.d_v[m], mine + 16 * m, (int)key_rows, (int)p.v_dim, (float)p.dropout_scale, kind);
  }
  return false;
}

/* ---- dQ ---------------------------------------------------------------------------------------------------------- */

/* What a warp that owns queries holds. */
struct queries_state {
  uint32_t q[GRADIENT_TILES][8][4], d_out[GRADIENT_TILES][8][4];
  float lse[GRADIENT_TILES][2], delta[GRADIENT_TILES][2], d_q[GRADIENT_TILES][2][8][4];
};

/* The rows from `mine` on. */
WORD void queries_load(queries_state &state, const cuda_call &call, const attend_slice &s, int mine,
                       const gradient_kind kind) {
  const attend_problem &p = call.problem;
  int q_len = (int)s.q_len;
  const float *values = gradient_values(call, s.b, s.h);
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) {
    operand_load(state.q[m], s.q, mine + 16 * m, q_len, (int)p.head_dim, kind);
    operand_load(state.d_out[m], s.d_out, mine + 16 * m, q_len, (int)p.v_dim, kind);
    UNROLLED
    for (int half = 0; half < 2; half++) {
      int i = mine + 16 * m + 8 * half + lane_row();
      state.lse[m][half] = i < q_len ? values[i] : NO_LSE;
      state.delta[m][half] = i < q_len ? values[gradient_delta_at(p) + i] : 0;
    }
  }
}

/* d = dS of 16 columns from column `at` of the window on, which lie at row `staged` of the stage. Returns who sees
 * whom.
 */
WORD uint32_t queries_general(const queries_state &state, float d[2][4], const uint4 stage[2][STAGE_UNITS], int staged,
                              int at, const gradient_window &w, const attend_problem &p, const attend_slice &s,
                              int mine, int k0, const gradient_bits &bits, const int words, const gradient_kind kind) {
  float c[2][4];
  UNROLLED
  for (int n = 0; n < 2; n++) {
    stage_dots(&c[n], state.q, stage[0], staged + 8 * n, kind);
    stage_dots(&d[n], state.d_out, stage[1], staged + 8 * n, kind);
  }
  return gradient_general(c, d, 2, state.lse[0], state.delta[0], at, w, p, s, mine, k0,
                          16 * (int)(threadIdx.x >> 5) + lane_row(), bits, words, kind.capped, false);
}

/* Staged keys at .. at + 15, the first of the stage being k0. */
WORD void queries_step(queries_state &state, gradient_memory &memory, const int stage, int at, const bool full,
                       const gradient_window &w, const attend_problem &p, const attend_slice &s, int mine, int k0,
                       const bool careful, const gradient_kind kind) {
  uint32_t a_d[GRADIENT_TILES][4], allowed[GRADIENT_TILES][4];
  if (kind.general) {
    float d[2][4];
    uint32_t seen = queries_general(state, d, memory.rows[stage], at, at, w, p, s, mine, k0,
                                    bits_of_stage(memory, stage), staged_rows(kind) / 32, kind);
    UNROLLED
    for (int n = 0; n < 2; n++) {
      gradient_operand(a_d[0], n, d[n]);
      if (careful) gradient_allowed(allowed[0], n, seen >> 4 * n);
    }
  } else {
    UNROLLED
    for (int n = 0; n < 2; n++) {
      float c[GRADIENT_TILES][4], d[GRADIENT_TILES][4];
      stage_dots(c, state.q, memory.rows[stage][0], at + 8 * n, kind);
      stage_dots(d, state.d_out, memory.rows[stage][1], at + 8 * n, kind);
      UNROLLED
      for (int m = 0; m < kind.tiles; m++) {
        uint32_t seen = gradient_scores(c[m], d[m], state.lse[m], state.delta[m], m, at + 8 * n, full, w, p, false);
        gradient_operand(a_d[m], n, d[m]);
        if (careful) gradient_allowed(allowed[m], n, seen);
      }
    }
  }
  stage_product(state.d_q, a_d, allowed, memory.rows[stage][0], at, careful, kind);
}

WORD void queries_pass(const cuda_call &call, const attend_slice &s, int q0, gradient_memory &memory,
                       queries_state &state, const bool careful, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, step = staged_rows(kind);
  int mine = q0 + (int)(threadIdx.x >> 5) * owned, q_len = (int)s.q_len, k_len = (int)s.k_len;
  gradient_band band = band_of(p, s);
  gradient_clear(state.d_q, kind);
  queries_load(state, call, s, mine, kind);
  /* The keys that any query of the block sees: from q0 - most to its last query - least. */
  int begin = q0 - band.most, end = q0 + kind.warps * owned - band.least;
  begin = begin < 0 ? 0 : begin / step * step;
  if (end > k_len) end = k_len;
  if (begin >= end) return;
  gradient_stream keys = stream_of(s.k, begin, (int)p.head_dim, kind);
  gradient_stream values_of = stream_of(s.v, begin, (int)p.v_dim, kind);
  stage_copy(memory.rows[0][0], keys, k_len - begin, kind);
  stage_copy(memory.rows[0][1], values_of, k_len - begin, kind);
  word_copy_commit();
  const int words = step / 32, threads = 32 * kind.warps;
  if (kind.general) gradient_prepare(bits_of_stage(memory, 0), p, s, q0, 16 * kind.warps, begin, words, threads);
  for (int k0 = begin, stage = 0; k0 < end; k0 += step, stage ^= 1) {
    word_copy_wait(0);
    word_sync_block(); /* this stage is here, and the last one has been read */
    if (k0 + step < end) {
      keys.at += step * keys.row_bytes, values_of.at += step * values_of.row_bytes;
      stage_copy(memory.rows[stage ^ 1][0], keys, k_len - k0 - step, kind);
      stage_copy(memory.rows[stage ^ 1][1], values_of, k_len - k0 - step, kind);
    }
    word_copy_commit();
    gradient_window w = window_of(band, mine, q_len, k0, k_len, false);
    if (!careful && !kind.general && window_full(w, 0, step, owned)) {
      UNROLLED
      for (int at = 0; at < step; at += 16)
        queries_step(state, memory, stage, at, true, w, p, s, mine, k0, careful, kind);
    } else {
      for (int at = 0; at < step; at += 16)
        if (!window_empty(w, at, owned))
          queries_step(state, memory, stage, at, false, w, p, s, mine, k0, careful, kind);
    }
    if (kind.general && k0 + step < end)
      gradient_prepare(bits_of_stage(memory, stage ^ 1), p, s, q0, 16 * kind.warps, k0 + step, words, threads);
  }
}

/* As gradient_keys. */
WORD bool gradient_queries(const cuda_call &call, uint32_t tile, gradient_memory &memory, const bool careful,
                           const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int owned = 16 * kind.tiles, rows = owned * kind.warps;
  int64_t tiles = (p.q_len + rows - 1) / rows, key_rows;
  uint32_t pair = tile / (uint32_t)tiles;
  int q0 = ((int)tiles - 1 - (int)(tile % (uint32_t)tiles)) * rows; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  if (q0 >= s.q_len) return false;
  queries_state state;
  queries_pass(call, s, q0, memory, state, careful, kind);
  if (!careful && gradient_any(gradient_nan(state.d_q, kind), memory, kind)) return true;
  int mine = q0 + (int)(threadIdx.x >> 5) * owned;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++)
    gradient_store(p, s.d_q, state.d_q[m], mine + 16 * m, (int)s.q_len, (int)p.head_dim, (float)p.scale, kind);
  return false;
}

/* ---- dBias, dSink ------------------------------------------------------------------------------------------------ */

/* What a warp adds up: dS of its 16 rows, and of 64 columns. */
struct bias_state {
  float d_bias[4][2][4];
};

/* Add dS of the tile at (q0, k0) of one sequence and head. All of its keys fit in the two stages. */
WORD void bias_tile(const cuda_call &call, const attend_slice &s, int q0, int k0, gradient_memory &memory,
                    bias_state &state, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const int rows = 16 * kind.warps, step = staged_rows(kind);
  int mine = q0 + 16 * (int)(threadIdx.x >> 5), q_len = (int)s.q_len, k_len = (int)s.k_len;
  gradient_band band = band_of(p, s);
  gradient_window block = window_of(band, q0, q_len, k0, k_len, false);
  if (BIAS_KEYS - 1 < block.least || 1 - rows > block.most || block.rows <= 0 || block.columns <= 0) return;
  word_sync_block(); /* until nobody reads the stages of an earlier tile */
  UNROLLED
  for (int n = 0; n < kind.chunks; n++) {
    stage_copy(memory.rows[n][0], stream_of(s.k, k0 + n * step, (int)p.head_dim, kind), k_len - k0 - n * step, kind);
    stage_copy(memory.rows[n][1], stream_of(s.v, k0 + n * step, (int)p.v_dim, kind), k_len - k0 - n * step, kind);
  }
  word_copy_commit();
  gradient_bits bits = bits_of_stage(memory, 0);
  gradient_prepare(bits, p, s, q0, rows, k0, BIAS_KEYS / 32, 2 * rows);
  queries_state queries;
  queries_load(queries, call, s, mine, kind);
  word_copy_wait(0);
  word_sync_block();
  gradient_window w = window_of(band, mine, q_len, k0, k_len, false);
  UNROLLED
  for (int x = 0; x < BIAS_KEYS / 16; x++) {
    if (window_empty(w, 16 * x, 16)) continue;
    float d[2][4];
    queries_general(queries, d, memory.rows[16 * x / step], 16 * x % step, 16 * x, w, p, s, mine, k0, bits,
                    BIAS_KEYS / 32, kind);
    UNROLLED
    for (int n = 0; n < 2; n++) UNROLLED
    for (int e = 0; e < 4; e++) state.d_bias[x][n][e] += d[n][e];
  }
}

/* A block owns a tile of dBias, and goes through all that the bias is broadcast over; a broadcast dimension is one
 * tile, whose sum is finished in order at the end. */
WORD void gradient_bias(const cuda_call &call, uint32_t tile, gradient_memory &memory, const gradient_kind kind) {
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_D_BIAS];
  const int rows = 16 * kind.warps;
  bool one_row = p.bias_shape[2] == 1, one_column = p.bias_shape[3] == 1;
  int64_t q_tiles = (p.bias_shape[2] + rows - 1) / rows, k_tiles = (p.bias_shape[3] + BIAS_KEYS - 1) / BIAS_KEYS;
  int64_t pair = tile / (q_tiles * k_tiles), at_b = pair / p.bias_shape[1], at_h = pair % p.bias_shape[1];
  int at_k = (int)(tile % k_tiles) * BIAS_KEYS, at_q = (int)(tile / k_tiles % q_tiles) * rows;
  bias_state state = {};
  for (int64_t b = at_b; b < (p.bias_shape[0] == 1 ? p.batch : at_b + 1); b++)
    for (int64_t h = at_h; h < (p.bias_shape[1] == 1 ? p.heads : at_h + 1); h++) {
      int64_t key_rows;
      attend_slice s = slice_make(p, call.operands, b, h, key_rows);
      for (int q0 = at_q; q0 < (one_row ? (int)s.q_len : at_q + 1); q0 += rows)
        for (int k0 = at_k; k0 < (one_column ? (int)s.k_len : at_k + 1); k0 += BIAS_KEYS)
          bias_tile(call, s, q0, k0, memory, state, kind);
    }
  float *sums = (float *)(void *)memory.rows;
  int first = 16 * (int)(threadIdx.x >> 5) + lane_row();
  word_sync_block();
  UNROLLED
  for (int x = 0; x < BIAS_KEYS / 16; x++) UNROLLED
  for (int n = 0; n < 2; n++) UNROLLED
  for (int e = 0; e < 4; e++)
    sums[(first + 8 * (e >> 1)) * BIAS_KEYS + 16 * x + 8 * n + 2 * lane_column() + (e & 1)] = state.d_bias[x][n][e];
  word_sync_block();
  for (int at = (int)threadIdx.x; at < rows * BIAS_KEYS; at += 32 * kind.warps) {
    int row = at / BIAS_KEYS, column = at % BIAS_KEYS;
    if (at_q + row >= p.bias_shape[2] || at_k + column >= p.bias_shape[3]) continue;
    float x = 0;
    for (int r = row; r < (one_row ? rows : row + 1); r++)
      for (int c = column; c < (one_column ? BIAS_KEYS : column + 1); c++) x += sums[r * BIAS_KEYS + c];
    put_element(p, (char *)call.operands.data[OPERAND_D_BIAS],
                at_b * l.batch + at_h * l.head + (at_q + row) * l.row + (at_k + column) * l.col, l.type, x);
  }
}

#endif
