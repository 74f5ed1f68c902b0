/* SPDX-License-Identifier: MIT */
/* Forward by the formulas: each row of the output by itself. */
#include "reference/reference.h"

#include "api/element.h"

#include <math.h>

typedef struct forward {
  const attend_problem *p;
  const attend_operands *o;
  double *workspace;
} forward;

static double score_at_stage(const attend_problem *p, const reference_score *score, bool allowed) {
  switch (p->scores_stage) {
  case ATTEND_SCORES_RAW:
    return score->raw;
  case ATTEND_SCORES_SOFTCAP:
    return score->capped;
  case ATTEND_SCORES_MASKED:
    break;
  }
  return allowed ? score->biased : -INFINITY;
}

/* Element j of row i of an [.., Nq, Nk] output that may be absent. */
static void put(const attend_problem *p, operand_id id, const attend_matrix *m, int64_t i, int64_t j, double x) {
  if (m->data) attend_store(m->data, i * m->row + j * m->col, p->layout[id].type, x);
}

static void forward_row(void *context, int worker, int64_t index) {
  const forward *f = context;
  const attend_problem *p = f->p;
  int64_t i = index % p->q_len, h = index / p->q_len % p->heads, b = index / p->q_len / p->heads;
  double *scores = f->workspace + worker * (p->k_len + p->v_dim), *out = scores + p->k_len;
  attend_slice s;
  attend_slice_make(p, f->o, b, h, &s);

  /* Where i or j is beyond the sequence. */
  for (int64_t j = i < s.q_len ? s.k_len : 0; j < p->k_len; j++) {
    put(p, OPERAND_SCORES, &s.scores, i, j, -INFINITY);
    put(p, OPERAND_PROBS, &s.probs, i, j, 0);
  }
  if (i >= s.q_len) return;

  /* Pairs that are not allowed are not even computed, so that nothing in them can matter, except for a caller who asked
   * to see their scores. */
  double largest = s.sink;
  for (int64_t j = 0; j < s.k_len; j++) {
    bool allowed = reference_allowed(p, &s, i, j), wanted = s.scores.data && p->scores_stage != ATTEND_SCORES_MASKED;
    reference_score score = {.biased = -INFINITY};
    if (allowed || wanted) score = reference_score_of(p, &s, i, j);
    put(p, OPERAND_SCORES, &s.scores, i, j, score_at_stage(p, &score, allowed));
    scores[j] = allowed ? score.biased : -INFINITY;
    if (scores[j] > largest) largest = scores[j];
  }
  double shift = largest == -INFINITY ? 0 : largest, sum = exp(s.sink - shift);
  for (int64_t j = 0; j < s.k_len; j++) sum += exp(scores[j] - shift);
  double lse = shift + log(sum);

  for (int64_t c = 0; c < p->v_dim; c++) out[c] = 0;
  for (int64_t j = 0; j < s.k_len; j++) {
    bool allowed = reference_allowed(p, &s, i, j) && lse != -INFINITY;
    double prob = allowed ? exp(scores[j] - shift) / sum : 0; /* exp(s - lse), without the rounding of lse */
    put(p, OPERAND_PROBS, &s.probs, i, j, prob);
    if (!allowed) continue;
    double weight = prob * reference_dropout(p, f->o, &s, i, j);
    int64_t value = attend_value_row(&s, j);
    for (int64_t c = 0; c < p->v_dim; c++) out[c] += weight * attend_load(s.v.data, value + c * s.v.col, p->type);
  }
  for (int64_t c = 0; c < p->v_dim; c++) attend_store(s.out.data, i * s.out.row + c * s.out.col, p->type, out[c]);
  if (s.lse) attend_store(s.lse, i * s.lse_row, p->layout[OPERAND_LSE].type, lse);
}

attend_status reference_forward(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                                const attend_services *services, void *workspace, void *stream) {
  (void)stream;
  forward f = {p, o, workspace};
  attend_for_each(services, (int)choice->threads, p->batch * p->heads * p->q_len, forward_row, &f);
  return ATTEND_OK;
}
