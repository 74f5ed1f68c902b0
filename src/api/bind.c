/* SPDX-License-Identifier: MIT */
/* What is checked at every execution: that the tensors are those the plan was made for, that index tensors on the host
 * hold what they may, and that no output shares an element with anything. */
#include "api.h"
#include "element.h"

#include <inttypes.h>

static bool is_output(attend_direction direction, operand_id id) {
  if (direction == ATTEND_BACKWARD) return id >= OPERAND_D_Q;
  return id == OPERAND_OUT || id == OPERAND_LSE || id == OPERAND_PROBS || id == OPERAND_SCORES;
}

static bool is_empty(const attend_plan *plan, operand_id id) {
  for (int i = 0; i < plan->ndim[id]; i++)
    if (plan->shape[id][i] == 0) return true;
  return false;
}

/* Does t differ from what the plan was made for? Names the first difference. */
static const char *difference(const attend_plan *plan, operand_id id, const attend_tensor *t) {
  static const uint16_t codes[] = {0, 2 << 8 | 32, 2 << 8 | 16, 4 << 8 | 16, 2 << 8 | 64, 6 << 8 | 8, 32, 64};
  if (t->dtype.lanes != 1 || (t->dtype.code << 8 | t->dtype.bits) != codes[plan->problem.layout[id].type])
    return "type";
  if (t->ndim != plan->ndim[id]) return "rank";
  bool cuda = t->device.type == ATTEND_CUDA || t->device.type == ATTEND_CUDA_MANAGED;
  if (cuda != (plan->problem.device.type == ATTEND_CUDA) || (cuda && t->device.id != plan->problem.device.id))
    return "device";
  bool empty = is_empty(plan, id);
  int64_t compact = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] != plan->shape[id][i]) return "shape";
    int64_t stride = t->strides ? t->strides[i] : compact;
    if (!empty && t->shape[i] > 1 && stride != plan->strides[id][i]) return "strides";
    if (!empty) compact *= t->shape[i];
  }
  return NULL;
}

attend_status attend_bind(const attend_plan *plan, const attend_args *args, attend_operands *operands) {
  const attend_problem *p = &plan->problem;
  const attend_tensor *t[OPERAND_COUNT];
  attend_args_tensors(args, t);
  operands->dropout_seed = args->dropout_seed;
  operands->dropout_offset = args->dropout_offset;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    const char *name = attend_operand_names[id];
    bool planned = attend_has(p, id);
    operands->data[id] = NULL;
    if (!planned) {
      bool ignored = p->direction == ATTEND_FORWARD ? id >= OPERAND_D_OUT : id == OPERAND_PROBS || id == OPERAND_SCORES;
      if (t[id] && !ignored)
        return attend_fail(ATTEND_ERROR_SHAPE, "%s: the plan was made without it, got a tensor", name);
      continue;
    }
    if (!t[id]) return attend_fail(ATTEND_ERROR_NULL, "%s: the plan was made with it, got NULL", name);
    if (t[id]->ndim > 0 && !t[id]->shape) return attend_fail(ATTEND_ERROR_NULL, "%s: shape is NULL", name);
    const char *differs = difference(plan, id, t[id]);
    if (differs) return attend_fail(ATTEND_ERROR_SHAPE, "%s: expected the plan's %s, got another", name, differs);
    if (is_empty(plan, id)) continue;
    if (!t[id]->data)
      return attend_fail(ATTEND_ERROR_NULL, "%s: data is NULL, expected %d dimensions of elements", name,
                         (int)t[id]->ndim);
    char *data = (char *)t[id]->data + t[id]->byte_offset;
    size_t alignment = attend_type_size(p->layout[id].type);
    if (plan->alignment > alignment && (size_t)p->layout[id].alignment >= plan->alignment) alignment = plan->alignment;
    if ((uintptr_t)data % alignment)
      return attend_fail(ATTEND_ERROR_ALIGNMENT, "%s: expected data aligned to %zu bytes%s, got %p", name, alignment,
                         alignment > attend_type_size(p->layout[id].type) ? ", as when the plan was made" : "",
                         (void *)data);
    operands->data[id] = data;
  }
  return ATTEND_OK;
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

/* ---- Overlap ---------------------------------------------------------------------------------------------------- */

/* Two strided boxes share a byte iff  sum_t step_t * c_t  falls into [low, high] for some coefficients c_t in [first_t,
 * last_t]: steps of the one box count up, those of the other down, equal steps are one term. Searched depth first,
 * largest step first, pruned by what the remaining terms can reach: where steps nest (all real layouts) that leaves at
 * most two candidates a term. */
typedef struct term {
  int64_t step;
  wide first, last;
} term;

enum { MAX_TERMS = 8, SEARCH_BUDGET = 100000 };

typedef struct search {
  term terms[MAX_TERMS];
  int count, budget;
  wide low, high;
  bool nonzero; /* only a solution other than all zeros counts */
} search;

static void add_term(search *s, int64_t step, wide first, wide last) {
  int i = 0;
  while (i < s->count && s->terms[i].step > step) i++;
  if (i < s->count && s->terms[i].step == step) {
    s->terms[i].first += first;
    s->terms[i].last += last;
    return;
  }
  for (int j = s->count++; j > i; j--) s->terms[j] = s->terms[j - 1];
  s->terms[i] = (term){step, first, last};
}

static wide floor_div(wide a, wide b) { return a / b - (a % b < 0); }

static bool solvable(search *s, int depth, wide sum, bool moved) {
  if (s->budget-- <= 0) return true; /* not decided: treated as sharing */
  if (depth == s->count) return sum >= s->low && sum <= s->high && (moved || !s->nonzero);
  wide rest_low = 0, rest_high = 0;
  for (int i = depth + 1; i < s->count; i++) {
    rest_low += s->terms[i].first * s->terms[i].step;
    rest_high += s->terms[i].last * s->terms[i].step;
  }
  const term *t = &s->terms[depth];
  wide first = -floor_div(-(s->low - sum - rest_high), t->step), last = floor_div(s->high - sum - rest_low, t->step);
  if (first < t->first) first = t->first;
  if (last > t->last) last = t->last;
  for (wide c = first; c <= last; c++)
    if (solvable(s, depth + 1, sum + c * t->step, moved || c != 0)) return true;
  return false;
}

typedef struct box {
  int dims;
  int64_t size[4], step[4], element; /* bytes; steps positive */
  wide low, high;                    /* first byte, and one past the last */
} box;

static box box_of(const attend_plan *plan, const attend_operands *o, operand_id id) {
  box x = {.element = (int64_t)attend_type_size(plan->problem.layout[id].type)};
  x.low = (wide)(uintptr_t)o->data[id];
  x.high = x.low + x.element;
  for (int i = 0; i < plan->ndim[id]; i++) {
    int64_t size = plan->shape[id][i], step = plan->strides[id][i] * x.element;
    if (size <= 1) continue;
    if (step < 0)
      x.low += (wide)(size - 1) * step, step = -step;
    else
      x.high += (wide)(size - 1) * step;
    x.size[x.dims] = size;
    x.step[x.dims++] = step;
  }
  return x;
}

static bool repeats_itself(const box *x) {
  search s = {.low = 1 - x->element, .high = x->element - 1, .budget = SEARCH_BUDGET, .nonzero = true};
  for (int i = 0; i < x->dims; i++) {
    if (x->step[i] == 0) return true;
    for (int j = 0; j < i; j++)
      if (x->step[i] == x->step[j]) return true;
    add_term(&s, x->step[i], -(x->size[i] - 1), x->size[i] - 1);
  }
  wide reach = x->element; /* steps that nest, as nearly always, need no search */
  int nested = s.count;
  while (nested > 0 && s.terms[nested - 1].step >= reach) {
    nested--;
    reach += s.terms[nested].last * s.terms[nested].step;
  }
  if (nested == 0) return false;
  return solvable(&s, 0, 0, false);
}

static bool share(const box *x, const box *y) {
  if (x->high <= y->low || y->high <= x->low) return false;
  search s = {
      .low = y->low - x->low - x->element + 1, .high = y->low - x->low + y->element - 1, .budget = SEARCH_BUDGET};
  for (int i = 0; i < x->dims; i++)
    if (x->step[i]) add_term(&s, x->step[i], 0, x->size[i] - 1);
  for (int i = 0; i < y->dims; i++)
    if (y->step[i]) add_term(&s, y->step[i], -(y->size[i] - 1), 0);
  return solvable(&s, 0, 0, false);
}

attend_status attend_check_overlap(const attend_plan *plan, const attend_operands *o) {
  box boxes[OPERAND_COUNT];
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (o->data[id]) boxes[id] = box_of(plan, o, id);
  for (operand_id out = 0; out < OPERAND_COUNT; out++) {
    if (!o->data[out] || !is_output(plan->problem.direction, out)) continue;
    if (repeats_itself(&boxes[out]))
      return attend_fail(ATTEND_ERROR_OVERLAP,
                         "%s: expected an output whose elements are all distinct, got strides that repeat some",
                         attend_operand_names[out]);
    for (operand_id id = 0; id < OPERAND_COUNT; id++) {
      if (id == out || !o->data[id] || (id < out && is_output(plan->problem.direction, id))) continue;
      if (share(&boxes[out], &boxes[id]))
        return attend_fail(ATTEND_ERROR_OVERLAP,
                           "%s: expected an output that shares no element with %s, got memory that does",
                           attend_operand_names[out], attend_operand_names[id]);
    }
  }
  return ATTEND_OK;
}
