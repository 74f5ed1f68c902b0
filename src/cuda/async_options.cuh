/* SPDX-License-Identifier: MIT */
/* What options do to the scores of backward on sm_90. What mask and dropout say of a thread's 32 pairs of a step is a
 * word each: bit 4n + e for element e of fragment n. Included once for each element type. */
#ifndef ATTEND_CUDA_ASYNC_OPTIONS_CUH
#define ATTEND_CUDA_ASYNC_OPTIONS_CUH

#include "async_mask.cuh"

/* ---- Dropout: a draw is for one query and eight keys ---------------------------------------------------------------
 */

/* Bits 2w + h of keys 8w + 2t + h, where c = 4 (j / 32) + t. */
WORD uint32_t async_draw(const attend_problem &p, const attend_slice &s, int i, int c) {
  uint32_t counter[4] = {(uint32_t)c, 0, (uint32_t)i, 0}, draw[4], x = 0;
  attend_philox(counter, s.dropout_key, draw);
  UNROLLED
  for (int w = 0; w < 4; w++) {
    if (draw[w] << 16 >= p.dropout_threshold << 16) x |= 1u << 2 * w;
    if (draw[w] >= p.dropout_threshold << 16) x |= 2u << 2 * w;
  }
  return x;
}

/* Bits 2w + h go to bits 4w + h. */
WORD uint32_t async_spread(uint32_t x) { return (x & 3) | (x & 12) << 2 | (x & 48) << 4 | (x & 192) << 6; }

/* Where a thread owns queries i and i + 8, and keys are those of the tile at k0: as header and fragment have it. */
WORD uint32_t async_kept_of_queries(const attend_problem &p, const attend_slice &s, int i, int k0) {
  uint32_t x = 0;
  UNROLLED_BY_2 /* all four at a time would take registers of a third block */
      for (int n = 0; n < 4; n++) x |=
      async_spread(async_draw(p, s, i + 8 * (n & 1), 4 * ((k0 >> 5) + (n >> 1)) + lane_column()))
      << (16 * (n >> 1) + 2 * (n & 1));
  return x;
}

/* Where it owns keys, and queries are those of the tile at q0: the eight keys of a draw are two lanes' of two warps, so
 * each of the four draws a quarter of the queries. Lanes exchange bits; warps leave half words to each other, which are
 * there after a barrier: 0 for fragments 0 to 3, 1 for the others. k0: the group's first key. */
WORD void async_kept_of_keys(uint16_t *halves, const attend_problem &p, const attend_slice &s, int q0, int k0) {
  int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane_row();
  int odd_warp = warp & 1, odd_lane = g & 1;
  int c = 4 * ((k0 >> 5) + ((warp & 3) >> 1)) + (g >> 1),
      i = q0 + 8 * (4 * odd_warp + 2 * odd_lane) + 2 * lane_column();
  uint32_t of[2] = {0, 0}; /* keys of lanes whose g is even, odd; the low half those of even warps */
  UNROLLED_BY_2
  for (int n = 0; n < 4; n++) { /* fragment n / 2 of the quarter, element n % 2 */
    uint32_t x = async_draw(p, s, i + 8 * (n >> 1) + (n & 1), c);
    int at = 4 * (n >> 1) + (n & 1);
    UNROLLED
    for (int h = 0; h < 2; h++) {
      uint32_t y = x >> h;
      of[h] |= ((y & 1) | (y & 4)) << at | (((y >> 4) & 1) | ((y >> 4) & 4)) << (16 + at);
    }
  }
  uint32_t mine = odd_lane ? of[1] : of[0], others = word_shuffle_xor(odd_lane ? of[0] : of[1], 4);
  uint32_t all = odd_lane ? mine << 8 | others : mine | others << 8;
  int even = (warp & ~1) * 32 + lane;
  halves[2 * even + odd_warp] = (uint16_t)all;
  halves[2 * (even + 32) + odd_warp] = (uint16_t)(all >> 16);
}

/* ---- The bias ------------------------------------------------------------------------------------------------------
 */

/* Of rows q0 .. and columns k0 .. . */
WORD async_stream async_bias_stream(const attend_problem &p, const attend_slice &s, int q0, int k0, const int panels) {
  attend_matrix m = {s.bias.data + 2 * (int64_t)k0, s.bias.row, 1};
  return async_stream_of(m, q0, (int)p.k_len - k0, panels);
}

/* Add the staged tile, in units of log 2. `own`: the first row or column of the warp, in a panel of 64 columns. */
WORD void async_bias_add(float c[8][4], const char *tile, int own, const bool owns_keys) {
  int lane = (int)threadIdx.x & 31, low = lane >> 3 & 1, high = lane >> 4;
  UNROLLED
  for (int n = 0; n < 8; n += 2) {
    uint32_t y[4]; /* fragment n + x / 2, rows g + 8 (x % 2) */
    int row = owns_keys ? 8 * (n + high) + (lane & 7) : own + 8 * low + (lane & 7);
    int word = owns_keys ? (own >> 3) + low : n + high;
    const char *at = tile + row * 128 + (((word ^ row) & 7) << 4);
    if (owns_keys)
      word_load_matrices_transposed(y, at);
    else
      word_load_matrices(y, at);
    UNROLLED
    for (int x = 0; x < 4; x++) UNROLLED
    for (int e = 0; e < 2; e++) {
      float &z = c[n + x / 2][x % 2 * 2 + e];
      z = word_multiply_add(half_of(y[x], e != 0), LOG2_E, z);
    }
  }
}

/* ---- Scores ------------------------------------------------------------------------------------------------------ */

/* What a step's scores depend on, beside the operands. */
struct async_step {
  gradient_window window;
  const float *lse, *delta; /* of columns 8n + e % 2 where the thread owns keys, else of rows g and g + 8 */
  const char *bias;         /* the staged tile; NULL: none */
  int bias_own;             /* as async_bias_add has it */
  int i, j;                 /* the thread's first pair */
  uint32_t seen, kept;
};

/* Numbers that are the same in all steps, but for the slope: of a head. In units of log 2, but `inner`. */
struct async_terms {
  float unit, cap, inner, slope, unscaled; /* scale; softcap, 0: none; scale / softcap; 1 / scale of dropout */
  bool drops;
};
WORD float async_slope(const attend_slice &s) { return (float)s.slope * LOG2_E; }
WORD async_terms async_terms_of(const attend_problem &p, const attend_slice &s) {
  async_terms t = {(float)p.scale * LOG2_E, 0, 0, async_slope(s), 1 / (float)p.dropout_scale, p.dropout_threshold != 0};
  if (p.softcap > 0) t.cap = (float)p.softcap * LOG2_E, t.inner = (float)p.scale / (float)p.softcap;
  return t;
}

WORD float async_of(const float *values, int n, int e, const bool owns_keys) {
  return values[owns_keys ? 8 * n + (e & 1) : e >> 1];
}

/* d: products of dO and V; they become what P multiplies in dS, over the scale of dropout. */
WORD void async_d_probs(float d[8][4], const async_step &step, const async_terms &terms, const bool owns_keys) {
  if (terms.drops) {
    UNROLLED
    for (int n = 0; n < 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) d[n][e] = step.kept >> (4 * n + e) & 1 ? d[n][e] : 0;
  }
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++)
    d[n][e] = word_multiply_add(-async_of(step.delta, n, e, owns_keys), terms.unscaled, d[n][e]);
}

/* c: scores less lse; they become P, which is 0 where not seen (if `masked`). a: where the thread owns keys, P as
 * operand without what dropout drops. One piece for each case, without branches: so exponentials, the slowest, run
 * beside the rest. */
WORD void async_exp(float c[8][4], uint32_t a[4][4], uint32_t seen, uint32_t kept, const bool masked, const bool drops,
                    const bool owns_keys) {
  float p[8][4];
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    int bit = 4 * n + e;
    if (masked && !(seen >> bit & 1)) c[n][e] = -INFINITY;
    c[n][e] = word_exp2(c[n][e]);
    p[n][e] = !drops || kept >> bit & 1 ? c[n][e] : 0;
  }
  if (owns_keys) async_operand(a, p);
}

/* c: dot products of Q and K; they become P, and a as async_exp has it. With softcap, d is awaited and becomes what P
 * multiplies in dS (`capped`: as the bias meets it); without, its products may still run. What is not seen has P = 0;
 * what the bias hides comes out as 0 or NaN. */
WORD void async_probs_options(float c[8][4], float d[8][4], uint32_t a[4][4], const async_step &step,
                              const async_terms &terms, const attend_problem &p, const attend_slice &s,
                              const async_options options, const bool capped, const bool owns_keys) {
  uint32_t seen = step.seen;
  bool full = window_full(step.window, 0, ASYNC_STEP, 16);
  if (options == ASYNC_ALL && terms.cap > 0) {
    word_products_wait(0);
    async_done(d, 8);
    async_d_probs(d, step, terms, owns_keys);
    UNROLLED
    for (int n = 0; n < 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      float t = tanhf(c[n][e] * terms.inner);
      c[n][e] = word_multiply_add(terms.cap, t, -async_of(step.lse, n, e, owns_keys));
      if (!capped) d[n][e] *= 1 - t * t;
    }
  } else {
    UNROLLED
    for (int n = 0; n < 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) c[n][e] = word_multiply_add(c[n][e], terms.unit, -async_of(step.lse, n, e, owns_keys));
  }
  if (terms.slope != 0) {
    int distance = step.i + (int)s.off - step.j, along = owns_keys ? 1 : -1;
    UNROLLED
    for (int n = 0; n < 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      int x = distance + along * (8 * n + e % 2 - e / 2 * 8);
      c[n][e] = word_multiply_add(-terms.slope, (float)(x < 0 ? -x : x), c[n][e]);
    }
  }
  if (!full) {
    UNROLLED
    for (int n = 0; n < 8; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!window_sees(step.window, lane_row() + 8 * (e >> 1), 8 * n + 2 * lane_column() + (e & 1)))
        seen &= ~(1u << (4 * n + e));
  }
  if (step.bias)
    async_bias_add(c, step.bias, step.bias_own, owns_keys);
  else if (options == ASYNC_ALL && s.bias.data) {
    UNROLLED
    for (int n = 0; n < 8; n += 2) {
      int64_t i = step.i + (owns_keys ? 8 * n : 0), j = step.j + (owns_keys ? 0 : 8 * n);
      gradient_add_bias(c + n, 2, seen >> 4 * n & 0xFF, full, p, s, i, j, owns_keys);
    }
  }
  if (s.mask.data || !full) {
    if (terms.drops)
      async_exp(c, a, seen, step.kept, true, true, owns_keys);
    else
      async_exp(c, a, seen, step.kept, true, false, owns_keys);
  } else if (terms.drops)
    async_exp(c, a, seen, step.kept, false, true, owns_keys);
  else
    async_exp(c, a, seen, step.kept, false, false, owns_keys);
}

/* d becomes dS, over the scale of dropout. */
WORD void async_d_scores_options(float d[8][4], const float c[8][4], const async_step &step, const async_terms &terms,
                                 const async_options options, const bool owns_keys) {
  if (!(options == ASYNC_ALL && terms.cap > 0)) async_d_probs(d, step, terms, owns_keys);
  UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) d[n][e] *= c[n][e];
}

#endif
