/* SPDX-License-Identifier: MIT */
/* Forward in tiles: a warp owns 32 (or 16) queries of one (sequence, head), holds them and their output in registers,
 * and goes through the keys they see, 16 at a time, with the online softmax (Milakov & Gimelshein 2018; Dao et al.
 * 2022). Blocks of K and V come to registers as they are (fragment.cuh); the warps of a block read the same keys one
 * after the other, so all but the first find them in L1, and no warp waits for another: nobody pays for a causal
 * diagonal but the warp that is at it. A warp whose output came out NaN does its keys again, carefully. */
#ifndef ATTEND_CUDA_TILE_FORWARD_CUH
#define ATTEND_CUDA_TILE_FORWARD_CUH

#include "fragment.cuh"
#include "tile.h"

/* What an entry point fixes: tiles of 16 rows (2, 1), chunks of 64 columns (1, 2), and whether all options are there.
 */
struct tile_kind {
  int tiles, chunks;
  bool general;
};

struct tile_state {
  float largest[2][2], total[2][2], sum[2][2][8][4]; /* [tile][half]; [tile][chunk] */
};

WORD void tile_load(block x[2][2], const attend_matrix &m, int64_t k0, int64_t end, int columns, const tile_kind kind) {
  UNROLLED
  for (int n = 0; n < 2; n++) {
    int64_t j = k0 + 8 * n + lane_row();
    UNROLLED
    for (int c = 0; c < kind.chunks; c++)
      x[c][n] = block_load_again(m.data + 2 * (j * m.row + 64 * c), j < end, columns - 64 * c);
  }
}

/* Scores (in units of log 2) of rows (m, half) from their dot products; returns which are seen, bit 2n + e. */
WORD uint32_t tile_finish(float c[2][4], const int half, const attend_problem &p, const attend_slice &s, int64_t i,
                          int64_t k0, const int64_t visible[2], bool inside, const tile_kind kind) {
  float unit = (float)p.scale * LOG2_E;
  uint32_t seen = inside && !kind.general ? 0xF : 0;
  UNROLLED
  for (int n = 0; n < 2; n++) UNROLLED
  for (int e = 0; e < 2; e++) {
    float &x = c[n][2 * half + e];
    if (!kind.general) x *= unit;
    if (!kind.general && inside) continue;
    int64_t j = k0 + 8 * n + 2 * lane_column() + e;
    bool sees = j >= visible[0] && j < visible[1];
    if (kind.general) {
      sees = sees && unmasked(p, s, i, j);
      if (sees) x = score_of(p, s, i, j, x).biased * LOG2_E;
    }
    if (sees) seen |= 1u << (2 * n + e);
    x = sees ? x : -INFINITY;
  }
  return seen;
}

/* Weights of what is dropped become 0: 16 keys from k0 on take two words of one draw. */
WORD void tile_drop(float c[2][4], const int half, const attend_problem &p, const attend_slice &s, int64_t i,
                    int64_t k0) {
  int64_t block_number = 4 * (k0 >> 5) + lane_column();
  uint32_t counter[4] = {(uint32_t)block_number, (uint32_t)(block_number >> 32), (uint32_t)i, (uint32_t)(i >> 32)};
  uint32_t word[4];
  attend_philox(counter, s.dropout_key, word);
  UNROLLED
  for (int n = 0; n < 2; n++) {
    uint32_t draw = k0 & 16 ? word[2 + n] : word[n];
    if ((draw & 0xFFFF) < p.dropout_threshold) c[n][2 * half] *= 0;
    if (draw >> 16 < p.dropout_threshold) c[n][2 * half + 1] *= 0;
  }
}

WORD void tile_keys(const attend_problem &p, const attend_slice &s, const block q[2][4], int64_t q0, int64_t first,
                    int64_t last, bool careful, tile_state &state, const tile_kind kind) {
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  int64_t visible[2][2][2], inside_first = 0, inside_last = INT64_MAX;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = q0 + 16 * m + 8 * half + lane_row();
    visible[m][half][0] = visible[m][half][1] = 0;
    if (i < s.q_len) {
      attend_visible_range(&p, &s, i, &visible[m][half][0], &visible[m][half][1]);
      if (visible[m][half][0] > inside_first) inside_first = visible[m][half][0];
      if (visible[m][half][1] < inside_last) inside_last = visible[m][half][1];
    }
    state.largest[m][half] = kind.general ? (float)s.sink * LOG2_E : -INFINITY;
    state.total[m][half] = 0;
    UNROLLED
    for (int c = 0; c < kind.chunks; c++) UNROLLED
    for (int n = 0; n < 8; n++) state.sum[m][c][n][2 * half] = state.sum[m][c][n][2 * half + 1] = 0;
  }
  block k[2][2], v[2][2];
  tile_load(k, s.k, first, s.k_len, head_dim, kind);
  tile_load(v, s.v, first, s.k_len, v_dim, kind);
  for (int64_t k0 = first; k0 < last; k0 += TILE_KEYS) {
    float c[2][2][4] = {};
    UNROLLED
    for (int m = 0; m < kind.tiles; m++) UNROLLED
    for (int n = 0; n < 2; n++) UNROLLED
    for (int x = 0; x < kind.chunks; x++) block_dots(c[m][n], q[x][2 * m], q[x][2 * m + 1], k[x][n]);
    int64_t next = k0 + TILE_KEYS < last ? k0 + TILE_KEYS : s.k_len; /* past the end nothing is read */
    tile_load(k, s.k, next, s.k_len, head_dim, kind);
    bool inside = !word_any(k0 < inside_first || k0 + TILE_KEYS > inside_last);
    uint32_t a[2][4], seen[2][2];
    UNROLLED
    for (int m = 0; m < kind.tiles; m++) {
      float rescale[2];
      bool changed = false;
      UNROLLED
      for (int half = 0; half < 2; half++) {
        int64_t i = q0 + 16 * m + 8 * half + lane_row();
        seen[m][half] = tile_finish(c[m], half, p, s, i, k0, visible[m][half], inside, kind);
        float before = state.largest[m][half], most = before, part = 0;
        UNROLLED
        for (int n = 0; n < 2; n++) most = max_of(max_of(c[m][n][2 * half], c[m][n][2 * half + 1]), most);
        most = quad_max(most);
        float shift = most == -INFINITY ? 0 : most;
        rescale[half] = before == most ? 1 : word_exp2(before - shift);
        changed |= before != most;
        state.largest[m][half] = most;
        UNROLLED
        for (int n = 0; n < 2; n++) UNROLLED
        for (int e = 0; e < 2; e++) part += c[m][n][2 * half + e] = word_exp2(c[m][n][2 * half + e] - shift);
        state.total[m][half] = state.total[m][half] * rescale[half] + part;
        if (kind.general && p.dropout_threshold) tile_drop(c[m], half, p, s, i, k0);
      }
      a[m][0] = pack(c[m][0][0], c[m][0][1]), a[m][1] = pack(c[m][0][2], c[m][0][3]);
      a[m][2] = pack(c[m][1][0], c[m][1][1]), a[m][3] = pack(c[m][1][2], c[m][1][3]);
      if (word_any(changed)) {
        UNROLLED
        for (int x = 0; x < kind.chunks; x++) UNROLLED
        for (int n = 0; n < 8; n++) UNROLLED
        for (int e = 0; e < 4; e++) state.sum[m][x][n][e] *= rescale[e / 2];
      }
    }
    UNROLLED
    for (int x = 0; x < kind.chunks; x++) {
      block low = block_transpose(v[x][0]), high = block_transpose(v[x][1]);
      UNROLLED
      for (int m = 0; m < kind.tiles; m++)
        if (careful) {
          uint32_t allowed[4];
          allowed_pairs(allowed, seen[m][0], seen[m][1]);
          block_product_careful(state.sum[m][x], a[m], allowed, low, high);
        } else
          block_product(state.sum[m][x], a[m], low, high);
    }
    tile_load(v, s.v, next, s.k_len, v_dim, kind);
  }
}

WORD void tile_forward(const cuda_call &call, const tile_kind kind) {
  const attend_problem &p = call.problem;
  const int rows = 16 * kind.tiles;
  int64_t tiles = (p.q_len + rows * TILE_WARPS - 1) / (rows * TILE_WARPS), key_rows, unused, first, last;
  int64_t pair = blockIdx.x / (uint32_t)tiles, tile = tiles - 1 - blockIdx.x % (uint32_t)tiles; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
  int64_t q0 = (tile * TILE_WARPS + (threadIdx.x >> 5)) * rows;
  if (q0 >= s.q_len) return;
  int64_t top = q0 + rows < s.q_len ? q0 + rows - 1 : s.q_len - 1;
  attend_visible_range(&p, &s, q0, &first, &unused);
  attend_visible_range(&p, &s, top, &unused, &last);
  first = first / 32 * 32;

  block q[2][4];
  UNROLLED
  for (int n = 0; n < 2 * kind.tiles; n++) {
    int64_t i = q0 + 8 * n + lane_row();
    UNROLLED
    for (int c = 0; c < kind.chunks; c++)
      q[c][n] = block_load(s.q.data + 2 * (i * s.q.row + 64 * c), i < s.q_len, (int)p.head_dim - 64 * c);
  }
  tile_state state;
  for (bool careful = false;; careful = true) {
    tile_keys(p, s, q, q0, first, last, careful, state, kind);
    bool nan = false;
    UNROLLED
    for (int m = 0; m < kind.tiles; m++) UNROLLED
    for (int c = 0; c < kind.chunks; c++) nan |= block_any_nan(state.sum[m][c]);
    if (careful || !nan) break;
  }
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = q0 + 16 * m + 8 * half + lane_row();
    float total = quad_sum(state.total[m][half]), largest = state.largest[m][half];
    if (kind.general && s.sink > -INFINITY) total += word_exp2((float)s.sink * LOG2_E - largest);
    float factor = total == 0 ? 0 : word_reciprocal(total);
    if (kind.general) factor *= (float)p.dropout_scale;
    UNROLLED
    for (int c = 0; c < kind.chunks; c++)
      block_store(s.out.data + 2 * (i * s.out.row + 64 * c), i < s.q_len, (int)p.v_dim - 64 * c,
                  block_of(state.sum[m][c], half, factor), false);
    if (s.lse && lane_column() == 0 && i < s.q_len)
      ((float *)(void *)s.lse)[i * s.lse_row] = total == 0 ? -INFINITY : largest * LN_2 + logf(total);
  }
}

#endif
