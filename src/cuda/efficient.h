/* SPDX-License-Identifier: MIT */
/* What host and kernels of the efficient back-end share: all tile sizes.
 *
 * A block of 256 threads is 16 x 16; thread (y, x) owns query rows 4y .. 4y+3 of a score tile and keys/16 columns,
 * which feeds 16 multiply-adds by two 16-byte reads of shared memory.
 *
 *                      queries  keys  columns of V, dQ, dK, dV per block   shared memory
 *     f32, f16, bf16        64    64  64, or 128 where a head is wider     29 KB
 *     f64                   64    32  64                                   37 KB
 *
 * Wider heads take several blocks a tile, each of which computes the scores afresh: any head dimension, at
 * ceil(D / columns) times the score work. */
#ifndef ATTEND_CUDA_EFFICIENT_H
#define ATTEND_CUDA_EFFICIENT_H

#include "call.h"

enum {
  EFFICIENT_THREADS = 256,
  EFFICIENT_QUERIES = 64,
  EFFICIENT_KEYS = 64,
  EFFICIENT_KEYS_F64 = 32,
  EFFICIENT_DEPTH = 16 /* of a product staged in shared memory at a time */
};

#endif
