/* SPDX-License-Identifier: MIT */
/* f32 in tiles on tensor cores: what host and kernels share.
 *
 * A block of 4 warps owns 64 rows, 16 of each warp: queries, or keys in the kernel for dK and dV. They stay in shared
 * memory; those that they meet come through it, two stages of them.
 *
 *   entry               columns at most   rows of a stage   shared memory (+ bits and values)
 *   forward narrow      64                64                16 KB + 2 (16 KB + 16 KB)
 *   forward wide        128               32                32 KB + 2 (16 KB + 16 KB)
 *   backward narrow     64                32                2 x 16 KB + 2 (8 KB + 8 KB)
 *   backward wide       128               16                2 x 32 KB + 2 (8 KB + 8 KB)
 */
#ifndef ATTEND_CUDA_SPLIT_H
#define ATTEND_CUDA_SPLIT_H

enum {
  SPLIT_WARPS = 4,
  SPLIT_THREADS = 32 * SPLIT_WARPS,
  SPLIT_ROWS = 16 * SPLIT_WARPS,
  SPLIT_FORWARD_STAGE = 4096, /* floats of one matrix of a stage */
  SPLIT_BACKWARD_STAGE = 2048,
  SPLIT_VALUES = 32,           /* of lse, and of delta, of a stage */
  SPLIT_WORDS = 2 * SPLIT_ROWS /* of 32 pairs of a stage */
};

/* Bytes: rows of the owner (one matrix forward, two backward); two stages of two; bits of mask and dropout, and lse and
 * delta, of two stages. */
#define SPLIT_SHARED(columns, matrices, stage)                                                                         \
  (4 * ((matrices)*SPLIT_ROWS * (columns) + 4 * (stage) + 4 * SPLIT_WORDS + 4 * SPLIT_VALUES))

#endif
