/* SPDX-License-Identifier: MIT */
/* Backward: the scores of a block of queries are computed again, then dP and dS of it, then the products.
 *
 * An item is one (sequence, key/value head): it alone adds to those d_k and d_v, in the order of heads and queries. The
 * bias may be broadcast over sequences and heads, so its gradient has items of its own, each owning some rows of it and
 * going through all blocks that they stand for; scores and dP are computed once more there. */

typedef struct backward {
  const attend_problem *p;
  const attend_operands *o;
  char *workspace;
} backward;

typedef struct backward_scratch {
  real *keys;    /* key_block_reals */
  real *q;       /* [rows, head_dim] */
  real *d_out;   /* [rows, v_dim] */
  real *d_q;     /* [rows, head_dim] */
  real *weights; /* [rows, n]: scores, then p * keep / (1 - dropout) */
  real *d_score; /* [rows, n] */
  real *slope;   /* [rows, n]: of softcap */
  real *d_k, *d_v;
  unsigned char *seen;
  double *d_bias; /* bias_block_reals */
} backward_scratch;

/* An item of the bias gradient: at most MATH_ROWS rows of it (in ragged batches it may have more than p->q_len). */
static int64_t bias_block_rows(const attend_problem *p, int64_t first) {
  return p->bias_shape[2] - first < MATH_ROWS ? p->bias_shape[2] - first : MATH_ROWS;
}
static int64_t bias_block_count(const attend_problem *p) { return (p->bias_shape[2] + MATH_ROWS - 1) / MATH_ROWS; }
static int64_t bias_block_reals(const attend_problem *p) {
  return attend_has(p, OPERAND_D_BIAS) ? bias_block_rows(p, 0) * p->bias_shape[3] : 0;
}

size_t ENTRY(math_backward_bytes)(const attend_problem *p) {
  int64_t rows = block_rows(p);
  int64_t reals =
      key_block_reals(p) + rows * (2 * p->head_dim + p->v_dim + 3 * p->k_len) + p->k_len * (p->head_dim + p->v_dim);
  return ((size_t)bias_block_reals(p) * sizeof(double) + (size_t)(rows * p->k_len) + (size_t)reals * sizeof(real) +
          256) /
         256 * 256;
}

static backward_scratch scratch_of(const backward *w, int worker) {
  const attend_problem *p = w->p;
  int64_t rows = block_rows(p), dim = p->head_dim, v_dim = p->v_dim;
  backward_scratch t = {.d_bias = (double *)(void *)(w->workspace + (size_t)worker * ENTRY(math_backward_bytes)(p))};
  t.keys = (real *)(void *)(t.d_bias + bias_block_reals(p));
  t.q = t.keys + key_block_reals(p);
  t.d_out = t.q + rows * dim;
  t.d_q = t.d_out + rows * v_dim;
  t.weights = t.d_q + rows * dim;
  t.d_score = t.weights + rows * p->k_len;
  t.slope = t.d_score + rows * p->k_len;
  t.d_k = t.slope + rows * p->k_len;
  t.d_v = t.d_k + p->k_len * dim;
  t.seen = (unsigned char *)(t.d_v + p->k_len * v_dim);
  return t;
}

/* <d_out, out> - d_lse of row i. */
static double delta_of(const attend_problem *p, const attend_slice *s, int64_t i) {
  double sum = 0;
  for (int64_t c = 0; c < p->v_dim; c++)
    sum += attend_load(s->d_out.data, i * s->d_out.row + c * s->d_out.col, p->type) *
           attend_load(s->out.data, i * s->out.row + c * s->out.col, p->type);
  return s->d_lse ? sum - attend_load(s->d_lse, i * s->d_lse_row, p->layout[OPERAND_D_LSE].type) : sum;
}

static double lse_of(const attend_problem *p, const attend_slice *s, int64_t i) {
  return attend_load(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type);
}

/* Weights and d_score of at most MATH_ROWS queries from `first` on. */
static query_block gradient_block(const backward *w, const attend_slice *s, const key_block *keys, int64_t first,
                                  const backward_scratch *t) {
  const attend_problem *p = w->p;
  query_block block = {.first = first, .rows = s->q_len - first, .q = t->q, .scores = t->weights, .seen = t->seen};
  if (block.rows > MATH_ROWS) block.rows = MATH_ROWS;
  visible_keys(p, s, &block);
  int64_t n = block.n;
  score_block(p, s, keys, &block, t->slope);
  load_rows(p, &s->d_out, first, block.rows, p->v_dim, t->d_out);
  memset(t->d_score, 0, (size_t)(block.rows * n) * sizeof(real));
  product(block.rows, n, p->v_dim, (factor){t->d_out, p->v_dim, 1, NULL}, keys->v_t + (block.keys_first - keys->first),
          keys->count, t->d_score, n);
  drop_block(p, w->o, s, &block, t->d_score);
  for (int64_t r = 0; r < block.rows; r++) {
    real delta = (real)delta_of(p, s, first + r);
    double lse = lse_of(p, s, first + r);
    for (int64_t x = r * n; x < (r + 1) * n; x++) {
      bool zero = !t->seen[x] || lse == -INFINITY;
      t->weights[x] = zero ? 0 : real_exp((real)(t->weights[x] - lse));
      t->d_score[x] = zero ? 0 : t->weights[x] * (t->d_score[x] - delta);
    }
  }
  drop_block(p, w->o, s, &block, t->weights);
  return block;
}

static void put_rows(const attend_problem *p, const attend_matrix *m, int64_t first, int64_t rows, int64_t columns,
                     const real *from) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t c = 0; c < columns; c++) {
      int64_t at = (first + i) * m->row + c * m->col;
      double old = p->accumulate ? attend_load(m->data, at, p->type) : 0;
      attend_store(m->data, at, p->type, old + (double)from[i * columns + c]);
    }
}

/* Rows that the sequence has in k, those beyond kv_len included. */
static int64_t key_rows(const attend_problem *p, const attend_operands *o, int64_t b) {
  if (!p->ragged_k) return p->k_len;
  const attend_layout *l = &p->layout[OPERAND_K_OFFSETS];
  return attend_load_index(o->data[OPERAND_K_OFFSETS], (b + 1) * l->batch, l->type) -
         attend_load_index(o->data[OPERAND_K_OFFSETS], b * l->batch, l->type);
}

static void key_head(void *context, int worker, int64_t index) {
  const backward *w = context;
  const attend_problem *p = w->p;
  backward_scratch t = scratch_of(w, worker);
  int64_t b = index / p->kv_heads, kv_head = index % p->kv_heads, group = attend_group(p);
  int64_t dim = p->head_dim, v_dim = p->v_dim, rows = key_rows(p, w->o, b);
  attend_slice s = {0};
  key_block keys = {0};
  memset(t.d_k, 0, (size_t)(rows * (dim + v_dim)) * sizeof(real));
  t.d_v = t.d_k + rows * dim;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
    attend_slice_make(p, w->o, b, h, &s);
    if (h == kv_head * group) keys = load_keys(p, &s, 0, s.k_len, t.keys);
    for (int64_t first = 0; first < s.q_len; first += MATH_ROWS) {
      query_block block = gradient_block(w, &s, &keys, first, &t);
      int64_t n = block.n, from = block.keys_first;
      bool finite = keys.finite && all_finite(t.q, block.rows * dim) && all_finite(t.d_out, block.rows * v_dim);
      const unsigned char *seen = finite ? NULL : t.seen;
      product(n, v_dim, block.rows, (factor){t.weights, 1, n, seen}, t.d_out, v_dim, t.d_v + from * v_dim, v_dim);
      for (int64_t x = 0; x < block.rows * n; x++)
        t.d_score[x] *= (p->softcap > 0 && t.seen[x] ? t.slope[x] : 1) * (real)p->scale;
      product(n, dim, block.rows, (factor){t.d_score, 1, n, seen}, t.q, dim, t.d_k + from * dim, dim);
      if (!s.d_q.data) continue;
      memset(t.d_q, 0, (size_t)(block.rows * dim) * sizeof(real));
      product(block.rows, dim, n, (factor){t.d_score, n, 1, seen}, keys.k + from * dim, dim, t.d_q, dim);
      put_rows(p, &s.d_q, first, block.rows, dim, t.d_q);
    }
  }
  if (s.d_k.data) put_rows(p, &s.d_k, 0, rows, dim, t.d_k);
  if (s.d_v.data) put_rows(p, &s.d_v, 0, rows, v_dim, t.d_v);
}

static void bias_rows(void *context, int worker, int64_t index) {
  const backward *w = context;
  const attend_problem *p = w->p;
  const int64_t *shape = p->bias_shape;
  backward_scratch t = scratch_of(w, worker);
  int64_t i0 = index % bias_block_count(p) * MATH_ROWS, pair = index / bias_block_count(p);
  int64_t head = pair % shape[1], sequence = pair / shape[1];
  int64_t rows = bias_block_rows(p, i0), columns = shape[3];
  for (int64_t x = 0; x < rows * columns; x++) t.d_bias[x] = 0;

  attend_slice s;
  for (int64_t b = shape[0] == 1 ? 0 : sequence; b < (shape[0] == 1 ? p->batch : sequence + 1); b++)
    for (int64_t h = shape[1] == 1 ? 0 : head; h < (shape[1] == 1 ? p->heads : head + 1); h++) {
      attend_slice_make(p, w->o, b, h, &s);
      if (i0 >= s.q_len) continue;
      key_block keys = load_keys(p, &s, 0, s.k_len, t.keys);
      for (int64_t first = i0; first < (shape[2] == 1 ? s.q_len : i0 + 1); first += MATH_ROWS) {
        query_block block = gradient_block(w, &s, &keys, first, &t);
        for (int64_t r = 0; r < block.rows; r++)
          for (int64_t x = 0; x < block.n; x++) {
            int64_t row = shape[2] == 1 ? 0 : r, column = columns == 1 ? 0 : block.keys_first + x;
            t.d_bias[row * columns + column] += (double)t.d_score[r * block.n + x];
          }
      }
    }
  const attend_layout *l = &p->layout[OPERAND_D_BIAS];
  for (int64_t r = 0; r < rows; r++)
    for (int64_t x = 0; x < columns; x++) {
      int64_t at = sequence * l->batch + head * l->head + (i0 + r) * l->row + x * l->col;
      char *data = w->o->data[OPERAND_D_BIAS];
      double old = p->accumulate ? attend_load(data, at, l->type) : 0;
      attend_store(data, at, l->type, old + t.d_bias[r * columns + x]);
    }
}

static void sink_head(void *context, int worker, int64_t h) {
  (void)worker;
  const backward *w = context;
  const attend_problem *p = w->p;
  const attend_layout *l = &p->layout[OPERAND_D_SINK];
  char *data = w->o->data[OPERAND_D_SINK];
  double sum = 0;
  for (int64_t b = 0; b < p->batch; b++) {
    attend_slice s;
    attend_slice_make(p, w->o, b, h, &s);
    if (s.sink == -INFINITY) continue;
    for (int64_t i = 0; i < s.q_len; i++) sum -= exp(s.sink - lse_of(p, &s, i)) * delta_of(p, &s, i);
  }
  attend_store(data, h * l->head, l->type, sum + (p->accumulate ? attend_load(data, h * l->head, l->type) : 0));
}

void ENTRY(math_backward)(const attend_problem *p, int threads, const attend_operands *o,
                          const attend_services *services, void *workspace) {
  backward w = {p, o, workspace};
  if (attend_has(p, OPERAND_D_Q) || attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V))
    attend_for_each(services, threads, p->batch * p->kv_heads, key_head, &w);
  if (attend_has(p, OPERAND_D_BIAS))
    attend_for_each(services, threads, p->bias_shape[0] * p->bias_shape[1] * bias_block_count(p), bias_rows, &w);
  if (attend_has(p, OPERAND_D_SINK)) attend_for_each(services, threads, p->heads, sink_head, &w);
}
