/* SPDX-License-Identifier: MIT */
/* Short sequences: the products that make rows, of O and of the gradients, and how rows are stored. */

/* ---- Rows past the cache ---- */

/* `count` bytes to somewhere in a row of `bytes` that does not begin where a line does, as those of malloc's large
 * arrays: the row's whole lines go past the cache in parts, the others, which hold ends of other rows, through it. */
WORD void short_stream_parts(char *to, const char *from, int count, const char *row, int64_t bytes) {
  const uintptr_t first = ((uintptr_t)row + 63) & ~(uintptr_t)63,
                  last = ((uintptr_t)row + (uintptr_t)bytes) & ~(uintptr_t)63;
#pragma GCC unroll 8
  for (int at = 0; at < count; at += (int)sizeof(stream_part))
    if ((uintptr_t)to + (uintptr_t)at >= first && (uintptr_t)to + (uintptr_t)at < last)
      lanes_stream_part(to + at, from + at);
    else
      memcpy(to + at, from + at, sizeof(stream_part));
}
static __attribute__((noinline)) void short_stream_two(char *to, const lanes x[2], const char *row, int64_t bytes,
                                                       attend_type type) {
  char pair[2 * sizeof(lanes)];
  lanes_store_pair(pair, x, type);
  short_stream_parts(to, pair, type == REAL_TYPE ? (int)sizeof pair : 2 * LANES * (int)sizeof(uint16_t), row, bytes);
}

/* Two vectors from column c on of a row of `columns`. */
WORD void short_stream(char *row, int64_t c, const lanes x[2], int64_t columns, attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type);
  if ((uintptr_t)row % 64 == 0) {
    lanes_stream_pair(row + c * size, x, type);
    return;
  }
  const lanes copy[2] = {x[0], x[1]}; /* x itself, a tile's sums, would go to memory for the call */
  short_stream_two(row + c * size, copy, row, columns * size, type);
}

/* ---- Products ---- */

/* out[r, :] = factor[r] * (sums[r][:] + sum over t of A[r, t] * x[t][:]). With words of two elements A is of words, t
 * counts them, and each meets two rows of x. */
typedef struct short_product {
  const real *a, *visible; /* visible: indexed like a; where it is 0 the term is left out. NULL: all count. With words
                              of two elements what is visible follows from first and last */
  int64_t a_step;
  bool along; /* A[r, t] is a[r * a_step + t * TILE_TERMS], else a[t * a_step + r] */
  vector_rows x;
  int rows;
  const uint8_t *first, *last; /* terms of each row; both ascend */
  unsigned stairs;             /* of rows, as in short_ranges; 0 if `finite` is wanted, where all rows need all terms */
  int64_t columns;
  const real *factor; /* NULL: 1 */
  attend_matrix out;  /* data NULL: the sums stay in `sums` */
  real *sums;         /* [rows][columns padded], begins with them; NULL: begin with 0 */
  bool add;
  bool stream;  /* past the cache */
  bool *finite; /* NULL: not wanted; else becomes false if a term of NaN or Inf was added, visible or not */
  short_ahead *ahead;
} short_product;

/* `vectors` sums of row r from column c on are added to t->sums, and stored where they are not just to be stored in
 * whole vectors: added, strided, a tail. */
static void short_product_rest(const short_product *t, int r, int64_t c, real *sum, int vectors, attend_type type) {
  const int parts = short_parts(type);
  const int64_t size = (int64_t)attend_type_size(type), col = t->out.col, padded = short_padded(t->columns, type);
  for (int v = 0; t->sums && v < vectors; v++) {
    real *at = t->sums + r * padded + c + v * LANES;
    lanes_store(sum + v * LANES, lanes_add(lanes_load(sum + v * LANES), lanes_load(at)));
    lanes_store(at, lanes_load(sum + v * LANES));
  }
  if (!t->out.data) return;
  for (; vectors > 0 && c < t->columns; vectors -= parts, c += parts * LANES, sum += parts * LANES) {
    real copy[LANES] = {0};
    int64_t count = t->columns - c < parts * LANES ? t->columns - c : parts * LANES;
    char *to = t->out.data + (r * t->out.row + c * col) * size;
    lanes y[2], before[2];
    if (t->add) short_gather(copy, to, col, count, size);
    if (parts == 2)
      lanes_load_pair((const char *)copy, before, type);
    else
      before[0] = lanes_load_type(copy, LANES, type);
    for (int part = 0; part < parts; part++) {
      y[part] = lanes_load(sum + part * LANES);
      if (t->factor) y[part] = lanes_mul(y[part], lanes_set1(t->factor[r]));
      if (t->add) y[part] = lanes_add(y[part], before[part]);
    }
    if (parts == 2)
      lanes_store_pair((char *)copy, y, type);
    else
      lanes_store_type(copy, y[0], LANES, type);
    short_scatter(to, copy, col, count, size);
  }
}

enum { SHORT_PRODUCT_ROWS = 5 }; /* of a tile, at most */

/* One term of rows `from` … `to` - 1, *p[r] of each. What one row alone loads may be the operand of its instruction.
 * `second` is the second row of x for words of two elements, where either may be NULL, a constant: then that element
 * does not count. */
WORD void short_product_step(lanes sum[SHORT_PRODUCT_ROWS][8], const real *const p[SHORT_PRODUCT_ROWS], const char *x,
                             const char *second, int from, int to, int vectors, attend_type as) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v += short_parts(as)) {
    const int64_t at = v / short_parts(as) * (int64_t)sizeof(lanes);
    lanes y[2];
    if (to - from == 1 && as != TYPE_BF16)
      y[0] = lanes_load((const real *)(const void *)(x + at));
    else
      short_load_term(x ? x + at : NULL, second ? second + at : NULL, y, as);
#pragma GCC unroll 2
    for (int part = 0; part < short_parts(as); part++)
#pragma GCC unroll 5
      for (int r = from; r < to; r++) sum[r][v + part] = tile_step_at(p[r], y[part], sum[r][v + part]);
  }
}
WORD void short_product_term(lanes sum[SHORT_PRODUCT_ROWS][8], const real *a, int64_t a_row, const char *x,
                             const char *second, int from, int to, int vectors, attend_type as) {
  const real *p[SHORT_PRODUCT_ROWS];
#pragma GCC unroll 5
  for (int r = from; r < to; r++) p[r] = a + r * a_row;
  short_product_step(sum, p, x, second, from, to, vectors, as);
}

/* sum[r][v] = A x over `terms` of n rows, a constant, whether n terms are `stairs`, a constant: the last ones, term i
 * of row i and later ones; or, where rows of A lie `along` in memory, the first, term i of rows up to i. Words of two
 * elements are of two terms, rows of x that follow each other; if `half`, the first is of one, its second. Rows share
 * what they load; eight sums are enough to wait for none. `feed` may be NULL, a constant. */
WORD void short_product_sums(lanes sum[SHORT_PRODUCT_ROWS][8], const real *a, int64_t a_row, int64_t a_term,
                             const char *x, int64_t next, int terms, bool half, int n, int vectors, bool along,
                             bool stairs, short_feed *feed, attend_type as) {
  const int steps = stairs ? n : 0;
  int k = terms - steps;
#pragma GCC unroll 5
  for (int r = 0; r < n; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sum[r][v] = lanes_zero();
  if (along)
#pragma GCC unroll 5
    for (int i = 0; i < steps; i += TILE_TERMS, a += a_term, x += TILE_TERMS * next) {
      short_product_term(sum, a, a_row, x, x + next, 0, i + 1, vectors, as);
      if (TILE_TERMS == 2) short_product_term(sum, a, a_row, NULL, x + next, i + 1, i + 2, vectors, as);
    }
  if (TILE_TERMS == 2 && half) {
    short_product_term(sum, a, a_row, NULL, x + next, 0, n, vectors, as);
    k--, a += a_term, x += TILE_TERMS * next;
  }
  for (; k >= TILE_TERMS; k -= TILE_TERMS, a += a_term, x += TILE_TERMS * next) {
    short_feed_step(feed);
    short_product_term(sum, a, a_row, x, x + next, 0, n, vectors, as);
  }
  if (TILE_TERMS == 2 && k > 0) short_product_term(sum, a, a_row, x, NULL, 0, n, vectors, as);
  if (!along)
#pragma GCC unroll 5
    for (int i = 0; i < steps; i += TILE_TERMS, a += a_term, x += TILE_TERMS * next) {
      short_feed_step(feed);
      if (TILE_TERMS == 2) short_product_term(sum, a, a_row, x, NULL, i, i + 1, vectors, as);
      short_product_term(sum, a, a_row, x, x + next, i + TILE_TERMS - 1, n, vectors, as);
    }
}
/* Were all terms finite? All rows had the same ones, so that one row, even with a factor 0, tells. */
WORD bool short_product_finite(lanes sum[SHORT_PRODUCT_ROWS][8], int vectors) {
  lanes check = lanes_zero();
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) check = lanes_fma(sum[0][v], lanes_zero(), check);
  return !mask_any(lanes_unordered(check));
}

/* Sums of n rows from column c on to rows of `columns`, `vectors` of them, an even number: constants. */
WORD void short_product_store(char *row, int64_t step, int64_t c, lanes sum[SHORT_PRODUCT_ROWS][8], int n, int vectors,
                              bool stream, int64_t columns, attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type);
  if (stream) {
#pragma GCC unroll 5
    for (int r = 0; r < n; r++, row += step)
#pragma GCC unroll 8
      for (int v = 0; v + 1 < vectors; v += 2) short_stream(row, c + v * LANES, sum[r] + v, columns, type);
    return;
  }
#pragma GCC unroll 5
  for (int r = 0; r < n; r++, row += step)
#pragma GCC unroll 8
    for (int v = 0; v + 1 < vectors; v += 2) lanes_store_pair(row + (c + v * LANES) * size, sum[r] + v, type);
}

/* What the tiles of some rows share. */
typedef struct short_product_part {
  int row, terms;
  bool half; /* the first word is of one term, its second */
  const real *a;
  const char *x;         /* their first term */
  char *out;             /* their first row */
  int64_t step, columns; /* of out, in bytes; those that are just to be stored in whole vectors */
} short_product_part;

/* n rows, `vectors` from column c on: constants, as in short_product_sums. */
WORD void short_product_tile(const short_product *t, const short_product_part *part, int n, int64_t c, int vectors,
                             bool along, bool stairs, attend_type type) {
  const attend_type as = short_row_type(type);
  lanes sum[SHORT_PRODUCT_ROWS][8];
  short_product_sums(sum, part->a, along ? t->a_step : 1, along ? TILE_TERMS : t->a_step,
                     part->x + c * (int64_t)attend_type_size(as), t->x.step, part->terms, part->half, n, vectors, along,
                     stairs, NULL, as);
  if (!stairs && t->finite && !short_product_finite(sum, vectors)) *t->finite = false;
  short_ahead_rows(t->ahead, t->ahead->pace);
  if (vectors % 2 || c + vectors * LANES > part->columns) {
    real copy[SHORT_PRODUCT_ROWS][8 * LANES];
#pragma GCC unroll 5
    for (int r = 0; r < n; r++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) lanes_store(copy[r] + v * LANES, sum[r][v]);
    for (int r = 0; r < n; r++) short_product_rest(t, part->row + r, c, copy[r], vectors, type);
    return;
  }
  if (t->factor) {
#pragma GCC unroll 5
    for (int r = 0; r < n; r++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sum[r][v] = lanes_mul(sum[r][v], lanes_set1(t->factor[part->row + r]));
  }
  short_product_store(part->out, part->step, c, sum, n, vectors, t->stream, t->columns, type);
}

/* All columns of n rows from r on: all but these are constants. Of 16 registers the sums leave some to load into. */
WORD void short_product_rows(const short_product *t, int r, int n, bool along, bool stairs, attend_type type) {
  const int64_t padded = short_padded(t->columns, type), parts = short_parts(type);
  const int most = n == 1 ? 8 : n > 2 && LANES * sizeof(real) < 64 ? 2 : 4, first = t->first[r];
  const int word = first / TILE_TERMS, half = first % TILE_TERMS;
  const bool whole = t->out.col == 1 && t->out.data && !t->sums && !t->add;
  short_product_part part = {.row = r, .terms = t->last[r + n - 1] - first};
  part.half = half && part.terms > 0;
  part.a = t->a + r * (along ? t->a_step : 1) + word * (along ? TILE_TERMS : t->a_step);
  part.x = t->x.rows + (first - half) * t->x.step;
  part.step = t->out.row * (int64_t)attend_type_size(type), part.columns = whole ? t->columns : 0;
  part.out = whole ? t->out.data + r * part.step : NULL;
  int64_t c = 0;
#define TILES(vectors)                                                                                                 \
  for (; vectors <= most && vectors >= parts && c + vectors * LANES <= padded; c += vectors * LANES)                   \
    short_product_tile(t, &part, n, c, vectors, along, stairs, type);
  TILES(8) TILES(4) TILES(2) TILES(1)
#undef TILES
}

/* One row, one vector of x, leaving out what is not visible: 0 times NaN or Inf would not be 0. */
WORD void short_careful_tile(const short_product *t, int r, int64_t c, attend_type type) {
  const attend_type as = short_row_type(type);
  const int parts = short_parts(as);
  const int64_t a_row = t->along ? t->a_step : 1, a_term = t->along ? 1 : t->a_step;
  lanes sum[2] = {lanes_zero(), lanes_zero()}, y[2];
  for (int k = t->first[r]; k < t->last[r]; k++) {
    if (t->visible[r * a_row + k * a_term] == 0) continue;
    short_load(t->x.rows + k * t->x.step + c * (int64_t)attend_type_size(as), y, as);
    for (int part = 0; part < parts; part++)
      sum[part] = lanes_fma(lanes_set1(t->a[r * a_row + k * a_term]), y[part], sum[part]);
  }
  real copy[2 * LANES];
  for (int part = 0; part < parts; part++) lanes_store(copy + part * LANES, sum[part]);
  short_product_rest(t, r, c, copy, parts, type);
}

WORD void short_product_as(const short_product *t, bool along, attend_type type) {
  const int64_t padded = short_padded(t->columns, type), parts = short_parts(type);
  if (TILE_TERMS == 2 && t->visible) {
    for (int r = 0; r < t->rows; r++) short_product_rows(t, r, 1, along, false, type);
    return;
  }
  if (t->visible) {
    for (int r = 0; r < t->rows; r++)
      for (int64_t c = 0; c < padded; c += parts * LANES) short_careful_tile(t, r, c, type);
    return;
  }
  /* With few registers a tile of four rows has two vectors of each: 16 tokens, rows past the cache, took 7% longer. */
  const bool four = LANES * sizeof(real) >= 64 || !t->stream;
  const int five = TILE_TERMS == 1 && t->stairs & SHORT_FIVE ? 5 : 0;
  int r = 0;
  for (; four && r + 4 <= t->rows - five; r += 4)
    if (t->stairs >> (r / 4) & 1 && (along ? t->first[r] : t->last[r + 3]) % TILE_TERMS == 0) /* in whole words */
      short_product_rows(t, r, 4, along, true, type);
    else
      short_product_rows(t, r, 4, along, false, type);
  if (four && five) {
    short_product_rows(t, r, 5, along, true, type);
    return;
  }
  for (; r + 2 <= t->rows; r += 2) short_product_rows(t, r, 2, along, false, type);
  if (r < t->rows) short_product_rows(t, r, 1, along, false, type);
}
/* A function for each type: where one has them all, gcc keeps more on the stack, and a call for one pair of 5 tokens
 * takes 365 ns, not 320. */
WORD void short_multiply_as(const short_product *t, attend_type type) {
  if (t->along)
    short_product_as(t, true, type);
  else
    short_product_as(t, false, type);
}
static __attribute__((noinline)) void short_multiply_f16(const short_product *t) { short_multiply_as(t, TYPE_F16); }
static __attribute__((noinline)) void short_multiply_bf16(const short_product *t) { short_multiply_as(t, TYPE_BF16); }
static __attribute__((noinline)) void short_multiply_real(const short_product *t) { short_multiply_as(t, REAL_TYPE); }
static void short_multiply(const short_product *t, attend_type any) {
  const attend_type type = short_type(any);
  if (type == TYPE_F16)
    short_multiply_f16(t);
  else if (type == TYPE_BF16)
    short_multiply_bf16(t);
  else
    short_multiply_real(t);
}
