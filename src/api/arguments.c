/* SPDX-License-Identifier: MIT */
/* From attend_args and attend_options to attend_problem: everything that can be checked without looking at data. */
#include "api.h"
#include "element.h"
#include "text.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct checker {
  attend_plan *plan;
  attend_problem *p;
  const attend_tensor *t[OPERAND_COUNT];
  attend_options options;
} checker;

/* ---- One tensor ------------------------------------------------------------------------------------------------ */

static int32_t device_kind(attend_device d) {
  if (d.type == ATTEND_CUDA_HOST) return ATTEND_CPU;
  if (d.type == ATTEND_CUDA_MANAGED) return ATTEND_CUDA;
  return d.type;
}

/* Sizes not negative, strides without overflow, device, pointer alignment. Copies shape and strides into the plan. */
static attend_status check_tensor(checker *c, operand_id id) {
  const attend_tensor *t = c->t[id];
  const char *name = attend_operand_names[id];
  if (t->ndim < 0 || t->ndim > 4)
    return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected at most 4 dimensions, got %d", name, (int)t->ndim);
  if (t->ndim > 0 && !t->shape)
    return attend_fail(ATTEND_ERROR_NULL, "%s: shape is NULL, expected %d sizes", name, (int)t->ndim);
  attend_type type = type_of(t->dtype);
  if (type == TYPE_NONE)
    return attend_fail(ATTEND_ERROR_TYPE, "%s: expected f32, f16, bf16, f64, bool, i32 or i64, got %s", name,
                       dtype_name(t->dtype).s);
  const attend_tensor *q = c->t[OPERAND_Q];
  int32_t kind = device_kind(t->device);
  if (kind != ATTEND_CPU && kind != ATTEND_CUDA)
    return attend_fail(ATTEND_ERROR_DEVICE, "%s: expected a CPU (1) or CUDA (2) device, got DLPack device type %d",
                       name, (int)t->device.type);
  if (kind != device_kind(q->device) || (kind == ATTEND_CUDA && t->device.id != q->device.id))
    return attend_fail(ATTEND_ERROR_DEVICE, "%s: expected q's device (type %d, number %d), got type %d, number %d",
                       name, (int)q->device.type, (int)q->device.id, (int)t->device.type, (int)t->device.id);
  int64_t *shape = c->plan->shape[id], *strides = c->plan->strides[id];
  int64_t size = (int64_t)attend_type_size(type), compact = 1;
  bool empty = false;
  for (int i = 0; i < t->ndim; i++) {
    shape[i] = t->shape[i];
    if (shape[i] < 0)
      return attend_fail(ATTEND_ERROR_SHAPE, "%s: shape %s: sizes must not be negative", name,
                         list(t->shape, t->ndim).s);
    empty = empty || shape[i] == 0;
  }
  const wide too_far = (wide)1 << 100; /* and one more product fits beside it */
  wide reach = 1;                      /* elements from the lowest address to the highest */
  for (int i = t->ndim - 1; i >= 0; i--) {
    strides[i] = t->strides ? t->strides[i] : compact;
    if (__builtin_mul_overflow(compact, shape[i] ? shape[i] : 1, &compact)) compact = INT64_MAX, reach = too_far;
    if (shape[i] > 1) reach += ((wide)shape[i] - 1) * (strides[i] < 0 ? -(wide)strides[i] : strides[i]);
    if (reach > too_far) reach = too_far;
  }
  if (!empty && reach * size > (wide)1 << 60) /* further than addresses reach, and sums of several fit in 64 bits */
    return attend_fail(ATTEND_ERROR_SHAPE, "%s: shape %s with strides %s spans more than 2^60 bytes", name,
                       list(shape, t->ndim).s, list(strides, t->ndim).s);
  if (empty) /* never read: strides must not reach address arithmetic */
    for (int i = 0; i < t->ndim; i++) strides[i] = 0;
  c->plan->ndim[id] = t->ndim;
  c->p->layout[id].type = type;
  return ATTEND_OK;
}

static attend_status wrong_type(const checker *c, operand_id id, const char *expected) {
  return attend_fail(ATTEND_ERROR_TYPE, "%s: expected element type %s, got %s", attend_operand_names[id], expected,
                     dtype_name(c->t[id]->dtype).s);
}

static attend_status wrong_shape(const checker *c, operand_id id, const char *meaning, const int64_t *expected,
                                 int count) {
  return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected shape %s = %s, got %s", attend_operand_names[id], meaning,
                     list(expected, count).s, list(c->plan->shape[id], c->plan->ndim[id]).s);
}

static bool same(const checker *c, operand_id id, const int64_t *expected, int count) {
  if (c->plan->ndim[id] != count) return false;
  for (int i = 0; i < count; i++)
    if (c->plan->shape[id][i] != expected[i]) return false;
  return true;
}

/* ---- q, k, v: sizes of the problem ----------------------------------------------------------------------------- */

static attend_status check_sizes(checker *c) {
  attend_problem *p = c->p;
  int64_t(*shape)[4] = c->plan->shape;
  const int32_t *ndim = c->plan->ndim;
  p->type = p->layout[OPERAND_Q].type;
  if (p->type > TYPE_F64) return wrong_type(c, OPERAND_Q, "f32, f16, bf16 or f64");
  for (operand_id id = OPERAND_K; id <= OPERAND_V; id++)
    if (p->layout[id].type != p->type) return wrong_type(c, id, type_names[p->type]);

  p->paged = c->t[OPERAND_BLOCK_TABLE];
  p->ragged_q = c->t[OPERAND_Q_OFFSETS];
  p->ragged_k = c->t[OPERAND_K_OFFSETS];
  if (p->paged && p->ragged_k)
    return attend_fail(ATTEND_ERROR_OPTION, "k_offsets: expected none with a block_table (paged keys), got one");
  if (!p->paged && p->ragged_q != p->ragged_k)
    return attend_fail(ATTEND_ERROR_NULL, "%s: a ragged batch needs both q_offsets and k_offsets, got only %s",
                       p->ragged_q ? "k_offsets" : "q_offsets", p->ragged_q ? "q_offsets" : "k_offsets");
  if (p->paged && !c->t[OPERAND_KV_LEN])
    return attend_fail(ATTEND_ERROR_NULL, "kv_len: a block_table (paged keys) needs the sequences' lengths, got NULL");

  int q_rank = p->ragged_q ? 3 : 4;
  if (ndim[OPERAND_Q] != q_rank)
    return attend_fail(ATTEND_ERROR_SHAPE, "q: expected %s, got shape %s",
                       p->ragged_q ? "[Tq,H,D] (ragged, since q_offsets is given)"
                                   : "[B,H,Nq,D] (ragged [T,H,D] needs q_offsets and k_offsets)",
                       list(shape[OPERAND_Q], ndim[OPERAND_Q]).s);
  const int64_t *q = shape[OPERAND_Q];
  p->heads = q[1];
  p->head_dim = q[q_rank - 1];
  for (operand_id id = OPERAND_K; id <= OPERAND_V; id++) {
    const int64_t *s = shape[id];
    bool one_head = !p->paged && !p->ragged_k && ndim[id] == 3, ragged = p->ragged_k && ndim[id] == 3;
    if (!one_head && !ragged && (ndim[id] != 4 || p->ragged_k))
      return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected %s, got shape %s", attend_operand_names[id],
                         p->paged      ? "[blocks,Hkv,block_size,D] (paged)"
                         : p->ragged_k ? "[Tk,Hkv,D] (ragged, since k_offsets is given)"
                                       : "[B,Hkv,Nk,D], or [B,Nk,D] for one head",
                         list(s, ndim[id]).s);
    int64_t heads = one_head ? 1 : s[1], length = ragged ? s[0] : s[one_head ? 1 : 2];
    if (id == OPERAND_K) {
      p->kv_heads = heads;
      p->k_len = length;
      if (s[ndim[id] - 1] != p->head_dim)
        return attend_fail(ATTEND_ERROR_SHAPE,
                           "k: expected q's head_dim %" PRId64 " in the last dimension, got shape %s", p->head_dim,
                           list(s, ndim[id]).s);
    } else {
      p->v_dim = s[ndim[id] - 1];
      if (heads != p->kv_heads || length != p->k_len || (!ragged && s[0] != shape[OPERAND_K][0]))
        return attend_fail(ATTEND_ERROR_SHAPE, "v: expected k's shape %s but for the last dimension, got %s",
                           list(shape[OPERAND_K], ndim[OPERAND_K]).s, list(s, ndim[id]).s);
    }
  }
  if (p->kv_heads == 0 ? p->heads != 0 : p->heads % p->kv_heads)
    return attend_fail(ATTEND_ERROR_SHAPE, "k: %" PRId64 " heads do not divide q's %" PRId64, p->kv_heads, p->heads);

  int64_t batch = p->ragged_q ? -1 : q[0];
  const operand_id counts[] = {OPERAND_Q_OFFSETS, OPERAND_K_OFFSETS};
  for (int i = 0; i < 2; i++) {
    operand_id id = counts[i];
    if (!c->t[id]) continue;
    if (ndim[id] != 1 || shape[id][0] < 1)
      return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected shape [B+1], got %s", attend_operand_names[id],
                         list(shape[id], ndim[id]).s);
    if (batch >= 0 && shape[id][0] != batch + 1) return wrong_shape(c, id, "[B+1]", (int64_t[]){batch + 1}, 1);
    batch = shape[id][0] - 1;
  }
  p->batch = batch;
  if (p->ragged_q) {
    p->q_total = q[0];
    int64_t most = c->options.max_q_len;
    p->q_len = most && most < p->q_total ? most : p->q_total;
  } else
    p->q_len = q[2];
  if (p->ragged_k) {
    p->k_total = p->k_len;
    int64_t most = c->options.max_k_len;
    if (most && most < p->k_total) p->k_len = most;
  } else if (p->paged) {
    const int64_t *table = shape[OPERAND_BLOCK_TABLE];
    if (ndim[OPERAND_BLOCK_TABLE] != 2 || table[0] != p->batch)
      return attend_fail(ATTEND_ERROR_SHAPE, "block_table: expected shape [B,columns] with B = %" PRId64 ", got %s",
                         p->batch, list(table, ndim[OPERAND_BLOCK_TABLE]).s);
    p->block_count = shape[OPERAND_K][0];
    p->block_size = p->k_len;
    p->table_columns = table[1];
    if (p->block_size == 0)
      return attend_fail(ATTEND_ERROR_SHAPE, "k: expected a block_size of at least 1, got shape %s",
                         list(shape[OPERAND_K], 4).s);
    if (__builtin_mul_overflow(p->block_size, p->table_columns, &p->k_len) || p->k_len > INT64_MAX / 4)
      return attend_fail(ATTEND_ERROR_SHAPE, "block_table: %" PRId64 " columns of %" PRId64 " keys overflow",
                         p->table_columns, p->block_size);
  } else if (shape[OPERAND_K][0] != p->batch)
    return attend_fail(ATTEND_ERROR_SHAPE,
                       "k: expected q's batch size %" PRId64 " in the first dimension, got shape %s", p->batch,
                       list(shape[OPERAND_K], ndim[OPERAND_K]).s);
  return ATTEND_OK;
}

/* ---- The other operands ---------------------------------------------------------------------------------------- */

enum { OF_T = 1, OF_L = 2, OF_F32 = 4, OF_BOOL = 8, OF_INDEX = 16 };

static attend_status check_type(const checker *c, operand_id id, int accepted) {
  attend_type type = c->p->layout[id].type, t = c->p->type, l = t == TYPE_F64 ? TYPE_F64 : TYPE_F32;
  if ((accepted & OF_T && type == t) || (accepted & OF_L && type == l) || (accepted & OF_F32 && type == TYPE_F32) ||
      (accepted & OF_BOOL && type == TYPE_BOOL) || (accepted & OF_INDEX && (type == TYPE_I32 || type == TYPE_I64)))
    return ATTEND_OK;
  text expected = {""};
  snprintf(expected.s, sizeof expected.s, "%s%s%s",
           accepted & OF_T       ? type_names[t]
           : accepted & OF_BOOL  ? "bool"
           : accepted & OF_INDEX ? "i32 or i64"
                                 : "",
           accepted & OF_T && ((accepted & OF_F32 && t != TYPE_F32) || (accepted & OF_L && t != l)) ? " or " : "",
           accepted & OF_F32 && !(accepted & OF_T && t == TYPE_F32) ? "f32"
           : accepted & OF_L && !(accepted & OF_T && t == l)        ? type_names[l]
                                                                    : "");
  return wrong_type(c, id, expected.s);
}

static bool broadcasts(const checker *c, operand_id id) {
  const attend_problem *p = c->p;
  const int64_t full[4] = {p->batch, p->heads, p->q_len, p->k_len}, *s = c->plan->shape[id];
  for (int i = 0; i < 4; i++) {
    bool bound =
        (i == 2 && p->ragged_q) || (i == 3 && p->ragged_k); /* full is an upper bound: more columns do no harm */
    if (s[i] != 1 && s[i] != full[i] && !(bound && s[i] > full[i])) return false;
  }
  return true;
}

static attend_status check_scores_like(checker *c, operand_id id) {
  const attend_problem *p = c->p;
  const int64_t full[4] = {p->batch, p->heads, p->q_len, p->k_len};
  if (id == OPERAND_MASK && c->plan->ndim[id] == 2) {
    const int64_t padding[2] = {p->batch, p->k_len};
    const int64_t *s = c->plan->shape[id];
    if (s[0] != p->batch || (s[1] != p->k_len && !(p->ragged_k && s[1] > p->k_len)))
      return wrong_shape(c, id, "[B,Nk] (rank 2 is key padding)", padding, 2);
    return ATTEND_OK;
  }
  if (c->plan->ndim[id] != 4)
    return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected %srank 4 broadcasting to [B,H,Nq,Nk] = %s, got shape %s",
                       attend_operand_names[id], id == OPERAND_MASK ? "[B,Nk] or " : "", list(full, 4).s,
                       list(c->plan->shape[id], c->plan->ndim[id]).s);
  if (id == OPERAND_PROBS || id == OPERAND_SCORES ? !same(c, id, full, 4) : !broadcasts(c, id))
    return wrong_shape(c, id,
                       id == OPERAND_PROBS || id == OPERAND_SCORES ? "[B,H,Nq,Nk]"
                                                                   : "1 or the size in each dimension of [B,H,Nq,Nk]",
                       full, 4);
  return ATTEND_OK;
}

static attend_status check_operands(checker *c) {
  attend_problem *p = c->p;
  const int64_t(*shape)[4] = (const int64_t(*)[4])c->plan->shape;
  attend_status s;
#define TRY(call)                                                                                                      \
  if ((s = (call))) return s
  const int64_t q_rows[4] = {p->ragged_q ? p->q_total : p->batch, p->heads, p->q_len, p->v_dim};
  for (operand_id id = OPERAND_OUT; id < OPERAND_COUNT; id++) {
    if (!c->t[id]) continue;
    const int64_t per_head[1] = {p->heads}, per_sequence[1] = {p->batch};
    switch (id) {
    case OPERAND_OUT:
    case OPERAND_D_OUT: {
      TRY(check_type(c, id, OF_T));
      const int64_t ragged[3] = {p->q_total, p->heads, p->v_dim};
      if (p->ragged_q ? !same(c, id, ragged, 3) : !same(c, id, q_rows, 4))
        return wrong_shape(c, id, p->ragged_q ? "[Tq,H,Dv]" : "[B,H,Nq,Dv]", p->ragged_q ? ragged : q_rows,
                           p->ragged_q ? 3 : 4);
      break;
    }
    case OPERAND_MASK:
      TRY(check_type(c, id, OF_BOOL));
      TRY(check_scores_like(c, id));
      break;
    case OPERAND_BIAS:
      TRY(check_type(c, id, OF_T | OF_F32));
      TRY(check_scores_like(c, id));
      break;
    case OPERAND_PROBS:
    case OPERAND_SCORES:
      TRY(check_type(c, id, OF_T | OF_L));
      TRY(check_scores_like(c, id));
      break;
    case OPERAND_ALIBI: {
      TRY(check_type(c, id, OF_F32));
      const int64_t both[2] = {p->batch, p->heads};
      if (!same(c, id, per_head, 1) && !same(c, id, both, 2)) return wrong_shape(c, id, "[H] or [B,H]", both, 2);
      break;
    }
    case OPERAND_SINK:
      TRY(check_type(c, id, OF_T | OF_L));
      if (!same(c, id, per_head, 1)) return wrong_shape(c, id, "[H]", per_head, 1);
      break;
    case OPERAND_KV_LEN:
      TRY(check_type(c, id, OF_INDEX));
      if (!same(c, id, per_sequence, 1)) return wrong_shape(c, id, "[B]", per_sequence, 1);
      break;
    case OPERAND_Q_OFFSETS:
    case OPERAND_K_OFFSETS:
    case OPERAND_BLOCK_TABLE:
      TRY(check_type(c, id, OF_INDEX));
      break; /* shapes: check_sizes */
    case OPERAND_LSE:
    case OPERAND_D_LSE: {
      TRY(check_type(c, id, OF_L));
      const int64_t dense[3] = {p->batch, p->heads, p->q_len}, ragged[2] = {p->heads, p->q_total};
      if (p->ragged_q ? !same(c, id, ragged, 2) : !same(c, id, dense, 3))
        return wrong_shape(c, id, p->ragged_q ? "[H,Tq]" : "[B,H,Nq]", p->ragged_q ? ragged : dense,
                           p->ragged_q ? 2 : 3);
      break;
    }
    case OPERAND_D_Q:
    case OPERAND_D_K:
    case OPERAND_D_V: {
      operand_id of = id == OPERAND_D_Q ? OPERAND_Q : id == OPERAND_D_K ? OPERAND_K : OPERAND_V;
      TRY(check_type(c, id, OF_T));
      if (!same(c, id, shape[of], c->plan->ndim[of]))
        return wrong_shape(c, id, "that of its input", shape[of], c->plan->ndim[of]);
      break;
    }
    case OPERAND_D_BIAS:
    case OPERAND_D_SINK: {
      operand_id of = id == OPERAND_D_BIAS ? OPERAND_BIAS : OPERAND_SINK;
      if (!c->t[of])
        return attend_fail(ATTEND_ERROR_NULL, "%s: its input %s is NULL", attend_operand_names[id],
                           attend_operand_names[of]);
      if (p->layout[id].type != p->layout[of].type) return wrong_type(c, id, type_names[p->layout[of].type]);
      if (!same(c, id, shape[of], c->plan->ndim[of]))
        return wrong_shape(c, id, "that of its input", shape[of], c->plan->ndim[of]);
      break;
    }
    default:
      break;
    }
  }
#undef TRY
  return ATTEND_OK;
}

static attend_status check_presence(const checker *c) {
  bool backward = c->p->direction == ATTEND_BACKWARD, any = false;
  const operand_id forward_needs[] = {OPERAND_Q, OPERAND_K, OPERAND_V, OPERAND_OUT};
  const operand_id backward_needs[] = {OPERAND_LSE, OPERAND_D_OUT};
  for (int i = 0; i < 4; i++)
    if (!c->t[forward_needs[i]])
      return attend_fail(ATTEND_ERROR_NULL, "%s: expected a tensor, got NULL", attend_operand_names[forward_needs[i]]);
  if (backward && c->t[OPERAND_BLOCK_TABLE])
    return attend_fail(ATTEND_ERROR_OPTION, "block_table: paged keys are for forward only, got backward");
  for (int i = 0; backward && i < 2; i++)
    if (!c->t[backward_needs[i]])
      return attend_fail(ATTEND_ERROR_NULL, "%s: backward needs it, got NULL", attend_operand_names[backward_needs[i]]);
  for (operand_id id = OPERAND_D_Q; id <= OPERAND_D_SINK; id++) any = any || c->t[id];
  if (backward && !any)
    return attend_fail(ATTEND_ERROR_NULL, "d_q, d_k, d_v, d_bias, d_sink: backward needs at least one, got none");
  return ATTEND_OK;
}

/* ---- Options --------------------------------------------------------------------------------------------------- */

static attend_status option_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
static attend_status option_error(const char *format, ...) {
  char what[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  return attend_fail(ATTEND_ERROR_OPTION, "options.%s", what);
}

static attend_status check_options(checker *c) {
  const attend_options *o = &c->options;
  attend_problem *p = c->p;
  const uint32_t known = ATTEND_CAUSAL | ATTEND_TOP_LEFT | ATTEND_WINDOW | ATTEND_SCALE | ATTEND_ACCUMULATE;
  const uint32_t sets = ATTEND_BACKEND_ALL | ATTEND_BACKEND_REFERENCE;
  if (o->flags & ~known) return option_error("flags: expected a set of 0x%x, got 0x%x", known, o->flags);
  if (o->backends & ~sets) return option_error("backends: expected a set of 0x%x, got 0x%x", sets, o->backends);
  if (o->flags & ATTEND_SCALE && !isfinite(o->scale))
    return option_error("scale: expected a finite number, got %g", o->scale);
  if (!(o->softcap >= 0) || !isfinite(o->softcap))
    return option_error("softcap: expected 0 (none) or a finite number above, got %g", o->softcap);
  if (!(o->dropout >= 0 && o->dropout < 1))
    return option_error("dropout: expected a probability in [0,1), got %g", o->dropout);
  if (o->threads < 0 || o->threads > 65536)
    return option_error("threads: expected 0 (all) to 65536, got %d", o->threads);
  if (o->max_q_len < 0) return option_error("max_q_len: expected 0 (unknown) or more, got %" PRId64, o->max_q_len);
  if (o->max_k_len < 0) return option_error("max_k_len: expected 0 (unknown) or more, got %" PRId64, o->max_k_len);
  if ((unsigned)o->scores_stage > ATTEND_SCORES_MASKED)
    return option_error("scores_stage: expected 0, 1 or 2, got %d", (int)o->scores_stage);
  if (o->hooks && !o->hooks->allocate != !o->hooks->release)
    return option_error("hooks: allocate and release are given together or not at all, got only %s",
                        o->hooks->allocate ? "allocate" : "release");
  p->causal = o->flags & ATTEND_CAUSAL;
  p->top_left = o->flags & ATTEND_TOP_LEFT;
  p->accumulate = o->flags & ATTEND_ACCUMULATE;
  p->window_left = p->window_right = -1;
  if (o->flags & ATTEND_WINDOW) {
    if (o->window_left < -1)
      return option_error("window_left: expected -1 (unbounded) or more, got %" PRId64, o->window_left);
    if (o->window_right < -1)
      return option_error("window_right: expected -1 (unbounded) or more, got %" PRId64, o->window_right);
    const int64_t unbounded = INT64_MAX / 4; /* above any |i + off - j|, and i + off - left cannot overflow */
    p->window_left = o->window_left < unbounded ? o->window_left : -1;
    p->window_right = o->window_right < unbounded ? o->window_right : -1;
  } else if (o->window_left || o->window_right)
    return option_error("window_left, window_right: given without ATTEND_WINDOW in flags");
  if (!(o->flags & ATTEND_SCALE) && o->scale != 0)
    return option_error("scale: given (%g) without ATTEND_SCALE in flags", o->scale);
  p->softcap = o->softcap;
  p->dropout_threshold = attend_dropout_threshold(o->dropout);
  p->dropout_scale = p->dropout_threshold < 65536 ? 65536.0 / (65536.0 - p->dropout_threshold) : 0;
  p->scores_stage = o->scores_stage;
  p->threads = o->threads ? o->threads : attend_cpu_threads();
  return ATTEND_OK;
}

/* ---- Layouts --------------------------------------------------------------------------------------------------- */

static int64_t lowest_bit(int64_t bytes) { return bytes ? bytes & -bytes : ATTEND_WORKSPACE_ALIGNMENT; }

/* Alignment that a data pointer gives, at most ATTEND_WORKSPACE_ALIGNMENT. */
static int64_t pointer_alignment(const attend_tensor *t) {
  int64_t a = lowest_bit((int64_t)(uintptr_t)attend_first_element(t));
  return a < ATTEND_WORKSPACE_ALIGNMENT ? a : ATTEND_WORKSPACE_ALIGNMENT;
}

static void fill_layout(checker *c, operand_id id) {
  attend_layout *l = &c->p->layout[id];
  const attend_problem *p = c->p;
  int64_t st[4] = {0};
  int n = c->plan->ndim[id];
  bool empty = false;
  for (int i = 0; i < n; i++) {
    int64_t size = c->plan->shape[id][i];
    st[i] = size == 1 ? 0 : c->plan->strides[id][i]; /* a dimension of one broadcasts, or is not stepped */
    empty = empty || size == 0;
  }
  switch (id) {
  case OPERAND_LSE:
  case OPERAND_D_LSE:
    if (p->ragged_q)
      l->head = st[0], l->row = st[1];
    else
      l->batch = st[0], l->head = st[1], l->row = st[2];
    break;
  case OPERAND_ALIBI:
    if (n == 2)
      l->batch = st[0], l->head = st[1];
    else
      l->head = st[0];
    break;
  case OPERAND_SINK:
  case OPERAND_D_SINK:
    l->head = st[0];
    break;
  case OPERAND_KV_LEN:
  case OPERAND_Q_OFFSETS:
  case OPERAND_K_OFFSETS:
    l->batch = st[0];
    break;
  case OPERAND_BLOCK_TABLE:
    l->batch = st[0], l->row = st[1];
    break;
  default:
    if (n == 4)
      l->batch = st[0], l->head = st[1], l->row = st[2], l->col = st[3];
    else if (n == 2)
      l->batch = st[0], l->col = st[1]; /* key padding */
    else if ((id == OPERAND_K || id == OPERAND_V || id == OPERAND_D_K || id == OPERAND_D_V) && !p->ragged_k)
      l->batch = st[0], l->row = st[1], l->col = st[2]; /* one head for all */
    else
      l->row = st[0], l->head = st[1], l->col = st[2]; /* ragged */
    if (c->plan->shape[id][n - 1] == 1) l->col = 1;    /* unit stride: what kernels prefer */
    if ((id == OPERAND_MASK || id == OPERAND_BIAS || id == OPERAND_D_BIAS) && c->plan->shape[id][n - 1] == 1)
      l->col = 0;
  }
  int64_t size = (int64_t)attend_type_size(l->type), a = pointer_alignment(c->t[id]);
  const int64_t steps[3] = {l->batch * size, l->head * size, l->row * size};
  for (int i = 0; i < 3 && !empty; i++)
    if (lowest_bit(steps[i]) < a) a = lowest_bit(steps[i]);
  l->alignment = a;
}

attend_status attend_check(attend_direction direction, const attend_args *args, const attend_options *options,
                           attend_plan *plan) {
  checker c = {.plan = plan, .p = &plan->problem, .options = *options};
  attend_status s;
  memset(plan, 0, sizeof *plan);
  if (direction != ATTEND_FORWARD && direction != ATTEND_BACKWARD)
    return attend_fail(ATTEND_ERROR_OPTION, "direction: expected ATTEND_FORWARD or ATTEND_BACKWARD, got %d",
                       (int)direction);
  c.p->direction = direction;
  memcpy(c.t, *attend_args_tensors(args), sizeof c.t);
  if (direction == ATTEND_FORWARD) /* gradients may stand in args that serve both directions: forward ignores them */
    for (operand_id id = OPERAND_D_OUT; id < OPERAND_COUNT; id++) c.t[id] = NULL;
  else
    c.t[OPERAND_PROBS] = c.t[OPERAND_SCORES] = NULL;
  if ((s = check_presence(&c)) || (s = check_options(&c))) return s;
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (c.t[id] && (s = check_tensor(&c, id))) return s;
  c.p->device = c.t[OPERAND_Q]->device;
  c.p->device.type = device_kind(c.p->device);
  if ((s = check_sizes(&c)) || (s = check_operands(&c)) || (s = attend_check_repeats(plan))) return s;
  c.p->scale = options->flags & ATTEND_SCALE ? options->scale : c.p->head_dim ? 1 / sqrt((double)c.p->head_dim) : 1;
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (c.t[id]) fill_layout(&c, id);
  for (int i = 0; i < 4 && c.t[OPERAND_BIAS]; i++) c.p->bias_shape[i] = plan->shape[OPERAND_BIAS][i];
  attend_services_from(options->hooks, &plan->services);
  return ATTEND_OK;
}
