/* SPDX-License-Identifier: MIT */
/* The one argument of every kernel, passed by value: below the 4 KB that every driver accepts. */
#ifndef ATTEND_CUDA_CALL_H
#define ATTEND_CUDA_CALL_H

#include "../api/problem.h"

/* What the host works out for decoding, since long divisions take a kernel microseconds (decode.h). */
typedef struct decode_shape {
  uint32_t group, row_tiles, limit, most_parts; /* heads that share a head of K, tiles of rows, parts */
} decode_shape;

typedef struct cuda_call {
  attend_problem problem;
  attend_operands operands;
  void *workspace; /* efficient backward: delta, reals [batch][heads][q_len]; decode: the parts of split sequences */
  decode_shape decode;
} cuda_call;

#endif
