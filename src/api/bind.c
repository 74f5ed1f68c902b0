/* SPDX-License-Identifier: MIT */
/* What is checked at every execution: that the tensors are those the plan was made for, and that index tensors on the
 * host hold what they may. */
#include "api.h"
#include "element.h"
#include "text.h"

#include <inttypes.h>
#include <string.h>

void attend_expect(attend_plan *plan) {
  plan->operands = 0;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    const attend_layout *layout = &plan->problem.layout[id];
    if (layout->type == TYPE_NONE) continue;
    plan->operand[plan->operands++] = id;
    attend_expected *e = &plan->expected[id];
    *e = (attend_expected){
        .dtype = dtype_of[layout->type], .compact = true, .alignment = attend_type_size(layout->type)};
    for (int i = 0; i < plan->ndim[id]; i++) e->empty = e->empty || plan->shape[id][i] == 0;
    int64_t step = 1;
    for (int i = plan->ndim[id] - 1; i >= 0; i--) {
      if (plan->shape[id][i] > 1 && plan->strides[id][i] != step) e->compact = false;
      if (!e->empty) step *= plan->shape[id][i];
    }
    e->chosen = plan->alignment > e->alignment && (size_t)layout->alignment >= plan->alignment;
    if (e->chosen) e->alignment = plan->alignment;
  }
}

/* Is t what the plan was made for? */
static bool fits(const attend_plan *plan, operand_id id, const attend_tensor *t) {
  const attend_expected *e = &plan->expected[id];
  const int64_t *shape = plan->shape[id], *strides = plan->strides[id];
  if (memcmp(&t->dtype, &e->dtype, sizeof e->dtype) != 0 || t->ndim != plan->ndim[id]) return false;
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

/* A tensor that the problem does not have, and that is not ignored. */
static attend_status refuse_others(const attend_plan *plan, const attend_tensor *const t[OPERAND_COUNT]) {
  const attend_problem *p = &plan->problem;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    bool ignored = p->direction == ATTEND_FORWARD ? id >= OPERAND_D_OUT : id == OPERAND_PROBS || id == OPERAND_SCORES;
    if (t[id] && !ignored && !attend_has(p, id))
      return attend_fail(ATTEND_ERROR_SHAPE, "%s: the plan was made without it, got a tensor",
                         attend_operand_names[id]);
  }
  return ATTEND_OK;
}

attend_status attend_bind(const attend_plan *plan, const attend_args *args, attend_operands *operands) {
  const attend_tensor *t[OPERAND_COUNT];
  attend_args_tensors(args, t);
  memset(operands->data, 0, sizeof operands->data);
  operands->dropout_seed = args->dropout_seed;
  operands->dropout_offset = args->dropout_offset;
  int given = 0;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) given += t[id] != NULL;
  for (int i = 0; i < plan->operands; i++) {
    operand_id id = plan->operand[i];
    const char *name = attend_operand_names[id];
    if (!t[id]) return attend_fail(ATTEND_ERROR_NULL, "%s: the plan was made with it, got NULL", name);
    if (t[id]->ndim > 0 && !t[id]->shape) return attend_fail(ATTEND_ERROR_NULL, "%s: shape is NULL", name);
    if (!fits(plan, id, t[id])) return misfit(plan, id, t[id]);
    const attend_expected *e = &plan->expected[id];
    if (e->empty) continue;
    if (!t[id]->data)
      return attend_fail(ATTEND_ERROR_NULL, "%s: data is NULL, expected %d dimensions of elements", name,
                         (int)t[id]->ndim);
    void *data = attend_first_element(t[id]);
    if ((uintptr_t)data & (e->alignment - 1))
      return attend_fail(ATTEND_ERROR_ALIGNMENT, "%s: expected data aligned to %zu bytes%s, got %p", name,
                         (size_t)e->alignment, e->chosen ? ", as when the plan was made" : "", data);
    operands->data[id] = data;
  }
  return given == plan->operands ? ATTEND_OK : refuse_others(plan, t);
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
