/* SPDX-License-Identifier: MIT */
/* Forward on short sequences: short.inc.c says how. An item of work is SHORT_PAIRS pairs (sequence, head); while one is
 * computed the next is prefetched. */

typedef struct short_forward_context {
  const attend_problem *problem;
  const attend_operands *operands;
  char *workspace;
  size_t bytes_per_worker;
  bool stream;
} short_forward_context;

typedef struct short_forward_scratch {
  real *q, *s, *visible, *k, *v; /* [head_dim][SHORT_MAX], [SHORT_MAX][SHORT_MAX], the same, [SHORT_MAX][padded] */
} short_forward_scratch;

static short_forward_scratch short_forward_scratch_at(const attend_problem *p, char *base, int64_t *used) {
  short_forward_scratch w;
  w.q = take(base, used, p->head_dim * SHORT_MAX);
  w.s = take(base, used, SHORT_MAX * SHORT_MAX);
  w.visible = take(base, used, SHORT_MAX * SHORT_MAX);
  w.k = take(base, used, SHORT_MAX * round_up(p->head_dim, LANES));
  w.v = take(base, used, SHORT_MAX * round_up(p->v_dim, LANES));
  return w;
}

/* P = 2^(S - max) in place, over `keys` rows; max and sum of each query. */
static void short_softmax(real *s, int width, int keys, real sink, real *max, real *sum) {
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
    lanes_store(max + v, m);
    lanes_store(sum + v, l);
  }
}

static void short_forward_pair(const short_forward_context *f, const attend_slice *s, const short_forward_scratch *w) {
  const attend_problem *p = f->problem;
  int queries = (int)s->q_len, keys = (int)s->k_len, width = (int)round_up(queries, LANES);
  real max[SHORT_MAX], sum[SHORT_MAX], factor[SHORT_MAX];
  key_range range = visible_keys(p, s, 0, queries);
  score_tile tile = {.problem = p, .slice = s, .rows = queries, .keys = keys, .width = width, .s = w->s};
  bool may_hide = range.all_first > 0 || range.all_last < keys || s->mask.data || s->bias.data;
  key_rows k = short_rows(&s->k, keys, p->head_dim, p->type, w->k);
  key_rows v = short_rows(&s->v, keys, p->v_dim, p->type, w->v);
  if (may_hide && !short_finite(&v, keys, p->v_dim)) tile.visible = w->visible;
  short_transposed(w->q, width, &s->q, queries, p->head_dim, score_factor(p), p->type);
  short_scores(w->s, width, &k, keys, w->q, p->head_dim);
  score_passes(&tile, &range);
  short_softmax(w->s, width, keys, (real)(s->sink * LOG2_E), max, sum);
  if (p->dropout_threshold) dropout_pass(&tile, w->s, 1);
  for (int i = 0; i < queries; i++) factor[i] = sum[i] == 0 ? 0 : (real)p->dropout_scale / sum[i];
  short_product o = {.a = w->s,
                     .visible = tile.visible,
                     .a_row = 1,
                     .a_term = width,
                     .x = v,
                     .rows = queries,
                     .terms = keys,
                     .columns = p->v_dim,
                     .factor = factor,
                     .out = s->out,
                     .stream = f->stream};
  short_multiply(&o, p->type);
  for (int i = 0; s->lse && i < queries; i++) {
    double log_sum = sizeof(real) == sizeof(float) ? (double)log2f((float)sum[i]) : log2((double)sum[i]);
    attend_store(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type, LN_2 * ((double)max[i] + log_sum));
  }
}

static void short_forward_item(void *context, int worker, int64_t index) {
  const short_forward_context *f = context;
  const attend_problem *p = f->problem;
  int64_t used = 0, pair = index * SHORT_PAIRS, last = pair + SHORT_PAIRS, pairs = p->batch * p->heads;
  if (last > pairs) last = pairs;
  short_forward_scratch w = short_forward_scratch_at(p, f->workspace + (size_t)worker * f->bytes_per_worker, &used);
  attend_slice slice, next;
  attend_slice_make(p, f->operands, pair / p->heads, pair % p->heads, &next);
  while (pair < last) {
    slice = next;
    if (++pair < last) {
      attend_slice_make(p, f->operands, pair / p->heads, pair % p->heads, &next);
      short_prefetch(&next.q, (int)p->q_len, p->head_dim, p->type);
      if (next.k.data != slice.k.data) {
        short_prefetch(&next.k, (int)p->k_len, p->head_dim, p->type);
        short_prefetch(&next.v, (int)p->k_len, p->v_dim, p->type);
      }
    }
    short_forward_pair(f, &slice, &w);
  }
  if (f->stream) lanes_stream_end();
}

bool ENTRY(forward_short_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                               char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!short_serves(p, reason)) return false;
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES)) {
    snprintf(reason, ATTEND_REASON_SIZE, "does not materialise probs or scores");
    return false;
  }
  int64_t used = 0, items = (p->batch * p->heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  short_forward_scratch_at(p, NULL, &used);
  choice->tile_q = p->q_len;
  choice->tile_k = p->k_len;
  choice->splits = 1;
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
  short_forward_context f = {p, operands, workspace, choice->workspace_bytes / (size_t)choice->threads,
                             short_streams(p, operands, OPERAND_OUT, p->batch * p->heads * p->q_len, p->v_dim)};
  int64_t items = (p->batch * p->heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  attend_for_each(services, (int)choice->threads, items, short_forward_item, &f);
  return ATTEND_OK;
}
