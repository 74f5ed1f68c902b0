/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90: what host and kernels share. Two blocks of a
 * multiprocessor hide each other's waits: 339 TFLOP/s at 8x32x2048x64 on an H200; tiles of 128 keys, which leave room
 * for one block, 298; three groups and one block 297. */
#ifndef ATTEND_CUDA_TILE_SM90_H
#define ATTEND_CUDA_TILE_SM90_H

enum {
  SM90_GROUPS = 2,
  SM90_QUERIES = 64 * SM90_GROUPS,
  SM90_THREADS = 128 * SM90_GROUPS,
  SM90_KEYS = 64,
  SM90_COLUMNS = 64,
  SM90_BLOCKS = 2, /* of a multiprocessor */
  SM90_SHARED = 128 * (SM90_QUERIES + 4 * SM90_KEYS)
};

#endif
