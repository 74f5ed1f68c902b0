/* SPDX-License-Identifier: MIT */
/* The entry points of backward in tiles on sm_90. `blocks`: that fit on a multiprocessor. */
#include "async_bias.cuh"
#include "tile_backward_sm90.cuh"
#include "entry.h"

/* The tile once more, carefully. */
#define ASYNC_AGAIN(name, owner, groups, panels, general)                                                              \
  OUTLINED void name(const cuda_call &call, char *memory) {                                                            \
    gradient_##owner(call, *(gradient_memory *)(void *)memory, true, {4 * (groups), 1, panels, general, false});       \
  }
ASYNC_AGAIN(async_keys_narrow, keys, ASYNC_GROUPS_NARROW, 1, false)
ASYNC_AGAIN(async_keys_wide, keys, ASYNC_GROUPS_WIDE, 2, false)
ASYNC_AGAIN(async_queries_narrow, queries, ASYNC_GROUPS_NARROW, 1, false)
ASYNC_AGAIN(async_queries_wide, queries, ASYNC_GROUPS_WIDE, 2, false)
ASYNC_AGAIN(async_keys_general_narrow, keys, ASYNC_GROUPS_NARROW, 1, true)
ASYNC_AGAIN(async_keys_general_wide, keys, ASYNC_GROUPS_WIDE, 2, true)
ASYNC_AGAIN(async_queries_general_narrow, queries, ASYNC_GROUPS_NARROW, 1, true)
ASYNC_AGAIN(async_queries_general_wide, queries, ASYNC_GROUPS_WIDE, 2, true)
OUTLINED void async_bias_narrow(const cuda_call &call, char *memory) {
  gradient_bias(call, *(gradient_memory *)(void *)memory, {4 * ASYNC_BIAS_GROUPS_NARROW, 1, 1, true, true});
}
OUTLINED void async_bias_wide(const cuda_call &call, char *memory) {
  gradient_bias(call, *(gradient_memory *)(void *)memory, {4 * ASYNC_BIAS_GROUPS_WIDE, 1, 2, true, true});
}

#define ASYNC_ENTRY(name, owner, again, groups, panels, options, blocks)                                               \
  ENTRY(tile_backward_sm90_##name, 128 * (groups), blocks) {                                                           \
    DYNAMIC_SHARED_TILES(memory);                                                                                      \
    if (async_gradient_##owner(call, memory, {groups, panels, options})) async_##again(call, memory);                  \
  }
#define ASYNC_NARROW(name, owner, again, options, blocks)                                                              \
  ASYNC_ENTRY(name##_narrow, owner, again##_narrow, ASYNC_GROUPS_NARROW, 1, options, blocks)
#define ASYNC_WIDE(name, owner, again, options)                                                                        \
  ASYNC_ENTRY(name##_wide, owner, again##_wide, ASYNC_GROUPS_WIDE, 2, options, 1)
#define ASYNC_BIAS_NARROW(name, options)                                                                               \
  ASYNC_ENTRY(name##_narrow, bias, bias_narrow, ASYNC_BIAS_GROUPS_NARROW, 1, options, ASYNC_BIAS_BLOCKS_NARROW)
#define ASYNC_BIAS_WIDE(name, options) ASYNC_ENTRY(name##_wide, bias, bias_wide, ASYNC_BIAS_GROUPS_WIDE, 2, options, 1)

ASYNC_NARROW(keys, keys, keys, ASYNC_PLAIN, 2)
ASYNC_WIDE(keys, keys, keys, ASYNC_PLAIN)
ASYNC_NARROW(queries, queries, queries, ASYNC_PLAIN, 3)
ASYNC_WIDE(queries, queries, queries, ASYNC_PLAIN)
ASYNC_NARROW(keys_options, keys, keys_general, ASYNC_COMMON, 2)
ASYNC_WIDE(keys_options, keys, keys_general, ASYNC_COMMON)
ASYNC_NARROW(queries_options, queries, queries_general, ASYNC_COMMON, 2)
ASYNC_WIDE(queries_options, queries, queries_general, ASYNC_COMMON)
ASYNC_BIAS_NARROW(bias_options, ASYNC_COMMON)
ASYNC_BIAS_WIDE(bias_options, ASYNC_COMMON)
ASYNC_NARROW(keys_general, keys, keys_general, ASYNC_ALL, 2)
ASYNC_WIDE(keys_general, keys, keys_general, ASYNC_ALL)
ASYNC_NARROW(queries_general, queries, queries_general, ASYNC_ALL, 2)
ASYNC_WIDE(queries_general, queries, queries_general, ASYNC_ALL)
ASYNC_BIAS_NARROW(bias_general, ASYNC_ALL)
ASYNC_BIAS_WIDE(bias_general, ASYNC_ALL)
ENTRY(tile_backward_sm90_mask, 128, 1) { async_mask_pack(call); }
