/* SPDX-License-Identifier: MIT */
/* Short sequences in f32. */
#define ELEMENT TYPE_F32
#define SUFFIX f32
typedef float real;
#include "short_lanes_forward.cuh"
#include "short_lanes_backward.cuh"
#include "entry.h"

/* A matrix takes rows of 17 words of 16 bytes. */
#define LANES_ENTRY(name, rows, matrices, body, general)                                                               \
  ENTRY(name, 32 * SHORT_LANES_WARPS(rows), 1) {                                                                       \
    __shared__ lanes_four memory[SHORT_LANES_WARPS(rows) * matrices * rows * SHORT_LANES_STRIDE / 4];                  \
    body(call, memory[0].at, {rows, general, false});                                                                  \
  }
#define LANES_ENTRIES(rows)                                                                                            \
  LANES_ENTRY(short_forward_##rows, rows, 3, lanes_forward, false)                                                     \
  LANES_ENTRY(short_backward_##rows, rows, 4, lanes_backward, false)
#define LANES_GENERAL_ENTRIES(rows)                                                                                    \
  LANES_ENTRY(short_forward_general_##rows, rows, 3, lanes_forward, true)                                              \
  LANES_ENTRY(short_backward_general_##rows, rows, 4, lanes_backward, true)

LANES_ENTRIES(8)
LANES_ENTRIES(16)
LANES_ENTRIES(24)
LANES_ENTRIES(32)
LANES_GENERAL_ENTRIES(8)
LANES_GENERAL_ENTRIES(16)
LANES_GENERAL_ENTRIES(32)
