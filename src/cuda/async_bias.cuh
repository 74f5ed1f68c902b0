/* SPDX-License-Identifier: MIT */
/* dBias on sm_90: a block owns a tile of it, 64 queries of each group by 64 keys, and goes through all sequences and
 * heads that the bias is broadcast over, in order, the next one's rows on their way while the tensor cores work on this
 * one's. Included once for each element type. */
#ifndef ATTEND_CUDA_ASYNC_BIAS_CUH
#define ATTEND_CUDA_ASYNC_BIAS_CUH

#include "async_options.cuh"

/* The sequences and heads of a tile. */
struct async_pairs {
  int64_t b, h, first_h, end_b, end_h;
};

/* Go to the first pair, from this one on, of which any query of the tile sees any key; false: there is none. */
WORD bool async_pairs_find(async_pairs &at, attend_slice &s, const cuda_call &call, int q0, int k0, int rows) {
  for (; at.b < at.end_b; at.h + 1 < at.end_h ? at.h++ : (at.b++, at.h = at.first_h)) {
    int64_t key_rows;
    s = slice_make(call.problem, call.operands, at.b, at.h, key_rows);
    gradient_window w = window_of(band_of(call.problem, s), q0, (int)s.q_len, k0, (int)s.k_len, false);
    if (ASYNC_STEP - 1 >= w.least && 1 - rows <= w.most && w.rows > 0 && w.columns > 0) return true;
  }
  return false;
}

/* The same from the next pair on. Where all sequences have the same lengths it is just that one, and few numbers change
 * (slice_make takes as long as the products). */
WORD bool async_pairs_next(async_pairs &at, attend_slice &s, const cuda_call &call, int q0, int k0, int rows) {
  const attend_problem &p = call.problem;
  const attend_operands &o = call.operands;
  at.h + 1 < at.end_h ? at.h++ : (at.b++, at.h = at.first_h);
  if (attend_lengths_vary(&p)) return async_pairs_find(at, s, call, q0, k0, rows);
  if (at.b == at.end_b) return false;
  s.b = at.b, s.h = at.h, s.kv_head = (uint32_t)at.h / ((uint32_t)p.heads / (uint32_t)p.kv_heads);
  s.q = slice_matrix(p, o, OPERAND_Q, s.b, s.h, 0), s.d_out = slice_matrix(p, o, OPERAND_D_OUT, s.b, s.h, 0);
  s.k = slice_matrix(p, o, OPERAND_K, s.b, s.kv_head, 0), s.v = slice_matrix(p, o, OPERAND_V, s.b, s.kv_head, 0);
  slice_of_head(s, p, o, s.b, s.h);
  return true;
}

/* Copies of a stage: Q, dO, K, V. */
WORD void async_bias_stage(char *stage, const attend_problem &p, const attend_slice &s, int q0, int k0,
                           const async_kind kind) {
  const int rows = 64 * kind.groups, panels = kind.panels;
  const int own = ASYNC_PANEL * panels * rows, other = ASYNC_PANEL * panels * ASYNC_STEP;
  int q_left = (int)s.q_len - q0, k_left = (int)s.k_len - k0;
  async_copy(stage, rows, async_stream_of(s.q, q0, (int)p.head_dim, panels), q_left, panels, kind.groups);
  async_copy(stage + own, rows, async_stream_of(s.d_out, q0, (int)p.v_dim, panels), q_left, panels, kind.groups);
  char *keys = stage + 2 * own;
  async_copy(keys, ASYNC_STEP, async_stream_of(s.k, k0, (int)p.head_dim, panels), k_left, panels, kind.groups);
  async_copy(keys + other, ASYNC_STEP, async_stream_of(s.v, k0, (int)p.v_dim, panels), k_left, panels, kind.groups);
}

/* lse and delta of rows g and g + 8. */
WORD void async_row_values(float lse[2], float delta[2], const cuda_call &call, const attend_slice &s, int mine) {
  const float *values = gradient_values(call, s.b, s.h);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = mine + 8 * half + lane_row();
    lse[half] = i < (int)s.q_len ? values[i] : NO_LSE;
    delta[half] = i < (int)s.q_len ? values[gradient_delta_at(call.problem) + i] : 0;
  }
}

/* Returns true, and leaves dBias alone, if NaN came out. */
WORD bool async_gradient_bias(const cuda_call &call, char *memory, const async_kind kind) {
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_D_BIAS];
  const int panels = kind.panels, rows = 64 * kind.groups, group = (int)(threadIdx.x >> 7);
  const int own = ASYNC_PANEL * panels * rows, other = ASYNC_PANEL * panels * ASYNC_STEP, bytes = 2 * (own + other);
  uint32_t q_tiles = (uint32_t)((p.q_len + rows - 1) / rows);
  uint32_t k_tiles = (uint32_t)((p.k_len + ASYNC_STEP - 1) / ASYNC_STEP);
  uint32_t pair = blockIdx.x / (q_tiles * k_tiles), heads = (uint32_t)p.bias_shape[1];
  int64_t at_b = pair / heads, at_h = pair % heads;
  int k0 = (int)(blockIdx.x % k_tiles) * ASYNC_STEP, q0 = (int)(blockIdx.x / k_tiles % q_tiles) * rows;
  int mine = q0 + 16 * (int)(threadIdx.x >> 5);
  char *bias_tile = memory + ASYNC_STAGES * bytes;
  async_pairs at = {at_b, at_h, at_h, p.bias_shape[0] == 1 ? p.batch : at_b + 1,
                    p.bias_shape[1] == 1 ? p.heads : at_h + 1};
  float sum[8][4], c[8][4], d[8][4], lse[2][2], delta[2][2];
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum[n][e] = 0;
  attend_slice s, next;
  bool more = async_pairs_find(at, next, call, q0, k0, rows);
  if (more) {
    const bool bias_staged = async_bias_staged(&p);
    async_step step = {};
    async_terms terms = async_terms_of(p, next);
    step.bias = bias_staged ? bias_tile + 8192 * group : NULL, step.bias_own = 16 * ((int)(threadIdx.x >> 5) & 3);
    step.i = mine + lane_row(), step.j = k0 + 2 * lane_column();
    uint32_t next_seen = 0xFFFFFFFFu;
    async_bias_stage(memory, p, next, q0, k0, kind);
    if (bias_staged)
      async_copy(bias_tile, rows, async_bias_stream(p, next, q0, k0, 1), (int)p.q_len - q0, 1, kind.groups);
    word_copy_commit();
    async_row_values(lse[1], delta[1], call, next, mine);
    if (next.mask.data) next_seen = *async_mask_stream_of(call, next.b, next.h, q0 + 64 * group, k0, false).at;
    for (int stage = 0; more; stage ^= 1) {
      const char *own_q = memory + bytes * stage, *stage_k = own_q + 2 * own;
      s = next, step.seen = next_seen, terms.slope = async_slope(s);
      UNROLLED
      for (int half = 0; half < 2; half++) lse[0][half] = lse[1][half], delta[0][half] = delta[1][half];
      word_copy_wait(0);
      word_show_shared();
      word_sync_block(); /* this stage is here, and the other has been read */
      word_products_begin();
      async_dots(c, own_q + 8192 * group, rows, stage_k, panels);
      async_dots(d, own_q + own + 8192 * group, rows, stage_k + other, panels);
      more = async_pairs_next(at, next, call, q0, k0, rows);
      if (more) {
        async_bias_stage(memory + bytes * (stage ^ 1), p, next, q0, k0, kind);
        async_row_values(lse[1], delta[1], call, next, mine);
        if (next.mask.data) next_seen = *async_mask_stream_of(call, next.b, next.h, q0 + 64 * group, k0, false).at;
      }
      word_copy_commit();
      if (p.dropout_threshold) step.kept = async_kept_of_queries(p, s, (int)step.i, k0);
      step.window = window_of(band_of(p, s), mine, (int)s.q_len, k0, (int)s.k_len, false);
      step.lse = lse[0], step.delta = delta[0];
      word_products_wait(1);
      async_done(c, 8);
      async_probs_options(c, d, step, terms, p, s, kind.options, true, false);
      word_products_wait(0);
      async_done(d, 8);
      async_d_scores_options(d, c, step, terms, kind.options, false);
      UNROLLED
      for (int n = 0; n < 8; n++) UNROLLED
      for (int e = 0; e < 4; e++) sum[n][e] += d[n][e];
    }
  }
  if (word_sync_block_any(async_nan(sum, 1))) return true;
  char *data = (char *)call.operands.data[OPERAND_D_BIAS];
  const float factor = (float)p.dropout_scale;
  const bool words = l.type == ELEMENT && l.col == 1 && l.alignment % 4 == 0 && !p.accumulate;
  int64_t first = at_b * l.batch + at_h * l.head;
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = mine + lane_row() + 8 * half, j = k0 + 8 * n + 2 * lane_column();
    if (i >= p.q_len || j >= p.k_len) continue;
    int64_t to = first + i * l.row + j * l.col;
    float x = sum[n][2 * half] * factor, y = sum[n][2 * half + 1] * factor;
    if (words && j + 1 < p.k_len)
      *(uint32_t *)(void *)(data + 2 * to) = pack(x, y);
    else {
      put_element(p, data, to, l.type, x);
      if (j + 1 < p.k_len) put_element(p, data, to + l.col, l.type, y);
    }
  }
  return false;
}

#endif
