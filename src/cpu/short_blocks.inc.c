/* SPDX-License-Identifier: MIT */
/* A short sequence whose scores depend on nothing but the positions of query and key, that is, without the
 * options that are passes of scores.inc.c. Queries go in blocks of 4, the rest in blocks of 2 and 1. A vector holds the
 * scores of a tile, `rows` queries and LANES / rows keys, lane = key * rows + query: one tree of additions fills it, a
 * row's sum is a few swaps of lanes, and P lies as the products with V read it. Of 16 x 16 causal pairs 10 tiles of
 * 4 x 4 are left, where vectors of 16 queries are 16. */

/* With 8 lanes a tile is 4 queries and 2 keys, too little work for what comes with each: 16 queries took 1.4 times as
 * long as by rows of queries, 32 took 1.5. */
enum { SHORT_IN_BLOCKS = LANES >= 16 };

/* With words of two elements there is only this: scores with options are left to multiply-adds. */
enum { SHORT_ONLY_IN_BLOCKS = TILE_TERMS == 2 };
static inline bool short_is_in_blocks(bool may) { return SHORT_ONLY_IN_BLOCKS || (SHORT_IN_BLOCKS && may); }
static bool short_has_words(const attend_problem *p, char reason[ATTEND_REASON_SIZE]) {
  if (!SHORT_ONLY_IN_BLOCKS || (!short_has_options(p) && !attend_has(p, OPERAND_D_LSE) && p->softcap == 0)) return true;
  snprintf(reason, ATTEND_REASON_SIZE, "leaves options of scores to multiply-adds");
  return false;
}

typedef struct short_block {
  int query, rows;
  int first, last;                     /* keys that some query of it sees; the first a multiple of SHORT_BLOCK */
  bool stairs;                         /* each query sees one key more than the one before: the last `rows` of them */
  bool hides;                          /* from some query a key that another sees, but for those stairs leave out */
  int tiles;                           /* its scores begin at query * SHORT_MAX */
  lane_mask hidden[SHORT_BLOCK_TILES]; /* of each tile the lanes of no pair, or of a hidden one */
} short_block;

typedef struct short_blocks {
  short_block block[SHORT_BLOCKS];
  int count, tiles;
} short_blocks;

static void short_block_make(const short_ranges *range, int query, int rows, short_block *b) {
  const int end = query + rows - 1, keys = LANES / rows;
  b->query = query, b->rows = rows;
  b->first = range->first_key[query] / SHORT_BLOCK * SHORT_BLOCK, b->last = range->last_key[end];
  b->tiles = (b->last - b->first + keys - 1) / keys;
  b->stairs = rows > 1 && range->first_key[end] == b->first && b->last > b->first && (b->last - b->first) % rows == 0;
  for (int r = 0; r < rows; r++) b->stairs &= range->last_key[query + r] == b->last - rows + 1 + r;
  b->hides = !b->stairs && (b->first < range->first_key[end] || range->last_key[query] < b->last);
  real from[LANES], to[LANES]; /* tiles that begin at a key in [from, to) have this lane visible */
  for (int l = 0; l < LANES; l++) {
    from[l] = (real)(range->first_key[query + l % rows] - l / rows);
    to[l] = (real)(range->last_key[query + l % rows] - l / rows);
  }
  for (int t = 0; t < b->tiles; t++) {
    const lanes at = lanes_set1((real)(b->first + t * keys));
    b->hidden[t] = mask_or(mask_not(lanes_less(at, lanes_load(to))), lanes_less(at, lanes_load(from)));
  }
}
static void short_blocks_make(const short_ranges *range, int queries, short_blocks *x) {
  int rows;
  x->count = 0, x->tiles = 1;
  for (int i = 0; i < queries; i += rows) {
    for (rows = SHORT_BLOCK; rows > queries - i;) rows /= 2;
    short_block *b = &x->block[x->count++];
    short_block_make(range, i, rows, b);
    x->tiles += b->tiles + 1;
  }
}

/* ---- Scores ---- */

WORD void short_blocks_scores_of(const short_block *b, int n, real *s, const vector_rows *q, const vector_rows *k,
                                 int64_t columns, real factor, short_ahead *ahead, attend_type type) {
  const int64_t vectors = short_padded(columns, type) / (short_parts(type) * LANES);
  s += b->query * SHORT_MAX;
  if (b->stairs && n == SHORT_BLOCK)
    short_block_scores(n, b->query, b->first, b->last, true, s, q, k, vectors, lanes_set1(factor), ahead, NULL, type);
  else
    short_block_scores(n, b->query, b->first, b->last, false, s, q, k, vectors, lanes_set1(factor), ahead, NULL, type);
}
WORD void short_blocks_scores_as(const short_blocks *x, real *s, const vector_rows *q, const vector_rows *k,
                                 int64_t columns, real factor, short_ahead *ahead, attend_type type) {
  for (int i = 0; i < x->count; i++) {
    const short_block *b = &x->block[i];
    if (b->rows == SHORT_BLOCK)
      short_blocks_scores_of(b, SHORT_BLOCK, s, q, k, columns, factor, ahead, type);
    else if (b->rows == 2)
      short_blocks_scores_of(b, 2, s, q, k, columns, factor, ahead, type);
    else
      short_blocks_scores_of(b, 1, s, q, k, columns, factor, ahead, type);
  }
}
static void short_blocks_scores(const short_blocks *x, real *s, const vector_rows *q, const vector_rows *k,
                                int64_t columns, real factor, short_ahead *ahead) {
  if (short_type(q->type) == TYPE_BF16)
    short_blocks_scores_as(x, s, q, k, columns, factor, ahead, TYPE_BF16);
  else
    short_blocks_scores_as(x, s, q, k, columns, factor, ahead, REAL_TYPE);
}

/* ---- Softmax ---- */

enum { SOFTMAX_MAX, SOFTMAX_EXP, SOFTMAX_SHARE };

/* A step of a block; step and rows are constants. */
WORD void short_blocks_step_of(const short_block *b, int rows, real *s, lanes *max, lanes *sum, int step) {
  s += b->query * SHORT_MAX;
  if (step == SOFTMAX_MAX)
    *max = short_block_max(rows, b->tiles, b->hidden, s);
  else if (step == SOFTMAX_EXP)
    *sum = short_block_exp(rows, b->tiles, s, *max);
  else
    short_block_share(rows, b->tiles, s, *sum);
}
WORD void short_blocks_step(const short_blocks *x, real *s, short_statistics *soft, int step) {
  for (int i = 0; i < x->count; i++) {
    const short_block *b = &x->block[i];
    if (b->rows == SHORT_BLOCK)
      short_blocks_step_of(b, SHORT_BLOCK, s, &soft->max[i], &soft->sum[i], step);
    else if (b->rows == 2)
      short_blocks_step_of(b, 2, s, &soft->max[i], &soft->sum[i], step);
    else
      short_blocks_step_of(b, 1, s, &soft->max[i], &soft->sum[i], step);
  }
}
/* lse may be NULL; its elements are `step` apart. */
static void short_blocks_softmax(const short_blocks *x, real *s, real *lse, int64_t step) {
  short_statistics soft;
  short_blocks_step(x, s, &soft, SOFTMAX_MAX);
  short_blocks_step(x, s, &soft, SOFTMAX_EXP);
  short_blocks_step(x, s, &soft, SOFTMAX_SHARE);
  if (!lse) return;
  lanes max = lanes_zero(), sum = lanes_zero();
  for (int i = 0; i < x->count; i++) {
    const int query = x->block[i].query, end = query + x->block[i].rows, first = query / LANES * LANES;
    short_block_gather(&soft, i, query, &max, &sum);
    if (end % LANES == 0 || i == x->count - 1) short_store_lse(lse + first * step, step, end - first, max, sum);
  }
}

/* ---- Values ---- */

WORD bool short_blocks_values_of(const short_block *b, int n, bool stairs, const real *s, const short_values *t,
                                 attend_type type) {
  return short_values_rows(t, t->columns, s + b->query * SHORT_MAX, n * TILE_TERMS, b->query, n, b->first,
                           b->last - b->first, false, stairs, b->hides, NULL, type);
}
WORD bool short_blocks_values_as(const short_blocks *x, const real *s, const short_values *t, short_ahead *ahead,
                                 attend_type type) {
  bool finite = true;
  for (int i = 0; i < x->count; i++) {
    const short_block *b = &x->block[i];
    if (b->rows == SHORT_BLOCK && b->stairs)
      short_blocks_values_of(b, SHORT_BLOCK, true, s, t, type);
    else if (b->rows == SHORT_BLOCK)
      finite &= short_blocks_values_of(b, SHORT_BLOCK, false, s, t, type);
    else if (b->rows == 2 && b->stairs)
      short_blocks_values_of(b, 2, true, s, t, type);
    else if (b->rows == 2)
      finite &= short_blocks_values_of(b, 2, false, s, t, type);
    else
      finite &= short_blocks_values_of(b, 1, false, s, t, type);
    short_ahead_rows(ahead, ahead->pace);
  }
  return finite;
}
/* The product P V. False if V holds NaN or Inf that may belong to a hidden pair. */
static bool short_blocks_values(const short_blocks *x, const real *s, const short_values *t, short_ahead *ahead) {
  if (short_type(t->v.type) == TYPE_BF16) return short_blocks_values_as(x, s, t, ahead, TYPE_BF16);
  return short_blocks_values_as(x, s, t, ahead, REAL_TYPE);
}

/* The same, queries one by one, each with the keys that it sees only: to others 0 times NaN or Inf would not be 0. */
static void short_blocks_values_apart(const short_blocks *x, const real *s, const short_values *t,
                                      const short_ranges *range) {
  for (int i = 0; i < x->count; i++) {
    const short_block *b = &x->block[i];
    for (int query = b->query; query < b->query + b->rows; query++) {
      const int first = range->first_key[query], keys = range->last_key[query] - first, step = b->rows * TILE_TERMS;
      const int half = (first - b->first) % TILE_TERMS, from = first - half;
      const real *p = s + b->query * SHORT_MAX + (from - b->first) * b->rows + query - b->query;
      if (short_type(t->v.type) == TYPE_BF16)
        short_values_rows(t, t->columns, p, step, query, 1, from, keys, half && keys > 0, false, false, NULL,
                          TYPE_BF16);
      else
        short_values_rows(t, t->columns, p, step, query, 1, from, keys, half && keys > 0, false, false, NULL,
                          REAL_TYPE);
    }
  }
}
