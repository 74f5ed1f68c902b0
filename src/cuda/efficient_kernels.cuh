/* SPDX-License-Identifier: MIT */
/* The entry points of the efficient and math back-ends. */
#include "efficient_tile.cuh"
#include "efficient_forward.cuh"
#include "efficient_backward.cuh"
#include "product.cuh"
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

enum { PRODUCT_BLOCKS = ELEMENT == TYPE_F64 ? 4 : 8 };
ENTRY(product_clear_kernel, PRODUCT_THREADS, 8) { product_clear(call); }
ENTRY(product_pack_kernel, PRODUCT_THREADS, 8) { product_pack(call); }
ENTRY(product_probs_plain, PRODUCT_THREADS, PRODUCT_BLOCKS) { product_probs(call, false); }
ENTRY(product_probs_general, PRODUCT_THREADS, 4) { product_probs(call, true); }
ENTRY(product_gradients_plain, PRODUCT_THREADS, PRODUCT_BLOCKS) { product_gradients(call, false); }
ENTRY(product_gradients_general, PRODUCT_THREADS, 4) { product_gradients(call, true); }
ENTRY(product_finish_kernel, PRODUCT_THREADS, 4) { product_finish(call); }
