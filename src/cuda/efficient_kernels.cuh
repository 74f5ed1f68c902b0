/* SPDX-License-Identifier: MIT */
/* The entry points of one element type: included by efficient_<type>.cu, which defines ELEMENT, SUFFIX and `real`. The
 * host knows them by name and image. */
#include "efficient_tile.cuh"
#include "efficient_forward.cuh"
#include "efficient_backward.cuh"

#ifdef __CUDACC__
#define CALL const __grid_constant__ cuda_call call
#else
#define CALL const cuda_call call
#endif
#define PASTE(a, b) a##_##b
#define SUFFIXED(a, b) PASTE(a, b)
#define ENTRY(name) KERNEL void __launch_bounds__(EFFICIENT_THREADS) SUFFIXED(name, SUFFIX)

ENTRY(forward_narrow)(CALL) { forward(call, 64); }
ENTRY(forward_wide)(CALL) { forward(call, MAX_COLUMNS); }
ENTRY(forward_materialise)(CALL) { materialise(call); }
ENTRY(backward_delta_kernel)(CALL) { backward_delta(call); }
ENTRY(backward_keys_narrow)(CALL) { backward_keys(call, 64); }
ENTRY(backward_keys_wide)(CALL) { backward_keys(call, MAX_COLUMNS); }
ENTRY(backward_queries_narrow)(CALL) { backward_queries(call, 64); }
ENTRY(backward_queries_wide)(CALL) { backward_queries(call, MAX_COLUMNS); }
ENTRY(backward_bias_kernel)(CALL) { backward_bias(call); }
ENTRY(backward_sink_kernel)(CALL) { backward_sink(call); }

#undef CALL
#undef ENTRY
#undef SUFFIXED
#undef PASTE
#undef SUFFIX
#undef ELEMENT
