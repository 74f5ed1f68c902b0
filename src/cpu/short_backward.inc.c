/* SPDX-License-Identifier: MIT */
/* Backward on short sequences: short.inc.c says how. A whole row of P and dP is in one tile, so that
 *
 *   delta_i = sum_j P[j][i] dP[j][i] - dLSE_i          (dP after dropout)
 *
 * equals rowsum(dO * O), and the softmax is taken again from its own scores: neither O nor lse is read, and a row that
 * sees one key has P = 1 and dS = 0 exactly. Then dS = P (dP - delta), and dQ, dK, dV leave in rows like O. An item of
 * work is SHORT_PAIRS pairs (sequence, key head); heads that share keys add to dK and dV in scratch, in order. */

typedef struct short_backward_context {
  const attend_problem *problem;
  const attend_choice *choice;
  const attend_operands *operands;
  char *workspace;
  size_t bytes_per_worker;
  bool stream_q, stream_k, stream_v, options;
} short_backward_context;

typedef struct short_backward_scratch {
  real *q, *k, *v, *d_out, *d_k, *d_v;     /* [SHORT_MAX][dimension padded] */
  real *p, *ds, *factor, *slope, *visible; /* [SHORT_MAX][SHORT_MAX] */
} short_backward_scratch;

static short_backward_scratch short_backward_scratch_at(const attend_problem *p, char *base, int64_t *used) {
  short_backward_scratch w;
  int64_t k_rows = SHORT_MAX * round_up(p->head_dim, LANES), v_rows = SHORT_MAX * round_up(p->v_dim, LANES);
  w.q = take(base, used, k_rows);
  w.k = take(base, used, k_rows);
  w.v = take(base, used, v_rows);
  w.d_out = take(base, used, v_rows);
  w.d_k = take(base, used, k_rows);
  w.d_v = take(base, used, v_rows);
  w.p = take(base, used, SHORT_MAX * SHORT_MAX);
  w.ds = take(base, used, SHORT_MAX * SHORT_MAX);
  w.factor = take(base, used, SHORT_MAX * SHORT_MAX);
  w.slope = take(base, used, SHORT_MAX * SHORT_MAX);
  w.visible = take(base, used, SHORT_MAX * SHORT_MAX);
  return w;
}

/* From scores in w->p and dP in w->ds to P (after dropout) and dS. Both are 0 where hidden. */
static void short_gradient_tile(const attend_problem *p, const attend_slice *s, const score_tile *t,
                                const short_backward_scratch *w) {
  bool dropout = p->dropout_threshold != 0;
  if (dropout) {
    for (int k = 0; k < t->keys * t->width; k += LANES) lanes_store(w->factor + k, lanes_set1(1));
    dropout_pass(t, w->factor, (real)p->dropout_scale);
  }
  for (int v = 0; v < t->width; v += LANES) {
    real d_lse[LANES] = {0};
    for (int l = 0; s->d_lse && l < LANES && v + l < t->rows; l++)
      d_lse[l] = (real)attend_load(s->d_lse, (v + l) * s->d_lse_row, p->layout[OPERAND_D_LSE].type);
    lanes max = lanes_set1((real)(s->sink * LOG2_E)), sum = lanes_zero(), delta = lanes_zero();
    for (int k = 0; k < t->keys; k++) max = lanes_max(lanes_load(w->p + k * t->width + v), max);
    max = lanes_select(lanes_equal(max, lanes_set1(-(real)INFINITY)), lanes_zero(), max);
    if (s->sink != -INFINITY) sum = lanes_exp2(lanes_sub(lanes_set1((real)(s->sink * LOG2_E)), max));
    for (int k = 0; k < t->keys; k++) {
      int at = k * t->width + v;
      lane_mask hidden = t->visible ? lanes_equal(lanes_load(t->visible + at), lanes_zero()) : mask_first(0);
      lanes power = lanes_select(hidden, lanes_zero(), lanes_exp2(lanes_sub(lanes_load(w->p + at), max)));
      lanes dp = lanes_select(hidden, lanes_zero(), lanes_load(w->ds + at));
      if (dropout) dp = lanes_mul(dp, lanes_load(w->factor + at));
      sum = lanes_add(sum, power);
      delta = lanes_fma(power, dp, delta);
      lanes_store(w->p + at, power);
      lanes_store(w->ds + at, dp);
    }
    lanes share = lanes_select(lanes_equal(sum, lanes_zero()), lanes_zero(), lanes_div(lanes_set1(1), sum));
    delta = lanes_sub(lanes_mul(delta, share), lanes_load(d_lse));
    for (int k = 0; k < t->keys; k++) {
      int at = k * t->width + v;
      lanes probability = lanes_mul(lanes_load(w->p + at), share);
      lanes ds = lanes_mul(probability, lanes_sub(lanes_load(w->ds + at), delta));
      if (t->softcap_slope) ds = lanes_mul(ds, lanes_load(t->softcap_slope + at));
      if (t->visible) ds = lanes_select(lanes_equal(lanes_load(t->visible + at), lanes_zero()), lanes_zero(), ds);
      lanes_store(w->ds + at, ds);
      lanes_store(w->p + at, dropout ? lanes_mul(probability, lanes_load(w->factor + at)) : probability);
    }
  }
}

/* Rows from `first` on are 0; `zeros` is scratch for one. */
static void short_zero_rows(const attend_matrix *m, int64_t first, int64_t rows, int64_t columns, attend_type type,
                            real *zeros) {
  if (!m->data || first >= rows) return;
  memset(zeros, 0, (size_t)columns * sizeof(real));
  for (int64_t r = first; r < rows; r++) unpack_row(m->data, r * m->row, m->col, columns, zeros, 1, false, type);
}

/* One query head; `first` and `last` of those that share its keys. */
static void short_backward_head(const short_backward_context *c, const short_ranges *range, const attend_slice *s,
                                bool first, bool last, const short_backward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = c->problem;
  int queries = (int)s->q_len, keys = (int)s->k_len, width = (int)round_up(queries, LANES);
  real scale[SHORT_MAX], one[SHORT_MAX];
  for (int i = 0; i < SHORT_MAX; i++) {
    scale[i] = (real)p->scale;
    one[i] = 1;
  }
  key_rows q = short_rows(&s->q, queries, p->head_dim, p->type, w->q);
  key_rows k = short_rows(&s->k, keys, p->head_dim, p->type, w->k);
  key_rows v = short_rows(&s->v, keys, p->v_dim, p->type, w->v);
  key_rows d_out = short_rows(&s->d_out, queries, p->v_dim, p->type, w->d_out);
  score_tile tile = {.problem = p, .slice = s, .rows = queries, .keys = keys, .width = width, .s = w->p};
  bool may_hide = range->keys.all_first > 0 || range->keys.all_last < keys || s->mask.data || s->bias.data;
  if (may_hide) tile.visible = w->visible;
  if (p->softcap > 0) tile.softcap_slope = w->slope;
  bool finite = short_scores(w->p, width, &q, queries, &k, range, p->head_dim, score_factor(p), ahead);
  finite &= short_scores(w->ds, width, &d_out, queries, &v, range, p->v_dim, 1, ahead);
  const real *careful = may_hide && !finite ? w->visible : NULL; /* 0 times NaN or Inf would not be 0 */
  score_passes(&tile, &range->keys);
  short_gradient_tile(p, s, &tile, w);

  short_product d_q = {.a = w->ds, .visible = careful, .a_step = width, .x = k, .rows = queries};
  d_q.first = range->first_key, d_q.last = range->last_key, d_q.columns = p->head_dim, d_q.factor = scale;
  d_q.out = s->d_q, d_q.add = p->accumulate, d_q.stream = c->stream_q, d_q.ahead = ahead;
  if (s->d_q.data) short_multiply(&d_q, p->type);
  short_product d_k = {.a = w->ds, .visible = careful, .a_step = width, .along = true, .x = q, .rows = keys};
  d_k.first = range->first_query, d_k.last = range->last_query, d_k.columns = p->head_dim, d_k.factor = scale;
  d_k.add = p->accumulate, d_k.stream = c->stream_k, d_k.ahead = ahead;
  d_k.sums = first && last ? NULL : w->d_k;
  if (last) d_k.out = s->d_k;
  if (s->d_k.data) short_multiply(&d_k, p->type);
  short_product d_v = {.a = w->p, .visible = careful, .a_step = width, .along = true, .x = d_out, .rows = keys};
  d_v.first = range->first_query, d_v.last = range->last_query, d_v.columns = p->v_dim, d_v.factor = one;
  d_v.add = p->accumulate, d_v.stream = c->stream_v, d_v.ahead = ahead;
  d_v.sums = first && last ? NULL : w->d_v;
  if (last) d_v.out = s->d_v;
  if (s->d_v.data) short_multiply(&d_v, p->type);
  if (last && !p->accumulate && attend_has(p, OPERAND_KV_LEN)) {
    int64_t owned = owned_keys(p, c->operands, s->b);
    short_zero_rows(&s->d_k, keys, owned, p->head_dim, p->type, w->d_k);
    short_zero_rows(&s->d_v, keys, owned, p->v_dim, p->type, w->d_v);
  }
}

/* Goes through the heads of an item of work, leaving out the sequences that are another kernel's. */
typedef struct short_backward_walk {
  int64_t head, last;
  attend_slice slice;     /* of `head`, if that is before `last` */
  short_ranges ranges[2]; /* of this head and, if it has other lengths, of the one before */
  int range;              /* which of the two; -1: none yet */
} short_backward_walk;

static void short_step(const attend_problem *p, operand_id id, attend_matrix *m) {
  if (m->data) m->data += p->layout[id].head * (int64_t)attend_type_size(p->type);
}
/* From a head's slice to that of the next head of its sequence, where there are no options. To make each anew cost 10%
 * of the time for 5 tokens in the second-level cache and 25% between streaming stores: gcc clears a slice's 472 bytes
 * by `rep stos`. */
static void short_next_head(const attend_problem *p, attend_slice *s) {
  const attend_layout *d_lse = &p->layout[OPERAND_D_LSE];
  s->h++;
  short_step(p, OPERAND_Q, &s->q);
  short_step(p, OPERAND_D_OUT, &s->d_out);
  short_step(p, OPERAND_D_Q, &s->d_q);
  if (s->d_lse) s->d_lse += d_lse->head * (int64_t)attend_type_size(d_lse->type);
  if (s->h % attend_group(p)) return;
  s->kv_head++;
  short_step(p, OPERAND_K, &s->k);
  short_step(p, OPERAND_V, &s->v);
  short_step(p, OPERAND_D_K, &s->d_k);
  short_step(p, OPERAND_D_V, &s->d_v);
}

static void short_backward_find(const short_backward_context *c, short_backward_walk *walk) {
  const attend_problem *p = c->problem;
  attend_slice *s = &walk->slice;
  int64_t q_len = walk->range < 0 ? -1 : s->q_len, k_len = s->k_len;
  if (!c->options && walk->range >= 0 && walk->head % p->heads == s->h + 1) {
    short_next_head(p, s);
    return;
  }
  while (walk->head < walk->last) {
    attend_slice_make(p, c->operands, walk->head / p->heads, walk->head % p->heads, s);
    if (attend_serves(c->choice, s->q_len, s->k_len)) break;
    walk->head += p->heads - walk->head % p->heads;
  }
  if (walk->head >= walk->last || (s->q_len == q_len && s->k_len == k_len)) return;
  walk->range = walk->range != 0 ? 0 : 1;
  short_ranges_make(p, s, &walk->ranges[walk->range]);
}

static void short_backward_item(void *context, int worker, int64_t index) {
  const short_backward_context *c = context;
  const attend_problem *p = c->problem;
  int64_t used = 0, group = attend_group(p), heads = p->batch * p->heads;
  short_backward_scratch w = short_backward_scratch_at(p, c->workspace + (size_t)worker * c->bytes_per_worker, &used);
  short_backward_walk next = {.head = index * SHORT_PAIRS * group, .range = -1};
  next.last = heads - next.head < SHORT_PAIRS * group ? heads : next.head + SHORT_PAIRS * group;
  short_backward_find(c, &next);
  while (next.head < next.last) {
    short_ahead ahead;
    ahead.parts = ahead.now = ahead.rows = 0;
    attend_slice slice = next.slice;
    const short_ranges *range = &next.ranges[next.range];
    bool first_of_group = next.head % group == 0, last_of_group = next.head % group == group - 1;
    next.head++;
    short_backward_find(c, &next);
    if (next.head < next.last) {
      short_ahead_add(&ahead, &next.slice.q, next.slice.q_len, p->head_dim, p->type);
      if (last_of_group) {
        short_ahead_add(&ahead, &next.slice.k, next.slice.k_len, p->head_dim, p->type);
        short_ahead_add(&ahead, &next.slice.v, next.slice.k_len, p->v_dim, p->type);
      }
      short_ahead_add(&ahead, &next.slice.d_out, next.slice.q_len, p->v_dim, p->type);
    }
    ahead.pace = 1 + ahead.rows / (1 + short_tiles(p, &slice, 2, 3));
    if (first_of_group && !last_of_group) {
      memset(w.d_k, 0, (size_t)(SHORT_MAX * round_up(p->head_dim, LANES)) * sizeof(real));
      memset(w.d_v, 0, (size_t)(SHORT_MAX * round_up(p->v_dim, LANES)) * sizeof(real));
    }
    short_backward_head(c, range, &slice, first_of_group, last_of_group, &w, &ahead);
    short_ahead_rows(&ahead, 4 * SHORT_MAX);
  }
  if (c->stream_q || c->stream_k || c->stream_v) lanes_stream_end();
}

/* An item of one query and one key each: short.inc.c says why. */
static void short_backward_ones(void *context, int worker, int64_t index) {
  const short_backward_context *c = context;
  const attend_problem *p = c->problem;
  int64_t first = index * SHORT_PAIRS, pairs = p->batch * p->heads;
  int64_t last = pairs - first < SHORT_PAIRS ? pairs : first + SHORT_PAIRS;
  (void)worker;
  attend_slice none = {.sink = -INFINITY};
  score_tile tile = {.problem = p, .slice = &none, .rows = SHORT_ONES, .keys = 1, .width = LANES};
  real power[LANES], ds[LANES], scale[LANES], one[LANES];
  short_backward_scratch w = {.p = power, .ds = ds};
  lanes_store(scale, lanes_set1((real)p->scale));
  lanes_store(one, lanes_set1(1));
  for (; first < last; first += SHORT_ONES) {
    int count = last - first < SHORT_ONES ? (int)(last - first) : SHORT_ONES;
    short_ones q, k, v, d_out, out;
    short_ones_at(p, c->operands, OPERAND_Q, first, count, &q);
    short_ones_at(p, c->operands, OPERAND_K, first, count, &k);
    short_ones_at(p, c->operands, OPERAND_V, first, count, &v);
    short_ones_at(p, c->operands, OPERAND_D_OUT, first, count, &d_out);
    lanes_store(power, short_ones_dots(&q, &k, count, p->head_dim, score_factor(p)));
    lanes_store(ds, short_ones_dots(&d_out, &v, count, p->v_dim, 1));
    short_gradient_tile(p, &none, &tile, &w);
    short_ones_at(p, c->operands, OPERAND_D_Q, first, count, &out);
    short_ones_products(&out, ds, &k, scale, count, p->head_dim, c->stream_q);
    short_ones_at(p, c->operands, OPERAND_D_K, first, count, &out);
    short_ones_products(&out, ds, &q, scale, count, p->head_dim, c->stream_k);
    short_ones_at(p, c->operands, OPERAND_D_V, first, count, &out);
    short_ones_products(&out, power, &d_out, one, count, p->v_dim, c->stream_v);
  }
  if (c->stream_q || c->stream_k || c->stream_v) lanes_stream_end();
}

bool ENTRY(backward_short_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                                char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!short_serves(p, choice, reason)) return false;
  if (attend_has(p, OPERAND_D_BIAS) || attend_has(p, OPERAND_D_SINK)) {
    snprintf(reason, ATTEND_REASON_SIZE, "leaves gradients of bias and sink to the tiled kernel");
    return false;
  }
  int64_t used = 0, items = (p->batch * p->kv_heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  short_backward_scratch_at(p, NULL, &used);
  choice->splits = 1;
  choice->threads = items < p->threads ? (items > 0 ? items : 1) : p->threads;
  choice->workspace_bytes = (size_t)(choice->threads * round_up(used, 256));
  choice->alignment = attend_type_size(p->type);
  return true;
}

attend_status ENTRY(backward_short_run)(const attend_problem *p, const attend_choice *choice,
                                        const attend_operands *operands, const attend_services *services,
                                        void *workspace, void *stream) {
  (void)stream;
  int64_t q_rows = p->heads * (p->ragged_q ? p->q_total : p->batch * p->q_len);
  int64_t k_rows = p->kv_heads * (p->ragged_k ? p->k_total : p->batch * p->k_len);
  short_backward_context c = {.problem = p,
                              .choice = choice,
                              .options = short_has_options(p),
                              .operands = operands,
                              .workspace = workspace,
                              .bytes_per_worker = choice->workspace_bytes / (size_t)choice->threads,
                              .stream_q = short_streams(p, operands, OPERAND_D_Q, q_rows, p->head_dim),
                              .stream_k = short_streams(p, operands, OPERAND_D_K, k_rows, p->head_dim),
                              .stream_v = short_streams(p, operands, OPERAND_D_V, k_rows, p->v_dim)};
  int64_t items = (p->batch * p->kv_heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  attend_for_each(services, (int)choice->threads, items, short_is_one(p) ? short_backward_ones : short_backward_item,
                  &c);
  return ATTEND_OK;
}
