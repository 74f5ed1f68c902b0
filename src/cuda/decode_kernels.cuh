/* SPDX-License-Identifier: MIT */
/* The entry points for decoding: by groups of 8 rows, and chunks of 64 columns; for parts, and where registers have
 * room for two sums, for spans. */
#include "decode.cuh"
#include "decode_merge.cuh"
#include "entry.h"

#define DECODE_ENTRIES(name, groups, chunks, blocks)                                                                   \
  ENTRY(decode_##name, 32 * DECODE_WARPS, blocks) { decode(call, {groups, chunks, false, false}); }                    \
  ENTRY(decode_general_##name, 32 * DECODE_WARPS, 2) { decode(call, {groups, chunks, true, false}); }
#define DECODE_SPANS(name, groups, chunks)                                                                             \
  ENTRY(decode_spans_##name, 32 * DECODE_WARPS, DECODE_SPAN_BLOCKS) { decode(call, {groups, chunks, false, true}); }

DECODE_ENTRIES(8_narrow, 1, 1, 4)
DECODE_ENTRIES(8_wide, 1, 2, 4)
DECODE_ENTRIES(16_narrow, 2, 1, 2)
DECODE_ENTRIES(16_wide, 2, 2, 2)
DECODE_SPANS(8_narrow, 1, 1)
DECODE_SPANS(8_wide, 1, 2)
ENTRY(decode_merge, 32 * DECODE_WARPS, 3) { decode_merge(call); }
ENTRY(decode_merge_spans, 32 * DECODE_WARPS, 6) { decode_merge_spans(call); }
