/* SPDX-License-Identifier: MIT */
/* The math back-end in f32: for f32, f16 and bf16. */
typedef float real;
#define ENTRY(name) name##_f32
#define real_exp expf
#define real_tanh tanhf
#include "math/math_algorithms.inc.c"
