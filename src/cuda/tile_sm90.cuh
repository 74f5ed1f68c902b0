/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90, with the division of work of Shah et al. 2024: a group
 * of four warps owns 64 queries, the groups of a block share tiles of keys, and one more group copies these. A group
 * multiplies the weights of one tile with its values while it turns the scores of the next into weights; and the groups
 * take turns, so that one computes weights while the tensor cores multiply for another. A block whose output came out
 * NaN does its keys again, carefully and one step after the other. */
#ifndef ATTEND_CUDA_TILE_SM90_CUH
#define ATTEND_CUDA_TILE_SM90_CUH

#include "fragment.cuh"
#include "tile_sm90.h"

/* What an entry point fixes: panels of 64 columns (1, 2), keys of a tile, groups, places for tiles of keys and of
 * values. */
struct sm90_kind {
  int panels, keys, groups, stages;
};

/* Of a lane's rows g and g + 8. `largest` is in units in which 1 is log 2 / unit. */
struct sm90_state {
  float largest[2], total[2], sum[16][4]; /* sum: [8 columns] */
};

/* What a lane has to know of its rows: the keys [from, to) that each sees, and those that all rows of the warp see. */
struct sm90_rows {
  int from[2], to[2], all_first, all_last;
};

/* Shared memory: one tile of queries, the places for tiles of keys and of values, and barriers: a place is full, a
 * place is free again, a group has its turn. */
struct sm90_shared {
  char *q, *k, *v;
  uint64_t *k_full, *v_full, *k_free, *v_free, *turn;
  uint32_t *bad; /* a NaN came out */
};
WORD sm90_shared sm90_shared_of(char *memory, const sm90_kind kind) {
  const int row = 128 * kind.panels, q = 64 * kind.groups * row, tiles = kind.stages * kind.keys * row;
  uint64_t *b = (uint64_t *)(void *)(memory + q + 2 * tiles);
  const int n = kind.stages;
  sm90_shared m = {memory,    memory + q, memory + q + tiles,
                   b,         b + n,      b + 2 * n,
                   b + 3 * n, b + 4 * n,  (uint32_t *)(void *)(b + 4 * n + kind.groups)};
  return m;
}
WORD void sm90_shared_begin(const sm90_shared &m, const sm90_kind kind) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kind.stages; i++) {
      word_phase_init(m.k_full + i, 128), word_phase_init(m.v_full + i, 128);
      word_phase_init(m.k_free + i, 4 * kind.groups), word_phase_init(m.v_free + i, 4 * kind.groups);
    }
    for (int i = 0; i < kind.groups; i++) word_phase_init(m.turn + i, 4);
    *m.bad = 0;
  }
  word_sync_block();
}

/* The keys [first, last) that a block sees, in tiles. */
struct sm90_range {
  int64_t first;
  int tiles;
};

/* Start copying rows first .. first + rows - 1 of a matrix by `threads` threads. Those from `end` on become 0, and
 * nothing of them is read. */
WORD void sm90_copy(char *tile, const int rows, const attend_matrix &m, int64_t first, int64_t end, int columns,
                    int thread, const int threads, const sm90_kind kind) {
  const int words = 8 * kind.panels, step = threads / words;
  int word = thread % words, row = thread / words;
  const char *from = m.data + 2 * ((first + row) * m.row) + 16 * word;
  char *to = tile + (word >> 3) * rows * 128;
  int valid = first + rows <= end ? rows : end > first ? (int)(end - first) : 0;
  if (8 * word >= columns) valid = 0;
  UNROLLED
  for (int n = 0; n < (rows + step - 1) / step; n++, row += step, from += 2 * step * m.row)
    if (rows % step == 0 || row < rows) word_copy_async(to + row * 128 + (((word ^ row) & 7) << 4), from, row < valid);
}

/* All copies of a block, by the last group: queries, then keys always one tile ahead of values. A tile is shown when
 * its copy has arrived, which is looked at after the next was started. */
WORD void sm90_copies(const attend_problem &p, const attend_slice &s, const sm90_shared &m, int64_t block_first,
                      const sm90_range &range, const sm90_kind kind) {
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, bytes = 128 * kind.panels * kind.keys;
  int thread = (int)threadIdx.x & 127;
  sm90_copy(m.q, 64 * kind.groups, s.q, block_first, s.q_len, head_dim, thread, 128, kind);
  sm90_copy(m.k, kind.keys, s.k, range.first, s.k_len, head_dim, thread, 128, kind);
  word_copy_commit();
  uint64_t *arriving = m.k_full;
  int64_t k0 = range.first;
  for (int t = 0, place = 0, parity = 1; t < range.tiles; t++, k0 += kind.keys) {
    int next = place + 1 == kind.stages ? 0 : place + 1, next_parity = next ? parity : parity ^ 1;
    if (t + 1 < range.tiles) {
      word_phase_wait(m.k_free + next, (uint32_t)next_parity);
      sm90_copy(m.k + next * bytes, kind.keys, s.k, k0 + kind.keys, s.k_len, head_dim, thread, 128, kind);
      word_copy_commit();
      word_copy_wait(1);
      word_show_shared();
      word_phase_arrive(arriving);
      arriving = m.k_full + next;
    }
    word_phase_wait(m.v_free + place, (uint32_t)parity);
    sm90_copy(m.v + place * bytes, kind.keys, s.v, k0, s.k_len, v_dim, thread, 128, kind);
    word_copy_commit();
    word_copy_wait(1);
    word_show_shared();
    word_phase_arrive(arriving);
    arriving = m.v_full + place;
    place = next, parity = next_parity;
  }
  word_copy_wait(0);
  word_show_shared();
  word_phase_arrive(arriving);
}

WORD void sm90_dots(float c[16][4], const char *q, const char *k, const sm90_kind kind) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < 4 * kind.panels; x++) {
    word_tile a = word_tile_at(q + (x >> 2) * 64 * kind.groups * 128 + 32 * (x & 3), 0);
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

/* Weights are there before what follows: they must not be left until the products with values are. */
WORD void sm90_weights_done(float c[16][4], const sm90_kind kind) {
  UNROLLED
  for (int n = 0; n < kind.keys / 8; n++) word_products_done(c[n]);
}

WORD void sm90_arrive(uint64_t *barrier) {
  word_sync_warp();
  if ((threadIdx.x & 31) == 0) word_phase_arrive(barrier);
}
WORD void sm90_await_turn(const sm90_shared &m, int group, int t) {
  word_phase_wait(m.turn + group, (uint32_t)(t + (group == 0)) & 1);
}
WORD void sm90_pass_turn(const sm90_shared &m, int group, const sm90_kind kind) {
  sm90_arrive(m.turn + (group + 1 == kind.groups ? 0 : group + 1));
}

/* How many of a block's tiles a group sees: under causal, the first groups not the last. */
WORD int sm90_tiles_of(const attend_problem &p, const attend_slice &s, int64_t group_first, const sm90_range &range,
                       const sm90_kind kind) {
  int64_t first, last;
  if (group_first >= s.q_len) return 0;
  attend_visible_range(&p, &s, group_first + 64 < s.q_len ? group_first + 63 : s.q_len - 1, &first, &last);
  return last > range.first ? (int)((last - range.first + kind.keys - 1) / kind.keys) : 0;
}

/* The first `tiles` tiles of a block, those that the group sees; the others it lets pass. Step t multiplies queries
 * with the keys of tile t, and the weights of tile t - 1 with its values. The wait for the keys of tile t + 1 stands
 * between weights and the wait for products with values because there has to be a branch: without one, ptxas
 * (CUDA 13.0) waits for these products before it computes the weights. */
WORD void sm90_keys(const sm90_shared &m, const char *q, const sm90_range &range, int tiles, float unit,
                    const sm90_rows &rows, sm90_state &state, const sm90_kind kind) {
  const int bytes = 128 * kind.panels * kind.keys;
  int group = (int)threadIdx.x >> 7, k0 = (int)range.first;
  float c[16][4], rescale[2];
  uint32_t a[8][4];
  int t = 0, place = 0, parity = 0;
  sm90_begin(state, kind);
  if (tiles) {
    word_phase_wait(m.k_full, 0);
    sm90_await_turn(m, group, 0);
    sm90_dots(c, q, m.k, kind);
    sm90_pass_turn(m, group, kind);
    sm90_dots_done(c, false, kind);
    sm90_arrive(m.k_free);
    sm90_weights(rescale, c, k0, unit, rows, state, kind);
    sm90_weights_done(c, kind);
    sm90_pack(a, c, kind);
    int before = 0, before_parity = 0;
    place = 1;
    if (tiles > 1) word_phase_wait(m.k_full + 1, 0);
    for (t = 1; t < tiles; t++) {
      k0 += kind.keys;
      sm90_await_turn(m, group, t);
      sm90_dots(c, q, m.k + place * bytes, kind);
      word_phase_wait(m.v_full + before, (uint32_t)before_parity);
      sm90_values(state.sum, a, m.v + before * bytes, kind);
      sm90_pass_turn(m, group, kind);
      sm90_dots_done(c, true, kind);
      sm90_arrive(m.k_free + place);
      sm90_weights(rescale, c, k0, unit, rows, state, kind);
      sm90_weights_done(c, kind);
      int next = place + 1 == kind.stages ? 0 : place + 1, next_parity = next ? parity : parity ^ 1;
      if (t + 1 < tiles) word_phase_wait(m.k_full + next, (uint32_t)next_parity);
      sm90_values_done(state.sum, kind);
      sm90_arrive(m.v_free + before);
      sm90_shrink(state, rescale, kind);
      sm90_pack(a, c, kind);
      before = place, before_parity = parity, place = next, parity = next_parity;
    }
    word_phase_wait(m.v_full + before, (uint32_t)before_parity);
    sm90_values(state.sum, a, m.v + before * bytes, kind);
    sm90_values_done(state.sum, kind);
    sm90_arrive(m.v_free + before);
  }
  for (; t < range.tiles; t++) {
    word_phase_wait(m.k_full + place, (uint32_t)parity);
    sm90_await_turn(m, group, t);
    sm90_pass_turn(m, group, kind);
    sm90_arrive(m.k_free + place);
    word_phase_wait(m.v_full + place, (uint32_t)parity);
    sm90_arrive(m.v_free + place);
    if (++place == kind.stages) place = 0, parity ^= 1;
  }
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

/* The same where keys that a query may not see hold NaN or Inf; the groups copy themselves. */
WORD void sm90_keys_careful(const attend_problem &p, const attend_slice &s, const sm90_shared &m, const char *q,
                            const sm90_range &range, float unit, const sm90_rows &rows, sm90_state &state,
                            const sm90_kind kind) {
  const int threads = 128 * kind.groups, thread = (int)threadIdx.x;
  float c[16][4], rescale[2];
  uint32_t a[8][4];
  sm90_begin(state, kind);
  int64_t k0 = range.first;
  for (int t = 0; t < range.tiles; t++, k0 += kind.keys) {
    word_sync_team(0, threads);
    sm90_copy(m.k, kind.keys, s.k, k0, s.k_len, (int)p.head_dim, thread, threads, kind);
    sm90_copy(m.v, kind.keys, s.v, k0, s.k_len, (int)p.v_dim, thread, threads, kind);
    word_copy_commit();
    word_copy_wait(0);
    word_show_shared();
    word_sync_team(0, threads);
    sm90_dots(c, q, m.k, kind);
    sm90_dots_done(c, false, kind);
    sm90_weights(rescale, c, (int)k0, unit, rows, state, kind);
    sm90_shrink(state, rescale, kind);
    sm90_spare(state, c, (int)k0, m.v, rows, kind);
    sm90_pack(a, c, kind);
    word_sync_team(0, threads);
    for (int i = thread; i < 64 * kind.panels * kind.keys; i += threads) {
      uint16_t *x = (uint16_t *)(void *)m.v + i;
      float y = half_of(*x, false);
      if (y - y != 0) *x = 0;
    }
    word_show_shared();
    word_sync_team(0, threads);
    sm90_values(state.sum, a, m.v, kind);
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

WORD void sm90_store(const attend_problem &p, const attend_slice &s, int64_t q0, float unit, const sm90_state &state,
                     const sm90_kind kind) {
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

WORD void sm90_forward(const cuda_call &call, const sm90_kind kind) {
  DYNAMIC_SHARED_TILES(memory);
  const attend_problem &p = call.problem;
  const int queries = 64 * kind.groups;
  uint32_t blocks = (uint32_t)((p.q_len + queries - 1) / queries);
  int64_t key_rows, unused, first, last;
  uint32_t pair = blockIdx.x / blocks, block = blocks - 1 - blockIdx.x % blocks; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / (uint32_t)p.heads, pair % (uint32_t)p.heads, key_rows);
  int64_t block_first = (int64_t)block * queries;
  if (block_first >= s.q_len) return;
  int64_t top = block_first + queries < s.q_len ? block_first + queries - 1 : s.q_len - 1;
  attend_visible_range(&p, &s, block_first, &first, &unused);
  attend_visible_range(&p, &s, top, &unused, &last);
  first = first / kind.keys * kind.keys;
  sm90_range range = {first, last > first ? (int)((last - first + kind.keys - 1) / kind.keys) : 0};
  const sm90_shared m = sm90_shared_of(memory, kind);
  sm90_shared_begin(m, kind);

  int group = (int)threadIdx.x >> 7;
  if (group == kind.groups) {
    if (kind.panels == 1)
      word_registers_give(SM90_NARROW_COPYING);
    else
      word_registers_give(SM90_WIDE_COPYING);
    if (range.tiles) sm90_copies(p, s, m, block_first, range, kind);
  } else {
    if (kind.panels == 1)
      word_registers_take(SM90_NARROW_COMPUTING);
    else
      word_registers_take(SM90_WIDE_COMPUTING);
    const char *q = m.q + 8192 * group;
    int64_t q0 = block_first + ((int)threadIdx.x >> 5) * 16;
    const float unit = (float)p.scale * LOG2_E;
    sm90_rows rows = sm90_rows_of(p, s, q0);
    sm90_state state;
    if (range.tiles) {
      sm90_keys(m, q, range, sm90_tiles_of(p, s, block_first + 64 * group, range, kind), unit, rows, state, kind);
      float sum = 0;
      UNROLLED
      for (int n = 0; n < 8 * kind.panels; n++) UNROLLED
      for (int e = 0; e < 4; e++) sum += state.sum[n][e] * 0; /* NaN of Inf too: then once more, in vain */
      if (sum != sum) *m.bad = 1;
      word_sync_team(0, 128 * kind.groups);
      if (*m.bad) sm90_keys_careful(p, s, m, q, range, unit, rows, state, kind);
    } else
      sm90_begin(state, kind);
    sm90_store(p, s, q0, unit, state, kind);
  }
}

#endif
