/* SPDX-License-Identifier: MIT */
/* Backward in tiles through the asynchronous products of sm_90: the same two owners as in tile_backward.cuh, whose
 * delta this needs. Both operands of the first two products, and one of the others, come from shared memory, so that
 * registers hold little but the gradients; and while a group of four warps works on scores, its other products and
 * those of the other groups run.
 *
 * A block whose gradient came out NaN leaves it alone, and async_again.cuh does its rows again. */
#ifndef ATTEND_CUDA_TILE_BACKWARD_SM90_CUH
#define ATTEND_CUDA_TILE_BACKWARD_SM90_CUH

#include "async_options.cuh"

/* ---- dK, dV ------------------------------------------------------------------------------------------------------ */

WORD bool async_gradient_keys(const cuda_call &call, char *memory, const async_kind kind) {
  const attend_problem &p = call.problem;
  const bool options = kind.options != ASYNC_PLAIN;
  const int panels = kind.panels, rows = 64 * kind.groups, bytes = ASYNC_PANEL * panels * ASYNC_STEP;
  const int group_at = (int)(threadIdx.x >> 7) * 64 * ASYNC_PANEL; /* bytes */
  int64_t tiles = (p.k_len + rows - 1) / rows, key_rows;
  uint32_t pair = blockIdx.x / (uint32_t)tiles;
  int k0 = (int)(blockIdx.x % (uint32_t)tiles) * rows;
  int mine = k0 + (int)(threadIdx.x >> 5) * 16;
  attend_slice first =
      slice_make(p, call.operands, pair / p.kv_heads, pair % p.kv_heads * (p.heads / p.kv_heads), key_rows);
  if (k0 >= key_rows) return false;
  char *own_k = memory, *own_v = own_k + ASYNC_PANEL * panels * rows, *staged = own_v + ASYNC_PANEL * panels * rows;
  float *values = (float *)(void *)(staged + ASYNC_STAGES * 2 * bytes);
  const int bias_bytes = ASYNC_SHARED_BIAS(kind.groups), group_k0 = k0 + 64 * (int)(threadIdx.x >> 7);
  char *bias_tiles = (char *)(values + ASYNC_VALUES);
  uint16_t *kept = (uint16_t *)(void *)(bias_tiles + ASYNC_STAGES * bias_bytes);
  int q_len = (int)first.q_len, k_len = (int)first.k_len, which = (int)threadIdx.x / 16, unit = (int)threadIdx.x % 16;
  const float scale = (float)p.scale * LOG2_E;
  gradient_band band = band_of(p, first);
  float d_k[16][4], d_v[16][4], c[8][4], d[8][4];
  uint32_t a_p[4][4], a_d[4][4];
  async_clear(d_k, panels);
  async_clear(d_v, panels);
  /* The queries that see any key of the block: from k0 + least to its last key + most. */
  int begin = k0 + band.least, end = band.most < q_len - k0 - rows ? k0 + rows + band.most : q_len;
  begin = begin < 0 ? 0 : begin / ASYNC_STEP * ASYNC_STEP;
  if (begin < end && k0 < k_len) {
    int steps = (end - begin + ASYNC_STEP - 1) / ASYNC_STEP, count = steps * (int)(p.heads / p.kv_heads);
    int q0 = begin, stage = 0;
    async_stream q = async_stream_of(first.q, begin, (int)p.head_dim, panels);
    async_stream d_out = async_stream_of(first.d_out, begin, (int)p.v_dim, panels);
    const float *next_values =
        gradient_values(call, first.b, first.h) + (which ? gradient_delta_at(p) : 0) + begin + 4 * unit;
    async_copy(own_k, rows, async_stream_of(first.k, k0, (int)p.head_dim, panels), k_len - k0, panels, kind.groups);
    async_copy(own_v, rows, async_stream_of(first.v, k0, (int)p.v_dim, panels), k_len - k0, panels, kind.groups);
    async_copy(staged, ASYNC_STEP, q, q_len - begin, panels, kind.groups);
    async_copy(staged + bytes, ASYNC_STEP, d_out, q_len - begin, panels, kind.groups);
    if (which < 2) word_copy_async(values + 64 * which + 4 * unit, next_values, true);
    attend_slice s = first, next = first;
    const bool bias_staged = options && s.bias.data && async_bias_staged(&p);
    async_stream bias = {NULL, 0, false};
    async_mask_stream mask = {NULL, 0};
    async_step step = {};
    async_terms terms = async_terms_of(p, s);
    uint32_t next_seen = 0xFFFFFFFFu;
    if (bias_staged) {
      bias = async_bias_stream(p, s, begin, k0, kind.groups);
      async_copy(bias_tiles, ASYNC_STEP, bias, q_len - begin, kind.groups, kind.groups);
    }
    word_copy_commit();
    if (options) {
      if (s.mask.data) mask = async_mask_stream_of(call, s.b, s.h, begin, group_k0, true), next_seen = *mask.at;
      if (p.dropout_threshold) async_kept_of_keys(kept, p, s, begin, group_k0);
    }
    for (int n = 0; n < count; n++) {
      int next_q0 = q0 + ASYNC_STEP < end ? q0 + ASYNC_STEP : begin, next_stage = stage ^ 1;
      const char *stage_q = staged + 2 * bytes * stage, *stage_d_out = stage_q + bytes;
      const float *lse = values + 128 * stage, *delta = lse + 64;
      word_copy_wait(0);
      word_show_shared();
      word_sync_block(); /* this stage is here */
      word_products_begin();
      async_dots(c, own_k + group_at, rows, stage_q, panels);
      async_dots(d, own_v + group_at, rows, stage_d_out, panels);
      if (options) {
        step.seen = next_seen, step.i = q0 + 2 * lane_column(), step.j = mine + lane_row();
        if (n + 1 < count) {
          if (next_q0 == begin) {
            int64_t unused;
            next = slice_make(p, call.operands, first.b, first.h + (n + 1) / steps, unused);
            if (s.mask.data) mask = async_mask_stream_of(call, next.b, next.h, begin, group_k0, true);
          } else
            mask.at += mask.step;
          if (s.mask.data) next_seen = *mask.at;
          if (p.dropout_threshold)
            async_kept_of_keys(kept + 256 * kind.groups * next_stage, p, next, next_q0, group_k0);
        }
      }
      word_products_wait(1);
      word_sync_block(); /* the other stage has been read */
      if (n + 1 < count) {
        int64_t queries = next_q0 - q0, heads = queries != ASYNC_STEP;
        q.at += 2 * (queries * p.layout[OPERAND_Q].row + heads * p.layout[OPERAND_Q].head);
        d_out.at += 2 * (queries * p.layout[OPERAND_D_OUT].row + heads * p.layout[OPERAND_D_OUT].head);
        next_values += queries + heads * gradient_padded(p);
        char *to = staged + 2 * bytes * next_stage;
        async_copy(to, ASYNC_STEP, q, q_len - next_q0, panels, kind.groups);
        async_copy(to + bytes, ASYNC_STEP, d_out, q_len - next_q0, panels, kind.groups);
        if (which < 2) word_copy_async(values + 128 * next_stage + 64 * which + 4 * unit, next_values, true);
        if (bias_staged) {
          bias.at += 2 * (queries * p.layout[OPERAND_BIAS].row + heads * p.layout[OPERAND_BIAS].head);
          async_copy(bias_tiles + bias_bytes * next_stage, ASYNC_STEP, bias, q_len - next_q0, kind.groups, kind.groups);
        }
      }
      word_copy_commit();
      gradient_window w = window_of(band, mine, k_len, q0, q_len, true);
      if (options) {
        const int t = 2 * lane_column();
        step.window = w, step.lse = lse + t, step.delta = delta + t;
        step.bias = bias_staged ? bias_tiles + bias_bytes * stage + 8192 * (int)(threadIdx.x >> 7) : NULL;
        step.bias_own = 16 * ((int)(threadIdx.x >> 5) & 3);
        if (p.dropout_threshold)
          step.kept = ((const uint32_t *)(const void *)(kept + 256 * kind.groups * stage))[threadIdx.x];
        async_done(c, 8);
        async_probs_options(c, d, a_p, step, terms, p, s, kind.options, false, true);
        async_product(d_v, a_p, stage_d_out, panels);
        word_products_wait(1);
        async_done(d, 8);
        async_d_scores_options(d, c, step, terms, kind.options, true);
        async_operand(a_d, d);
      } else {
        async_done(c, 8);
        if (window_full(w, 0, ASYNC_STEP, 16))
          async_probs(c, lse, true, w, scale, true);
        else
          async_probs(c, lse, false, w, scale, true);
        async_operand(a_p, c);
        async_product(d_v, a_p, stage_d_out, panels);
        word_products_wait(1);
        async_done(d, 8);
        async_d_scores(d, c, delta, true);
        async_operand(a_d, d);
      }
      async_product(d_k, a_d, stage_q, panels);
      q0 = next_q0, stage = next_stage;
      if (options && n + 1 < count && q0 == begin) s = next, terms.slope = async_slope(s);
    }
    word_products_wait(0);
  }
  async_done(d_k, 8 * panels);
  async_done(d_v, 8 * panels);
  if (word_sync_block_any(async_nan(d_k, panels) || async_nan(d_v, panels))) return true;
  const gradient_kind store = {4 * kind.groups, 1, panels, false, false};
  if (first.d_k.data)
    gradient_store(p, first.d_k, (const float(*)[8][4])d_k, mine, (int)key_rows, (int)p.head_dim,
                   (float)(p.scale * p.dropout_scale), store);
  if (first.d_v.data)
    gradient_store(p, first.d_v, (const float(*)[8][4])d_v, mine, (int)key_rows, (int)p.v_dim, (float)p.dropout_scale,
                   store);
  return false;
}

/* ---- dQ ---------------------------------------------------------------------------------------------------------- */

WORD bool async_gradient_queries(const cuda_call &call, char *memory, const async_kind kind) {
  const attend_problem &p = call.problem;
  const bool options = kind.options != ASYNC_PLAIN;
  const int panels = kind.panels, rows = 64 * kind.groups, bytes = ASYNC_PANEL * panels * ASYNC_STEP;
  const int group_at = (int)(threadIdx.x >> 7) * 64 * ASYNC_PANEL; /* bytes */
  int64_t tiles = (p.q_len + rows - 1) / rows, key_rows;
  uint32_t pair = blockIdx.x / (uint32_t)tiles;
  int q0 = ((int)tiles - 1 - (int)(blockIdx.x % (uint32_t)tiles)) * rows; /* the longest first */
  int mine = q0 + (int)(threadIdx.x >> 5) * 16;
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  if (q0 >= s.q_len) return false;
  char *own_q = memory, *own_d_out = own_q + ASYNC_PANEL * panels * rows;
  char *staged = own_d_out + ASYNC_PANEL * panels * rows;
  const int bias_bytes = ASYNC_SHARED_BIAS(kind.groups), group = (int)(threadIdx.x >> 7);
  char *bias_tiles = staged + ASYNC_STAGES * 2 * bytes + 4 * ASYNC_VALUES;
  int q_len = (int)s.q_len, k_len = (int)s.k_len;
  const float scale = (float)p.scale * LOG2_E, *values = gradient_values(call, s.b, s.h);
  gradient_band band = band_of(p, s);
  float d_q[16][4], c[8][4], d[8][4], lse[2], delta[2];
  uint32_t a_d[4][4];
  async_clear(d_q, panels);
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = mine + 8 * half + lane_row();
    lse[half] = i < q_len ? values[i] : NO_LSE;
    delta[half] = i < q_len ? values[gradient_delta_at(p) + i] : 0;
  }
  /* The keys that any query of the block sees: from q0 - most to its last query - least. */
  int begin = q0 - band.most, end = q0 + rows - band.least;
  begin = begin < 0 ? 0 : begin / ASYNC_STEP * ASYNC_STEP;
  if (end > k_len) end = k_len;
  if (begin < end) {
    async_stream k = async_stream_of(s.k, begin, (int)p.head_dim, panels);
    async_stream v = async_stream_of(s.v, begin, (int)p.v_dim, panels);
    async_copy(own_q, rows, async_stream_of(s.q, q0, (int)p.head_dim, panels), q_len - q0, panels, kind.groups);
    async_copy(own_d_out, rows, async_stream_of(s.d_out, q0, (int)p.v_dim, panels), q_len - q0, panels, kind.groups);
    async_copy(staged, ASYNC_STEP, k, k_len - begin, panels, kind.groups);
    async_copy(staged + bytes, ASYNC_STEP, v, k_len - begin, panels, kind.groups);
    const bool bias_staged = options && s.bias.data && async_bias_staged(&p);
    async_stream bias = {NULL, 0, false};
    async_mask_stream mask = {NULL, 0};
    async_step step = {};
    async_terms terms = async_terms_of(p, s);
    uint32_t next_seen = 0xFFFFFFFFu;
    if (bias_staged) {
      bias = async_bias_stream(p, s, q0, begin, 1);
      async_copy(bias_tiles, rows, bias, q_len - q0, 1, kind.groups);
    }
    word_copy_commit();
    if (options && s.mask.data)
      mask = async_mask_stream_of(call, s.b, s.h, q0 + 64 * group, begin, false), next_seen = *mask.at;
    for (int k0 = begin, stage = 0; k0 < end; k0 += ASYNC_STEP, stage ^= 1) {
      const char *stage_k = staged + 2 * bytes * stage, *stage_v = stage_k + bytes;
      word_copy_wait(0);
      word_show_shared();
      word_sync_block(); /* this stage is here */
      word_products_begin();
      async_dots(c, own_q + group_at, rows, stage_k, panels);
      async_dots(d, own_d_out + group_at, rows, stage_v, panels);
      if (options) {
        step.seen = next_seen, step.i = mine + lane_row(), step.j = k0 + 2 * lane_column();
        if (s.mask.data && k0 + ASYNC_STEP < end) mask.at += mask.step, next_seen = *mask.at;
        if (p.dropout_threshold) step.kept = async_kept_of_queries(p, s, (int)step.i, k0);
      }
      word_products_wait(1);
      word_sync_block(); /* the other stage has been read */
      if (k0 + ASYNC_STEP < end) {
        char *to = staged + 2 * bytes * (stage ^ 1);
        k.at += ASYNC_STEP * k.row_bytes, v.at += ASYNC_STEP * v.row_bytes;
        async_copy(to, ASYNC_STEP, k, k_len - k0 - ASYNC_STEP, panels, kind.groups);
        async_copy(to + bytes, ASYNC_STEP, v, k_len - k0 - ASYNC_STEP, panels, kind.groups);
        if (bias_staged) {
          bias.at += 2 * ASYNC_STEP, bias.exists = 8 * ((int)threadIdx.x % 8) < p.k_len - k0 - ASYNC_STEP;
          async_copy(bias_tiles + bias_bytes * (stage ^ 1), rows, bias, q_len - q0, 1, kind.groups);
        }
      }
      word_copy_commit();
      gradient_window w = window_of(band, mine, q_len, k0, k_len, false);
      if (options) {
        step.window = w, step.lse = lse, step.delta = delta;
        step.bias = bias_staged ? bias_tiles + bias_bytes * stage + 8192 * group : NULL;
        step.bias_own = 16 * ((int)(threadIdx.x >> 5) & 3);
        async_done(c, 8);
        async_probs_options(c, d, NULL, step, terms, p, s, kind.options, false, false);
        word_products_wait(0);
        async_done(d, 8);
        async_d_scores_options(d, c, step, terms, kind.options, false);
      } else {
        async_done(c, 8);
        if (window_full(w, 0, ASYNC_STEP, 16))
          async_probs(c, lse, true, w, scale, false);
        else
          async_probs(c, lse, false, w, scale, false);
        word_products_wait(0);
        async_done(d, 8);
        async_d_scores(d, c, delta, false);
      }
      async_operand(a_d, d);
      async_product(d_q, a_d, stage_k, panels);
    }
    word_products_wait(0);
  }
  async_done(d_q, 8 * panels);
  if (word_sync_block_any(async_nan(d_q, panels))) return true;
  const gradient_kind store = {4 * kind.groups, 1, panels, false, false};
  gradient_store(p, s.d_q, (const float(*)[8][4])d_q, mine, q_len, (int)p.head_dim, (float)(p.scale * p.dropout_scale),
                 store);
  return false;
}

#endif
