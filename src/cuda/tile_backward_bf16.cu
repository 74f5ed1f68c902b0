/* SPDX-License-Identifier: MIT */
/* Backward in tiles on tensor cores in bf16. */
#define ELEMENT TYPE_BF16
#define SUFFIX bf16
typedef float real;
#include "tile_backward_kernels.cuh"
