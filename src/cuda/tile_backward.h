/* SPDX-License-Identifier: MIT */
/* Backward in tiles on tensor cores, f16 and bf16, any lengths: what host and kernels share.
 *
 *   entry     columns at most   rows that a warp owns   that a block owns   staged at a time
 *   narrow    64                16                      128                 64
 *   wide      128               16                      64                  32
 */
#ifndef ATTEND_CUDA_TILE_BACKWARD_H
#define ATTEND_CUDA_TILE_BACKWARD_H

enum {
  GRADIENT_WARPS_NARROW = 8,
  GRADIENT_WARPS_WIDE = 4,
  GRADIENT_PAD = 64, /* delta and lse of a sequence take a multiple of so many reals of the workspace */
  GRADIENT_DELTA_THREADS = 128
};

#endif
