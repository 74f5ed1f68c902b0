/* SPDX-License-Identifier: MIT */
/* Decoding: every byte of K and V is read once, for all heads that share it. The products are turned around, S^T = K
 * Q^T and O^T = V^T P^T, so that keys and columns fill the 16 rows of the matrix instruction and the few queries its 8
 * columns: half the instructions and accumulators of Q K^T. Blocks of K and V go from memory to registers as they are
 * (fragment.cuh); the next keys are on their way while these are worked on. */
#ifndef ATTEND_CUDA_DECODE_CUH
#define ATTEND_CUDA_DECODE_CUH

#include "decode.h"
#include "fragment.cuh"

/* What an entry point fixes: groups of 8 rows (1, 2), chunks of 64 columns (1, 2), and whether all options are there.
 */
struct decode_kind {
  int groups, chunks;
  bool general;
};

/* One row of the tile. */
struct decode_row {
  bool exists;
  int member, i; /* head within the group, query */
};
WORD decode_row decode_row_at(const attend_problem &p, const attend_slice &s, int row) {
  decode_row r;
  uint32_t q_len = (uint32_t)p.q_len;
  r.member = (int)((uint32_t)row / q_len), r.i = (int)((uint32_t)row % q_len);
  r.exists = r.member < (int)(p.heads / p.kv_heads) && r.i < s.q_len;
  return r;
}

/* Rows k0 + g and k0 + 8 + g of K or V: element offsets for a lane, of paged keys by the table. */
struct decode_place {
  bool exists[2];
  int64_t page[2];
  uint32_t within[2];
};
WORD decode_place decode_find(const attend_problem &p, const attend_slice &s, int64_t k0, int64_t end) {
  decode_place place;
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t j = k0 + 8 * half + lane_row();
    place.exists[half] = j < end;
    place.page[half] = 0, place.within[half] = (uint32_t)j;
    if (s.pages.table && place.exists[half]) {
      uint32_t size = (uint32_t)s.pages.block_size, number = (uint32_t)j / size;
      place.page[half] = slice_clamp(
          slice_index(s.pages.table, (int64_t)number * s.pages.table_stride, s.pages.table_type), p.block_count - 1);
      place.within[half] = (uint32_t)j - number * size;
    }
  }
  return place;
}
WORD void decode_load(block x[2][2], const attend_matrix &m, int64_t page_stride, const decode_place &place,
                      int columns, const decode_kind kind) {
  UNROLLED
  for (int half = 0; half < 2; half++) {
    const char *row = m.data + 2 * (place.page[half] * page_stride + (int64_t)place.within[half] * m.row);
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) x[c][half] = block_load(row + 128 * c, place.exists[half], columns - 64 * c);
  }
}

/* What a warp has of its keys: for queries 2t, 2t + 1 of each group of 8 the largest score (in units of log 2), this
 * lane's part of the sum, and O^T: sum[c][i][group] has columns of register 2i of chunk c in rows 0-7, of 2i + 1 in
 * 8-15. */
struct decode_state {
  float largest[2][2], total[2][2], sum[2][4][2][4];
};

/* Take keys with NaN or Inf out of a transposed block of V, and add their products here, where they are seen. */
WORD void decode_spare(float sum[4][2][4], const uint32_t weight[2], const uint32_t allowed[2], block &x,
                       const decode_kind kind) {
  uint32_t rows = block_bad_rows(x);
  int g = lane_row(), t = lane_column();
  for (int k = 0; k < 8; k++) {
    if (!(rows >> k & 1)) continue;
    int shift = 16 * (k & 1);
    for (int group = 0; group < kind.groups; group++)
      for (int e = 0; e < 2; e++) {
        int from = 4 * (2 * t + e) + k / 2;
        float w = half_of(word_shuffle(weight[group], from) >> shift, false);
        bool sees = word_shuffle(allowed[group], from) >> shift & 1;
        UNROLLED
        for (int n = 0; n < 8; n++) {
          float y = half_of(word_shuffle(x.r[n], 4 * g + k / 2) >> shift, false);
          if (sees) sum[n / 2][group][2 * (n % 2) + e] += w * y;
        }
      }
  }
  block_clear_rows(x, rows);
}

WORD void decode_rescale(decode_state &state, const float rescale[2][2], const decode_kind kind) {
  UNROLLED
  for (int c = 0; c < kind.chunks; c++) {
    UNROLLED
    for (int i = 0; i < 4; i++) {
      UNROLLED
      for (int group = 0; group < kind.groups; group++) {
        UNROLLED
        for (int e = 0; e < 4; e++) state.sum[c][i][group][e] *= rescale[group][e % 2];
      }
    }
  }
}

WORD void decode_keys(const cuda_call &call, const attend_slice &s, const attend_slice row_slice[2][2],
                      const decode_row row[2][2], const block q[2][2], int64_t first, int64_t end, bool careful,
                      decode_state &state, const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, step = DECODE_KEYS * DECODE_WARPS;
  int64_t visible_first[2][2], visible_last[2][2];
  UNROLLED
  for (int group = 0; group < kind.groups; group++)
    for (int e = 0; e < 2; e++) {
      visible_first[group][e] = visible_last[group][e] = 0;
      if (row[group][e].exists)
        attend_visible_range(&p, &s, row[group][e].i, &visible_first[group][e], &visible_last[group][e]);
      state.largest[group][e] = -INFINITY, state.total[group][e] = 0;
      for (int c = 0; c < kind.chunks; c++)
        for (int i = 0; i < 4; i++) state.sum[c][i][group][e] = state.sum[c][i][group][2 + e] = 0;
    }
  int64_t k0 = first + DECODE_KEYS * (int64_t)(threadIdx.x >> 5);
  decode_place place = decode_find(p, s, k0, end);
  block k[2][2], v[2][2];
  decode_load(k, s.k, s.pages.k_block, place, head_dim, kind);
  decode_load(v, s.v, s.pages.v_block, place, v_dim, kind);
  for (; k0 < end; k0 += step) {
    place = decode_find(p, s, k0 + step, end);
    float score[2][4] = {};
    UNROLLED
    for (int group = 0; group < kind.groups; group++) UNROLLED
    for (int c = 0; c < kind.chunks; c++) block_dots(score[group], k[c][0], k[c][1], q[c][group]);
    decode_load(k, s.k, s.pages.k_block, place, head_dim, kind);
    uint32_t weight[2][2], allowed[2][2]; /* [keys 0-7, 8-15][group] */
    float rescale[2][2];
    bool changed = false;
    UNROLLED
    for (int group = 0; group < kind.groups; group++) {
      uint32_t seen = 0;
      UNROLLED
      for (int e = 0; e < 2; e++) {
        float most = state.largest[group][e];
        UNROLLED
        for (int half = 0; half < 2; half++) {
          int64_t j = k0 + 8 * half + lane_row();
          float &x = score[group][2 * half + e];
          bool sees = j >= visible_first[group][e] && j < visible_last[group][e];
          if (kind.general) sees = sees && unmasked(p, row_slice[group][e], row[group][e].i, j);
          if (!kind.general)
            x = sees ? x * ((float)p.scale * LOG2_E) : -INFINITY;
          else
            x = sees ? score_of(p, row_slice[group][e], row[group][e].i, j, x).biased * LOG2_E : -INFINITY;
          if (sees) seen |= 1u << (2 * half + e);
          most = max_of(x, most);
        }
        UNROLLED
        for (int lanes = 4; lanes < 32; lanes *= 2) most = max_of(most, word_shuffle_xor_f32(most, lanes));
        float shift = most == -INFINITY ? 0 : most, before = state.largest[group][e];
        rescale[group][e] = before == most ? 1 : word_exp2(before - shift);
        changed |= before != most;
        state.largest[group][e] = most;
        UNROLLED
        for (int half = 0; half < 2; half++) score[group][2 * half + e] = word_exp2(score[group][2 * half + e] - shift);
        state.total[group][e] = state.total[group][e] * rescale[group][e] + (score[group][e] + score[group][2 + e]);
      }
      UNROLLED
      for (int half = 0; half < 2; half++) {
        weight[half][group] = word_transpose(pack(score[group][2 * half], score[group][2 * half + 1]));
        if (careful)
          allowed[half][group] = word_transpose((seen >> (2 * half) & 1) | (seen >> (2 * half + 1) & 1) << 16);
      }
    }
    if (word_any(changed)) decode_rescale(state, rescale, kind);
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) {
      block low = block_transpose(v[c][0]), high = block_transpose(v[c][1]);
      if (careful) {
        decode_spare(state.sum[c], weight[0], allowed[0], low, kind);
        decode_spare(state.sum[c], weight[1], allowed[1], high, kind);
      }
      UNROLLED
      for (int i = 0; i < 4; i++) {
        uint32_t a[4] = {low.r[2 * i], low.r[2 * i + 1], high.r[2 * i], high.r[2 * i + 1]};
        UNROLLED
        for (int group = 0; group < kind.groups; group++)
          multiply(state.sum[c][i][group], a, weight[0][group], weight[1][group]);
      }
    }
    decode_load(v, s.v, s.pages.v_block, place, v_dim, kind);
  }
}

struct decode_memory {
  float out[DECODE_WARPS][16][DECODE_MOST_COLUMNS];
  float largest[DECODE_WARPS][16], total[DECODE_WARPS][16];
};

/* A row of the output, and its lse, from the sum of weights and the sum of weighted values. */
WORD void decode_store(const cuda_call &call, const attend_slice &s, const decode_row &row, float largest, float total,
                       int column, float sum) {
  const attend_problem &p = call.problem;
  int64_t at = row.i * s.out.row + row.member * p.layout[OPERAND_OUT].head + column * s.out.col;
  store_element(s.out.data, at, ELEMENT, total == 0 ? 0 : sum / total);
  if (s.lse && column == 0)
    ((float *)(void *)s.lse)[row.i * s.lse_row + row.member * p.layout[OPERAND_LSE].head] =
        total == 0 ? -INFINITY : largest * LN_2 + logf(total);
}

/* The sink joins where a row is finished. */
WORD void decode_add_sink(const cuda_call &call, const attend_slice &s, int member, float &largest, float &total,
                          float &factor) {
  const attend_problem &p = call.problem;
  factor = 1;
  if (!call.operands.data[OPERAND_SINK]) return;
  float sink = LOG2_E * (float)load_any((const char *)call.operands.data[OPERAND_SINK],
                                        (s.h + member) * p.layout[OPERAND_SINK].head, p.layout[OPERAND_SINK].type);
  float most = max_of(sink, largest);
  if (most == -INFINITY) return;
  factor = word_exp2(largest - most);
  total = total * factor + word_exp2(sink - most);
  largest = most;
}

/* One part of the keys of one tile of rows. */
WORD void decode(const cuda_call &call, const decode_kind kind) {
  __shared__ decode_memory memory;
  const attend_problem &p = call.problem;
  const int rows = 8 * kind.groups, g = lane_row(), t = lane_column(), warp = (int)(threadIdx.x >> 5);
  int64_t most_parts = decode_most_parts(p.k_len), tiles = decode_row_tiles(&p);
  int64_t item = blockIdx.x, part = item % most_parts, tile = item / most_parts % tiles,
          pair = item / most_parts / tiles, key_rows;
  int64_t b = pair / p.kv_heads, head = pair % p.kv_heads * (p.heads / p.kv_heads);
  attend_slice s = slice_make(p, call.operands, b, head, key_rows);
  int64_t parts = decode_parts(s.k_len), size = decode_part(s.k_len), first = part * size, end = first + size;
  if (part >= parts) return;
  if (end > s.k_len) end = s.k_len;

  decode_row row[2][2];
  attend_slice row_slice[2][2] = {};
  block q[2][2];
  UNROLLED
  for (int group = 0; group < kind.groups; group++) {
    UNROLLED
    for (int e = 0; e < 2; e++) {
      row[group][e] = decode_row_at(p, s, (int)tile * rows + 8 * group + 2 * t + e);
      if (kind.general && row[group][e].exists)
        row_slice[group][e] = slice_make(p, call.operands, b, head + row[group][e].member, key_rows);
    }
    decode_row own = decode_row_at(p, s, (int)tile * rows + 8 * group + g);
    const char *at = s.q.data + 2 * (own.i * s.q.row + own.member * p.layout[OPERAND_Q].head);
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) q[c][group] = block_load(at + 128 * c, own.exists, (int)p.head_dim - 64 * c);
  }

  decode_state state;
  decode_keys(call, s, row_slice, row, q, first, end, false, state, kind);
  bool nan = false;
  UNROLLED
  for (int c = 0; c < kind.chunks; c++) UNROLLED
  for (int i = 0; i < 4; i++) UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 4; e++) nan |= state.sum[c][i][group][e] != state.sum[c][i][group][e];
  if (word_any(nan)) decode_keys(call, s, row_slice, row, q, first, end, true, state, kind);

  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) {
    float total = state.total[group][e];
    UNROLLED
    for (int lanes = 4; lanes < 32; lanes *= 2) total += word_shuffle_xor_f32(total, lanes);
    int r = 8 * group + 2 * t + e;
    if (g == 0) memory.largest[warp][r] = state.largest[group][e], memory.total[warp][r] = total;
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) UNROLLED
    for (int n = 0; n < 8; n++)
      memory.out[warp][r][64 * c + 32 * (n / 4) + 8 * (g / 2) + 2 * (n % 4) + g % 2] =
          state.sum[c][n / 2][group][2 * (n % 2) + e];
  }
  word_sync_block();
  int width = 64 * kind.chunks;
  for (int x = (int)threadIdx.x; x < rows * width; x += 32 * DECODE_WARPS) {
    int r = x / width, column = x % width;
    decode_row own = decode_row_at(p, s, (int)tile * rows + r);
    if (!own.exists || column >= p.v_dim) continue;
    float largest = -INFINITY, total = 0, sum = 0, factor;
    UNROLLED
    for (int w = 0; w < DECODE_WARPS; w++) largest = max_of(memory.largest[w][r], largest);
    UNROLLED
    for (int w = 0; w < DECODE_WARPS; w++) { /* in order */
      float scale = memory.largest[w][r] == -INFINITY ? 0 : word_exp2(memory.largest[w][r] - largest);
      if (memory.total[w][r] != memory.total[w][r]) scale = memory.total[w][r];
      total += memory.total[w][r] * scale;
      sum += memory.out[w][r][column] * scale;
    }
    if (parts == 1) {
      decode_add_sink(call, s, own.member, largest, total, factor);
      decode_store(call, s, own, largest, total, column, sum * factor);
    } else {
      float *to = (float *)call.workspace + (item * rows + r) * decode_part_reals(&p);
      if (column == 0) to[0] = total, to[1] = largest;
      to[2 + column] = sum;
    }
  }
}

/* The parts of one row, added in order: a warp takes every fourth, then the warps' sums are added. */
WORD void decode_merge(const cuda_call &call) {
  __shared__ float sums[DECODE_WARPS][DECODE_MOST_COLUMNS], totals[DECODE_WARPS];
  const attend_problem &p = call.problem;
  int64_t rows = decode_rows(&p), most_parts = decode_most_parts(p.k_len), tiles = decode_row_tiles(&p), key_rows;
  int64_t item = blockIdx.x, r = item % rows, tile = item / rows % tiles, pair = item / rows / tiles;
  int64_t b = pair / p.kv_heads, head = pair % p.kv_heads * (p.heads / p.kv_heads);
  attend_slice s = slice_make(p, call.operands, b, head, key_rows);
  decode_row own = decode_row_at(p, s, (int)(tile * rows + r));
  int64_t parts = decode_parts(s.k_len), reals = decode_part_reals(&p);
  if (!own.exists || parts == 1) return;
  const float *from = (const float *)call.workspace + (pair * tiles + tile) * most_parts * rows * reals + r * reals;
  int lane = (int)(threadIdx.x & 31), warp = (int)(threadIdx.x >> 5);
  float largest = -INFINITY, total = 0, sum[DECODE_MOST_COLUMNS / 32] = {};
  for (int64_t part = lane; part < parts; part += 32) largest = max_of(from[part * rows * reals + 1], largest);
  UNROLLED
  for (int lanes = 1; lanes < 32; lanes *= 2) largest = max_of(largest, word_shuffle_xor_f32(largest, lanes));
  UNROLLED_BY_4
  for (int64_t part = warp; part < parts; part += DECODE_WARPS) {
    const float *x = from + part * rows * reals;
    float scale = x[1] == -INFINITY ? 0 : word_exp2(x[1] - largest);
    if (x[0] != x[0]) scale = x[0];
    total += x[0] * scale;
    UNROLLED
    for (int c = 0; c < DECODE_MOST_COLUMNS / 32; c++)
      if (lane + 32 * c < p.v_dim) sum[c] += x[2 + lane + 32 * c] * scale;
  }
  UNROLLED
  for (int c = 0; c < DECODE_MOST_COLUMNS / 32; c++) sums[warp][lane + 32 * c] = sum[c];
  if (lane == 0) totals[warp] = total;
  word_sync_block();
  int column = (int)threadIdx.x;
  if (column >= p.v_dim) return;
  float all = 0, out = 0, factor;
  UNROLLED
  for (int w = 0; w < DECODE_WARPS; w++) all += totals[w], out += sums[w][column];
  decode_add_sink(call, s, own.member, largest, all, factor);
  decode_store(call, s, own, largest, all, column, out * factor);
}

#endif
