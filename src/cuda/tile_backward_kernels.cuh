/* SPDX-License-Identifier: MIT */
/* The entry points of backward in tiles on tensor cores. `blocks`: that fit on a multiprocessor. */
#include "tile_backward.cuh"
#include "entry.h"

#define GRADIENT_ENTRY(name, owner, warps, tiles, chunks, general, blocks)                                             \
  OUTLINED void name##_again(const cuda_call &call, gradient_memory &memory) {                                         \
    gradient_##owner(call, blockIdx.x, memory, true, {warps, tiles, chunks, general, false});                          \
  }                                                                                                                    \
  ENTRY(name, 32 * (warps), blocks) {                                                                                  \
    __shared__ gradient_memory memory;                                                                                 \
    if (gradient_##owner(call, blockIdx.x, memory, false, {warps, tiles, chunks, general, false}))                     \
      name##_again(call, memory);                                                                                      \
  }
#define GRADIENT_ENTRIES(owner, warps, tiles, chunks, width, blocks)                                                   \
  GRADIENT_ENTRY(tile_backward_##owner##_##width, owner, warps, tiles, chunks, false, blocks)                          \
  GRADIENT_ENTRY(tile_backward_##owner##_general_##width, owner, GENERAL_WARPS, 1, chunks, true, 2)

ENTRY(tile_backward_delta, GRADIENT_DELTA_THREADS, 1) { gradient_delta(call); }
GRADIENT_ENTRIES(keys, KEYS_WARPS_NARROW, KEYS_TILES_NARROW, 1, narrow, KEYS_BLOCKS_NARROW)
GRADIENT_ENTRIES(keys, KEYS_WARPS_WIDE, KEYS_TILES_WIDE, 2, wide, KEYS_BLOCKS_WIDE)
GRADIENT_ENTRIES(queries, QUERIES_WARPS_NARROW, QUERIES_TILES_NARROW, 1, narrow, QUERIES_BLOCKS_NARROW)
GRADIENT_ENTRIES(queries, QUERIES_WARPS_WIDE, QUERIES_TILES_WIDE, 2, wide, QUERIES_BLOCKS_WIDE)
ENTRY(tile_backward_bias_narrow, 32 * BIAS_WARPS, 2) {
  __shared__ gradient_memory memory;
  gradient_bias(call, blockIdx.x, memory, {BIAS_WARPS, 1, 1, true, true});
}
ENTRY(tile_backward_bias_wide, 32 * BIAS_WARPS, 2) {
  __shared__ gradient_memory memory;
  gradient_bias(call, blockIdx.x, memory, {BIAS_WARPS, 1, 2, true, true});
}
ENTRY(tile_backward_sink, GRADIENT_SINK_THREADS, 1) { gradient_sink(call); }
