/* SPDX-License-Identifier: MIT */
/* What is checked at every execution: that the tensors are those the plan was made for, and that index tensors on the
 * host hold what they may. */
#include "api.h"
#include "element.h"
#include "text.h"

#include <inttypes.h>
#include <string.h>

/* An operand of the other direction: whatever stands there is ignored. */
static bool is_ignored(attend_direction direction, operand_id id) {
  if (direction == ATTEND_FORWARD) return id >= OPERAND_D_OUT;
  return id == OPERAND_PROBS || id == OPERAND_SCORES;
}

static void remember_array(attend_plan *plan, const int64_t *at, int count) {
  int n = 0;
  while (n < plan->arrays && plan->array[n].at != at) n++;
  attend_given_array *array = &plan->array[n];
  if (n == plan->arrays) *array = (attend_given_array){.at = at}, plan->arrays++;
  if (count > array->count) array->count = count;
  memcpy(array->held, at, (size_t)array->count * sizeof *at);
}
static void remember_tensors(attend_plan *plan, const attend_tensors *t) {
  bool empty = false;
  plan->arrays = 0;
  memcpy(plan->tensors, *t, sizeof plan->tensors);
  for (int i = 0; i < plan->operands; i++) {
    const attend_tensor *x = (*t)[plan->operand[i]];
    plan->given[i] = (attend_given_tensor){*x, x};
    remember_array(plan, x->shape, x->ndim);
    if (x->strides) remember_array(plan, x->strides, x->ndim);
    empty = empty || plan->expected[plan->operand[i]].empty;
  }
  if (empty) plan->arrays = 0;
}

void attend_expect(attend_plan *plan, const attend_args *args) {
  plan->operands = 0;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    const attend_layout *layout = &plan->problem.layout[id];
    plan->minded[id] = is_ignored(plan->problem.direction, id) ? 0 : UINTPTR_MAX;
    if (layout->type == TYPE_NONE) continue;
    plan->operand[plan->operands++] = id;
    const int64_t size = (int64_t)attend_type_size(layout->type);
    attend_expected *e = &plan->expected[id];
    *e =
        (attend_expected){.dtype = dtype_of[layout->type], .compact = true, .alignment = (uintptr_t)size, .high = size};
    for (int i = 0; i < plan->ndim[id]; i++) e->empty = e->empty || plan->shape[id][i] == 0;
    int64_t step = 1;
    for (int i = plan->ndim[id] - 1; i >= 0; i--) {
      if (plan->shape[id][i] <= 1) continue; /* its stride may be anything */
      if (plan->strides[id][i] != step) e->compact = false;
      int64_t reach = (plan->shape[id][i] - 1) * plan->strides[id][i] * size;
      *(reach < 0 ? &e->low : &e->high) += reach;
      if (!e->empty) step *= plan->shape[id][i];
    }
    e->chosen = plan->alignment > e->alignment && (size_t)layout->alignment >= plan->alignment;
    if (e->chosen) e->alignment = plan->alignment;
  }
  remember_tensors(plan, attend_args_tensors(args));
}

/* Compared at once on any machine; held is aligned. */
typedef uint64_t pair __attribute__((vector_size(16)));
static inline pair difference(const void *given, const void *held, size_t at) {
  pair x, y;
  memcpy(&x, (const char *)given + at, sizeof x);
  memcpy(&y, (const char *)__builtin_assume_aligned(held, sizeof y) + at, sizeof y);
  return x ^ y;
}

/* Are the tensors those that the plan was made with, which but for data and byte_offset hold what they held, as do
 * their arrays? Nearly every call's are, and looking at each size and stride took 70 ns of the 200 of a small call.
 * False is no answer: all of it may lie elsewhere, a stride of one element be another, and fit. */
static bool are_as_given(const attend_plan *plan, const attend_tensors *t, bool *moved) {
  _Static_assert(offsetof(attend_tensor, device) == 8 && offsetof(attend_tensor, ndim) == 16 &&
                     offsetof(attend_tensor, strides) == 32 && offsetof(attend_tensor, byte_offset) == 40,
                 "attend_tensor is other than three pairs");
  pair first = {0}, second = {0}, third = {0}, rest = {0};
  uint64_t other = 0;
  for (int id = 0; id < OPERAND_COUNT; id++)
    other |= ((uintptr_t)(*t)[id] ^ (uintptr_t)plan->tensors[id]) & plan->minded[id];
  if (other || plan->arrays == 0) return false;
  for (const attend_given_tensor *x = plan->given, *end = x + plan->operands; x < end; x++) {
    first |= difference(x->at, &x->held, offsetof(attend_tensor, data));
    second |= difference(x->at, &x->held, offsetof(attend_tensor, ndim));
    third |= difference(x->at, &x->held, offsetof(attend_tensor, strides));
  }
  if (first[1] | second[0] | second[1] | third[0]) return false; /* the arrays may be shorter */
  *moved = (first[0] | third[1]) != 0;
  for (const attend_given_array *x = plan->array, *end = x + plan->arrays; x < end; x++)
    if (x->count == 4)
      rest |= difference(x->at, x->held, 0) | difference(x->at, x->held, sizeof(pair));
    else
      for (int i = 0; i < x->count; i++) other |= (uint64_t)(x->at[i] ^ x->held[i]);
  return !(other | rest[0] | rest[1]);
}

/* Is t what the plan was made for? */
static bool fits(const attend_plan *plan, operand_id id, const attend_tensor *t) {
  const attend_expected *e = &plan->expected[id];
  const int64_t *shape = plan->shape[id], *strides = plan->strides[id];
  if (memcmp(&t->dtype, &e->dtype, sizeof t->dtype) != 0 || t->ndim != plan->ndim[id]) return false;
  bool cuda = t->device.type == ATTEND_CUDA || t->device.type == ATTEND_CUDA_MANAGED;
  if (cuda != (plan->problem.device.type == ATTEND_CUDA) || (cuda && t->device.id != plan->problem.device.id))
    return false;
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] != shape[i]) return false;
  if (e->empty) return true;
  if (!t->strides) return e->compact;
  for (int i = 0; i < t->ndim; i++)
    if (t->strides[i] != strides[i] && shape[i] > 1) return false;
  return true;
}

/* The message of one that is not: the first thing in which it differs. */
static attend_status misfit(const attend_plan *plan, operand_id id, const attend_tensor *t) {
  const char *name = attend_operand_names[id];
  attend_dtype type = plan->expected[id].dtype;
  int ndim = plan->ndim[id];
  if (memcmp(&t->dtype, &type, sizeof type) != 0)
    return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected the plan's element type %s, got %s", name, dtype_name(type).s,
                       dtype_name(t->dtype).s);
  if (t->ndim != ndim)
    return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected the plan's rank %d, got %d", name, ndim, (int)t->ndim);
  for (int i = 0; i < ndim; i++)
    if (t->shape[i] != plan->shape[id][i])
      return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected the plan's shape %s, got %s", name,
                         list(plan->shape[id], ndim).s, list(t->shape, ndim).s);
  bool cuda = t->device.type == ATTEND_CUDA || t->device.type == ATTEND_CUDA_MANAGED;
  if (cuda != (plan->problem.device.type == ATTEND_CUDA) || (cuda && t->device.id != plan->problem.device.id))
    return attend_fail(
        ATTEND_ERROR_SHAPE, "%s: expected the plan's device (type %d, number %d), got type %d, number %d", name,
        (int)plan->problem.device.type, (int)plan->problem.device.id, (int)t->device.type, (int)t->device.id);
  return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected the plan's strides %s, got %s", name,
                     list(plan->strides[id], ndim).s,
                     t->strides ? list(t->strides, ndim).s : "those of a compact array");
}

static attend_status check_tensors(const attend_plan *plan, const attend_tensors *t) {
  for (int i = 0; i < plan->operands; i++) {
    operand_id id = plan->operand[i];
    const attend_tensor *x = (*t)[id];
    if (!x) return attend_fail(ATTEND_ERROR_NULL, "%s: the plan was made with it, got NULL", attend_operand_names[id]);
    if (x->ndim > 0 && !x->shape) return attend_fail(ATTEND_ERROR_NULL, "%s: shape is NULL", attend_operand_names[id]);
    if (!fits(plan, id, x)) return misfit(plan, id, x);
  }
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if ((*t)[id] && plan->minded[id] && !attend_has(&plan->problem, id))
      return attend_fail(ATTEND_ERROR_SHAPE, "%s: the plan was made without it, got a tensor",
                         attend_operand_names[id]);
  return ATTEND_OK;
}

static attend_status bind_data(const attend_plan *plan, const attend_tensors *t, void *data[OPERAND_COUNT]) {
  memset(data, 0, OPERAND_COUNT * sizeof *data);
  for (int i = 0; i < plan->operands; i++) {
    operand_id id = plan->operand[i];
    const attend_expected *e = &plan->expected[id];
    if (e->empty) continue;
    if (!(*t)[id]->data)
      return attend_fail(ATTEND_ERROR_NULL, "%s: data is NULL, expected %d dimensions of elements",
                         attend_operand_names[id], (int)(*t)[id]->ndim);
    data[id] = attend_first_element((*t)[id]);
    if ((uintptr_t)data[id] & (e->alignment - 1))
      return attend_fail(ATTEND_ERROR_ALIGNMENT, "%s: expected data aligned to %zu bytes%s, got %p",
                         attend_operand_names[id], (size_t)e->alignment, e->chosen ? ", as when the plan was made" : "",
                         data[id]);
  }
  return ATTEND_OK;
}

attend_status attend_bind(const attend_plan *plan, const attend_args *args, attend_operands *own,
                          const attend_operands **operands, bool *moved) {
  const attend_tensors *t = attend_args_tensors(args);
  attend_status s;
  *moved = true;
  if (!are_as_given(plan, t, moved) && (s = check_tensors(plan, t))) return s;
  if (!*moved && plan->distinct && args->dropout_seed == plan->bound.dropout_seed &&
      args->dropout_offset == plan->bound.dropout_offset) {
    *operands = &plan->bound;
    return ATTEND_OK;
  }
  *operands = own;
  own->dropout_seed = args->dropout_seed;
  own->dropout_offset = args->dropout_offset;
  s = bind_data(plan, t, own->data);
  *moved = !plan->distinct || memcmp(own->data, plan->bound.data, sizeof own->data) != 0;
  return s;
}

/* ---- Index tensors on the host --------------------------------------------------------------------------------- */

static int64_t index_at(const attend_problem *p, const attend_operands *o, operand_id id, int64_t i) {
  return attend_load_index(o->data[id], i, p->layout[id].type);
}

static attend_status check_offsets(const attend_problem *p, const attend_operands *o, operand_id id, int64_t total,
                                   int64_t longest) {
  const char *name = attend_operand_names[id];
  int64_t step = p->layout[id].batch, before = index_at(p, o, id, 0);
  if (before != 0) return attend_fail(ATTEND_ERROR_INDEX, "%s[0]: expected 0, got %" PRId64, name, before);
  for (int64_t b = 1; b <= p->batch; b++) {
    int64_t now = index_at(p, o, id, b * step);
    if (now < before || now > total)
      return attend_fail(ATTEND_ERROR_INDEX,
                         "%s[%" PRId64 "]: expected ascending offsets from 0 to %" PRId64 ", got %" PRId64
                         " after %" PRId64,
                         name, b, total, now, before);
    if (now - before > longest)
      return attend_fail(ATTEND_ERROR_INDEX, "%s: sequence %" PRId64 " has %" PRId64 " rows, options allow %" PRId64,
                         name, b - 1, now - before, longest);
    before = now;
  }
  if (before != total)
    return attend_fail(ATTEND_ERROR_INDEX, "%s[%" PRId64 "]: expected the number of rows %" PRId64 ", got %" PRId64,
                       name, p->batch, total, before);
  return ATTEND_OK;
}

attend_status attend_check_host_indices(const attend_problem *p, const attend_operands *o) {
  attend_status s;
  if (p->ragged_q && (s = check_offsets(p, o, OPERAND_Q_OFFSETS, p->q_total, p->q_len))) return s;
  if (p->ragged_k && (s = check_offsets(p, o, OPERAND_K_OFFSETS, p->k_total, p->k_len))) return s;
  if (!attend_has(p, OPERAND_KV_LEN)) return ATTEND_OK;
  for (int64_t b = 0; b < p->batch; b++) {
    int64_t most = p->k_len, length = index_at(p, o, OPERAND_KV_LEN, b * p->layout[OPERAND_KV_LEN].batch);
    if (p->ragged_k) {
      int64_t step = p->layout[OPERAND_K_OFFSETS].batch;
      most = index_at(p, o, OPERAND_K_OFFSETS, (b + 1) * step) - index_at(p, o, OPERAND_K_OFFSETS, b * step);
    }
    if (length < 0 || length > most)
      return attend_fail(ATTEND_ERROR_INDEX, "kv_len[%" PRId64 "]: expected 0 to %" PRId64 ", got %" PRId64, b, most,
                         length);
    if (!p->paged) continue;
    const attend_layout *t = &p->layout[OPERAND_BLOCK_TABLE];
    for (int64_t column = 0; column * p->block_size < length; column++) {
      int64_t block = index_at(p, o, OPERAND_BLOCK_TABLE, b * t->batch + column * t->row);
      if (block < 0 || block >= p->block_count)
        return attend_fail(ATTEND_ERROR_INDEX,
                           "block_table[%" PRId64 ",%" PRId64 "]: expected 0 to %" PRId64 ", got %" PRId64, b, column,
                           p->block_count - 1, block);
    }
  }
  return ATTEND_OK;
}
