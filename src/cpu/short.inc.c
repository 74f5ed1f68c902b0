/* SPDX-License-Identifier: MIT */
/* What forward and backward on short sequences share. A whole (sequence, head) is one tile of at most SHORT_MAX queries
 * and keys, so its bytes, not its arithmetic, should be the bound:
 *
 *   S[j][i] = sum over c of K[j][c] Q[i][c]    lanes = dimensions, rows as they lie in memory; a tree of additions
 * turns LANES such sums into a vector whose lanes are queries passes, softmax                            lanes =
 * queries: those of scores.inc.c O[i][:] = sum over j of P[j][i] V[j][:]    lanes = dimensions, P broadcast: rows leave
 * as they came, past the cache
 *
 * Transposing Q instead and broadcasting K was measured: 1460 cycles for 5 queries of 64 dimensions on a 2.8 GHz
 * AVX-512 core, since 5 queries are transposed and multiplied like 16. Rows of the next (sequence, head) are asked for
 * one by one between the steps of this one: all at once they fill the core's line buffers, and everything waits. */

enum { SHORT_MAX = 32, SHORT_ROWS = LANES / 2, SHORT_WIDE = 2, SHORT_PAIRS = 64 };

/* Rows of a product's tile: as many as leave a register for a factor, of 32 or of 16. */
enum { SHORT_TALL = LANES * sizeof(real) >= 64 ? 8 : 6 };

/* Several (sequence, head) pairs go through each step together, so that the latency at the end of a step (a tree of
 * additions, an exponential) is hidden by the next pair: at most so many, and as many as have so many scores. */
enum { SHORT_BATCH = 8, SHORT_SCORES = 512 };

/* Matrix of `id` for sequence b, (query or key) head h. */
static inline attend_matrix short_matrix(const attend_problem *p, const attend_operands *o, operand_id id, int64_t b,
                                         int64_t h) {
  const attend_layout *l = &p->layout[id];
  bool keys = id == OPERAND_K || id == OPERAND_V;
  int64_t first = b * l->batch;
  if (keys && p->paged) first = 0;
  if (keys ? p->ragged_k : p->ragged_q) {
    operand_id offsets = keys ? OPERAND_K_OFFSETS : OPERAND_Q_OFFSETS;
    first = l->row * attend_load_index(o->data[offsets], b * p->layout[offsets].batch, p->layout[offsets].type);
  }
  char *data = o->data[id];
  if (data) data += (first + h * l->head) * (int64_t)attend_type_size(l->type);
  return (attend_matrix){data, l->row, l->col};
}

/* Do scores depend on more than the positions of query and key? Then a slice must say where it all is. */
static bool short_has_options(const attend_problem *p) {
  return attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_BIAS) || attend_has(p, OPERAND_ALIBI) ||
         attend_has(p, OPERAND_SINK) || p->dropout_threshold;
}

/* ---- Rows of the next pairs ---- */

typedef struct short_ahead {
  struct {
    const char *data;
    int64_t step;
    int bytes, rows;
  } part[4 * SHORT_BATCH];
  int parts, now, rows;
  int pace; /* rows asked for at a time */
} short_ahead;

static inline void short_ahead_add(short_ahead *a, const attend_matrix *m, int64_t rows, int64_t columns,
                                   attend_type type) {
  int64_t size = (int64_t)attend_type_size(type);
  if (!m->data || m->col != 1 || rows <= 0) return;
  a->part[a->parts].data = m->data;
  a->part[a->parts].step = m->row * size;
  a->part[a->parts].bytes = (int)(columns * size);
  a->part[a->parts++].rows = (int)rows;
  a->rows += (int)rows;
}
static inline void short_ahead_rows(short_ahead *a, int count) {
  for (; count > 0 && a->now < a->parts; count--) {
    const char *row = a->part[a->now].data;
    int byte = 0, bytes = a->part[a->now].bytes;
    for (; byte + 256 <= bytes; byte += 256) {
      __builtin_prefetch(row + byte);
      __builtin_prefetch(row + byte + 64);
      __builtin_prefetch(row + byte + 128);
      __builtin_prefetch(row + byte + 192);
    }
    for (; byte < bytes; byte += 64) __builtin_prefetch(row + byte);
    a->part[a->now].data = row + a->part[a->now].step;
    if (--a->part[a->now].rows == 0) a->now++;
  }
}

/* Tiles of one pair, at each of which rows are asked for: `scores` and `values` products of either kind. */
static int short_tiles(const attend_problem *p, const attend_slice *s, int scores, int values) {
  int64_t q = (s->q_len + SHORT_ROWS - 1) / SHORT_ROWS, wide = (p->v_dim + 2 * LANES - 1) / (2 * LANES);
  return (int)(scores * q * ((s->k_len + 1) / 2) + values * ((s->q_len + SHORT_TALL - 1) / SHORT_TALL) * wide);
}

/* ---- Rows as reals ---- */

/* 2 * LANES elements of a row whose columns are `col` apart, side by side; and back. */
static void short_gather(void *to, const char *from, int64_t col, int64_t size) {
  for (int64_t i = 0; i < 2 * LANES; i++) memcpy((char *)to + i * size, from + i * col * size, (size_t)size);
}
static void short_scatter(char *to, const void *from, int64_t col, int64_t size) {
  for (int64_t i = 0; i < 2 * LANES; i++) memcpy(to + i * col * size, (const char *)from + i * size, (size_t)size);
}

/* Whole pairs of vectors are in the order of lanes_load_pair, whatever the strides: sums along a row take that order,
 * and a layout must not change their bits. */
WORD void short_pack_as(real *out, const attend_matrix *m, int rows, int64_t columns, attend_type type) {
  int64_t padded = round_up(columns, LANES), size = (int64_t)attend_type_size(type);
  for (int r = 0; r < rows; r++, out += padded) {
    int64_t c = 0, index = r * m->row;
    for (; c + 2 * LANES <= columns; c += 2 * LANES) {
      real copy[2 * LANES];
      const char *from = m->data + (index + c * m->col) * size;
      if (m->col != 1) short_gather(copy, from, m->col, size);
      lanes x[2];
      lanes_load_pair(m->col == 1 ? from : (const char *)copy, x, type);
      lanes_store(out + c, x[0]);
      lanes_store(out + c + LANES, x[1]);
    }
    if (c < columns) pack_row(out + c, m->data, index + c * m->col, m->col, columns - c, padded - c, type);
  }
}
/* Rows readable in whole vectors: in place, or packed into `buffer` and padded with 0. */
static key_rows short_rows(const attend_matrix *m, int rows, int64_t columns, attend_type type, real *buffer) {
  if (type == REAL_TYPE && m->col == 1 && columns % LANES == 0)
    return (key_rows){(const real *)(const void *)m->data, m->row};
  if (type == TYPE_F16)
    short_pack_as(buffer, m, rows, columns, TYPE_F16);
  else if (type == TYPE_BF16)
    short_pack_as(buffer, m, rows, columns, TYPE_BF16);
  else
    short_pack_as(buffer, m, rows, columns, REAL_TYPE);
  return (key_rows){buffer, round_up(columns, LANES)};
}

/* Those of keys, or of values: the rows of a paged sequence lie anywhere. */
static key_rows short_key_rows(const attend_slice *s, const attend_matrix *m, bool is_value, int64_t columns,
                               attend_type type, real *buffer) {
  if (!s->pages.table) return short_rows(m, (int)s->k_len, columns, type, buffer);
  int64_t padded = round_up(columns, LANES), size = (int64_t)attend_type_size(type);
  for (int64_t j = 0; j < s->k_len; j++) {
    int64_t index = is_value ? attend_value_row(s, j) : attend_key_row(s, j);
    const attend_matrix row = {m->data + index * size, m->row, m->col};
    key_rows one = short_rows(&row, 1, columns, type, buffer + j * padded);
    if (one.rows != buffer + j * padded) memcpy(buffer + j * padded, one.rows, (size_t)columns * sizeof(real));
  }
  return (key_rows){buffer, padded};
}

/* ---- Which pairs (query, key) causal and window leave: the same for sequences of the same lengths ---- */

typedef struct short_ranges {
  key_range keys;
  int first_key[SHORT_MAX], last_key[SHORT_MAX];     /* of each query */
  int first_query[SHORT_MAX], last_query[SHORT_MAX]; /* of each key */
} short_ranges;

static void short_ranges_make(const attend_problem *p, const attend_slice *s, short_ranges *r) {
  r->keys = visible_keys(p, s, 0, (int)s->q_len);
  for (int j = 0; j < s->k_len; j++) r->first_query[j] = r->last_query[j] = 0;
  for (int i = 0; i < s->q_len; i++) {
    int64_t first, last;
    attend_visible_range(p, s, i, &first, &last);
    r->first_key[i] = (int)first;
    r->last_key[i] = (int)last;
    for (int64_t j = first; j < last; j++) {
      if (r->last_query[j] == 0) r->first_query[j] = i;
      r->last_query[j] = i + 1;
    }
  }
  for (int j = 1; j < s->k_len; j++) /* keys that nobody sees behind those that somebody does: both ascend */
    if (r->last_query[j] == 0) r->first_query[j] = r->last_query[j] = r->last_query[j - 1];
}

/* What (sequence, head) pairs of the same lengths share. Where there are no options, the slice of one serves all. */
typedef struct short_shape {
  attend_slice slice;
  short_ranges range;
  bool may_hide;
} short_shape;

static void short_shape_make(const attend_problem *p, const attend_operands *o, int64_t b, int64_t h, short_shape *x) {
  attend_slice_make(p, o, b, h, &x->slice);
  short_ranges_make(p, &x->slice, &x->range);
  const key_range *keys = &x->range.keys;
  x->may_hide = keys->all_first > 0 || keys->all_last < x->slice.k_len || x->slice.mask.data || x->slice.bias.data;
}

/* ---- Scores ---- */

/* S[j][i0 …] and S[j + 1][i0 …] for the n queries at q, keys first … last - 1: n is a constant. Stores whole vectors
 * where i0 begins one: their other half is of no query, or of the next n, stored later. Returns zeros, or NaN where a
 * score is not finite. */
WORD lanes short_dot_tiles(real *s, int width, bool whole, const key_rows *q, int n, const key_rows *k, int first,
                           int last, int64_t columns, lanes factor, short_ahead *ahead) {
  lanes check = lanes_zero();
  for (int j = first; j < last; j += 2) {
    const real *k0 = k->rows + j * k->row, *k1 = j + 1 < last ? k0 + k->row : k0;
    lanes x[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = lanes_zero();
    for (int64_t c = 0; c < columns; c += LANES) {
      lanes y0 = lanes_load(k0 + c), y1 = lanes_load(k1 + c);
#pragma GCC unroll 8
      for (int i = 0; i < n; i++) {
        lanes z = lanes_load(q->rows + i * q->row + c);
        x[i] = lanes_fma(z, y0, x[i]);
        x[SHORT_ROWS + i] = lanes_fma(z, y1, x[SHORT_ROWS + i]);
      }
    }
    lanes sums = lanes_mul(lanes_sums(x), factor), swapped = lanes_swap_halves(sums);
    check = lanes_fma(sums, lanes_zero(), check);
    if (whole) {
      lanes_store(s + j * width, sums);
      lanes_store(s + (j + 1) * width, swapped);
    } else {
      lanes_store_first(s + j * width, sums, SHORT_ROWS);
      lanes_store_first(s + (j + 1) * width, swapped, SHORT_ROWS);
    }
    short_ahead_rows(ahead, ahead->pace);
  }
  return check;
}

/* Scores of all pairs that causal and window leave; the others are whatever, and hidden by the passes. Are they finite?
 * Then the rows of `q` and `k` that they come from are: NaN and Inf make every score of their row one of the two. */
static bool short_scores(real *s, int width, const key_rows *q, int queries, const key_rows *k,
                         const short_ranges *range, int64_t columns, real factor, short_ahead *ahead) {
  lanes check = lanes_zero();
  for (int i = 0; i < queries; i += SHORT_ROWS) {
    int n = queries - i < SHORT_ROWS ? queries - i : SHORT_ROWS;
    int first = range->first_key[i], last = range->last_key[i + n - 1];
    const key_rows rows = {q->rows + i * q->row, q->row};
#define TILES(n)                                                                                                       \
  case n:                                                                                                              \
    if (n <= SHORT_ROWS)                                                                                               \
      check = lanes_add(check, short_dot_tiles(s + i, width, i % LANES == 0, &rows, n <= SHORT_ROWS ? n : 1, k, first, \
                                               last, columns, lanes_set1(factor), ahead));                             \
    break;
    switch (n) { TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8) }
#undef TILES
  }
  return !mask_any(lanes_unordered(check));
}

/* ---- One query, one key ---- */

/* Pairs of one query and one key go through each step as the lanes of one vector. In a vector of their own they took
 * 190 ns each forward and 370 backward at 64 dimensions, nearly all of it spent on the way into and out of a step. Each
 * lane does what its pair alone would: the bits are the same. */
enum { SHORT_ONES = LANES < SHORT_BATCH ? LANES : SHORT_BATCH };

typedef struct short_ones {
  attend_matrix m[SHORT_ONES];
} short_ones;

/* Has every pair of the problem one query and one key, whose rows are read and written as whole vectors? */
static bool short_is_one(const attend_problem *p) {
  static const operand_id rows[] = {OPERAND_Q,   OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                    OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V, OPERAND_D_OUT};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (attend_has(p, rows[i]) && p->layout[rows[i]].col != 1) return false;
  return p->q_len == 1 && p->k_len == 1 && !attend_lengths_vary(p) && !p->paged && !short_has_options(p) &&
         p->softcap == 0 && p->type == REAL_TYPE && p->head_dim % LANES == 0 && p->v_dim % LANES == 0 &&
         p->heads == p->kv_heads && !p->accumulate && !attend_has(p, OPERAND_D_LSE);
}

static void short_ones_at(const attend_problem *p, const attend_operands *o, operand_id id, int64_t first, int count,
                          short_ones *x) {
  int64_t b = first / p->heads, h = first % p->heads;
  for (int i = 0; i < count; i++) {
    x->m[i] = short_matrix(p, o, id, b, h);
    if (++h == p->heads) h = 0, b++;
  }
}

/* Lane i: factor * the product of row i of x and of y; 0 from lane `count` on. */
static lanes short_ones_dots(const short_ones *x, const short_ones *y, int count, int64_t columns, real factor) {
  lanes sum[LANES];
  for (int i = 0; i < LANES; i++) {
    sum[i] = lanes_zero();
    if (i >= count) continue;
    const real *a = (const real *)(const void *)x->m[i].data, *b = (const real *)(const void *)y->m[i].data;
    for (int64_t c = 0; c < columns; c += LANES) sum[i] = lanes_fma(lanes_load(a + c), lanes_load(b + c), sum[i]);
  }
  return lanes_mul(lanes_sums(sum), lanes_set1(factor));
}

/* Row i of out = factor[i] * (a[i] * row i of x). */
static void short_ones_products(const short_ones *out, const real *a, const short_ones *x, const real *factor,
                                int count, int64_t columns, bool stream) {
  for (int i = 0; i < count && out->m[i].data; i++) {
    const real *from = (const real *)(const void *)x->m[i].data;
    real *to = (real *)(void *)out->m[i].data;
    lanes y = lanes_set1(a[i]), z = lanes_set1(factor[i]);
    for (int64_t c = 0; c < columns; c += LANES) {
      lanes product = lanes_mul(lanes_fma(y, lanes_load(from + c), lanes_zero()), z);
      if (stream)
        lanes_stream(to + c, product);
      else
        lanes_store(to + c, product);
    }
  }
}

/* ---- Products ---- */

/* out[r, :] = factor[r] * (sums[r][:] + sum over t of A[r, t] * x[t][:]). */
typedef struct short_product {
  const real *a, *visible; /* visible: indexed like a; where it is 0 the term is left out. NULL: all count */
  int64_t a_step;
  bool along; /* A[r, t] is a[r * a_step + t], else a[t * a_step + r] */
  key_rows x;
  int rows;
  const int *first, *last; /* terms of each row; both ascend */
  int64_t columns;
  const real *factor;
  attend_matrix out; /* data NULL: the sums stay in `sums` */
  real *sums;        /* [rows][columns padded to lanes], begins with them; NULL: begin with 0 */
  bool add;
  bool stream;  /* past the cache */
  bool *finite; /* NULL: not wanted; else becomes false if a term of NaN or Inf was added, visible or not */
  short_ahead *ahead;
} short_product;

/* What is not just stored: added, strided, a tail. */
static void short_store_rest(const short_product *t, int r, int64_t c, const real *y, int n, attend_type type) {
  if (c + 2 * LANES <= t->columns) {
    real copy[2 * LANES];
    int64_t size = (int64_t)attend_type_size(type), col = t->out.col;
    char *to = t->out.data + (r * t->out.row + c * col) * size, *at = col == 1 ? to : (char *)copy;
    lanes factor = lanes_set1(t->factor[r]), sum[2] = {lanes_load(y), lanes_load(y + LANES)}, before[2];
    if (t->add) {
      if (col != 1) short_gather(copy, to, col, size);
      lanes_load_pair(at, before, type);
    }
    for (int v = 0; v < 2; v++) /* without `add` as the tile does: adding 0 would lose the sign of -0 */
      sum[v] = t->add ? lanes_fma(sum[v], factor, before[v]) : lanes_mul(sum[v], factor);
    lanes_store_pair(at, sum, type);
    if (col != 1) short_scatter(to, copy, col, size);
    return;
  }
  int64_t width = t->columns - c < n ? t->columns - c : n;
  unpack_row(t->out.data, r * t->out.row + c * t->out.col, t->out.col, width, y, t->factor[r], t->add, type);
}

/* n rows from r0 on, `wide` vectors from column c on, whether A's terms of a row are `along` it in memory (else those
 * of a term are): all constants. */
WORD void short_product_tile(const short_product *t, int r0, int n, int64_t c, int wide, bool along, attend_type type) {
  lanes sum[8][SHORT_WIDE];
  const int first = t->first[r0], last = t->last[r0 + n - 1];
  const int64_t padded = round_up(t->columns, LANES), a_row = along ? t->a_step : 1, a_term = along ? 1 : t->a_step;
  const real *a = t->a + r0 * a_row + first * a_term, *x = t->x.rows + first * t->x.row + c;
#pragma GCC unroll 8
  for (int r = 0; r < n; r++)
#pragma GCC unroll 2
    for (int v = 0; v < wide; v++) sum[r][v] = lanes_zero();
  for (int k = first; k < last; k++, a += a_term, x += t->x.row) {
    lanes y[SHORT_WIDE];
#pragma GCC unroll 2
    for (int v = 0; v < wide; v++) y[v] = lanes_load(x + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
      lanes p = lanes_set1(a[r * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < wide; v++) sum[r][v] = lanes_fma(p, y[v], sum[r][v]);
    }
  }
  if (t->finite) { /* all rows have the same terms, so that one row, even with a factor 0, tells */
    lanes check = lanes_fma(sum[0][0], lanes_zero(), lanes_mul(sum[0][wide - 1], lanes_zero()));
    if (mask_any(lanes_unordered(check))) *t->finite = false;
  }
  short_ahead_rows(t->ahead, t->ahead->pace);
  int64_t size = (int64_t)attend_type_size(type), step = t->out.row * size;
  char *at = t->out.data + r0 * step + c * size;
  if (wide == 2 && t->out.col == 1 && t->out.data && !t->sums && !t->add) {
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
      lanes factor = lanes_set1(t->factor[r0 + r]), y[2] = {lanes_mul(sum[r][0], factor), lanes_mul(sum[r][1], factor)};
      if (t->stream)
        lanes_stream_pair(at + r * step, y, type);
      else
        lanes_store_pair(at + r * step, y, type);
    }
    return;
  }
  for (int r = 0; r < n; r++) {
    real copy[SHORT_WIDE * LANES], *sums = t->sums ? t->sums + (r0 + r) * padded + c : copy;
    for (int v = 0; v < wide; v++)
      lanes_store(sums + v * LANES, t->sums ? lanes_add(sum[r][v], lanes_load(sums + v * LANES)) : sum[r][v]);
    if (t->out.data) short_store_rest(t, r0 + r, c, sums, wide * LANES, type);
  }
}

/* The same for one row, leaving out what is not visible: 0 times NaN or Inf would not be 0. */
static void short_careful_row(const short_product *t, int r, attend_type type) {
  const int64_t padded = round_up(t->columns, LANES), a_row = t->along ? t->a_step : 1,
                a_term = t->along ? 1 : t->a_step;
  real copy[2 * LANES], *sums = copy;
  for (int64_t c = 0; c < t->columns; c += 2 * LANES) {
    if (t->sums) sums = t->sums + r * padded + c;
    for (int64_t v = 0; v < 2 * LANES && c + v < padded; v += LANES) {
      lanes sum = lanes_zero();
      for (int k = t->first[r]; k < t->last[r]; k++)
        if (t->visible[r * a_row + k * a_term] != 0)
          sum = lanes_fma(lanes_set1(t->a[r * a_row + k * a_term]), lanes_load(t->x.rows + k * t->x.row + c + v), sum);
      lanes_store(sums + v, t->sums ? lanes_add(sum, lanes_load(sums + v)) : sum);
    }
    if (t->out.data) short_store_rest(t, r, c, sums, 2 * LANES, type);
  }
}

WORD void short_product_as(const short_product *t, bool along, attend_type type) {
  for (int r = 0, n; r < t->rows; r += n) {
    int tiles = (t->rows - r + SHORT_TALL - 1) / SHORT_TALL;
    int64_t c = 0;
    n = (t->rows - r + tiles - 1) / tiles;
#define TILES(n)                                                                                                       \
  case n:                                                                                                              \
    for (; n <= SHORT_TALL && c + 2 * LANES <= t->columns; c += 2 * LANES)                                             \
      short_product_tile(t, r, n <= SHORT_TALL ? n : 1, c, 2, along, type);                                            \
    break;
    switch (n) { TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8) }
#undef TILES
    for (; c < t->columns; c += LANES)
      for (int i = r; i < r + n; i++) short_product_tile(t, i, 1, c, 1, along, type);
  }
}
static void short_multiply(const short_product *t, attend_type type) {
  if (t->visible)
    for (int r = 0; r < t->rows; r++) short_careful_row(t, r, type);
  else if (type == TYPE_F16 && t->along)
    short_product_as(t, true, TYPE_F16);
  else if (type == TYPE_F16)
    short_product_as(t, false, TYPE_F16);
  else if (type == TYPE_BF16 && t->along)
    short_product_as(t, true, TYPE_BF16);
  else if (type == TYPE_BF16)
    short_product_as(t, false, TYPE_BF16);
  else if (t->along)
    short_product_as(t, true, REAL_TYPE);
  else
    short_product_as(t, false, REAL_TYPE);
}

/* May rows of this output be stored past the cache, and is it worth it? An output that would stay in the second-level
 * cache until it is read again should. */
static bool short_streams(const attend_problem *p, const attend_operands *o, operand_id id, int64_t rows,
                          int64_t columns) {
  const attend_layout *l = &p->layout[id];
  int64_t size = (int64_t)attend_type_size(p->type);
  int64_t steps = (l->batch | l->head | l->row) * size | (int64_t)(uintptr_t)o->data[id];
  return o->data[id] && l->col == 1 && columns % (2 * LANES) == 0 && steps % 64 == 0 && !p->accumulate &&
         rows * columns * size > attend_cpu_cache_sizes().second * p->threads;
}

/* May the problem have short sequences, on which what is known of it leaves this kernel? */
static bool short_serves(const attend_problem *p, attend_choice *choice, char reason[ATTEND_REASON_SIZE]) {
  bool own_keys = p->ragged_k || attend_has(p, OPERAND_KV_LEN);
  choice->limit = (attend_limit){SHORT_MAX, SHORT_MAX};
  choice->tile_q = p->q_len < SHORT_MAX ? p->q_len : SHORT_MAX;
  choice->tile_k = p->k_len < SHORT_MAX ? p->k_len : SHORT_MAX;
  if ((p->q_len <= SHORT_MAX || p->ragged_q) && (p->k_len <= SHORT_MAX || own_keys)) return true;
  snprintf(reason, ATTEND_REASON_SIZE, "sequences longer than %d", SHORT_MAX);
  return false;
}
