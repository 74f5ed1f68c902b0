/* SPDX-License-Identifier: MIT */
/* Backward by the formulas. With w = keep / (1 - dropout) of each pair:
 *
 *     p     = exp(s - lse)                       delta_i = <d_out_i, out_i> - d_lse_i
 *     d_s   = p * (w * <d_out_i, v_j> - delta_i) what reaches the score after softcap, bias and ALiBi
 *     d_q_i = scale * sum_j d_s * d_capped * k_j          d_v_j  = sum_{h,i} p * w * d_out_i
 *     d_k_j = scale * sum_{h,i} d_s * d_capped * q_i      d_bias = sum of d_s over what was broadcast
 *     d_sink_h = -sum_{b,i} exp(sink - lse_i) * delta_i
 *
 * Each element of a gradient has one owner, who computes every term of its sum afresh: no scratch, no order to get
 * wrong, and one rounding. */
#include "reference/reference.h"

#include "api/element.h"

#include <math.h>

typedef struct backward {
  const attend_problem *p;
  const attend_operands *o;
  double *workspace;
} backward;

typedef struct pair_gradient {
  double weight; /* p * w */
  double score;  /* d_s */
  double raw;    /* scale * d_s * d_capped: what reaches <q, k> */
} pair_gradient;

static double load_lse(const attend_problem *p, const attend_slice *s, int64_t i) {
  return attend_load(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type);
}

static double delta_of(const attend_problem *p, const attend_slice *s, int64_t i) {
  double sum = 0;
  for (int64_t c = 0; c < p->v_dim; c++)
    sum += attend_load(s->d_out.data, i * s->d_out.row + c * s->d_out.col, p->type) *
           attend_load(s->out.data, i * s->out.row + c * s->out.col, p->type);
  return s->d_lse ? sum - attend_load(s->d_lse, i * s->d_lse_row, p->layout[OPERAND_D_LSE].type) : sum;
}

/* Of an allowed pair. */
static pair_gradient pair_gradient_of(const backward *w, const attend_slice *s, int64_t i, int64_t j, double delta) {
  const attend_problem *p = w->p;
  double lse = load_lse(p, s, i);
  if (lse == -INFINITY) return (pair_gradient){0};
  reference_score score = reference_score_of(p, s, i, j);
  double prob = exp(score.biased - lse), drop = reference_dropout(p, w->o, s, i, j), d_prob = 0;
  int64_t value = attend_value_row(s, j);
  for (int64_t c = 0; c < p->v_dim; c++)
    d_prob += attend_load(s->d_out.data, i * s->d_out.row + c * s->d_out.col, p->type) *
              attend_load(s->v.data, value + c * s->v.col, p->type);
  double d_score = prob * (drop * d_prob - delta);
  return (pair_gradient){prob * drop, d_score, p->scale * d_score * score.d_capped};
}

static void put(const attend_problem *p, char *data, int64_t at, attend_type type, double x) {
  attend_store(data, at, type, p->accumulate ? attend_load(data, at, type) + x : x);
}

static void query_row(void *context, int worker, int64_t index) {
  const backward *w = context;
  const attend_problem *p = w->p;
  int64_t i = index % p->q_len, h = index / p->q_len % p->heads, b = index / p->q_len / p->heads;
  attend_slice s;
  attend_slice_make(p, w->o, b, h, &s);
  if (i >= s.q_len) return;
  double *d_q = w->workspace + worker * (p->head_dim + p->v_dim), delta = delta_of(p, &s, i);
  for (int64_t c = 0; c < p->head_dim; c++) d_q[c] = 0;
  for (int64_t j = 0; j < s.k_len; j++) {
    if (!reference_allowed(p, &s, i, j)) continue;
    double raw = pair_gradient_of(w, &s, i, j, delta).raw;
    int64_t key = attend_key_row(&s, j);
    for (int64_t c = 0; c < p->head_dim; c++) d_q[c] += raw * attend_load(s.k.data, key + c * s.k.col, p->type);
  }
  for (int64_t c = 0; c < p->head_dim; c++) put(p, s.d_q.data, i * s.d_q.row + c * s.d_q.col, p->type, d_q[c]);
}

/* Keys beyond kv_len have rows too, whose gradient is 0. */
static int64_t key_rows(const attend_problem *p, const attend_operands *o, int64_t b) {
  if (!p->ragged_k) return p->k_len;
  const attend_layout *l = &p->layout[OPERAND_K_OFFSETS];
  return attend_load_index(o->data[OPERAND_K_OFFSETS], (b + 1) * l->batch, l->type) -
         attend_load_index(o->data[OPERAND_K_OFFSETS], b * l->batch, l->type);
}

static void key_row(void *context, int worker, int64_t index) {
  const backward *w = context;
  const attend_problem *p = w->p;
  int64_t j = index % p->k_len, kv_head = index / p->k_len % p->kv_heads, b = index / p->k_len / p->kv_heads;
  if (j >= key_rows(p, w->o, b)) return;
  double *d_k = w->workspace + worker * (p->head_dim + p->v_dim), *d_v = d_k + p->head_dim;
  for (int64_t c = 0; c < p->head_dim + p->v_dim; c++) d_k[c] = 0;

  int64_t group = attend_group(p);
  attend_slice s = {0};
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
    attend_slice_make(p, w->o, b, h, &s);
    for (int64_t i = 0; i < s.q_len; i++) {
      if (!reference_allowed(p, &s, i, j)) continue;
      pair_gradient g = pair_gradient_of(w, &s, i, j, delta_of(p, &s, i));
      for (int64_t c = 0; c < p->head_dim; c++)
        d_k[c] += g.raw * attend_load(s.q.data, i * s.q.row + c * s.q.col, p->type);
      for (int64_t c = 0; c < p->v_dim; c++)
        d_v[c] += g.weight * attend_load(s.d_out.data, i * s.d_out.row + c * s.d_out.col, p->type);
    }
  }
  if (s.d_k.data)
    for (int64_t c = 0; c < p->head_dim; c++) put(p, s.d_k.data, j * s.d_k.row + c * s.d_k.col, p->type, d_k[c]);
  if (s.d_v.data)
    for (int64_t c = 0; c < p->v_dim; c++) put(p, s.d_v.data, j * s.d_v.row + c * s.d_v.col, p->type, d_v[c]);
}

/* The coordinates of the problem that one coordinate of the bias stands for: all of them where it is broadcast. */
typedef struct span {
  int64_t first, last;
} span;
static span span_of(int64_t bias_size, int64_t at, int64_t size) {
  return bias_size == 1 ? (span){0, size} : (span){at, at + 1};
}

static void bias_element(void *context, int worker, int64_t index) {
  (void)worker;
  const backward *w = context;
  const attend_problem *p = w->p;
  const int64_t *shape = p->bias_shape;
  int64_t at[4];
  for (int d = 3; d >= 0; index /= shape[d], d--) at[d] = index % shape[d];
  span bs = span_of(shape[0], at[0], p->batch), hs = span_of(shape[1], at[1], p->heads);
  span is = span_of(shape[2], at[2], p->q_len), js = span_of(shape[3], at[3], p->k_len);
  double sum = 0;
  for (int64_t b = bs.first; b < bs.last; b++)
    for (int64_t h = hs.first; h < hs.last; h++) {
      attend_slice s;
      attend_slice_make(p, w->o, b, h, &s);
      for (int64_t i = is.first; i < is.last && i < s.q_len; i++) {
        double delta = delta_of(p, &s, i);
        for (int64_t j = js.first; j < js.last; j++)
          if (reference_allowed(p, &s, i, j)) sum += pair_gradient_of(w, &s, i, j, delta).score;
      }
    }
  const attend_layout *l = &p->layout[OPERAND_D_BIAS];
  put(p, w->o->data[OPERAND_D_BIAS], at[0] * l->batch + at[1] * l->head + at[2] * l->row + at[3] * l->col, l->type,
      sum);
}

static void sink_element(void *context, int worker, int64_t h) {
  (void)worker;
  const backward *w = context;
  const attend_problem *p = w->p;
  double sum = 0;
  for (int64_t b = 0; b < p->batch; b++) {
    attend_slice s;
    attend_slice_make(p, w->o, b, h, &s);
    if (s.sink == -INFINITY) continue;
    for (int64_t i = 0; i < s.q_len; i++) sum -= exp(s.sink - load_lse(p, &s, i)) * delta_of(p, &s, i);
  }
  const attend_layout *l = &p->layout[OPERAND_D_SINK];
  put(p, w->o->data[OPERAND_D_SINK], h * l->head, l->type, sum);
}

attend_status reference_backward(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                                 const attend_services *services, void *workspace, void *stream) {
  (void)stream;
  backward w = {p, o, workspace};
  int threads = (int)choice->threads;
  if (attend_has(p, OPERAND_D_Q)) attend_for_each(services, threads, p->batch * p->heads * p->q_len, query_row, &w);
  if (attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V))
    attend_for_each(services, threads, p->batch * p->kv_heads * p->k_len, key_row, &w);
  if (attend_has(p, OPERAND_D_BIAS)) {
    const int64_t *shape = p->bias_shape;
    attend_for_each(services, threads, shape[0] * shape[1] * shape[2] * shape[3], bias_element, &w);
  }
  if (attend_has(p, OPERAND_D_SINK)) attend_for_each(services, threads, p->heads, sink_element, &w);
  return ATTEND_OK;
}
