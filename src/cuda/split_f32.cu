/* SPDX-License-Identifier: MIT */
/* The entry points of the f32 kernels in tiles on tensor cores. */
#define ELEMENT TYPE_F32
#define SUFFIX f32
typedef float real;
#include "split_backward.cuh"
#include "split_forward.cuh"
#include "entry.h"

#define SPLIT_ENTRY(name, body, columns, rows, general)                                                                \
  OUTLINED void SUFFIXED(name##_again, SUFFIX)(const cuda_call &call) { body(call, {columns, rows, general, true}); }  \
  ENTRY(name, SPLIT_THREADS, 2) {                                                                                      \
    if (body(call, {columns, rows, general, false})) SUFFIXED(name##_again, SUFFIX)(call);                             \
  }
#define SPLIT_ENTRIES(name, body, narrow_rows)                                                                         \
  SPLIT_ENTRY(name##_narrow, body, 64, narrow_rows, false)                                                             \
  SPLIT_ENTRY(name##_wide, body, 128, narrow_rows / 2, false)                                                          \
  SPLIT_ENTRY(name##_general_narrow, body, 64, narrow_rows, true)                                                      \
  SPLIT_ENTRY(name##_general_wide, body, 128, narrow_rows / 2, true)

SPLIT_ENTRIES(split_forward, split_forward, 64)
SPLIT_ENTRIES(split_keys, split_backward_keys, 32)
SPLIT_ENTRIES(split_queries, split_backward_queries, 32)
ENTRY(split_bias_narrow, SPLIT_THREADS, 2) { split_bias(call, {64, 32, true, false}); }
ENTRY(split_bias_wide, SPLIT_THREADS, 2) { split_bias(call, {128, 16, true, false}); }
ENTRY(split_delta, SPLIT_THREADS, 1) { split_delta(call); }
ENTRY(split_sink, GRADIENT_SINK_THREADS, 1) { gradient_sink(call); }
