/* SPDX-License-Identifier: MIT */
/* Backward in tiles, whatever the products: lse and delta in the workspace, who sees whom, scores and their gradients
 * in fragments of 16 x 8. Included once for each element type. */
#ifndef ATTEND_CUDA_GRADIENT_SCORES_CUH
#define ATTEND_CUDA_GRADIENT_SCORES_CUH

#include "gradient_options.cuh"
#include "tile_backward.h"

/* No query sees anything where lse is this: exp2(x - it) is 0, whatever x. */
#define NO_LSE 3.0e38f

/* ---- lse in units of log 2, and delta_i = <dO_i, o_i> - dlse_i, in the workspace --------------------------------- */

WORD int64_t gradient_padded(const attend_problem &p) {
  return (p.q_len + GRADIENT_PAD - 1) / GRADIENT_PAD * GRADIENT_PAD;
}
WORD float *gradient_values(const cuda_call &call, int64_t b, int64_t h) {
  return (float *)call.workspace + (b * call.problem.heads + h) * gradient_padded(call.problem);
}
WORD int64_t gradient_delta_at(const attend_problem &p) { return p.batch * p.heads * gradient_padded(p); }

/* ---- Who sees whom ----------------------------------------------------------------------------------------------- */

/* Rows are what a warp owns, columns what is staged. Query i sees key j iff least <= i - j <= most (and both exist). */
struct gradient_band {
  int least, most;
};

static const int GRADIENT_FAR = 1 << 30;

WORD int gradient_clamp(int64_t x) {
  return (int)(x < -GRADIENT_FAR ? -GRADIENT_FAR : x > GRADIENT_FAR ? GRADIENT_FAR : x);
}

WORD gradient_band band_of(const attend_problem &p, const attend_slice &s) {
  int64_t right = p.causal              ? 0
                  : p.window_right >= 0 ? (int64_t)gradient_clamp(p.window_right)
                                        : 2 * (int64_t)GRADIENT_FAR;
  int64_t left = p.window_left >= 0 ? (int64_t)gradient_clamp(p.window_left) : 2 * (int64_t)GRADIENT_FAR;
  gradient_band band = {gradient_clamp(-s.off - right), gradient_clamp(left - s.off)};
  return band;
}

/* The same for a warp and its stage: `least` <= column - row <= `most`, and how many rows and columns exist. */
struct gradient_window {
  int least, most, rows, columns;
};

/* Where the warp's first row is `row`, and the first staged one `column`. */
WORD gradient_window window_of(const gradient_band &band, int row, int row_end, int column, int column_end,
                               const bool owns_keys) {
  gradient_window w;
  int between = owns_keys ? column - row : row - column;
  w.least = owns_keys ? band.least - between : between - band.most;
  w.most = owns_keys ? band.most - between : between - band.least;
  w.rows = row_end - row, w.columns = column_end - column;
  return w;
}

/* Does no row see any of the 16 columns from `at` on? Does every row see the `count` columns from there on? */
WORD bool window_empty(const gradient_window &w, int at, const int rows) {
  return at + 15 < w.least || at - (rows - 1) > w.most || w.rows <= 0 || at >= w.columns;
}
WORD bool window_full(const gradient_window &w, int at, const int count, const int rows) {
  return at - (rows - 1) >= w.least && at + count - 1 <= w.most && w.rows >= rows && at + count <= w.columns;
}

/* Do row r and column col of a window exist and see each other? */
WORD bool window_sees(const gradient_window &w, int r, int col) {
  return col - r >= w.least && col - r <= w.most && r < w.rows && col < w.columns;
}

/* c: dot products of Q and K, d: of dO and V, for 16 rows (tile m of the warp) and 8 columns from `at` on, without
 * options. They become P and dS. lse[] and delta[]: of columns e, or of rows g + 8 half. `full`: all pairs exist and
 * see each other. Returns who sees whom, a bit for each element. */
WORD uint32_t gradient_scores(float c[4], float d[4], const float lse[2], const float delta[2], int m, int at,
                              const bool full, const gradient_window &w, const attend_problem &p,
                              const bool owns_keys) {
  const float unit = (float)p.scale * LOG2_E;
  uint32_t seen = 0;
  UNROLLED
  for (int e = 0; e < 4; e++) {
    int value = owns_keys ? e & 1 : e >> 1;
    bool sees = full || (window_sees(w, 16 * m + lane_row() + 8 * (e >> 1), at + 2 * lane_column() + (e & 1)) &&
                         lse[value] != NO_LSE);
    float prob = word_exp2(c[e] * unit - lse[value]);
    c[e] = sees ? prob : 0, d[e] = sees ? prob * (d[e] - delta[value]) : 0;
    if (sees) seen |= 1u << e;
  }
  return seen;
}

/* The same for 16 rows and 8 `count` columns, with options; c becomes P keep (not yet times 1/(1-dropout)). lse[] and
 * delta[]: of columns 8n + e % 2, or of rows e / 2. row, column: of the first element of the window. own: the lane's
 * first row in the block. */
WORD uint32_t gradient_general(float c[][4], float d[][4], const int count, const float *lse, const float *delta,
                               int at, const gradient_window &w, const attend_problem &p, const attend_slice &s,
                               int row, int column, int own, const gradient_bits &bits, const int words,
                               const bool capped, const bool owns_keys) {
  int r = lane_row(), col = at + 2 * lane_column();
  uint32_t all = (uint32_t)((1ull << 4 * count) - 1), seen = all, kept = all;
  bool full = window_full(w, at, 8 * count, 16);
  if (p.dropout_threshold) {
    kept = gradient_lane_bits(bits.kept, count, own, at, words, owns_keys);
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) d[n][e] = kept >> (4 * n + e) & 1 ? d[n][e] * (float)p.dropout_scale : 0;
  }
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) d[n][e] -= delta[owns_keys ? 8 * n + e % 2 : e / 2];
  if (!full) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!window_sees(w, r + 8 * (e >> 1), col + 8 * n + (e & 1))) seen &= ~(1u << (4 * n + e));
  }
  int64_t i = owns_keys ? column + col : row + r, j = owns_keys ? row + r : column + col;
  seen = gradient_add_options(c, d, count, seen, full, p, s, i, j, capped, owns_keys);
  if (s.mask.data) seen &= gradient_lane_bits(bits.mask, count, own, at, words, owns_keys);
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    float value = lse[owns_keys ? 8 * n + e % 2 : e / 2];
    if (value == NO_LSE) seen &= ~(1u << (4 * n + e));
    c[n][e] = word_exp2(c[n][e] - value), d[n][e] *= c[n][e];
  }
  if (seen != all) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!(seen >> (4 * n + e) & 1)) c[n][e] = d[n][e] = 0;
  }
  if (p.dropout_threshold) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!(kept >> (4 * n + e) & 1)) c[n][e] = 0;
  }
  return seen;
}

/* ---- dSink ------------------------------------------------------------------------------------------------------- */

/* d_sink[h] = -sum exp(sink - lse) delta: one block a head. */
WORD void gradient_sink(const cuda_call &call) {
  __shared__ float part[GRADIENT_SINK_THREADS];
  const attend_problem &p = call.problem;
  const attend_layout &l = p.layout[OPERAND_D_SINK];
  int64_t h = blockIdx.x;
  float sum = 0;
  for (int64_t b = 0; b < p.batch; b++) {
    int64_t key_rows;
    attend_slice s = slice_make(p, call.operands, b, h, key_rows);
    if (s.sink == -INFINITY) continue;
    const float *lse = gradient_values(call, b, h), *delta = lse + gradient_delta_at(p);
    for (int64_t i = threadIdx.x; i < s.q_len; i += GRADIENT_SINK_THREADS)
      sum -= word_exp2((float)s.sink * LOG2_E - lse[i]) * delta[i];
  }
  part[threadIdx.x] = sum;
  for (int half = GRADIENT_SINK_THREADS / 2; half; half /= 2) {
    word_sync_block();
    if ((int)threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) put_element(p, (char *)call.operands.data[OPERAND_D_SINK], h * l.head, l.type, part[0]);
}

#endif
