/* SPDX-License-Identifier: MIT */
/* Forward in tiles on tensor cores, f16 and bf16, any lengths: what host and kernels share.
 *
 *   entry     columns at most   rows of a warp   of a block
 *   narrow    64                32               128
 *   wide      128               16               64
 */
#ifndef ATTEND_CUDA_TILE_H
#define ATTEND_CUDA_TILE_H

enum { TILE_WARPS = 4, TILE_KEYS = 16 /* at a time */, TILE_ROWS_NARROW = 32, TILE_ROWS_WIDE = 16 };

#endif
