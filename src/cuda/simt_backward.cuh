/* SPDX-License-Identifier: MIT */
/* Backward, in two kernels of one shape: a block owns 64 keys (dK, dV) and goes through the queries that see them, or
 * 64 queries (dQ) and the keys that they see. Per pair: p = exp(s - lse), d_s = p (<dO_i, v_j> - delta_i), with delta
 * from the efficient back-end's kernel. Scores are computed in both kernels: seven products instead of five, and no
 * atomics.
 *
 *                 own        inner      first product   second product   sums
 *   keys          K, V       Q, dO      K Q             V dO             dV += p dO, dK += d_s Q
 *   queries       Q, dO      K, V       Q K             dO V             dQ += d_s K */
#ifndef ATTEND_CUDA_SIMT_BACKWARD_CUH
#define ATTEND_CUDA_SIMT_BACKWARD_CUH

#include "simt.cuh"

/* The queries [first, last) that may see one of the keys [j, j + 64). */
WORD void simt_query_range(const attend_problem &p, const attend_slice &s, int64_t j, int64_t &first, int64_t &last) {
  int64_t right = p.causal ? 0 : p.window_right, low = j - s.off, high = low + SIMT_ROWS - 1; /* of the diagonal */
  if (p.causal && p.window_right >= 0 && p.window_right < right) right = p.window_right;
  first = right >= 0 ? (right < low ? low - right : 0) : 0;
  last = p.window_left >= 0 && p.window_left < s.q_len - 1 - high ? high + p.window_left + 1 : s.q_len;
  if (j >= s.k_len) last = 0;
}

/* One head's part of the sums of a team. */
WORD void simt_backward_head(const cuda_call &call, const attend_slice &s, int64_t own0, simt_place &t, float d_1[8][8],
                             float d_2[8][8], const bool keys_own, const bool careful, const int columns) {
  const attend_problem &p = call.problem;
  const float unit = (float)p.scale * LOG2_E;
  const float *delta = (const float *)call.workspace + (s.b * p.heads + s.h) * p.q_len;
  const attend_matrix &inner_1 = keys_own ? s.q : s.k, &inner_2 = keys_own ? s.d_out : s.v;
  int64_t end = keys_own ? s.q_len : s.k_len, first, last, unused;
  const simt_source rows_1 = simt_rows(inner_1, end, p.head_dim), rows_2 = simt_rows(inner_2, end, p.v_dim),
                    positions_1 = simt_positions(inner_1, end, p.head_dim),
                    positions_2 = simt_positions(inner_2, end, p.v_dim);
  if (keys_own)
    simt_query_range(p, s, own0, first, last);
  else {
    attend_visible_range(&p, &s, own0, &first, &unused);
    attend_visible_range(&p, &s, own0 + SIMT_ROWS < s.q_len ? own0 + SIMT_ROWS - 1 : s.q_len - 1, &unused, &last);
  }
  const int step = SIMT_TEAMS(columns) * columns, rows = 2048 / columns;
  first = first / columns * columns + t.team * columns;
  word_copy_wait(0); /* what the last head asked for in vain */
  simt_ask(t, rows_1, first, 0, columns);
  UNROLLED_BY_1
  for (int64_t at = first; at < last; at += step) {
    float w[8][8];
    uint64_t seen = ~(uint64_t)0;
    simt_sight sight = keys_own ? simt_sight_of(p, s, at, columns, own0 + t.warp_first, rows)
                                : simt_sight_of(p, s, own0 + t.warp_first, rows, at, columns);
    const bool idle = sight == SIMT_NONE;
    simt_dots(w, t.own, t, rows_1, at, keys_own ? positions_2 : rows_2, at, idle, columns);
    if (!idle) {
      if (sight == SIMT_SOME) {
        seen = simt_seen(p, s, t, own0, at, keys_own);
        simt_hide(w, seen, -INFINITY);
      }
      UNROLLED
      for (int q = 0; q < 8; q++) {
        int64_t i = keys_own ? at + simt_column(t, q) : own0 + simt_row(t, q);
        float lse = i < s.q_len ? ((const float *)(const void *)s.lse)[i * s.lse_row] : -INFINITY;
        lse = lse == -INFINITY ? INFINITY : lse * LOG2_E;
        UNROLLED
        for (int k = 0; k < 8; k++) {
          float &x = keys_own ? w[k][q] : w[q][k];
          x = word_exp2(x * unit - lse);
        }
      }
      if (careful) simt_hide(w, seen, simt_hidden());
      simt_put_weights(w, t, columns);
    }
    if (keys_own) simt_values(d_2, t, positions_2, at, rows_2, at, idle, careful, columns);
    simt_dots(w, t.own + SIMT_OWN(columns), t, rows_2, at, positions_1, at, idle, columns);
    if (!idle) {
      UNROLLED
      for (int half = 0; half < 8; half += 4) {
        float difference[4];
        if (keys_own) UNROLLED
        for (int c = 0; c < 4; c++) {
          int64_t i = at + simt_column(t, half + c);
          difference[c] = i < s.q_len ? delta[i] : 0;
        }
        UNROLLED
        for (int r = 0; r < 8; r++) {
          int64_t i = own0 + simt_row(t, r);
          float mine = !keys_own && i < s.q_len ? delta[i] : 0;
          simt_four prob = simt_load(t.weights + simt_row(t, r) * SIMT_STRIDE(columns) + simt_position(t, half));
          UNROLLED
          for (int c = 0; c < 4; c++) {
            float &x = w[r][half + c], d = prob.at[c] * (x - (keys_own ? difference[c] : mine));
            x = careful ? (simt_is_hidden(prob.at[c]) ? prob.at[c] : d + 0.0f) : d;
          }
        }
      }
      simt_put_weights(w, t, columns);
    }
    simt_values(d_1, t, positions_1, at, rows_1, at + step, idle, careful, columns);
  }
}

/* The sums of the block, in team 0. */
WORD void simt_backward_pass(const cuda_call &call, int64_t b, int64_t h, int64_t heads, int64_t own0, simt_place &t,
                             float d_1[8][8], float d_2[8][8], const bool keys_own, const bool careful,
                             const int columns) {
  UNROLLED
  for (int r = 0; r < 8; r++) UNROLLED
  for (int c = 0; c < 8; c++) d_1[r][c] = d_2[r][c] = 0;
  UNROLLED_BY_1
  for (int64_t of = h; of < h + heads; of++) {
    int64_t key_rows;
    attend_slice s = slice_make(call.problem, call.operands, b, of, key_rows);
    simt_backward_head(call, s, own0, t, d_1, d_2, keys_own, careful, columns);
  }
  word_copy_wait(0);
  float *parts = t.own + 2 * SIMT_OWN(columns);
  simt_gather(d_1, parts, NULL, t, columns);
  if (keys_own) simt_gather(d_2, parts, NULL, t, columns);
}

WORD bool simt_backward_nan(const float sum[8][8], int64_t rows, const simt_place &t) {
  bool nan = false;
  UNROLLED
  for (int r = 0; r < 8; r++) UNROLLED
  for (int c = 0; c < 8; c++) nan |= t.team == 0 && simt_row(t, r) < rows && sum[r][c] != sum[r][c];
  return nan;
}

WORD void simt_backward(const cuda_call &call, const bool keys_own, const int columns) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  int64_t owned_heads = keys_own ? p.kv_heads : p.heads, heads = keys_own ? p.heads / p.kv_heads : 1, key_rows;
  int64_t tiles = ((keys_own ? p.k_len : p.q_len) + SIMT_ROWS - 1) / SIMT_ROWS;
  int64_t pair = blockIdx.x / (uint32_t)tiles, tile = blockIdx.x % (uint32_t)tiles;
  int64_t own0 = (keys_own ? tile : tiles - 1 - tile) * SIMT_ROWS; /* causal: the longest first */
  int64_t b = pair / owned_heads, h = pair % owned_heads * heads;
  attend_slice s = slice_make(p, call.operands, b, h, key_rows);
  int64_t rows = keys_own ? key_rows : s.q_len;
  if (own0 >= rows) return;
  simt_place t = simt_place_of((float *)(void *)memory, columns, 2);
  float d_1[8][8], d_2[8][8];
  int64_t end = keys_own ? s.k_len : s.q_len;
  simt_take(t.own, keys_own ? s.k : s.q, own0, end, p.head_dim, columns);
  simt_take(t.own + SIMT_OWN(columns), keys_own ? s.v : s.d_out, own0, end, p.v_dim, columns);
  word_sync_block();
  simt_backward_pass(call, b, h, heads, own0, t, d_1, d_2, keys_own, false, columns);
  bool nan = simt_backward_nan(d_1, rows - own0, t) || (keys_own && simt_backward_nan(d_2, rows - own0, t));
  if (word_sync_block_any(nan)) simt_backward_pass(call, b, h, heads, own0, t, d_1, d_2, keys_own, true, columns);
  if (t.team > 0) return;
  const attend_matrix &to_1 = keys_own ? s.d_k : s.d_q;
  UNROLLED
  for (int r = 0; r < 8; r++) {
    int64_t at = own0 + simt_row(t, r);
    if (at >= rows) continue;
    if (to_1.data) simt_put(to_1.data + 4 * at * to_1.row, d_1[r], (float)p.scale, p.head_dim, p.accumulate, t);
    if (keys_own && s.d_v.data) simt_put(s.d_v.data + 4 * at * s.d_v.row, d_2[r], 1, p.v_dim, p.accumulate, t);
  }
}

#endif
