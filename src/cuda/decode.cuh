/* SPDX-License-Identifier: MIT */
/* Decoding: every byte of K and V is read once, for all heads that share it. The products are turned around, S^T = K
 * Q^T and O^T = V^T P^T, so that keys and columns fill the 16 rows of the matrix instruction and the few queries its 8
 * columns: half the instructions and accumulators of Q K^T. Blocks of K and V go from memory to registers as they are
 * (fragment.cuh), by way of shared memory: each lane has the words that it will need copied to places of its own, ahead
 * of time, where registers would be too few to hold what must be on its way to keep the memory busy. */
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
WORD decode_row decode_row_at(const cuda_call &call, const attend_slice &s, int row) {
  decode_row r;
  uint32_t q_len = (uint32_t)call.problem.q_len;
  r.member = (int)((uint32_t)row / q_len), r.i = (int)((uint32_t)row % q_len);
  r.exists = r.member < (int)call.decode.group && r.i < s.q_len;
  return r;
}

/* Of slice_make only what it takes to set keys on their way. */
WORD attend_slice decode_slice(const attend_problem &p, const attend_operands &o, uint32_t b, uint32_t kv_head) {
  attend_slice s = {};
  int64_t first = 0, batch = p.ragged_k || p.paged ? 0 : b;
  s.k_len = p.k_len;
  if (p.ragged_k) slice_ragged(p, o, OPERAND_K_OFFSETS, b, p.k_total, p.k_len, first, s.k_len);
  if (attend_has(&p, OPERAND_KV_LEN)) {
    const attend_layout &l = p.layout[OPERAND_KV_LEN];
    bool wide = l.type == TYPE_I64;
    const char *at = (const char *)o.data[OPERAND_KV_LEN] + b * l.batch * (wide ? 8 : 4);
    s.k_len = slice_clamp(word_load_index_if(at, wide, true), s.k_len);
  }
  if (p.paged) {
    const attend_layout &t = p.layout[OPERAND_BLOCK_TABLE];
    s.pages.table = (const char *)o.data[OPERAND_BLOCK_TABLE] + b * t.batch * (t.type == TYPE_I64 ? 8 : 4);
    s.pages.table_stride = t.row, s.pages.table_type = t.type, s.pages.block_size = p.block_size;
    s.pages.k_block = p.layout[OPERAND_K].batch, s.pages.v_block = p.layout[OPERAND_V].batch;
  }
  s.k = slice_matrix(p, o, OPERAND_K, batch, kv_head, first);
  s.v = slice_matrix(p, o, OPERAND_V, batch, kv_head, first);
  return s;
}

/* Where a lane finds rows k0 + g and k0 + 8 + g of K and V: page, and row within it. */
struct decode_place {
  uint32_t page[2], row[2]; /* row NOWHERE: beyond the end */
};
#define NOWHERE 0xFFFFFFFFu
WORD decode_place decode_find(const attend_problem &p, const attend_slice &s, int k0, int end) {
  decode_place place;
  bool paged = s.pages.table, wide = s.pages.table_type == TYPE_I64;
  uint32_t size = paged ? (uint32_t)s.pages.block_size : 1;
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int j = k0 + 8 * half + lane_row();
    uint32_t number = (uint32_t)j / size;
    int64_t page =
        word_load_index_if(s.pages.table + number * s.pages.table_stride * (wide ? 8 : 4), wide, paged && j < end);
    place.page[half] = (uint32_t)slice_clamp(page, paged ? p.block_count - 1 : 0);
    place.row[half] = j >= end ? NOWHERE : paged ? (uint32_t)j - number * size : (uint32_t)j;
  }
  return place;
}
/* 16 keys of K or V on their way to a warp: words of 16 bytes, each for the lane that will use it. */
struct decode_unit {
  uint4 word[2][2][2][32]; /* [chunk][half][low, high][lane] */
};
WORD void decode_copy(decode_unit &u, const attend_matrix &m, int64_t page_stride, const decode_place &place,
                      int columns, const decode_kind kind) {
  int t = lane_column();
  UNROLLED
  for (int half = 0; half < 2; half++) {
    const char *row = m.data + 2 * (place.page[half] * page_stride + place.row[half] * m.row) + 16 * t;
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) {
      UNROLLED
      for (int part = 0; part < 2; part++)
        word_copy_async(&u.word[c][half][part][threadIdx.x & 31], row + 128 * c + 64 * part,
                        place.row[half] != NOWHERE && 8 * t + 64 * c + 32 * part < columns);
    }
  }
  word_copy_commit();
}
WORD block decode_take(const decode_unit &u, int c, int half) {
  uint4 low = u.word[c][half][0][threadIdx.x & 31], high = u.word[c][half][1][threadIdx.x & 31];
  block x = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  return x;
}
/* Until the oldest unit is there. */
WORD void decode_wait(void) { word_copy_wait(2 * DECODE_AHEAD); }

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

/* What is on its way while keys are worked on: the units of the next steps, and the places of those that follow. */
struct decode_stream {
  decode_unit *ring;
  decode_place near, far;
};
WORD void decode_start(const cuda_call &call, const attend_slice &s, int first, int end, decode_stream &stream,
                       const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int step = DECODE_KEYS * DECODE_WARPS, k0 = first + DECODE_KEYS * (int)(threadIdx.x >> 5);
  decode_place place[DECODE_AHEAD + 2];
  UNROLLED
  for (int ahead = 0; ahead < DECODE_AHEAD + 2; ahead++) place[ahead] = decode_find(p, s, k0 + ahead * step, end);
  UNROLLED
  for (int ahead = 0; ahead <= DECODE_AHEAD; ahead++) {
    decode_copy(stream.ring[2 * ahead], s.k, s.pages.k_block, place[ahead], (int)p.head_dim, kind);
    if (ahead < DECODE_AHEAD)
      decode_copy(stream.ring[2 * ahead + 1], s.v, s.pages.v_block, place[ahead], (int)p.v_dim, kind);
  }
  stream.near = place[DECODE_AHEAD], stream.far = place[DECODE_AHEAD + 1];
}

/* The keys of this warp, of which decode_start has set the first on their way. */
WORD void decode_keys(const cuda_call &call, const attend_slice &s, const attend_slice row_slice[2][2],
                      const decode_row row[2][2], const block q[2][2], int first, int end, bool careful,
                      decode_stream &stream, decode_state &state, const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, step = DECODE_KEYS * DECODE_WARPS;
  int visible_first[2][2], visible_last[2][2];
  UNROLLED
  for (int group = 0; group < kind.groups; group++)
    for (int e = 0; e < 2; e++) {
      int64_t lo = 0, hi = 0;
      if (row[group][e].exists) attend_visible_range(&p, &s, row[group][e].i, &lo, &hi);
      visible_first[group][e] = (int)lo, visible_last[group][e] = (int)hi;
      state.largest[group][e] = -INFINITY, state.total[group][e] = 0;
      for (int c = 0; c < kind.chunks; c++)
        for (int i = 0; i < 4; i++) state.sum[c][i][group][e] = state.sum[c][i][group][2 + e] = 0;
    }
  int k0 = first + DECODE_KEYS * (int)(threadIdx.x >> 5);
  int at = 0;
  for (; k0 < end; k0 += step) {
    float score[2][4] = {};
    decode_wait();
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) {
      block low = decode_take(stream.ring[at], c, 0), high = decode_take(stream.ring[at], c, 1);
      UNROLLED
      for (int group = 0; group < kind.groups; group++) block_dots(score[group], low, high, q[c][group]);
    }
    decode_copy(stream.ring[at], s.v, s.pages.v_block, stream.near, v_dim, kind);
    at = at == 2 * DECODE_AHEAD ? 0 : at + 1;
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
          int j = k0 + 8 * half + lane_row();
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
    decode_wait();
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) {
      block low = block_transpose(decode_take(stream.ring[at], c, 0)),
            high = block_transpose(decode_take(stream.ring[at], c, 1));
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
    decode_copy(stream.ring[at], s.k, s.pages.k_block, stream.far, head_dim, kind);
    at = at == 2 * DECODE_AHEAD ? 0 : at + 1;
    stream.near = stream.far, stream.far = decode_find(p, s, k0 + (DECODE_AHEAD + 2) * step, end);
  }
  word_copy_wait(0);
  word_sync_warp();
}

union decode_warp {
  decode_unit ring[2 * DECODE_AHEAD + 1];
  struct {
    float out[16][DECODE_MOST_COLUMNS], largest[16], total[16];
  } result;
};
struct decode_memory {
  decode_warp warp[DECODE_WARPS];
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
  const decode_shape &shape = call.decode;
  uint32_t kv_heads = (uint32_t)p.kv_heads, item = blockIdx.x, tile = item % shape.row_tiles;
  item /= shape.row_tiles;
  uint32_t kv_head = item % kv_heads, rest = item / kv_heads, part = rest % shape.most_parts,
           b = rest / shape.most_parts;
  uint32_t head = kv_head * shape.group;
  int64_t key_rows;
  attend_slice s = decode_slice(p, call.operands, b, kv_head);
  uint32_t k_len = (uint32_t)s.k_len, size = decode_part(shape.limit, k_len);
  uint32_t parts = decode_parts(shape.limit, k_len);
  int first = (int)(part * size), end = first + (int)size;
  if (part >= parts) return;
  if (end > s.k_len) end = (int)s.k_len;
  uint32_t all_tile = (b * kv_heads + kv_head) * shape.row_tiles + tile;
  /* The first keys are set on their way before anything else is worked out. */
  decode_stream stream = {memory.warp[warp].ring, {}, {}};
  decode_start(call, s, first, end, stream, kind);
  s = slice_make(p, call.operands, b, head, key_rows);
  decode_row row[2][2] = {};
  attend_slice row_slice[2][2] = {};
  block q[2][2];
  UNROLLED
  for (int group = 0; group < kind.groups; group++) {
    UNROLLED
    for (int e = 0; e < 2; e++) {
      row[group][e] = decode_row_at(call, s, (int)tile * rows + 8 * group + 2 * t + e);
      if (kind.general && row[group][e].exists)
        row_slice[group][e] = slice_make(p, call.operands, b, head + row[group][e].member, key_rows);
    }
    decode_row own = decode_row_at(call, s, (int)tile * rows + 8 * group + g);
    const char *at = s.q.data + 2 * (own.i * s.q.row + own.member * p.layout[OPERAND_Q].head);
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) q[c][group] = block_load(at + 128 * c, own.exists, (int)p.head_dim - 64 * c);
  }

  decode_state state;
  decode_keys(call, s, row_slice, row, q, first, end, false, stream, state, kind);
  bool nan = false;
  UNROLLED
  for (int c = 0; c < kind.chunks; c++) UNROLLED
  for (int i = 0; i < 4; i++) UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 4; e++) nan |= state.sum[c][i][group][e] != state.sum[c][i][group][e];
  if (word_any(nan)) {
    decode_start(call, s, first, end, stream, kind);
    decode_keys(call, s, row_slice, row, q, first, end, true, stream, state, kind);
  }

  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) {
    float total = state.total[group][e];
    UNROLLED
    for (int lanes = 4; lanes < 32; lanes *= 2) total += word_shuffle_xor_f32(total, lanes);
    int r = 8 * group + 2 * t + e;
    if (g == 0)
      memory.warp[warp].result.largest[r] = state.largest[group][e], memory.warp[warp].result.total[r] = total;
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) UNROLLED
    for (int n = 0; n < 8; n++)
      memory.warp[warp].result.out[r][64 * c + 32 * (n / 4) + 8 * (g / 2) + 2 * (n % 4) + g % 2] =
          state.sum[c][n / 2][group][2 * (n % 2) + e];
  }
  word_sync_block();
  int width = 64 * kind.chunks;
  for (int x = (int)threadIdx.x; x < rows * width; x += 32 * DECODE_WARPS) {
    int r = x / width, column = x % width;
    decode_row own = decode_row_at(call, s, (int)tile * rows + r);
    if (!own.exists || column >= p.v_dim) continue;
    float largest = -INFINITY, total = 0, sum = 0, factor;
    UNROLLED
    for (int w = 0; w < DECODE_WARPS; w++) largest = max_of(memory.warp[w].result.largest[r], largest);
    UNROLLED
    for (int w = 0; w < DECODE_WARPS; w++) { /* in order */
      float scale =
          memory.warp[w].result.largest[r] == -INFINITY ? 0 : word_exp2(memory.warp[w].result.largest[r] - largest);
      if (memory.warp[w].result.total[r] != memory.warp[w].result.total[r]) scale = memory.warp[w].result.total[r];
      total += memory.warp[w].result.total[r] * scale;
      sum += memory.warp[w].result.out[r][column] * scale;
    }
    if (parts == 1) {
      decode_add_sink(call, s, own.member, largest, total, factor);
      decode_store(call, s, own, largest, total, column, sum * factor);
    } else {
      float *to =
          (float *)call.workspace + (((int64_t)all_tile * shape.most_parts + part) * rows + r) * decode_part_reals(&p);
      if (column == 0) to[0] = total, to[1] = largest;
      to[4 + column] = sum;
    }
  }
}

/* The parts of one row, added in order: a warp takes every fourth, then the warps' sums are added. */
WORD void decode_merge(const cuda_call &call) {
  __shared__ float sums[DECODE_WARPS][DECODE_MOST_COLUMNS], totals[DECODE_WARPS];
  const attend_problem &p = call.problem;
  const decode_shape &shape = call.decode;
  uint32_t rows = (uint32_t)decode_rows(&p), kv_heads = (uint32_t)p.kv_heads;
  uint32_t r = blockIdx.x % rows, all_tile = blockIdx.x / rows, tile = all_tile % shape.row_tiles;
  uint32_t pair = all_tile / shape.row_tiles, b = pair / kv_heads, head = pair % kv_heads * shape.group;
  int64_t key_rows, reals = decode_part_reals(&p), stride = rows * reals;
  attend_slice s = slice_make(p, call.operands, b, head, key_rows);
  decode_row own = decode_row_at(call, s, (int)(tile * rows + r));
  int parts = (int)decode_parts(shape.limit, (uint32_t)s.k_len);
  if (!own.exists || parts == 1) return;
  const float *from = (const float *)call.workspace + (int64_t)all_tile * shape.most_parts * stride + r * reals;
  int lane = (int)(threadIdx.x & 31), warp = (int)(threadIdx.x >> 5);
  float largest = -INFINITY, total = 0, sum[4] = {};
  bool holds = 4 * lane < p.v_dim;
  for (int part = lane; part < parts; part += 32) largest = max_of(from[part * stride + 1], largest);
  UNROLLED
  for (int lanes = 1; lanes < 32; lanes *= 2) largest = max_of(largest, word_shuffle_xor_f32(largest, lanes));
  UNROLLED_BY_4
  for (int part = warp; part < parts; part += DECODE_WARPS) {
    const float *x = from + part * stride;
    float scale = x[1] == -INFINITY ? 0 : word_exp2(x[1] - largest);
    if (x[0] != x[0]) scale = x[0];
    total += x[0] * scale;
    uint4 y = word_load_if(x + 4 + 4 * lane, holds);
    sum[0] += word_f32_from_bits(y.x) * scale, sum[1] += word_f32_from_bits(y.y) * scale;
    sum[2] += word_f32_from_bits(y.z) * scale, sum[3] += word_f32_from_bits(y.w) * scale;
  }
  UNROLLED
  for (int i = 0; i < 4; i++) sums[warp][4 * lane + i] = sum[i];
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
