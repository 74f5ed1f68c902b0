/* SPDX-License-Identifier: MIT */
/* Backward. Every element of a gradient has one owner, who adds the terms of its sum in ascending order: no atomics,
 * the same bits on every run. Scores are computed afresh from lse; per pair, with w = keep / (1 - dropout): p = exp(s -
 * lse)     d_s = p (w <dO_i, v_j> - delta_i)     delta_i = <dO_i, o_i> - dlse_i An owner of keys (dK, dV) goes through
 * the queries of all heads that share them, an owner of queries (dQ) through the keys they see, an owner of a tile of
 * the bias (dBias) through all that the bias is broadcast over. */

WORD real *delta_row(const cuda_call &call, const attend_slice &s) {
  return (real *)call.workspace + (s.b * call.problem.heads + s.h) * call.problem.q_len;
}

/* One warp a query. */
WORD void backward_delta(const cuda_call &call) {
  const attend_problem &p = call.problem;
  const int warps = EFFICIENT_THREADS / 32;
  int lane = (int)(threadIdx.x & 31), warp = (int)(threadIdx.x / 32);
  int64_t items = p.batch * p.heads * p.q_len;
  for (int64_t first = (int64_t)blockIdx.x * warps; first < items; first += (int64_t)gridDim.x * warps) {
    int64_t item = first + warp, key_rows;
    if (item >= items) continue;
    int64_t i = item % p.q_len, pair = item / p.q_len;
    attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
    if (i >= s.q_len) continue;
    real sum = 0;
    for (int64_t c = lane; c < p.v_dim; c += 32)
      sum += load_element(s.d_out.data, i * s.d_out.row + c * s.d_out.col) *
             load_element(s.out.data, i * s.out.row + c * s.out.col);
    sum += shuffle_xor(sum, 16);
    sum = row_sum(sum);
    if (s.d_lse) sum -= load_any(s.d_lse, i * s.d_lse_row, p.layout[OPERAND_D_LSE].type);
    if (lane == 0) delta_row(call, s)[i] = sum;
  }
}

/* Of the tile at (q0, k0): weights p w, and d_s; hidden pairs get 0. d_capped may be NULL (then d_s is of the score
 * after softcap). */
WORD void backward_scores(const cuda_call &call, const attend_slice &s, int64_t q0, int64_t k0,
                          real weights[ROWS][COLS], real d_scores[ROWS][COLS], real (*d_capped)[COLS],
                          bool visible[ROWS][COLS], tile_memory &m) {
  const attend_problem &p = call.problem;
  real prob[ROWS][COLS];
  tile_scores(prob, slice_rows_of(s.q, s.q_len), q0, slice_rows_of(s.k, s.k_len), k0, p.head_dim, m.stage);
  tile_finish_scores(prob, d_capped, visible, p, s, q0, k0);
  tile_scores(d_scores, slice_rows_of(s.d_out, s.q_len), q0, slice_rows_of(s.v, s.k_len), k0, p.v_dim, m.stage);
  for (int r = 0; r < ROWS; r++) {
    int64_t i = q0 + ROWS * thread_y() + r;
    real lse = i < s.q_len ? load_any(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type) : (real)-INFINITY;
    for (int c = 0; c < COLS; c++) {
      visible[r][c] = visible[r][c] && lse != (real)-INFINITY;
      prob[r][c] = visible[r][c] ? exp_of(prob[r][c] - lse) : 0;
      weights[r][c] = prob[r][c];
    }
  }
  real keep[ROWS][COLS];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLS; c++) keep[r][c] = 1;
  tile_drop(keep, p, s, q0, k0);
  for (int r = 0; r < ROWS; r++) {
    int64_t i = q0 + ROWS * thread_y() + r;
    real delta = i < s.q_len ? delta_row(call, s)[i] : 0;
    for (int c = 0; c < COLS; c++) {
      weights[r][c] *= keep[r][c];
      d_scores[r][c] = visible[r][c] ? prob[r][c] * (keep[r][c] * d_scores[r][c] - delta) : 0;
    }
  }
}

/* d_raw = scale * d_s * d_capped. */
WORD void backward_raw(real d_scores[ROWS][COLS], real d_capped[ROWS][COLS], const attend_problem &p) {
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLS; c++) d_scores[r][c] *= (real)p.scale * d_capped[r][c];
}

/* ---- dK, dV ---- */

WORD void keys_tile(const cuda_call &call, int64_t b, int64_t kv_head, int64_t k0, int64_t column, const int columns,
                    bool careful, real (*d_k)[MAX_COLUMNS / 16], real (*d_v)[MAX_COLUMNS / 16], tile_memory &m) {
  const attend_problem &p = call.problem;
  int64_t group = p.heads / p.kv_heads, key_rows;
  for (int o = 0; o < COLS; o++)
    for (int e = 0; e < columns / 16; e++) d_k[o][e] = d_v[o][e] = 0;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
    attend_slice s = slice_make(p, call.operands, b, h, key_rows);
    for (int64_t q0 = 0; q0 < s.q_len && k0 < s.k_len; q0 += QUERIES) {
      int64_t first, last;
      tile_key_range(p, s, q0, first, last);
      if (k0 + KEYS <= first || k0 >= last) continue;
      real weights[ROWS][COLS], d_scores[ROWS][COLS], d_capped[ROWS][COLS];
      bool visible[ROWS][COLS];
      backward_scores(call, s, q0, k0, weights, d_scores, d_capped, visible, m);
      if (s.d_v.data && column < p.v_dim) {
        tile_put_weights(weights, visible, false, m);
        tile_values(d_v, KEYS, QUERIES, columns, slice_rows_of(s.d_out, s.q_len), q0, column, p.v_dim, m, careful);
      }
      if (s.d_k.data && column < p.head_dim) {
        backward_raw(d_scores, d_capped, p);
        tile_put_weights(d_scores, visible, false, m);
        tile_values(d_k, KEYS, QUERIES, columns, slice_rows_of(s.q, s.q_len), q0, column, p.head_dim, m, careful);
      }
    }
  }
}

WORD void backward_keys(const cuda_call &call, const int columns) {
  __shared__ tile_memory m;
  const attend_problem &p = call.problem;
  int64_t widest = p.head_dim > p.v_dim ? p.head_dim : p.v_dim;
  int64_t tiles = (p.k_len + KEYS - 1) / KEYS, chunks = (widest + columns - 1) / columns;
  for (int64_t item = blockIdx.x; item < p.batch * p.kv_heads * tiles * chunks; item += gridDim.x) {
    int64_t column = item % chunks * columns, k0 = item / chunks % tiles * KEYS, pair = item / chunks / tiles, key_rows;
    int64_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
    attend_slice s = slice_make(p, call.operands, b, kv_head * (p.heads / p.kv_heads), key_rows);
    if (k0 >= key_rows) continue;
    real d_k[COLS][MAX_COLUMNS / 16], d_v[COLS][MAX_COLUMNS / 16];
    keys_tile(call, b, kv_head, k0, column, columns, false, d_k, d_v, m);
    bool nan_k = tile_any_nan(d_k, KEYS, columns, m), nan_v = tile_any_nan(d_v, KEYS, columns, m);
    if (nan_k || nan_v) keys_tile(call, b, kv_head, k0, column, columns, true, d_k, d_v, m);
    for (int o = 0; o < COLS; o++) {
      int64_t j = k0 + COLS * thread_y() + o;
      if (j >= key_rows) continue;
      for (int e = 0; e < columns / 16; e++) {
        int64_t c = column + column_of(e);
        if (s.d_k.data && c < p.head_dim) put_element(p, s.d_k.data, j * s.d_k.row + c * s.d_k.col, p.type, d_k[o][e]);
        if (s.d_v.data && c < p.v_dim) put_element(p, s.d_v.data, j * s.d_v.row + c * s.d_v.col, p.type, d_v[o][e]);
      }
    }
  }
}

/* ---- dQ ---- */

WORD void queries_tile(const cuda_call &call, const attend_slice &s, int64_t q0, int64_t column, const int columns,
                       bool careful, real (*d_q)[MAX_COLUMNS / 16], tile_memory &m) {
  const attend_problem &p = call.problem;
  for (int o = 0; o < ROWS; o++)
    for (int e = 0; e < columns / 16; e++) d_q[o][e] = 0;
  int64_t first, last;
  tile_key_range(p, s, q0, first, last);
  for (int64_t k0 = first; k0 < last; k0 += KEYS) {
    real weights[ROWS][COLS], d_scores[ROWS][COLS], d_capped[ROWS][COLS];
    bool visible[ROWS][COLS];
    backward_scores(call, s, q0, k0, weights, d_scores, d_capped, visible, m);
    backward_raw(d_scores, d_capped, p);
    tile_put_weights(d_scores, visible, true, m);
    tile_values(d_q, QUERIES, KEYS, columns, slice_rows_of(s.k, s.k_len), k0, column, p.head_dim, m, careful);
  }
}

WORD void backward_queries(const cuda_call &call, const int columns) {
  __shared__ tile_memory m;
  const attend_problem &p = call.problem;
  int64_t tiles = (p.q_len + QUERIES - 1) / QUERIES, chunks = (p.head_dim + columns - 1) / columns;
  for (int64_t item = blockIdx.x; item < p.batch * p.heads * tiles * chunks; item += gridDim.x) {
    int64_t column = item % chunks * columns, pair = item / chunks / tiles, key_rows;
    int64_t q0 = (tiles - 1 - item / chunks % tiles) * QUERIES;
    attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
    if (q0 >= s.q_len) continue;
    real d_q[ROWS][MAX_COLUMNS / 16];
    queries_tile(call, s, q0, column, columns, false, d_q, m);
    if (tile_any_nan(d_q, QUERIES, columns, m)) queries_tile(call, s, q0, column, columns, true, d_q, m);
    for (int o = 0; o < ROWS; o++) {
      int64_t i = q0 + ROWS * thread_y() + o;
      for (int e = 0; e < columns / 16; e++) {
        int64_t c = column + column_of(e);
        if (i < s.q_len && c < p.head_dim) put_element(p, s.d_q.data, i * s.d_q.row + c * s.d_q.col, p.type, d_q[o][e]);
      }
    }
  }
}

/* ---- dBias, dSink ---- */

/* A block owns a tile of d_bias; a broadcast dimension is one tile, and its sum is finished across threads in order. */
WORD void backward_bias(const cuda_call &call) {
  __shared__ tile_memory m;
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_D_BIAS];
  bool one_row = p.bias_shape[2] == 1, one_column = p.bias_shape[3] == 1;
  int64_t q_tiles = (p.bias_shape[2] + QUERIES - 1) / QUERIES, k_tiles = (p.bias_shape[3] + KEYS - 1) / KEYS;
  for (int64_t item = blockIdx.x; item < p.bias_shape[0] * p.bias_shape[1] * q_tiles * k_tiles; item += gridDim.x) {
    int64_t at_k = item % k_tiles * KEYS, at_q = item / k_tiles % q_tiles * QUERIES, pair = item / k_tiles / q_tiles;
    int64_t at_b = pair / p.bias_shape[1], at_h = pair % p.bias_shape[1], key_rows;
    real sum[ROWS][COLS];
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < COLS; c++) sum[r][c] = 0;
    for (int64_t b = at_b; b < (p.bias_shape[0] == 1 ? p.batch : at_b + 1); b++)
      for (int64_t h = at_h; h < (p.bias_shape[1] == 1 ? p.heads : at_h + 1); h++) {
        attend_slice s = slice_make(p, call.operands, b, h, key_rows);
        for (int64_t q0 = at_q; q0 < (one_row ? s.q_len : at_q + 1) && q0 < s.q_len; q0 += QUERIES) {
          int64_t first, last;
          tile_key_range(p, s, q0, first, last);
          for (int64_t k0 = one_column ? first : at_k; k0 < (one_column ? last : at_k + 1); k0 += KEYS) {
            if (k0 + KEYS <= first || k0 >= last) continue;
            real weights[ROWS][COLS], d_scores[ROWS][COLS];
            bool visible[ROWS][COLS];
            backward_scores(call, s, q0, k0, weights, d_scores, NULL, visible, m);
            for (int r = 0; r < ROWS; r++)
              for (int c = 0; c < COLS; c++) sum[r][c] += d_scores[r][c];
          }
        }
      }
    word_sync_block();
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < COLS; c++) m.weights[(ROWS * thread_y() + r) * KEYS + COLS * thread_x() + c] = sum[r][c];
    word_sync_block();
    for (int e = (int)threadIdx.x; e < QUERIES * KEYS; e += EFFICIENT_THREADS) {
      int row = e / KEYS, column = e % KEYS;
      if (at_q + row >= p.bias_shape[2] || at_k + column >= p.bias_shape[3]) continue;
      real x = 0;
      for (int r = row; r < (one_row ? QUERIES : row + 1); r++)
        for (int c = column; c < (one_column ? KEYS : column + 1); c++) x += m.weights[r * KEYS + c];
      put_element(p, (char *)call.operands.data[OPERAND_D_BIAS],
                  at_b * l.batch + at_h * l.head + (at_q + row) * l.row + (at_k + column) * l.col, l.type, x);
    }
    word_sync_block();
  }
}

/* d_sink[h] = -sum exp(sink - lse) delta: one block a head. */
WORD void backward_sink(const cuda_call &call) {
  __shared__ real part[EFFICIENT_THREADS];
  const attend_problem &p = call.problem;
  for (int64_t h = blockIdx.x; h < p.heads; h += gridDim.x) {
    real sum = 0;
    for (int64_t b = 0; b < p.batch; b++) {
      int64_t key_rows;
      attend_slice s = slice_make(p, call.operands, b, h, key_rows);
      if (s.sink == -INFINITY) continue;
      for (int64_t i = threadIdx.x; i < s.q_len; i += EFFICIENT_THREADS)
        sum -=
            exp_of((real)s.sink - load_any(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type)) * delta_row(call, s)[i];
    }
    part[threadIdx.x] = sum;
    for (int half = EFFICIENT_THREADS / 2; half; half /= 2) {
      word_sync_block();
      if ((int)threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    const attend_layout &l = p.layout[OPERAND_D_SINK];
    if (threadIdx.x == 0) put_element(p, (char *)call.operands.data[OPERAND_D_SINK], h * l.head, l.type, part[0]);
    word_sync_block();
  }
}
