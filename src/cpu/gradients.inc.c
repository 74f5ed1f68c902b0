/* SPDX-License-Identifier: MIT */
/* The gradients that GRADIENT_ROWS queries and KEY_CHUNK keys give each other. Scores are computed again from Q, K and
 * lse:
 *   S = K · QT, P = 2^(S - lse), dP = V · dOT, dS = P (dP - delta)       lanes = queries, as forward
 *   dQT += columns of K · dS                                              lanes = queries
 *   dV += P · dO, dK += dS · Q                                            lanes = dimensions, P and dS broadcast
 * Where words hold two elements the last two sums go along the queries: they read P and dS as words along a row, dQ
 * reads dS as words across two.
 *
 * delta = rowsum(dO * O) - dLSE is recomputed per chunk: storing it would cost memory per query, and save 1 part in
 * 500. */

enum {
  GRADIENT_BLOCKS = (64 + TILE_LANES - 1) / TILE_LANES,
  GRADIENT_ROWS = GRADIENT_BLOCKS * TILE_LANES,
  GRADIENT_KEYS = KEY_BLOCK,
  KEY_CHUNK = 512
};

typedef struct backward_scratch {
  real *q_t, *d_out_t, *d_q_t;             /* [GRADIENT_BLOCKS][dimension][TILE_LANES] */
  real *q_rows, *d_out_rows;               /* words across queries: [GRADIENT_ROWS][dimension padded to lanes] */
  real *p, *ds, *factor, *visible, *slope; /* [GRADIENT_KEYS + TILE_ROWS][GRADIENT_ROWS] */
  real *p_along, *ds_along, *ds_across;    /* P and dS in words: with words of one element p and ds themselves */
  real *lse, *lse_low, *delta;             /* [GRADIENT_ROWS]; log2(e) lse is the sum of two: its size is the scores' */
  real *k, *v, *k_across;                  /* [KEY_CHUNK][dimension padded to tile rows], in words */
  real *d_k, *d_v;                         /* [KEY_CHUNK + TILE_ROWS][dimension padded to lanes] */
  real *d_bias;                            /* [GRADIENT_BLOCKS][KEY_CHUNK][TILE_LANES] */
} backward_scratch;

/* The queries of one step, loaded. */
typedef struct gradient_rows {
  int64_t i0;
  int rows, width;
  key_range range;
  bool finite; /* Q and dO hold no NaN or Inf */
} gradient_rows;

/* The keys of one chunk, loaded: words along K and V, and across K. */
typedef struct gradient_keys {
  int64_t first, last;
  key_rows k, v, k_across;
  bool finite; /* K holds no NaN or Inf */
} gradient_keys;

static int64_t key_width(const attend_problem *p) { return round_up(p->head_dim, TILE_LANES); }
static int64_t value_width(const attend_problem *p) { return round_up(p->v_dim, TILE_LANES); }

static backward_scratch backward_scratch_at(const attend_problem *p, char *base, int64_t *used) {
  backward_scratch w;
  const int64_t tile = (GRADIENT_KEYS + TILE_ROWS) * GRADIENT_ROWS;
  int64_t d_padded = round_up(p->head_dim, TILE_ROWS), v_padded = round_up(p->v_dim, TILE_ROWS);
  w.q_t = take(base, used, d_padded * GRADIENT_ROWS);
  w.d_out_t = take(base, used, v_padded * GRADIENT_ROWS);
  w.d_q_t = take(base, used, (d_padded > v_padded ? d_padded : v_padded) * GRADIENT_ROWS);
  w.q_rows = take(base, used, words(GRADIENT_ROWS) * key_width(p));
  w.d_out_rows = take(base, used, words(GRADIENT_ROWS) * value_width(p));
  w.p = take(base, used, tile);
  w.ds = take(base, used, tile);
  w.p_along = TILE_TERMS == 1 ? w.p : take(base, used, tile / TILE_TERMS);
  w.ds_along = TILE_TERMS == 1 ? w.ds : take(base, used, tile / TILE_TERMS);
  w.ds_across = TILE_TERMS == 1 ? w.ds : take(base, used, tile / TILE_TERMS);
  w.factor = take(base, used, tile);
  w.visible = take(base, used, tile);
  w.slope = take(base, used, tile);
  w.lse = take(base, used, GRADIENT_ROWS);
  w.lse_low = take(base, used, GRADIENT_ROWS);
  w.delta = take(base, used, GRADIENT_ROWS);
  w.k = take(base, used, KEY_CHUNK * words(d_padded));
  w.v = take(base, used, KEY_CHUNK * words(v_padded));
  w.k_across = TILE_TERMS == 1 ? w.k : take(base, used, words(KEY_CHUNK) * d_padded);
  w.d_k = take(base, used, (KEY_CHUNK + TILE_ROWS) * key_width(p));
  w.d_v = take(base, used, (KEY_CHUNK + TILE_ROWS) * value_width(p));
  w.d_bias = take(base, used, attend_has(p, OPERAND_D_BIAS) ? KEY_CHUNK * GRADIENT_ROWS : 0);
  return w;
}

/* Scratch for the lanes from query g of a step on. */
static backward_scratch scratch_of_rows(const attend_problem *p, const backward_scratch *w, int g) {
  backward_scratch at = *w;
  at.q_t += g * round_up(p->head_dim, TILE_TERMS);
  at.d_out_t += g * round_up(p->v_dim, TILE_TERMS);
  at.d_q_t += g * round_up(p->head_dim, TILE_ROWS);
  at.q_rows += g / TILE_TERMS * key_width(p);
  at.d_out_rows += g / TILE_TERMS * value_width(p);
  at.lse += g;
  at.lse_low += g;
  at.delta += g;
  return at;
}

/* The inverse of pack_row: elements from `index` on = scale * in, or += with `add`. */
WORD void unpack_row_as(char *data, int64_t index, int64_t col, int64_t columns, const real *in, real scale, bool add,
                        attend_type type) {
  for (int64_t c = 0; c < columns; c += LANES) {
    int width = columns - c < LANES ? (int)(columns - c) : LANES;
    lanes x = lanes_mul(width == LANES ? lanes_load(in + c) : lanes_load_first(in + c, width), lanes_set1(scale));
    if (add) x = lanes_add(pack_load(data, index + c * col, col, width, type), x);
    pack_store(data, index + c * col, col, x, width, type);
  }
}
static void unpack_row(char *data, int64_t index, int64_t col, int64_t columns, const real *in, real scale, bool add,
                       attend_type type) {
  if (type == TYPE_F16)
    unpack_row_as(data, index, col, columns, in, scale, add, TYPE_F16);
  else if (type == TYPE_BF16)
    unpack_row_as(data, index, col, columns, in, scale, add, TYPE_BF16);
  else
    unpack_row_as(data, index, col, columns, in, scale, add, REAL_TYPE);
}

/* Do n words hold no NaN or Inf? */
static bool all_finite(const real *x, int64_t n) {
  lanes sum[2] = {lanes_zero(), lanes_zero()};
  for (int64_t i = 0; i < n; i += LANES) {
    lanes y = n - i < LANES ? lanes_load_first(x + i, (int)(n - i)) : lanes_load(x + i);
#pragma GCC unroll 2
    for (int t = 0; t < TILE_TERMS; t++) sum[t] = lanes_fma(tile_element(y, t), lanes_zero(), sum[t]);
  }
  return !mask_any(lanes_unordered(lanes_add(sum[0], sum[1])));
}

/* Rows i0 … i0 + rows - 1 of a matrix, in words across them: [words(rows)][width]. */
static void load_rows_across(real *out, const attend_matrix *m, int64_t i0, int rows, int64_t columns, int64_t width,
                             attend_type type) {
  for (int l = 0; l < rows; l += TILE_TERMS, out += width) {
    int64_t index = (i0 + l) * m->row;
    if (TILE_TERMS == 1) {
      pack_row(out, m->data, index, m->col, columns, width, type);
      continue;
    }
    const uint16_t *base = (const uint16_t *)(const void *)m->data;
    pack_words_across(out, base + index, l + 1 < rows ? base + index + m->row : NULL, m->col, columns, width);
  }
}

/* delta of `rows` queries, their dOT in words in d_out_t; `o` has room for their OT. The sum takes the steps of dP's:
 * where a row sees one key, O is its V, and dP - delta is 0 exactly. */
static void load_delta(const attend_problem *p, const attend_slice *s, int64_t i0, int rows, const real *d_out_t,
                       real *o, real delta[TILE_LANES]) {
  pack_transposed(o, &s->out, i0, rows, p->v_dim, 1, p->type);
  make_words(o, p->v_dim);
  for (int v = 0; v < TILE_LANES; v += LANES) {
    lanes sum = lanes_zero();
    for (int64_t d = 0; d < words(p->v_dim); d++)
      sum = tile_step(lanes_load(o + d * TILE_LANES + v), lanes_load(d_out_t + d * TILE_LANES + v), sum);
    lanes_store(delta + v, sum);
  }
  for (int l = 0; s->d_lse && l < rows; l++)
    delta[l] -= (real)attend_load(s->d_lse, (i0 + l) * s->d_lse_row, p->layout[OPERAND_D_LSE].type);
}

static gradient_rows load_gradient_rows(const attend_problem *p, const attend_slice *s, int64_t i0, int rows,
                                        const backward_scratch *w) {
  gradient_rows q = {.i0 = i0, .rows = rows, .range = visible_keys(p, s, i0, rows), .finite = true};
  q.width = (rows + TILE_LANES - 1) / TILE_LANES * TILE_LANES;
  for (int g = 0; g < q.width; g += TILE_LANES) {
    int n = rows - g < TILE_LANES ? rows - g : TILE_LANES;
    real *query = w->q_t + g * round_up(p->head_dim, TILE_TERMS);
    real *d_out = w->d_out_t + g * round_up(p->v_dim, TILE_TERMS);
    pack_transposed(query, &s->q, i0 + g, n, p->head_dim, TILE_TERMS == 1 ? score_factor(p) : 1, p->type);
    pack_transposed(d_out, &s->d_out, i0 + g, n, p->v_dim, 1, p->type);
    make_words(query, p->head_dim);
    make_words(d_out, p->v_dim);
    load_delta(p, s, i0 + g, n, d_out, w->d_q_t, w->delta + g);
  }
  for (int l = 0; l < q.width; l++) {
    double lse = l < rows ? LOG2_E * attend_load(s->lse, (i0 + l) * s->lse_row, p->layout[OPERAND_LSE].type) : 0;
    if (lse == -INFINITY) lse = INFINITY; /* a row that sees nothing: 2^-inf */
    w->lse[l] = (real)lse;
    w->lse_low[l] = isinf(lse) ? 0 : (real)(lse - (double)w->lse[l]);
  }
  load_rows_across(w->q_rows, &s->q, i0, rows, p->head_dim, key_width(p), p->type);
  load_rows_across(w->d_out_rows, &s->d_out, i0, rows, p->v_dim, value_width(p), p->type);
  q.finite =
      all_finite(w->q_rows, words(rows) * key_width(p)) && all_finite(w->d_out_rows, words(rows) * value_width(p));
  return q;
}

static gradient_keys load_gradient_keys(const attend_problem *p, const attend_slice *s, int64_t first,
                                        const backward_scratch *w) {
  gradient_keys c = {
      .first = first, .last = first + KEY_CHUNK < s->k_len ? first + KEY_CHUNK : s->k_len, .finite = true};
  if (c.last <= first) return (gradient_keys){.first = first, .last = first, .finite = true};
  int keys = (int)(c.last - c.first);
  c.k = load_key_rows(s, &s->k, false, false, first, keys, p->head_dim, p->type, w->k);
  c.v = load_key_rows(s, &s->v, true, false, first, keys, p->v_dim, p->type, w->v);
  c.k_across = c.k;
  if (TILE_TERMS == 2)
    c.k_across = load_key_rows(s, &s->k, false, true, first, keys, p->head_dim, p->type, w->k_across);
  for (int k = 0; k < keys && c.finite; k++) c.finite = all_finite(c.k.rows + k * c.k.row, words(p->head_dim));
  return c;
}

/* What becomes of a tile of scores and dP. */
typedef struct gradient_pass {
  const real *lse, *lse_low, *delta;             /* of the tile's queries */
  const real *factor, *visible, *slope;          /* of its pairs; NULL: 1 */
  real *p, *ds, *p_along, *ds_along, *ds_across; /* with words of one element the last three are the first two */
  real score_factor;                             /* what `plain` scores are still to be multiplied by */
  int keys, width;
} gradient_pass;

/* S and dP become P and dS: of the tile in place (`in_words` is false), or in the words that the products read. The
 * flags are constants: for plain attention the loads and selections of the others fold away. */
WORD void gradient_values_as(const gradient_pass *g, bool in_words, bool plain, bool hides, bool scales) {
  const int terms = in_words ? TILE_TERMS : 1;
  const bool later = plain && TILE_TERMS == 2; /* the scores' factor */
  const lanes factor = lanes_set1(g->score_factor);
  for (int l = 0; l < g->width; l += TILE_LANES) {
    lanes lse[TILE_VECTORS], delta[TILE_VECTORS]; /* read once: the stores below might be to them, for a compiler */
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) {
      lse[v] = lanes_load(g->lse + l + v * LANES), delta[v] = lanes_load(g->delta + l + v * LANES);
      if (later) lse[v] = lanes_sub(lanes_zero(), lse[v]);
    }
    for (int i = 0; i < g->keys; i += terms) {
      lanes kept[2][TILE_VECTORS], ds[2][TILE_VECTORS];
#pragma GCC unroll 2
      for (int t = 0; t < terms; t++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
          int lane = l + v * LANES, at = (i + t) * g->width + lane;
          if (i + t >= g->keys) {
            kept[t][v] = ds[t][v] = lanes_zero();
            continue;
          }
          lanes score = lanes_load(g->p + at);
          lanes power = later ? lanes_fma(score, factor, lse[v]) : lanes_sub(score, lse[v]);
          if (TILE_TERMS == 1) power = lanes_sub(power, lanes_load(g->lse_low + lane));
          lanes probability = in_words ? tile_exp2(power) : lanes_exp2(power);
          lanes d_p = lanes_load(g->ds + at);
          kept[t][v] = probability;
          if (scales && g->factor) {
            d_p = lanes_mul(d_p, lanes_load(g->factor + at));
            kept[t][v] = lanes_mul(probability, lanes_load(g->factor + at));
          }
          ds[t][v] = lanes_mul(probability, lanes_sub(d_p, delta[v]));
          if (scales && g->slope) ds[t][v] = lanes_mul(ds[t][v], lanes_load(g->slope + at));
          if (hides) {
            lane_mask hidden = lanes_equal(lanes_load(g->visible + at), lanes_zero());
            kept[t][v] = lanes_select(hidden, lanes_zero(), kept[t][v]);
            ds[t][v] = lanes_select(hidden, lanes_zero(), ds[t][v]);
          }
        }
      if (terms == 1) {
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
          lanes_store(g->p + i * g->width + l + v * LANES, kept[0][v]);
          lanes_store(g->ds + i * g->width + l + v * LANES, ds[0][v]);
        }
        continue;
      }
#pragma GCC unroll 2
      for (int t = 0; t < terms; t++) {
        tile_store_along(g->p_along + ((i + t) * g->width + l) / TILE_TERMS, kept[t]);
        tile_store_along(g->ds_along + ((i + t) * g->width + l) / TILE_TERMS, ds[t]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; v++)
        lanes_store(g->ds_across + i / TILE_TERMS * g->width + l + v * LANES, tile_words(ds[0][v], ds[1][v]));
    }
  }
}
static void gradient_values(const gradient_pass *g, bool in_words, bool plain) {
  bool scales = g->factor || g->slope;
  if (plain)
    gradient_values_as(g, true, true, false, false);
  else if (in_words && g->visible && !scales)
    gradient_values_as(g, true, false, true, false);
  else if (in_words && !g->visible)
    gradient_values_as(g, true, false, false, true);
  else if (in_words)
    gradient_values_as(g, true, false, true, true);
  else if (!g->visible)
    gradient_values_as(g, false, false, false, true);
  else
    gradient_values_as(g, false, false, true, true);
}

/* Fill up tiles and words: nothing comes from keys beyond the last, nor from a query beyond the last. */
static void gradient_surplus(const gradient_pass *g, int rows) {
  int64_t width = g->width / TILE_TERMS, surplus = (round_up(g->keys, TILE_ROWS) - g->keys) * width;
  memset(g->p_along + g->keys * width, 0, (size_t)surplus * sizeof(real));
  memset(g->ds_along + g->keys * width, 0, (size_t)surplus * sizeof(real));
  if (rows % TILE_TERMS == 0) return;
  for (int i = 0; i < g->keys; i++) {
    memset((char *)(g->p_along + i * width) + rows * 2, 0, 2);
    memset((char *)(g->ds_along + i * width) + rows * 2, 0, 2);
  }
}

/* P and dS of keys j0 … j0 + keys - 1: as words for the products, or dS before the softcap's derivative is applied in
 * place. True if pairs may be hidden; both are 0 there and where they fill the last tile. */
static bool gradient_tile(const attend_problem *p, const attend_slice *s, const gradient_rows *q,
                          const gradient_keys *c, int64_t j0, int keys, bool in_words, const backward_scratch *w) {
  key_rows k = {c->k.rows + (j0 - c->first) * c->k.row, c->k.row},
           v = {c->v.rows + (j0 - c->first) * c->v.row, c->v.row};
  bool may_hide = s->mask.data || s->bias.data || j0 < q->range.all_first || j0 + keys > q->range.all_last ||
                  keys % TILE_TERMS != 0;
  score_tile t = {.problem = p, .slice = s, .i0 = q->i0, .j0 = j0, .rows = q->rows, .keys = keys, .width = q->width};
  t.s = w->p;
  if (may_hide) t.visible = w->visible;
  if (p->softcap > 0) t.softcap_slope = w->slope;
  bool plain = in_words && !may_hide && !p->dropout_threshold && !needs_passes(&t, &q->range);
  for (int g = 0; g < q->width; g += TILE_LANES) {
    const real *query = w->q_t + g * round_up(p->head_dim, TILE_TERMS);
    if (plain)
      score_products(w->p + g, q->width, &k, keys, query, words(p->head_dim));
    else
      score_products_scaled(w->p + g, q->width, &k, keys, query, words(p->head_dim), score_factor(p));
    score_products(w->ds + g, q->width, &v, keys, w->d_out_t + g * round_up(p->v_dim, TILE_TERMS), words(p->v_dim));
  }
  score_passes(&t, &q->range);
  if (p->dropout_threshold) {
    for (int i = 0; i < keys * q->width; i += LANES) lanes_store(w->factor + i, lanes_set1(1));
    dropout_pass(&t, w->factor, (real)p->dropout_scale);
  }
  gradient_pass pass = {.lse = w->lse, .lse_low = w->lse_low, .delta = w->delta, .visible = t.visible};
  if (p->dropout_threshold) pass.factor = w->factor;
  if (p->softcap > 0 && in_words) pass.slope = w->slope;
  pass.p = w->p, pass.ds = w->ds, pass.p_along = w->p_along, pass.ds_along = w->ds_along;
  pass.ds_across = w->ds_across, pass.keys = keys, pass.width = q->width, pass.score_factor = score_factor(p);
  gradient_values(&pass, in_words, plain);
  if (in_words) gradient_surplus(&pass, q->rows);
  return may_hide;
}

/* C[j][:] += sum over queries of A[j][i] · B[i][:], for the keys of a tile; A in words along, B across the queries. */
static void key_gradients(real *c, int64_t columns, const real *a, int width, int keys, const real *b, int rows) {
  for (int j = 0; j < keys; j += TILE_ROWS) {
    const real *row[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) row[r] = a + (j + r) * words(width);
    for (int64_t d = 0; d < columns; d += TILE_LANES) {
      tile_sums sums = tile_product_rows(row, b + d, columns, words(rows));
#pragma GCC unroll 16
      for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
          real *at = c + (j + r) * columns + d + v * LANES;
          lanes_store(at, lanes_add(lanes_load(at), sums.c[r][v]));
        }
    }
  }
}

/* The same over visible pairs alone: what NaN and Inf behind a mask need. */
static void key_gradients_careful(real *c, int64_t columns, const real *a, int width, int keys, const real *b, int rows,
                                  const real *visible) {
  for (int j = 0; j < keys; j++)
    for (int64_t d = 0; d < columns; d += LANES) {
      lanes sum = lanes_load(c + j * columns + d);
      for (int i = 0; i < rows; i++) {
        if (visible && visible[j * width + i] == 0) continue;
        int64_t word = i / TILE_TERMS;
        lanes x = tile_element(lanes_set1(a[j * words(width) + word]), i % TILE_TERMS);
        sum = lanes_fma(x, tile_element(lanes_load(b + word * columns + d), i % TILE_TERMS), sum);
      }
      lanes_store(c + j * columns + d, sum);
    }
}

/* The gradients that `q`'s queries and keys j0 … j1 - 1 of the chunk give each other, added to those in scratch. */
static void gradient_block(const attend_problem *p, const attend_slice *s, const gradient_rows *q,
                           const gradient_keys *c, int64_t j0, int64_t j1, bool want_q, bool want_keys,
                           const backward_scratch *w) {
  int64_t d_padded = round_up(p->head_dim, TILE_ROWS);
  if (TILE_TERMS == 2 && j0 < j1) j0 -= (j0 - c->first) % 2; /* two keys to a word: the first may be hidden */
  int keys = (int)(j1 - j0);
  if (keys <= 0 || (s->mask.data && mask_is_empty(s, q->i0, q->rows, j0, keys))) return;
  bool hidden = gradient_tile(p, s, q, c, j0, keys, true, w);
  if (want_q) {
    real one[TILE_LANES];
    for (int l = 0; l < TILE_LANES; l++) one[l] = 1;
    key_rows k = {c->k_across.rows + (j0 - c->first) / TILE_TERMS * c->k_across.row, c->k_across.row};
    for (int g = 0; g < q->width; g += TILE_LANES) {
      real *d_q = w->d_q_t + g * d_padded;
      if (hidden && !c->finite)
        value_products_careful(d_q, d_padded, &k, keys, w->ds_across + g, q->width, one, w->visible + g);
      else
        value_products(d_q, d_padded, &k, keys, w->ds_across + g, q->width, one);
    }
  }
  if (want_keys) {
    real *d_k = w->d_k + (j0 - c->first) * key_width(p), *d_v = w->d_v + (j0 - c->first) * value_width(p);
    if (!q->finite) {
      const real *visible = hidden ? w->visible : NULL;
      key_gradients_careful(d_v, value_width(p), w->p_along, q->width, keys, w->d_out_rows, q->rows, visible);
      key_gradients_careful(d_k, key_width(p), w->ds_along, q->width, keys, w->q_rows, q->rows, visible);
    } else {
      key_gradients(d_v, value_width(p), w->p_along, q->width, keys, w->d_out_rows, q->rows);
      key_gradients(d_k, key_width(p), w->ds_along, q->width, keys, w->q_rows, q->rows);
    }
  }
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* One step: the gradients that `q`'s queries and the keys of the chunk give each other. The part of dQT is left in
 * scratch. Blocks that causal or a window cut are done by lanes of a tile, each with its own keys. */
static void gradient_step(const attend_problem *p, const attend_slice *s, const gradient_rows *q,
                          const gradient_keys *c, bool want_q, bool want_keys, const backward_scratch *w) {
  memset(w->d_q_t, 0, (size_t)(round_up(p->head_dim, TILE_ROWS) * q->width) * sizeof(real));
  for (int64_t block = c->first; block < c->last; block += GRADIENT_KEYS) {
    int64_t end = least(block + GRADIENT_KEYS, c->last);
    if (block >= q->range.all_first && end <= q->range.all_last) {
      gradient_block(p, s, q, c, block, end, want_q, want_keys, w);
      continue;
    }
    for (int g = 0; g < q->width; g += TILE_LANES) {
      int rows = q->rows - g < TILE_LANES ? q->rows - g : TILE_LANES;
      const gradient_rows part = {q->i0 + g, rows, TILE_LANES, visible_keys(p, s, q->i0 + g, rows), q->finite};
      const backward_scratch at = scratch_of_rows(p, w, g);
      gradient_block(p, s, &part, c, most(block, part.range.first), least(end, part.range.last), want_q, want_keys,
                     &at);
    }
  }
}
