/* SPDX-License-Identifier: MIT */
/* A few queries over many keys, f16 and bf16: what host and kernels share.
 *
 * The queries of the heads that share a head of K are the rows of one tile: row r is query r % q_len of head r / q_len.
 * A sequence is cut into parts by its own length alone, so that its bits do not depend on what else is in the batch:
 *
 *   keys of the sequence      keys of a part
 *   up to 16384               512
 *   more                      2048
 *
 * One block reads a part; its warps take 16 keys in turn. */
#ifndef ATTEND_CUDA_DECODE_H
#define ATTEND_CUDA_DECODE_H

#include "../api/problem.h"

enum {
  DECODE_WARPS = 4,
  DECODE_KEYS = 16, /* of a warp at a time */
  DECODE_SHORT_PART = 512,
  DECODE_LONG_PART = 2048,
  DECODE_LONG = 16384,
  DECODE_MOST_QUERIES = 16,
  DECODE_MOST_COLUMNS = 128
};

ATTEND_INLINE int64_t decode_part(int64_t k_len) { return k_len > DECODE_LONG ? DECODE_LONG_PART : DECODE_SHORT_PART; }
ATTEND_INLINE int64_t decode_parts(int64_t k_len) {
  int64_t part = decode_part(k_len), parts = (k_len + part - 1) / part;
  return parts < 1 ? 1 : parts;
}
/* The most parts that a sequence of at most k_len keys can have. */
ATTEND_INLINE int64_t decode_most_parts(int64_t k_len) {
  int64_t parts = decode_parts(k_len), shorter = DECODE_LONG / DECODE_SHORT_PART;
  return k_len > DECODE_LONG && parts < shorter ? shorter : parts;
}
ATTEND_INLINE int64_t decode_rows(const attend_problem *p) { return p->heads / p->kv_heads * p->q_len <= 8 ? 8 : 16; }
ATTEND_INLINE int64_t decode_row_tiles(const attend_problem *p) {
  return (p->heads / p->kv_heads * p->q_len + decode_rows(p) - 1) / decode_rows(p);
}
/* Reals that a part leaves for a row: sum, largest, and the output before division. */
ATTEND_INLINE int64_t decode_part_reals(const attend_problem *p) { return p->v_dim + 2; }

#endif
