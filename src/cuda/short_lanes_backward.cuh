/* SPDX-License-Identifier: MIT */
/* Backward on short sequences in f32: one warp has all gradients of a head of K and of the heads of Q that share it.
 * Whole rows of P are at hand, so neither O nor lse is read: delta_i = sum_j p_ij dP_ij - dlse_i. Heads wider than 64
 * columns take a warp for each chunk of 64, which computes the scores afresh. */
#ifndef ATTEND_CUDA_SHORT_LANES_BACKWARD_CUH
#define ATTEND_CUDA_SHORT_LANES_BACKWARD_CUH

#include "short_lanes.cuh"

/* From scores and dP: weights P keep / (1 - dropout) in x.w, and dS in d. */
WORD void lanes_gradient(lanes_scores &x, float d[8][4], const attend_problem &p, const attend_slice &s,
                         const lanes_kind kind) {
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) {
    int i = lanes_y() + 4 * r;
    float inverse = x.total[r] == 0 ? 0 : 1 / x.total[r], delta = 0, keep[4];
    uint32_t kept = kind.general && p.dropout_threshold ? lanes_kept(p, s, r) : 15;
    UNROLLED
    for (int c = 0; c < kind.rows / 8; c++) {
      keep[c] = !kind.general ? 1 : kept >> c & 1 ? (float)p.dropout_scale : 0;
      x.w[r][c] *= inverse;
      d[r][c] = lanes_seen(x, r, c) ? d[r][c] * keep[c] : 0;
      delta += x.w[r][c] * d[r][c];
    }
    delta = lanes_sum(delta);
    if (kind.general && s.d_lse && i < (int)s.q_len)
      delta -= load_any(s.d_lse, i * s.d_lse_row, p.layout[OPERAND_D_LSE].type);
    UNROLLED
    for (int c = 0; c < kind.rows / 8; c++) {
      bool seen = lanes_seen(x, r, c);
      float d_score = x.w[r][c] * (d[r][c] - delta) * (kind.general ? x.d_capped[r][c] : 1);
      d[r][c] = !seen ? lanes_hidden() : d_score == 0 ? 0 : d_score; /* never -0 */
      x.w[r][c] = !seen ? lanes_hidden() : x.w[r][c] * keep[c];
    }
  }
}

WORD void lanes_backward_pair(const cuda_call &call, uint32_t number, int chunk, float *memory, const lanes_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, matrix = kind.rows * SHORT_LANES_STRIDE;
  const int chunks = kind.general ? (head_dim + 63) / 64 : 1, v_chunks = kind.general ? (v_dim + 63) / 64 : 1;
  const int members = kind.general ? (int)(p.heads / p.kv_heads) : 1;
  float *q = memory, *k = memory + matrix, *d_out = memory + 2 * matrix, *v = memory + 3 * matrix, factor[8], unit[8];
  float d_k[8][8] = {}, d_v[8][8] = {};
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) factor[r] = (float)p.scale, unit[r] = 1;
  for (int member = 0; member < members; member++) {
    const short_sequence s = short_slice(call, number, kind.general, (uint32_t)member, kind.general);
    lanes_scores x = {};
    float d[8][4] = {};
    const int most = chunks > v_chunks ? chunks : v_chunks;
    for (int at = 0; at < most; at++) {
      int columns = head_dim - 64 * at, v_columns = v_dim - 64 * at;
      word_sync_warp();
      lanes_ask(q, s.q, s.q_len, at, head_dim, kind);
      lanes_ask(k, s.k, s.k_len, at, head_dim, kind);
      lanes_ask(d_out, s.d_out, s.q_len, at, v_dim, kind);
      lanes_ask(v, s.v, s.k_len, at, v_dim, kind);
      lanes_wait();
      lanes_dots(x.w, q, k, columns < 64 ? columns : 64, kind);
      lanes_dots(d, d_out, v, v_columns < 64 ? v_columns : 64, kind);
    }
    lanes_softmax(x, p, s, kind);
    lanes_gradient(x, d, p, s, kind);
    if (kind.general && most > 1) {
      word_sync_warp();
      lanes_ask(q, s.q, s.q_len, chunk, head_dim, kind);
      lanes_ask(k, s.k, s.k_len, chunk, head_dim, kind);
      lanes_ask(d_out, s.d_out, s.q_len, chunk, v_dim, kind);
      lanes_wait();
    }
    float *weights = v;
    float d_q[8][8] = {};
    lanes_put(weights, d, false, kind);
    lanes_fresh_values(d_q, weights, k, s.k_len, false, kind);
    lanes_store(s.d_q, d_q, factor, s.q_len, chunk, head_dim, p.accumulate, kind);
    lanes_put(weights, d, true, kind);
    if (members > 1) /* a NaN could not be undone */
      lanes_values(d_k, weights, q, s.q_len, true, true, kind);
    else
      lanes_fresh_values(d_k, weights, q, s.q_len, true, kind);
    if (member + 1 == members) lanes_store(s.d_k, d_k, factor, s.key_rows, chunk, head_dim, p.accumulate, kind);
    lanes_put(weights, x.w, true, kind);
    if (members > 1)
      lanes_values(d_v, weights, d_out, s.q_len, true, true, kind);
    else
      lanes_fresh_values(d_v, weights, d_out, s.q_len, true, kind);
    if (member + 1 == members) lanes_store(s.d_v, d_v, unit, s.key_rows, chunk, v_dim, p.accumulate, kind);
  }
}

WORD void lanes_backward(const cuda_call &call, float *memory, const lanes_kind kind) {
  const attend_problem &p = call.problem;
  const int widest = (int)(p.head_dim > p.v_dim ? p.head_dim : p.v_dim), chunks = kind.general ? (widest + 63) / 64 : 1;
  const uint32_t warp = threadIdx.x >> 5, item = blockIdx.x * SHORT_LANES_WARPS(kind.rows) + warp;
  uint32_t number = item, chunk = 0;
  if (kind.general) number = item / (uint32_t)chunks, chunk = item % (uint32_t)chunks;
  if (number >= (uint32_t)(p.batch * p.kv_heads)) return;
  memory += warp * 4 * kind.rows * SHORT_LANES_STRIDE;
  const lanes_kind lower = {kind.rows, false, true};
  if (!kind.general && p.causal && (p.top_left || p.k_len <= p.q_len))
    lanes_backward_pair(call, number, (int)chunk, memory, lower);
  else
    lanes_backward_pair(call, number, (int)chunk, memory, kind);
}

#endif
