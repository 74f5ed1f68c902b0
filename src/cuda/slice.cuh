/* SPDX-License-Identifier: MIT */
/* The slice of one (sequence, head) on the GPU. Execution cannot look at index tensors, so what they say is clamped
 * here: a wrong one moves rows, but never outside the tensors. */
#ifndef ATTEND_CUDA_SLICE_CUH
#define ATTEND_CUDA_SLICE_CUH

#include "../api/problem.h"
#include "ptx.h"

WORD int64_t slice_clamp(int64_t x, int64_t most) { return x < 0 ? 0 : x > most ? most : x; }

WORD int64_t slice_index(const void *data, int64_t at, attend_type type) {
  return type == TYPE_I64 ? ((const int64_t *)data)[at] : ((const int32_t *)data)[at];
}

WORD float slice_load_f32(const void *data, int64_t at, attend_type type) {
  if (type == TYPE_F32) return ((const float *)data)[at];
  uint32_t bits = ((const uint16_t *)data)[at];
  return type == TYPE_BF16 ? word_f32_from_bits(bits << 16) : word_f32_from_f16(bits);
}

WORD int64_t slice_type_size(attend_type type) {
  return type == TYPE_F64 ? 8 : type == TYPE_F32 ? 4 : type == TYPE_BOOL ? 1 : 2;
}

WORD char *slice_at(const attend_problem &p, const attend_operands &o, operand_id id, int64_t elements) {
  return o.data[id] ? (char *)o.data[id] + elements * slice_type_size(p.layout[id].type) : NULL;
}

WORD attend_matrix slice_matrix(const attend_problem &p, const attend_operands &o, operand_id id, int64_t b, int64_t h,
                                int64_t first) {
  const attend_layout &l = p.layout[id];
  attend_matrix m = {slice_at(p, o, id, b * l.batch + h * l.head + first * l.row), l.row, l.col};
  return m;
}

/* Rows [first, first + length) of sequence b in a ragged tensor of `total` rows. */
WORD void slice_ragged(const attend_problem &p, const attend_operands &o, operand_id offsets, int64_t b, int64_t total,
                       int64_t longest, int64_t &first, int64_t &length) {
  const attend_layout &l = p.layout[offsets];
  first = slice_clamp(slice_index(o.data[offsets], b * l.batch, l.type), total);
  int64_t last = slice_clamp(slice_index(o.data[offsets], (b + 1) * l.batch, l.type), total);
  length = slice_clamp(last - first, longest);
}

/* The slope of ALiBi, and the key of dropout. */
WORD void slice_of_head(attend_slice &s, const attend_problem &p, const attend_operands &o, int64_t b, int64_t h) {
  if (o.data[OPERAND_ALIBI])
    s.slope =
        ((const float *)o.data[OPERAND_ALIBI])[b * p.layout[OPERAND_ALIBI].batch + h * p.layout[OPERAND_ALIBI].head];
  if (p.dropout_threshold) {
    uint32_t counter[4] = {(uint32_t)o.dropout_offset, (uint32_t)(o.dropout_offset >> 32), (uint32_t)b, (uint32_t)h};
    uint32_t seed[2] = {(uint32_t)o.dropout_seed, (uint32_t)(o.dropout_seed >> 32)}, word[4];
    attend_philox(counter, seed, word);
    s.dropout_key[0] = word[0], s.dropout_key[1] = word[1];
  }
}

/* As attend_slice_make. key_rows: how many rows of K the sequence owns, those from kv_len on included. */
WORD attend_slice slice_make(const attend_problem &p, const attend_operands &o, int64_t b, int64_t h,
                             int64_t &key_rows) {
  attend_slice s = {};
  s.b = b, s.h = h, s.kv_head = (uint32_t)h / ((uint32_t)p.heads / (uint32_t)p.kv_heads), s.q_len = p.q_len,
  s.k_len = p.k_len;
  int64_t q_first = 0, k_first = 0, q_batch = b, k_batch = b;
  if (p.ragged_q) {
    slice_ragged(p, o, OPERAND_Q_OFFSETS, b, p.q_total, p.q_len, q_first, s.q_len);
    q_batch = 0;
  }
  if (p.ragged_k) {
    slice_ragged(p, o, OPERAND_K_OFFSETS, b, p.k_total, p.k_len, k_first, s.k_len);
    k_batch = 0;
  }
  key_rows = s.k_len;
  if (p.paged) {
    if (p.block_count == 0) key_rows = 0; /* whatever the table says */
    const attend_layout &t = p.layout[OPERAND_BLOCK_TABLE];
    s.pages.table = (const char *)o.data[OPERAND_BLOCK_TABLE] + b * t.batch * (t.type == TYPE_I64 ? 8 : 4);
    s.pages.table_stride = t.row, s.pages.table_type = t.type, s.pages.block_size = p.block_size;
    s.pages.k_block = p.layout[OPERAND_K].batch, s.pages.v_block = p.layout[OPERAND_V].batch;
    k_batch = 0;
  }
  if (attend_has(&p, OPERAND_KV_LEN)) {
    const attend_layout &l = p.layout[OPERAND_KV_LEN];
    s.k_len = slice_clamp(slice_index(o.data[OPERAND_KV_LEN], b * l.batch, l.type), key_rows);
  }
  s.off = p.top_left ? 0 : s.k_len - s.q_len;
  s.q = slice_matrix(p, o, OPERAND_Q, q_batch, h, q_first);
  s.out = slice_matrix(p, o, OPERAND_OUT, q_batch, h, q_first);
  s.d_out = slice_matrix(p, o, OPERAND_D_OUT, q_batch, h, q_first);
  s.d_q = slice_matrix(p, o, OPERAND_D_Q, q_batch, h, q_first);
  s.k = slice_matrix(p, o, OPERAND_K, k_batch, s.kv_head, k_first);
  s.v = slice_matrix(p, o, OPERAND_V, k_batch, s.kv_head, k_first);
  s.d_k = slice_matrix(p, o, OPERAND_D_K, k_batch, s.kv_head, k_first);
  s.d_v = slice_matrix(p, o, OPERAND_D_V, k_batch, s.kv_head, k_first);
  s.mask = slice_matrix(p, o, OPERAND_MASK, b, h, 0);
  s.bias = slice_matrix(p, o, OPERAND_BIAS, b, h, 0);
  s.probs = slice_matrix(p, o, OPERAND_PROBS, b, h, 0);
  s.scores = slice_matrix(p, o, OPERAND_SCORES, b, h, 0);
  attend_matrix lse = slice_matrix(p, o, OPERAND_LSE, q_batch, h, q_first);
  attend_matrix d_lse = slice_matrix(p, o, OPERAND_D_LSE, q_batch, h, q_first);
  s.lse = lse.data, s.lse_row = lse.row, s.d_lse = d_lse.data, s.d_lse_row = d_lse.row;
  slice_of_head(s, p, o, b, h);
  s.sink = -INFINITY;
  if (o.data[OPERAND_SINK]) {
    const attend_layout &l = p.layout[OPERAND_SINK];
    s.sink = l.type == TYPE_F64 ? ((const double *)o.data[OPERAND_SINK])[h * l.head]
                                : slice_load_f32(o.data[OPERAND_SINK], h * l.head, l.type);
  }
  return s;
}

/* Rows of Q, K, V or dO as the products read them: `block` is the stride from page to page where table is given. */
struct slice_rows {
  const char *data;
  int64_t row, col, end, block;
  const attend_pages *pages;
  int64_t block_count;
};

WORD slice_rows slice_rows_of(const attend_matrix &m, int64_t end) {
  slice_rows r = {m.data, m.row, m.col, end, 0, NULL, 0};
  return r;
}
WORD slice_rows slice_rows_paged(const attend_matrix &m, const attend_slice &s, int64_t block, int64_t block_count) {
  slice_rows r = {m.data, m.row, m.col, s.k_len, block, s.pages.table ? &s.pages : NULL, block_count};
  return r;
}

/* Element offset of row j < end. */
WORD int64_t slice_row_offset(const slice_rows &r, int64_t j) {
  if (!r.pages) return j * r.row;
  int64_t page = slice_clamp(attend_page(r.pages, j), r.block_count - 1);
  return page * r.block + j % r.pages->block_size * r.row;
}

#endif
