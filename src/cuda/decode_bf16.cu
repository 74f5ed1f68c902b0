/* SPDX-License-Identifier: MIT */
/* Decoding in bf16. */
#define ELEMENT TYPE_BF16
#define SUFFIX bf16
typedef float real;
#include "decode_kernels.cuh"
