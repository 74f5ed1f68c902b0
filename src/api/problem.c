/* SPDX-License-Identifier: MIT */
/* Slices: one (sequence, head) of a checked problem, with every stride, broadcast and length resolved. */
#include "element.h"

#include <math.h>

static char *at(const attend_problem *p, const attend_operands *o, operand_id id, int64_t elements) {
  if (!o->data[id]) return NULL;
  return (char *)o->data[id] + elements * (int64_t)attend_type_size(p->layout[id].type);
}

/* Matrix of `id` for sequence b (starting at row `first`), head h. */
static attend_matrix matrix(const attend_problem *p, const attend_operands *o, operand_id id, int64_t b, int64_t h,
                            int64_t first) {
  const attend_layout *l = &p->layout[id];
  if (l->type == TYPE_NONE) return (attend_matrix){0};
  return (attend_matrix){at(p, o, id, b * l->batch + h * l->head + first * l->row), l->row, l->col};
}

static int64_t index_of(const attend_problem *p, const attend_operands *o, operand_id id, int64_t b) {
  return attend_load_index(o->data[id], b * p->layout[id].batch, p->layout[id].type);
}

void attend_sequence_lengths(const attend_problem *p, const attend_operands *o, int64_t b, int64_t *q_len,
                             int64_t *k_len) {
  *q_len = p->q_len, *k_len = p->k_len;
  if (p->ragged_q) *q_len = index_of(p, o, OPERAND_Q_OFFSETS, b + 1) - index_of(p, o, OPERAND_Q_OFFSETS, b);
  if (p->ragged_k) *k_len = index_of(p, o, OPERAND_K_OFFSETS, b + 1) - index_of(p, o, OPERAND_K_OFFSETS, b);
  if (attend_has(p, OPERAND_KV_LEN)) *k_len = index_of(p, o, OPERAND_KV_LEN, b);
}

void attend_slice_make(const attend_problem *p, const attend_operands *o, int64_t b, int64_t h, attend_slice *s) {
  *s = (attend_slice){.b = b, .h = h, .kv_head = h / (p->heads / p->kv_heads)};
  attend_sequence_lengths(p, o, b, &s->q_len, &s->k_len);
  int64_t q_first = 0, k_first = 0, q_batch = b, k_batch = b;
  if (p->ragged_q) {
    q_first = index_of(p, o, OPERAND_Q_OFFSETS, b);
    q_batch = 0;
  }
  if (p->ragged_k) {
    k_first = index_of(p, o, OPERAND_K_OFFSETS, b);
    k_batch = 0;
  }
  if (p->paged) {
    const attend_layout *t = &p->layout[OPERAND_BLOCK_TABLE];
    s->pages = (attend_pages){at(p, o, OPERAND_BLOCK_TABLE, b * t->batch),
                              t->row,
                              t->type,
                              p->block_size,
                              p->layout[OPERAND_K].batch,
                              p->layout[OPERAND_V].batch};
    k_batch = 0;
  }
  s->off = p->top_left ? 0 : s->k_len - s->q_len;

  s->q = matrix(p, o, OPERAND_Q, q_batch, h, q_first);
  s->out = matrix(p, o, OPERAND_OUT, q_batch, h, q_first);
  s->d_out = matrix(p, o, OPERAND_D_OUT, q_batch, h, q_first);
  s->d_q = matrix(p, o, OPERAND_D_Q, q_batch, h, q_first);
  s->k = matrix(p, o, OPERAND_K, k_batch, s->kv_head, k_first);
  s->v = matrix(p, o, OPERAND_V, k_batch, s->kv_head, k_first);
  s->d_k = matrix(p, o, OPERAND_D_K, k_batch, s->kv_head, k_first);
  s->d_v = matrix(p, o, OPERAND_D_V, k_batch, s->kv_head, k_first);
  s->mask = matrix(p, o, OPERAND_MASK, b, h, 0);
  s->bias = matrix(p, o, OPERAND_BIAS, b, h, 0);
  s->d_bias = matrix(p, o, OPERAND_D_BIAS, b, h, 0);
  s->probs = matrix(p, o, OPERAND_PROBS, b, h, 0);
  s->scores = matrix(p, o, OPERAND_SCORES, b, h, 0);

  const attend_layout *lse = &p->layout[OPERAND_LSE], *d_lse = &p->layout[OPERAND_D_LSE];
  s->lse = at(p, o, OPERAND_LSE, q_batch * lse->batch + h * lse->head + q_first * lse->row);
  s->lse_row = lse->row;
  s->d_lse = at(p, o, OPERAND_D_LSE, q_batch * d_lse->batch + h * d_lse->head + q_first * d_lse->row);
  s->d_lse_row = d_lse->row;

  const attend_layout *slopes = &p->layout[OPERAND_ALIBI], *sink = &p->layout[OPERAND_SINK];
  s->slope = o->data[OPERAND_ALIBI]
                 ? attend_load(o->data[OPERAND_ALIBI], b * slopes->batch + h * slopes->head, slopes->type)
                 : 0;
  s->sink = o->data[OPERAND_SINK] ? attend_load(o->data[OPERAND_SINK], h * sink->head, sink->type) : -INFINITY;
  s->d_sink = at(p, o, OPERAND_D_SINK, h * p->layout[OPERAND_D_SINK].head);

  if (p->dropout_threshold == 0) return;
  uint32_t counter[4] = {(uint32_t)o->dropout_offset, (uint32_t)(o->dropout_offset >> 32), (uint32_t)b, (uint32_t)h};
  uint32_t seed[2] = {(uint32_t)o->dropout_seed, (uint32_t)(o->dropout_seed >> 32)}, word[4];
  attend_philox(counter, seed, word);
  s->dropout_key[0] = word[0];
  s->dropout_key[1] = word[1];
}
