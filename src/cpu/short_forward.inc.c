/* SPDX-License-Identifier: MIT */
/* Forward on short sequences with options, as short.inc.c says (on all where there are no blocks), and on pairs of one
 * query and one key. */

/* P = 2^(S - max) in place over `keys` rows; factor[i] = scale / sum, 0 where nothing is seen; lse in base e. */
static void short_softmax(real *s, int width, int keys, real sink, real scale, real *factor, real *lse) {
  for (int v = 0; v < width; v += LANES) {
    lanes m = lanes_set1(sink), l = lanes_zero();
    for (int k = 0; k < keys; k++) m = lanes_max(lanes_load(s + k * width + v), m);
    lanes base = lanes_select(lanes_equal(m, lanes_set1(-(real)INFINITY)), lanes_zero(), m);
    if (sink != -(real)INFINITY) l = lanes_exp2(lanes_sub(lanes_set1(sink), base));
    for (int k = 0; k < keys; k++) {
      lanes p = lanes_exp2(lanes_sub(lanes_load(s + k * width + v), base));
      l = lanes_add(l, p);
      lanes_store(s + k * width + v, p);
    }
    lanes ratio = lanes_div(lanes_set1(scale), l);
    lanes_store(factor + v, lanes_select(lanes_equal(l, lanes_zero()), lanes_zero(), ratio));
    if (lse) lanes_store(lse + v, lanes_mul(lanes_set1((real)LN_2), lanes_add(m, lanes_log2(l))));
  }
}

/* From scores to P, in place. */
static void short_forward_probabilities(const short_forward_context *f, short_forward_pair *x, real *visible) {
  const attend_problem *p = f->problem;
  const attend_slice *s = &x->shape->slice;
  int queries = (int)s->q_len, keys = (int)s->k_len, width = (int)round_up(queries, LANES);
  real lse[SHORT_MAX];
  attend_slice own;
  if (f->options) {
    attend_slice_make(p, f->operands, x->b, x->h, &own);
    s = &own;
  }
  score_tile tile = {.problem = p, .slice = s, .rows = queries, .keys = keys, .width = width, .s = x->s};
  tile.visible = visible;
  score_passes(&tile, &x->shape->range.keys);
  short_softmax(x->s, width, keys, (real)(s->sink * LOG2_E), (real)p->dropout_scale, x->factor, x->lse ? lse : NULL);
  if (p->dropout_threshold) dropout_pass(&tile, x->s, 1);
  int64_t step = p->layout[OPERAND_LSE].row;
  if (x->lse && step == 1)
    memcpy(x->lse, lse, (size_t)queries * sizeof(real));
  else
    for (int i = 0; x->lse && i < queries; i++) x->lse[i * step] = lse[i];
}

static void short_forward_scores(const short_forward_context *f, const short_forward_pair *x,
                                 const short_forward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = f->problem;
  const attend_slice *s = &x->shape->slice;
  const vector_rows q = short_forward_rows(f, s, OPERAND_Q, &f->q, x->q, w->q);
  const vector_rows k = short_forward_rows(f, s, OPERAND_K, &f->k, x->k, w->k);
  short_scores(x->s, (int)round_up(s->q_len, LANES), &q, (int)s->q_len, &k, &x->shape->range, p->head_dim,
               score_factor(p), ahead);
}

/* False if V holds NaN or Inf that may belong to a hidden pair: then 0 * V is not 0, and `visible` must be given. */
static bool short_forward_values(const short_forward_context *f, const short_forward_pair *x, const real *visible,
                                 const short_forward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = f->problem;
  const attend_slice *s = &x->shape->slice;
  bool finite = true;
  short_product o = {.a = x->s,
                     .visible = visible,
                     .a_step = round_up(s->q_len, LANES),
                     .x = short_forward_rows(f, s, OPERAND_V, &f->v, x->v, w->v),
                     .rows = (int)s->q_len,
                     .first = x->shape->range.first_key,
                     .last = x->shape->range.last_key,
                     .columns = p->v_dim,
                     .factor = x->factor,
                     .out = short_forward_matrix(f, OPERAND_OUT, x->out),
                     .stream = f->stream,
                     .finite = visible ? NULL : &finite,
                     .ahead = ahead};
  short_multiply(&o, p->type);
  return finite;
}

/* All of a pair again, leaving out what is hidden. */
static void short_forward_careful(const short_forward_context *f, short_forward_pair *x, const short_forward_scratch *w,
                                  short_ahead *ahead) {
  short_forward_scores(f, x, w, ahead);
  short_forward_probabilities(f, x, w->visible);
  short_forward_values(f, x, w->visible, w, ahead);
}

/* The next pairs that go through each step together. */
static int short_forward_batch(const short_forward_context *f, short_walk *walk, const short_forward_scratch *w,
                               short_forward_pair *x, short_ahead *ahead) {
  int64_t scores = 0, own = 0, used = 0;
  int count = 0;
  for (; count < f->together && (count == 0 || scores + own <= SHORT_SCORES); count++) {
    short_forward_pair *y = &x[count];
    if (!short_forward_next(f, walk, count > 0 ? y - 1 : NULL, y, ahead)) break;
    const int64_t keys = y->shape->slice.k_len, width = round_up(y->shape->slice.q_len, LANES);
    y->s = w->s + used;
    own = keys * width, scores += own, used += own + width;
  }
  return count;
}

static void short_forward_item(void *context, int worker, int64_t index) {
  const short_forward_context *f = context;
  const attend_problem *p = f->problem;
  int64_t used = 0;
  short_forward_scratch w = short_forward_scratch_at(p, f->workspace + (size_t)worker * f->bytes_per_worker, &used);
  short_walk walk;
  short_forward_begin(f, index, &walk);
  short_forward_pair x[2][SHORT_BATCH]; /* those of this step and of the next */
  for (int now = 0, count = 0, next = 1; next; now ^= 1, count = next) {
    short_ahead ahead;
    ahead.parts = ahead.now = ahead.rows = 0, ahead.second = false;
    next = short_forward_batch(f, &walk, &w, x[now ^ 1], &ahead);
    int tiles = 1;
    for (int n = 0; n < count; n++) tiles += short_tiles(p, &x[now][n].shape->slice, 1, 1);
    ahead.pace = 1 + ahead.rows / tiles;
    for (int n = 0; n < count; n++) short_forward_scores(f, &x[now][n], &w, &ahead);
    for (int n = 0; n < count; n++) short_forward_probabilities(f, &x[now][n], NULL);
    for (int n = 0; n < count; n++) {
      short_forward_pair *y = &x[now][n];
      if (!short_forward_values(f, y, NULL, &w, &ahead) && y->shape->may_hide) short_forward_careful(f, y, &w, &ahead);
    }
    short_ahead_rows(&ahead, 4 * SHORT_MAX * SHORT_BATCH);
  }
  if (f->stream) lanes_stream_end();
}

/* ---- Pairs of one query and one key ---- */

/* `count` pairs, a constant, of one query and one key each: short_ones.inc.c says why. */
WORD void short_forward_ones_step(const short_forward_context *f, short_ones_walk *w, int count) {
  const attend_problem *p = f->problem;
  const attend_operands *o = f->operands;
  const short_ones q = short_ones_at(p, o, OPERAND_Q, w, count), k = short_ones_at(p, o, OPERAND_K, w, count);
  const short_ones v = short_ones_at(p, o, OPERAND_V, w, count), out = short_ones_at(p, o, OPERAND_OUT, w, count);
  const short_ones rows = short_ones_at(p, o, OPERAND_LSE, w, count);
  lanes dots[LANES];
  short_ones_dots(&q, &k, count, p->head_dim, dots);
  const lanes s = lanes_mul(lanes_sums(dots), lanes_set1(score_factor(p))), power = short_ones_softmax(s);
  short_ones_products(&out, power, &v, count, p->v_dim, f->stream);
  real lse[LANES];
  lanes_store(lse, lanes_mul(lanes_set1((real)LN_2), lanes_add(s, lanes_sub(power, lanes_set1(1)))));
  for (int i = 0; i < count && rows.row[i]; i++) *rows.row[i] = lse[i];
  short_ones_next(p, w, count);
}
static void short_forward_ones(void *context, int worker, int64_t index) {
  const short_forward_context *f = context;
  short_ones_walk w = short_ones_begin(f->problem, index);
  (void)worker;
  while (w.left >= SHORT_ONES) short_forward_ones_step(f, &w, SHORT_ONES);
  while (w.left > 0) short_forward_ones_step(f, &w, 1);
  if (f->stream) lanes_stream_end();
}

bool ENTRY(forward_short_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                               char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!short_serves(p, choice, reason) || !short_has_words(p, reason)) return false;
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES)) {
    snprintf(reason, ATTEND_REASON_SIZE, "does not materialise probs or scores");
    return false;
  }
  int64_t used = 0, items = (p->batch * p->heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  short_forward_scratch_at(p, NULL, &used);
  choice->splits = 1;
  const int64_t rows = p->heads * (p->ragged_q ? p->q_total : p->batch * p->q_len);
  choice->own[SHORT_OWN_ONES] = short_is_one(p);
  choice->own[SHORT_OWN_OPTIONS] = short_has_options(p);
  choice->own[SHORT_OWN_STAYS] = short_stays(p, rows, p->v_dim);
  choice->own[SHORT_OWN_STREAM_Q] = short_streams(p, OPERAND_OUT, rows, p->v_dim);
  choice->threads = items < p->threads ? (items > 0 ? items : 1) : p->threads;
  choice->workspace_bytes = (size_t)(choice->threads * round_up(used, 256));
  choice->alignment = attend_type_size(p->type);
  return true;
}

attend_status ENTRY(forward_short_run)(const attend_problem *p, const attend_choice *choice,
                                       const attend_operands *operands, const attend_services *services,
                                       void *workspace, void *stream) {
  (void)stream;
  if (p->q_len == 0) return ATTEND_OK;
  short_forward_context f = {.problem = p,
                             .choice = choice,
                             .operands = operands,
                             .workspace = workspace,
                             .bytes_per_worker = choice->workspace_bytes / (size_t)choice->threads,
                             .group = p->heads / p->kv_heads,
                             .lse_head = p->layout[OPERAND_LSE].head,
                             .pairs = SHORT_PAIRS,
                             .options = choice->own[SHORT_OWN_OPTIONS],
                             .in_blocks = SHORT_IN_BLOCKS && !choice->own[SHORT_OWN_OPTIONS] && p->softcap == 0,
                             .stream = short_may_stream(choice, operands, SHORT_OWN_STREAM_Q, OPERAND_OUT)};
  int64_t items = (p->batch * p->heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  if (!SHORT_ONLY_IN_BLOCKS && choice->own[SHORT_OWN_ONES]) {
    attend_for_each(services, (int)choice->threads, items, short_forward_ones, &f);
    return ATTEND_OK;
  }
  f.q = short_operand_at(&f, OPERAND_Q, p->head_dim), f.k = short_operand_at(&f, OPERAND_K, p->head_dim);
  f.v = short_operand_at(&f, OPERAND_V, p->v_dim), f.out = short_operand_at(&f, OPERAND_OUT, p->v_dim);
  /* One at a time where O is stored past the cache: rows of O that follow each other for longer than the core's queue
   * of stores make everything wait. */
  f.together = f.in_blocks || f.stream ? 1 : SHORT_BATCH;
  short_item *const of_length = short_length_item_of(&f);
  if (of_length) {
    short_length_plan(&f, &items);
    attend_for_each(services, (int)choice->threads, items, of_length, &f);
  } else if (SHORT_ONLY_IN_BLOCKS || f.in_blocks)
    attend_for_each(services, (int)choice->threads, items, short_plain_item, &f);
  else
    attend_for_each(services, (int)choice->threads, items, short_forward_item, &f);
  return ATTEND_OK;
}
