/* SPDX-License-Identifier: MIT */
/* The naive computation that the gate measures by: every matrix of the textbook formulas is materialised and rounded to
 * the element type, as a program without fused attention computes it, in f32 between the roundings. */
#include "support/gate.h"

#include "api/api.h"
#include "api/element.h"

#include <math.h>
#include <stdlib.h>

typedef struct naive {
  const attend_problem *p;
  attend_operands o;
  int order;
} naive;

static double rounded(attend_type type, double x) {
  if (type == TYPE_F64) return (double)(float)x;
  double memory = 0;
  attend_store(&memory, 0, type, x);
  return attend_load(&memory, 0, type);
}

/* x + y in the type that sums are kept in. */
static double add(double x, double y) { return (double)(float)(x + y); }
static double multiply(double x, double y) { return (double)(float)(x * y); }

/* Odd orders take their exponentials in base 2, with log2(e) in the scale that is applied to Q. */
static double base(const naive *n) { return n->order % 2 ? 1.4426950408889634 : 1; }
static double power(const naive *n, double x) { return (double)(n->order % 2 ? exp2f((float)x) : expf((float)x)); }

/* The index summed at step `step` of `count`: forwards, backwards, from the middle, odd ones first. */
static int64_t in_order(const naive *n, int64_t step, int64_t count) {
  switch (n->order) {
  case 1:
    return count - 1 - step;
  case 2:
    return (step + count / 2) % count;
  case 3:
    return step < count / 2 ? 2 * step + 1 : 2 * (step - count / 2);
  default:
    return step;
  }
}

/* Odd orders scale an operand and fuse the multiply and the add, even ones scale the sum. */
static double dot(const naive *n, int64_t count, double scale, const char *a, int64_t a_step, const char *b,
                  int64_t b_step) {
  bool odd = n->order % 2;
  double sum = 0;
  for (int64_t step = 0; step < count; step++) {
    int64_t c = in_order(n, step, count);
    double x = attend_load(a, c * a_step, n->p->type), y = attend_load(b, c * b_step, n->p->type);
    sum = odd ? (double)(float)fma(multiply(x, (double)(float)scale), y, sum) : add(sum, multiply(x, y));
  }
  return odd ? sum : multiply(sum, scale);
}

/* <dO, O>, in another order than <dO, V> is summed: where a row sees one key, O is V, and the difference of two equal
 * sums would be 0 by luck. */
static double delta_of(const naive *n, const attend_slice *s, int64_t i) {
  naive other = *n;
  other.order = (n->order + 1) % NAIVE_ORDERS;
  return dot(&other, n->p->v_dim, 1, s->d_out.data + i * s->d_out.row * (int64_t)attend_type_size(n->p->type),
             s->d_out.col, s->out.data + i * s->out.row * (int64_t)attend_type_size(n->p->type), s->out.col);
}

static char *row_of(const naive *n, const attend_matrix *m, int64_t offset) {
  return m->data ? m->data + offset * (int64_t)attend_type_size(n->p->type) : NULL;
}

/* Matrices of one (sequence, head), [q_len, k_len]. */
typedef struct matrices {
  double *s, *slope, *p, *d_p, *d_s;
  unsigned char *seen;
} matrices;

static matrices matrices_make(const attend_slice *s) {
  size_t count = (size_t)(s->q_len * s->k_len) + 1;
  double *memory = calloc(count * 5, sizeof(double));
  return (matrices){memory,          memory + count, memory + 2 * count, memory + 3 * count, memory + 4 * count,
                    calloc(count, 1)};
}
static void matrices_free(matrices *m) {
  free(m->s);
  free(m->seen);
}

static void put(attend_matrix m, attend_type type, int64_t i, int64_t j, double x) {
  if (m.data) attend_store(m.data, i * m.row + j * m.col, type, x);
}

static void scores(const naive *n, const attend_slice *s, matrices *m) {
  const attend_problem *p = n->p;
  for (int64_t i = 0; i < s->q_len; i++) {
    int64_t first, last;
    attend_visible_range(p, s, i, &first, &last);
    for (int64_t j = 0; j < s->k_len; j++) {
      int64_t x = i * s->k_len + j;
      double score = dot(n, p->head_dim, base(n) * p->scale, row_of(n, &s->q, i * s->q.row), s->q.col,
                         row_of(n, &s->k, attend_key_row(s, j)), s->k.col);
      score = rounded(p->type, score);
      if (p->scores_stage == ATTEND_SCORES_RAW) put(s->scores, p->layout[OPERAND_SCORES].type, i, j, score / base(n));
      m->slope[x] = 1;
      if (p->softcap > 0) {
        double t = rounded(p->type, (double)tanhf((float)(score / base(n) / p->softcap)));
        m->slope[x] = 1 - t * t;
        score = rounded(p->type, base(n) * p->softcap * t);
      }
      if (p->scores_stage == ATTEND_SCORES_SOFTCAP)
        put(s->scores, p->layout[OPERAND_SCORES].type, i, j, score / base(n));
      double bias = 0;
      if (s->bias.data)
        bias = attend_load(s->bias.data, i * s->bias.row + j * s->bias.col, p->layout[OPERAND_BIAS].type);
      bool masked = s->mask.data && attend_load(s->mask.data, i * s->mask.row + j * s->mask.col, TYPE_BOOL) == 0;
      m->seen[x] = j >= first && j < last && !masked && bias != -INFINITY;
      if (attend_has(p, OPERAND_ALIBI)) bias -= s->slope * fabs((double)(i + s->off - j));
      m->s[x] = m->seen[x] ? rounded(p->type, score + base(n) * bias) : -INFINITY;
      if (p->scores_stage == ATTEND_SCORES_MASKED)
        put(s->scores, p->layout[OPERAND_SCORES].type, i, j, m->s[x] / base(n));
    }
  }
}

static void forward(const naive *n, const attend_slice *s, matrices *m) {
  const attend_problem *p = n->p;
  scores(n, s, m);
  for (int64_t i = 0; i < s->q_len; i++) {
    double largest = base(n) * s->sink;
    const double *row = m->s + i * s->k_len;
    for (int64_t j = 0; j < s->k_len; j++) largest = row[j] > largest ? row[j] : largest;
    double shift = largest == -INFINITY ? 0 : largest, sum = power(n, base(n) * s->sink - shift);
    for (int64_t step = 0; step < s->k_len; step++) sum = add(sum, power(n, row[in_order(n, step, s->k_len)] - shift));
    double lse = shift / base(n) + log(sum);
    if (s->lse) attend_store(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type, lse);
    for (int64_t j = 0; j < s->k_len; j++) {
      double prob = m->seen[i * s->k_len + j] ? rounded(p->type, power(n, row[j] - shift) / sum) : 0;
      put(s->probs, p->layout[OPERAND_PROBS].type, i, j, prob);
      m->p[i * s->k_len + j] =
          prob * (p->dropout_threshold == 0 ? 1
                  : attend_dropout_draw(n->o.dropout_seed, n->o.dropout_offset, (uint32_t)s->b, (uint32_t)s->h,
                                        (uint64_t)i, (uint64_t)j) >= p->dropout_threshold
                      ? p->dropout_scale
                      : 0);
      m->p[i * s->k_len + j] = rounded(p->type, m->p[i * s->k_len + j]);
    }
    for (int64_t c = 0; c < p->v_dim; c++) {
      double out = 0;
      for (int64_t step = 0; step < s->k_len; step++) {
        int64_t j = in_order(n, step, s->k_len);
        if (m->seen[i * s->k_len + j])
          out = add(out, multiply(m->p[i * s->k_len + j],
                                  attend_load(s->v.data, attend_value_row(s, j) + c * s->v.col, p->type)));
      }
      attend_store(s->out.data, i * s->out.row + c * s->out.col, p->type, out);
    }
  }
}

/* p, dropped, and d_s of one head. */
static void gradients(const naive *n, const attend_slice *s, matrices *m) {
  const attend_problem *p = n->p;
  scores(n, s, m);
  for (int64_t i = 0; i < s->q_len; i++) {
    double lse = attend_load(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type);
    const char *d_out = row_of(n, &s->d_out, i * s->d_out.row);
    double delta = delta_of(n, s, i);
    if (s->d_lse) delta = add(delta, -attend_load(s->d_lse, i * s->d_lse_row, p->layout[OPERAND_D_LSE].type));
    for (int64_t j = 0; j < s->k_len; j++) {
      int64_t x = i * s->k_len + j;
      if (!m->seen[x] || lse == -INFINITY) continue;
      double keep = 1, prob = rounded(p->type, power(n, m->s[x] - multiply(base(n), lse)));
      if (p->dropout_threshold)
        keep = attend_dropout_draw(n->o.dropout_seed, n->o.dropout_offset, (uint32_t)s->b, (uint32_t)s->h, (uint64_t)i,
                                   (uint64_t)j) >= p->dropout_threshold
                   ? p->dropout_scale
                   : 0;
      m->d_p[x] = rounded(
          p->type, keep * dot(n, p->v_dim, 1, d_out, s->d_out.col, row_of(n, &s->v, attend_value_row(s, j)), s->v.col));
      m->d_s[x] = rounded(p->type, prob * add(m->d_p[x], -delta));
      m->p[x] = rounded(p->type, prob * keep);
    }
  }
}

/* Add sum_step weight[x0 + step * x_step] * rows[step] to `sums`, [columns]; raw: times slope and scale. */
static void weigh(const naive *n, int64_t count, const double *weight, const double *slope, const unsigned char *seen,
                  int64_t x_step, const attend_matrix *rows, int64_t (*offset)(const attend_slice *, int64_t),
                  const attend_slice *s, int64_t columns, double *sums) {
  for (int64_t c = 0; c < columns; c++)
    for (int64_t step = 0; step < count; step++) {
      int64_t at = in_order(n, step, count), x = at * x_step;
      if (!seen[x]) continue;
      double w = slope ? rounded(n->p->type, weight[x] * slope[x] * n->p->scale) : weight[x];
      int64_t row = offset ? offset(s, at) : at * rows->row;
      sums[c] = add(sums[c], multiply(w, attend_load(rows->data, row + c * rows->col, n->p->type)));
    }
}

/* What an output element held before, and what is to be added to it. */
static void put_gradient(const naive *n, const char *data, int64_t at, attend_type type, double x) {
  char *to = (char *)(uintptr_t)data;
  attend_store(to, at, type, n->p->accumulate ? attend_load(to, at, type) + x : x);
}

static void backward(const naive *n) {
  const attend_problem *p = n->p;
  const int64_t *shape = p->bias_shape;
  int64_t group = p->kv_heads ? p->heads / p->kv_heads : 0;
  size_t bias_count = attend_has(p, OPERAND_D_BIAS) ? (size_t)(shape[0] * shape[1] * shape[2] * shape[3]) : 0;
  double *d_bias = calloc(bias_count + 1, sizeof *d_bias), *d_sink = calloc((size_t)p->heads + 1, sizeof *d_sink);
  for (int64_t b = 0; b < p->batch; b++)
    for (int64_t kv = 0; kv < p->kv_heads; kv++) {
      int64_t rows = p->k_len;
      if (p->ragged_k) {
        const attend_layout *l = &p->layout[OPERAND_K_OFFSETS];
        rows = attend_load_index(n->o.data[OPERAND_K_OFFSETS], (b + 1) * l->batch, l->type) -
               attend_load_index(n->o.data[OPERAND_K_OFFSETS], b * l->batch, l->type);
      }
      int64_t dim = p->head_dim, v_dim = p->v_dim;
      double *d_k = calloc((size_t)(rows * dim) + 1, sizeof *d_k),
             *d_v = calloc((size_t)(rows * v_dim) + 1, sizeof *d_v);
      attend_slice s;
      for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        attend_slice_make(p, &n->o, b, h, &s);
        matrices m = matrices_make(&s);
        gradients(n, &s, &m);
        int64_t n_keys = s.k_len;
        for (int64_t j = 0; j < n_keys; j++) {
          weigh(n, s.q_len, m.d_s + j, m.slope + j, m.seen + j, n_keys, &s.q, NULL, &s, dim, d_k + j * dim);
          weigh(n, s.q_len, m.p + j, NULL, m.seen + j, n_keys, &s.d_out, NULL, &s, v_dim, d_v + j * v_dim);
        }
        double *d_q = calloc((size_t)dim + 1, sizeof *d_q);
        for (int64_t i = 0; i < s.q_len; i++) {
          for (int64_t c = 0; c < dim; c++) d_q[c] = 0;
          int64_t x0 = i * n_keys;
          weigh(n, n_keys, m.d_s + x0, m.slope + x0, m.seen + x0, 1, &s.k, attend_key_row, &s, dim, d_q);
          for (int64_t c = 0; s.d_q.data && c < dim; c++)
            put_gradient(n, s.d_q.data, i * s.d_q.row + c * s.d_q.col, p->type, d_q[c]);
          if (s.sink == -INFINITY) continue;
          double delta = delta_of(n, &s, i);
          if (s.d_lse) delta -= attend_load(s.d_lse, i * s.d_lse_row, p->layout[OPERAND_D_LSE].type);
          double lse = attend_load(s.lse, i * s.lse_row, p->layout[OPERAND_LSE].type);
          d_sink[h] = add(d_sink[h], -rounded(p->type, power(n, base(n) * (s.sink - lse))) * delta);
        }
        free(d_q);
        for (int64_t x = 0; bias_count && x < s.q_len * n_keys; x++) {
          int64_t i = x / n_keys, j = x % n_keys;
          int64_t at =
              (((shape[0] == 1 ? 0 : b) * shape[1] + (shape[1] == 1 ? 0 : h)) * shape[2] + (shape[2] == 1 ? 0 : i)) *
                  shape[3] +
              (shape[3] == 1 ? 0 : j);
          d_bias[at] = add(d_bias[at], m.d_s[x]);
        }
        matrices_free(&m);
      }
      for (int64_t x = 0; group && s.d_k.data && x < rows * dim; x++)
        put_gradient(n, s.d_k.data, x / dim * s.d_k.row + x % dim * s.d_k.col, p->type, d_k[x]);
      for (int64_t x = 0; group && s.d_v.data && x < rows * v_dim; x++)
        put_gradient(n, s.d_v.data, x / v_dim * s.d_v.row + x % v_dim * s.d_v.col, p->type, d_v[x]);
      free(d_k);
      free(d_v);
    }
  const attend_layout *bias = &p->layout[OPERAND_D_BIAS], *sink = &p->layout[OPERAND_D_SINK];
  for (size_t x = 0; x < bias_count; x++) {
    int64_t i = (int64_t)x, j = i % shape[3], row = i / shape[3] % shape[2], head = i / shape[3] / shape[2] % shape[1];
    int64_t b = i / shape[3] / shape[2] / shape[1];
    put_gradient(n, n->o.data[OPERAND_D_BIAS], b * bias->batch + head * bias->head + row * bias->row + j * bias->col,
                 bias->type, d_bias[x]);
  }
  for (int64_t h = 0; attend_has(p, OPERAND_D_SINK) && h < p->heads; h++)
    put_gradient(n, n->o.data[OPERAND_D_SINK], h * sink->head, sink->type, d_sink[h]);
  free(d_bias);
  free(d_sink);
}

void run_naive(test_problem *problem, attend_direction direction, int order, run_outputs *outputs) {
  *outputs = (run_outputs){0};
  attend_args args = {.dropout_seed = problem->spec.dropout_seed, .dropout_offset = problem->spec.dropout_offset};
  const attend_tensor **slots = &args.q;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    if (!problem->t[id].view.data) continue;
    slots[id] = &problem->t[id].view;
    if (!is_output_of(direction, id)) continue;
    tensor_clone(&outputs->t[id], &problem->t[id], true);
    slots[id] = &outputs->t[id].view;
  }
  attend_options options = problem->options;
  options.backends = ATTEND_BACKEND_REFERENCE;
  attend_plan *plan = NULL;
  naive n = {.order = order};
  attend_operands own;
  const attend_operands *operands;
  bool moved;
  if (attend_plan_create(direction, &args, &options, &plan) || attend_bind(plan, &args, &own, &operands, &moved))
    abort();
  n.o = *operands;
  n.p = &plan->problem;
  if (direction == ATTEND_BACKWARD)
    backward(&n);
  else
    for (int64_t pair = 0; pair < n.p->batch * n.p->heads; pair++) {
      attend_slice s;
      attend_slice_make(n.p, &n.o, pair / n.p->heads, pair % n.p->heads, &s);
      matrices m = matrices_make(&s);
      forward(&n, &s, &m);
      matrices_free(&m);
    }
  attend_plan_destroy(plan);
}
