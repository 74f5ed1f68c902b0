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
  int64_t group;               /* query heads that share keys */
  int64_t next[PAIR_MATRICES]; /* bytes from a head to the next */
  short_triangle triangle;     /* what all pairs share of one */
  short_order order;           /* of the inputs of triangles */
  int64_t pairs;               /* of an item of triangles */
  bool stream_q, stream_k, stream_v;
  bool triangles; /* pairs whose lengths are those of one may be one */
  bool whole;     /* outputs are just to be stored */
  bool options;   /* slices differ by more than where rows lie */
  bool in_blocks; /* scores depend on nothing but the positions of query and key */
} short_backward_context;

typedef struct short_backward_scratch {
  real *q, *k, *v, *d_out, *d_k, *d_v; /* [SHORT_MAX][dimension padded] */
  real *p, *ds, *ds_across, *factor, *slope,
      *visible; /* [SHORT_MAX][SHORT_MAX]; in blocks `factor` and `slope` are tiles of S and dP */
} short_backward_scratch;

/* One (sequence, head). */
typedef struct short_backward_pair {
  const short_shape *shape;
  const short_blocks *blocks;
  int64_t b, h;
  bool first, last; /* of the heads that share keys */
  attend_matrix m[PAIR_MATRICES];
  vector_rows q, k, v, d_out;
  bool finite; /* scores, dP and delta are, hidden ones too */
} short_backward_pair;

static short_backward_scratch short_backward_scratch_at(const attend_problem *p, char *base, int64_t *used) {
  short_backward_scratch w;
  int64_t k_rows = SHORT_MAX * short_padded(p->head_dim, p->type), v_rows = SHORT_MAX * short_padded(p->v_dim, p->type);
  w.q = take(base, used, k_rows);
  w.k = take(base, used, k_rows);
  w.v = take(base, used, v_rows);
  w.d_out = take(base, used, v_rows);
  w.d_k = take(base, used, k_rows);
  w.d_v = take(base, used, v_rows);
  w.p = take(base, used, SHORT_MAX * SHORT_MAX);
  w.ds = w.ds_across = take(base, used, SHORT_MAX * SHORT_MAX);
  if (TILE_TERMS == 2) w.ds_across = take(base, used, SHORT_MAX * SHORT_MAX);
  w.factor = take(base, used, SHORT_MAX * SHORT_MAX);
  w.slope = take(base, used, SHORT_MAX * SHORT_MAX);
  w.visible = take(base, used, SHORT_MAX * SHORT_MAX);
  return w;
}

/* Rows from `first` on are 0. */
static void short_zero_rows(const attend_matrix *m, int64_t first, int64_t rows, int64_t columns, int64_t size) {
  const real zeros[LANES] = {0};
  if (!m->data) return;
  for (int64_t r = first; r < rows; r++)
    for (int64_t c = 0; c < columns; c += LANES)
      short_scatter(m->data + (r * m->row + c * m->col) * size, zeros, m->col,
                    columns - c < LANES ? columns - c : LANES, size);
}

/* May a pair be a triangle, if its lengths are those of one? */
static bool short_may_be_triangles(const attend_problem *p) {
  return TRIANGLE_MAX > 0 && p->type == short_type(REAL_TYPE) && p->head_dim == p->v_dim &&
         p->head_dim % (TRIANGLE_VECTORS * LANES) == 0 && !short_has_options(p) && p->softcap == 0 &&
         !attend_has(p, OPERAND_D_LSE);
}
/* Are outputs, and inputs if asked for, read and written in place? */
static bool short_is_whole(const attend_problem *p, bool inputs) {
  static const bool is_output[PAIR_MATRICES] = {[PAIR_D_Q] = true, [PAIR_D_K] = true, [PAIR_D_V] = true};
  bool whole = p->heads == p->kv_heads && !p->accumulate;
  for (int i = 0; i < PAIR_MATRICES; i++)
    if (attend_has(p, pair_operands[i]) && (inputs || is_output[i])) whole &= p->layout[pair_operands[i]].col == 1;
  return whole;
}

static void short_backward_rows(const short_backward_context *c, short_backward_pair *x,
                                const short_backward_scratch *w) {
  const attend_problem *p = c->problem;
  const int queries = (int)x->shape->slice.q_len, keys = (int)x->shape->slice.k_len;
  x->q = short_rows(&x->m[PAIR_Q], queries, p->head_dim, p->type, w->q);
  x->k = short_rows(&x->m[PAIR_K], keys, p->head_dim, p->type, w->k);
  x->v = short_rows(&x->m[PAIR_V], keys, p->v_dim, p->type, w->v);
  x->d_out = short_rows(&x->m[PAIR_D_OUT], queries, p->v_dim, p->type, w->d_out);
}

/* P and dS in blocks, where they are not hidden. */
static void short_backward_blocks(const short_backward_context *c, short_backward_pair *x,
                                  const short_backward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = c->problem;
  const int width = (int)round_up(x->shape->slice.q_len, LANES);
  short_blocks_scores(x->blocks, w->factor, &x->q, &x->k, p->head_dim, score_factor(p), ahead);
  short_blocks_scores(x->blocks, w->slope, &x->d_out, &x->v, p->v_dim, 1, ahead);
  const short_gradient to = {w->p, w->ds, w->ds_across, width, (real)p->scale};
  x->finite = short_blocks_gradient(x->blocks, w->factor, w->slope, &to);
}

static void short_backward_scores(const short_backward_context *c, short_backward_pair *x,
                                  const short_backward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = c->problem;
  const short_ranges *range = &x->shape->range;
  const int queries = (int)x->shape->slice.q_len, width = (int)round_up(queries, LANES);
  x->finite = short_scores(w->p, width, &x->q, queries, &x->k, range, p->head_dim, score_factor(p), ahead);
  x->finite &= short_scores(w->ds, width, &x->d_out, queries, &x->v, range, p->v_dim, 1, ahead);
}

/* The slice of a pair: that of its shape, where they say the same of its scores, else in `own`. */
static const attend_slice *short_backward_slice(const short_backward_context *c, const short_backward_pair *x,
                                                attend_slice *own) {
  if (!c->options) return &x->shape->slice;
  attend_slice_make(c->problem, c->operands, x->b, x->h, own);
  return own;
}

static score_tile short_backward_tile(const attend_problem *p, const attend_slice *s, real *scores) {
  int width = (int)round_up(s->q_len, LANES);
  return (score_tile){
      .problem = p, .slice = s, .rows = (int)s->q_len, .keys = (int)s->k_len, .width = width, .s = scores};
}

/* From scores and dP to P and dS, in place. */
static void short_backward_gradient(const short_backward_context *c, const short_backward_pair *x,
                                    const short_backward_scratch *w) {
  const attend_problem *p = c->problem;
  attend_slice own;
  const attend_slice *s = short_backward_slice(c, x, &own);
  score_tile tile = short_backward_tile(p, s, w->p);
  if (s->mask.data || s->bias.data) tile.visible = w->visible;
  if (p->softcap > 0) tile.softcap_slope = w->slope;
  if (tile.visible || tile.softcap_slope || s->slope != 0) score_passes(&tile, &x->shape->range.keys);
  short_gradient_tile(&tile, &x->shape->range, w->ds, w->factor);
}

static void short_backward_products(const short_backward_context *c, const short_backward_pair *x,
                                    const short_backward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = c->problem;
  const short_ranges *range = &x->shape->range;
  const int64_t width = round_up(x->shape->slice.q_len, LANES);
  const int queries = (int)x->shape->slice.q_len, keys = (int)x->shape->slice.k_len;
  const bool first = x->first, last = x->last;
  const real *careful = NULL;
  if (x->shape->may_hide &&
      !x->finite) { /* 0 times NaN or Inf would not be 0; passes over anything say what is hidden */
    attend_slice own;
    score_tile tile = short_backward_tile(p, short_backward_slice(c, x, &own), w->factor);
    memset(w->factor, 0, SHORT_MAX * SHORT_MAX * sizeof(real));
    tile.visible = w->visible;
    score_passes(&tile, &range->keys);
    careful = w->visible;
  }
  if (first && !last) {
    memset(w->d_k, 0, (size_t)(SHORT_MAX * short_padded(p->head_dim, p->type)) * sizeof(real));
    memset(w->d_v, 0, (size_t)(SHORT_MAX * short_padded(p->v_dim, p->type)) * sizeof(real));
  }
  short_product t; /* one after another in place: the core would wait to read a copy of what it has just written */
  t.visible = careful, t.a_step = TILE_TERMS * width, t.columns = p->head_dim, t.factor = NULL, t.add = p->accumulate;
  t.finite = NULL, t.ahead = ahead;

  t.a = w->ds_across, t.along = false, t.x = x->k, t.rows = queries;
  t.first = range->first_key, t.last = range->last_key, t.stairs = range->query_stairs;
  t.out = x->m[PAIR_D_Q], t.sums = NULL, t.stream = c->stream_q;
  if (t.out.data) short_multiply(&t, p->type);

  const attend_matrix d_k_out = x->m[PAIR_D_K], d_v_out = x->m[PAIR_D_V], nowhere = {NULL, 0, 1};
  t.a = w->ds, t.a_step = width, t.along = true, t.x = x->q, t.rows = keys;
  t.first = range->first_query, t.last = range->last_query, t.stairs = range->key_stairs;
  t.out = last ? d_k_out : nowhere, t.sums = first && last ? NULL : w->d_k, t.stream = c->stream_k;
  if (d_k_out.data) short_multiply(&t, p->type);
  t.a = w->p, t.x = x->d_out, t.columns = p->v_dim;
  t.out = last ? d_v_out : nowhere, t.sums = first && last ? NULL : w->d_v, t.stream = c->stream_v;
  if (d_v_out.data) short_multiply(&t, p->type);
}

/* P and dS of a pair that is a triangle of n tokens, and its gradients where they are just to be stored; else the first
 * as matrices, which blocks are faster at and whose bits theirs are: where there are none. */
static void short_backward_triangle(const short_backward_context *c, short_backward_pair *x,
                                    const short_backward_scratch *w, int n) {
  short_triangle t = c->triangle;
  const vector_rows *in[PAIR_MATRICES] = {
      [PAIR_Q] = &x->q, [PAIR_K] = &x->k, [PAIR_V] = &x->v, [PAIR_D_OUT] = &x->d_out};
  for (int i = 0; i < PAIR_MATRICES; i++)
    if (in[i])
      memcpy(&t.rows[i], &in[i]->rows, sizeof t.rows[i]), t.step[i] = in[i]->step;
    else
      t.rows[i] = c->whole ? x->m[i].data : NULL;
  t.p = w->factor, t.ds = w->slope, t.ds_across = TILE_TERMS == 2 ? w->visible : t.ds;
  x->finite = short_triangle_of(&t, n, false);
  const int width = (int)round_up(n, LANES);
  for (int j = 0; !c->whole && j < n; j++)
    for (int i = 0; i < n; i++) {
      const int to = j * width + i, first = triangle_first(n, i), at = triangle_at(n, i, j);
      const bool none = j >= first + triangle_rows(n, first);
      w->p[to] = none ? 0 : t.p[at], w->ds[to] = none ? 0 : t.ds[at], w->ds_across[to] = none ? 0 : t.ds_across[at];
    }
}

/* Rows of dK and dV behind the keys that a sequence has. */
static void short_backward_unused(const short_backward_context *c, const short_backward_pair *x) {
  const attend_problem *p = c->problem;
  if (!x->last || p->accumulate || !attend_has(p, OPERAND_KV_LEN)) return;
  const int64_t owned = owned_keys(p, c->operands, x->b), size = (int64_t)attend_type_size(p->type);
  short_zero_rows(&x->m[PAIR_D_K], x->shape->slice.k_len, owned, p->head_dim, size);
  short_zero_rows(&x->m[PAIR_D_V], x->shape->slice.k_len, owned, p->v_dim, size);
}

/* The next pair, its rows to be asked for; false if there is none. `before`: the one before, or NULL. */
static bool short_backward_next(const short_backward_context *c, short_walk *walk, const short_backward_pair *before,
                                short_backward_pair *x, short_ahead *ahead) {
  const attend_problem *p = c->problem;
  while (walk->left > 0 && !(x->shape = short_walk_shape(p, c->operands, c->choice, walk))) {
    walk->left -= p->heads - walk->h;
    walk->h = 0, walk->b++;
  }
  if (walk->left <= 0) return false;
  const int64_t keys = x->shape->slice.k_len, queries = x->shape->slice.q_len, group = c->group;
  const int64_t key_head = group == 1 ? walk->h : walk->h / group;
  x->b = walk->b, x->h = walk->h;
  x->first = x->h == key_head * group, x->last = x->h == key_head * group + group - 1;
  if (!before || walk->h == 0)
#pragma GCC unroll 8
    for (int i = 0; i < PAIR_MATRICES; i++)
      x->m[i] = short_matrix(p, c->operands, pair_operands[i], x->b, i < PAIR_K ? x->h : key_head);
  else
    for (int i = 0; i < PAIR_MATRICES; i++) {
      x->m[i] = before->m[i];
      if (x->m[i].data && (i < PAIR_K || x->first)) x->m[i].data += c->next[i];
    }
  walk->left--;
  if (++walk->h == p->heads) walk->h = 0, walk->b++;
  if (!before) return true; /* the first goes through its steps before anything could have come */
  short_ahead_add(ahead, &x->m[PAIR_Q], queries, p->head_dim, p->type);
  if (x->first) {
    short_ahead_add(ahead, &x->m[PAIR_K], keys, p->head_dim, p->type);
    short_ahead_add(ahead, &x->m[PAIR_V], keys, p->v_dim, p->type);
  }
  short_ahead_add(ahead, &x->m[PAIR_D_OUT], queries, p->v_dim, p->type);
  if (c->stream_q) short_ahead_ends(ahead, x->m[PAIR_D_Q], queries, p->head_dim, p->type);
  if (c->stream_k) short_ahead_ends(ahead, x->m[PAIR_D_K], keys, p->head_dim, p->type);
  if (c->stream_v) short_ahead_ends(ahead, x->m[PAIR_D_V], keys, p->v_dim, p->type);
  return true;
}

/* One pair after another: three at a time were 3% faster in the second-level cache and 8% slower outside, where stores
 * past it should come evenly. */
static void short_backward_item(void *context, int worker, int64_t index) {
  const short_backward_context *c = context;
  const attend_problem *p = c->problem;
  const int64_t step = SHORT_PAIRS * c->group, pairs = p->batch * p->heads, at = index * step;
  int64_t used = 0;
  short_backward_scratch w = short_backward_scratch_at(p, c->workspace + (size_t)worker * c->bytes_per_worker, &used);
  short_walk walk;
  walk.b = at / p->heads, walk.h = at % p->heads, walk.shape = -1;
  walk.left = pairs - at < step ? pairs - at : step;
  short_backward_pair ring[SHORT_LEAD + 1];
  short_blocks blocks;
  const short_shape *shape = NULL;
  int slots = 1, triangle = 0;
  short_ahead ahead;
  ahead.parts = ahead.now = ahead.rows = 0, ahead.second = true;
  for (int64_t n = 0, count = step; n < count + SHORT_LEAD; n++) {
    const short_backward_pair *before = n > 0 ? &ring[(n - 1) % (SHORT_LEAD + 1)] : NULL;
    if (n < count && !short_backward_next(c, &walk, before, &ring[n % (SHORT_LEAD + 1)], &ahead)) count = n;
    if (n < SHORT_LEAD) continue;
    if (n >= count + SHORT_LEAD) break;
    short_backward_pair *x = &ring[(n + 1) % (SHORT_LEAD + 1)];
    if (x->shape != shape) {
      shape = x->shape;
      slots = 1 + short_tiles(p, &shape->slice, 2, 3);
      triangle = 0;
      if (c->triangles && (c->whole || !short_is_in_blocks(c->in_blocks)))
        triangle = short_triangle_tokens(&shape->range, shape->slice.q_len, shape->slice.k_len);
      if (short_is_in_blocks(c->in_blocks)) short_blocks_make(&shape->range, (int)shape->slice.q_len, &blocks);
    }
    ahead.pace = 1 + ahead.rows / slots;
    x->blocks = &blocks;
    short_backward_rows(c, x, &w);
    if (triangle)
      short_backward_triangle(c, x, &w, triangle);
    else if (short_is_in_blocks(c->in_blocks))
      short_backward_blocks(c, x, &w, &ahead);
    else {
      short_backward_scores(c, x, &w, &ahead);
      short_backward_gradient(c, x, &w);
    }
    if (!triangle || !c->whole) short_backward_products(c, x, &w, &ahead);
    short_backward_unused(c, x);
    short_ahead_rows(&ahead, 4 * SHORT_MAX);
    ahead.parts = ahead.now = ahead.rows = 0;
  }
  if (c->stream_q || c->stream_k || c->stream_v) lanes_stream_end();
}

/* The rows of pair (b, h) of a problem in which nothing about them depends on lengths. */
WORD void short_triangle_rows(const short_backward_context *c, int64_t b, int64_t h, char *rows[PAIR_MATRICES]) {
#pragma GCC unroll 8
  for (int i = 0; i < PAIR_MATRICES; i++) {
    const attend_layout *l = &c->problem->layout[pair_operands[i]];
    rows[i] = c->operands->data[pair_operands[i]];
    if (rows[i]) rows[i] += (b * l->batch + h * l->head) * (int64_t)sizeof(real) / TILE_TERMS;
  }
}

/* Decides in which order the inputs of triangles are asked for, and with it how long items are. Pairs of 768 adjacent
 * bytes gain (f32, 3 tokens: 189 to 171 ns), of 512 lose (bf16, 4 tokens: 119 to 128). */
enum { TRIANGLE_LEAST = 768 }; /* bytes */
static void short_triangles_plan(short_backward_context *c, int64_t *items) {
  static const operand_id inputs[] = {OPERAND_Q, OPERAND_D_OUT, OPERAND_K, OPERAND_V};
  const attend_problem *p = c->problem;
  c->order.lead = 0, c->pairs = SHORT_PAIRS;
  if (c->choice->own[SHORT_OWN_STAYS]) return;
  c->order = short_order_of(p, c->operands, inputs, 4, p->head_dim, TRIANGLE_LEAST);
  if (!c->order.lead) return;
  c->pairs = short_order_pairs(p, c->pairs, c->choice->threads);
  *items = (p->batch * p->heads + c->pairs - 1) / c->pairs;
}

/* Pairs that all are triangles of as many tokens, read and written in place, and asked for SHORT_LEAD pairs ahead, or
 * in the order of memory. */
static void short_backward_triangles(void *context, int worker, int64_t index) {
  const short_backward_context *c = context;
  const attend_problem *p = c->problem;
  const int n = (int)c->choice->own[SHORT_OWN_TRIANGLE];
  const bool ask = !c->choice->own[SHORT_OWN_STAYS];
  short_triangle t = c->triangle;
  t.p = (real *)(void *)(c->workspace + (size_t)worker * c->bytes_per_worker);
  t.ds = t.p + TRIANGLE_WORDS, t.ds_across = TILE_TERMS == 2 ? t.ds + TRIANGLE_WORDS : t.ds;
  const int64_t first = index * c->pairs, all = p->batch * p->heads - first, lead = c->order.lead;
  const int64_t pairs = all < c->pairs ? all : c->pairs;
  int64_t b = first ? first / p->heads : 0, h = first - b * p->heads;
  char *ring[SHORT_LEAD + 1][PAIR_MATRICES];
  memset(t.ahead, 0, sizeof t.ahead);
  short_feed_begin(&t.feed, &c->order);
  if (lead && !c->order.adjacent) short_order_touch(&c->order, first - h, first + (lead < pairs ? lead : pairs));
  for (int64_t i = 0; i < pairs + SHORT_LEAD; i++) {
    char **rows = ring[i % (SHORT_LEAD + 1)];
    if (i < pairs) short_triangle_rows(c, b, h, rows);
    if (++h == p->heads) h = 0, b++;
    if (ask) memcpy(t.ahead, rows, i < pairs ? sizeof t.ahead : 0);
    if (i < SHORT_LEAD) continue;
    const int64_t then = i - SHORT_LEAD + lead;
    t.feed.inputs = 0;
    if (lead && then < pairs) short_feed_pair(&t.feed, first + then);
    memcpy(t.rows, ring[(i + 1) % (SHORT_LEAD + 1)], sizeof t.rows);
    short_triangle_of(&t, n, lead);
  }
  if (c->stream_q || c->stream_k || c->stream_v) lanes_stream_end();
}

/* `count` pairs, a constant, of one query and one key each: short_ones.inc.c says why. Rows have k_columns and
 * v_columns, which may be constants. */
WORD void short_backward_ones_step(const short_backward_context *c, short_ones_walk *w, int count, int64_t k_columns,
                                   int64_t v_columns) {
  const attend_problem *p = c->problem;
  const attend_operands *o = c->operands;
  const short_ones q = short_ones_at(p, o, OPERAND_Q, w, count), k = short_ones_at(p, o, OPERAND_K, w, count);
  const short_ones v = short_ones_at(p, o, OPERAND_V, w, count), d_out = short_ones_at(p, o, OPERAND_D_OUT, w, count);
  const short_ones d_q = short_ones_at(p, o, OPERAND_D_Q, w, count), d_k = short_ones_at(p, o, OPERAND_D_K, w, count);
  const short_ones d_v = short_ones_at(p, o, OPERAND_D_V, w, count);
  lanes s[LANES], dp[LANES], size = lanes_zero();
  short_ones_dots(&q, &k, count, k_columns, s);
  short_ones_dots(&d_out, &v, count, v_columns, dp);
#pragma GCC unroll 8
  for (int i = 0; i < count; i++) size = lanes_add(size, lanes_add(lanes_abs(s[i]), lanes_abs(dp[i])));
  const real factor = score_factor(p), enlarged = factor < 0 ? 1 - factor : 1 + factor;
  if (mask_any(mask_not(lanes_less(lanes_mul(size, lanes_set1(enlarged)), lanes_set1((real)0x1p100))))) {
    const lanes power = short_ones_softmax(lanes_mul(lanes_sums(s), lanes_set1(factor)));
    const lanes dp_sum = lanes_sums(dp), ds = lanes_mul(power, lanes_sub(dp_sum, dp_sum)); /* delta is dP */
    short_ones_products(&d_q, ds, &k, count, k_columns, c->stream_q);
    short_ones_products(&d_k, ds, &q, count, k_columns, c->stream_k);
    short_ones_products(&d_v, power, &d_out, count, v_columns, c->stream_v);
  } else { /* Far from what overflows, all is finite: P = 1, dS = 0, and no lanes need be added up. */
    short_ones_products(&d_q, lanes_zero(), NULL, count, k_columns, c->stream_q);
    short_ones_products(&d_k, lanes_zero(), NULL, count, k_columns, c->stream_k);
    short_ones_products(&d_v, lanes_set1(1), &d_out, count, v_columns, c->stream_v);
  }
  short_ones_next(p, w, count);
}
static void short_backward_ones(void *context, int worker, int64_t index) {
  const short_backward_context *c = context;
  const int64_t k_columns = c->problem->head_dim, v_columns = c->problem->v_dim;
  short_ones_walk w = short_ones_begin(c->problem, index);
  (void)worker;
  while (w.left >= SHORT_ONES) short_backward_ones_step(c, &w, SHORT_ONES, k_columns, v_columns);
  while (w.left > 0)
    if (k_columns == SHORT_ONES_USUAL && v_columns == SHORT_ONES_USUAL)
      short_backward_ones_step(c, &w, 1, SHORT_ONES_USUAL, SHORT_ONES_USUAL);
    else
      short_backward_ones_step(c, &w, 1, k_columns, v_columns);
  if (c->stream_q || c->stream_k || c->stream_v) lanes_stream_end();
}

bool ENTRY(backward_short_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                                char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!short_serves(p, choice, reason) || !short_has_words(p, reason)) return false;
  if (attend_has(p, OPERAND_D_BIAS) || attend_has(p, OPERAND_D_SINK)) {
    snprintf(reason, ATTEND_REASON_SIZE, "leaves gradients of bias and sink to the tiled kernel");
    return false;
  }
  int64_t used = 0, items = (p->batch * p->kv_heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  short_backward_scratch_at(p, NULL, &used);
  choice->splits = 1;
  const int64_t q_rows = p->heads * (p->ragged_q ? p->q_total : p->batch * p->q_len);
  const int64_t k_rows = p->kv_heads * (p->ragged_k ? p->k_total : p->batch * p->k_len);
  choice->own[SHORT_OWN_ONES] = short_is_one(p);
  choice->own[SHORT_OWN_OPTIONS] = short_has_options(p) || attend_has(p, OPERAND_D_LSE);
  choice->own[SHORT_OWN_STAYS] = short_stays(p, q_rows + k_rows, p->head_dim + p->v_dim);
  choice->own[SHORT_OWN_TRIANGLE] = 0;
  if (short_may_be_triangles(p) && !attend_lengths_vary(p) && short_is_whole(p, true)) {
    short_ranges ranges;
    memcpy(&ranges, &choice->own[SHORT_OWN_RANGES], sizeof ranges);
    choice->own[SHORT_OWN_TRIANGLE] = (uint64_t)short_triangle_tokens(&ranges, p->q_len, p->k_len);
  }
  choice->own[SHORT_OWN_STREAM_Q] = short_streams(p, OPERAND_D_Q, q_rows, p->head_dim);
  choice->own[SHORT_OWN_STREAM_K] = short_streams(p, OPERAND_D_K, k_rows, p->head_dim);
  choice->own[SHORT_OWN_STREAM_V] = short_streams(p, OPERAND_D_V, k_rows, p->v_dim);
  choice->threads = items < p->threads ? (items > 0 ? items : 1) : p->threads;
  choice->workspace_bytes = (size_t)(choice->threads * round_up(used, 256));
  choice->alignment = attend_type_size(p->type);
  return true;
}

attend_status ENTRY(backward_short_run)(const attend_problem *p, const attend_choice *choice,
                                        const attend_operands *operands, const attend_services *services,
                                        void *workspace, void *stream) {
  (void)stream;
  short_backward_context c; /* set member by member: an initializer would write all of it */
  c.problem = p, c.choice = choice, c.operands = operands, c.workspace = workspace;
  c.stream_q = short_may_stream(choice, operands, SHORT_OWN_STREAM_Q, OPERAND_D_Q);
  c.stream_k = short_may_stream(choice, operands, SHORT_OWN_STREAM_K, OPERAND_D_K);
  c.stream_v = short_may_stream(choice, operands, SHORT_OWN_STREAM_V, OPERAND_D_V);
  int64_t items = (p->batch * p->kv_heads + SHORT_PAIRS - 1) / SHORT_PAIRS;
  if (!SHORT_ONLY_IN_BLOCKS && choice->own[SHORT_OWN_ONES]) {
    attend_for_each(services, (int)choice->threads, items, short_backward_ones, &c);
    return ATTEND_OK;
  }
  c.bytes_per_worker =
      choice->threads == 1 ? choice->workspace_bytes : choice->workspace_bytes / (size_t)choice->threads;
#pragma GCC unroll 8
  for (int i = 0; i < PAIR_MATRICES; i++) {
    const attend_layout *l = &p->layout[pair_operands[i]];
    c.next[i] = l->head * (int64_t)attend_type_size(p->type),
    c.triangle.step[i] = l->row * (int64_t)attend_type_size(p->type);
  }
  memset(c.triangle.ahead, 0, sizeof c.triangle.ahead);
  c.triangle.columns = p->head_dim, c.triangle.factor = score_factor(p), c.triangle.scale = (real)p->scale;
  c.triangle.stream[PAIR_D_Q] = c.stream_q, c.triangle.stream[PAIR_D_K] = c.stream_k,
  c.triangle.stream[PAIR_D_V] = c.stream_v;
  if (TRIANGLE_MAX > 0 && choice->own[SHORT_OWN_TRIANGLE]) {
    short_triangles_plan(&c, &items);
    attend_for_each(services, (int)choice->threads, items, short_backward_triangles, &c);
    return ATTEND_OK;
  }
  c.triangles = short_may_be_triangles(p);
  c.whole = short_is_whole(p, false);
  c.group = attend_group(p);
  c.options = choice->own[SHORT_OWN_OPTIONS];
  c.in_blocks = !c.options && p->softcap == 0;
  attend_for_each(services, (int)choice->threads, items, short_backward_item, &c);
  return ATTEND_OK;
}
