/* SPDX-License-Identifier: MIT */
/* Short sequences in f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
typedef float real;
#include "short_kernels.cuh"
