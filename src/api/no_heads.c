/* SPDX-License-Identifier: MIT */
/* Without query heads there is nothing to attend, yet the gradients of K, V and a broadcast bias exist, and are 0. Here
 * once, so that no kernel divides by a group of no heads. */
#include "api.h"
#include "element.h"

static void fill_zero(const attend_plan *plan, operand_id id, void *data) {
  const int64_t *shape = plan->shape[id], *strides = plan->strides[id];
  int64_t count = 1;
  for (int d = 0; d < plan->ndim[id]; d++) count *= shape[d];
  for (int64_t x = 0; x < count; x++) {
    int64_t at = 0, rest = x;
    for (int d = plan->ndim[id] - 1; d >= 0; rest /= shape[d], d--) at += rest % shape[d] * strides[d];
    attend_store(data, at, plan->problem.layout[id].type, 0);
  }
}

bool attend_run_without_heads(const attend_plan *plan, const attend_operands *operands) {
  const attend_problem *p = &plan->problem;
  if (p->heads != 0 || p->device.type != ATTEND_CPU) return false;
  for (operand_id id = OPERAND_D_Q; id < OPERAND_COUNT && p->direction == ATTEND_BACKWARD && !p->accumulate; id++)
    if (operands->data[id]) fill_zero(plan, id, operands->data[id]);
  return true;
}
