/* SPDX-License-Identifier: MIT */
/* Forward in tiles on tensor cores in f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
typedef float real;
#include "tile_kernels.cuh"
