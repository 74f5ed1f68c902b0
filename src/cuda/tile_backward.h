/* SPDX-License-Identifier: MIT */
/* Backward in tiles on tensor cores, f16 and bf16, any lengths: what host and kernels share.
 *
 *   entry           columns at most  rows of a warp  of a block  blocks on a    rows staged
 *                                                                multiprocessor at a time
 *   keys narrow     64               32              128         2              64
 *   keys wide       128              16              64          2              32
 *   queries narrow  64               32              128         2              64
 *   queries wide    128              16              64          2              32
 *   general, all    128              16              64          2              64, or 32 of 128 columns
 */
#ifndef ATTEND_CUDA_TILE_BACKWARD_H
#define ATTEND_CUDA_TILE_BACKWARD_H

/* clang-format off */
enum {
  KEYS_WARPS_NARROW = 4,    KEYS_TILES_NARROW = 2,    KEYS_BLOCKS_NARROW = 2,
  KEYS_WARPS_WIDE = 4,      KEYS_TILES_WIDE = 1,      KEYS_BLOCKS_WIDE = 2,
  QUERIES_WARPS_NARROW = 4, QUERIES_TILES_NARROW = 2, QUERIES_BLOCKS_NARROW = 2,
  QUERIES_WARPS_WIDE = 4,   QUERIES_TILES_WIDE = 1,   QUERIES_BLOCKS_WIDE = 2,
  GRADIENT_PAD = 64, /* delta and lse of a sequence take a multiple of so many reals of the workspace */
  GRADIENT_DELTA_THREADS = 128,
  GRADIENT_SINK_THREADS = 256,
  GENERAL_WARPS = 4, /* of a block where all options are there; each owns 16 rows */
  BIAS_WARPS = 4, BIAS_KEYS = 64, /* a block owns so many times 16 rows, and columns, of dBias */
};
/* clang-format on */

#endif
