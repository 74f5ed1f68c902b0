/* SPDX-License-Identifier: MIT */
/* The entry points of the tiles on tensor cores. */
#include "tile_forward.cuh"
#include "entry.h"

#define TILE_ENTRY(name, chunks, general)                                                                              \
  OUTLINED void SUFFIXED(tile_forward_again_##name, SUFFIX)(const cuda_call &call) {                                   \
    tile_forward(call, {chunks, general, true});                                                                       \
  }                                                                                                                    \
  ENTRY(tile_forward_##name, 32 * TILE_WARPS, 2) {                                                                     \
    if (tile_forward(call, {chunks, general, false})) SUFFIXED(tile_forward_again_##name, SUFFIX)(call);               \
  }

TILE_ENTRY(narrow, 1, false)
TILE_ENTRY(wide, 2, false)
TILE_ENTRY(general_narrow, 1, true)
TILE_ENTRY(general_wide, 2, true)
