/* SPDX-License-Identifier: MIT */
/* Forward and backward on short sequences without options: one tile, each operand loaded once, rows 16m .. 16m+15 from
 * scores to stores before the next 16. What it computes has the bits of short_forward_tile and short_backward_tile,
 * which do a tile again where a product came out NaN. */
#ifndef ATTEND_CUDA_SHORT_PLAIN_CUH
#define ATTEND_CUDA_SHORT_PLAIN_CUH

#include "short_forward.cuh"
#include "short_backward.cuh"

#define NO_TILE 0xFFFFFFFFu

WORD uint32_t plain_number(const cuda_call &call, const short_kind kind) {
  uint32_t number = blockIdx.x * SHORT_WARPS + (threadIdx.x >> 5);
  return number * kind.pairs < (uint32_t)(call.problem.batch * call.problem.heads) ? number : NO_TILE;
}

/* The slices of a tile: one division, as the head after (b, h) is its neighbour. */
WORD void plain_slices(short_sequence s[2], const cuda_call &call, uint32_t number, const bool forward,
                       const short_kind kind) {
  const attend_problem &p = call.problem;
  uint32_t heads = (uint32_t)p.heads, first = number * kind.pairs, b = first / heads, h = first - b * heads;
  s[0] = short_plain_slice(call, b, h, true, forward);
  if (kind.pairs == 1) return;
  bool exists = first + 1 < (uint32_t)p.batch * heads, wraps = exists && h + 1 == heads;
  s[1] = short_plain_slice(call, b + wraps, wraps ? 0 : h + exists, exists, forward);
}

/* Causal, and no query of the first 16 sees a key beyond the first 16. */
WORD bool plain_lower(const attend_problem &p, const short_kind kind) {
  return p.causal && (kind.groups == 2 || p.top_left || p.k_len <= p.q_len);
}

/* How many keys row (m, half) sees: the first ones. */
WORD int plain_last(const attend_slice &s, bool causal, int m, const int half, const short_kind kind) {
  int i = short_row(2 * m + half, kind), k_len = (int)s.k_len, last = i + (int)s.off + 1;
  if (i >= (int)s.q_len) return 0;
  return causal && last < k_len ? last : k_len;
}
WORD int plain_key(int n, int e, const short_kind kind) {
  return (kind.pairs == 2 ? 0 : 8 * n) + 2 * lane_column() + e;
}

/* Softmax of row (m, half) over the first `keys` groups of keys, in place of its dot products c. Returns 1 / its sum.
 */
WORD float plain_softmax(float x[4][2], const float c[4][4], const int half, int last, const int keys, float unit,
                         float &lse, const short_kind kind) {
  float most = -INFINITY, sum = 0;
  UNROLLED
  for (int n = 0; n < keys; n++) UNROLLED
  for (int e = 0; e < 2; e++) {
    if (kind.pairs == 2 && n != half) continue;
    x[n][e] = plain_key(n, e, kind) < last ? c[n][2 * half + e] * unit : -INFINITY;
    most = word_max(x[n][e], most);
  }
  most = word_max(most, word_shuffle_xor_f32(most, 1));
  most = word_max(most, word_shuffle_xor_f32(most, 2));
  float shift = most == -INFINITY ? 0 : most;
  UNROLLED
  for (int n = 0; n < keys; n++) UNROLLED
  for (int e = 0; e < 2; e++)
    if (kind.pairs == 1 || n == half) sum += x[n][e] = word_exp2(x[n][e] - shift);
  sum = quad_sum(sum);
  lse = sum == 0 ? -INFINITY : (shift + word_log2(sum)) * LN_2;
  return sum == 0 ? 0 : word_reciprocal(sum);
}

/* Is any sum NaN that can be the first to be so? Rows see nested sets, so what is hidden from any row of a half is
 * hidden from its first query (its last key). */
WORD bool plain_any_nan(const float c[8][4], const int half, const short_kind kind) {
  float sum = 0;
  UNROLLED
  for (int n = 0; n < 8; n++) {
    sum += c[n][2 * half] + c[n][2 * half + 1];
    if (kind.pairs == 2) sum += c[n][2 - 2 * half] + c[n][3 - 2 * half];
  }
  return word_any(sum != sum);
}

/* Rows 16m .. of the output, from the first `keys` groups of keys; v is transposed. False: it came out NaN. */
WORD bool plain_forward_rows(const cuda_call &call, const short_sequence s[2], const block q[4], const block k[4],
                             const block v[4], bool causal, const int m, const int keys, const short_kind kind) {
  const attend_problem &p = call.problem;
  const float one[2] = {1, 1};
  float c[4][4] = {}, sum[8][4] = {}, unit = (float)p.scale * LOG2_E;
  short_scores row[2] = {};
  UNROLLED
  for (int n = 0; n < keys; n++) block_dots(c[n], q[2 * m], q[2 * m + 1], k[n]);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    if (2 * m + half >= kind.groups) continue;
    const short_sequence &own = s[short_pair(half, kind)];
    int i = short_row(2 * m + half, kind);
    float lse,
        factor = plain_softmax(row[half].x, c, half, plain_last(own, causal, m, half, kind), keys, unit, lse, kind);
    UNROLLED
    for (int n = 0; n < keys; n++) UNROLLED
    for (int e = 0; e < 2; e++) row[half].x[n][e] *= factor;
    if (lane_column() == 0 && i < (int)own.q_len) short_store_lse(own, i, lse);
  }
  UNROLLED
  for (int x = 0; x < (keys + 1) / 2; x++) {
    uint32_t a[4];
    short_operand(a, row[0], row[1], x);
    block_product(sum, a, v[2 * x], v[2 * x + 1]);
  }
  if (plain_any_nan(sum, 0, kind)) return false;
  short_store(sum, s, SHORT_OUT, m, 0, p.v_dim, one, false, kind);
  return true;
}

WORD bool plain_forward(const cuda_call &call, uint32_t number, const short_kind kind) {
  const attend_problem &p = call.problem;
  short_sequence s[2];
  block q[4], k[4], v[4];
  plain_slices(s, call, number, true, kind);
  word_wait_before();
  short_load(v, s, SHORT_V, 0, (int)p.v_dim, kind);
  short_load(q, s, SHORT_Q, 0, (int)p.head_dim, kind);
  short_load(k, s, SHORT_K, 0, (int)p.head_dim, kind);
  UNROLLED
  for (int n = 0; n < kind.groups; n++) v[n] = block_transpose(v[n]);
  /* Without a branch here the compiler moves the loads of V behind the products, where they cost another latency. */
  bool right = plain_lower(p, kind) ? plain_forward_rows(call, s, q, k, v, true, 0, 2, kind)
                                    : plain_forward_rows(call, s, q, k, v, p.causal, 0, kind.groups, kind);
  if (kind.groups > 2) right &= plain_forward_rows(call, s, q, k, v, p.causal, 1, kind.groups, kind);
  return right;
}

/* P and dS of rows 16m .. as operands, of the first `keys` groups of keys; beyond them zeros. */
WORD void plain_gradient(uint32_t a_p[2][4], uint32_t a_d[2][4], const attend_problem &p, const short_sequence s[2],
                         const block q[4], const block k[4], const block v[4], const block d_out[4], const int m,
                         const int keys, const short_kind kind) {
  float c[4][4] = {}, dots[4][4] = {}, unit = (float)p.scale * LOG2_E;
  short_scores row[2] = {}, d_row[2] = {};
  UNROLLED
  for (int n = 0; n < keys; n++) block_dots(c[n], q[2 * m], q[2 * m + 1], k[n]);
  UNROLLED
  for (int n = 0; n < keys; n++) block_dots(dots[n], d_out[2 * m], d_out[2 * m + 1], v[n]);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    if (2 * m + half >= kind.groups) continue;
    int last = plain_last(s[short_pair(half, kind)], p.causal, m, half, kind);
    float(*x)[2] = row[half].x, (*d)[2] = d_row[half].x;
    float lse, delta = 0, inverse = plain_softmax(x, c, half, last, keys, unit, lse, kind);
    UNROLLED
    for (int n = 0; n < keys; n++) UNROLLED
    for (int e = 0; e < 2; e++) {
      if (kind.pairs == 2 && n != half) continue;
      bool seen = plain_key(n, e, kind) < last;
      x[n][e] = seen ? x[n][e] * inverse : 0;
      d[n][e] = seen ? dots[n][2 * half + e] : 0;
      delta += x[n][e] * d[n][e];
    }
    delta = quad_sum(delta);
    UNROLLED
    for (int n = 0; n < keys; n++) UNROLLED
    for (int e = 0; e < 2; e++) {
      if (kind.pairs == 2 && n != half) continue;
      float product = x[n][e] * (d[n][e] - delta);
      d[n][e] = plain_key(n, e, kind) < last ? product : 0;
    }
  }
  UNROLLED
  for (int x = 0; x < 2; x++) {
    short_operand(a_p[x], row[0], row[1], x);
    short_operand(a_d[x], d_row[0], d_row[1], x);
  }
}

/* dK or dV: sum over tiles m of queries of a[m]^T x rows (transposed), stored times `factor`. False: NaN. */
WORD bool plain_key_gradient(const short_sequence s[2], const short_operand_id to, const uint32_t a[2][2][4],
                             const block rows[4], int columns, float scale, bool lower, const short_kind kind) {
  const float factor[2] = {scale, scale};
  bool right = true;
  UNROLLED
  for (int x = 0; x < short_tiles(kind); x++) {
    float sum[8][4] = {};
    UNROLLED
    for (int m = 0; m < short_tiles(kind); m++) {
      uint32_t turned[4];
      if (x > m && lower) continue;
      transpose_a(turned, a[m][x]);
      block_product(sum, turned, rows[2 * m], rows[2 * m + 1]);
    }
    bool nan = plain_any_nan(sum, 1, kind);
    if (!nan) short_store(sum, s, to, x, 0, columns, factor, false, kind);
    right &= !nan;
  }
  return right;
}

WORD bool plain_backward(const cuda_call &call, uint32_t number, const short_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  const float scale[2] = {(float)p.scale, (float)p.scale};
  short_sequence s[2];
  block q[4], k[4], v[4], d_out[4];
  uint32_t a_p[2][2][4], a_d[2][2][4];
  plain_slices(s, call, number, false, kind);
  word_wait_before();
  short_load(q, s, SHORT_Q, 0, head_dim, kind);
  short_load(k, s, SHORT_K, 0, head_dim, kind);
  short_load(d_out, s, SHORT_D_OUT, 0, v_dim, kind);
  short_load(v, s, SHORT_V, 0, v_dim, kind);
  bool lower = plain_lower(p, kind), right = true;
  if (lower && kind.groups > 2)
    plain_gradient(a_p[0], a_d[0], p, s, q, k, v, d_out, 0, 2, kind);
  else
    plain_gradient(a_p[0], a_d[0], p, s, q, k, v, d_out, 0, kind.groups, kind);
  if (kind.groups > 2) plain_gradient(a_p[1], a_d[1], p, s, q, k, v, d_out, 1, kind.groups, kind);
  UNROLLED
  for (int n = 0; n < kind.groups; n++) k[n] = block_transpose(k[n]);
  UNROLLED
  for (int m = 0; m < short_tiles(kind); m++) {
    float d_q[8][4] = {};
    UNROLLED
    for (int x = 0; x < short_tiles(kind); x++)
      if (x <= m || !lower) block_product(d_q, a_d[m][x], k[2 * x], k[2 * x + 1]);
    bool nan = plain_any_nan(d_q, 0, kind);
    if (!nan) short_store(d_q, s, SHORT_D_Q, m, 0, head_dim, scale, false, kind);
    right &= !nan;
  }
  UNROLLED
  for (int n = 0; n < kind.groups; n++) d_out[n] = block_transpose(d_out[n]);
  right &= plain_key_gradient(s, SHORT_D_V, a_p, d_out, v_dim, 1, lower, kind);
  UNROLLED
  for (int n = 0; n < kind.groups; n++) q[n] = block_transpose(q[n]);
  right &= plain_key_gradient(s, SHORT_D_K, a_d, q, head_dim, (float)p.scale, lower, kind);
  return right;
}

#endif
