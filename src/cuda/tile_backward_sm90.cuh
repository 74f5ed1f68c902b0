/* SPDX-License-Identifier: MIT */
/* Backward in tiles through the asynchronous products of sm_90: the same two owners as in tile_backward.cuh, whose
 * delta this needs. Both operands of the first two products, and one of the others, come from shared memory, so that
 * registers hold little but the gradients; and while a group of four warps works on scores, its other products and
 * those of the other groups run.
 *
 * A block whose gradient came out NaN does its rows again, carefully, as tile_backward.cuh does. */
#ifndef ATTEND_CUDA_TILE_BACKWARD_SM90_CUH
#define ATTEND_CUDA_TILE_BACKWARD_SM90_CUH

#include "tile_backward.cuh"
#include "tile_backward_sm90.h"

/* What an entry point fixes: groups of a block, panels of 64 columns (1, 2), and whether all options are there. */
struct async_kind {
  int groups, panels;
  bool general;
};

/* ---- Tiles in shared memory ------------------------------------------------------------------------------------- */

/* Where a thread reads of one matrix, and where it writes of its tile: from row tid / words on. */
struct async_stream {
  const char *at;
  int64_t row_bytes;
  bool exists;
};

WORD async_stream async_stream_of(const attend_matrix &m, int first, int columns, const int panels) {
  const int words = 8 * panels;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  async_stream s = {m.data + 2 * ((first + row) * m.row + 8 * word), 2 * m.row, 8 * word < columns};
  return s;
}

/* Start copying `rows` rows, of which `left` exist; the others become 0. */
WORD void async_copy(char *tile, const int rows, const async_stream &s, int left, const int panels, const int groups) {
  const int words = 8 * panels, every = 128 * groups / words;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  char *to = tile + (word >> 3) * rows * 128 + row * 128 + (((word ^ row) & 7) << 4);
  UNROLLED
  for (int n = 0; n < rows / every; n++)
    word_copy_async(to + n * every * 128, s.at + n * every * s.row_bytes, s.exists && row + n * every < left);
}

/* c = 64 rows of `own`, of `rows`, x the staged rows. */
WORD void async_dots(float c[8][4], const char *own, const int rows, const char *stage, const int panels) {
  UNROLLED
  for (int x = 0; x < 4 * panels; x++) {
    word_tile a = word_tile_at(own + (x >> 2) * rows * 128 + 32 * (x & 3), 0);
    word_tile b = word_tile_at(stage + (x >> 2) * ASYNC_STEP * 128 + 32 * (x & 3), 0);
    if (ELEMENT == TYPE_BF16)
      word_dots_bf16_64(c, a, b, x);
    else
      word_dots_f16_64(c, a, b, x);
  }
  word_products_commit();
}

/* sum += A x the staged rows. */
WORD void async_product(float sum[16][4], const uint32_t a[4][4], const char *stage, const int panels) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < ASYNC_STEP / 16; x++) {
    word_tile b = word_tile_at(stage + 2048 * x, 128 * ASYNC_STEP);
    if (ELEMENT == TYPE_BF16)
      panels == 1 ? word_values_bf16_64(sum, a[x], b) : word_values_bf16_128(sum, a[x], b);
    else
      panels == 1 ? word_values_f16_64(sum, a[x], b) : word_values_f16_128(sum, a[x], b);
  }
  word_products_commit();
}

WORD void async_clear(float sum[16][4], const int panels) {
  UNROLLED
  for (int n = 0; n < 8 * panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum[n][e] = 0;
}
WORD void async_done(float c[][4], const int count) {
  UNROLLED
  for (int n = 0; n < count; n++) word_products_done(c[n]);
}
WORD bool async_nan(const float sum[16][4], const int panels) {
  float total = 0;
  UNROLLED
  for (int n = 0; n < 8 * panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) total += sum[n][e] * 0; /* NaN of Inf too: then once more, in vain */
  return total != total;
}

/* ---- Scores ------------------------------------------------------------------------------------------------------ */

/* c: dot products of 16 rows and the staged columns; they become P. `lse`: of columns, or of rows g and g + 8. */
WORD void async_probs(float c[8][4], const float *lse, const bool full, const gradient_window &w, float unit,
                      const bool owns_keys) {
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    int r = lane_row() + 8 * (e >> 1), col = 8 * n + 2 * lane_column() + (e & 1);
    float value = owns_keys ? lse[col] : lse[e >> 1];
    float x = word_exp2(word_multiply_add(c[n][e], unit, -value));
    if (!full) x = col - r >= w.least && col - r <= w.most && r < w.rows && col < w.columns && value != NO_LSE ? x : 0;
    c[n][e] = x;
  }
}

/* d: products of dO and V; they become dS. A pair that may not meet has c = 0: what is NaN then comes out. */
WORD void async_d_scores(float d[8][4], const float c[8][4], const float *delta, const bool owns_keys) {
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++)
    d[n][e] = c[n][e] * (d[n][e] - delta[owns_keys ? 8 * n + 2 * lane_column() + (e & 1) : e >> 1]);
}

WORD void async_operand(uint32_t a[4][4], const float c[8][4]) {
  UNROLLED
  for (int x = 0; x < 4; x++) UNROLLED
  for (int r = 0; r < 4; r++) a[x][r] = pack(c[2 * x + r / 2][r % 2 * 2], c[2 * x + r / 2][r % 2 * 2 + 1]);
}

/* Of a stage. */
WORD gradient_bits async_bits_of(uint32_t *bits, int stage) {
  gradient_bits x = {bits + 2 * stage * ASYNC_WORDS, bits + (2 * stage + 1) * ASYNC_WORDS};
  return x;
}

/* ---- dK, dV ------------------------------------------------------------------------------------------------------ */

WORD bool async_gradient_keys(const cuda_call &call, char *memory, const async_kind kind) {
  const attend_problem &p = call.problem;
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
  uint32_t *bits = (uint32_t *)(void *)(values + ASYNC_VALUES);
  int q_len = (int)first.q_len, k_len = (int)first.k_len, which = (int)threadIdx.x / 16, unit = (int)threadIdx.x % 16;
  const float scale = (float)p.scale * LOG2_E;
  gradient_band band = band_of(p, first);
  float d_k[16][4], d_v[16][4], c[8][4], d[8][4];
  uint32_t a_p[4][4], a_d[4][4], masks[8];
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
    word_copy_commit();
    attend_slice s = first;
    if (kind.general) gradient_prepare(async_bits_of(bits, 0), p, s, begin, ASYNC_STEP, k0, rows / 32, 2 * rows);
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
      }
      word_copy_commit();
      gradient_window w = window_of(band, mine, k_len, q0, q_len, true);
      if (kind.general) {
        if (n + 1 < count && attend_has(&p, OPERAND_MASK))
          gradient_mask_read(masks, slice_matrix(p, call.operands, OPERAND_MASK, first.b, first.h + (n + 1) / steps, 0),
                             q_len, k_len, next_q0, ASYNC_STEP, k0, rows / 32, 2 * rows);
        word_products_wait(0);
        async_done(c, 8);
        async_done(d, 8);
        const int t = 2 * lane_column();
        gradient_general(c, d, 8, lse + t, delta + t, 0, w, p, s, mine, q0, mine - k0 + lane_row(),
                         async_bits_of(bits, stage), rows / 32, false, true);
        async_operand(a_p, c);
        async_operand(a_d, d);
        async_product(d_v, a_p, stage_d_out, panels);
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
      if (kind.general && n + 1 < count) {
        int64_t unused;
        if (q0 == begin) s = slice_make(p, call.operands, first.b, first.h + (n + 1) / steps, unused);
        gradient_bits_of(async_bits_of(bits, stage), masks, p, s, q0, ASYNC_STEP, k0, rows / 32, 2 * rows);
      }
    }
    word_products_wait(0);
  }
  async_done(d_k, 8 * panels);
  async_done(d_v, 8 * panels);
  if (word_sync_block_any(async_nan(d_k, panels) || async_nan(d_v, panels))) return true;
  const gradient_kind store = {4 * kind.groups, 1, panels, false, false};
  if (first.d_k.data)
    gradient_store(p, first.d_k, (const float(*)[8][4])d_k, mine, (int)key_rows, (int)p.head_dim, (float)p.scale,
                   store);
  if (first.d_v.data)
    gradient_store(p, first.d_v, (const float(*)[8][4])d_v, mine, (int)key_rows, (int)p.v_dim, (float)p.dropout_scale,
                   store);
  return false;
}

/* ---- dQ ---------------------------------------------------------------------------------------------------------- */

WORD bool async_gradient_queries(const cuda_call &call, char *memory, const async_kind kind) {
  const attend_problem &p = call.problem;
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
  uint32_t *bits = (uint32_t *)(void *)(staged + ASYNC_STAGES * 2 * bytes + 4 * ASYNC_VALUES);
  int q_len = (int)s.q_len, k_len = (int)s.k_len;
  const float scale = (float)p.scale * LOG2_E, *values = gradient_values(call, s.b, s.h);
  gradient_band band = band_of(p, s);
  float d_q[16][4], c[8][4], d[8][4], lse[2], delta[2];
  uint32_t a_d[4][4], masks[8];
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
    word_copy_commit();
    if (kind.general) gradient_prepare(async_bits_of(bits, 0), p, s, q0, rows, begin, ASYNC_STEP / 32, 2 * rows);
    for (int k0 = begin, stage = 0; k0 < end; k0 += ASYNC_STEP, stage ^= 1) {
      const char *stage_k = staged + 2 * bytes * stage, *stage_v = stage_k + bytes;
      word_copy_wait(0);
      word_show_shared();
      word_sync_block(); /* this stage is here */
      word_products_begin();
      async_dots(c, own_q + group_at, rows, stage_k, panels);
      async_dots(d, own_d_out + group_at, rows, stage_v, panels);
      word_products_wait(1);
      word_sync_block(); /* the other stage has been read */
      if (k0 + ASYNC_STEP < end) {
        char *to = staged + 2 * bytes * (stage ^ 1);
        k.at += ASYNC_STEP * k.row_bytes, v.at += ASYNC_STEP * v.row_bytes;
        async_copy(to, ASYNC_STEP, k, k_len - k0 - ASYNC_STEP, panels, kind.groups);
        async_copy(to + bytes, ASYNC_STEP, v, k_len - k0 - ASYNC_STEP, panels, kind.groups);
      }
      word_copy_commit();
      gradient_window w = window_of(band, mine, q_len, k0, k_len, false);
      if (kind.general) {
        if (k0 + ASYNC_STEP < end && s.mask.data)
          gradient_mask_read(masks, s.mask, q_len, k_len, q0, rows, k0 + ASYNC_STEP, ASYNC_STEP / 32, 2 * rows);
        word_products_wait(0);
        async_done(c, 8);
        async_done(d, 8);
        gradient_general(c, d, 8, lse, delta, 0, w, p, s, mine, k0, mine - q0 + lane_row(), async_bits_of(bits, stage),
                         ASYNC_STEP / 32, false, false);
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
      if (kind.general && k0 + ASYNC_STEP < end)
        gradient_bits_of(async_bits_of(bits, stage ^ 1), masks, p, s, q0, rows, k0 + ASYNC_STEP, ASYNC_STEP / 32,
                         2 * rows);
    }
    word_products_wait(0);
  }
  async_done(d_q, 8 * panels);
  if (word_sync_block_any(async_nan(d_q, panels))) return true;
  const gradient_kind store = {4 * kind.groups, 1, panels, false, false};
  gradient_store(p, s.d_q, (const float(*)[8][4])d_q, mine, q_len, (int)p.head_dim, (float)p.scale, store);
  return false;
}

#endif
