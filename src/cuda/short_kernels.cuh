/* SPDX-License-Identifier: MIT */
/* The entry points for short sequences. The last two arguments: blocks on a multiprocessor, forward and backward, as
 * many as registers allow without spilling; spilled backwards took 15 to 40% longer. */
#include "short_plain.cuh"
#include "entry.h"

#define PLAIN_ENTRIES(rows, groups, pairs, forward_blocks, backward_blocks)                                            \
  OUTLINED void SUFFIXED(short_forward_again_##rows, SUFFIX)(const cuda_call &call, uint32_t number) {                 \
    short_forward_tile(call, number, {groups, pairs, false});                                                          \
  }                                                                                                                    \
  OUTLINED void SUFFIXED(short_backward_again_##rows, SUFFIX)(const cuda_call &call, uint32_t number) {                \
    short_backward_tile(call, number, 0, {groups, pairs, false});                                                      \
  }                                                                                                                    \
  ENTRY(short_forward_##rows, 32 * SHORT_WARPS, forward_blocks) {                                                      \
    word_let_next();                                                                                                   \
    uint32_t number = plain_number(call, {groups, pairs, false});                                                      \
    if (number != NO_TILE && !plain_forward(call, number, {groups, pairs, false}))                                     \
      SUFFIXED(short_forward_again_##rows, SUFFIX)(call, number);                                                      \
  }                                                                                                                    \
  ENTRY(short_backward_##rows, 32 * SHORT_WARPS, backward_blocks) {                                                    \
    word_let_next();                                                                                                   \
    uint32_t number = plain_number(call, {groups, pairs, false});                                                      \
    if (number != NO_TILE && !plain_backward(call, number, {groups, pairs, false}))                                    \
      SUFFIXED(short_backward_again_##rows, SUFFIX)(call, number);                                                     \
  }
#define GENERAL_ENTRIES(rows, groups, pairs)                                                                           \
  ENTRY(short_forward_general_##rows, 32 * SHORT_WARPS, 2) { short_forward(call, {groups, pairs, true}); }             \
  ENTRY(short_backward_general_##rows, 32 * SHORT_WARPS, 2) { short_backward(call, {groups, pairs, true}); }

PLAIN_ENTRIES(8, 2, 2, 5, 4)
PLAIN_ENTRIES(16, 2, 1, 5, 4)
PLAIN_ENTRIES(24, 3, 1, 4, 3)
PLAIN_ENTRIES(32, 4, 1, 3, 2)
GENERAL_ENTRIES(8, 2, 2)
GENERAL_ENTRIES(16, 2, 1)
GENERAL_ENTRIES(32, 4, 1)
