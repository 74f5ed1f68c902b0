/* SPDX-License-Identifier: MIT */
/* The (sequence, head) that a warp of the kernels for short sequences works on. */
#ifndef ATTEND_CUDA_SHORT_SLICE_CUH
#define ATTEND_CUDA_SHORT_SLICE_CUH

#include "call.h"
#include "slice.cuh"

/* One (sequence, head); key_rows: rows of K that it owns, those from kv_len on included, which get gradients of 0. */
struct short_sequence : attend_slice {
  int64_t key_rows;
};

/* Where it is wanted. Past the caches like all else that is written here: ordinary stores, though 1% of the bytes, took
 * a seventh longer for all. */
WORD void short_store_lse(const short_sequence &s, int i, float lse) {
  if (s.lse) word_store_once_f32((float *)(void *)s.lse + i * s.lse_row, lse);
}

/* As slice_matrix, for dense tensors; optional: it may be absent. */
WORD attend_matrix short_matrix(const cuda_call &call, operand_id id, uint32_t b, uint32_t h, const bool optional) {
  const attend_layout &l = call.problem.layout[id];
  attend_matrix m = {(char *)call.operands.data[id], l.row, 1};
  if (!optional || m.data) m.data += slice_type_size(ELEMENT) * ((int64_t)b * l.batch + (int64_t)h * l.head);
  return m;
}

/* Pair (b, h) of dense tensors without options, one without rows unless it `exists`. No branches: they delay loads. */
WORD short_sequence short_plain_slice(const cuda_call &call, uint32_t b, uint32_t h, bool exists, const bool forward) {
  const attend_problem &p = call.problem;
  uint32_t kv_head = h;
  if (p.kv_heads != p.heads) kv_head = h / ((uint32_t)p.heads / (uint32_t)p.kv_heads);
  short_sequence s = {};
  s.q_len = exists ? p.q_len : 0, s.k_len = s.key_rows = exists ? p.k_len : 0;
  s.off = p.top_left ? 0 : p.k_len - p.q_len;
  s.q = short_matrix(call, OPERAND_Q, b, h, false);
  s.k = short_matrix(call, OPERAND_K, b, kv_head, false);
  s.v = short_matrix(call, OPERAND_V, b, kv_head, false);
  if (forward) {
    const attend_layout &lse = p.layout[OPERAND_LSE];
    s.out = short_matrix(call, OPERAND_OUT, b, h, false);
    s.lse = (char *)call.operands.data[OPERAND_LSE];
    if (s.lse) s.lse += 4 * ((int64_t)b * lse.batch + (int64_t)h * lse.head);
    s.lse_row = lse.row;
  } else {
    s.d_out = short_matrix(call, OPERAND_D_OUT, b, h, false);
    s.d_q = short_matrix(call, OPERAND_D_Q, b, h, true);
    s.d_k = short_matrix(call, OPERAND_D_K, b, kv_head, true);
    s.d_v = short_matrix(call, OPERAND_D_V, b, kv_head, true);
  }
  s.sink = -INFINITY;
  return s;
}

/* Pair `number` of batch x heads, head fastest; past the last, one without rows. Where a tile owns a head of K and goes
 * through the heads that share it (`shares`), pairs are of batch x kv_heads, and this is head `member` of the group. */
WORD short_sequence short_slice(const cuda_call &call, uint32_t number, const bool shares, uint32_t member,
                                const bool general) {
  const attend_problem &p = call.problem;
  uint32_t heads = (uint32_t)(shares ? p.kv_heads : p.heads), b = number / heads, h = number - b * heads;
  short_sequence s = {};
  if (b >= (uint32_t)p.batch) return s;
  if (!general) return short_plain_slice(call, b, h, true, p.direction == ATTEND_FORWARD);
  if (shares) h = h * ((uint32_t)p.heads / (uint32_t)p.kv_heads) + member;
  (attend_slice &)s = slice_make(p, call.operands, b, h, s.key_rows);
  return s;
}

#endif
