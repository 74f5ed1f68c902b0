/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90: what host and kernels share. A block is some groups of
 * four warps with 64 queries each, and one group more, which copies tiles of keys and values to a number of places.
 * Registers, of which threads that compute take over what those that copy give back, leave room for one block of a
 * multiprocessor. TFLOP/s on an H200: 64 columns, 1x32x16384 and 8x32x2048: 475 and 400 (two groups: 427 and 364; two
 * blocks of a multiprocessor, without a group that copies: 367 and 339); 128 columns, causal, 8x16x2048: 403 (two
 * places: 397). */
#ifndef ATTEND_CUDA_TILE_SM90_H
#define ATTEND_CUDA_TILE_SM90_H

enum {
  SM90_KEYS = 128,
  SM90_BARRIERS = 256, /* bytes */
  /* up to 64 columns */
  SM90_NARROW_GROUPS = 3,
  SM90_NARROW_STAGES = 2,
  SM90_NARROW_COPYING = 32, /* registers */
  SM90_NARROW_COMPUTING = 160,
  SM90_NARROW_SHARED = 128 * (64 * SM90_NARROW_GROUPS + 2 * SM90_NARROW_STAGES * SM90_KEYS) + SM90_BARRIERS,
  /* up to 128 columns */
  SM90_WIDE_GROUPS = 2,
  SM90_WIDE_STAGES = 3,
  SM90_WIDE_COPYING = 40,
  SM90_WIDE_COMPUTING = 232,
  SM90_WIDE_SHARED = 256 * (64 * SM90_WIDE_GROUPS + 2 * SM90_WIDE_STAGES * SM90_KEYS) + SM90_BARRIERS
};

#endif
