/* SPDX-License-Identifier: MIT */
/* Backward in tiles through the asynchronous products of sm_90, in bf16. */
#define ELEMENT TYPE_BF16
#define SUFFIX bf16
typedef float real;
#include "tile_backward_sm90_kernels.cuh"
