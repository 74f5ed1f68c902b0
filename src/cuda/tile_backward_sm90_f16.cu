/* SPDX-License-Identifier: MIT */
/* Backward in tiles through the asynchronous products of sm_90, in f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
typedef float real;
#include "tile_backward_sm90_kernels.cuh"
