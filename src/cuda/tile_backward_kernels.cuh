/* SPDX-License-Identifier: MIT */
/* The entry points of backward in tiles on tensor cores. */
#include "tile_backward.cuh"
#include "entry.h"

#define GRADIENT_ENTRIES(width, warps, tiles, chunks, blocks)                                                          \
  ENTRY(tile_backward_keys_##width, 32 * (warps), blocks) { gradient_keys(call, {warps, tiles, chunks, false}); }      \
  ENTRY(tile_backward_keys_general_##width, 32 * (warps), 1) { gradient_keys(call, {warps, tiles, chunks, true}); }    \
  ENTRY(tile_backward_queries_##width, 32 * (warps), blocks) {                                                         \
    gradient_queries(call, {warps, tiles, chunks, false});                                                             \
  }                                                                                                                    \
  ENTRY(tile_backward_queries_general_##width, 32 * (warps), 1) {                                                      \
    gradient_queries(call, {warps, tiles, chunks, true});                                                              \
  }

ENTRY(tile_backward_delta, GRADIENT_DELTA_THREADS, 1) { gradient_delta(call); }
GRADIENT_ENTRIES(narrow, GRADIENT_WARPS_NARROW, 1, 1, 1)
GRADIENT_ENTRIES(wide, GRADIENT_WARPS_WIDE, 1, 2, 2)
