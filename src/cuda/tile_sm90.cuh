/* SPDX-License-Identifier: MIT */
/* Forward in tiles through the asynchronous products of sm_90, with the division of work of Shah et al. 2024: a group
 * of four warps owns 64 queries, the groups of a block share tiles of keys, and one more group copies these. A group
 * multiplies the weights of one tile with its values while it turns the scores of the next into weights. A block goes
 * through items of work, and copies ahead, so that a group begins with the next item while others still end the last.
 * (Rejected: groups that take turns at the tensor cores. They find into turns by themselves, and pass items faster.)
 * Items whose output came out NaN are done again in the end, carefully and one step after the other. */
#ifndef ATTEND_CUDA_TILE_SM90_CUH
#define ATTEND_CUDA_TILE_SM90_CUH

#include "tile_sm90_items.cuh"

/* Of a lane's rows g and g + 8. `largest` is in units in which 1 is log 2 / unit. */
struct sm90_state {
  float largest[2], total[2], sum[16][4]; /* sum: [8 columns] */
};

/* What a lane has to know of its rows: the keys [from, to) that each sees, and those that all rows of the warp see. */
struct sm90_rows {
  int from[2], to[2], all_first, all_last;
};

/* ---- Products ---------------------------------------------------------------------------------------------------- */

WORD void sm90_dots(float c[16][4], word_tile q, word_tile k, const sm90_kind kind) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < 4 * kind.panels; x++) {
    word_tile a = word_tile_step(q, (x >> 2) * 64 * kind.groups * 128 + 32 * (x & 3));
    word_tile b = word_tile_step(k, (x >> 2) * kind.keys * 128 + 32 * (x & 3));
    if (ELEMENT == TYPE_BF16)
      kind.keys == 64 ? word_dots_bf16_64(c, a, b, x) : word_dots_bf16_128(c, a, b, x);
    else
      kind.keys == 64 ? word_dots_f16_64(c, a, b, x) : word_dots_f16_128(c, a, b, x);
  }
  word_products_commit();
}

WORD void sm90_values(float c[16][4], const uint32_t a[8][4], word_tile v, const sm90_kind kind) {
  word_products_begin();
  UNROLLED
  for (int x = 0; x < kind.keys / 16; x++) {
    word_tile b = word_tile_step(v, 2048 * x);
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

/* Of each warp once. */
WORD void sm90_arrive(uint64_t *barrier) {
  word_sync_warp();
  if ((threadIdx.x & 31) == 0) word_phase_arrive(barrier);
}

/* How many of an item's tiles a group sees: under causal, the first groups not the last. */
WORD int sm90_tiles_of(const sm90_item &item, int group, const sm90_kind kind) {
  if (64 * group >= item.rows) return 0;
  int last = sm90_to(item, 64 * group + 64 < item.rows ? 64 * group + 63 : item.rows - 1);
  return last > item.first ? (last - item.first + kind.keys - 1) / kind.keys : 0;
}

/* The first `tiles` tiles of an item, those that the group sees; the others it lets pass. Step t multiplies queries
 * with the keys of tile t, and the weights of tile t - 1 with its values. The wait for the keys of tile t + 1 stands
 * between weights and the wait for products with values because there has to be a branch: without one, ptxas
 * (CUDA 13.0) waits for these products before it computes the weights. Where tiles lie is made uniform right before
 * the products, without a branch between: only so ptxas computes descriptors in the uniform datapath, and products
 * start one right after the other; else each waits for two moves of its own from registers. */
WORD void sm90_keys(const sm90_shared &m, int group, const sm90_place &queries, sm90_place &place,
                    const sm90_item *item, int tiles, float unit, const sm90_rows &rows, sm90_state &state,
                    const sm90_kind kind) {
  const int bytes = 128 * kind.panels * kind.keys, q_bytes = 128 * kind.panels * 64 * kind.groups;
  const word_tile q = word_tile_at(m.q + 8192 * group, 0);
  const word_tile k = word_tile_at(m.k, 0), v = word_tile_at(m.v, 128 * kind.keys);
  int k0 = item->first, t = 0;
  float c[16][4], rescale[2];
  uint32_t a[8][4];
  sm90_begin(state, kind);
  if (tiles) {
    word_phase_wait(m.k_full + place.at, (uint32_t)place.parity);
    sm90_dots(c, word_tile_step(q, word_uniform(queries.at) * q_bytes),
              word_tile_step(k, word_uniform(place.at) * bytes), kind);
    sm90_dots_done(c, false, kind);
    sm90_arrive(m.k_free + place.at);
    if (tiles == 1) sm90_arrive(m.q_free + queries.at);
    sm90_weights(rescale, c, k0, unit, rows, state, kind);
    sm90_weights_done(c, kind);
    sm90_pack(a, c, kind);
    sm90_place before = place;
    place = sm90_next(place, kind.stages);
    if (tiles > 1) word_phase_wait(m.k_full + place.at, (uint32_t)place.parity);
    UNROLLED_BY_1
    for (t = 1; t < tiles; t++) {
      k0 += kind.keys;
      word_phase_wait(m.v_full + before.at, (uint32_t)before.parity);
      int v_at = word_uniform(before.at);
      sm90_dots(c, word_tile_step(q, word_uniform(queries.at) * q_bytes),
                word_tile_step(k, word_uniform(place.at) * bytes), kind);
      sm90_values(state.sum, a, word_tile_step(v, v_at * bytes), kind);
      sm90_dots_done(c, true, kind);
      sm90_arrive(m.k_free + place.at);
      if (t + 1 == tiles) sm90_arrive(m.q_free + queries.at);
      sm90_weights(rescale, c, k0, unit, rows, state, kind);
      sm90_weights_done(c, kind);
      sm90_place next = sm90_next(place, kind.stages);
      if (t + 1 < tiles) word_phase_wait(m.k_full + next.at, (uint32_t)next.parity);
      sm90_values_done(state.sum, kind);
      sm90_arrive(m.v_free + before.at);
      sm90_shrink(state, rescale, kind);
      sm90_pack(a, c, kind);
      before = place, place = next;
    }
    word_phase_wait(m.v_full + before.at, (uint32_t)before.parity);
    sm90_values(state.sum, a, word_tile_step(v, word_uniform(before.at) * bytes), kind);
    sm90_values_done(state.sum, kind);
    sm90_arrive(m.v_free + before.at);
  } else
    sm90_arrive(m.q_free + queries.at);
  UNROLLED_BY_1
  for (int all = item->tiles; t < all; t++) {
    word_phase_wait(m.k_full + place.at, (uint32_t)place.parity);
    sm90_arrive(m.k_free + place.at);
    word_phase_wait(m.v_full + place.at, (uint32_t)place.parity);
    sm90_arrive(m.v_free + place.at);
    place = sm90_next(place, kind.stages);
  }
}

/* ---- Items where keys that a query may not see hold NaN or Inf --------------------------------------------------- */

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

/* As sm90_keys; the groups copy themselves, and keep in step. */
WORD void sm90_keys_careful(const attend_problem &p, const attend_slice &s, const sm90_shared &m, int64_t block_first,
                            const sm90_item &item, float unit, const sm90_rows &rows, sm90_state &state,
                            const sm90_kind kind) {
  const int threads = 128 * kind.groups, thread = (int)threadIdx.x;
  const word_tile q = word_tile_at(m.q + 8192 * (thread >> 7), 0);
  float c[16][4], rescale[2];
  uint32_t a[8][4];
  sm90_begin(state, kind);
  word_sync_team(0, threads);
  sm90_copy(m.q, 64 * kind.groups, s.q, block_first, s.q_len, (int)p.head_dim, thread, threads, kind);
  int k0 = item.first;
  UNROLLED_BY_1
  for (int t = 0; t < item.tiles; t++, k0 += kind.keys) {
    word_sync_team(0, threads);
    sm90_copy(m.k, kind.keys, s.k, k0, s.k_len, (int)p.head_dim, thread, threads, kind);
    sm90_copy(m.v, kind.keys, s.v, k0, s.k_len, (int)p.v_dim, thread, threads, kind);
    word_copy_commit();
    word_copy_wait(0);
    word_show_shared();
    word_sync_team(0, threads);
    sm90_dots(c, q, word_tile_at(m.k, 0), kind);
    sm90_dots_done(c, false, kind);
    sm90_weights(rescale, c, k0, unit, rows, state, kind);
    sm90_shrink(state, rescale, kind);
    sm90_spare(state, c, k0, m.v, rows, kind);
    sm90_pack(a, c, kind);
    word_sync_team(0, threads);
    for (int i = thread; i < 64 * kind.panels * kind.keys; i += threads) {
      uint16_t *x = (uint16_t *)(void *)m.v + i;
      float y = half_of(*x, false);
      if (y - y != 0) *x = 0;
    }
    word_show_shared();
    word_sync_team(0, threads);
    sm90_values(state.sum, a, word_tile_at(m.v, 128 * kind.keys), kind);
    sm90_values_done(state.sum, kind);
  }
}

/* ---- Blocks ------------------------------------------------------------------------------------------------------ */

/* row: of the item, the warp's first. */
WORD sm90_rows sm90_rows_of(const sm90_item &item, int row) {
  sm90_rows r = {{0, 0}, {0, 0}, 0, 0};
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = row + 8 * half + lane_row();
    if (i < item.rows) r.from[half] = sm90_from(item, i), r.to[half] = sm90_to(item, i);
  }
  if (row >= item.rows) return r;
  r.all_last = sm90_to(item, row); /* both ends grow with the query */
  r.all_first = sm90_from(item, row + 16 < item.rows ? row + 15 : item.rows - 1);
  return r;
}

/* Transpose 4 words of each of the four lanes of a row: word i of lane t is then word t of lane i. */
WORD void sm90_transpose(uint32_t x[4]) {
  int t = lane_column();
  UNROLLED
  for (int i = 0; i < 2; i++) { /* with the lane of the other parity: the word of the other parity */
    uint32_t other = word_shuffle_xor(t & 1 ? x[2 * i] : x[2 * i + 1], 1);
    if (t & 1)
      x[2 * i] = other;
    else
      x[2 * i + 1] = other;
  }
  UNROLLED
  for (int i = 0; i < 2; i++) {
    uint32_t other = word_shuffle_xor(t & 2 ? x[i] : x[i + 2], 2);
    if (t & 2)
      x[i] = other;
    else
      x[i + 2] = other;
  }
}

WORD void sm90_store(const attend_problem &p, const sm90_item &item, int row, float unit, const sm90_state &state,
                     const sm90_kind kind) {
  UNROLLED
  for (int half = 0; half < 2; half++) {
    int i = row + 8 * half + lane_row();
    float total = quad_sum(state.total[half]), largest = state.largest[half];
    float factor = total == 0 ? 0 : word_reciprocal(total);
    char *at = item.out + i * item.out_row + 16 * lane_column();
    UNROLLED
    for (int n = 0; n < 8 * kind.panels; n += 4) {
      uint32_t x[4];
      UNROLLED
      for (int w = 0; w < 4; w++)
        x[w] = pack(state.sum[n + w][2 * half] * factor, state.sum[n + w][2 * half + 1] * factor);
      sm90_transpose(x);
      if (i < item.rows && 8 * (n + lane_column()) < (int)p.v_dim)
        *(uint4 *)(void *)(at + 16 * n) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    if (item.lse && i < item.rows && lane_column() == 0)
      item.lse[i * item.lse_row] = total == 0 ? -INFINITY : largest * unit * LN_2 + logf(total);
  }
}

/* All items of a block, by the groups that multiply. */
WORD void sm90_items(const cuda_call &call, const sm90_shared &m, const sm90_kind kind) {
  const attend_problem &p = call.problem;
  const float unit = (float)p.scale * LOG2_E;
  int group = word_uniform((int)threadIdx.x >> 7), slot = 0, row = ((int)threadIdx.x >> 5) * 16;
  sm90_place queries = {0, 0}, place = {0, 0};
  sm90_state state;
  UNROLLED_BY_1
  for (int n = 0; sm90_turn(call, n) < call.tiles.turns; n++) {
    word_phase_wait(m.q_full + queries.at, (uint32_t)queries.parity);
    const sm90_item *item = m.items + slot;
    sm90_rows rows = sm90_rows_of(*item, row);
    int tiles = word_uniform(sm90_tiles_of(*item, group, kind));
    sm90_keys(m, group, queries, place, item, tiles, unit, rows, state, kind);
    float sum = 0;
    UNROLLED
    for (int c = 0; c < 8 * kind.panels; c++) UNROLLED
    for (int e = 0; e < 4; e++) sum += state.sum[c][e] * 0; /* NaN of Inf too: then once more, in vain */
    if (sum != sum) m.bad[n] = 1;
    sm90_store(p, *item, row, unit, state, kind);
    slot = slot == kind.q_stages ? 0 : slot + 1;
    queries = sm90_next(queries, kind.q_stages);
  }
  word_sync_team(0, 128 * kind.groups);
  UNROLLED_BY_1
  for (int n = 0; sm90_turn(call, n) < call.tiles.turns; n++) {
    if (!m.bad[n]) continue;
    attend_slice s;
    int64_t block_first;
    sm90_item item = sm90_item_of(call, n, s, block_first, kind);
    sm90_rows rows = sm90_rows_of(item, row);
    sm90_keys_careful(p, s, m, block_first, item, unit, rows, state, kind);
    sm90_store(p, item, row, unit, state, kind);
  }
}

WORD void sm90_forward(const cuda_call &call, const sm90_kind kind) {
  DYNAMIC_SHARED_TILES(memory);
  const sm90_shared m = sm90_shared_of(memory, kind);
  sm90_shared_begin(m, call.tiles.mapped ? 1 : 128, kind);
  if (word_uniform((int)threadIdx.x >> 7) == kind.groups) {
    if (kind.panels == 1)
      word_registers_give(SM90_NARROW_COPYING);
    else
      word_registers_give(SM90_WIDE_COPYING);
    if (!call.tiles.mapped)
      sm90_copies(call, m, kind);
    else if (((int)threadIdx.x & 127) == 0)
      sm90_boxes(call, m, kind);
  } else {
    if (kind.panels == 1)
      word_registers_take(SM90_NARROW_COMPUTING);
    else
      word_registers_take(SM90_WIDE_COMPUTING);
    sm90_items(call, m, kind);
  }
}

#endif
