/* SPDX-License-Identifier: MIT */
/* The entry points of the f32 kernels in tiles. */
#define SUFFIX f32
#include "simt_backward.cuh"
#include "simt_forward.cuh"
#include "entry.h"

#define SIMT_ENTRIES(width, columns)                                                                                   \
  ENTRY(simt_forward_##width, SIMT_THREADS, 1) { simt_forward(call, columns); }                                        \
  ENTRY(simt_backward_keys_##width, SIMT_THREADS, 1) { simt_backward(call, true, columns); }                           \
  ENTRY(simt_backward_queries_##width, SIMT_THREADS, 1) { simt_backward(call, false, columns); }

SIMT_ENTRIES(narrow, 64)
SIMT_ENTRIES(wide, 128)
