/* SPDX-License-Identifier: MIT */
/* The entry points of the efficient and math back-ends. */
#include "efficient_tile.cuh"
#include "efficient_forward.cuh"
#include "efficient_backward.cuh"
#include "entry.h"

#define EFFICIENT_ENTRY(name) ENTRY(name, EFFICIENT_THREADS, 1)
EFFICIENT_ENTRY(forward_narrow) { forward(call, 64); }
EFFICIENT_ENTRY(forward_wide) { forward(call, MAX_COLUMNS); }
EFFICIENT_ENTRY(forward_materialise) { materialise(call); }
EFFICIENT_ENTRY(backward_delta_kernel) { backward_delta(call); }
EFFICIENT_ENTRY(backward_keys_narrow) { backward_keys(call, 64); }
EFFICIENT_ENTRY(backward_keys_wide) { backward_keys(call, MAX_COLUMNS); }
EFFICIENT_ENTRY(backward_queries_narrow) { backward_queries(call, 64); }
EFFICIENT_ENTRY(backward_queries_wide) { backward_queries(call, MAX_COLUMNS); }
EFFICIENT_ENTRY(backward_bias_kernel) { backward_bias(call); }
EFFICIENT_ENTRY(backward_sink_kernel) { backward_sink(call); }
