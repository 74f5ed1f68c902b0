/* SPDX-License-Identifier: MIT */
/* Decoding: every byte of K and V is read once, for all heads that share it. The products are turned around, S^T = K
 * Q^T and O^T = V^T P^T, so that keys and columns fill the 16 rows of the matrix instruction and the few queries its 8
 * columns: half the instructions and accumulators of Q K^T. */
#ifndef ATTEND_CUDA_DECODE_CUH
#define ATTEND_CUDA_DECODE_CUH

#include "decode_sum.cuh"

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

/* The keys that a lane's rows see. */
struct decode_visible {
  int first[2][2], last[2][2];
};

/* Keys [first, last) of this warp, the first of which decode_start has set on their way, or the keys before them. */
WORD void decode_keys(const cuda_call &call, const attend_slice &s, const attend_slice row_slice[2][2],
                      const decode_row row[2][2], const decode_visible &visible, const uint32_t q[][2][2], int first,
                      int last, bool careful, decode_stream &stream, decode_state &state, const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  decode_clear(state, kind);
  const bool scattered = decode_scattered(s);
  for (int k0 = first; k0 < last; k0 += DECODE_KEYS) {
    float score[2][4] = {};
    int left = stream.end - k0 - DECODE_AHEAD * DECODE_KEYS;
    decode_copy(stream.ring[decode_slot(stream, 2 * DECODE_AHEAD)], s.k, s.pages.k_block, stream.next, left, scattered,
                head_dim, kind);
    decode_place after = decode_find(p, s, k0 + (DECODE_AHEAD + 1) * DECODE_KEYS, stream.end);
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
          bool sees = j >= visible.first[group][e] && j < visible.last[group][e];
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

/* The sum of what the warps have: finished where that is all, else to the workspace. That stays in L2 and keys do not:
 * written back among the reads, it made 64x4096 take 252 us instead of 246. */
WORD void decode_finish(const cuda_call &call, const attend_slice &s, decode_memory &memory, const decode_state &state,
                        int first_row, float *to, const decode_kind kind) {
  const attend_problem &p = call.problem;
  const int g = lane_row(), t = lane_column(), warp = (int)(threadIdx.x >> 5), width = 64 * kind.chunks;
  int rows = (int)(call.decode.group * (uint32_t)p.q_len) - first_row;
  if (rows > 8 * kind.groups) rows = 8 * kind.groups;
  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) {
    int r = 8 * group + 2 * t + e;
    if (r >= rows) continue;
    if (g == 0)
      memory.warp[warp].result.largest[r] = state.largest[group][e],
      memory.warp[warp].result.total[r] = state.total[group][e];
    UNROLLED
    for (int n = 0; n < 8 * kind.chunks; n++)
      memory.warp[warp].result.out[r][decode_swap(r, 8 * n + g)] = state.sum[n / 2][group][2 * (n % 2) + e];
  }
  word_sync_block();
  const int lanes = width / 4, column = 4 * ((int)threadIdx.x % lanes);
  for (int r = (int)threadIdx.x / lanes; r < rows; r += 32 * DECODE_WARPS / lanes) {
    decode_row own = decode_row_at(call, s, first_row + r);
    if (!own.exists || column >= p.v_dim) continue;
    decode_leaf sum = decode_leaf_of_none();
    UNROLLED
    for (uint32_t w = 0; w < DECODE_WARPS; w++) { /* in order */
      const auto &result = memory.warp[w].result;
      decode_leaf part = {result.total[r], result.largest[r], {}};
      UNROLLED
      for (int i = 0; i < 4; i++) part.out[i] = result.out[r][decode_swap(r, column) + i];
      decode_leaf_add(sum, part);
    }
    if (!to) {
      float factor;
      decode_add_sink(call, s, own.member, sum.largest, sum.total, factor);
      UNROLLED
      for (int i = 0; i < 4; i++) decode_store(call, s, own, sum.largest, sum.total, column + i, sum.out[i] * factor);
    } else {
      float *real = to + r * decode_part_reals(&p);
      if (column == 0) word_store_kept(real, {word_bits_from_f32(sum.total), word_bits_from_f32(sum.largest), 0, 0});
      word_store_kept(real + 4 + column, {word_bits_from_f32(sum.out[0]), word_bits_from_f32(sum.out[1]),
                                          word_bits_from_f32(sum.out[2]), word_bits_from_f32(sum.out[3])});
    }
  }
}

/* One part, or one span, of the keys of one tile of rows. */
WORD void decode(const cuda_call &call, const decode_kind kind) {
  __shared__ decode_memory memory;
  const attend_problem &p = call.problem;
  const int rows = 8 * kind.groups, g = lane_row(), t = lane_column(), warp = (int)(threadIdx.x >> 5);
  const decode_shape &shape = call.decode;
  uint32_t kv_heads = shape.kv_heads, item = blockIdx.x, tile = 0;
  if (shape.row_tiles > 1) tile = item % shape.row_tiles, item /= shape.row_tiles;
  uint32_t rest = item / kv_heads, kv_head = item - rest * kv_heads, b = rest / shape.most_sums;
  uint32_t number = rest - b * shape.most_sums, head = kv_head * shape.group;
  if (!shape.plain) word_wait_before();
  attend_slice s = decode_slice(call, b, kv_head);
  uint32_t k_len = (uint32_t)s.k_len, size = shape.part, parts = shape.parts;
  if (k_len != shape.k_len) size = decode_part(shape.limit, k_len), parts = decode_parts(shape.limit, k_len);
  if (number * (kind.span ? DECODE_SPAN : 1) >= parts) return;
  const int quarter = (int)(size / DECODE_WARPS);
  uint32_t from, last;
  if (kind.span)
    from = (DECODE_SPAN * number + (uint32_t)warp) * size, last = from + size;
  else
    from = number * size + (uint32_t)(warp * quarter), last = from + (uint32_t)quarter;
  int first = (int)from, end = (int)(last < k_len ? last : k_len);
  if (!kind.span && shape.plain && quarter >= DECODE_LONG_QUARTER) decode_prefetch(p, s, first, end);
  word_wait_before();
  /* The first keys are set on their way before anything else is worked out. */
  decode_stream stream = {memory.warp[warp].ring, {}, 0, end};
  decode_start(call, s, first, stream, kind);
  if (kind.span) word_let_next();
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

  decode_visible visible;
  UNROLLED
  for (int group = 0; group < kind.groups; group++) UNROLLED
  for (int e = 0; e < 2; e++) {
    int64_t lo = 0, hi = 0;
    if (row[group][e].exists) attend_visible_range(&p, &s, row[group][e].i, &lo, &hi);
    visible.first[group][e] = (int)lo, visible.last[group][e] = (int)hi;
  }
  decode_state state, all;
  decode_clear(kind.span ? all : state, kind);
  UNROLLED_BY_1
  for (; first < end; first += quarter) {
    int stop = first + quarter < end ? first + quarter : end;
    decode_keys(call, s, row_slice, row, visible, q, first, stop, false, stream, state, kind);
    bool nan = false;
    UNROLLED
    for (int i = 0; i < 4 * kind.chunks; i++) UNROLLED
    for (int group = 0; group < kind.groups; group++) UNROLLED
    for (int e = 0; e < 4; e++) nan |= state.sum[i][group][e] != state.sum[i][group][e];
    if (word_any(nan)) {
      decode_stop();
      decode_start(call, s, first, stream, kind);
      decode_keys(call, s, row_slice, row, visible, q, first, stop, true, stream, state, kind);
    }
    decode_total(state, kind);
    if (!kind.span) break;
    decode_add(all, state, kind);
  }
  if (!kind.span) word_let_next(); /* from the start the next one's blocks take places: 1x131072 2 us, 1x4096 0.4 */
  decode_stop();
  uint32_t all_tile = (b * kv_heads + kv_head) * shape.row_tiles + tile;
  float *to = (float *)call.workspace + ((int64_t)all_tile * shape.most_sums + number) * rows * decode_part_reals(&p);
  bool alone = parts <= (kind.span ? DECODE_SPAN : 1);
  decode_finish(call, s, memory, kind.span ? all : state, (int)tile * rows, alone ? NULL : to, kind);
}

#endif
