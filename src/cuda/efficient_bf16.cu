/* SPDX-License-Identifier: MIT */
/* The efficient and math back-ends for bf16. */
#define ELEMENT TYPE_BF16
#define SUFFIX bf16
#include "../api/problem.h"
typedef float real;
#include "efficient_kernels.cuh"
