/* SPDX-License-Identifier: MIT */
/* Backward in tiles on tensor cores in f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
typedef float real;
#include "tile_backward_kernels.cuh"
