/* SPDX-License-Identifier: MIT */
/* Backward on short sequences: one tile owns all gradients of a head of K and of the heads of Q that share it. Whole
 * rows of P are at hand, so neither O nor lse is read: delta_i = sum_j p_ij dP_ij - dlse_i. Heads wider than 64 columns
 * take an item for each chunk of 64, which computes the scores afresh. */
#ifndef ATTEND_CUDA_SHORT_BACKWARD_CUH
#define ATTEND_CUDA_SHORT_BACKWARD_CUH

#include "short.cuh"

/* From the scores and dP of a row: weights P keep (not yet times 1/(1-dropout)) into p.x, dS into d.x. */
WORD void short_gradient(short_scores &p_row, short_scores &d_row, const float dots[4][4], int m, const int half,
                         const attend_slice &s, const attend_problem &p, const short_kind kind) {
  float shift, sum = short_softmax(p_row, s, shift, kind), inverse = sum == 0 ? 0 : word_reciprocal(sum), delta = 0;
  int i = short_row(2 * m + half, kind);
  d_row.x[3][0] = d_row.x[3][1] = 0; /* absent where a tile has three groups of rows */
  bool drops = kind.general && p.dropout_threshold;
  uint32_t keep = drops ? short_keep(p, s, m, half, kind) : 0xFFFFFFFFu;
  float scale = drops ? (float)p.dropout_scale : 1;
  UNROLLED
  for (int n = 0; n < kind.groups; n++) UNROLLED
  for (int e = 0; e < 2; e++) {
    bool seen = p_row.seen >> (2 * n + e) & 1, kept = keep >> (2 * n + e) & 1;
    float prob = seen ? p_row.x[n][e] * inverse : 0, d = seen ? dots[n][2 * half + e] : 0;
    d *= kept ? scale : 0;
    delta += prob * d;
    d_row.x[n][e] = d;
    p_row.x[n][e] = prob;
  }
  delta = quad_sum(delta);
  if (kind.general && s.d_lse && i < s.q_len) delta -= load_any(s.d_lse, i * s.d_lse_row, p.layout[OPERAND_D_LSE].type);
  UNROLLED
  for (int n = 0; n < kind.groups; n++) UNROLLED
  for (int e = 0; e < 2; e++) {
    bool seen = p_row.seen >> (2 * n + e) & 1, kept = keep >> (2 * n + e) & 1;
    float d = p_row.x[n][e] * (d_row.x[n][e] - delta) * p_row.d_capped[n][e];
    d_row.x[n][e] = seen ? d : 0;
    p_row.x[n][e] *= kept ? 1 : 0;
  }
}

/* sum += A x the rows of blocks 2x, 2x+1 (transposed). */
WORD void short_product(float sum[8][4], const uint32_t a[4], const uint32_t allowed[4], const block x[4], int at,
                        bool careful) {
  if (careful)
    block_product_careful(sum, a, allowed, x[2 * at], x[2 * at + 1]);
  else
    block_product(sum, a, x[2 * at], x[2 * at + 1]);
}

/* Which products came out NaN: dK of key tile x in bit x, dV in bit 2 + x, dQ in bit 4 + member * tiles + m. */
WORD void short_backward_tile(const cuda_call &call, uint32_t number, int chunk, const short_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  const int chunks = kind.general ? (head_dim + 63) / 64 : 1, v_chunks = kind.general ? (v_dim + 63) / 64 : 1;
  const int members = kind.general ? (int)(p.heads / p.kv_heads) : 1;
  const float scale[2] = {(float)p.scale, (float)p.scale};
  const float drop[2] = {(float)p.dropout_scale, (float)p.dropout_scale};
  uint64_t again[2] = {0, 0}; /* dK and dV; dQ */
  for (bool careful = false;; careful = true) {
    float d_k[2][8][4] = {}, d_v[2][8][4] = {};
    for (int member = 0; member < members; member++) {
      short_sequence s[2];
      for (int x = 0; x < kind.pairs; x++)
        s[x] = short_slice(call, number * kind.pairs + x, kind.general, (uint32_t)member, kind.general);
      block q[4], k[4], v[4], d_out[4];
      float c[2][4][4] = {}, d[2][4][4] = {};
      uint32_t a_p[2][2][4], a_d[2][2][4], seen[2][2];
      UNROLLED
      for (int x = 0; x < (kind.general ? chunks : 1); x++) {
        short_load(q, s, SHORT_Q, x, head_dim, kind);
        short_load(k, s, SHORT_K, x, head_dim, kind);
        if (!kind.general) {
          short_load(d_out, s, SHORT_D_OUT, 0, v_dim, kind);
          short_load(v, s, SHORT_V, 0, v_dim, kind);
        }
        UNROLLED
        for (int m = 0; m < short_tiles(kind); m++) UNROLLED
        for (int n = 0; n < kind.groups; n++) block_dots(c[m][n], q[2 * m], q[2 * m + 1], k[n]);
      }
      for (int x = 0; x < v_chunks; x++) {
        if (kind.general) {
          short_load(d_out, s, SHORT_D_OUT, x, v_dim, kind);
          short_load(v, s, SHORT_V, x, v_dim, kind);
        }
        UNROLLED
        for (int m = 0; m < short_tiles(kind); m++) UNROLLED
        for (int n = 0; n < kind.groups; n++) block_dots(d[m][n], d_out[2 * m], d_out[2 * m + 1], v[n]);
      }
      if (kind.general && (chunks > 1 || v_chunks > 1)) {
        short_load(q, s, SHORT_Q, chunk, head_dim, kind);
        short_load(k, s, SHORT_K, chunk, head_dim, kind);
        short_load(d_out, s, SHORT_D_OUT, chunk, v_dim, kind);
      }
      UNROLLED
      for (int m = 0; m < short_tiles(kind); m++) {
        short_scores row[2], d_row[2];
        UNROLLED
        for (int half = 0; half < 2; half++) {
          const short_sequence &own = s[short_pair(half, kind)];
          row[half] = short_finish(c[m], m, half, own, p, kind);
          short_gradient(row[half], d_row[half], d[m], m, half, own, p, kind);
          seen[m][half] = row[half].seen;
        }
        UNROLLED
        for (int x = 0; x < short_tiles(kind); x++) {
          short_operand(a_p[m][x], row[0], row[1], x);
          short_operand(a_d[m][x], d_row[0], d_row[1], x);
        }
      }
      UNROLLED
      for (int n = 0; n < kind.groups; n++) k[n] = block_transpose(k[n]);
      UNROLLED
      for (int m = 0; m < short_tiles(kind); m++) {
        float d_q[8][4] = {};
        UNROLLED
        for (int x = 0; x < short_tiles(kind); x++) {
          uint32_t allowed[4] = {};
          if (careful) short_allowed(allowed, seen[m][0], seen[m][1], x);
          short_product(d_q, a_d[m][x], allowed, k, x, careful);
        }
        uint64_t bit = (uint64_t)1 << (member * short_tiles(kind) + m);
        bool nan = block_any_nan(d_q);
        if (!careful && nan) again[1] |= bit;
        if (careful ? (again[1] & bit) != 0 : !nan)
          short_store(d_q, s, SHORT_D_Q, m, chunk, head_dim, scale, p.accumulate, kind);
      }
      UNROLLED
      for (int n = 0; n < kind.groups; n++) d_out[n] = block_transpose(d_out[n]);
      UNROLLED
      for (int n = 0; n < kind.groups; n++) q[n] = block_transpose(q[n]);
      UNROLLED
      for (int x = 0; x < short_tiles(kind); x++) UNROLLED
      for (int which = 0; which < 2; which++) {
        float(*sum)[4] = which ? d_v[x] : d_k[x];
        UNROLLED
        for (int m = 0; m < short_tiles(kind); m++) {
          uint32_t a[4], allowed[4] = {};
          transpose_a(a, which ? a_p[m][x] : a_d[m][x]);
          if (careful) {
            uint32_t straight[4];
            short_allowed(straight, seen[m][0], seen[m][1], x);
            transpose_a(allowed, straight);
          }
          short_product(sum, a, allowed, which ? d_out : q, m, careful);
        }
        if (member + 1 < members) continue;
        uint64_t bit = (uint64_t)1 << (2 * which + x);
        bool nan = block_any_nan(sum);
        if (!careful && nan) again[0] |= bit;
        if (careful ? (again[0] & bit) != 0 : !nan)
          short_store(sum, s, which ? SHORT_D_V : SHORT_D_K, x, chunk, which ? v_dim : head_dim, which ? drop : scale,
                      p.accumulate, kind);
      }
    }
    if (careful || (again[0] | again[1]) == 0) break;
  }
}

WORD void short_backward(const cuda_call &call, const short_kind kind) {
  const attend_problem &p = call.problem;
  int widest = (int)(p.head_dim > p.v_dim ? p.head_dim : p.v_dim), chunks = kind.general ? (widest + 63) / 64 : 1;
  uint32_t item = blockIdx.x * SHORT_WARPS + (threadIdx.x >> 5), number = item, chunk = 0;
  if (kind.general) number = item / (uint32_t)chunks, chunk = item % (uint32_t)chunks;
  if (number * kind.pairs < (uint32_t)(p.batch * p.kv_heads)) short_backward_tile(call, number, (int)chunk, kind);
}

#endif
