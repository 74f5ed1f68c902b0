/* SPDX-License-Identifier: MIT */
/* The entry points of the f32 kernels in tiles on tensor cores. */
#define ELEMENT TYPE_F32
#define SUFFIX f32
typedef float real;
#include "split_backward.cuh"
#include "split_forward.cuh"
#include "entry.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define WIDE_ROWS SPLIT_WIDE_ROWS_80
#else
#define WIDE_ROWS SPLIT_WIDE_ROWS
#endif

#define SPLIT_ENTRY(name, body, columns, warps, rows, general)                                                         \
  OUTLINED void SUFFIXED(name##_again, SUFFIX)(const cuda_call &call) {                                                \
    body(call, {columns, warps, rows, general, true});                                                                 \
  }                                                                                                                    \
  ENTRY(name, 32 * (warps), 8 / (warps)) {                                                                             \
    if (body(call, {columns, warps, rows, general, false})) SUFFIXED(name##_again, SUFFIX)(call);                      \
  }
#define SPLIT_ENTRIES(name, body, narrow_rows, wide_warps, wide_rows)                                                  \
  SPLIT_ENTRY(name##_narrow, body, 64, SPLIT_WARPS, narrow_rows, false)                                                \
  SPLIT_ENTRY(name##_wide, body, 128, wide_warps, wide_rows, false)                                                    \
  SPLIT_ENTRY(name##_general_narrow, body, 64, SPLIT_WARPS, narrow_rows, true)                                         \
  SPLIT_ENTRY(name##_general_wide, body, 128, wide_warps, wide_rows, true)

SPLIT_ENTRIES(split_forward, split_forward, 64, SPLIT_WARPS, 32)
SPLIT_ENTRIES(split_keys, split_backward_keys, 32, SPLIT_WIDE_WARPS, WIDE_ROWS)
SPLIT_ENTRIES(split_queries, split_backward_queries, 32, SPLIT_WIDE_WARPS, WIDE_ROWS)
ENTRY(split_bias_narrow, 32 * SPLIT_WARPS, 2) { split_bias(call, {64, SPLIT_WARPS, 32, true, false}); }
ENTRY(split_bias_wide, 32 * SPLIT_WARPS, 2) { split_bias(call, {128, SPLIT_WARPS, 16, true, false}); }
ENTRY(split_delta, 32 * SPLIT_WARPS, 1) { split_delta(call); }
ENTRY(split_sink, GRADIENT_SINK_THREADS, 1) { gradient_sink(call); }
