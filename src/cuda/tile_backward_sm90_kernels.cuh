/* SPDX-License-Identifier: MIT */
/* The entry points of backward in tiles on sm_90. `blocks`: that fit on a multiprocessor. */
#include "async_again.cuh"
#include "async_bias.cuh"
#include "tile_backward_sm90.cuh"
#include "entry.h"

#define ASYNC_ENTRY(name, owner, groups, panels, options, blocks)                                                      \
  ENTRY(tile_backward_sm90_##name, 128 * (groups), blocks) {                                                           \
    DYNAMIC_SHARED_TILES(memory);                                                                                      \
    bool nan = async_gradient_##owner(call, memory, {groups, panels, options});                                        \
    if (threadIdx.x == 0) async_flags(call)[async_flag_##owner(async_tiles_of(&call.problem)) + blockIdx.x] = nan;     \
  }
#define ASYNC_NARROW(name, owner, options, blocks)                                                                     \
  ASYNC_ENTRY(name##_narrow, owner, ASYNC_GROUPS_NARROW, 1, options, blocks)
#define ASYNC_WIDE(name, owner, options) ASYNC_ENTRY(name##_wide, owner, ASYNC_GROUPS_WIDE, 2, options, 1)
#define ASYNC_AGAIN(name, groups, panels)                                                                              \
  ENTRY(tile_backward_sm90_again_##name, 128 * (groups), 1) {                                                          \
    __shared__ gradient_memory memory;                                                                                 \
    async_again(call, memory, groups, panels);                                                                         \
  }

ASYNC_NARROW(keys, keys, ASYNC_PLAIN, 2)
ASYNC_WIDE(keys, keys, ASYNC_PLAIN)
ASYNC_NARROW(queries, queries, ASYNC_PLAIN, 3)
ASYNC_WIDE(queries, queries, ASYNC_PLAIN)
ASYNC_NARROW(keys_options, keys, ASYNC_COMMON, 2)
ASYNC_WIDE(keys_options, keys, ASYNC_COMMON)
ASYNC_NARROW(queries_options, queries, ASYNC_COMMON, 3)
ASYNC_WIDE(queries_options, queries, ASYNC_COMMON)
ASYNC_NARROW(bias_options, bias, ASYNC_COMMON, ASYNC_BIAS_BLOCKS_NARROW)
ASYNC_WIDE(bias_options, bias, ASYNC_COMMON)
ASYNC_NARROW(keys_general, keys, ASYNC_ALL, 2)
ASYNC_WIDE(keys_general, keys, ASYNC_ALL)
ASYNC_NARROW(queries_general, queries, ASYNC_ALL, 2)
ASYNC_WIDE(queries_general, queries, ASYNC_ALL)
ASYNC_NARROW(bias_general, bias, ASYNC_ALL, ASYNC_BIAS_BLOCKS_NARROW)
ASYNC_WIDE(bias_general, bias, ASYNC_ALL)
ASYNC_AGAIN(narrow, ASYNC_GROUPS_NARROW, 1)
ASYNC_AGAIN(wide, ASYNC_GROUPS_WIDE, 2)
ENTRY(tile_backward_sm90_mask, 128, 1) { async_mask_pack(call); }
