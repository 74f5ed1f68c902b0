/* SPDX-License-Identifier: MIT */
/* f32 in tiles on ordinary multiply-adds: what host and kernels share.
 *
 * A block of 8 warps owns 64 rows (queries; keys in the kernel for dK and dV) and goes through the `inner` rows that
 * they meet. Its warps form teams; a team of warps that together own the 64 rows takes every second (fourth) tile of
 * inner rows, and the teams' sums are added at the end, in order. A thread owns 8 x 8 of every product: 16 reads of 16
 * bytes of shared memory feed 256 multiply-adds, half of what shared memory could deliver.
 *
 *   entry     columns at most   inner rows of a tile   rows of a warp   teams   shared memory: forward, backward
 *   narrow    64                64                     32               4       156 KB, 172 KB
 *   wide      128               128                    16               2       169 KB, 201 KB
 */
#ifndef ATTEND_CUDA_SIMT_H
#define ATTEND_CUDA_SIMT_H

enum {
  SIMT_THREADS = 256,
  SIMT_ROWS = 64,
  SIMT_DEPTH = 32, /* of a product staged in shared memory at a time */
  SIMT_PAD = 4
};

/* Floats of shared memory: 64 rows of each matrix of the owner (one forward, two backward), transposed; weights of
 * every team; two chunks of each. */
#define SIMT_STRIDE(columns) ((columns) + SIMT_PAD)
#define SIMT_OWN(columns) (SIMT_ROWS * (columns))
#define SIMT_WEIGHTS(columns) (SIMT_ROWS * SIMT_STRIDE(columns))
#define SIMT_CHUNK(columns) ((columns) * (SIMT_DEPTH + SIMT_PAD))
#define SIMT_TEAMS(columns) (256 / (columns))
#define SIMT_SHARED(columns, matrices)                                                                                 \
  (4 * ((matrices)*SIMT_OWN(columns) + SIMT_TEAMS(columns) * (SIMT_WEIGHTS(columns) + 2 * SIMT_CHUNK(columns))))

#endif
