/* SPDX-License-Identifier: MIT */
/* A short sequence whose scores depend on nothing but the positions of query and key, that is, without the
 * options that are passes of scores.inc.c. Queries go in blocks of 4, the rest in blocks of 2 and 1. A vector holds the
 * scores of a tile, `rows` queries and LANES / rows keys, lane = key * rows + query: one tree of additions fills it, a
 * row's sum is a few rotations, and P lies as the products with V read it. Of 16 x 16 causal pairs 10 tiles of 4 x 4
 * are left, where vectors of 16 queries are 16. */

enum { SHORT_BLOCK = LANES < 4 ? LANES : 4, SHORT_BLOCKS = SHORT_MAX / SHORT_BLOCK + 2 };

/* With 8 lanes a tile is 4 queries and 2 keys, too little work for what comes with each: 16 queries took 1.4 times as
 * long as by rows of queries, 32 took 1.5. */
enum { SHORT_IN_BLOCKS = LANES >= 16 };

/* With words of two elements there is only this. */
enum { SHORT_ONLY_IN_BLOCKS = TILE_TERMS == 2 };

typedef struct short_block {
  int query, rows;
  int first, last;             /* keys that some query of it sees; the first a multiple of SHORT_BLOCK */
  int all_first, all_last;     /* keys that all do */
  bool stairs;                 /* each query sees one key more than the one before: those of the last tile */
  int at;                      /* where its scores begin */
  real from[LANES], to[LANES]; /* tiles that begin at a key in [from, to) have this lane visible */
} short_block;

typedef struct short_blocks {
  short_block block[SHORT_BLOCKS];
  int count, tiles;
} short_blocks;

static int short_block_tiles(const short_block *b) {
  int keys = LANES / b->rows;
  return (b->last - b->first + keys - 1) / keys;
}

static void short_blocks_make(const short_ranges *range, int queries, short_blocks *x) {
  int at = 0, rows;
  x->count = 0, x->tiles = 1;
  for (int i = 0; i < queries; i += rows) {
    short_block *b = &x->block[x->count++];
    for (rows = SHORT_BLOCK; rows > queries - i;) rows /= 2;
    b->query = i, b->rows = rows;
    int end = i + rows - 1, keys = LANES / rows;
    b->first = range->first_key[i] / SHORT_BLOCK * SHORT_BLOCK, b->all_last = range->last_key[i];
    b->all_first = range->first_key[end], b->last = range->last_key[end];
    b->stairs = rows == SHORT_BLOCK && rows == keys && b->first == b->all_first && b->last > b->first &&
                (b->last - b->first) % keys == 0;
    for (int r = 0; r < rows; r++) b->stairs &= range->last_key[i + r] == b->last - keys + 1 + r;
    for (int l = 0; l < LANES; l++) {
      b->from[l] = (real)(range->first_key[i + l % rows] - l / rows);
      b->to[l] = (real)(range->last_key[i + l % rows] - l / rows);
    }
    b->at = at;
    at += short_block_tiles(b) * LANES, x->tiles += short_block_tiles(b) + 1;
  }
}

/* ---- Scores ---- */

/* Sums of a tile of n queries, a constant, and `keys`, made one: 5 queries take 160 ns, 180 with a loop over keys. */
WORD lanes short_block_dots(const vector_rows *q, int n, const vector_rows *k, int keys, int64_t vectors,
                            attend_type type) {
#define KEYS(keys)                                                                                                     \
  case keys:                                                                                                           \
    if (keys <= SHORT_KEYS(n)) return short_dots(q, n, k, keys, false, vectors, type);                                 \
    break;
  switch (keys) {
    KEYS(1)
    KEYS(2)
    KEYS(3)
    KEYS(4) KEYS(5) KEYS(6) KEYS(7) KEYS(8) KEYS(9) KEYS(10) KEYS(11) KEYS(12) KEYS(13) KEYS(14) KEYS(15) KEYS(16)
  }
#undef KEYS
  return lanes_zero();
}

/* n = b->rows, a constant. */
WORD void short_block_scores(const short_block *b, int n, real *s, const vector_rows *q, const vector_rows *k,
                             int64_t vectors, lanes factor, short_ahead *ahead, attend_type type) {
  const vector_rows queries = {q->rows + b->query * q->step, q->step, type};
  for (int j = b->first; j < b->last; j += SHORT_KEYS(n), s += LANES) {
    const vector_rows some = {k->rows + j * k->step, k->step, type};
    int keys = b->last - j < SHORT_KEYS(n) ? b->last - j : SHORT_KEYS(n);
    lanes sums;
    if (n == SHORT_BLOCK && b->stairs && b->last - j == n)
      sums = short_dots(&queries, n, &some, n, true, vectors, type);
    else
      sums = short_block_dots(&queries, n, &some, keys, vectors, type);
    lanes_store(s, lanes_mul(sums, factor));
    short_ahead_rows(ahead, ahead->pace);
  }
}

WORD void short_blocks_scores_as(const short_blocks *x, real *s, const vector_rows *q, const vector_rows *k,
                                 int64_t columns, real factor, short_ahead *ahead, attend_type type) {
  const int64_t vectors = short_padded(columns, type) / (short_parts(type) * LANES);
  for (int n = 0; n < x->count; n++) {
    const short_block *b = &x->block[n];
    if (b->rows == SHORT_BLOCK)
      short_block_scores(b, SHORT_BLOCK, s + b->at, q, k, vectors, lanes_set1(factor), ahead, type);
    else if (b->rows == 2)
      short_block_scores(b, 2, s + b->at, q, k, vectors, lanes_set1(factor), ahead, type);
    else
      short_block_scores(b, 1, s + b->at, q, k, vectors, lanes_set1(factor), ahead, type);
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

/* The lanes of a tile that begins at a key whose queries do not see theirs. */
WORD lane_mask short_block_hidden(const short_block *b, int key) {
  const lanes at = lanes_set1((real)key);
  return mask_or(mask_not(lanes_less(at, lanes_load(b->to))), lanes_less(at, lanes_load(b->from)));
}

/* From scores to P, in place, as words of keys that follow each other, in the lane of the first; lse in base e, unless
 * NULL, its elements `step` apart. `rows` is a constant, and `tiles`, or it is 0: any number. A row's lanes are added
 * in halves, so that all of them have the same sum. */
WORD void short_block_softmax(const short_block *b, real *s, int tiles, int rows, real *lse, int64_t step) {
  lanes minus_infinity = lanes_set1(-(real)INFINITY), m = minus_infinity, l = lanes_zero(), x[4];
  int keys = LANES / rows, count = tiles ? tiles : short_block_tiles(b);
#pragma GCC unroll 4
  for (int t = 0; t < count; t++) {
    int key = b->first + t * keys;
    lanes y = lanes_load(s + t * LANES);
    if (key < b->all_first || key + keys > b->all_last) y = lanes_select(short_block_hidden(b, key), minus_infinity, y);
    m = lanes_max(y, m);
    if (tiles)
      x[t] = y;
    else
      lanes_store(s + t * LANES, y);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= rows; lane /= 2) m = lanes_max(lanes_rotate(m, lane), m);
  lanes base = lanes_select(lanes_equal(m, minus_infinity), lanes_zero(), m);
#pragma GCC unroll 4
  for (int t = 0; t < count; t++) {
    lanes p = tile_exp2(lanes_sub(tiles ? x[t] : lanes_load(s + t * LANES), base));
    l = lanes_add(l, p);
    if (tiles)
      x[t] = p;
    else
      lanes_store(s + t * LANES, p);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= rows; lane /= 2) l = lanes_add(lanes_rotate(l, lane), l);
  lanes share = lanes_select(lanes_equal(l, lanes_zero()), lanes_zero(), lanes_div(lanes_set1(1), l));
#pragma GCC unroll 4
  for (int t = 0; t < count; t++) {
    lanes p = lanes_mul(tiles ? x[t] : lanes_load(s + t * LANES), share);
    lanes_store(s + t * LANES, tile_words(p, lanes_rotate(p, rows)));
  }
  if (!lse) return;
  real copy[LANES];
  lanes_store(copy, lanes_mul(lanes_set1((real)LN_2), lanes_add(m, lanes_log2(l))));
  for (int r = 0; r < rows; r++) lse[(b->query + r) * step] = copy[r];
}

static void short_blocks_softmax(const short_blocks *x, real *s, real *lse, int64_t step) {
  for (int n = 0; n < x->count; n++) {
    const short_block *b = &x->block[n];
    real *at = s + b->at;
    int tiles = short_block_tiles(b);
    if (b->rows == 1 && tiles == 1)
      short_block_softmax(b, at, 1, 1, lse, step);
    else if (b->rows == 1)
      short_block_softmax(b, at, 0, 1, lse, step);
    else if (b->rows == 2 && tiles == 1)
      short_block_softmax(b, at, 1, 2, lse, step);
    else if (b->rows == 2)
      short_block_softmax(b, at, 0, 2, lse, step);
    else if (tiles == 1)
      short_block_softmax(b, at, 1, SHORT_BLOCK, lse, step);
    else if (tiles == 2)
      short_block_softmax(b, at, 2, SHORT_BLOCK, lse, step);
    else if (tiles == 3)
      short_block_softmax(b, at, 3, SHORT_BLOCK, lse, step);
    else if (tiles == 4)
      short_block_softmax(b, at, 4, SHORT_BLOCK, lse, step);
    else
      short_block_softmax(b, at, 0, SHORT_BLOCK, lse, step);
  }
}

/* ---- Values ---- */

/* A block's queries one by one, each with the keys that it sees only: to others 0 times NaN or Inf would not be 0. */
static void short_block_values_apart(const short_block *b, short_product *t, const int *first, const int *last,
                                     attend_type type) {
  t->rows = 1, t->finite = NULL;
  for (int r = 0; r < b->rows; r++) {
    const int own_first = first[b->query + r] - b->first, own_last = last[b->query + r] - b->first;
    t->first = &own_first, t->last = &own_last;
    short_multiply(t, type);
    t->a++, t->out.data += t->out.row * (int64_t)attend_type_size(type);
  }
}

/* In place: a copy would be read in wider parts than it was just written in, for which the core waits (20 to 50 ns a
 * pair). */
WORD void short_blocks_values_as(const short_blocks *x, short_product *t, attend_type type) {
  const real *a = t->a;
  const char *rows = t->x.rows;
  char *out = t->out.data;
  const int *first = t->first, *last = t->last;
  for (int n = 0; n < x->count; n++) {
    const short_block *b = &x->block[n];
    const int keys = b->last - b->first, none[SHORT_BLOCK] = {0}, all[4] = {keys, keys, keys, keys};
    const bool hides = !b->stairs && (b->first != b->all_first || b->last != b->all_last);
    bool finite = true;
    t->a = a + b->at, t->a_step = b->rows * TILE_TERMS, t->first = none, t->last = all;
    t->x.rows = rows + b->first * t->x.step;
    t->out.data = out + b->query * t->out.row * (int64_t)attend_type_size(type);
    t->finite = hides ? &finite : NULL;
    if (b->stairs)
      short_product_rows(t, 0, SHORT_BLOCK, false, true, type);
    else if (b->rows == SHORT_BLOCK)
      short_product_rows(t, 0, SHORT_BLOCK, false, false, type);
    else if (b->rows == 2)
      short_product_rows(t, 0, 2, false, false, type);
    else
      short_product_rows(t, 0, 1, false, false, type);
    if (!finite) short_block_values_apart(b, t, first, last, type);
  }
}

/* The product P V, as `t` says, but for where P lies and which terms the rows of a block have. */
static void short_blocks_values(const short_blocks *x, short_product *t, attend_type type) {
  if (short_type(type) == TYPE_F16)
    short_blocks_values_as(x, t, TYPE_F16);
  else if (short_type(type) == TYPE_BF16)
    short_blocks_values_as(x, t, TYPE_BF16);
  else
    short_blocks_values_as(x, t, REAL_TYPE);
}
