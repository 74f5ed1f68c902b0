/* SPDX-License-Identifier: MIT */
/* The efficient and math back-ends for f64. */
#define ELEMENT TYPE_F64
#define SUFFIX f64
#include "../api/problem.h"
typedef double real;
#include "efficient_kernels.cuh"
