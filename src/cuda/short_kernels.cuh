/* SPDX-License-Identifier: MIT */
/* The entry points for short sequences. `blocks` keeps 16 warps on a multiprocessor, or 8 where a tile has 32 rows. */
#include "short_forward.cuh"
#include "short_backward.cuh"
#include "entry.h"

#define SHORT_ENTRIES(rows, tiles, pairs, blocks, general_blocks)                                                      \
  ENTRY(short_forward_##rows, 32 * SHORT_WARPS, blocks) { short_forward(call, {tiles, pairs, false}); }                \
  ENTRY(short_forward_general_##rows, 32 * SHORT_WARPS, general_blocks) { short_forward(call, {tiles, pairs, true}); } \
  ENTRY(short_backward_##rows, 32 * SHORT_WARPS, blocks) { short_backward(call, {tiles, pairs, false}); }              \
  ENTRY(short_backward_general_##rows, 32 * SHORT_WARPS, general_blocks) { short_backward(call, {tiles, pairs, true}); }

SHORT_ENTRIES(8, 1, 2, 4, 2)
SHORT_ENTRIES(16, 1, 1, 4, 2)
SHORT_ENTRIES(32, 2, 1, 2, 2)
