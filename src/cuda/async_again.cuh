/* SPDX-License-Identifier: MIT */
/* What fast kernels of backward on sm_90 leave: a flag for each tile, whether NaN came out, in which case its gradient
 * was not stored; and a kernel after them all does such tiles again, carefully. (Rejected: a call of that at the end of
 * the fast ones, as in tile_backward.cuh. What a call takes from registers cost 3% without options, 13 to 23% with
 * them, at 8x16x2048x64 in bf16 on an H200.) */
#ifndef ATTEND_CUDA_ASYNC_AGAIN_CUH
#define ATTEND_CUDA_ASYNC_AGAIN_CUH

#include "async_mask.cuh"

/* Of owners of keys, of queries, and of dBias. */
WORD uint8_t *async_flags(const cuda_call &call) {
  return (uint8_t *)async_mask_words(call) + async_mask_bytes(&call.problem);
}
WORD int64_t async_flag_keys(const async_tiles &) { return 0; }
WORD int64_t async_flag_queries(const async_tiles &tiles) { return tiles.keys; }
WORD int64_t async_flag_bias(const async_tiles &tiles) { return tiles.keys + tiles.queries; }

/* Looks at ASYNC_AGAIN_TILES flags. */
WORD void async_again(const cuda_call &call, gradient_memory &memory, const int groups, const int panels) {
  const async_tiles tiles = async_tiles_of(&call.problem);
  const uint8_t *flags = async_flags(call);
  const gradient_kind kind = {4 * groups, 1, panels, true, false}, bias = {4 * groups, 1, panels, true, true};
  int64_t first = (int64_t)blockIdx.x * ASYNC_AGAIN_TILES, end = tiles.keys + tiles.queries + tiles.bias;
  if (end > first + ASYNC_AGAIN_TILES) end = first + ASYNC_AGAIN_TILES;
  if (!word_sync_block_any(first + threadIdx.x < end && flags[first + threadIdx.x])) return;
  for (int64_t at = first; at < end; at++) {
    if (!flags[at]) continue;
    word_sync_block(); /* until nobody reads what the last tile left in shared memory */
    if (at < async_flag_queries(tiles))
      gradient_keys(call, (uint32_t)at, memory, true, kind);
    else if (at < async_flag_bias(tiles))
      gradient_queries(call, (uint32_t)(at - async_flag_queries(tiles)), memory, true, kind);
    else
      gradient_bias(call, (uint32_t)(at - async_flag_bias(tiles)), memory, bias);
  }
}

#endif
