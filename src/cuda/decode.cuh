/* SPDX-License-Identifier: MIT */
/* Decoding: every byte of K and V is read once, for all heads that share it. The products are turned around, S^T = K
 * Q^T and O^T = V^T P^T, so that keys and columns fill the 16 rows of the matrix instruction and the few queries its 8
 * columns: half the instructions and accumulators of Q K^T. K and V pass through shared memory, which each warp has
 * filled ahead of time for itself alone: registers would be too few to hold what must be on its way to keep the memory
 * busy, and warps that share a tile would wait for each other. */
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

/* Of slice_make only what it takes to set keys on their way ... */
WORD attend_slice decode_slice(const cuda_call &call, uint32_t b, uint32_t kv_head) {
  const decode_shape &shape = call.decode;
  attend_slice s = {};
  int64_t first = 0, batch = b;
  s.k_len = shape.k_len;
  if (!shape.plain) {
    const attend_problem &p = call.problem;
    const attend_operands &o = call.operands;
    if (p.ragged_k || p.paged) batch = 0;
    if (p.ragged_k) slice_ragged(p, o, OPERAND_K_OFFSETS, b, p.k_total, p.k_len, first, s.k_len);
    if (attend_has(&p, OPERAND_KV_LEN)) {
      const attend_layout &l = p.layout[OPERAND_KV_LEN];
      s.k_len = slice_clamp(slice_index(o.data[OPERAND_KV_LEN], b * l.batch, l.type), s.k_len);
    }
    if (p.paged) {
      const attend_layout &t = p.layout[OPERAND_BLOCK_TABLE];
      s.pages.table = (const char *)o.data[OPERAND_BLOCK_TABLE] + b * t.batch * (t.type == TYPE_I64 ? 8 : 4);
      s.pages.table_stride = t.row, s.pages.table_type = t.type, s.pages.block_size = p.block_size;
      s.pages.k_block = shape.k.batch, s.pages.v_block = shape.v.batch;
    }
  }
  s.k.data = (char *)shape.k.data + 2 * (batch * shape.k.batch + kv_head * shape.k.head + first * shape.k.row);
  s.v.data = (char *)shape.v.data + 2 * (batch * shape.v.batch + kv_head * shape.v.head + first * shape.v.row);
  s.k.row = shape.k.row, s.v.row = shape.v.row;
  return s;
}
/* ... and what else it takes without the options that look at pairs. */
WORD void decode_slice_queries(const cuda_call &call, attend_slice &s, uint32_t b, uint32_t head) {
  const attend_problem &p = call.problem;
  const attend_operands &o = call.operands;
  int64_t first = 0, batch = p.ragged_q ? 0 : b;
  s.b = b, s.h = head, s.q_len = p.q_len;
  if (p.ragged_q) slice_ragged(p, o, OPERAND_Q_OFFSETS, b, p.q_total, p.q_len, first, s.q_len);
  s.off = p.top_left ? 0 : s.k_len - s.q_len;
  s.q = slice_matrix(p, o, OPERAND_Q, batch, head, first);
  s.out = slice_matrix(p, o, OPERAND_OUT, batch, head, first);
  attend_matrix lse = slice_matrix(p, o, OPERAND_LSE, batch, head, first);
  s.lse = lse.data, s.lse_row = lse.row;
}

/* Where a lane finds keys k0 .. k0 + 15: the page, and the row within it, of the first; of key k0 + lane % 16 where
 * pages are so small that these are in several. */
struct decode_place {
  uint32_t page, row;
};
WORD bool decode_scattered(const attend_slice &s) {
  return s.pages.table && (uint32_t)s.pages.block_size % DECODE_KEYS;
}
WORD decode_place decode_find(const attend_problem &p, const attend_slice &s, int k0, int end) {
  bool paged = s.pages.table, wide = s.pages.table_type == TYPE_I64;
  decode_place place = {0, (uint32_t)k0};
  if (!paged) return place;
  uint32_t size = (uint32_t)s.pages.block_size, j = (uint32_t)k0;
  if (decode_scattered(s)) j += threadIdx.x & (DECODE_KEYS - 1);
  uint32_t number = j / size;
  int64_t page = word_load_index_if(s.pages.table + number * s.pages.table_stride * (wide ? 8 : 4), wide, (int)j < end);
  place.page = (uint32_t)slice_clamp(page, p.block_count - 1), place.row = j - number * size;
  return place;
}

/* A unit is 16 keys of K or V on their way to a warp: row r has its word x of 16 bytes at x ^ r % 8, so that rows and
 * columns are read from different banks. Neighbouring lanes ask for neighbouring words: whole rows reach 98% of the
 * memory's bandwidth, quarters of rows 86%; bulk copies (TMA) of a row each 40%. */
struct decode_unit {
  uint4 word[DECODE_KEYS * DECODE_MOST_COLUMNS / 8];
};
WORD void decode_copy(decode_unit &u, const attend_matrix &m, int64_t page_stride, const decode_place &place, int left,
                      bool scattered, int columns, const decode_kind kind) {
  const int words = 8 * kind.chunks, rows = 32 / words, lane = (int)(threadIdx.x & 31), x = lane % words;
  if (8 * x >= columns) left = 0;
  if (scattered) {
    UNROLLED_BY_1
    for (int r = lane / words; r < DECODE_KEYS; r += rows) {
      uint32_t page = word_shuffle(place.page, r), row = word_shuffle(place.row, r);
      word_copy_async(&u.word[r * words + (x ^ r % 8)], m.data + 2 * (page * page_stride + row * m.row) + 16 * x,
                      r < left);
    }
  } else {
    const char *from = m.data + 2 * (place.page * page_stride + (place.row + lane / words) * m.row) + 16 * x;
    const int64_t stride = 2 * rows * m.row;
    left -= lane / words;
    UNROLLED
    for (int i = 0; i < DECODE_KEYS; i += rows, from += stride) {
      int r = i + lane / words;
      word_copy_async(&u.word[r * words + (x ^ r % 8)], from, i < left);
    }
  }
  word_copy_commit();
}
/* As operand A of m16n8k16: 16 keys, and of K columns 16i .. as k; of V, transposed, columns 16i .. as rows. */
WORD void decode_take_keys(uint32_t a[4], const decode_unit &u, int i, const decode_kind kind) {
  int lane = (int)(threadIdx.x & 31), r = lane % 16;
  word_load_matrices(a, &u.word[r * 8 * kind.chunks + ((2 * i + lane / 16) ^ r % 8)]);
}
WORD void decode_take_values(uint32_t a[4], const decode_unit &u, int i, const decode_kind kind) {
  int lane = (int)(threadIdx.x & 31), r = lane / 16 * 8 + lane % 8;
  word_load_matrices_transposed(a, &u.word[r * 8 * kind.chunks + ((2 * i + lane / 8 % 2) ^ r % 8)]);
}
/* Until the oldest unit is there. */
WORD void decode_wait(void) {
  word_copy_wait(2 * DECODE_AHEAD);
  word_sync_warp();
}

/* What a warp has of its keys: for queries 2t, 2t + 1 of each group of 8 the largest score (in units of log 2), this
 * lane's part of the sum, and O^T: sum[i][group] has columns 16i .. 16i + 15. */
struct decode_state {
  float largest[2][2], total[2][2], sum[DECODE_MOST_COLUMNS / 16][2][4];
};

/* Take keys with NaN or Inf out of 16 columns of V, and add their products here, where they are seen. */
WORD void decode_spare(float sum[2][4], const uint32_t weight[2][2], const uint32_t allowed[2][2], uint32_t a[4],
                       const decode_kind kind) {
  int g = lane_row(), t = lane_column();
  for (int half = 0; half < 2; half++) {
    block x = {{a[2 * half], a[2 * half + 1], 0, 0, 0, 0, 0, 0}};
    uint32_t rows = block_bad_rows(x);
    UNROLLED_BY_1
    for (int k = 0; k < 8; k++) {
      if (!(rows >> k & 1)) continue;
      int shift = 16 * (k & 1);
      for (int group = 0; group < kind.groups; group++)
        for (int e = 0; e < 2; e++) {
          int from = 4 * (2 * t + e) + k / 2;
          float w = half_of(word_shuffle(weight[half][group], from) >> shift, false);
          bool sees = word_shuffle(allowed[half][group], from) >> shift & 1;
          UNROLLED
          for (int n = 0; n < 2; n++) {
            float y = half_of(word_shuffle(x.r[n], 4 * g + k / 2) >> shift, false);
            if (sees) sum[group][2 * n + e] += w * y;
          }
        }
    }
    block_clear_rows(x, rows);
    a[2 * half] = x.r[0], a[2 * half + 1] = x.r[1];
  }
}

WORD void decode_rescale(decode_state &state, const float rescale[2][2], const decode_kind kind) {
  UNROLLED
  for (int i = 0; i < 4 * kind.chunks; i++) {
    UNROLLED
    for (int group = 0; group < kind.groups; group++) {
      UNROLLED
      for (int e = 0; e < 4; e++) state.sum[i][group][e] *= rescale[group][e % 2];
    }
  }
}

/* What is on its way while keys are worked on: a ring of units, K and V of a step in turn, of which unit `at` is the
 * oldest and the one before it free; and the place of the keys that are to be asked for next. */
struct decode_stream {
  decode_unit *ring;
  decode_place next;
  int at;
};
WORD int decode_slot(const decode_stream &stream, const int ahead) {
  int slot = stream.at + ahead;
  return slot > 2 * DECODE_AHEAD ? slot - 2 * DECODE_AHEAD - 1 : slot;
}
WORD void decode_start(const cuda_call &call, const attend_slice &s, int first, int end, decode_stream &stream,
                       const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int step = DECODE_KEYS * DECODE_WARPS, k0 = first + DECODE_KEYS * (int)(threadIdx.x >> 5);
  const bool scattered = decode_scattered(s);
  decode_place place[DECODE_AHEAD + 1];
  UNROLLED
  for (int ahead = 0; ahead <= DECODE_AHEAD; ahead++) place[ahead] = decode_find(p, s, k0 + ahead * step, end);
  UNROLLED
  for (int ahead = 0; ahead < DECODE_AHEAD; ahead++) {
    int left = end - k0 - ahead * step;
    decode_copy(stream.ring[2 * ahead], s.k, s.pages.k_block, place[ahead], left, scattered, (int)p.head_dim, kind);
    decode_copy(stream.ring[2 * ahead + 1], s.v, s.pages.v_block, place[ahead], left, scattered, (int)p.v_dim, kind);
  }
  stream.at = 0, stream.next = place[DECODE_AHEAD];
}

/* The keys of this warp, of which decode_start has set the first on their way. */
WORD void decode_keys(const cuda_call &call, const attend_slice &s, const attend_slice row_slice[2][2],
                      const decode_row row[2][2], const uint32_t q[][2][2], int first, int end, bool careful,
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
      for (int i = 0; i < 4 * kind.chunks; i++) state.sum[i][group][e] = state.sum[i][group][2 + e] = 0;
    }
  const bool scattered = decode_scattered(s);
  int k0 = first + DECODE_KEYS * (int)(threadIdx.x >> 5);
  for (; k0 < end; k0 += step) {
    float score[2][4] = {};
    int left = end - k0 - DECODE_AHEAD * step;
    decode_copy(stream.ring[decode_slot(stream, 2 * DECODE_AHEAD)], s.k, s.pages.k_block, stream.next, left, scattered,
                head_dim, kind);
    decode_place after = decode_find(p, s, k0 + (DECODE_AHEAD + 1) * step, end);
    decode_wait();
    decode_unit &keys = stream.ring[stream.at], &values = stream.ring[decode_slot(stream, 1)];
    UNROLLED
    for (int i = 0; i < 4 * kind.chunks; i++) {
      uint32_t a[4];
      decode_take_keys(a, keys, i, kind);
      UNROLLED
      for (int group = 0; group < kind.groups; group++) multiply(score[group], a, q[i][group][0], q[i][group][1]);
    }
    word_sync_warp();
    decode_copy(keys, s.v, s.pages.v_block, stream.next, left, scattered, v_dim, kind);
    stream.next = after;
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
    for (int i = 0; i < 4 * kind.chunks; i++) {
      uint32_t a[4];
      decode_take_values(a, values, i, kind);
      if (careful) decode_spare(state.sum[i], weight, allowed, a, kind);
      UNROLLED
      for (int group = 0; group < kind.groups; group++)
        multiply(state.sum[i][group], a, weight[0][group], weight[1][group]);
    }
    word_sync_warp();
    stream.at = decode_slot(stream, 2);
  }
  word_copy_wait(0);
  word_sync_warp();
}

union decode_warp {
  decode_unit ring[2 * DECODE_AHEAD + 1];
  struct {
    float out[16][DECODE_MOST_COLUMNS], largest[16], total[16];
  } result; /* columns are swapped, so that the rows of a column go to different banks */
};
struct decode_memory {
  decode_warp warp[DECODE_WARPS];
};
WORD int decode_swap(int row, int column) { return column ^ (row & 6) << 2; }

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

/* The sum over a part, from those of the warps: finished where it is the only part, else to the workspace. */
WORD void decode_finish(const cuda_call &call, const attend_slice &s, decode_memory &memory, const decode_state &state,
                        int first_row, float *to, const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int g = lane_row(), t = lane_column(), warp = (int)(threadIdx.x >> 5), width = 64 * kind.chunks;
  int rows = (int)(call.decode.group * (uint32_t)p.q_len) - first_row;
  if (rows > 8 * kind.groups) rows = 8 * kind.groups;
  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) {
    float total = state.total[group][e];
    UNROLLED
    for (int lanes = 4; lanes < 32; lanes *= 2) total += word_shuffle_xor_f32(total, lanes);
    int r = 8 * group + 2 * t + e;
    if (r >= rows) continue;
    if (g == 0)
      memory.warp[warp].result.largest[r] = state.largest[group][e], memory.warp[warp].result.total[r] = total;
    UNROLLED
    for (int n = 0; n < 8 * kind.chunks; n++)
      memory.warp[warp].result.out[r][decode_swap(r, 8 * n + g)] = state.sum[n / 2][group][2 * (n % 2) + e];
  }
  word_sync_block();
  int column = (int)threadIdx.x % width;
  for (int r = (int)threadIdx.x / width; r < rows; r += 32 * DECODE_WARPS / width) {
    decode_row own = decode_row_at(call, s, first_row + r);
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
      sum += memory.warp[w].result.out[r][decode_swap(r, column)] * scale;
    }
    if (!to) {
      decode_add_sink(call, s, own.member, largest, total, factor);
      decode_store(call, s, own, largest, total, column, sum * factor);
    } else {
      float *real = to + r * decode_part_reals(&p);
      if (column == 0) real[0] = total, real[1] = largest;
      real[4 + column] = sum;
    }
  }
}

/* One part of the keys of one tile of rows. */
WORD void decode(const cuda_call &call, const decode_kind kind) {
  __shared__ decode_memory memory;
  const attend_problem &p = call.problem;
  const int rows = 8 * kind.groups, g = lane_row(), t = lane_column(), warp = (int)(threadIdx.x >> 5);
  const decode_shape &shape = call.decode;
  uint32_t kv_heads = shape.kv_heads, item = blockIdx.x, tile = 0;
  if (shape.row_tiles > 1) tile = item % shape.row_tiles, item /= shape.row_tiles;
  uint32_t rest = item / kv_heads, kv_head = item - rest * kv_heads, b = rest / shape.most_parts;
  uint32_t part = rest - b * shape.most_parts;
  uint32_t head = kv_head * shape.group;
  word_wait_before();
  attend_slice s = decode_slice(call, b, kv_head);
  uint32_t k_len = (uint32_t)s.k_len, size = shape.part, parts = shape.parts;
  if (k_len != shape.k_len) size = decode_part(shape.limit, k_len), parts = decode_parts(shape.limit, k_len);
  if (part >= parts) return;
  int first = (int)(part * size), end = first + (int)size < (int)k_len ? first + (int)size : (int)k_len;
  /* The first keys are set on their way before anything else is worked out. */
  decode_stream stream = {memory.warp[warp].ring, {}, 0};
  decode_start(call, s, first, end, stream, kind);
  word_let_next();
  decode_slice_queries(call, s, b, head);
  decode_row row[2][2] = {};
  attend_slice row_slice[2][2] = {};
  uint32_t q[DECODE_MOST_COLUMNS / 16][2][2];
  UNROLLED
  for (int group = 0; group < kind.groups; group++) {
    UNROLLED
    for (int e = 0; e < 2; e++) {
      row[group][e] = decode_row_at(call, s, (int)tile * rows + 8 * group + 2 * t + e);
      int64_t key_rows;
      if (kind.general && row[group][e].exists)
        row_slice[group][e] = slice_make(p, call.operands, b, head + row[group][e].member, key_rows);
    }
    decode_row own = decode_row_at(call, s, (int)tile * rows + 8 * group + g);
    const char *at = s.q.data + 2 * (own.i * s.q.row + own.member * p.layout[OPERAND_Q].head);
    UNROLLED
    for (int i = 0; i < 4 * kind.chunks; i++) UNROLLED
    for (int half = 0; half < 2; half++) {
      int column = 16 * i + 8 * half + 2 * t;
      q[i][group][half] = own.exists && column < p.head_dim ? *(const uint32_t *)(const void *)(at + 2 * column) : 0;
    }
  }

  uint32_t all_tile = (b * kv_heads + kv_head) * shape.row_tiles + tile;
  float *to = (float *)call.workspace + ((int64_t)all_tile * shape.most_parts + part) * rows * decode_part_reals(&p);
  decode_state state;
  decode_keys(call, s, row_slice, row, q, first, end, false, stream, state, kind);
  bool nan = false;
  UNROLLED
  for (int i = 0; i < 4 * kind.chunks; i++) UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 4; e++) nan |= state.sum[i][group][e] != state.sum[i][group][e];
  if (word_any(nan)) {
    decode_start(call, s, first, end, stream, kind);
    decode_keys(call, s, row_slice, row, q, first, end, true, stream, state, kind);
  }
  decode_finish(call, s, memory, state, (int)tile * rows, parts == 1 ? NULL : to, kind);
}

/* What a part left for a row: a lane's four columns. A part that is not there adds nothing. */
struct decode_leaf {
  float total, largest;
  uint4 out;
};
enum { MERGE_EARLY = 4 };
WORD decode_leaf decode_leaf_load(const float *from, int64_t stride, int part, int parts, int lane, bool holds) {
  decode_leaf x = {0, -INFINITY, make_uint4(0, 0, 0, 0)};
  if (part >= parts) return x;
  const float *at = from + part * stride;
  x.total = at[0], x.largest = at[1];
  if (holds) x.out = *(const uint4 *)(const void *)(at + 4 + 4 * lane);
  return x;
}
WORD void decode_leaf_add(const decode_leaf &x, float largest, float &total, float sum[4]) {
  float scale = x.largest == -INFINITY ? 0 : word_exp2(x.largest - largest);
  if (x.total != x.total) scale = x.total;
  total += x.total * scale;
  sum[0] += word_f32_from_bits(x.out.x) * scale, sum[1] += word_f32_from_bits(x.out.y) * scale;
  sum[2] += word_f32_from_bits(x.out.z) * scale, sum[3] += word_f32_from_bits(x.out.w) * scale;
}

/* The parts of one row, added in order: a warp takes every fourth, then the warps' sums are added. */
WORD void decode_merge(const cuda_call &call) {
  __shared__ float sums[DECODE_WARPS][DECODE_MOST_COLUMNS], totals[DECODE_WARPS];
  const attend_problem &p = call.problem;
  const decode_shape &shape = call.decode;
  uint32_t rows = (uint32_t)decode_rows(&p), kv_heads = shape.kv_heads;
  uint32_t of_pair = shape.group * (uint32_t)p.q_len, row = blockIdx.x % of_pair, pair = blockIdx.x / of_pair;
  uint32_t tile = row / rows, r = row % rows, all_tile = pair * shape.row_tiles + tile;
  uint32_t b = pair / kv_heads, kv_head = pair - b * kv_heads, head = kv_head * shape.group;
  int64_t reals = decode_part_reals(&p), stride = rows * reals;
  word_wait_before();
  word_let_next();
  attend_slice s = decode_slice(call, b, kv_head);
  decode_slice_queries(call, s, b, head);
  decode_row own = decode_row_at(call, s, (int)row);
  int parts = (int)shape.parts;
  if ((uint32_t)s.k_len != shape.k_len) parts = (int)decode_parts(shape.limit, (uint32_t)s.k_len);
  if (!own.exists || parts == 1) return;
  const float *from = (const float *)call.workspace + (int64_t)all_tile * shape.most_parts * stride + r * reals;
  int lane = (int)(threadIdx.x & 31), warp = (int)(threadIdx.x >> 5);
  float largest = -INFINITY, total = 0, sum[4] = {};
  bool holds = 4 * lane < p.v_dim;
  /* The first parts of the warp are on their way while the largest score is looked for. */
  decode_leaf early[MERGE_EARLY];
  UNROLLED
  for (int i = 0; i < MERGE_EARLY; i++)
    early[i] = decode_leaf_load(from, stride, warp + DECODE_WARPS * i, parts, lane, holds);
  for (int part = lane; part < parts; part += 32) largest = max_of(from[part * stride + 1], largest);
  UNROLLED
  for (int lanes = 1; lanes < 32; lanes *= 2) largest = max_of(largest, word_shuffle_xor_f32(largest, lanes));
  UNROLLED
  for (int i = 0; i < MERGE_EARLY; i++) decode_leaf_add(early[i], largest, total, sum);
  UNROLLED_BY_4
  for (int part = warp + DECODE_WARPS * MERGE_EARLY; part < parts; part += DECODE_WARPS)
    decode_leaf_add(decode_leaf_load(from, stride, part, parts, lane, holds), largest, total, sum);
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
