/* SPDX-License-Identifier: MIT */
/* A few queries over many keys, f16 and bf16: what host and kernels share.
 *
 * The queries of the heads that share a head of K are the rows of one tile: row r is query r % q_len of head r / q_len.
 * A sequence is cut into parts by its own shape alone, so that its bits do not depend on what else is in the batch: of
 * DECODE_SMALLEST_PART keys, or more where that would be more than DECODE_MOST_BLOCKS blocks for all heads of K.
 *
 * Sums are made in one order, whoever makes them: of each quarter of a part, 16 keys at a time; of the quarters, a
 * part; of four parts, a span. One block reads a part, its warps a quarter each; or, where that gives blocks enough, a
 * span, its warps a part each, which leaves a quarter as much to the second launch. 64x4096 in bf16, 32 heads on 8, D =
 * 128, takes an H200 267 us by parts and 249 by spans. (Rejected: parts of 128 keys, 259 us, and of 512, 250, both of
 * which make 1x4096 slower.) */
#ifndef ATTEND_CUDA_DECODE_H
#define ATTEND_CUDA_DECODE_H

#include "../api/problem.h"

enum {
  DECODE_WARPS = 4,
  DECODE_KEYS = 16, /* of a warp at a time */
  DECODE_AHEAD = 1, /* V is on its way for so many steps ahead, K for one more */
  DECODE_SMALLEST_PART = 256,
  DECODE_LONG_QUARTER = 128, /* keys of a warp from which on it asks for some early; in 1x4096 they'd delay the merge */
  DECODE_SPAN = DECODE_WARPS, /* parts */
  DECODE_ENOUGH = 8,          /* spans a multiprocessor: fewer would leave some idle at the end */
  DECODE_SPAN_BLOCKS = 3,     /* on a multiprocessor; for four, registers spill: 287 us */
  DECODE_MOST_BLOCKS = 512,   /* of a sequence */
  DECODE_MOST_KEYS = 1 << 30, /* indices of keys stay within 32 bits */
  DECODE_MOST_QUERIES = 16,
  DECODE_MOST_COLUMNS = 128
};

ATTEND_INLINE int64_t decode_rows(const attend_problem *p) { return p->heads / p->kv_heads * p->q_len <= 8 ? 8 : 16; }
ATTEND_INLINE int64_t decode_row_tiles(const attend_problem *p) {
  return (p->heads / p->kv_heads * p->q_len + decode_rows(p) - 1) / decode_rows(p);
}
/* The most parts of a sequence, however long, and of sequences of at most p->k_len keys. */
ATTEND_INLINE int64_t decode_limit(const attend_problem *p) {
  int64_t limit = DECODE_MOST_BLOCKS / (p->kv_heads * decode_row_tiles(p));
  return limit < 1 ? 1 : limit;
}
ATTEND_INLINE int64_t decode_most_parts(const attend_problem *p) {
  int64_t limit = decode_limit(p), parts = (p->k_len + DECODE_SMALLEST_PART - 1) / DECODE_SMALLEST_PART;
  return parts < 1 ? 1 : parts < limit ? parts : limit;
}
/* Keys of a part. */
ATTEND_INLINE uint32_t decode_part(uint32_t limit, uint32_t k_len) {
  uint32_t step = DECODE_KEYS * DECODE_WARPS, least = DECODE_SMALLEST_PART;
  uint32_t part = (k_len + limit - 1) / limit;
  if (k_len < least) least = k_len;
  if (part < least) part = least;
  return part < step ? step : (part + step - 1) / step * step;
}
ATTEND_INLINE uint32_t decode_parts(uint32_t limit, uint32_t k_len) {
  uint32_t part = decode_part(limit, k_len);
  return k_len <= part ? 1 : (k_len + part - 1) / part;
}
ATTEND_INLINE int64_t decode_most_spans(const attend_problem *p) {
  return (decode_most_parts(p) + DECODE_SPAN - 1) / DECODE_SPAN;
}
/* Reals that a part or a span leaves for a row: sum, largest, two unused, and the output before division. */
ATTEND_INLINE int64_t decode_part_reals(const attend_problem *p) { return p->v_dim + 4; }
ATTEND_INLINE int64_t decode_tiles(const attend_problem *p) { return p->batch * p->kv_heads * decode_row_tiles(p); }

#endif
