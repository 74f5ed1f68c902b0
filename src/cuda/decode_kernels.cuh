/* SPDX-License-Identifier: MIT */
/* The entry points for decoding: by groups of 8 rows, and chunks of 64 columns. */
#include "decode.cuh"
#include "entry.h"

#define DECODE_ENTRIES(name, groups, chunks, blocks)                                                                   \
  ENTRY(decode_##name, 32 * DECODE_WARPS, blocks) { decode(call, {groups, chunks, false}); }                           \
  ENTRY(decode_general_##name, 32 * DECODE_WARPS, 2) { decode(call, {groups, chunks, true}); }

DECODE_ENTRIES(8_narrow, 1, 1, 4)
DECODE_ENTRIES(8_wide, 1, 2, 4)
DECODE_ENTRIES(16_narrow, 2, 1, 2)
DECODE_ENTRIES(16_wide, 2, 2, 2)
ENTRY(decode_merge, 32 * DECODE_WARPS, 1) { decode_merge(call); }
