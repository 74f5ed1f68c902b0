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
  int first, last;             /* keys that some query of it sees; the first a multiple of SHORT_BLOCK */
  int all_first, all_last;     /* keys that all do */
  bool stairs;                 /* each query sees one key more than the one before: those of the last tile */
  bool hides;                  /* from some query a key that another sees, but for those stairs leave out */
  int at, tiles;               /* where its scores begin, and how many */
  real from[LANES], to[LANES]; /* tiles that begin at a key in [from, to) have this lane visible */
} short_block;

typedef struct short_blocks {
  short_block block[SHORT_BLOCKS];
  int count, tiles;
} short_blocks;

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
    b->hides = !b->stairs && (b->first < b->all_first || b->all_last < b->last);
    for (int l = 0; l < LANES; l++) {
      b->from[l] = (real)(range->first_key[i + l % rows] - l / rows);
      b->to[l] = (real)(range->last_key[i + l % rows] - l / rows);
    }
    b->at = at, b->tiles = (b->last - b->first + keys - 1) / keys;
    at += b->tiles * LANES, x->tiles += b->tiles + 1;
  }
}

/* ---- Scores ---- */

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
      sums = short_dots_of(&queries, n, &some, keys, vectors, type);
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
  int keys = LANES / rows, count = tiles ? tiles : b->tiles;
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
    const int tiles = b->tiles;
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

/* Rows of O and of V, which is padded to whole vectors, of the same type. */
typedef struct short_values {
  vector_rows v;
  char *out;
  int64_t step, columns; /* bytes from row to row of O */
  bool stream;           /* whole lines past the cache */
} short_values;

/* Sums of n rows as they are stored, `vectors` of them from `to` on. */
WORD void short_values_store(char *to, int64_t step, lanes sum[SHORT_PRODUCT_ROWS][8], int n, int vectors, bool stream,
                             attend_type type) {
  const int parts = short_parts(type);
#pragma GCC unroll 4
  for (int r = 0; r < n; r++, to += step)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v += parts) {
      char *at = to + v / parts * (int)sizeof(lanes);
      if (parts == 2 && stream)
        lanes_stream_pair(at, sum[r] + v, type);
      else if (parts == 2)
        lanes_store_pair(at, sum[r] + v, type);
      else if (stream)
        lanes_stream((real *)(void *)at, sum[r][v]);
      else
        lanes_store((real *)(void *)at, sum[r][v]);
    }
}

/* The same of the last columns, `count` of one vector or, of bf16, two: what is behind them is the next row's, or
 * nobody's. */
WORD void short_values_store_first(char *to, int64_t step, lanes sum[SHORT_PRODUCT_ROWS][8], int n, int count,
                                   attend_type type) {
#pragma GCC unroll 4
  for (int r = 0; r < n; r++, to += step)
    if (type == TYPE_BF16) {
      real copy[LANES];
      lanes_store_pair((char *)copy, sum[r], type);
      memcpy(to, copy, (size_t)count * attend_type_size(type));
    } else
      lanes_store_first((real *)(void *)to, sum[r][0], count);
}

/* sum = P V of n queries, `vectors` of columns from where v is on. False if something `hides` and not all values were
 * finite. */
WORD bool short_values_sums(const short_values *t, const real *p, int p_step, const char *v, int keys, bool half,
                            lanes sum[SHORT_PRODUCT_ROWS][8], int n, int vectors, bool stairs, bool hides,
                            attend_type type) {
  short_product_sums(sum, p, 1, p_step, v, t->v.step, keys, half, n, vectors, false, stairs, type);
  return stairs || !hides || short_product_finite(sum, vectors);
}

/* O of n queries from `query` on, a constant, with `keys` from `first` on, if `stairs`, a constant, as
 * short_product_sums says; P of a word begins p_step behind that of the one before. False as above. */
WORD bool short_values_rows(const short_values *t, const real *p, int p_step, int query, int n, int first, int keys,
                            bool half, bool stairs, bool hides, attend_type type) {
  const int parts = short_parts(type);
  char *out = t->out + query * t->step;
  const char *v = keys ? t->v.rows + first * t->v.step : out; /* or anything that is not read */
  lanes sum[SHORT_PRODUCT_ROWS][8];
  bool finite = true;
  int64_t left = t->columns;
#define TILES(vectors)                                                                                                 \
  for (; vectors >= parts && left >= vectors * LANES; left -= vectors * LANES) {                                       \
    finite &= short_values_sums(t, p, p_step, v, keys, half, sum, n, vectors, stairs, hides, type);                    \
    if (t->stream)                                                                                                     \
      short_values_store(out, t->step, sum, n, vectors, true, type);                                                   \
    else                                                                                                               \
      short_values_store(out, t->step, sum, n, vectors, false, type);                                                  \
    v += vectors / parts * (int)sizeof(lanes), out += vectors / parts * (int)sizeof(lanes);                            \
  }
  TILES(4);
  TILES(2);
  TILES(1);
#undef TILES
  if (left > 0) {
    finite &= short_values_sums(t, p, p_step, v, keys, half, sum, n, parts, stairs, hides, type);
    short_values_store_first(out, t->step, sum, n, (int)left, type);
  }
  return finite;
}

WORD bool short_blocks_values_as(const short_blocks *x, const real *s, const short_values *t, short_ahead *ahead,
                                 attend_type type) {
  bool finite = true;
  for (int i = 0; i < x->count; i++) {
    const short_block *b = &x->block[i];
    const int keys = b->last - b->first;
    const real *p = s + b->at;
#define ROWS(n, stairs)                                                                                                \
  short_values_rows(t, p, (n)*TILE_TERMS, b->query, n, b->first, keys, false, stairs, b->hides, type)
    if (b->stairs)
      ROWS(SHORT_BLOCK, true);
    else if (b->rows == SHORT_BLOCK)
      finite &= ROWS(SHORT_BLOCK, false);
    else if (b->rows == 2)
      finite &= ROWS(2, false);
    else
      finite &= ROWS(1, false);
#undef ROWS
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
      const real *p = s + b->at + (from - b->first) * b->rows + query - b->query;
      if (short_type(t->v.type) == TYPE_BF16)
        short_values_rows(t, p, step, query, 1, from, keys, half && keys > 0, false, false, TYPE_BF16);
      else
        short_values_rows(t, p, step, query, 1, from, keys, half && keys > 0, false, false, REAL_TYPE);
    }
  }
}
