/* SPDX-License-Identifier: MIT */
/* What forward and backward of the reference share: the score of one (i, j), by the formulas of attend.h in f64. */
#ifndef ATTEND_REFERENCE_H
#define ATTEND_REFERENCE_H

#include "api/problem.h"

/* One score on its way: each field is a line of the formulas. */
typedef struct reference_score {
  double raw;      /* scale * <q, k> */
  double capped;   /* softcap * tanh(raw / softcap) */
  double biased;   /* plus bias and ALiBi: what the softmax sees of an allowed pair */
  double d_capped; /* d capped / d raw */
} reference_score;

/* May query i see key j? Reads nothing of q, k, v. */
bool reference_allowed(const attend_problem *p, const attend_slice *s, int64_t i, int64_t j);

reference_score reference_score_of(const attend_problem *p, const attend_slice *s, int64_t i, int64_t j);

/* keep(b,h,i,j) / (1 - dropout). */
double reference_dropout(const attend_problem *p, const attend_operands *o, const attend_slice *s, int64_t i,
                         int64_t j);

attend_status reference_forward(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                                const attend_services *services, void *workspace, void *stream);
attend_status reference_backward(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                                 const attend_services *services, void *workspace, void *stream);

#endif
