/* SPDX-License-Identifier: MIT */
/* Backward in tiles through the asynchronous products of sm_90: what host and kernels share. A group is four warps and
 * owns 64 keys or queries; what it goes through is staged 64 rows at a time. Heads of at most 64 columns: blocks of one
 * group, so that the waits of one are the work of another (two groups: 276 TFLOP/s at 8x32x2048x64 on an H200, not
 * 342). Wider: two groups share a stage, as L2 would else be read too fast at 1x16x16384x128 (373, not 358). */
#ifndef ATTEND_CUDA_TILE_BACKWARD_SM90_H
#define ATTEND_CUDA_TILE_BACKWARD_SM90_H

/* clang-format off */
enum {
  ASYNC_STEP = 64,
  ASYNC_STAGES = 2,
  ASYNC_GROUPS_NARROW = 1, ASYNC_GROUPS_WIDE = 2, /* of a block */
  ASYNC_PANEL = 128,                              /* bytes of a row of 64 columns */
  ASYNC_VALUES = ASYNC_STAGES * 2 * ASYNC_STEP,   /* lse and delta of the staged queries */
  ASYNC_WORDS = ASYNC_STEP * 128 / 32             /* of pairs of a stage: mask and dropout, where all options are there */
};
/* clang-format on */

/* Two matrices of the owner's rows, and two of the staged ones; values; bits. */
#define ASYNC_SHARED(groups, panels)                                                                                   \
  (2 * ASYNC_PANEL * (panels) * (64 * (groups) + ASYNC_STAGES * ASYNC_STEP) + 4 * ASYNC_VALUES +                       \
   4 * 2 * ASYNC_STAGES * ASYNC_WORDS)
#define ASYNC_SHARED_NARROW ASYNC_SHARED(ASYNC_GROUPS_NARROW, 1)
#define ASYNC_SHARED_WIDE ASYNC_SHARED(ASYNC_GROUPS_WIDE, 2)

#endif
