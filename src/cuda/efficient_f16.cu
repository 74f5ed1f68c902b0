/* SPDX-License-Identifier: MIT */
/* The efficient and math back-ends for f16. */
#define ELEMENT TYPE_F16
#define SUFFIX f16
#include "../api/problem.h"
typedef float real;
#include "efficient_kernels.cuh"
