/* SPDX-License-Identifier: MIT */
/* Decoding: where a warp finds its keys, and how they reach it. K and V pass through shared memory, which each warp has
 * filled ahead of time for itself alone: registers would be too few to hold what must be on its way to keep the memory
 * busy, and warps that share a tile would wait for each other. */
#ifndef ATTEND_CUDA_DECODE_STREAM_CUH
#define ATTEND_CUDA_DECODE_STREAM_CUH

#include "decode.h"
#include "fragment.cuh"

/* What an entry point fixes: groups of 8 rows (1, 2), chunks of 64 columns (1, 2), whether all options are there, and
 * whether a block takes a span, each warp a part (decode.h). */
struct decode_kind {
  int groups, chunks;
  bool general, span;
};

/* One row of the tile. */
struct decode_row {
  bool exists;
  int member, i; /* head within the group, query */
};
WORD decode_row decode_row_at(const cuda_call &call, const attend_slice &s, int row) {
  decode_row r;
  uint32_t q_len = (uint32_t)call.problem.q_len;
  r.member = (int)((uint32_t)row / q_len), r.i = (int)((uint32_t)row % q_len);
  r.exists = r.member < (int)call.decode.group && r.i < s.q_len;
  return r;
}

/* Of slice_make only what it takes to set keys on their way ... */
WORD attend_slice decode_slice(const cuda_call &call, uint32_t b, uint32_t kv_head) {
  const decode_shape &shape = call.decode;
  attend_slice s = {};
  int64_t first = 0, batch = b;
  s.k_len = shape.k_len;
  if (!shape.plain) {
    const attend_problem &p = call.problem;
    const attend_operands &o = call.operands;
    if (p.ragged_k || p.paged) batch = 0;
    if (p.ragged_k) slice_ragged(p, o, OPERAND_K_OFFSETS, b, p.k_total, p.k_len, first, s.k_len);
    if (p.paged && p.block_count == 0) s.k_len = 0; /* whatever the table says */
    if (attend_has(&p, OPERAND_KV_LEN)) {
      const attend_layout &l = p.layout[OPERAND_KV_LEN];
      s.k_len = slice_clamp(slice_index(o.data[OPERAND_KV_LEN], b * l.batch, l.type), s.k_len);
    }
    if (p.paged) {
      const attend_layout &t = p.layout[OPERAND_BLOCK_TABLE];
      s.pages.table = (const char *)o.data[OPERAND_BLOCK_TABLE] + b * t.batch * (t.type == TYPE_I64 ? 8 : 4);
      s.pages.table_stride = t.row, s.pages.table_type = t.type, s.pages.block_size = p.block_size;
      s.pages.k_block = shape.k.batch, s.pages.v_block = shape.v.batch;
    }
  }
  s.k.data = (char *)shape.k.data + 2 * (batch * shape.k.batch + kv_head * shape.k.head + first * shape.k.row);
  s.v.data = (char *)shape.v.data + 2 * (batch * shape.v.batch + kv_head * shape.v.head + first * shape.v.row);
  s.k.row = shape.k.row, s.v.row = shape.v.row;
  return s;
}
/* ... and what else it takes without the options that look at pairs. */
WORD void decode_slice_queries(const cuda_call &call, attend_slice &s, uint32_t b, uint32_t head) {
  const attend_problem &p = call.problem;
  const attend_operands &o = call.operands;
  int64_t first = 0, batch = p.ragged_q ? 0 : b;
  s.b = b, s.h = head, s.q_len = p.q_len;
  if (p.ragged_q) slice_ragged(p, o, OPERAND_Q_OFFSETS, b, p.q_total, p.q_len, first, s.q_len);
  s.off = p.top_left ? 0 : s.k_len - s.q_len;
  s.q = slice_matrix(p, o, OPERAND_Q, batch, head, first);
  s.out = slice_matrix(p, o, OPERAND_OUT, batch, head, first);
  attend_matrix lse = slice_matrix(p, o, OPERAND_LSE, batch, head, first);
  s.lse = lse.data, s.lse_row = lse.row;
}

/* Where a lane finds keys k0 .. k0 + 15: the page, and the row within it, of the first; of key k0 + lane % 16 where
 * pages are so small that these are in several. */
struct decode_place {
  uint32_t page, row;
};
WORD bool decode_scattered(const attend_slice &s) {
  return s.pages.table && (uint32_t)s.pages.block_size % DECODE_KEYS;
}
WORD decode_place decode_find(const attend_problem &p, const attend_slice &s, int k0, int end) {
  bool paged = s.pages.table, wide = s.pages.table_type == TYPE_I64;
  decode_place place = {0, (uint32_t)k0};
  if (!paged) return place;
  uint32_t size = (uint32_t)s.pages.block_size, j = (uint32_t)k0;
  if (decode_scattered(s)) j += threadIdx.x & (DECODE_KEYS - 1);
  uint32_t number = j / size;
  int64_t page = word_load_index_if(s.pages.table + number * s.pages.table_stride * (wide ? 8 : 4), wide, (int)j < end);
  place.page = (uint32_t)slice_clamp(page, p.block_count - 1), place.row = j - number * size;
  return place;
}

/* A unit is 16 keys of K or V on their way to a warp: row r has its word x of 16 bytes at x ^ r % 8, so that rows and
 * columns are read from different banks. Neighbouring lanes ask for neighbouring words: whole rows reach 98% of the
 * memory's bandwidth, quarters of rows 86%; bulk copies (TMA) of a row each 40%. */
struct decode_unit {
  uint4 word[DECODE_KEYS * DECODE_MOST_COLUMNS / 8];
};
WORD void decode_copy(decode_unit &u, const attend_matrix &m, int64_t page_stride, const decode_place &place, int left,
                      bool scattered, int columns, const decode_kind kind) {
  const int words = 8 * kind.chunks, rows = 32 / words, lane = (int)(threadIdx.x & 31), x = lane % words;
  if (8 * x >= columns) left = 0;
  if (scattered) {
    UNROLLED_BY_1
    for (int r = lane / words; r < DECODE_KEYS; r += rows) {
      uint32_t page = word_shuffle(place.page, r), row = word_shuffle(place.row, r);
      word_copy_async_once(&u.word[r * words + (x ^ r % 8)], m.data + 2 * (page * page_stride + row * m.row) + 16 * x,
                           r < left);
    }
  } else {
    const char *from = m.data + 2 * (place.page * page_stride + (place.row + lane / words) * m.row) + 16 * x;
    const int64_t stride = 2 * rows * m.row;
    left -= lane / words;
    UNROLLED
    for (int i = 0; i < DECODE_KEYS; i += rows, from += stride) {
      int r = i + lane / words;
      word_copy_async_once(&u.word[r * words + (x ^ r % 8)], from, i < left);
    }
  }
  word_copy_commit();
}
/* As operand A of m16n8k16: 16 keys, and of K columns 16i .. as k; of V, transposed, columns 16i .. as rows. */
WORD void decode_take_keys(uint32_t a[4], const decode_unit &u, int i, const decode_kind kind) {
  int lane = (int)(threadIdx.x & 31), r = lane % 16;
  word_load_matrices(a, &u.word[r * 8 * kind.chunks + ((2 * i + lane / 16) ^ r % 8)]);
}
WORD void decode_take_values(uint32_t a[4], const decode_unit &u, int i, const decode_kind kind) {
  int lane = (int)(threadIdx.x & 31), r = lane / 16 * 8 + lane % 8;
  word_load_matrices_transposed(a, &u.word[r * 8 * kind.chunks + ((2 * i + lane / 8 % 2) ^ r % 8)]);
}
/* Until the oldest unit is there. */
WORD void decode_wait(void) {
  word_copy_wait(2 * DECODE_AHEAD);
  word_sync_warp();
}

/* What is on its way while keys are worked on: a ring of units, K and V of a step in turn, of which unit `at` is the
 * oldest and the one before it free; the place of the keys that are to be asked for next; and where they end. */
struct decode_stream {
  decode_unit *ring;
  decode_place next;
  int at, end;
};
WORD int decode_slot(const decode_stream &stream, const int ahead) {
  int slot = stream.at + ahead;
  return slot > 2 * DECODE_AHEAD ? slot - 2 * DECODE_AHEAD - 1 : slot;
}
WORD void decode_start(const cuda_call &call, const attend_slice &s, int first, decode_stream &stream,
                       const decode_kind kind) {
  const attend_problem &p = call.problem;
  const bool scattered = decode_scattered(s);
  decode_place place[DECODE_AHEAD + 1];
  UNROLLED
  for (int ahead = 0; ahead <= DECODE_AHEAD; ahead++)
    place[ahead] = decode_find(p, s, first + ahead * DECODE_KEYS, stream.end);
  UNROLLED
  for (int ahead = 0; ahead < DECODE_AHEAD; ahead++) {
    int left = stream.end - first - ahead * DECODE_KEYS;
    decode_copy(stream.ring[2 * ahead], s.k, s.pages.k_block, place[ahead], left, scattered, (int)p.head_dim, kind);
    decode_copy(stream.ring[2 * ahead + 1], s.v, s.pages.v_block, place[ahead], left, scattered, (int)p.v_dim, kind);
  }
  stream.at = 0, stream.next = place[DECODE_AHEAD];
}

/* The first keys of a warp, set on their way while the launch before this one still runs: into L2 alone, which sees
 * what that launch may yet write. 1x131072 in bf16: 0.5 us. */
WORD void decode_prefetch(const attend_problem &p, const attend_slice &s, int first, int end) {
  const int j = first + (int)(threadIdx.x & (DECODE_KEYS - 1));
  if (j >= end) return;
  const bool values = threadIdx.x & DECODE_KEYS; /* half of the lanes for K, half for V */
  const char *row = values ? s.v.data + 2 * j * s.v.row : s.k.data + 2 * j * s.k.row;
  const int64_t bytes = 2 * (values ? p.v_dim : p.head_dim);
  for (int64_t at = 0; at < bytes; at += 128) word_prefetch(row + at);
}

/* Nothing is on its way any more. */
WORD void decode_stop(void) {
  word_copy_wait(0);
  word_sync_warp();
}

#endif
