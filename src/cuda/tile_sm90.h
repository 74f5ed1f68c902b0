/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90: what host and kernels share. A block is some groups of
 * four warps with 64 queries each, and one group more, which copies tiles of queries, keys and values to a number of
 * places. Registers, of which threads that compute take over what those that copy give back, leave room for one block
 * of a multiprocessor. Microseconds on an H200, bf16, full, and how much longer it takes otherwise:
 *
 *   64 columns    32x32x512   200   copies by threads: 6%; of these also: two places for keys: 4%
 *                 8x32x2048   634   copies by threads: 4%; of these also: two groups: 15%; 152 registers for those that
 *                                   compute: 20%
 *   128 columns   32x16x512   150   copies by threads: 10%; of these also: 232 registers for those that compute, which
 *                                   leave 40 to those that copy: 5%
 *                 8x16x2048   461   copies by threads: 11%; of these also: the same: 6%
 */
#ifndef ATTEND_CUDA_TILE_SM90_H
#define ATTEND_CUDA_TILE_SM90_H

enum {
  SM90_KEYS = 128,
  SM90_MOST_ITEMS = 1024, /* of a block */
  SM90_BARRIERS = 256,    /* bytes */
  SM90_ITEM = 64,
  /* up to 64 columns */
  SM90_NARROW_GROUPS = 3,
  SM90_NARROW_Q_STAGES = 2,
  SM90_NARROW_STAGES = 3,
  SM90_NARROW_COPYING = 32, /* registers */
  SM90_NARROW_COMPUTING = 160,
  SM90_NARROW_SHARED = 128 * (64 * SM90_NARROW_GROUPS * SM90_NARROW_Q_STAGES + 2 * SM90_NARROW_STAGES * SM90_KEYS) +
                       SM90_BARRIERS + (SM90_NARROW_Q_STAGES + 1) * SM90_ITEM + SM90_MOST_ITEMS,
  /* up to 128 columns */
  SM90_WIDE_GROUPS = 2,
  SM90_WIDE_Q_STAGES = 1,
  SM90_WIDE_STAGES = 3,
  SM90_WIDE_COPYING = 56,
  SM90_WIDE_COMPUTING = 224,
  SM90_WIDE_SHARED = 256 * (64 * SM90_WIDE_GROUPS * SM90_WIDE_Q_STAGES + 2 * SM90_WIDE_STAGES * SM90_KEYS) +
                     SM90_BARRIERS + (SM90_WIDE_Q_STAGES + 1) * SM90_ITEM + SM90_MOST_ITEMS
};

#endif
