/* SPDX-License-Identifier: MIT */
/* Forward in tiles on sm_90: what a block does one after the other, its shared memory, and what is copied there. */
#ifndef ATTEND_CUDA_TILE_SM90_ITEMS_CUH
#define ATTEND_CUDA_TILE_SM90_ITEMS_CUH

#include "fragment.cuh"
#include "tile_sm90.h"

/* What an entry point fixes: panels of 64 columns (1, 2), keys of a tile, groups, places for tiles of queries, and for
 * tiles of keys and of values. */
struct sm90_kind {
  int panels, keys, groups, q_stages, stages;
};

/* An item of work: up to 64 queries of each group, of one (sequence, head), and the tiles of keys that they see. */
struct sm90_item {
  char *out;       /* of the first query */
  int64_t out_row; /* bytes */
  float *lse;      /* the same, or NULL */
  int64_t lse_row;
  int rows, k_len; /* how many queries, and keys, there are */
  int low, high;   /* query r sees the keys [r + low, r + high), as far as they exist */
  int first, tiles;
};
static_assert(sizeof(sm90_item) <= SM90_ITEM, "room for an item");

/* Shared memory: places for tiles of queries, of keys and of values; one place more for items than for queries, since
 * groups store what an item gave when its queries have gone; barriers: a place is full, a place is free again; and of
 * which of the block's items a NaN came out. */
struct sm90_shared {
  char *q, *k, *v;
  sm90_item *items;
  uint64_t *q_full, *q_free, *k_full, *v_full, *k_free, *v_free;
  uint8_t *bad;
};
WORD sm90_shared sm90_shared_of(char *memory, const sm90_kind kind) {
  const int row = 128 * kind.panels, q = kind.q_stages * 64 * kind.groups * row, tiles = kind.stages * kind.keys * row;
  uint64_t *b = (uint64_t *)(void *)(memory + q + 2 * tiles), *k = b + 2 * kind.q_stages;
  const int n = kind.stages;
  sm90_shared m = {memory, memory + q, memory + q + tiles, NULL,      b,   b + kind.q_stages,
                   k,      k + n,      k + 2 * n,          k + 3 * n, NULL};
  m.items = (sm90_item *)(void *)((char *)b + SM90_BARRIERS);
  m.bad = (uint8_t *)(m.items + kind.q_stages + 1);
  return m;
}
/* copiers: threads that copy. */
WORD void sm90_shared_begin(const sm90_shared &m, uint32_t copiers, const sm90_kind kind) {
  for (int i = (int)threadIdx.x; i < SM90_MOST_ITEMS; i += 128 * (kind.groups + 1)) m.bad[i] = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kind.q_stages; i++)
      word_phase_init(m.q_full + i, copiers), word_phase_init(m.q_free + i, 4 * kind.groups);
    for (int i = 0; i < kind.stages; i++) {
      word_phase_init(m.k_full + i, copiers), word_phase_init(m.v_full + i, copiers);
      word_phase_init(m.k_free + i, 4 * kind.groups), word_phase_init(m.v_free + i, 4 * kind.groups);
    }
    word_show_shared();
  }
  word_sync_block();
}

/* One of a ring of places, and the parity of its phase. */
struct sm90_place {
  int at, parity;
};
WORD sm90_place sm90_next(sm90_place x, const int places) {
  sm90_place y = {x.at + 1 == places ? 0 : x.at + 1, x.at + 1 == places ? x.parity ^ 1 : x.parity};
  return y;
}

/* ---- Items ------------------------------------------------------------------------------------------------------- */

/* At which turn the block comes to its n-th item; there is one where tiles.turns is more. With twins, a block takes two
 * items at a turn: a long one of one pair of sequence and head, and a short one of the next. */
WORD uint64_t sm90_turn(const cuda_call &call, int n) {
  return blockIdx.x + (uint64_t)((uint32_t)n >> (call.tiles.twins ? 1 : 0)) * gridDim.x;
}

/* The item's pair, and which block of its queries. */
WORD void sm90_find(const cuda_call &call, int n, uint32_t &pair, uint32_t &block) {
  const tile_items &tiles = call.tiles;
  uint32_t turn = (uint32_t)sm90_turn(call, n);
  if (tiles.twins) {
    uint32_t twin = turn / tiles.blocks, level = turn - twin * tiles.blocks;
    pair = 2 * twin + (n & 1);
    block = n & 1 ? level : tiles.blocks - 1 - level;
  } else { /* of a chunk of pairs, the longest of all come first */
    uint32_t before = turn / (tiles.chunk * tiles.blocks) * tiles.chunk, rest = turn - before * tiles.blocks,
             left = (uint32_t)(call.problem.batch * call.problem.heads) - before,
             chunk = left < tiles.chunk ? left : tiles.chunk, level = rest / chunk;
    pair = before + rest - level * chunk;
    block = tiles.blocks - 1 - level;
  }
}

/* Positions of keys, beyond which there is none; the sum with a row of an item is an int. */
WORD int sm90_clamp(int64_t x) {
  const int far = 1 << 30;
  return (int)(x < -far ? -far : x > INT32_MAX - 1024 ? INT32_MAX - 1024 : x);
}

/* The keys [from, to) that a row sees; both grow with the row. */
WORD int sm90_from(const sm90_item &x, int row) {
  int to = row + x.high < x.k_len ? row + x.high : x.k_len, from = row + x.low > 0 ? row + x.low : 0;
  if (to < 0) to = 0;
  return from < to ? from : to;
}
WORD int sm90_to(const sm90_item &x, int row) {
  int to = row + x.high < x.k_len ? row + x.high : x.k_len;
  return to > 0 ? to : 0;
}

/* The block's n-th item, and what it is of. Without rows, where there is none. */
WORD sm90_item sm90_item_of(const cuda_call &call, int n, attend_slice &s, int64_t &block_first, const sm90_kind kind) {
  const attend_problem &p = call.problem;
  const int queries = 64 * kind.groups;
  uint32_t pair, block;
  int64_t key_rows;
  sm90_item x = {};
  sm90_find(call, n, pair, block);
  if (pair >= (uint32_t)(p.batch * p.heads)) return x; /* the last of an odd number has no twin */
  s = slice_make(p, call.operands, pair / (uint32_t)p.heads, pair % (uint32_t)p.heads, key_rows);
  block_first = (int64_t)block * queries;
  if (block_first >= s.q_len) return x;
  x.rows = s.q_len - block_first < queries ? (int)(s.q_len - block_first) : queries;
  x.k_len = (int)s.k_len;
  x.out = s.out.data + 2 * block_first * s.out.row, x.out_row = 2 * s.out.row;
  if (s.lse) x.lse = (float *)(void *)s.lse + block_first * s.lse_row, x.lse_row = s.lse_row;
  int64_t center = block_first + s.off;
  x.low = p.window_left >= 0 ? sm90_clamp(center - sm90_clamp(p.window_left)) : -(1 << 30);
  x.high = p.causal              ? sm90_clamp(center + 1)
           : p.window_right >= 0 ? sm90_clamp(center + 1 + sm90_clamp(p.window_right))
                                 : INT32_MAX - 1024;
  x.first = sm90_from(x, 0) / kind.keys * kind.keys;
  int last = sm90_to(x, x.rows - 1);
  x.tiles = last > x.first ? (last - x.first + kind.keys - 1) / kind.keys : 0;
  return x;
}

/* ---- Copies ------------------------------------------------------------------------------------------------------ */

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

/* A copy was started, which will fill `next`: show the one before, whose copy has arrived. */
WORD void sm90_started(uint64_t *&arriving, uint64_t *next) {
  word_copy_commit();
  if (arriving) {
    word_copy_wait(1);
    word_show_shared();
    word_phase_arrive(arriving);
  }
  arriving = next;
}

/* All copies of a block, by the last group: of every item queries, then keys always one tile ahead of values. */
WORD void sm90_copies(const cuda_call &call, const sm90_shared &m, const sm90_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, bytes = 128 * kind.panels * kind.keys;
  const int q_bytes = 128 * kind.panels * 64 * kind.groups;
  int thread = (int)threadIdx.x & 127;
  uint64_t *arriving = NULL;
  sm90_place q = {0, 1}, k = {0, 1}, v = {0, 1};
  int slot = 0;
  UNROLLED_BY_1
  for (int n = 0; sm90_turn(call, n) < call.tiles.turns; n++) {
    attend_slice s;
    int64_t block_first;
    sm90_item item = sm90_item_of(call, n, s, block_first, kind);
    word_phase_wait(m.q_free + q.at, (uint32_t)q.parity);
    if (thread == 0) m.items[slot] = item;
    slot = slot == kind.q_stages ? 0 : slot + 1;
    if (item.tiles)
      sm90_copy(m.q + q.at * q_bytes, 64 * kind.groups, s.q, block_first, s.q_len, head_dim, thread, 128, kind);
    sm90_started(arriving, m.q_full + q.at);
    q = sm90_next(q, kind.q_stages);
    int64_t k0 = item.first;
    UNROLLED_BY_1
    for (int t = 0; t <= item.tiles && item.tiles; t++, k0 += kind.keys) {
      if (t < item.tiles) {
        word_phase_wait(m.k_free + k.at, (uint32_t)k.parity);
        sm90_copy(m.k + k.at * bytes, kind.keys, s.k, k0, s.k_len, head_dim, thread, 128, kind);
        sm90_started(arriving, m.k_full + k.at);
        k = sm90_next(k, kind.stages);
      }
      if (t > 0) {
        word_phase_wait(m.v_free + v.at, (uint32_t)v.parity);
        sm90_copy(m.v + v.at * bytes, kind.keys, s.v, k0 - kind.keys, s.k_len, v_dim, thread, 128, kind);
        sm90_started(arriving, m.v_full + v.at);
        v = sm90_next(v, kind.stages);
      }
    }
  }
  if (!arriving) return;
  word_copy_wait(0);
  word_show_shared();
  word_phase_arrive(arriving);
}

/* Start copying a tile by the copy engine. */
WORD void sm90_box(char *tile, const int rows, const tile_map &map, int64_t first, uint32_t head, const attend_slice &s,
                   uint64_t *full, const sm90_kind kind) {
  word_phase_expect(full, (uint32_t)(128 * kind.panels * rows));
  UNROLLED
  for (int x = 0; x < kind.panels; x++)
    word_copy_box(tile + x * rows * 128, &map, 64 * x, (int)first, (int)head, (int)s.b, full);
}

/* As sm90_copies, by one thread and the copy engine, which leave the tensor cores more of shared memory's time. */
WORD void sm90_boxes(const cuda_call &call, const sm90_shared &m, const sm90_kind kind) {
  const int bytes = 128 * kind.panels * kind.keys, q_rows = 64 * kind.groups;
  sm90_place q = {0, 1}, k = {0, 1}, v = {0, 1};
  int slot = 0;
  UNROLLED_BY_1
  for (int n = 0; sm90_turn(call, n) < call.tiles.turns; n++) {
    attend_slice s;
    int64_t block_first;
    sm90_item item = sm90_item_of(call, n, s, block_first, kind);
    word_phase_wait(m.q_free + q.at, (uint32_t)q.parity);
    m.items[slot] = item;
    slot = slot == kind.q_stages ? 0 : slot + 1;
    if (item.tiles)
      sm90_box(m.q + q.at * 128 * kind.panels * q_rows, q_rows, call.q, block_first, (uint32_t)s.h, s, m.q_full + q.at,
               kind);
    else
      word_phase_arrive(m.q_full + q.at);
    q = sm90_next(q, kind.q_stages);
    int k0 = item.first;
    UNROLLED_BY_1
    for (int t = 0; t <= item.tiles && item.tiles; t++, k0 += kind.keys) {
      if (t < item.tiles) {
        word_phase_wait(m.k_free + k.at, (uint32_t)k.parity);
        sm90_box(m.k + k.at * bytes, kind.keys, call.k, k0, s.kv_head, s, m.k_full + k.at, kind);
        k = sm90_next(k, kind.stages);
      }
      if (t > 0) {
        word_phase_wait(m.v_free + v.at, (uint32_t)v.parity);
        sm90_box(m.v + v.at * bytes, kind.keys, call.v, k0 - kind.keys, s.kv_head, s, m.v_full + v.at, kind);
        v = sm90_next(v, kind.stages);
      }
    }
  }
}

#endif
