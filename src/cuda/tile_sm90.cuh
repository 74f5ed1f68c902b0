/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90 (the overlap is that of Shah et al. 2024): a group of
 * four warps owns 64 queries, the groups of a block share tiles of keys. While the tensor cores multiply the weights of
 * one tile with its values, the warps turn the scores of the next into weights. A block whose output came out NaN does
 * its keys again, carefully and one step after the other. */
#ifndef ATTEND_CUDA_TILE_SM90_CUH
#define ATTEND_CUDA_TILE_SM90_CUH

#include "fragment.cuh"
#include "tile_sm90.h"

/* What an entry point fixes: panels of 64 columns (1, 2) and keys of a tile (64, 128). */
struct sm90_kind {
  int panels, keys;
};

/* Of a lane's rows g and g + 8. `largest` is in units in which 1 is log 2 / unit. */
struct sm90_state {
  float largest[2], total[2], sum[16][4]; /* sum: [8 columns] */
};

/* What a lane has to know of its rows: the keys [from, to) that each sees, and those that all rows of the warp see. */
struct sm90_rows {
  int from[2], to[2], all_first, all_last;
};

/* Where the tiles lie: one of queries, two of keys, two of values. */
struct sm90_tiles {
  char *q, *k[2], *v[2];
};

/* Start copying rows first .. first + rows - 1 of a matrix. Those from `end` on become 0, and nothing of them is read.
 */
WORD void sm90_copy(char *tile, const int rows, const attend_matrix &m, int64_t first, int64_t end, int columns,
                    const int panels) {
  const int words = 8 * panels, step = SM90_THREADS / words;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  const char *from = m.data + 2 * ((first + row) * m.row) + 16 * word;
  char *to = tile + (word >> 3) * rows * 128;
  UNROLLED
  for (int n = 0; n < (rows + step - 1) / step; n++, row += step, from += 2 * step * m.row)
    if (rows % step == 0 || row < rows)
      word_copy_async(to + row * 128 + (((word ^ row) & 7) << 4), from, first + row < end && 8 * word < columns);
}

WORD void sm90_dots(float c[16][4], const char *q, const char *k, const sm90_kind kind) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < 4 * kind.panels; x++) {
    word_tile a = word_tile_at(q + (x >> 2) * SM90_QUERIES * 128 + 32 * (x & 3), 0);
    word_tile b = word_tile_at(k + (x >> 2) * kind.keys * 128 + 32 * (x & 3), 0);
    if (ELEMENT == TYPE_BF16)
      kind.keys == 64 ? word_dots_bf16_64(c, a, b, x) : word_dots_bf16_128(c, a, b, x);
    else
      kind.keys == 64 ? word_dots_f16_64(c, a, b, x) : word_dots_f16_128(c, a, b, x);
  }
  word_products_commit();
}

WORD void sm90_values(float c[16][4], const uint32_t a[8][4], const char *v, const sm90_kind kind) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < kind.keys / 16; x++) {
    word_tile b = word_tile_at(v + 2048 * x, 128 * kind.keys);
    if (ELEMENT == TYPE_BF16)
      kind.panels == 1 ? word_values_bf16_64(c, a[x], b) : word_values_bf16_128(c, a[x], b);
    else
      kind.panels == 1 ? word_values_f16_64(c, a[x], b) : word_values_f16_128(c, a[x], b);
  }
  word_products_commit();
}

/* Both of these wait until the numbers are there: c may be read. */
WORD void sm90_dots_done(float c[16][4], const bool values_run, const sm90_kind kind) {
  if (values_run)
    word_products_wait(1);
  else
    word_products_wait(0);
  UNROLLED
  for (int n = 0; n < kind.keys / 8; n++) word_products_done(c[n]);
}
WORD void sm90_values_done(float c[16][4], const sm90_kind kind) {
  word_products_wait(0);
  UNROLLED
  for (int n = 0; n < 8 * kind.panels; n++) word_products_done(c[n]);
}

/* Scores become weights; returns by which factors older sums shrink. */
WORD void sm90_weights(float rescale[2], float c[16][4], int k0, float unit, const sm90_rows &rows, sm90_state &state,
                       const sm90_kind kind) {
  if (k0 < rows.all_first || k0 + kind.keys > rows.all_last) {
    UNROLLED
    for (int n = 0; n < kind.keys / 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      int j = k0 + 8 * n + 2 * lane_column() + (e & 1);
      if (j < rows.from[e / 2] || j >= rows.to[e / 2]) c[n][e] = -INFINITY;
    }
  }
  UNROLLED
  for (int half = 0; half < 2; half++) {
    float before = state.largest[half], most = before, part[2] = {0, 0};
    UNROLLED
    for (int n = 0; n < kind.keys / 8; n++) most = word_max(word_max(c[n][2 * half], c[n][2 * half + 1]), most);
    most = word_max(most, word_shuffle_xor_f32(most, 1));
    most = word_max(most, word_shuffle_xor_f32(most, 2));
    float shift = most == -INFINITY ? 0 : most * unit;
    rescale[half] = word_exp2(word_multiply_add(before, unit, -shift));
    state.largest[half] = most;
    UNROLLED
    for (int n = 0; n < kind.keys / 8; n++) UNROLLED
    for (int e = 0; e < 2; e++) {
      float &x = c[n][2 * half + e];
      part[e] += x = word_exp2(word_multiply_add(x, unit, -shift));
    }
    state.total[half] = state.total[half] * rescale[half] + (part[0] + part[1]);
  }
}

WORD void sm90_shrink(sm90_state &state, const float rescale[2], const sm90_kind kind) {
  UNROLLED
  for (int n = 0; n < 8 * kind.panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) state.sum[n][e] *= rescale[e / 2];
}

WORD void sm90_pack(uint32_t a[8][4], const float c[16][4], const sm90_kind kind) {
  UNROLLED
  for (int x = 0; x < kind.keys / 16; x++) {
    a[x][0] = pack(c[2 * x][0], c[2 * x][1]), a[x][1] = pack(c[2 * x][2], c[2 * x][3]);
    a[x][2] = pack(c[2 * x + 1][0], c[2 * x + 1][1]), a[x][3] = pack(c[2 * x + 1][2], c[2 * x + 1][3]);
  }
}

WORD void sm90_begin(sm90_state &state, const sm90_kind kind) {
  UNROLLED
  for (int half = 0; half < 2; half++) state.largest[half] = -INFINITY, state.total[half] = 0;
  UNROLLED
  for (int n = 0; n < 8 * kind.panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) state.sum[n][e] = 0;
}

/* All keys of a block. Step t multiplies queries with the keys of tile t, and the weights of tile t - 1 with its
 * values; meanwhile the keys of tile t + 1 and the values of tile t arrive. */
WORD void sm90_keys(const attend_problem &p, const attend_slice &s, const sm90_tiles &tiles, const char *q,
                    int64_t first, int64_t last, float unit, const sm90_rows &rows, sm90_state &state,
                    const sm90_kind kind) {
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  float c[16][4] = {}, rescale[2];
  uint32_t a[8][4];
  sm90_begin(state, kind);
  sm90_copy(tiles.k[0], kind.keys, s.k, first, s.k_len, head_dim, kind.panels);
  word_copy_commit();
  int turn = 0;
  for (int64_t k0 = first; k0 < last; k0 += kind.keys, turn ^= 1) {
    int64_t next = k0 + kind.keys;
    word_copy_wait(0);
    word_show_shared();
    word_sync_block();
    if (next < last) sm90_copy(tiles.k[turn ^ 1], kind.keys, s.k, next, s.k_len, head_dim, kind.panels);
    sm90_copy(tiles.v[turn], kind.keys, s.v, k0, s.k_len, v_dim, kind.panels);
    word_copy_commit();
    sm90_dots(c, q, tiles.k[turn], kind);
    if (k0 > first) sm90_values(state.sum, a, tiles.v[turn ^ 1], kind);
    sm90_dots_done(c, k0 > first, kind);
    sm90_weights(rescale, c, (int)k0, unit, rows, state, kind);
    sm90_values_done(state.sum, kind);
    sm90_shrink(state, rescale, kind);
    sm90_pack(a, c, kind);
  }
  word_copy_wait(0);
  word_show_shared();
  word_sync_block();
  if (first < last) sm90_values(state.sum, a, tiles.v[turn ^ 1], kind);
  sm90_values_done(state.sum, kind);
}

WORD uint16_t *sm90_element(char *tile, int row, int column, const sm90_kind kind) {
  return (uint16_t *)(void *)(tile + (column >> 6) * kind.keys * 128 + row * 128 + (((column >> 3 ^ row) & 7) << 4)) +
         (column & 7);
}

/* Add the products with values that are NaN or Inf, element by element, only of pairs that see each other. */
WORD void sm90_spare(sm90_state &state, const float c[16][4], int k0, char *v, const sm90_rows &rows,
                     const sm90_kind kind) {
  int t = lane_column(), quad = (int)(threadIdx.x & 28);
  UNROLLED
  for (int n = 0; n < kind.keys / 8; n++)
    for (int r = 0; r < 8; r++) {
      float weight[2];
      UNROLLED
      for (int half = 0; half < 2; half++)
        weight[half] = word_f32_from_bits(
            word_shuffle(word_bits_from_f32(r & 1 ? c[n][2 * half + 1] : c[n][2 * half]), quad + r / 2));
      int j = 8 * n + r;
      UNROLLED
      for (int m = 0; m < 8 * kind.panels; m++) UNROLLED
      for (int e = 0; e < 4; e++) {
        float x = half_of(*sm90_element(v, j, 8 * m + 2 * t + (e & 1), kind), false);
        if (x - x != 0 && k0 + j >= rows.from[e / 2] && k0 + j < rows.to[e / 2]) state.sum[m][e] += weight[e / 2] * x;
      }
    }
}

/* The same where keys that a query may not see hold NaN or Inf. */
WORD void sm90_keys_careful(const attend_problem &p, const attend_slice &s, const sm90_tiles &tiles, const char *q,
                            int64_t first, int64_t last, float unit, const sm90_rows &rows, sm90_state &state,
                            const sm90_kind kind) {
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  char *k = tiles.k[0], *v = tiles.v[0];
  float c[16][4] = {}, rescale[2];
  uint32_t a[8][4];
  sm90_begin(state, kind);
  for (int64_t k0 = first; k0 < last; k0 += kind.keys) {
    word_sync_block();
    sm90_copy(k, kind.keys, s.k, k0, s.k_len, head_dim, kind.panels);
    sm90_copy(v, kind.keys, s.v, k0, s.k_len, v_dim, kind.panels);
    word_copy_commit();
    word_copy_wait(0);
    word_show_shared();
    word_sync_block();
    sm90_dots(c, q, k, kind);
    sm90_dots_done(c, false, kind);
    sm90_weights(rescale, c, (int)k0, unit, rows, state, kind);
    sm90_shrink(state, rescale, kind);
    sm90_spare(state, c, (int)k0, v, rows, kind);
    sm90_pack(a, c, kind);
    word_sync_block();
    for (int i = (int)threadIdx.x; i < 64 * kind.panels * kind.keys; i += SM90_THREADS) {
      uint16_t *x = (uint16_t *)(void *)v + i;
      float y = half_of(*x, false);
      if (y - y != 0) *x = 0;
    }
    word_show_shared();
    word_sync_block();
    sm90_values(state.sum, a, v, kind);
    sm90_values_done(state.sum, kind);
  }
}

WORD sm90_rows sm90_rows_of(const attend_problem &p, const attend_slice &s, int64_t q0) {
  sm90_rows r = {{0, 0}, {0, 0}, 0, 0};
  int64_t first, last;
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = q0 + 8 * half + lane_row();
    if (i >= s.q_len) continue;
    attend_visible_range(&p, &s, i, &first, &last);
    r.from[half] = (int)first, r.to[half] = (int)last;
  }
  if (q0 >= s.q_len) return r;
  attend_visible_range(&p, &s, q0, &first, &last); /* both ends grow with the query */
  r.all_last = (int)last;
  attend_visible_range(&p, &s, q0 + 16 < s.q_len ? q0 + 15 : s.q_len - 1, &first, &last);
  r.all_first = (int)first;
  return r;
}

WORD void sm90_forward(const cuda_call &call, const sm90_kind kind) {
  DYNAMIC_SHARED_TILES(memory);
  const attend_problem &p = call.problem;
  uint32_t blocks = (uint32_t)((p.q_len + SM90_QUERIES - 1) / SM90_QUERIES);
  int64_t key_rows, unused, first, last;
  uint32_t pair = blockIdx.x / blocks, block = blocks - 1 - blockIdx.x % blocks; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / (uint32_t)p.heads, pair % (uint32_t)p.heads, key_rows);
  int64_t block_first = (int64_t)block * SM90_QUERIES, q0 = block_first + (threadIdx.x >> 5) * 16;
  if (block_first >= s.q_len) return;
  int64_t top = block_first + SM90_QUERIES < s.q_len ? block_first + SM90_QUERIES - 1 : s.q_len - 1;
  attend_visible_range(&p, &s, block_first, &first, &unused);
  attend_visible_range(&p, &s, top, &unused, &last);
  first = first / kind.keys * kind.keys;

  const int panel = 128 * kind.panels;
  char *stages = memory + panel * SM90_QUERIES;
  const int bytes = panel * kind.keys;
  sm90_tiles tiles = {memory, {stages, stages + bytes}, {stages + 2 * bytes, stages + 3 * bytes}};
  const char *q = memory + 8192 * (threadIdx.x >> 7);
  const float unit = (float)p.scale * LOG2_E;
  sm90_rows rows = sm90_rows_of(p, s, q0);
  sm90_copy(tiles.q, SM90_QUERIES, s.q, block_first, s.q_len, (int)p.head_dim, kind.panels);
  sm90_state state;
  sm90_keys(p, s, tiles, q, first, last, unit, rows, state, kind);
  float sum = 0;
  UNROLLED
  for (int n = 0; n < 8 * kind.panels; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum += state.sum[n][e] * 0; /* NaN of Inf too: then once more, in vain */
  if (word_sync_block_any(sum != sum)) sm90_keys_careful(p, s, tiles, q, first, last, unit, rows, state, kind);

  UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = q0 + 8 * half + lane_row();
    float total = quad_sum(state.total[half]), largest = state.largest[half];
    float factor = total == 0 ? 0 : word_reciprocal(total);
    if (i >= s.q_len) continue;
    char *row = s.out.data + 2 * (i * s.out.row + 2 * lane_column());
    UNROLLED
    for (int n = 0; n < 8 * kind.panels; n++)
      if (8 * n < (int)p.v_dim)
        *(uint32_t *)(void *)(row + 16 * n) =
            pack(state.sum[n][2 * half] * factor, state.sum[n][2 * half + 1] * factor);
    if (s.lse && lane_column() == 0)
      ((float *)(void *)s.lse)[i * s.lse_row] = total == 0 ? -INFINITY : largest * unit * LN_2 + logf(total);
  }
}

#endif
