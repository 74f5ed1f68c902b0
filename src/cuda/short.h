/* SPDX-License-Identifier: MIT */
/* Short sequences: what host and kernels share. In f16 and bf16:
 *
 *   entry    queries, keys at most   tile of a warp         pairs (batch, head) in it
 *   8        8                       16 rows                2, in rows 0-7 and 8-15: P is block-diagonal
 *   16       16                      16 rows                1
 *   24       24                      24 rows                1
 *   32       32                      32 rows                1
 *
 * Each has a plain entry (dense, causal or not, at most 64 columns; backward: as many heads of K as of Q) and, but for
 * 24, a general one, which takes all options. In f32 entries have the same names, and every pair a warp. */
#ifndef ATTEND_CUDA_SHORT_H
#define ATTEND_CUDA_SHORT_H

enum {
  SHORT_WARPS = 4,        /* of a block; they share nothing */
  SHORT_MOST_CHUNKS = 16, /* of 64 columns */
  SHORT_MOST_GROUP = 32,  /* heads that share a head of K, in backward */
  SHORT_LANES_STRIDE = 68 /* f32: elements from row to row in shared memory */
};
/* f32: warps of a block whose tiles have so many rows; as many as 48 KB of shared memory hold. */
#define SHORT_LANES_WARPS(rows) ((rows) == 8 ? 4 : (rows) == 16 ? 2 : 1)

#endif
