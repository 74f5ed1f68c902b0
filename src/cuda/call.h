/* SPDX-License-Identifier: MIT */
/* The one argument of every kernel, passed by value: below the 4 KB that every driver accepts. */
#ifndef ATTEND_CUDA_CALL_H
#define ATTEND_CUDA_CALL_H

#include "../api/problem.h"

typedef struct cuda_call {
  attend_problem problem;
  attend_operands operands;
  void *workspace; /* efficient backward: delta, reals [batch][heads][q_len]; decode: the parts of split sequences */
} cuda_call;

#endif
