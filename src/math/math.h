/* SPDX-License-Identifier: MIT */
/* The entry points of src/math, compiled in f32 (for f32, f16, bf16) and in f64. */
#ifndef ATTEND_MATH_H
#define ATTEND_MATH_H

#include "api/problem.h"

#define MATH_ENTRIES(suffix)                                                                                           \
  size_t math_forward_bytes_##suffix(const attend_problem *p);                                                         \
  size_t math_backward_bytes_##suffix(const attend_problem *p);                                                        \
  void math_forward_##suffix(const attend_problem *p, int threads, const attend_operands *o,                           \
                             const attend_services *services, void *workspace);                                        \
  void math_backward_##suffix(const attend_problem *p, int threads, const attend_operands *o,                          \
                              const attend_services *services, void *workspace);
MATH_ENTRIES(f32)
MATH_ENTRIES(f64)
#undef MATH_ENTRIES

/* Rows of scores that are materialised at a time; a problem of fewer queries is one block. */
enum { MATH_ROWS = 64 };

#endif
