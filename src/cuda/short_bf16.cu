/* SPDX-License-Identifier: MIT */
/* Short sequences in bf16. */
#define ELEMENT TYPE_BF16
#define SUFFIX bf16
typedef float real;
#include "short_kernels.cuh"
