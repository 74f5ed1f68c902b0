/* SPDX-License-Identifier: MIT */
/* The math back-end in f64: for f64. */
typedef double real;
#define ENTRY(name) name##_f64
#define real_exp exp
#define real_tanh tanh
#include "math/math_algorithms.inc.c"
