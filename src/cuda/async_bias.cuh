/* SPDX-License-Identifier: MIT */
/* dBias on sm_90: a block owns a tile of it, 64 queries of each group by 64 keys, and goes through all sequences and
 * heads that the bias is broadcast over, in order, the next one's rows on their way while the tensor cores work on this
 * one's. Included once for each element type. */
#ifndef ATTEND_CUDA_ASYNC_BIAS_CUH
#define ATTEND_CUDA_ASYNC_BIAS_CUH

#include "async_options.cuh"

/* What a tile needs of one sequence and head. Each thread looks up one, for all threads: when each did so for every
 * pair, it took them as long as the scores of the tile. */
struct async_pair {
  const char *q, *d_out, *k, *v; /* the tile's first rows */
  const float *values;           /* lse of the sequence's first query */
  const uint32_t *mask;          /* words of the tile; NULL: none */
  int q_len, k_len, off;
  float slope;
  uint32_t dropout_key[2];
  gradient_band band;
  bool seen; /* does any query of the tile see any key of it? */
};
static_assert(sizeof(async_pair) <= ASYNC_PAIR_BYTES, "async_pair");

WORD void async_pair_fill(async_pair &pair, const cuda_call &call, int64_t b, int64_t h, int q0, int k0,
                          const int rows) {
  int64_t key_rows;
  attend_slice s = slice_make(call.problem, call.operands, b, h, key_rows);
  pair.q = s.q.data + 2 * q0 * s.q.row, pair.d_out = s.d_out.data + 2 * q0 * s.d_out.row;
  pair.k = s.k.data + 2 * k0 * s.k.row, pair.v = s.v.data + 2 * k0 * s.v.row;
  pair.values = gradient_values(call, b, h);
  pair.mask = s.mask.data ? async_mask_words_of(call, b, h, q0, k0, false) : NULL;
  pair.q_len = (int)s.q_len, pair.k_len = (int)s.k_len, pair.off = (int)s.off;
  pair.slope = async_slope(s);
  pair.dropout_key[0] = s.dropout_key[0], pair.dropout_key[1] = s.dropout_key[1];
  pair.band = band_of(call.problem, s);
  gradient_window w = window_of(pair.band, q0, pair.q_len, k0, pair.k_len, false);
  pair.seen = ASYNC_STEP - 1 >= w.least && 1 - rows <= w.most && w.rows > 0 && w.columns > 0;
}

/* The first of a tile that is seen, from `at` on; `count`: none is. */
WORD int async_pair_seen(const async_pair *pairs, int at, int count) {
  while (at < count && !pairs[at].seen) at++;
  return at;
}

/* Where a thread reads of Q, dO, K and V, from the tile's first rows on. */
struct async_rows {
  async_stream q, d_out, k, v;
};
WORD async_stream async_stream_from(const attend_problem &p, operand_id id, int64_t columns, const int panels) {
  attend_matrix m = {NULL, p.layout[id].row, 1};
  return async_stream_of(m, 0, (int)columns, panels);
}
WORD async_rows async_row_streams(const attend_problem &p, const int panels) {
  async_rows r = {
      async_stream_from(p, OPERAND_Q, p.head_dim, panels), async_stream_from(p, OPERAND_D_OUT, p.v_dim, panels),
      async_stream_from(p, OPERAND_K, p.head_dim, panels), async_stream_from(p, OPERAND_V, p.v_dim, panels)};
  return r;
}
WORD async_stream async_stream_at(async_stream s, const char *first) {
  s.at = first + (uintptr_t)s.at;
  return s;
}

/* Start copying a stage: Q, dO, K, V. */
WORD void async_bias_stage(char *stage, const async_pair &pair, const async_rows &from, int q0, int k0,
                           const async_kind kind) {
  const int rows = 64 * kind.groups, panels = kind.panels;
  const int own = ASYNC_PANEL * panels * rows, other = ASYNC_PANEL * panels * ASYNC_STEP;
  int q_left = pair.q_len - q0, k_left = pair.k_len - k0;
  async_copy(stage, rows, async_stream_at(from.q, pair.q), q_left, panels, kind.groups);
  async_copy(stage + own, rows, async_stream_at(from.d_out, pair.d_out), q_left, panels, kind.groups);
  char *keys = stage + 2 * own;
  async_copy(keys, ASYNC_STEP, async_stream_at(from.k, pair.k), k_left, panels, kind.groups);
  async_copy(keys + other, ASYNC_STEP, async_stream_at(from.v, pair.v), k_left, panels, kind.groups);
}

/* What a thread reads of the next pair, ahead: lse and delta of rows g and g + 8, and the mask. */
struct async_ahead {
  float lse[2], delta[2];
  uint32_t seen;
};
WORD async_ahead async_look_ahead(const async_pair &pair, int mine, int64_t delta_at, int64_t mask_at) {
  async_ahead x;
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = mine + 8 * half + lane_row();
    x.lse[half] = i < pair.q_len ? pair.values[i] : NO_LSE;
    x.delta[half] = i < pair.q_len ? pair.values[delta_at + i] : 0;
  }
  x.seen = pair.mask ? pair.mask[mask_at] : 0xFFFFFFFFu;
  return x;
}

WORD void async_bias_store(const cuda_call &call, const float sum[8][4], int64_t first, int i, int j) {
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_D_BIAS];
  char *data = (char *)call.operands.data[OPERAND_D_BIAS];
  const float factor = (float)p.dropout_scale;
  const bool words = l.type == ELEMENT && l.col == 1 && l.alignment % 4 == 0 && !p.accumulate;
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int row = i + 8 * half, column = j + 8 * n;
    if (row >= p.q_len || column >= p.k_len) continue;
    int64_t to = first + row * l.row + column * l.col;
    float x = sum[n][2 * half] * factor, y = sum[n][2 * half + 1] * factor;
    if (words && column + 1 < p.k_len)
      *(uint32_t *)(void *)(data + 2 * to) = pack(x, y);
    else {
      put_element(p, data, to, l.type, x);
      if (column + 1 < p.k_len) put_element(p, data, to + l.col, l.type, y);
    }
  }
}

/* Returns true, and leaves dBias alone, if NaN came out. */
WORD bool async_gradient_bias(const cuda_call &call, char *memory, const async_kind kind) {
  const attend_problem &p = call.problem;
  const int panels = kind.panels, rows = 64 * kind.groups, group = (int)(threadIdx.x >> 7);
  const int own = ASYNC_PANEL * panels * rows, other = ASYNC_PANEL * panels * ASYNC_STEP, bytes = 2 * (own + other);
  uint32_t q_tiles = (uint32_t)((p.q_len + rows - 1) / rows);
  uint32_t k_tiles = (uint32_t)((p.k_len + ASYNC_STEP - 1) / ASYNC_STEP);
  uint32_t shared = blockIdx.x / (q_tiles * k_tiles), heads = (uint32_t)p.bias_shape[1];
  int64_t at_b = shared / heads, at_h = shared % heads;
  int k0 = (int)(blockIdx.x % k_tiles) * ASYNC_STEP, q0 = (int)(blockIdx.x / k_tiles % q_tiles) * rows;
  int mine = q0 + 16 * (int)(threadIdx.x >> 5);
  char *bias_tile = memory + ASYNC_STAGES * bytes;
  async_pair *pairs = (async_pair *)(void *)(bias_tile + ASYNC_SHARED_BIAS(kind.groups));
  float sum[8][4], c[8][4], d[8][4];
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum[n][e] = 0;
  int64_t key_rows;
  attend_slice s = slice_make(p, call.operands, at_b, at_h, key_rows); /* its bias is that of all pairs */
  const async_rows from = async_row_streams(p, panels);
  async_terms terms = async_terms_of(p, s);
  /* The group's words come after those of the first group; a group beyond the last tile has any. */
  const int64_t mask_at = (threadIdx.x & 127) + (q0 + 64 * group < p.q_len ? group * async_mask_row(p) : 0);
  async_step step = {};
  step.i = mine + lane_row(), step.j = k0 + 2 * lane_column();
  if (async_bias_staged(&p)) {
    async_copy(bias_tile, rows, async_bias_stream(p, s, q0, k0, 1), (int)p.q_len - q0, 1, kind.groups);
    step.bias = bias_tile + 8192 * group, step.bias_own = 16 * ((int)(threadIdx.x >> 5) & 3);
  }
  const int64_t of_h = p.bias_shape[1] == 1 ? p.heads : 1, all = of_h * (p.bias_shape[0] == 1 ? p.batch : 1);
  for (int64_t first = 0; first < all; first += ASYNC_PAIRS) {
    int count = all - first < ASYNC_PAIRS ? (int)(all - first) : ASYNC_PAIRS;
    word_sync_block(); /* until nobody reads the pairs and the stages of earlier ones */
    if ((int)threadIdx.x < count) {
      uint32_t number = (uint32_t)first + threadIdx.x;
      async_pair_fill(pairs[threadIdx.x], call, at_b + number / (uint32_t)of_h, at_h + number % (uint32_t)of_h, q0, k0,
                      rows);
    }
    word_sync_block();
    int next = async_pair_seen(pairs, 0, count);
    async_ahead ahead = {};
    if (next < count) {
      async_bias_stage(memory, pairs[next], from, q0, k0, kind);
      ahead = async_look_ahead(pairs[next], mine, gradient_delta_at(p), mask_at);
    }
    word_copy_commit();
    for (int stage = 0; next < count; stage ^= 1) {
      const char *own_q = memory + bytes * stage, *stage_k = own_q + 2 * own;
      const async_pair &pair = pairs[next];
      const async_ahead here = ahead;
      next = async_pair_seen(pairs, next + 1, count);
      word_copy_wait(0);
      word_show_shared();
      word_sync_block(); /* this stage is here, and the other has been read */
      word_products_begin();
      async_dots(c, own_q + 8192 * group, rows, stage_k, panels);
      async_dots(d, own_q + own + 8192 * group, rows, stage_k + other, panels);
      if (next < count) {
        async_bias_stage(memory + bytes * (stage ^ 1), pairs[next], from, q0, k0, kind);
        ahead = async_look_ahead(pairs[next], mine, gradient_delta_at(p), mask_at);
      }
      word_copy_commit();
      s.off = pair.off, s.dropout_key[0] = pair.dropout_key[0], s.dropout_key[1] = pair.dropout_key[1];
      terms.slope = pair.slope;
      if (terms.drops) step.kept = async_kept_of_queries(p, s, step.i, k0);
      step.window = window_of(pair.band, mine, pair.q_len, k0, pair.k_len, false);
      step.lse = here.lse, step.delta = here.delta, step.seen = here.seen;
      word_products_wait(1);
      async_done(c, 8);
      async_probs_options(c, d, NULL, step, terms, p, s, kind.options, true, false);
      word_products_wait(0);
      async_done(d, 8);
      async_d_scores_options(d, c, step, terms, kind.options, false);
      UNROLLED
      for (int n = 0; n < 8; n++) UNROLLED
      for (int e = 0; e < 4; e++) sum[n][e] += d[n][e];
    }
  }
  if (word_sync_block_any(async_nan(sum, 1))) return true;
  const attend_layout &l = p.layout[OPERAND_D_BIAS];
  async_bias_store(call, sum, at_b * l.batch + at_h * l.head, step.i, step.j);
  return false;
}

#endif
