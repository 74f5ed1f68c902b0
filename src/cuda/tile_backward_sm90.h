/* SPDX-License-Identifier: MIT */
/* Backward in tiles through the asynchronous products of sm_90: what host and kernels share. A group is four warps and
 * owns 64 keys or queries; what it goes through is staged 64 rows at a time. Heads of at most 64 columns: blocks of one
 * group, so that the waits of one are the work of another (two groups: 276 TFLOP/s at 8x32x2048x64 on an H200, not
 * 342). Wider: two groups share a stage, as L2 would else be read too fast at 1x16x16384x128 (373, not 358). */
#ifndef ATTEND_CUDA_TILE_BACKWARD_SM90_H
#define ATTEND_CUDA_TILE_BACKWARD_SM90_H

#include "../api/problem.h"

/* clang-format off */
enum {
  ASYNC_STEP = 64,
  ASYNC_STAGES = 2,
  ASYNC_GROUPS_NARROW = 1, ASYNC_GROUPS_WIDE = 2, /* of a block */
  ASYNC_BIAS_BLOCKS_NARROW = 3,                   /* of owners of dBias, that fit on a multiprocessor */
  ASYNC_AGAIN_TILES = 32,                         /* whose flags a block looks at */
  ASYNC_PANEL = 128,                              /* bytes of a row of 64 columns */
  ASYNC_VALUES = ASYNC_STAGES * 2 * ASYNC_STEP,   /* lse and delta of the staged queries */
  ASYNC_PAIRS = 32, ASYNC_PAIR_BYTES = 96,        /* of sequences and heads that are looked up at a time */
};
/* clang-format on */

/* Can tiles of the bias be copied to shared memory? Otherwise each thread reads what it needs. */
ATTEND_INLINE bool async_bias_staged(const attend_problem *p) {
  const attend_layout *l = &p->layout[OPERAND_BIAS];
  return l->type == p->type && l->col == 1 && l->alignment % 16 == 0 && p->k_len % 8 == 0;
}

/* Two matrices of the owner's rows, and two of the staged ones; values. */
#define ASYNC_SHARED(groups, panels)                                                                                   \
  (2 * ASYNC_PANEL * (panels) * (64 * (groups) + ASYNC_STAGES * ASYNC_STEP) + 4 * ASYNC_VALUES)
/* Where options are there: tiles of the bias, and half words of what dropout keeps, of each stage. */
#define ASYNC_SHARED_BIAS(groups) (ASYNC_PANEL * ASYNC_STEP * (groups))
#define ASYNC_SHARED_OPTIONS(groups, panels)                                                                           \
  (ASYNC_SHARED(groups, panels) + ASYNC_STAGES * (ASYNC_SHARED_BIAS(groups) + 4 * 128 * (groups)))
/* Owners of dBias: stages of all four matrices; a tile of the bias; what is looked up of sequences and heads. */
#define ASYNC_SHARED_D_BIAS(groups, panels)                                                                            \
  (2 * ASYNC_PANEL * (panels)*ASYNC_STAGES * (64 * (groups) + ASYNC_STEP) + ASYNC_SHARED_BIAS(groups) +                \
   ASYNC_PAIRS * ASYNC_PAIR_BYTES)

/* Rows of a tile; and how many tiles, a block each, keys, queries and dBias have. A bias that is broadcast over queries
 * or keys is left to tile_backward.cuh. */
ATTEND_INLINE int64_t async_rows_of(const attend_problem *p) {
  return 64 * (p->head_dim > 64 || p->v_dim > 64 ? ASYNC_GROUPS_WIDE : ASYNC_GROUPS_NARROW);
}
typedef struct async_tiles {
  int64_t keys, queries, bias;
} async_tiles;
ATTEND_INLINE async_tiles async_tiles_of(const attend_problem *p) {
  const int64_t rows = async_rows_of(p), *shape = p->bias_shape;
  int64_t q_tiles = (p->q_len + rows - 1) / rows, k_tiles = (p->k_len + rows - 1) / rows;
  bool bias = attend_has(p, OPERAND_D_BIAS) && shape[2] == p->q_len && shape[3] == p->k_len;
  async_tiles t = {
      attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V) ? p->batch * p->kv_heads * k_tiles : 0,
      attend_has(p, OPERAND_D_Q) ? p->batch * p->heads * q_tiles : 0,
      bias ? shape[0] * shape[1] * q_tiles * ((p->k_len + ASYNC_STEP - 1) / ASYNC_STEP) : 0,
  };
  return t;
}

/* Of a mask, without what it is broadcast over: sequences, heads, and tiles of 64 queries and keys. */
typedef struct async_mask_shape {
  int64_t batch, heads, q_tiles, k_tiles;
} async_mask_shape;
ATTEND_INLINE async_mask_shape async_mask_shape_of(const attend_problem *p) {
  const attend_layout *l = &p->layout[OPERAND_MASK];
  async_mask_shape s = {l->batch ? p->batch : 1, l->head ? p->heads : 1,
                        l->row ? (p->q_len + ASYNC_STEP - 1) / ASYNC_STEP : 1,
                        l->col ? (p->k_len + ASYNC_STEP - 1) / ASYNC_STEP : 1};
  return s;
}
ATTEND_INLINE int64_t async_mask_tiles(const async_mask_shape *s) {
  return s->batch * s->heads * s->q_tiles * s->k_tiles;
}
/* Words of 128 threads, twice. */
ATTEND_INLINE int64_t async_mask_bytes(const attend_problem *p) {
  const async_mask_shape s = async_mask_shape_of(p);
  return attend_has(p, OPERAND_MASK) ? 2 * 4 * 128 * async_mask_tiles(&s) : 0;
}

#endif
