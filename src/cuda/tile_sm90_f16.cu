/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90, in f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
typedef float real;
#include "tile_sm90_kernels.cuh"
