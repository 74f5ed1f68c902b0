/* SPDX-License-Identifier: MIT */
/* That no output shares an element with anything, itself included. */
#include "api.h"
#include "element.h"

static bool is_output(attend_direction direction, operand_id id) {
  if (direction == ATTEND_BACKWARD) return id >= OPERAND_D_Q;
  return id == OPERAND_OUT || id == OPERAND_LSE || id == OPERAND_PROBS || id == OPERAND_SCORES;
}

/* Two strided boxes share a byte iff  sum_t step_t * c_t  falls into [low, high] for some coefficients c_t in [first_t,
 * last_t]: steps of the one box count up, those of the other down, equal steps are one term. Searched depth first,
 * largest step first, pruned by what the remaining terms can reach: where steps nest (all real layouts) that leaves at
 * most two candidates a term. No box spans more than 2^60 bytes (attend_check), so that sums fit in 64 bits. */
typedef struct term {
  int64_t step, first, last;
} term;

enum { MAX_TERMS = 8, SEARCH_BUDGET = 100000 };

typedef struct search {
  term terms[MAX_TERMS];
  int count, budget;
  int64_t low, high;
  bool nonzero; /* only a solution other than all zeros counts */
} search;

static void add_term(search *s, int64_t step, int64_t first, int64_t last) {
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

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static bool solvable(search *s, int depth, int64_t sum, bool moved) {
  if (s->budget-- <= 0) return true; /* not decided: treated as sharing */
  if (depth == s->count) return sum >= s->low && sum <= s->high && (moved || !s->nonzero);
  int64_t rest_low = 0, rest_high = 0;
  for (int i = depth + 1; i < s->count; i++) {
    rest_low += s->terms[i].first * s->terms[i].step;
    rest_high += s->terms[i].last * s->terms[i].step;
  }
  const term *t = &s->terms[depth];
  int64_t first = -floor_div(-(s->low - sum - rest_high), t->step), last = floor_div(s->high - sum - rest_low, t->step);
  if (first < t->first) first = t->first;
  if (last > t->last) last = t->last;
  for (int64_t c = first; c <= last; c++)
    if (solvable(s, depth + 1, sum + c * t->step, moved || c != 0)) return true;
  return false;
}

typedef struct box {
  int dims;
  int64_t size[4], step[4], element; /* bytes; steps positive */
  int64_t low;                       /* first byte */
} box;

static box box_of(const attend_plan *plan, operand_id id, const void *data) {
  box x = {.element = (int64_t)attend_type_size(plan->problem.layout[id].type)};
  for (int i = 0; i < plan->ndim[id]; i++) {
    if (plan->shape[id][i] <= 1) continue; /* its stride may be anything */
    int64_t step = plan->strides[id][i] * x.element;
    x.size[x.dims] = plan->shape[id][i];
    x.step[x.dims++] = step < 0 ? -step : step;
  }
  x.low = (int64_t)((uintptr_t)data + (uintptr_t)plan->expected[id].low);
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
  int64_t reach = x->element; /* steps that nest, as nearly always, need no search */
  int nested = s.count;
  while (nested > 0 && s.terms[nested - 1].step >= reach) {
    nested--;
    reach += s.terms[nested].last * s.terms[nested].step;
  }
  if (nested == 0) return false;
  return solvable(&s, 0, 0, false);
}

static bool share(const box *x, const box *y) {
  search s = {
      .low = y->low - x->low - x->element + 1, .high = y->low - x->low + y->element - 1, .budget = SEARCH_BUDGET};
  for (int i = 0; i < x->dims; i++)
    if (x->step[i]) add_term(&s, x->step[i], 0, x->size[i] - 1);
  for (int i = 0; i < y->dims; i++)
    if (y->step[i]) add_term(&s, y->step[i], -(y->size[i] - 1), 0);
  return solvable(&s, 0, 0, false);
}

attend_status attend_check_repeats(const attend_plan *plan) {
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    bool empty = !attend_has(&plan->problem, id);
    for (int i = 0; i < plan->ndim[id]; i++) empty = empty || plan->shape[id][i] == 0;
    if (empty || !is_output(plan->problem.direction, id)) continue;
    box x = box_of(plan, id, NULL);
    if (repeats_itself(&x))
      return attend_fail(ATTEND_ERROR_OVERLAP,
                         "%s: expected an output whose elements are all distinct, got strides that repeat some",
                         attend_operand_names[id]);
  }
  return ATTEND_OK;
}

/* Can two operands be told apart without a search? Their hulls are, or they are as far from each other as they were
 * when the plan was made, and were distinct then. */
static bool apart(const attend_plan *plan, void *const data[OPERAND_COUNT], operand_id i, operand_id k) {
  const attend_expected *x = &plan->expected[i], *y = &plan->expected[k];
  const int64_t from = (int64_t)((uintptr_t)data[k] - (uintptr_t)data[i]);
  const int64_t then = (int64_t)((uintptr_t)plan->bound.data[k] - (uintptr_t)plan->bound.data[i]);
  return from + y->high <= x->low || x->high <= from + y->low || (plan->distinct && from == then);
}

/* The first output that shares an element, and with what; false: none. */
static bool find_overlap(const attend_plan *plan, void *const data[OPERAND_COUNT], operand_id *out, operand_id *other) {
  for (int i = 0; i < plan->operands; i++) {
    *out = plan->operand[i];
    if (!data[*out] || !is_output(plan->problem.direction, *out)) continue;
    for (int k = 0; k < plan->operands; k++) {
      *other = plan->operand[k];
      if (k == i || !data[*other] || (k < i && is_output(plan->problem.direction, *other))) continue;
      if (apart(plan, data, *out, *other)) continue;
      box x = box_of(plan, *out, data[*out]), y = box_of(plan, *other, data[*other]);
      if (share(&x, &y)) return true;
    }
  }
  return false;
}

attend_status attend_check_overlap(const attend_plan *plan, const attend_operands *o) {
  operand_id out, other;
  if (!find_overlap(plan, o->data, &out, &other)) return ATTEND_OK;
  return attend_fail(ATTEND_ERROR_OVERLAP,
                     "%s: expected an output that shares no element with %s, got memory that does",
                     attend_operand_names[out], attend_operand_names[other]);
}

void attend_remember_distinct(attend_plan *plan, const attend_args *args) {
  const attend_tensors *t = attend_args_tensors(args);
  operand_id out, other;
  plan->bound.dropout_seed = args->dropout_seed, plan->bound.dropout_offset = args->dropout_offset;
  for (int i = 0; i < plan->operands; i++) {
    operand_id id = plan->operand[i];
    if (plan->expected[id].empty) continue;
    plan->bound.data[id] = attend_first_element((*t)[id]);
    if (!(*t)[id]->data || (uintptr_t)plan->bound.data[id] & (plan->expected[id].alignment - 1)) return;
  }
  plan->distinct = !find_overlap(plan, plan->bound.data, &out, &other);
}
