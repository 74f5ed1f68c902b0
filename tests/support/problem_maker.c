/* SPDX-License-Identifier: MIT */
/* From a seed to a spec, from a spec to guarded tensors. */
#include "support/problem_maker.h"

#include "api/element.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- Random numbers: splitmix64 ---------------------------------------------------------------------------------- */

uint64_t random_next(uint64_t *state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
double random_uniform(uint64_t *state) { return (double)(random_next(state) >> 11) * 0x1p-53; }
double random_normal(uint64_t *state) { /* sum of uniforms: variance 1, no tails beyond 3.5 */
  double sum = -2;
  for (int i = 0; i < 4; i++) sum += random_uniform(state);
  return sum * 1.7320508;
}
static bool chance(uint64_t *state, double probability) { return random_uniform(state) < probability; }
static int64_t below(uint64_t *state, int64_t n) { return (int64_t)(random_next(state) % (uint64_t)n); }

/* ---- Specs ----------------------------------------------------------------------------------------------------- */

static int64_t random_length(uint64_t *r) {
  static const int64_t lengths[] = {0,  1,  2,  3,  5,  7,  8,   15,  16,  17,  24, 31,
                                    32, 33, 48, 63, 64, 65, 100, 127, 129, 200, 300};
  return chance(r, 0.03) ? 0 : lengths[1 + below(r, sizeof lengths / sizeof *lengths - 1)];
}
static int64_t random_dim(uint64_t *r) {
  static const int64_t dims[] = {1, 2, 3, 7, 8, 15, 16, 17, 24, 32, 40, 64, 64, 65, 80, 96, 128, 130};
  return chance(r, 0.02) ? 0 : dims[below(r, sizeof dims / sizeof *dims)];
}

problem_spec random_spec(uint64_t seed, attend_dtype dtype, attend_direction direction) {
  uint64_t state = seed * 4 + dtype.code + dtype.bits + (uint64_t)direction * 1000003, *r = &state;
  problem_spec s = {.seed = random_next(r), .dtype = dtype};
  int64_t budget = direction == ATTEND_FORWARD ? 1500000 : 250000;
  do {
    s.batch = chance(r, 0.02) ? 0 : 1 + below(r, 3);
    s.kv_heads = 1 + below(r, 3);
    s.heads = s.kv_heads * (chance(r, 0.6) ? 1 : 1 + below(r, 4));
    s.q_len = random_length(r);
    s.k_len = chance(r, 0.5) ? s.q_len : random_length(r);
    s.head_dim = random_dim(r);
    s.v_dim = chance(r, 0.7) ? s.head_dim : random_dim(r);
  } while (s.batch * s.heads * (s.q_len + 1) * (s.k_len + 1) * (s.head_dim + s.v_dim + 4) > budget);
  if (chance(r, 0.25)) s.form = FORM_RAGGED;
  if (direction == ATTEND_FORWARD && chance(r, 0.15)) s.form = FORM_PAGED;
  s.ragged_q = s.form == FORM_RAGGED || (s.form == FORM_PAGED && chance(r, 0.4));
  s.block_size = 1 + below(r, 20);
  s.one_key_head = s.form == FORM_DENSE && s.kv_heads == 1 && chance(r, 0.4);
  s.index64 = chance(r, 0.5);
  s.kv_len = s.form == FORM_PAGED || chance(r, 0.2);
  s.mask_rank = chance(r, 0.25) ? (chance(r, 0.5) ? 2 : 4) : 0;
  s.mask_shape = (int)below(r, 16);
  s.bias = chance(r, 0.3) ? 1 + (int)below(r, 2) : 0;
  s.bias_shape = (int)below(r, 16);
  s.alibi = chance(r, 0.15) ? 1 + (int)below(r, 2) : 0;
  s.sink = chance(r, 0.15) ? 1 + (int)below(r, 2) : 0;
  s.lse = chance(r, 0.6);
  s.probs = s.scores = false;
  s.d_lse = chance(r, 0.3);
  s.d_q = chance(r, 0.85);
  s.d_k = chance(r, 0.85);
  s.d_v = chance(r, 0.85);
  s.d_bias = s.bias && chance(r, 0.7);
  s.d_sink = s.sink && chance(r, 0.8);
  if (!s.d_q && !s.d_k && !s.d_v && !s.d_bias && !s.d_sink) s.d_q = true;
  s.magnitude = chance(r, 0.2) ? 4 : 1;
  if (chance(r, 0.4)) s.options.flags |= ATTEND_CAUSAL;
  if (chance(r, 0.2)) s.options.flags |= ATTEND_TOP_LEFT;
  if (chance(r, 0.2)) {
    s.options.flags |= ATTEND_WINDOW;
    s.options.window_left = chance(r, 0.3) ? -1 : chance(r, 0.1) ? INT64_MAX / 2 : below(r, 70);
    s.options.window_right = chance(r, 0.3) ? -1 : chance(r, 0.1) ? INT64_MAX / 2 : below(r, 70);
  }
  if (chance(r, 0.2)) {
    s.options.flags |= ATTEND_SCALE;
    s.options.scale = random_normal(r) * 0.3;
  }
  if (chance(r, 0.2)) s.options.softcap = 0.5 + 20 * random_uniform(r);
  if (chance(r, 0.2)) s.dropout = chance(r, 0.1) ? 0.999999 : random_uniform(r) * 0.9;
  s.dropout_seed = random_next(r);
  s.dropout_offset = random_next(r);
  if (direction == ATTEND_BACKWARD && chance(r, 0.2)) s.options.flags |= ATTEND_ACCUMULATE;
  s.options.threads = 1 + (int)below(r, 4);
  return s;
}

void problem_describe(const problem_spec *s, char *text, size_t size) {
  static const char *const forms[] = {"dense", "ragged", "paged"};
  snprintf(text, size,
           "%s B%" PRId64 " H%" PRId64 "/%" PRId64 " Nq%" PRId64 " Nk%" PRId64 " D%" PRId64 "/%" PRId64
           " flags 0x%x window %" PRId64 ",%" PRId64
           " softcap %g dropout %g scale %g mask %d:%x bias %d:%x alibi %d sink %d kv_len %d lse %d d_lse %d"
           " grads %d%d%d%d%d threads %d magnitude %g",
           forms[s->form], s->batch, s->heads, s->kv_heads, s->q_len, s->k_len, s->head_dim, s->v_dim, s->options.flags,
           s->options.window_left, s->options.window_right, s->options.softcap, s->dropout, s->options.scale,
           s->mask_rank, (unsigned)s->mask_shape, s->bias, (unsigned)s->bias_shape, s->alibi, s->sink, s->kv_len,
           s->lse, s->d_lse, s->d_q, s->d_k, s->d_v, s->d_bias, s->d_sink, s->options.threads, s->magnitude);
}

/* ---- Tensors --------------------------------------------------------------------------------------------------- */

attend_type tensor_type(const test_tensor *t) {
  switch (t->view.dtype.code << 8 | t->view.dtype.bits) {
  case 2 << 8 | 32:
    return TYPE_F32;
  case 2 << 8 | 16:
    return TYPE_F16;
  case 4 << 8 | 16:
    return TYPE_BF16;
  case 2 << 8 | 64:
    return TYPE_F64;
  case 6 << 8 | 8:
    return TYPE_BOOL;
  case 32:
    return TYPE_I32;
  case 64:
    return TYPE_I64;
  default:
    abort();
  }
}

int64_t tensor_count(const test_tensor *t) {
  int64_t count = 1;
  for (int d = 0; d < t->view.ndim; d++) count *= t->shape[d];
  return count;
}

static char *element_at(const test_tensor *t, int64_t index) {
  int64_t offset = 0;
  for (int d = t->view.ndim - 1; d >= 0; index /= t->shape[d], d--) offset += index % t->shape[d] * t->strides[d];
  return (char *)t->view.data + (int64_t)t->view.byte_offset + offset * (t->view.dtype.bits / 8);
}

double tensor_get(const test_tensor *t, int64_t index) { return attend_load(element_at(t, index), 0, tensor_type(t)); }

void tensor_set(test_tensor *t, int64_t index, double x) {
  char *at = element_at(t, index);
  attend_type type = tensor_type(t);
  if (type == TYPE_BOOL)
    *at = x != 0;
  else if (type == TYPE_I32)
    *(int32_t *)(void *)at = (int32_t)x;
  else if (type == TYPE_I64)
    *(int64_t *)(void *)at = (int64_t)x;
  else
    attend_store(at, 0, type, x);
}

static void point_at(test_tensor *t) {
  int64_t lowest = 0;
  for (int d = 0; d < t->view.ndim; d++)
    if (t->strides[d] < 0) lowest += (t->shape[d] - 1) * t->strides[d];
  t->view.data = t->memory.data;
  t->view.byte_offset = (uint64_t)(-lowest * (t->view.dtype.bits / 8));
  t->view.shape = t->shape;
  t->view.strides = t->strides;
}

void tensor_clone(test_tensor *to, const test_tensor *from, bool at_end) {
  *to = *from;
  to->memory = guarded_make(from->memory.bytes, at_end);
  memcpy(to->memory.data, from->memory.data, to->memory.bytes);
  to->view.data = to->memory.data;
  to->view.shape = to->shape;
  to->view.strides = to->strides;
}

bool tensor_gaps_intact(const test_tensor *t) {
  size_t size = t->view.dtype.bits / 8;
  char *element = calloc(t->memory.bytes + 1, 1);
  for (int64_t i = 0; i < tensor_count(t); i++) memset(element + (element_at(t, i) - t->memory.data), 1, size);
  bool intact = true;
  for (size_t i = 0; i < t->memory.bytes; i++)
    if (!element[i] && (unsigned char)t->memory.data[i] != 0xFF) intact = false;
  free(element);
  return intact;
}

bool tensor_same_bits(const test_tensor *a, const test_tensor *b) {
  for (int64_t i = 0; i < tensor_count(a); i++)
    if (memcmp(element_at(a, i), element_at(b, i), a->view.dtype.bits / 8)) return false;
  return true;
}

/* A tensor of a random layout: dimensions in some order in memory, gaps between them, sometimes backwards. */
static void make_tensor(test_problem *p, uint64_t *r, operand_id id, attend_dtype dtype, int ndim,
                        const int64_t *shape) {
  test_tensor *t = &p->t[id];
  *t = (test_tensor){.view = {.device = {ATTEND_CPU, 0}, .ndim = ndim, .dtype = dtype}};
  int order[4] = {0, 1, 2, 3}; /* outermost first */
  double layout = p->spec.plain_layout ? 0 : random_uniform(r);
  if (layout > 0.45 && ndim >= 3) order[ndim - 3] = ndim - 2, order[ndim - 2] = ndim - 3;
  if (layout > 0.85 && ndim >= 2)
    for (int d = ndim - 1; d > 0; d--) {
      int other = (int)below(r, d + 1), swap = order[d];
      order[d] = order[other];
      order[other] = swap;
    }
  bool padded = !p->spec.plain_layout && chance(r, 0.4), backwards = !p->spec.plain_layout && chance(r, 0.05);
  int64_t step = 1, elements = 1;
  for (int x = ndim - 1; x >= 0; x--) {
    int d = order[x];
    t->shape[d] = shape[d];
    t->strides[d] = step;
    step *= shape[d];
    if (padded && shape[d] && chance(r, 0.4)) step += 1 + below(r, 9);
  }
  for (int d = 0; d < ndim; d++)
    elements = shape[d] == 0 || elements == 0 ? 0 : elements + (shape[d] - 1) * t->strides[d];
  if (backwards && ndim) {
    int d = (int)below(r, ndim);
    t->strides[d] = -t->strides[d];
  }
  t->memory = guarded_make((size_t)elements * (dtype.bits / 8), p->spec.plain_layout || chance(r, 0.7));
  point_at(t);
}

static void fill_normal(test_tensor *t, uint64_t *r, double magnitude) {
  for (int64_t i = 0; i < tensor_count(t); i++) tensor_set(t, i, magnitude * random_normal(r));
}

/* Offsets of `batch` sequences of at most `longest` rows, some of none. */
static int64_t fill_offsets(test_tensor *t, uint64_t *r, int64_t batch, int64_t longest) {
  int64_t at = 0;
  tensor_set(t, 0, 0);
  for (int64_t b = 0; b < batch; b++) {
    at += chance(r, 0.15) ? 0 : chance(r, 0.3) ? longest : below(r, longest + 1);
    tensor_set(t, b + 1, (double)at);
  }
  return at;
}

static void broadcast_shape(const problem_spec *s, int bits, int64_t shape[4]) {
  const int64_t full[4] = {s->batch, s->heads, s->q_len, s->k_len};
  for (int d = 0; d < 4; d++) shape[d] = bits & 1 << d ? 1 : full[d];
}

void problem_make(test_problem *p, const problem_spec *spec) {
  *p = (test_problem){.spec = *spec, .options = spec->options};
  problem_spec *s = &p->spec;
  p->options.dropout = s->dropout;
  uint64_t state = s->seed, *r = &state;
  attend_dtype dtype = s->dtype, wide = dtype.bits == 64 ? ATTEND_F64 : ATTEND_F32;
  attend_dtype index = s->index64 ? ATTEND_I64 : ATTEND_I32;
  double magnitude = s->magnitude > 0 ? s->magnitude : 1;

  int64_t q_total = 0, k_total = 0, block_count = 0;
  if (s->ragged_q) {
    make_tensor(p, r, OPERAND_Q_OFFSETS, index, 1, (int64_t[]){s->batch + 1});
    q_total = fill_offsets(&p->t[OPERAND_Q_OFFSETS], r, s->batch, s->q_len);
    if (q_total < s->q_len) s->q_len = q_total;
    p->options.max_q_len = s->q_len;
  }
  if (s->form == FORM_RAGGED) {
    make_tensor(p, r, OPERAND_K_OFFSETS, index, 1, (int64_t[]){s->batch + 1});
    k_total = fill_offsets(&p->t[OPERAND_K_OFFSETS], r, s->batch, s->k_len);
    if (k_total < s->k_len) s->k_len = k_total;
    p->options.max_k_len = s->k_len;
  }
  if (s->form == FORM_PAGED) {
    int64_t columns = (s->k_len + s->block_size - 1) / s->block_size;
    block_count = s->batch * columns + 2;
    s->k_len = columns * s->block_size;
    make_tensor(p, r, OPERAND_BLOCK_TABLE, index, 2, (int64_t[]){s->batch, columns});
    for (int64_t x = 0; x < s->batch * columns; x++) /* blocks in some order, some shared */
      tensor_set(&p->t[OPERAND_BLOCK_TABLE], x, (double)below(r, block_count));
  }

  const int64_t q_dense[] = {s->batch, s->heads, s->q_len, s->head_dim}, q_ragged[] = {q_total, s->heads, s->head_dim};
  const int64_t o_dense[] = {s->batch, s->heads, s->q_len, s->v_dim}, o_ragged[] = {q_total, s->heads, s->v_dim};
  const int64_t *q_shape = s->ragged_q ? q_ragged : q_dense, *o_shape = s->ragged_q ? o_ragged : o_dense;
  int q_rank = s->ragged_q ? 3 : 4, k_rank = s->form == FORM_RAGGED || s->one_key_head ? 3 : 4;
  int64_t k_shape[4] = {s->batch, s->kv_heads, s->k_len, s->head_dim};
  if (s->form == FORM_PAGED) k_shape[0] = block_count, k_shape[2] = s->block_size;
  if (s->form == FORM_RAGGED) k_shape[0] = k_total, k_shape[2] = s->head_dim;
  if (s->one_key_head) k_shape[1] = s->k_len, k_shape[2] = s->head_dim;
  int64_t v_shape[4] = {k_shape[0], k_shape[1], k_shape[2], k_shape[3]};
  v_shape[k_rank - 1] = s->v_dim;

  make_tensor(p, r, OPERAND_Q, dtype, q_rank, q_shape);
  make_tensor(p, r, OPERAND_K, dtype, k_rank, k_shape);
  make_tensor(p, r, OPERAND_V, dtype, k_rank, v_shape);
  make_tensor(p, r, OPERAND_OUT, dtype, q_rank, o_shape);
  make_tensor(p, r, OPERAND_D_OUT, dtype, q_rank, o_shape);
  fill_normal(&p->t[OPERAND_Q], r, magnitude);
  fill_normal(&p->t[OPERAND_K], r, magnitude);
  fill_normal(&p->t[OPERAND_V], r, 1);
  fill_normal(&p->t[OPERAND_D_OUT], r, 1);

  int64_t shape[4];
  if (s->mask_rank) {
    broadcast_shape(s, s->mask_shape, shape);
    const int64_t padding[] = {s->batch, s->k_len};
    make_tensor(p, r, OPERAND_MASK, ATTEND_BOOL, s->mask_rank, s->mask_rank == 2 ? padding : shape);
    double visible = chance(r, 0.1) ? 0.02 : 0.7;
    for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_MASK]); i++)
      tensor_set(&p->t[OPERAND_MASK], i, chance(r, visible));
  }
  if (s->bias) {
    broadcast_shape(s, s->bias_shape, shape);
    make_tensor(p, r, OPERAND_BIAS, s->bias == 1 ? dtype : ATTEND_F32, 4, shape);
    fill_normal(&p->t[OPERAND_BIAS], r, 1);
    bool hides = chance(r, 0.4);
    for (int64_t i = 0; hides && i < tensor_count(&p->t[OPERAND_BIAS]); i++)
      if (chance(r, 0.2)) tensor_set(&p->t[OPERAND_BIAS], i, -INFINITY);
    if (s->d_bias) make_tensor(p, r, OPERAND_D_BIAS, s->bias == 1 ? dtype : ATTEND_F32, 4, shape);
  }
  if (s->alibi) {
    const int64_t per_head[] = {s->heads}, both[] = {s->batch, s->heads};
    make_tensor(p, r, OPERAND_ALIBI, ATTEND_F32, s->alibi, s->alibi == 1 ? per_head : both);
    for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_ALIBI]); i++)
      tensor_set(&p->t[OPERAND_ALIBI], i, random_uniform(r));
  }
  if (s->sink) {
    make_tensor(p, r, OPERAND_SINK, s->sink == 1 ? dtype : wide, 1, (int64_t[]){s->heads});
    fill_normal(&p->t[OPERAND_SINK], r, 1);
    if (s->d_sink) make_tensor(p, r, OPERAND_D_SINK, s->sink == 1 ? dtype : wide, 1, (int64_t[]){s->heads});
  }
  if (s->kv_len) {
    make_tensor(p, r, OPERAND_KV_LEN, index, 1, (int64_t[]){s->batch});
    for (int64_t b = 0; b < s->batch; b++) {
      int64_t most = s->k_len;
      if (s->form == FORM_RAGGED)
        most = (int64_t)(tensor_get(&p->t[OPERAND_K_OFFSETS], b + 1) - tensor_get(&p->t[OPERAND_K_OFFSETS], b));
      int64_t length = chance(r, 0.1) ? 0 : chance(r, 0.2) ? most : below(r, most + 1);
      tensor_set(&p->t[OPERAND_KV_LEN], b, (double)length);
      /* Nobody may read the table beyond the sequence's keys. */
      if (s->form == FORM_PAGED)
        for (int64_t c = (length + s->block_size - 1) / s->block_size; c < s->k_len / s->block_size; c++)
          tensor_set(&p->t[OPERAND_BLOCK_TABLE], b * (s->k_len / s->block_size) + c, c % 2 ? -1 : 0x7FFFFFFF);
    }
  }
  const int64_t l_dense[] = {s->batch, s->heads, s->q_len}, l_ragged[] = {s->heads, q_total};
  const int64_t full[] = {s->batch, s->heads, s->q_len, s->k_len};
  const int64_t *l_shape = s->ragged_q ? l_ragged : l_dense;
  make_tensor(p, r, OPERAND_LSE, wide, s->ragged_q ? 2 : 3, l_shape);
  if (s->probs) make_tensor(p, r, OPERAND_PROBS, chance(r, 0.5) ? dtype : wide, 4, full);
  if (s->scores) make_tensor(p, r, OPERAND_SCORES, chance(r, 0.5) ? dtype : wide, 4, full);
  if (s->d_lse) {
    make_tensor(p, r, OPERAND_D_LSE, wide, s->ragged_q ? 2 : 3, l_shape);
    fill_normal(&p->t[OPERAND_D_LSE], r, 1);
  }
  if (s->d_q) make_tensor(p, r, OPERAND_D_Q, dtype, q_rank, q_shape);
  if (s->d_k) make_tensor(p, r, OPERAND_D_K, dtype, k_rank, k_shape);
  if (s->d_v) make_tensor(p, r, OPERAND_D_V, dtype, k_rank, v_shape);
  for (operand_id id = OPERAND_D_Q; id < OPERAND_COUNT; id++)
    if (p->t[id].view.data && s->options.flags & ATTEND_ACCUMULATE) fill_normal(&p->t[id], r, 1);
}

void problem_free(test_problem *p) {
  for (operand_id id = 0; id < OPERAND_COUNT; id++) guarded_free(&p->t[id].memory);
}

bool is_output_of(attend_direction direction, operand_id id) {
  if (direction == ATTEND_BACKWARD) return id >= OPERAND_D_Q;
  return id == OPERAND_OUT || id == OPERAND_LSE || id == OPERAND_PROBS || id == OPERAND_SCORES;
}
