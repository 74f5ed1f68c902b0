/* SPDX-License-Identifier: MIT */
/* f32 in tiles on tensor cores: what host and kernels share.
 *
 * A warp owns 16 rows: queries, or keys in the kernel for dK and dV. Those of a block stay in shared memory; those that
 * they meet come through it, two stages of them.
 *
 *   entry               columns at most   warps   rows of a stage   shared memory (+ bits and values)
 *   forward narrow      64                4       64                16 KB + 2 (16 KB + 16 KB)
 *   forward wide        128               4       32                32 KB + 2 (16 KB + 16 KB)
 *   backward narrow     64                4       32                2 x 16 KB + 2 (8 KB + 8 KB)
 *   backward wide       128               8       32                2 x 64 KB + 2 (16 KB + 16 KB)
 *       on 8.0                            8       16                2 x 64 KB + 2 (8 KB + 8 KB)
 *   dBias wide          128               4       16                2 x 32 KB + 2 (8 KB + 8 KB)
 *
 * Eight warps, since two blocks of four have no room for stages of 32 rows, and with 16 it takes 10% longer: what a warp
 * owns is split in two (split.cuh) for every stage anew. 8.0 has only 163 KB for a block.
 */
#ifndef ATTEND_CUDA_SPLIT_H
#define ATTEND_CUDA_SPLIT_H

enum {
  SPLIT_WARPS = 4,
  SPLIT_WIDE_WARPS = 8, /* backward, as the next two */
  SPLIT_WIDE_ROWS = 32,
  SPLIT_WIDE_ROWS_80 = 16,
  SPLIT_VALUES = 32,    /* of lse, and of delta, of a stage */
  SPLIT_WORDS = 128     /* of 32 pairs of a stage, at most */
};

/* Bytes: rows of the owner (one matrix forward, two backward); two stages of two; bits of mask and dropout, and lse and
 * delta, of two stages. */
#define SPLIT_SHARED(columns, warps, matrices, rows)                                                                   \
  (4 * ((matrices)*16 * (warps) * (columns) + 4 * (rows) * (columns) + 4 * SPLIT_WORDS + 4 * SPLIT_VALUES))

#endif
