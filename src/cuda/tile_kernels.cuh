/* SPDX-License-Identifier: MIT */
/* The entry points of the tiles on tensor cores. */
#include "tile_forward.cuh"
#include "entry.h"

#define TILE_ENTRIES(width, chunks)                                                                                    \
  ENTRY(tile_forward_##width, 32 * TILE_WARPS, 2) { tile_forward(call, {chunks, false}); }                             \
  ENTRY(tile_forward_general_##width, 32 * TILE_WARPS, 2) { tile_forward(call, {chunks, true}); }

TILE_ENTRIES(narrow, 1)
TILE_ENTRIES(wide, 2)
