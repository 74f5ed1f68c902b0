/* SPDX-License-Identifier: MIT */
/* The efficient and math back-ends for f32. */
#define ELEMENT TYPE_F32
#define SUFFIX f32
#include "../api/problem.h"
typedef float real;
#include "efficient_kernels.cuh"
