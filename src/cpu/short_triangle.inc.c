/* SPDX-License-Identifier: MIT */
/* Backward on triangles: n tokens, each of which sees itself and those before it, with nothing else about their scores.
 * All that the steps of short_gradient_blocks.inc.c ask at run time, how many queries a block has, which of its tiles
 * are whole, where a sum ends, is a constant here if n is at most TRIANGLE_CONSTANT: the compiler unrolls a pair into
 * little more than its multiply-adds. More tokens, whole blocks of 4, are loops over the two tiles that there are. */

static const attend_type triangle_type = TILE_TERMS == 2 ? TYPE_BF16 : REAL_TYPE;

/* The matrices of a (sequence, head): first those of its queries. */
enum { PAIR_Q, PAIR_D_OUT, PAIR_D_Q, PAIR_K, PAIR_V, PAIR_D_K, PAIR_D_V, PAIR_MATRICES };
static const operand_id pair_operands[] = {OPERAND_Q, OPERAND_D_OUT, OPERAND_D_Q, OPERAND_K,
                                           OPERAND_V, OPERAND_D_K,   OPERAND_D_V};

/* Tokens, at most: of a constant number, and of whole blocks of 4, whose tiles are a vector. */
enum { TRIANGLE_CONSTANT = LANES < 8 ? 0 : 8, TRIANGLE_FOURS = LANES < 16 ? 0 : SHORT_MAX };
enum { TRIANGLE_MAX = TRIANGLE_FOURS > TRIANGLE_CONSTANT ? TRIANGLE_FOURS : TRIANGLE_CONSTANT };
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
  short_feed feed;                  /* what to ask for of inputs instead, in the order of memory */
} short_triangle;

/* `rows` of them from `first` on, of one matrix, from beginning to end; unless `feed` asks for them, NULL or not a
 * constant. */
WORD void triangle_ask(const short_triangle *t, int first, int rows, int of, const short_feed *feed) {
  const int64_t bytes = t->columns * (int64_t)attend_type_size(triangle_type), step = t->step[of];
  const char *row = t->ahead[of];
  if (feed || !row) return;
  row += first * step;
  for (int64_t at = 0; at < bytes; at += 64)
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) __builtin_prefetch(row + r * step + at, 0, 2);
}
/* The lines in which rows end that are stored past the cache: short_ahead_ends says why. */
WORD void triangle_ask_ends(const short_triangle *t, int n, int of) {
  const int64_t bytes = t->columns * (int64_t)attend_type_size(triangle_type), step = t->step[of];
  const char *row = t->ahead[of];
  if (!row || !t->stream[of] || (uintptr_t)row % 64 == 0) return;
#pragma GCC unroll 8
  for (int r = 0; r < n; r++) __builtin_prefetch(row + r * step + bytes - 1, 0, 2);
}

/* The tokens of one; 0: it is none. */
static int short_triangle_tokens(const short_ranges *range, int64_t queries, int64_t keys) {
  bool is_one = queries == keys && keys >= 2 && keys <= TRIANGLE_MAX && (keys <= TRIANGLE_CONSTANT || keys % 4 == 0);
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

/* Products of `rows` rows of `a` from `first` on with `count` rows of `b` from `from` on, to tiles of scores from x on;
 * row r of a meets those of b up to lead + r: all but first and from are constants. */
WORD void triangle_tiles(const short_triangle *t, int a, int b, int first, int rows, int from, int count, int lead,
                         lanes *x, int64_t columns, short_feed *feed) {
  const int keys = LANES / rows, tiles = (count + keys - 1) / keys;
  const char *q = t->rows[a] + first * t->step[a], *k = t->rows[b] + from * t->step[b];
  lanes sum[4][LANES];
#pragma GCC unroll 4
  for (int m = 0; m < tiles; m++)
#pragma GCC unroll 16
    for (int l = 0; l < LANES; l++) sum[m][l] = lanes_zero();
  for (int64_t c = 0; c < columns; c += TRIANGLE_VECTORS * LANES)
#pragma GCC unroll 4
    for (int v = 0; v < TRIANGLE_VECTORS; v += short_parts(triangle_type), q += sizeof(lanes), k += sizeof(lanes)) {
      lanes y[4][2];
      short_feed_step(feed);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++)
        if (lead + r >= 0) short_load_words(q + r * t->step[a], y[r], triangle_type);
#pragma GCC unroll 8
      for (int j = 0; j < count; j++) {
        lanes z[2];
        if (rows == 1 && TILE_TERMS == 1) /* the operand of its one instruction */
          z[0] = lanes_load((const real *)(const void *)(k + j * t->step[b]));
        else
          short_load_words(k + j * t->step[b], z, triangle_type);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          lanes *at = &sum[j / keys][j % keys * rows + r];
          if (lead + r >= j) *at = tile_step(y[r][0], z[0], *at);
        }
      }
    }
#pragma GCC unroll 4
  for (int m = 0; m < tiles; m++) x[m] = lanes_sums(sum[m]);
}

/* All tiles of the block of queries from `first` on, a constant. */
WORD void triangle_dots(const short_triangle *t, int a, int b, int first, int rows, lanes x[4], int64_t columns,
                        short_feed *feed) {
  const int keys = LANES / rows, last = first + rows, sums = first * rows + rows * (rows + 1) / 2;
  if (sums <= TRIANGLE_SUMS) {
    triangle_tiles(t, a, b, first, rows, 0, last, first, x, columns, feed);
    return;
  }
#pragma GCC unroll 4
  for (int j = 0; j < last; j += keys)
    triangle_tiles(t, a, b, first, rows, j, j + keys < last ? keys : last - j, first - j, x + j / keys, columns, feed);
}
/* The same of a block of 4 whose tiles are whole but for the last. */
WORD void triangle_dots_of_four(const short_triangle *t, int a, int b, int first, lanes *x, int64_t columns,
                                short_feed *feed) {
  for (int j = 0; j < first; j += 4) triangle_tiles(t, a, b, first, 4, j, 4, 4, x + j / 4, columns, feed);
  triangle_tiles(t, a, b, first, 4, first, 4, 0, x + first / 4, columns, feed);
}

/* Of tile m, of a block of `rows` queries from `first` on, what its queries do not see. */
WORD lane_mask triangle_hidden(int first, int rows, int m) {
  return lanes_less(lanes_set1((real)(first - m * (LANES / rows))), lanes_load(triangle_leads[rows]));
}

/* The blocks that go through the softmax together, and their tiles: constants, or any number of tiles of one block. */
typedef struct triangle_blocks {
  int count, first[SHORT_SOFTMAXES], rows[SHORT_SOFTMAXES], tiles[SHORT_SOFTMAXES];
} triangle_blocks;
WORD void triangle_blocks_add(triangle_blocks *b, int first, int rows) {
  const int keys = LANES / rows;
  b->first[b->count] = first, b->rows[b->count] = rows, b->tiles[b->count++] = (first + rows + keys - 1) / keys;
}

/* From products of rows to P and scale * dS among the tiles. Returns 0, or NaN where scores, dP or delta are not
 * finite. */
WORD lanes triangle_softmax(const short_triangle *t, const triangle_blocks *of, lanes (*x)[SHORT_BLOCK_TILES],
                            lanes (*z)[SHORT_BLOCK_TILES]) {
  lanes check = lanes_zero();
#pragma GCC unroll 4
  for (int b = 0; b < of->count; b++)
#pragma GCC unroll 4
    for (int m = 0; m < of->tiles[b]; m++) {
      x[b][m] = lanes_mul(x[b][m], lanes_set1(t->factor));
      check = lanes_fma(z[b][m], lanes_zero(), lanes_fma(x[b][m], lanes_zero(), check));
      if ((m + 1) * (LANES / of->rows[b]) > of->first[b] + 1)
        x[b][m] = lanes_select(triangle_hidden(of->first[b], of->rows[b], m), lanes_set1(-(real)INFINITY), x[b][m]);
    }
  check = lanes_add(check, short_softmax_gradient(of->count, of->rows, of->tiles, x, z, lanes_set1(t->scale)));
#pragma GCC unroll 4
  for (int b = 0; b < of->count; b++)
#pragma GCC unroll 4
    for (int m = 0; m < of->tiles[b]; m++) {
      const int first = of->first[b], rows = of->rows[b], at = TRIANGLE_MAX * first + m * LANES;
      lanes p = x[b][m], ds = z[b][m];
      if (TILE_TERMS == 2 && (m + 1) * (LANES / rows) > first + 1) {
        const lane_mask hidden = triangle_hidden(first, rows, m);
        p = lanes_select(hidden, lanes_zero(), p), ds = lanes_select(hidden, lanes_zero(), ds);
      }
      lanes_store(t->p + at, tile_words(p, rows == 1 ? lanes_zero() : lanes_rotate(p, 1)));
      lanes_store(t->ds + at, tile_words(ds, rows == 1 ? lanes_zero() : lanes_rotate(ds, 1)));
      if (TILE_TERMS == 2) lanes_store(t->ds_across + at, tile_words(ds, lanes_rotate(ds, rows)));
    }
  return check;
}

/* Products of the block of queries from `first` on, a constant, of n tokens, one too. */
WORD void triangle_block(const short_triangle *t, int n, int first, triangle_blocks *of, lanes (*x)[SHORT_BLOCK_TILES],
                         lanes (*z)[SHORT_BLOCK_TILES], int64_t columns, short_feed *feed) {
  const int rows = triangle_rows(n, first);
  triangle_dots(t, PAIR_Q, PAIR_K, first, rows, x[of->count], columns, feed);
  triangle_dots(t, PAIR_D_OUT, PAIR_V, first, rows, z[of->count], columns, feed);
  triangle_blocks_add(of, first, rows);
}
/* P and dS of n tokens, a constant. */
WORD lanes triangle_gradient(const short_triangle *t, int n, int64_t columns, short_feed *feed) {
  const int second = triangle_rows(n, 0), third = second < n ? second + triangle_rows(n, second) : n;
  triangle_blocks of;
  lanes x[SHORT_SOFTMAXES][SHORT_BLOCK_TILES], z[SHORT_SOFTMAXES][SHORT_BLOCK_TILES];
  of.count = 0;
  triangle_ask(t, 0, n, PAIR_Q, feed);
  triangle_block(t, n, 0, &of, x, z, columns, feed);
  triangle_ask(t, 0, n, PAIR_D_OUT, feed);
  if (second < n) triangle_block(t, n, second, &of, x, z, columns, feed);
  if (third < n) triangle_block(t, n, third, &of, x, z, columns, feed);
  return triangle_softmax(t, &of, x, z);
}
/* Of whole blocks of 4. */
WORD lanes triangle_gradient_of_fours(const short_triangle *t, int n, int64_t columns, short_feed *feed) {
  lanes x[SHORT_MAX / 4][SHORT_BLOCK_TILES], z[SHORT_MAX / 4][SHORT_BLOCK_TILES], check = lanes_zero();
  int first = 0;
  do {
    triangle_ask(t, first, 4, PAIR_Q, feed);
    triangle_dots_of_four(t, PAIR_Q, PAIR_K, first, x[first / 4], columns, feed);
    triangle_dots_of_four(t, PAIR_D_OUT, PAIR_V, first, z[first / 4], columns, feed);
  } while ((first += 4) < n);
  triangle_blocks three = {0}, four = {0};
#pragma GCC unroll 4
  for (first = 0; first < 16; first += 4) {
    if (first < 12) triangle_blocks_add(&three, first, 4);
    triangle_blocks_add(&four, first, 4);
  }
  if (n == 12) return triangle_softmax(t, &three, x, z);
  check = triangle_softmax(t, &four, x, z);
  for (first = 16; first < n; first += 4) {
    triangle_blocks one = {0};
    triangle_blocks_add(&one, first, 4);
    check = lanes_add(check, triangle_softmax(t, &one, x + first / 4, z + first / 4));
  }
  return check;
}

/* One term of `a` for the rows `from` … `to` - 1 of an output whose first is `first`: its query i and key j, one of
 * which each row replaces by itself. */
WORD void triangle_term(lanes sum[SHORT_PRODUCT_ROWS][8], const real *a, int n, bool of_queries, int first, int term,
                        const char *x, const char *second, int from, int to) {
  const real *p[SHORT_PRODUCT_ROWS];
#pragma GCC unroll 5
  for (int r = 0; r < SHORT_PRODUCT_ROWS; r++) {
    if (r < from || r >= to) continue;
    p[r] = a + (of_queries ? triangle_at(n, first + r, term) : triangle_at(n, term, first + r));
  }
  short_product_step(sum, p, x, second, from, to, TRIANGLE_VECTORS, triangle_type);
}

/* The terms `begin` … `end` - 1 of rows `first` … `first` + rows - 1 of an output, of queries or of keys, which are
 * those that they see, or that see them. x is the row of the first of these. All but pointers are constants. */
WORD void triangle_terms(lanes sum[SHORT_PRODUCT_ROWS][8], const real *a, int n, bool of_queries, int first, int rows,
                         const char *x, int64_t step, int begin, int end, short_feed *feed) {
#pragma GCC unroll 8
  for (int at = begin; at < end; at += TILE_TERMS, x += TILE_TERMS * step) {
    const char *second = TILE_TERMS == 2 && at + 1 < n ? x + step : NULL;
    short_feed_step(feed);
    const int own = at - first; /* row that only one of two terms is for */
    if (of_queries) {
      const int from = own + TILE_TERMS - 1;
      if (TILE_TERMS == 2 && own >= 0) triangle_term(sum, a, n, true, first, at, x, NULL, own, own + 1);
      triangle_term(sum, a, n, true, first, at, x, second, from < 0 ? 0 : from, rows);
    } else {
      triangle_term(sum, a, n, false, first, at, x, second, 0, own < rows ? own + 1 : rows);
      if (TILE_TERMS == 2 && second && own + 1 < rows)
        triangle_term(sum, a, n, false, first, at, NULL, second, own + 1, own + 2);
    }
  }
}

/* Those rows, of n tokens: the sum over their terms of `a` times rows of `in`. n, `first` and rows are constants; but
 * where there are whole blocks of 4, `fours`, a constant, rows alone: a tile of any two blocks is like that of the two
 * blocks of 8 tokens. */
WORD void triangle_product(const short_triangle *t, int n, bool fours, int out, const real *a, int in, int first,
                           int rows, int64_t columns, short_feed *feed) {
  const bool of_queries = out == PAIR_D_Q;
  const int64_t step = t->step[in];
  const char *x = t->rows[in];
  const real *own = a + (TRIANGLE_MAX + 4) * first; /* of the rows with themselves */
  for (int64_t c = 0; c < columns; c += TRIANGLE_VECTORS * LANES) {
    lanes sum[SHORT_PRODUCT_ROWS][8];
#pragma GCC unroll 5
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
      for (int v = 0; v < TRIANGLE_VECTORS; v++) sum[r][v] = lanes_zero();
    if (!fours)
      triangle_terms(sum, a, n, of_queries, first, rows, x + (of_queries ? 0 : first) * step, step,
                     of_queries ? 0 : first, of_queries ? first + rows : n, feed);
    else if (of_queries) {
      for (int j = 0; j < first; j += 4)
        triangle_terms(sum, a + TRIANGLE_MAX * (first - 4) + 4 * j, 8, true, 4, 4, x + j * step, step, 0, 4, feed);
      triangle_terms(sum, own, 4, true, 0, 4, x + first * step, step, 0, 4, feed);
    } else {
      triangle_terms(sum, own, 4, false, 0, 4, x + first * step, step, 0, 4, feed);
      for (int i = first + 4; i < n; i += 4)
        triangle_terms(sum, a + TRIANGLE_MAX * (i - 4) + 4 * first, 8, false, 0, 4, x + i * step, step, 4, 8, feed);
    }
    short_product_store(t->rows[out] + first * t->step[out], t->step[out], c, sum, rows, TRIANGLE_VECTORS,
                        t->stream[out], columns, triangle_type);
    x += TRIANGLE_VECTORS * LANES * (int)attend_type_size(triangle_type);
  }
}
WORD void triangle_products(const short_triangle *t, int n, bool fours, int out, const real *a, int in, int64_t columns,
                            short_feed *feed) {
  if (!t->rows[out]) return;
  triangle_ask_ends(t, n, out);
  if (fours)
    for (int first = 0; first < n; first += 4) {
      triangle_ask(t, first, 4, out == PAIR_D_Q ? PAIR_K : out == PAIR_D_K ? PAIR_V : PAIR_D_OUT, feed);
      triangle_product(t, n, true, out, a, in, first, 4, columns, feed);
    }
  else if (n <= SHORT_PRODUCT_ROWS)
    triangle_product(t, n, false, out, a, in, 0, n, columns, feed);
  else {
    triangle_product(t, n, false, out, a, in, 0, 4, columns, feed);
    triangle_product(t, n, false, out, a, in, 4, n - 4, columns, feed);
  }
}

/* Lines of a step of short_feed_step, a constant: as few as are enough for about so many steps (5 tokens in f32: 273 ns
 * by 3, 292 by 4; 8: 386 and 409). The steps of `fours` are no constant (16: 1119 ns by 2, 1173 by 3). */
WORD int triangle_feed(int n, bool fours) {
  const int row = SHORT_COLUMNS * (int)attend_type_size(triangle_type),
            parts = SHORT_COLUMNS / TRIANGLE_VECTORS / LANES;
  int steps = 3 * n * parts / TILE_TERMS;
  if (fours) return 2;
  for (int first = 0, rows; first < n; first += rows) {
    rows = triangle_rows(n, first);
    steps += 2 * row / (int)sizeof(lanes);
    if (first > 0 && n > SHORT_PRODUCT_ROWS) steps += 12 * parts / TILE_TERMS;
  }
  return (4 * n * row / 64 + steps - 1) / steps;
}

/* One pair of n tokens, a constant unless in `fours`, one itself, as is whether inputs are `fed`: rows that a step does
 * not find to ask for would still part its loads. Are its scores, dP and delta finite? (The next pair's scores and
 * softmax before this one's products, so that one has something to wait beside: 5% slower in f32, 3% faster at 5 tokens
 * in bf16.) */
WORD bool short_triangle_as(const short_triangle *t, int n, bool fours, int64_t columns, bool fed) {
  if (fours ? !TRIANGLE_FOURS : TRIANGLE_MAX == 0) return true; /* there are none */
  short_feed own = t->feed, *feed = fed ? &own : NULL;
  own.bytes = n * columns * (int64_t)attend_type_size(triangle_type), own.lines = triangle_feed(n, fours);
  const lanes check = fours ? triangle_gradient_of_fours(t, n, columns, feed) : triangle_gradient(t, n, columns, feed);
  triangle_products(t, n, fours, PAIR_D_Q, t->ds_across, PAIR_K, columns, feed);
  if (!fours) triangle_ask(t, 0, n, PAIR_K, feed);
  triangle_products(t, n, fours, PAIR_D_K, t->ds, PAIR_Q, columns, feed);
  if (!fours) triangle_ask(t, 0, n, PAIR_V, feed);
  triangle_products(t, n, fours, PAIR_D_V, t->p, PAIR_D_OUT, columns, feed);
  return !mask_any(lanes_unordered(check));
}

/* Where rows have SHORT_COLUMNS these are a constant as well: up to 6% faster, with dot products of bf16
 * 5 to 20%. (As a copy of `t` with a constant in it instead of an argument of each step: up to 10% slower, since gcc
 * keeps all of it in registers or on the stack.) */
#define TRIANGLE_OF(name, n, fours, columns, fed)                                                                      \
  static __attribute__((noinline)) bool short_triangle_##name(const short_triangle *t, int tokens) {                   \
    (void)tokens;                                                                                                      \
    return short_triangle_as(t, n, fours, columns, fed);                                                               \
  }
#define TRIANGLE(name, n, fours)                                                                                       \
  TRIANGLE_OF(name, n, fours, SHORT_COLUMNS, false)                                                                    \
  TRIANGLE_OF(name##_fed, n, fours, SHORT_COLUMNS, true)                                                               \
  TRIANGLE_OF(name##_any, n, fours, t->columns, false)                                                                 \
  TRIANGLE_OF(name##_any_fed, n, fours, t->columns, true)
/* clang-format off */
TRIANGLE(2, 2, false) TRIANGLE(3, 3, false) TRIANGLE(4, 4, false) TRIANGLE(5, 5, false) TRIANGLE(6, 6, false)
TRIANGLE(7, 7, false) TRIANGLE(8, 8, false) TRIANGLE(fours, tokens, true)
#undef TRIANGLE
#undef TRIANGLE_OF

#define TRIANGLES(kind)                                                                                                \
  {                                                                                                                    \
    [2] = short_triangle_2##kind, short_triangle_3##kind, short_triangle_4##kind, short_triangle_5##kind,              \
    short_triangle_6##kind, short_triangle_7##kind, short_triangle_8##kind, short_triangle_fours##kind                 \
  }
typedef bool short_triangle_function(const short_triangle *t, int n);
static bool short_triangle_of(const short_triangle *t, int n, bool fed) {
  static short_triangle_function *const of[2][2][10] = {{TRIANGLES(_any), TRIANGLES(_any_fed)},
                                                        {TRIANGLES(), TRIANGLES(_fed)}};
  return of[t->columns == SHORT_COLUMNS][fed][n <= 8 ? n : 9](t, n);
}
#undef TRIANGLES
/* clang-format on */
