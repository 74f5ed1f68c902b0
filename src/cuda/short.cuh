/* SPDX-License-Identifier: MIT */
/* Short sequences (Nq, Nk <= 32), f16 and bf16: what forward and backward share.
 *
 * The floor is memory: a pair (b, h) of N = 5, D = 64 moves 2560 bytes forward for 3200 multiply-adds. So a warp owns a
 * tile of 16 or 32 rows, everything lives in registers, and nothing passes through shared memory: the k index of a matrix
 * product may be permuted if both operands agree, and so may the n index if the output is stored accordingly. Hence
 *   - "row" fragments (both operands of Q K^T and dO V^T): lane (g, t) loads 16 bytes at columns 8t of row g. The eight
 *     elements serve two k-steps.
 *   - "column" fragments (V of P V, K of dS K …): lane (g, t) loads 16 bytes at columns 8g of rows 2t, 2t+1, 2t+8, 2t+9;
 *     byte permutes pair up two rows; n-tile e holds columns 8n + e, so the accumulators of a lane are 16 neighbouring
 *     columns of a row, and are stored as two 16-byte words.
 * With Nq, Nk <= 8 a tile holds two pairs, in rows 0-7 and 8-15: their cross products are computed and ignored.
 * (Rejected: ldmatrix through shared memory, which costs a write, a barrier and a read for each byte.) */
#ifndef ATTEND_SHORT_CUH
#define ATTEND_SHORT_CUH

#include "../api/problem.h"
#include "ptx.h"

enum { SHORT_WARPS = 4 }; /* a block; nothing is shared between its warps */

/* One (batch, head). Row addresses are base + i * row, in bytes. */
struct short_pair {
  bool exists;
  int64_t b, h, kv_head, q_batch, k_batch, q_first, k_first; /* element offsets follow from these */
  int q_len, k_len, off;
};

static __device__ __forceinline__ int64_t short_index(const attend_problem &p, const attend_operands &o, operand_id id,
                                                      int64_t i) {
  int64_t at = i * p.layout[id].batch;
  return p.layout[id].type == TYPE_I64 ? ((const int64_t *)o.data[id])[at] : ((const int32_t *)o.data[id])[at];
}

static __device__ __forceinline__ int short_clamp(int64_t x, int64_t most) {
  return (int)(x < 0 ? 0 : x > most ? most : x);
}

/* Pair number `number` of batch x heads; head varies fastest. */
static __device__ __forceinline__ short_pair short_pair_at(const attend_problem &p, const attend_operands &o,
                                                           uint32_t number, const bool general) {
  short_pair s = {};
  uint32_t heads = (uint32_t)p.heads, b = number / heads, h = number - b * heads;
  s.exists = b < p.batch;
  s.b = b, s.h = h;
  s.kv_head = p.heads == p.kv_heads ? h : h / (uint32_t)(p.heads / p.kv_heads);
  s.q_batch = s.k_batch = b;
  s.q_len = (int)p.q_len, s.k_len = (int)p.k_len;
  if (general && s.exists) {
    if (p.ragged_q) { /* a bad offset moves the rows, but never outside the tensor */
      s.q_first = short_index(p, o, OPERAND_Q_OFFSETS, b);
      s.q_first = s.q_first < 0 ? 0 : s.q_first > p.q_total ? p.q_total : s.q_first;
      int64_t room = p.q_total - s.q_first;
      s.q_len = short_clamp(short_index(p, o, OPERAND_Q_OFFSETS, b + 1) - s.q_first, p.q_len < room ? p.q_len : room);
      s.q_batch = 0;
    }
    if (p.ragged_k) {
      s.k_first = short_index(p, o, OPERAND_K_OFFSETS, b);
      s.k_first = s.k_first < 0 ? 0 : s.k_first > p.k_total ? p.k_total : s.k_first;
      int64_t room = p.k_total - s.k_first;
      s.k_len = short_clamp(short_index(p, o, OPERAND_K_OFFSETS, b + 1) - s.k_first, p.k_len < room ? p.k_len : room);
      s.k_batch = 0;
    }
    if (attend_has(&p, OPERAND_KV_LEN)) s.k_len = short_clamp(short_index(p, o, OPERAND_KV_LEN, b), s.k_len);
  }
  s.off = p.top_left ? 0 : s.k_len - s.q_len;
  return s;
}

#endif
