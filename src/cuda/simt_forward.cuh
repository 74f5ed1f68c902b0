/* SPDX-License-Identifier: MIT */
/* Forward: a block owns 64 queries of one (sequence, head); every team goes through its tiles of the keys with the
 * online softmax (Milakov & Gimelshein 2018; Dao et al. 2022). Rows that came out NaN make the block do its keys again,
 * carefully. */
#ifndef ATTEND_CUDA_SIMT_FORWARD_CUH
#define ATTEND_CUDA_SIMT_FORWARD_CUH

#include "simt.cuh"

/* Leaves the sums of the whole block in team 0: weights are 2^(score - largest), scores in units of log 2. */
WORD void simt_forward_pass(const cuda_call &call, const attend_slice &s, int64_t q0, simt_place &t, float sum[8][8],
                            float largest[8], float total[8], const bool careful, const int columns) {
  const attend_problem &p = call.problem;
  const float unit = (float)p.scale * LOG2_E;
  const simt_source k = simt_rows(s.k, s.k_len, p.head_dim), v = simt_positions(s.v, s.k_len, p.v_dim);
  int64_t first, last, unused;
  attend_visible_range(&p, &s, q0, &first, &unused);
  attend_visible_range(&p, &s, q0 + SIMT_ROWS < s.q_len ? q0 + SIMT_ROWS - 1 : s.q_len - 1, &unused, &last);
  first = first / columns * columns + t.team * columns;
  UNROLLED
  for (int r = 0; r < 8; r++) {
    largest[r] = -INFINITY, total[r] = 0;
    UNROLLED
    for (int c = 0; c < 8; c++) sum[r][c] = 0;
  }
  simt_ask(t, k, first, 0, columns);
  UNROLLED_BY_1
  for (int64_t k0 = first; k0 < last; k0 += SIMT_TEAMS(columns) * columns) {
    float w[8][8];
    simt_sight sight = simt_sight_of(p, s, q0 + t.warp_first, 2048 / columns, k0, columns);
    simt_dots(w, t.own, t, k, k0, v, k0, sight == SIMT_NONE, columns);
    if (sight != SIMT_NONE) {
      uint64_t seen = ~(uint64_t)0;
      if (sight == SIMT_SOME) {
        seen = simt_seen(p, s, t, q0, k0, false);
        simt_hide(w, seen, -INFINITY);
      }
      UNROLLED
      for (int r = 0; r < 8; r++) {
        float top = w[r][0], part = 0;
        UNROLLED
        for (int c = 1; c < 8; c++) top = word_max(top, w[r][c]);
        top = word_max(simt_row_max(top, t) * unit, largest[r]);
        float shift = top == -INFINITY ? 0 : top, rescale = word_exp2(largest[r] - shift);
        UNROLLED
        for (int c = 0; c < 8; c++) part += w[r][c] = word_exp2(w[r][c] * unit - shift);
        total[r] = total[r] * rescale + part;
        largest[r] = top;
        UNROLLED
        for (int c = 0; c < 8; c++) sum[r][c] *= rescale;
      }
      if (careful) simt_hide(w, seen, simt_hidden());
      simt_put_weights(w, t, columns);
    }
    simt_values(sum, t, v, k0, k, k0 + SIMT_TEAMS(columns) * columns, sight == SIMT_NONE, careful, columns);
  }
  word_copy_wait(0);
  word_sync_block(); /* all chunks and weights are free: parts and factors lie there */
  float *parts = t.own + SIMT_OWN(columns), *factors = parts + (SIMT_TEAMS(columns) - 1) * SIMT_WEIGHTS(columns),
        *tops = factors + SIMT_TEAMS(columns) * SIMT_ROWS, *totals = tops + SIMT_TEAMS(columns) * SIMT_ROWS;
  UNROLLED
  for (int r = 0; r < 8; r++) {
    total[r] = simt_row_sum(total[r], t);
    if (t.x == 0) tops[t.team * SIMT_ROWS + simt_row(t, r)] = largest[r];
    if (t.x == 0) totals[t.team * SIMT_ROWS + simt_row(t, r)] = total[r];
  }
  word_sync_block();
  if (threadIdx.x < SIMT_ROWS) {
    float top = -INFINITY, all = 0;
    for (int team = 0; team < SIMT_TEAMS(columns); team++) top = word_max(top, tops[team * SIMT_ROWS + threadIdx.x]);
    float shift = top == -INFINITY ? 0 : top;
    for (int team = 0; team < SIMT_TEAMS(columns); team++) {
      int at = team * SIMT_ROWS + (int)threadIdx.x;
      float factor = word_exp2(tops[at] - shift);
      factors[at] = factor;
      all += totals[at] * factor;
    }
    tops[threadIdx.x] = shift, totals[threadIdx.x] = all;
  }
  simt_gather(sum, parts, factors, t, columns);
  UNROLLED
  for (int r = 0; r < 8; r++) largest[r] = tops[simt_row(t, r)], total[r] = totals[simt_row(t, r)];
}

WORD void simt_forward(const cuda_call &call, const int columns) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  int64_t tiles = (p.q_len + SIMT_ROWS - 1) / SIMT_ROWS, key_rows;
  int64_t pair = blockIdx.x / (uint32_t)tiles, tile = tiles - 1 - blockIdx.x % (uint32_t)tiles; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  int64_t q0 = tile * SIMT_ROWS;
  if (q0 >= s.q_len) return;
  simt_place t = simt_place_of((float *)(void *)memory, columns, 1);
  float sum[8][8], largest[8], total[8];
  simt_take(t.own, s.q, q0, s.q_len, p.head_dim, columns);
  word_sync_block();
  simt_forward_pass(call, s, q0, t, sum, largest, total, false, columns);
  bool nan = false;
  UNROLLED
  for (int r = 0; r < 8; r++) UNROLLED
  for (int c = 0; c < 8; c++) nan |= t.team == 0 && q0 + simt_row(t, r) < s.q_len && sum[r][c] != sum[r][c];
  if (word_sync_block_any(nan)) simt_forward_pass(call, s, q0, t, sum, largest, total, true, columns);
  if (t.team > 0) return;
  UNROLLED
  for (int r = 0; r < 8; r++) {
    int64_t i = q0 + simt_row(t, r);
    if (i >= s.q_len) continue;
    simt_put(s.out.data + 4 * i * s.out.row, sum[r], total[r] == 0 ? 0 : 1 / total[r], p.v_dim, false, t);
    if (s.lse && t.x == 0)
      ((float *)(void *)s.lse)[i * s.lse_row] = total[r] == 0 ? -INFINITY : largest[r] * LN_2 + logf(total[r]);
  }
}

#endif
