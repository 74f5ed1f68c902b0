/* SPDX-License-Identifier: MIT */
/* The mask as bits for backward on sm_90, in the workspace: of every tile of 64 x 64 pairs one word for each thread of
 * the group that works on it, once for the owners of queries and once for those of keys, whose threads hold other
 * pairs. So each byte of a mask is looked at once, however many sequences and heads share it, and a step takes one
 * load. (Rejected: that each block makes words of 32 keys from bytes, of which its threads pick bits: ten instructions
 * more for a pair.) */
#ifndef ATTEND_CUDA_ASYNC_MASK_CUH
#define ATTEND_CUDA_ASYNC_MASK_CUH

#include "async_tile.cuh"

WORD uint32_t *async_mask_words(const cuda_call &call) {
  return (uint32_t *)call.workspace + 2 * gradient_delta_at(call.problem);
}

/* One tile, by 128 threads. Bit 4n + 2h + e: row g + 8h of the warp's 16 and column 8n + 2t + e. */
WORD void async_mask_pack(const cuda_call &call) {
  __shared__ uint32_t bytes[ASYNC_STEP][17]; /* [query][4 keys], 0 or 1; the last against bank conflicts */
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_MASK];
  const async_mask_shape shape = async_mask_shape_of(&p);
  uint32_t tile = blockIdx.x, of_pair = (uint32_t)(shape.q_tiles * shape.k_tiles);
  uint32_t pair = tile / of_pair, q_tile = tile % of_pair / (uint32_t)shape.k_tiles;
  uint32_t k_tile = tile % (uint32_t)shape.k_tiles;
  const char *data = (const char *)call.operands.data[OPERAND_MASK] + pair / (uint32_t)shape.heads * l.batch +
                     pair % (uint32_t)shape.heads * l.head;
  const int thread = (int)threadIdx.x;
  int64_t i0 = (int64_t)q_tile * ASYNC_STEP, j0 = (int64_t)k_tile * ASYNC_STEP;
  int column = thread % 16;
  bool words = l.col == 1 && l.alignment % 4 == 0 && j0 + ASYNC_STEP <= p.k_len;
  UNROLLED
  for (int n = 0; n < ASYNC_STEP / 8; n++) {
    int row = thread / 16 + 8 * n;
    const char *from = data + (i0 + row) * l.row + (j0 + 4 * column) * l.col;
    uint32_t x = 0;
    if (i0 + row < p.q_len || l.row == 0) {
      if (words)
        x = *(const uint32_t *)(const void *)from;
      else
        for (int e = 0; e < 4; e++)
          if (j0 + 4 * column + e < p.k_len || l.col == 0) x |= (uint32_t)(uint8_t)from[e * l.col] << 8 * e;
    }
    bytes[row][column] = ((((x & 0x7F7F7F7F) + 0x7F7F7F7F) | x) >> 7) & 0x01010101;
  }
  word_sync_block();
  const uint8_t *at = (const uint8_t *)(const void *)bytes;
  int own = 16 * (thread >> 5) + lane_row(), other = 2 * lane_column();
  uint32_t by_queries = 0, by_keys = 0;
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    int row = own + 8 * (e >> 1), col = other + 8 * n + (e & 1);
    by_queries |= (uint32_t)at[row * 68 + col] << (4 * n + e);
    by_keys |= (uint32_t)at[col * 68 + row] << (4 * n + e);
  }
  uint32_t *to = async_mask_words(call) + thread;
  int64_t first = (int64_t)pair * of_pair, all = async_mask_tiles(&shape);
  to[128 * (first + q_tile * (uint32_t)shape.k_tiles + k_tile)] = by_queries;
  to[128 * (all + first + k_tile * (uint32_t)shape.q_tiles + q_tile)] = by_keys;
}

/* The words of the tile at (q0, k0), multiples of 64. */
WORD const uint32_t *async_mask_words_of(const cuda_call &call, int64_t b, int64_t h, int q0, int k0,
                                         const bool owns_keys) {
  const async_mask_shape shape = async_mask_shape_of(&call.problem);
  int64_t tile = (shape.batch == 1 ? 0 : b) * shape.heads + (shape.heads == 1 ? 0 : h);
  int64_t q_tile = shape.q_tiles == 1 ? 0 : q0 / ASYNC_STEP, k_tile = shape.k_tiles == 1 ? 0 : k0 / ASYNC_STEP;
  tile = tile * shape.q_tiles * shape.k_tiles +
         (owns_keys ? async_mask_tiles(&shape) + k_tile * shape.q_tiles + q_tile : q_tile * shape.k_tiles + k_tile);
  return async_mask_words(call) + 128 * tile;
}

/* From those of a tile to those of the next 64 queries, for owners of queries. */
WORD int64_t async_mask_row(const attend_problem &p) {
  const async_mask_shape shape = async_mask_shape_of(&p);
  return shape.q_tiles > 1 ? 128 * shape.k_tiles : 0;
}

/* Where a thread reads its words: of its group's tile, and of those beside it, step by step. */
struct async_mask_stream {
  const uint32_t *at;
  int64_t step;
};

/* A group beyond the last tile has any. */
WORD async_mask_stream async_mask_stream_of(const cuda_call &call, int64_t b, int64_t h, int q0, int k0,
                                            const bool owns_keys) {
  const async_mask_shape shape = async_mask_shape_of(&call.problem);
  if (q0 >= call.problem.q_len) q0 = 0;
  if (k0 >= call.problem.k_len) k0 = 0;
  async_mask_stream s = {async_mask_words_of(call, b, h, q0, k0, owns_keys) + (threadIdx.x & 127),
                         (owns_keys ? shape.q_tiles : shape.k_tiles) > 1 ? 128 : 0};
  return s;
}

#endif
