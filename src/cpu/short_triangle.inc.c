/* SPDX-License-Identifier: MIT */
/* Backward on the shortest sequences: n <= TRIANGLE_MAX tokens, each of which sees itself and those before it, nothing
 * else about their scores. All that the steps of short_gradient_blocks.inc.c ask at run time, how many queries a block
 * has, which of its tiles are whole, where a sum ends, is a constant here: the compiler unrolls a pair into little more
 * than its multiply-adds. */

/* The matrices of a (sequence, head): first those of its queries. */
enum { PAIR_Q, PAIR_D_OUT, PAIR_D_Q, PAIR_K, PAIR_V, PAIR_D_K, PAIR_D_V, PAIR_MATRICES };
static const operand_id pair_operands[] = {OPERAND_Q, OPERAND_D_OUT, OPERAND_D_Q, OPERAND_K,
                                           OPERAND_V, OPERAND_D_K,   OPERAND_D_V};

enum { TRIANGLE_MAX = LANES < 8 ? 0 : 8 };      /* with fewer lanes: none */
enum { TRIANGLE_VECTORS = LANES < 16 ? 2 : 4 }; /* of a row, summed at a time in as many registers as there are */

enum { TRIANGLE_WORDS = TRIANGLE_MAX * TRIANGLE_MAX + 16 }; /* of the tiles of a pair; the last may be longer */

/* The rows of one pair: those of outputs NULL where they are not wanted. Inputs and outputs have `columns`, a multiple
 * of TRIANGLE_VECTORS vectors. */
typedef struct short_triangle {
  char *rows[PAIR_MATRICES];
  int64_t step[PAIR_MATRICES]; /* bytes */
  int64_t columns;
  real factor, scale;
  real *p, *ds, *ds_across; /* TRIANGLE_WORDS each */
  bool stream[PAIR_MATRICES];
  const char *ahead[PAIR_MATRICES]; /* rows of the pair to ask for, of outputs where they end; NULL: none */
} short_triangle;

/* Those of one matrix, from beginning to end. */
WORD void triangle_ask(const short_triangle *t, int n, int of, attend_type type) {
  const int64_t bytes = t->columns * (int64_t)attend_type_size(type), step = t->step[of];
  const char *row = t->ahead[of];
  if (!row) return;
  for (int64_t at = 0; at < bytes; at += 64)
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) __builtin_prefetch(row + r * step + at, 0, 2);
}
/* The lines in which rows end that are stored past the cache: short_ahead_ends says why. */
WORD void triangle_ask_ends(const short_triangle *t, int n, int of, attend_type type) {
  const int64_t bytes = t->columns * (int64_t)attend_type_size(type), step = t->step[of];
  const char *row = t->ahead[of];
  if (!row || !t->stream[of] || (uintptr_t)row % 64 == 0) return;
#pragma GCC unroll 8
  for (int r = 0; r < n; r++) __builtin_prefetch(row + r * step + bytes - 1, 0, 2);
}

/* The tokens of one; 0: it is none. */
static int short_triangle_tokens(const short_ranges *range, int64_t queries, int64_t keys) {
  bool is_one = queries == keys && keys >= 2 && keys <= TRIANGLE_MAX;
  for (int i = 0; is_one && i < queries; i++) is_one = range->first_key[i] == 0 && range->last_key[i] == i + 1;
  return is_one ? (int)keys : 0;
}

/* Queries go in blocks of 4, the rest in blocks of 2 and 1, as in short_blocks.inc.c: the first of the block of query i
 * of n, and how many there are. */
WORD int triangle_first(int n, int i) { return i < n / 4 * 4 ? i / 4 * 4 : i < n / 2 * 2 ? n / 4 * 4 : n - 1; }
WORD int triangle_rows(int n, int first) { return first + 4 <= n ? 4 : first + 2 <= n ? 2 : 1; }
/* Where P of query i and key j lies among the tiles. */
WORD int triangle_at(int n, int i, int j) {
  const int first = triangle_first(n, i);
  return TRIANGLE_MAX * first + j * triangle_rows(n, first) + i - first;
}

/* Of each lane of a tile of 1, 2 or 4 queries its key less its query, both counted from the tile's first. */
#define LEADS(n)                                                                                                       \
  {                                                                                                                    \
    0 / n - 0 % n, 1 / n - 1 % n, 2 / n - 2 % n, 3 / n - 3 % n, 4 / n - 4 % n, 5 / n - 5 % n, 6 / n - 6 % n,           \
        7 / n - 7 % n, 8 / n - 8 % n, 9 / n - 9 % n, 10 / n - 10 % n, 11 / n - 11 % n, 12 / n - 12 % n,                \
        13 / n - 13 % n, 14 / n - 14 % n, 15 / n - 15 % n                                                              \
  }
static const real triangle_leads[][16] = {[1] = LEADS(1), [2] = LEADS(2), [4] = LEADS(4)};
#undef LEADS

/* Sums that are kept in registers while rows are read. */
enum { TRIANGLE_SUMS = LANES < 16 ? 11 : 26 };

/* Products of `rows` rows of `a` from `first` on with those of `b` from `from` to `to` - 1 up to their own, to tiles of
 * scores from x on: all but the rows are constants. */
WORD void triangle_tiles(const short_triangle *t, int a, int b, int first, int rows, int from, int to, lanes *x,
                         attend_type type) {
  const int keys = LANES / rows;
  const char *q = t->rows[a] + first * t->step[a], *k = t->rows[b] + from * t->step[b];
  lanes sum[4][LANES];
#pragma GCC unroll 4
  for (int m = 0; m < (to - from + keys - 1) / keys; m++)
#pragma GCC unroll 16
    for (int l = 0; l < LANES; l++) sum[m][l] = lanes_zero();
  for (int64_t c = 0; c < t->columns; c += TRIANGLE_VECTORS * LANES)
#pragma GCC unroll 4
    for (int v = 0; v < TRIANGLE_VECTORS; v += short_parts(type), q += sizeof(lanes), k += sizeof(lanes)) {
      lanes y[4][2];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++)
        if (first + r >= from) short_load_words(q + r * t->step[a], y[r], type);
#pragma GCC unroll 8
      for (int j = from; j < to; j++) {
        lanes z[2];
        if (rows == 1 && TILE_TERMS == 1) /* the operand of its one instruction */
          z[0] = lanes_load((const real *)(const void *)(k + (j - from) * t->step[b]));
        else
          short_load_words(k + (j - from) * t->step[b], z, type);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          lanes *at = &sum[(j - from) / keys][j % keys * rows + r];
          if (first + r >= j) *at = tile_step(y[r][0], z[0], *at);
        }
      }
    }
#pragma GCC unroll 4
  for (int m = 0; m < (to - from + keys - 1) / keys; m++) x[m] = lanes_sums(sum[m]);
}

/* All of their tiles. */
WORD void triangle_dots(const short_triangle *t, int a, int b, int first, int rows, lanes x[4], attend_type type) {
  const int keys = LANES / rows, last = first + rows, count = first * rows + rows * (rows + 1) / 2;
  if (count <= TRIANGLE_SUMS) {
    triangle_tiles(t, a, b, first, rows, 0, last, x, type);
    return;
  }
#pragma GCC unroll 4
  for (int j = 0; j < last; j += keys)
    triangle_tiles(t, a, b, first, rows, j, j + keys < last ? j + keys : last, x + j / keys, type);
}

/* P and scale * dS of the block of queries from `first` on, of n tokens: constants. Returns 0, or NaN where scores or
 * dP are not finite. */
WORD lanes triangle_gradient(const short_triangle *t, int n, int first, attend_type type) {
  const int rows = triangle_rows(n, first), keys = LANES / rows, tiles = (first + rows + keys - 1) / keys;
  lanes x[4], z[4], check = lanes_zero();
  triangle_dots(t, PAIR_Q, PAIR_K, first, rows, x, type);
  triangle_dots(t, PAIR_D_OUT, PAIR_V, first, rows, z, type);
#pragma GCC unroll 4
  for (int m = 0; m < tiles; m++) {
    x[m] = lanes_mul(x[m], lanes_set1(t->factor));
    check = lanes_fma(z[m], lanes_zero(), lanes_fma(x[m], lanes_zero(), check));
    if ((m + 1) * keys > first + 1)
      x[m] = lanes_select(lanes_less(lanes_set1((real)(first - m * keys)), lanes_load(triangle_leads[rows])),
                          lanes_set1(-(real)INFINITY), x[m]);
  }
  short_softmax_gradient(rows, tiles, x, z, lanes_set1(t->scale));
#pragma GCC unroll 4
  for (int m = 0; m < tiles; m++) {
    const int at = TRIANGLE_MAX * first + m * LANES;
    if (TILE_TERMS == 2 && (m + 1) * keys > first + 1) {
      const lane_mask hidden = lanes_less(lanes_set1((real)(first - m * keys)), lanes_load(triangle_leads[rows]));
      x[m] = lanes_select(hidden, lanes_zero(), x[m]), z[m] = lanes_select(hidden, lanes_zero(), z[m]);
    }
    lanes_store(t->p + at, tile_words(x[m], rows == 1 ? lanes_zero() : lanes_rotate(x[m], 1)));
    lanes_store(t->ds + at, tile_words(z[m], rows == 1 ? lanes_zero() : lanes_rotate(z[m], 1)));
    if (TILE_TERMS == 2) lanes_store(t->ds_across + at, tile_words(z[m], lanes_rotate(z[m], rows)));
  }
  return check;
}

/* One term of `a` for the rows `from` … `to` - 1 of an output whose first is `first`: its query i and key j, one of
 * which each row replaces by itself. */
WORD void triangle_term(lanes sum[SHORT_PRODUCT_ROWS][8], const real *a, int n, bool of_queries, int first, int term,
                        const char *x, const char *second, int from, int to, attend_type type) {
  lanes p[SHORT_PRODUCT_ROWS];
#pragma GCC unroll 5
  for (int r = 0; r < SHORT_PRODUCT_ROWS; r++) {
    if (r < from || r >= to) continue;
    p[r] = lanes_set1(a[of_queries ? triangle_at(n, first + r, term) : triangle_at(n, term, first + r)]);
  }
  short_product_step(sum, p, x, second, from, to, TRIANGLE_VECTORS, type);
}

/* Rows `first` … `first` + rows - 1 of an output, of queries or of keys: the sum over those that they see, or that see
 * them, of `a` times rows of x. All but pointers are constants. */
WORD void triangle_product(const short_triangle *t, int n, int out, const real *a, int in, int first, int rows,
                           attend_type type) {
  const bool of_queries = out == PAIR_D_Q;
  const int64_t step = t->step[in];
  const char *x = t->rows[in];
  for (int64_t c = 0; c < t->columns; c += TRIANGLE_VECTORS * LANES) {
    lanes sum[SHORT_PRODUCT_ROWS][8];
#pragma GCC unroll 5
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
      for (int v = 0; v < TRIANGLE_VECTORS; v++) sum[r][v] = lanes_zero();
#pragma GCC unroll 8
    for (int at = 0; at < TRIANGLE_MAX; at += TILE_TERMS) {
      if (of_queries ? at >= first + rows : at < first || at >= n) continue;
      const char *here = x + at * step, *second = TILE_TERMS == 2 && at + 1 < n ? here + step : NULL;
      const int own = at - first; /* row that only one of two terms is for */
      if (of_queries) {
        if (TILE_TERMS == 2 && own >= 0) triangle_term(sum, a, n, true, first, at, here, NULL, own, own + 1, type);
        const int from = own + TILE_TERMS - 1;
        triangle_term(sum, a, n, true, first, at, here, second, from < 0 ? 0 : from, rows, type);
      } else {
        triangle_term(sum, a, n, false, first, at, here, second, 0, own < rows ? own + 1 : rows, type);
        if (TILE_TERMS == 2 && second && own + 1 < rows)
          triangle_term(sum, a, n, false, first, at, NULL, second, own + 1, own + 2, type);
      }
    }
    short_product_store(t->rows[out] + first * t->step[out], t->step[out], c, sum, rows, TRIANGLE_VECTORS,
                        t->stream[out], t->columns, type);
    x += TRIANGLE_VECTORS * LANES * (int)attend_type_size(type);
  }
}
WORD void triangle_products(const short_triangle *t, int n, int out, const real *a, int in, attend_type type) {
  if (!t->rows[out]) return;
  const int some = n > SHORT_PRODUCT_ROWS ? 4 : n;
  triangle_product(t, n, out, a, in, 0, some, type);
  if (some < n) triangle_product(t, n, out, a, in, some, n - some, type);
}

/* One pair of n tokens, a constant. Are its scores and dP finite? (The next pair's scores and softmax before this one's
 * products, so that one has something to wait beside: 5% slower in f32, 3% faster at 5 tokens in bf16.) */
WORD bool short_triangle_as(const short_triangle *t, int n) {
  const attend_type type = short_type(REAL_TYPE);
  if (!TRIANGLE_MAX) return true;
  triangle_ask(t, n, PAIR_Q, type);
  lanes check = triangle_gradient(t, n, 0, type);
  triangle_ask(t, n, PAIR_D_OUT, type);
  if (triangle_rows(n, 0) < n) {
    const int second = triangle_rows(n, 0), third = second + triangle_rows(n, second);
    check = lanes_add(check, triangle_gradient(t, n, second, type));
    if (third < n) check = lanes_add(check, triangle_gradient(t, n, third, type));
  }
  triangle_ask_ends(t, n, PAIR_D_Q, type);
  triangle_products(t, n, PAIR_D_Q, t->ds_across, PAIR_K, type);
  triangle_ask(t, n, PAIR_K, type);
  triangle_ask_ends(t, n, PAIR_D_K, type);
  triangle_products(t, n, PAIR_D_K, t->ds, PAIR_Q, type);
  triangle_ask(t, n, PAIR_V, type);
  triangle_ask_ends(t, n, PAIR_D_V, type);
  triangle_products(t, n, PAIR_D_V, t->p, PAIR_D_OUT, type);
  return !mask_any(lanes_unordered(check));
}
static __attribute__((noinline)) bool short_triangle_2(const short_triangle *t) { return short_triangle_as(t, 2); }
static __attribute__((noinline)) bool short_triangle_3(const short_triangle *t) { return short_triangle_as(t, 3); }
static __attribute__((noinline)) bool short_triangle_4(const short_triangle *t) { return short_triangle_as(t, 4); }
static __attribute__((noinline)) bool short_triangle_5(const short_triangle *t) { return short_triangle_as(t, 5); }
static __attribute__((noinline)) bool short_triangle_6(const short_triangle *t) { return short_triangle_as(t, 6); }
static __attribute__((noinline)) bool short_triangle_7(const short_triangle *t) { return short_triangle_as(t, 7); }
static __attribute__((noinline)) bool short_triangle_8(const short_triangle *t) { return short_triangle_as(t, 8); }
static bool short_triangle_of(const short_triangle *t, int n) {
  switch (n) {
  case 2:
    return short_triangle_2(t);
  case 3:
    return short_triangle_3(t);
  case 4:
    return short_triangle_4(t);
  case 5:
    return short_triangle_5(t);
  case 6:
    return short_triangle_6(t);
  case 7:
    return short_triangle_7(t);
  default:
    return short_triangle_8(t);
  }
}
