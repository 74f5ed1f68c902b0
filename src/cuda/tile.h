/* SPDX-License-Identifier: MIT */
/* Forward in tiles on tensor cores, f16 and bf16, any lengths: what host and kernels share.
 *
 *   entry     columns at most   shared memory: queries + 2 stages of (keys + values)
 *   narrow    64                16 KB + 2 (8 KB + 8 KB)
 *   wide      128               32 KB + 2 (16 KB + 16 KB)
 */
#ifndef ATTEND_CUDA_TILE_H
#define ATTEND_CUDA_TILE_H

enum {
  TILE_WARPS = 4,
  TILE_ROWS = 32, /* of a warp */
  TILE_QUERIES = TILE_WARPS * TILE_ROWS,
  TILE_KEYS = 64, /* at a time */
  TILE_SHARED_NARROW = 128 * (TILE_QUERIES + 4 * TILE_KEYS),
  TILE_SHARED_WIDE = 2 * TILE_SHARED_NARROW
};

#endif
