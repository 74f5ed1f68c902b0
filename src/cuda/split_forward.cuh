/* SPDX-License-Identifier: MIT */
/* Forward in f32: a block owns 64 queries of one (sequence, head), and goes through the keys they see with the online
 * softmax (Milakov & Gimelshein 2018; Dao et al. 2022). A block whose output came out NaN is done again, carefully. */
#ifndef ATTEND_CUDA_SPLIT_FORWARD_CUH
#define ATTEND_CUDA_SPLIT_FORWARD_CUH

#include "split.cuh"

/* Of the two rows of a lane: the greatest score, in units of log 2 where options scale, else of log 2 / unit. */
struct split_rows {
  float largest[2], total[2];
  split_sum sum;
};

/* The scores of the staged keys, of which k0 is the first. Returns who sees whom: those who do not have -inf. */
WORD uint32_t split_scores(float c[SPLIT_COUNT][4], const split_memory &m, int stage, const gradient_window &w,
                           const attend_problem &p, const attend_slice &s, int mine, int k0, const split_kind kind) {
  const int count = kind.rows / 8, warp_row = 16 * (int)(threadIdx.x >> 5);
  const uint32_t all = (uint32_t)((1ull << 4 * count) - 1);
  const float *keys = split_stage(m, stage, 0, kind);
  if (kind.careful)
    split_dots_careful(c, count, m.own[0], warp_row, keys, kind.columns);
  else
    split_dots(c, count, m.own[0], warp_row, keys, kind.columns);
  uint32_t seen = all;
  bool full = window_full(w, 0, kind.rows, 16);
  if (!full) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!window_sees(w, lane_row() + 8 * (e >> 1), 8 * n + 2 * lane_column() + (e & 1))) seen &= ~(1u << (4 * n + e));
  }
  if (kind.general) {
    float unused[SPLIT_COUNT][4];
    seen = gradient_add_options(c, unused, count, seen, full, p, s, mine + lane_row(), k0 + 2 * lane_column(), true,
                                false);
    if (s.mask.data)
      seen &= gradient_lane_bits(split_bits(m, stage).mask, count, warp_row + lane_row(), 0, kind.rows / 32, false);
  }
  if (!full || (kind.general && seen != all)) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!(seen >> (4 * n + e) & 1)) c[n][e] = -INFINITY;
  }
  return seen;
}

WORD void split_step(split_rows &state, const split_memory &m, int stage, const gradient_window &w,
                     const attend_problem &p, const attend_slice &s, int mine, int k0, const split_kind kind) {
  const int count = kind.rows / 8;
  const float unit = kind.general ? 1 : (float)p.scale * LOG2_E;
  float c[SPLIT_COUNT][4], rescale[2];
  uint32_t seen = split_scores(c, m, stage, w, p, s, mine, k0, kind);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    float before = state.largest[half], most = before, part = 0;
    UNROLLED
    for (int n = 0; n < count; n++) most = word_max(word_max(c[n][2 * half], c[n][2 * half + 1]), most);
    most = quad_max(most);
    float shift = most == -INFINITY ? 0 : most * unit;
    rescale[half] = before == most ? 1 : word_exp2(before * unit - shift);
    state.largest[half] = most;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 2; e++) {
      float &x = c[n][2 * half + e];
      part += x = word_exp2(word_multiply_add(x, unit, -shift));
    }
    state.total[half] = state.total[half] * rescale[half] + part;
  }
  if (kind.general && p.dropout_threshold) {
    uint32_t kept = gradient_lane_bits(split_bits(m, stage).kept, count, 16 * (int)(threadIdx.x >> 5) + lane_row(), 0,
                                       kind.rows / 32, false);
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) c[n][e] *= (float)(kept >> (4 * n + e) & 1);
  }
  const float *values = split_stage(m, stage, 1, kind);
  if (kind.careful)
    split_product_careful(state.sum, rescale, c, seen, count, values, kind.columns);
  else
    split_product(state.sum, rescale, c, count, values, kind.columns);
}

/* All keys of a block. */
WORD void split_keys(split_rows &state, const attend_problem &p, const attend_slice &s, const split_memory &m, int q0,
                     const split_kind kind) {
  const int words = kind.rows / 32, own_rows = 16 * kind.warps, mine = q0 + 16 * (int)(threadIdx.x >> 5);
  const int q_len = (int)s.q_len, k_len = (int)s.k_len;
  gradient_band band = band_of(p, s);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    state.largest[half] = kind.general ? (float)s.sink * LOG2_E : -INFINITY;
    state.total[half] = 0;
  }
  split_clear(state.sum, kind.columns);
  /* The keys that any query of the block sees: from q0 - most to its last query - least. */
  int begin = q0 - band.most, last_query = q0 + own_rows < q_len ? q0 + own_rows : q_len, end = last_query - band.least;
  begin = begin < 0 ? 0 : begin / kind.rows * kind.rows;
  if (end > k_len) end = k_len;
  if (begin >= end) return;
  split_copy(m.own[0], own_rows, s.q, q0, q_len, p.head_dim, kind);
  split_copy(split_stage(m, 0, 0, kind), kind.rows, s.k, begin, k_len, p.head_dim, kind);
  split_copy(split_stage(m, 0, 1, kind), kind.rows, s.v, begin, k_len, p.v_dim, kind);
  word_copy_commit();
  if (kind.general) gradient_prepare(split_bits(m, 0), p, s, q0, own_rows, begin, words, 32 * kind.warps);
  UNROLLED_BY_1
  for (int k0 = begin, stage = 0; k0 < end; k0 += kind.rows, stage ^= 1) {
    int next = k0 + kind.rows;
    word_copy_wait(0);
    word_sync_block(); /* this stage is here, and the last one has been read */
    if (next < end) {
      split_copy(split_stage(m, stage ^ 1, 0, kind), kind.rows, s.k, next, k_len, p.head_dim, kind);
      split_copy(split_stage(m, stage ^ 1, 1, kind), kind.rows, s.v, next, k_len, p.v_dim, kind);
    }
    word_copy_commit();
    gradient_window w = window_of(band, mine, q_len, k0, k_len, false);
    if (!split_blind(w, 0, kind.rows)) split_step(state, m, stage, w, p, s, mine, k0, kind);
    if (kind.general && next < end)
      gradient_prepare(split_bits(m, stage ^ 1), p, s, q0, own_rows, next, words, 32 * kind.warps);
  }
  word_copy_wait(0);
}

/* Returns true, and writes nothing, if an output is NaN, unless `careful`. */
WORD bool split_forward(const cuda_call &call, const split_kind kind) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  const int rows = 16 * kind.warps;
  uint32_t tiles = (uint32_t)((p.q_len + rows - 1) / rows);
  uint32_t pair = blockIdx.x / tiles, tile = tiles - 1 - blockIdx.x % tiles; /* the longest first */
  int64_t key_rows;
  attend_slice s = slice_make(p, call.operands, pair / (uint32_t)p.heads, pair % (uint32_t)p.heads, key_rows);
  int q0 = (int)tile * rows, mine = q0 + 16 * (int)(threadIdx.x >> 5);
  if (q0 >= s.q_len) return false;
  split_rows state;
  if (kind.careful) word_sync_block(); /* until nobody reads what the first try left */
  split_keys(state, p, s, split_memory_of(memory, 1, kind), q0, kind);
  float spoilt = split_spoilt(state.sum, kind.columns);
  if (!kind.careful && word_sync_block_any(spoilt != spoilt)) return true;
  const float unit = kind.general ? 1 : (float)p.scale * LOG2_E;
  float factor[2];
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = mine + lane_row() + 8 * half;
    float total = quad_sum(state.total[half]), largest = state.largest[half];
    if (kind.general && s.sink > -INFINITY) total += word_exp2((float)s.sink * LOG2_E - largest);
    factor[half] = total == 0 ? 0 : 1 / total;
    if (kind.general) factor[half] *= (float)p.dropout_scale;
    if (s.lse && i < s.q_len && lane_column() == 0)
      ((float *)(void *)s.lse)[i * s.lse_row] = total == 0 ? -INFINITY : largest * (unit * LN_2) + logf(total);
  }
  split_put(s.out, state.sum, factor, mine, s.q_len, p.v_dim, false, kind.columns);
  return false;
}

#endif
