/* SPDX-License-Identifier: MIT */
/* Decoding, the second launch: rows from what parts or spans left. */
#ifndef ATTEND_CUDA_DECODE_MERGE_CUH
#define ATTEND_CUDA_DECODE_MERGE_CUH

#include "decode_sum.cuh"

/* What a part or a span left for a row. */
WORD decode_leaf decode_leaf_load(const float *from, int64_t stride, int number, int count, bool holds) {
  const int lane = (int)(threadIdx.x & 31);
  decode_leaf x = decode_leaf_of_none();
  if (number >= count) return x;
  const float *at = from + number * stride;
  uint4 sums = *(const uint4 *)(const void *)at;
  x.total = word_f32_from_bits(sums.x), x.largest = word_f32_from_bits(sums.y);
  if (!holds) return x;
  uint4 out = *(const uint4 *)(const void *)(at + 4 + 4 * lane);
  x.out[0] = word_f32_from_bits(out.x), x.out[1] = word_f32_from_bits(out.y);
  x.out[2] = word_f32_from_bits(out.z), x.out[3] = word_f32_from_bits(out.w);
  return x;
}

/* A row whose sums are to be merged, and where they are. False: there is no such row, or it is finished. */
struct decode_merged {
  attend_slice s;
  decode_row row;
  const float *from;
  int64_t stride;
  int parts, spans;
};
WORD bool decode_merge_find(decode_merged &m, const cuda_call &call, uint32_t number) {
  const attend_problem &p = call.problem;
  const decode_shape &shape = call.decode;
  uint32_t rows = (uint32_t)decode_rows(&p), kv_heads = shape.kv_heads;
  uint32_t of_pair = shape.group * (uint32_t)p.q_len, row = number % of_pair, pair = number / of_pair;
  uint32_t tile = row / rows, r = row % rows, all_tile = pair * shape.row_tiles + tile;
  uint32_t b = pair / kv_heads, kv_head = pair - b * kv_heads;
  if (b >= (uint32_t)p.batch) return false;
  if (!shape.plain || p.ragged_q) word_wait_before();
  m.s = decode_slice(call, b, kv_head);
  decode_slice_queries(call, m.s, b, kv_head * shape.group);
  m.row = decode_row_at(call, m.s, (int)row);
  m.parts = (int)shape.parts;
  if ((uint32_t)m.s.k_len != shape.k_len) m.parts = (int)decode_parts(shape.limit, (uint32_t)m.s.k_len);
  m.spans = (m.parts + DECODE_SPAN - 1) / DECODE_SPAN;
  m.stride = rows * decode_part_reals(&p);
  m.from = (const float *)call.workspace + (int64_t)all_tile * shape.most_sums * m.stride + r * decode_part_reals(&p);
  word_wait_before();
  return m.row.exists && m.parts > (shape.span ? DECODE_SPAN : 1);
}

/* Rows from parts and from spans, in the same order: parts make a span; every fourth span is added; then these four
 * sums. From parts a block makes a row, from spans, which are few while rows are many, a warp. */
enum { DECODE_MERGED = 4 };
WORD void decode_merge(const cuda_call &call) {
  __shared__ float sums[DECODE_MERGED][DECODE_MOST_COLUMNS], totals[DECODE_MERGED], most[DECODE_MERGED];
  decode_merged m;
  if (!decode_merge_find(m, call, blockIdx.x)) return;
  const int lane = (int)(threadIdx.x & 31), warp = (int)(threadIdx.x >> 5), v_dim = (int)call.problem.v_dim;
  const bool holds = 4 * lane < v_dim;
  decode_leaf all = decode_leaf_of_none();
  for (int first = warp; first < m.spans; first += 4 * DECODE_MERGED) {
    decode_leaf part[4][DECODE_SPAN];
    UNROLLED
    for (int n = 0; n < 4; n++) UNROLLED
    for (int i = 0; i < DECODE_SPAN; i++)
      part[n][i] = decode_leaf_load(m.from, m.stride, DECODE_SPAN * (first + DECODE_MERGED * n) + i, m.parts, holds);
    UNROLLED
    for (int n = 0; n < 4; n++) {
      int span = first + DECODE_MERGED * n;
      if (span >= m.spans) break;
      decode_leaf sum = decode_leaf_of_none();
      UNROLLED
      for (int i = 0; i < DECODE_SPAN; i++) decode_leaf_add(sum, part[n][i]);
      decode_leaf_add(all, sum);
    }
  }
  word_let_next(); /* before, the next launch's reads would delay these */
  UNROLLED
  for (int i = 0; i < 4; i++) sums[warp][4 * lane + i] = all.out[i];
  if (lane == 0) totals[warp] = all.total, most[warp] = all.largest;
  word_sync_block();
  int column = (int)threadIdx.x;
  if (column >= v_dim) return;
  float largest = -INFINITY, total = 0, out = 0, factor;
  UNROLLED
  for (int w = 0; w < DECODE_MERGED; w++) {
    float scale[2];
    decode_scales(largest, most[w], scale);
    total = decode_sum(total, totals[w], scale), out = decode_sum(out, sums[w][column], scale);
  }
  decode_add_sink(call, m.s, m.row.member, largest, total, factor);
  decode_store(call, m.s, m.row, largest, total, column, out * factor);
}
WORD void decode_merge_spans(const cuda_call &call) {
  decode_merged m;
  word_let_next();
  if (!decode_merge_find(m, call, blockIdx.x * DECODE_WARPS + (threadIdx.x >> 5))) return;
  const int lane = (int)(threadIdx.x & 31), v_dim = (int)call.problem.v_dim;
  const decode_leaf none = decode_leaf_of_none();
  decode_leaf sum[DECODE_MERGED] = {none, none, none, none}, all = none;
  for (int first = 0; first < m.spans; first += DECODE_MERGED) {
    decode_leaf span[DECODE_MERGED];
    UNROLLED
    for (int i = 0; i < DECODE_MERGED; i++)
      span[i] = decode_leaf_load(m.from, m.stride, first + i, m.spans, 4 * lane < v_dim);
    UNROLLED
    for (int i = 0; i < DECODE_MERGED; i++) decode_leaf_add(sum[i], span[i]);
  }
  UNROLLED
  for (int i = 0; i < DECODE_MERGED; i++) decode_leaf_add(all, sum[i]);
  float factor;
  decode_add_sink(call, m.s, m.row.member, all.largest, all.total, factor);
  UNROLLED
  for (int i = 0; i < 4; i++)
    if (4 * lane + i < v_dim) decode_store(call, m.s, m.row, all.largest, all.total, 4 * lane + i, all.out[i] * factor);
}

#endif
