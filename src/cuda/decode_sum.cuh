/* SPDX-License-Identifier: MIT */
/* Decoding: sums of weighted values over some keys, and how they become sums over more. */
#ifndef ATTEND_CUDA_DECODE_SUM_CUH
#define ATTEND_CUDA_DECODE_SUM_CUH

#include "decode_stream.cuh"

/* What a warp has of its keys: for queries 2t, 2t + 1 of each group of 8 the largest score (in units of log 2), this
 * lane's part of the sum, and O^T: sum[i][group] has columns 16i .. 16i + 15. */
struct decode_state {
  float largest[2][2], total[2][2], sum[DECODE_MOST_COLUMNS / 16][2][4];
};
WORD void decode_clear(decode_state &state, const decode_kind kind) {
  UNROLLED
  for (int group = 0; group < kind.groups; group++)
    for (int e = 0; e < 2; e++) {
      state.largest[group][e] = -INFINITY, state.total[group][e] = 0;
      for (int i = 0; i < 4 * kind.chunks; i++) state.sum[i][group][e] = state.sum[i][group][2 + e] = 0;
    }
}

/* Sums over some keys and over others become one: by what to multiply them, and the sum. Blocks that take a part and
 * those that take a span add in the same order by this alone, each rounding written down, so that bits agree. */
WORD void decode_scales(float &largest, float other, float scale[2]) {
  float most = max_of(other, largest);
  scale[0] = largest == -INFINITY ? 0 : word_exp2(largest - most);
  scale[1] = other == -INFINITY ? 0 : word_exp2(other - most);
  largest = most;
}
WORD float decode_sum(float a, float b, const float scale[2]) { return word_multiply_add(b, scale[1], a * scale[0]); }

/* A row's sums over some keys: a lane's four columns. Adding those over no keys changes nothing but the sign of
 * a zero, which decode_store drops. */
struct decode_leaf {
  float total, largest, out[4];
};
WORD decode_leaf decode_leaf_of_none(void) { return {0, -INFINITY, {0, 0, 0, 0}}; }
WORD void decode_leaf_add(decode_leaf &x, const decode_leaf &other) {
  float scale[2];
  decode_scales(x.largest, other.largest, scale);
  x.total = decode_sum(x.total, other.total, scale);
  UNROLLED
  for (int i = 0; i < 4; i++) x.out[i] = decode_sum(x.out[i], other.out[i], scale);
}

/* The lanes' parts of the sums of weights. */
WORD void decode_total(decode_state &state, const decode_kind kind) {
  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) UNROLLED
  for (int lanes = 4; lanes < 32; lanes *= 2)
    state.total[group][e] += word_shuffle_xor_f32(state.total[group][e], lanes);
}
WORD void decode_add(decode_state &state, const decode_state &other, const decode_kind kind) {
  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) {
    float scale[2];
    decode_scales(state.largest[group][e], other.largest[group][e], scale);
    state.total[group][e] = decode_sum(state.total[group][e], other.total[group][e], scale);
    UNROLLED
    for (int i = 0; i < 4 * kind.chunks; i++) UNROLLED
    for (int half = 0; half < 2; half++) {
      float &x = state.sum[i][group][2 * half + e];
      x = decode_sum(x, other.sum[i][group][2 * half + e], scale);
    }
  }
}

/* A row of the output, and its lse, from the sum of weights and the sum of weighted values. */
WORD void decode_store(const cuda_call &call, const attend_slice &s, const decode_row &row, float largest, float total,
                       int column, float sum) {
  const attend_problem &p = call.problem;
  int64_t at = row.i * s.out.row + row.member * p.layout[OPERAND_OUT].head + column * s.out.col;
  store_element(s.out.data, at, ELEMENT, total == 0 ? 0 : (sum + 0.0f) / total); /* -0 counts as 0 */
  if (s.lse && column == 0)
    ((float *)(void *)s.lse)[row.i * s.lse_row + row.member * p.layout[OPERAND_LSE].head] =
        total == 0 ? -INFINITY : largest * LN_2 + logf(total);
}

/* The sink joins where a row is finished. */
WORD void decode_add_sink(const cuda_call &call, const attend_slice &s, int member, float &largest, float &total,
                          float &factor) {
  const attend_problem &p = call.problem;
  factor = 1;
  if (!call.operands.data[OPERAND_SINK]) return;
  float sink = LOG2_E * (float)load_any((const char *)call.operands.data[OPERAND_SINK],
                                        (s.h + member) * p.layout[OPERAND_SINK].head, p.layout[OPERAND_SINK].type);
  float most = max_of(sink, largest);
  if (most == -INFINITY) return;
  factor = word_exp2(largest - most);
  total = total * factor + word_exp2(sink - most);
  largest = most;
}

#endif
