/* SPDX-License-Identifier: MIT */
/* Decoding in f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
typedef float real;
#include "decode_kernels.cuh"
