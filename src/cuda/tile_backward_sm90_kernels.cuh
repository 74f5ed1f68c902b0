/* SPDX-License-Identifier: MIT */
/* The entry points of backward in tiles on sm_90. `blocks`: that fit on a multiprocessor. */
#include "tile_backward_sm90.cuh"
#include "entry.h"

#define ASYNC_ENTRY(name, owner, groups, panels, general, blocks)                                                      \
  OUTLINED void name##_again(const cuda_call &call, char *memory) {                                                    \
    gradient_##owner(call, *(gradient_memory *)(void *)memory, true, {4 * (groups), 1, panels, general, false});       \
  }                                                                                                                    \
  ENTRY(name, 128 * (groups), blocks) {                                                                                \
    DYNAMIC_SHARED_TILES(memory);                                                                                      \
    if (async_gradient_##owner(call, memory, {groups, panels, general})) name##_again(call, memory);                   \
  }

ASYNC_ENTRY(tile_backward_sm90_keys_narrow, keys, ASYNC_GROUPS_NARROW, 1, false, 2)
ASYNC_ENTRY(tile_backward_sm90_keys_wide, keys, ASYNC_GROUPS_WIDE, 2, false, 1)
ASYNC_ENTRY(tile_backward_sm90_queries_narrow, queries, ASYNC_GROUPS_NARROW, 1, false, 3)
ASYNC_ENTRY(tile_backward_sm90_queries_wide, queries, ASYNC_GROUPS_WIDE, 2, false, 1)
ASYNC_ENTRY(tile_backward_sm90_keys_general_narrow, keys, ASYNC_GROUPS_NARROW, 1, true, 2)
ASYNC_ENTRY(tile_backward_sm90_keys_general_wide, keys, ASYNC_GROUPS_WIDE, 2, true, 1)
ASYNC_ENTRY(tile_backward_sm90_queries_general_narrow, queries, ASYNC_GROUPS_NARROW, 1, true, 2)
ASYNC_ENTRY(tile_backward_sm90_queries_general_wide, queries, ASYNC_GROUPS_WIDE, 2, true, 1)
