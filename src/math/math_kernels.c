/* SPDX-License-Identifier: MIT */
/* The table of the math back-end. It takes every problem, and can return scores and probabilities. */
#include "math/math.h"

#include "api/element.h"

#include <stdio.h>

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  (void)reason;
  return true;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  if (p->direction == ATTEND_BACKWARD && p->paged) {
    snprintf(reason, ATTEND_REASON_SIZE, "paged keys have no gradients");
    return false;
  }
  size_t bytes = 0;
  if (p->direction == ATTEND_FORWARD)
    bytes = p->type == TYPE_F64 ? math_forward_bytes_f64(p) : math_forward_bytes_f32(p);
  else
    bytes = p->type == TYPE_F64 ? math_backward_bytes_f64(p) : math_backward_bytes_f32(p);
  *choice = (attend_choice){.kernel = row,
                            .tile_q = MATH_ROWS,
                            .tile_k = p->k_len,
                            .splits = 1,
                            .threads = p->threads,
                            .workspace_bytes = (size_t)p->threads * bytes,
                            .alignment = attend_type_size(p->type)};
  return true;
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)stream;
  int threads = (int)choice->threads;
  if (p->direction == ATTEND_FORWARD) {
    if (p->type == TYPE_F64)
      math_forward_f64(p, threads, o, services, workspace);
    else
      math_forward_f32(p, threads, o, services, workspace);
  } else {
    if (p->type == TYPE_F64)
      math_backward_f64(p, threads, o, services, workspace);
    else
      math_backward_f32(p, threads, o, services, workspace);
  }
  return ATTEND_OK;
}

static const attend_kernel_row rows[] = {
    {.name = "forward_any_math",
     .backend = ATTEND_BACKEND_MATH,
     .device = ATTEND_CPU,
     .direction = ATTEND_FORWARD,
     .type = TYPE_NONE,
     .usable = usable,
     .plan = plan,
     .run = run},
    {.name = "backward_any_math",
     .backend = ATTEND_BACKEND_MATH,
     .device = ATTEND_CPU,
     .direction = ATTEND_BACKWARD,
     .type = TYPE_NONE,
     .usable = usable,
     .plan = plan,
     .run = run},
};

attend_kernel_table attend_math_kernels(void) {
  return (attend_kernel_table){rows, (int)(sizeof rows / sizeof rows[0])};
}
