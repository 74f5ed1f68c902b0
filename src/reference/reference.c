/* SPDX-License-Identifier: MIT */
/* The reference back-end: the formulas of attend.h one element at a time, in f64. It takes every problem and is the
 * oracle of every test, so nothing here is clever. */
#include "reference/reference.h"

#include "api/element.h"

#include <math.h>

bool reference_allowed(const attend_problem *p, const attend_slice *s, int64_t i, int64_t j) {
  int64_t first, last;
  attend_visible_range(p, s, i, &first, &last);
  if (j < first || j >= last) return false;
  if (s->mask.data && attend_load(s->mask.data, i * s->mask.row + j * s->mask.col, TYPE_BOOL) == 0) return false;
  if (s->bias.data) {
    attend_type type = p->layout[OPERAND_BIAS].type;
    if (attend_load(s->bias.data, i * s->bias.row + j * s->bias.col, type) == -INFINITY) return false;
  }
  return true;
}

reference_score reference_score_of(const attend_problem *p, const attend_slice *s, int64_t i, int64_t j) {
  reference_score score = {.d_capped = 1};
  int64_t key = attend_key_row(s, j);
  double sum = 0;
  for (int64_t c = 0; c < p->head_dim; c++)
    sum += attend_load(s->q.data, i * s->q.row + c * s->q.col, p->type) *
           attend_load(s->k.data, key + c * s->k.col, p->type);
  score.raw = score.capped = p->scale * sum;
  if (p->softcap > 0) {
    double t = tanh(score.raw / p->softcap);
    score.capped = p->softcap * t;
    score.d_capped = 1 - t * t;
  }
  score.biased = score.capped;
  if (s->bias.data)
    score.biased += attend_load(s->bias.data, i * s->bias.row + j * s->bias.col, p->layout[OPERAND_BIAS].type);
  if (attend_has(p, OPERAND_ALIBI)) score.biased -= s->slope * fabs((double)(i + s->off - j));
  return score;
}

double reference_dropout(const attend_problem *p, const attend_operands *o, const attend_slice *s, int64_t i,
                         int64_t j) {
  if (p->dropout_threshold == 0) return 1;
  uint32_t draw =
      attend_dropout_draw(o->dropout_seed, o->dropout_offset, (uint32_t)s->b, (uint32_t)s->h, (uint64_t)i, (uint64_t)j);
  return draw >= p->dropout_threshold ? p->dropout_scale : 0;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  (void)reason;
  return true;
}

/* Per worker: a row of scores and a row of the output, or two rows of gradients. */
static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)reason;
  int64_t reals = p->direction == ATTEND_FORWARD ? p->k_len + p->v_dim : p->head_dim + p->v_dim;
  *choice = (attend_choice){.kernel = row,
                            .tile_q = 1,
                            .tile_k = 1,
                            .splits = 1,
                            .threads = p->threads,
                            .workspace_bytes = (size_t)p->threads * (size_t)reals * sizeof(double),
                            .alignment = attend_type_size(p->type)};
  return true;
}

static const attend_kernel_row rows[] = {
    {.name = "forward_any_reference",
     .backend = ATTEND_BACKEND_REFERENCE,
     .device = ATTEND_CPU,
     .direction = ATTEND_FORWARD,
     .type = TYPE_NONE,
     .usable = usable,
     .plan = plan,
     .run = reference_forward},
    {.name = "backward_any_reference",
     .backend = ATTEND_BACKEND_REFERENCE,
     .device = ATTEND_CPU,
     .direction = ATTEND_BACKWARD,
     .type = TYPE_NONE,
     .usable = usable,
     .plan = plan,
     .run = reference_backward},
};

attend_kernel_table attend_reference_kernels(void) {
  return (attend_kernel_table){rows, (int)(sizeof rows / sizeof rows[0])};
}
