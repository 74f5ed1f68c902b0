/* SPDX-License-Identifier: MIT */
/* What forward and backward on short sequences share. A whole (sequence, head) is one tile of at most SHORT_MAX queries
 * and keys, so its bytes, not its arithmetic, should be the bound:
 *
 *   S[j][i] = sum over c of K[j][c] Q[i][c]    lanes = dimensions, rows as they lie in memory; a tree of additions
 *                                              turns LANES such sums into a vector
 *   passes, softmax                            lanes = queries: those of scores.inc.c
 *   O[i][:] = sum over j of P[j][i] V[j][:]    lanes = dimensions, P broadcast: rows leave as they came, past the cache
 *
 * Transposing Q instead and broadcasting K was measured: 1460 cycles for 5 queries of 64 dimensions on a 2.8 GHz
 * AVX-512 core, since 5 queries are transposed and multiplied like 16. Rows of the next (sequence, head) are asked for
 * one by one between the steps of this one: all at once they fill the core's line buffers, and everything waits. */

enum { SHORT_MAX = 32, SHORT_PAIRS = 64 };

/* Several (sequence, head) pairs go through each step together, so that the latency at the end of a step (a tree of
 * additions, an exponential) is hidden by the next pair: at most so many, and as many as have so many scores. */
enum { SHORT_BATCH = 8, SHORT_SCORES = 512 };

/* What a plan decides beside the workspace: attend_choice.own. */
enum { SHORT_OWN_ONES, SHORT_OWN_OPTIONS, SHORT_OWN_STREAM_Q, SHORT_OWN_STREAM_K, SHORT_OWN_STREAM_V, SHORT_OWN_STAYS };

/* Matrix of `id` for sequence b, (query or key) head h. */
static inline attend_matrix short_matrix(const attend_problem *p, const attend_operands *o, operand_id id, int64_t b,
                                         int64_t h) {
  const attend_layout *l = &p->layout[id];
  bool keys = id == OPERAND_K || id == OPERAND_V || id == OPERAND_D_K || id == OPERAND_D_V;
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
  int pace;    /* rows asked for at a time */
  bool second; /* into the second-level cache */
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
WORD void short_ahead_line(const char *line, bool second) {
  if (second)
    __builtin_prefetch(line, 0, 2);
  else
    __builtin_prefetch(line);
}
/* The lines in which rows end that are to be stored past the cache, where others begin in them: a store that misses the
 * cache holds up all behind it. 512 x 8 pairs of 5 tokens, backward: 4.8 ms without, 3.1 with; 2.6 where rows share
 * none. */
static inline void short_ahead_ends(short_ahead *a, attend_matrix m, int64_t rows, int64_t columns, attend_type type) {
  if ((uintptr_t)m.data % 64 == 0) return;
  m.data += (columns - 1) * (int64_t)attend_type_size(type);
  short_ahead_add(a, &m, rows, 1, type);
}
static void short_ahead_ask(short_ahead *a, int count) {
  for (; count > 0 && a->now < a->parts; count--) {
    const char *data = a->part[a->now].data;
    const int before = (int)((uintptr_t)data % 64); /* in the row's first line: it may end in one line more */
    const char *row = data - before;
    int byte = 0, bytes = before + a->part[a->now].bytes;
    for (; byte + 256 <= bytes; byte += 256)
#pragma GCC unroll 4
      for (int line = 0; line < 256; line += 64) short_ahead_line(row + byte + line, a->second);
    for (; byte < bytes; byte += 64) short_ahead_line(row + byte, a->second);
    a->part[a->now].data = data + a->part[a->now].step;
    if (--a->part[a->now].rows == 0) a->now++;
  }
}
WORD void short_ahead_rows(short_ahead *a, int count) {
  if (a->now < a->parts) short_ahead_ask(a, count); /* a call's only pair has none to ask for */
}

/* So many pairs ahead rows are asked for; backward, one ahead took 4 to 10% more in [B,N,H,D] memory. */
enum { SHORT_LEAD = 2 };

/* Tiles of one pair, at each of which rows are asked for: `scores` and `values` products of either kind. */
static int short_tiles(const attend_problem *p, const attend_slice *s, int scores, int values) {
  int64_t sums = (s->q_len * s->k_len + LANES - 1) / LANES, wide = (p->v_dim + 4 * LANES - 1) / (4 * LANES);
  return (int)(scores * sums + values * ((s->q_len + 1) / 2) * wide);
}

/* ---- Rows in whole vectors ---- */

/* `count` elements of a row whose columns are `col` apart, side by side; and back. */
static void short_gather(void *to, const char *from, int64_t col, int64_t count, int64_t size) {
  if (col == 1) {
    memcpy(to, from, (size_t)(count * size));
    return;
  }
  for (int64_t i = 0; i < count; i++) memcpy((char *)to + i * size, from + i * col * size, (size_t)size);
}
static void short_scatter(char *to, const void *from, int64_t col, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; i++) memcpy(to + i * col * size, (const char *)from + i * size, (size_t)size);
}

/* Rows that can be read in whole vectors, of elements of `type`: `real` or bf16, which is widened wherever it is read,
 * two vectors in the order of lanes_load_pair from one. */
typedef struct vector_rows {
  const char *rows;
  int64_t step; /* bytes */
  attend_type type;
} vector_rows;

static attend_type short_row_type(attend_type type) { return type == TYPE_F16 ? REAL_TYPE : type; }

/* Columns of a row of the problem's type that is padded to whole vectors. */
static int64_t short_padded(int64_t columns, attend_type type) {
  return type == TYPE_BF16 ? round_up(columns, 2 * LANES) : round_up(columns, LANES);
}

/* Copied to `buffer` and padded with 0. f16 is converted there: each row is read several times. */
static const char *short_copy_rows(const attend_matrix *m, int rows, int64_t columns, attend_type type, real *buffer) {
  const attend_type as = short_row_type(type);
  int64_t size = (int64_t)attend_type_size(type), padded = short_padded(columns, type);
  const int64_t step = padded * (int64_t)attend_type_size(as);
  for (int r = 0; r < rows; r++) {
    char *to = (char *)buffer + r * step;
    if (type == TYPE_F16) {
      pack_row((real *)(void *)to, m->data, r * m->row, m->col, columns, padded, TYPE_F16);
      continue;
    }
    short_gather(to, m->data + r * m->row * size, m->col, columns, size);
    memset(to + columns * size, 0, (size_t)((padded - columns) * size));
  }
  return (const char *)buffer;
}

/* In place, or copied. Inlined: a vector_rows that is written in parts and read whole makes the core wait. */
WORD vector_rows short_rows(const attend_matrix *m, int rows, int64_t columns, attend_type type, real *buffer) {
  const attend_type as = short_row_type(type);
  const int64_t padded = short_padded(columns, type);
  if (type == as && m->col == 1 && padded == columns)
    return (vector_rows){m->data, m->row * (int64_t)attend_type_size(type), type};
  return (vector_rows){short_copy_rows(m, rows, columns, type, buffer), padded * (int64_t)attend_type_size(as), as};
}

/* Those of keys, or of values: the rows of a paged sequence lie anywhere. */
static vector_rows short_key_rows(const attend_slice *s, const attend_matrix *m, bool is_value, int64_t columns,
                                  attend_type type, real *buffer) {
  if (!s->pages.table) return short_rows(m, (int)s->k_len, columns, type, buffer);
  const attend_type as = short_row_type(type);
  int64_t size = (int64_t)attend_type_size(type), step = short_padded(columns, type) * (int64_t)attend_type_size(as);
  for (int64_t j = 0; j < s->k_len; j++) {
    char *to = (char *)buffer + j * step;
    int64_t index = is_value ? attend_value_row(s, j) : attend_key_row(s, j);
    const attend_matrix row = {m->data + index * size, m->row, m->col};
    vector_rows one = short_rows(&row, 1, columns, type, (real *)(void *)to);
    if (one.rows != to) memcpy(to, one.rows, (size_t)step);
  }
  return (vector_rows){(const char *)buffer, step, as};
}

/* What lies in one vector: one vector of reals, or two. */
WORD int short_parts(attend_type type) { return type == TYPE_BF16 ? 2 : 1; }
WORD void short_load(const char *at, lanes x[2], attend_type type) {
  if (type == TYPE_BF16)
    lanes_load_pair(at, x, TYPE_BF16);
  else
    x[0] = lanes_once(lanes_load((const real *)(const void *)at));
}

/* ---- Which pairs (query, key) causal and window leave: the same for sequences of the same lengths ---- */

typedef struct short_ranges {
  key_range keys;
  int first_key[SHORT_MAX], last_key[SHORT_MAX];     /* of each query */
  int first_query[SHORT_MAX], last_query[SHORT_MAX]; /* of each key */
  /* Stairs: bit n is set if of rows 4 n … 4 n + 3 each sees one key more than the one before, or one query less sees
   * it, and no other pair is left out. */
  unsigned query_stairs, key_stairs;
} short_ranges;

/* Do four rows differ by one in `steps` from one to the next, and in nothing else? */
static bool short_is_stairs(const int *first, const int *last, const int *same, const int *steps) {
  bool stairs = last[3] - first[0] >= 4;
  for (int i = 1; i < 4; i++) stairs &= same[i] == same[0] && steps[i] == steps[0] + i;
  return stairs;
}

static void short_ranges_make(const attend_problem *p, const attend_slice *s, short_ranges *r) {
  const int queries = (int)s->q_len, keys = (int)s->k_len;
  for (int i = 0; i < queries; i++) {
    int64_t first, last;
    attend_visible_range(p, s, i, &first, &last);
    r->first_key[i] = (int)first;
    r->last_key[i] = (int)last;
  }
  int first = 0, last = 0; /* queries before it see keys before j only; those from it on, keys behind j only */
  for (int j = 0; j < keys; j++) {
    while (first < queries && r->last_key[first] <= j) first++;
    while (last < queries && r->first_key[last] <= j) last++;
    r->first_query[j] = first;
    r->last_query[j] = last > first ? last : first; /* a key that nobody sees */
  }
  r->keys = (key_range){0, 0, 0, 0};
  if (queries)
    r->keys = (key_range){r->first_key[0], r->last_key[queries - 1], r->first_key[queries - 1], r->last_key[0]};
  r->query_stairs = r->key_stairs = 0;
  for (int i = 0; i + 4 <= s->q_len; i += 4)
    if (short_is_stairs(r->first_key + i, r->last_key + i, r->first_key + i, r->last_key + i))
      r->query_stairs |= 1u << (i / 4);
  for (int j = 0; j + 4 <= s->k_len; j += 4)
    if (short_is_stairs(r->first_query + j, r->last_query + j, r->last_query + j, r->first_query + j))
      r->key_stairs |= 1u << (j / 4);
}

/* What (sequence, head) pairs of the same lengths share. Where there are no options, the slice of one serves all. */
typedef struct short_shape {
  attend_slice slice;
  short_ranges range;
  bool may_hide;
} short_shape;

/* Goes through the pairs of an item of work. Shapes are kept while a pair of this step or of the next may have them. */
typedef struct short_walk {
  int64_t b, h, left;
  short_shape shapes[2 * SHORT_BATCH + 1];
  int shape; /* of sequence b; -1: not known yet */
} short_walk;

static void short_shape_make(const attend_problem *p, const attend_operands *o, const attend_choice *c,
                             const short_walk *at, int64_t q_len, int64_t k_len, short_shape *x) {
  if (c->own[SHORT_OWN_OPTIONS] || p->paged)
    attend_slice_make(p, o, at->b, at->h, &x->slice);
  else { /* all that is asked of it: an initializer would write 480 bytes of 0 */
    attend_slice *s = &x->slice;
    s->b = at->b, s->h = at->h, s->q_len = q_len, s->k_len = k_len, s->off = p->top_left ? 0 : k_len - q_len;
    s->mask.data = s->bias.data = s->d_lse = NULL, s->pages.table = NULL;
    s->slope = 0, s->sink = -INFINITY;
  }
  short_ranges_make(p, &x->slice, &x->range);
  const key_range *keys = &x->range.keys;
  x->may_hide = keys->all_first > 0 || keys->all_last < x->slice.k_len || x->slice.mask.data || x->slice.bias.data;
}

/* The shape of sequence b; NULL: another kernel's. */
static const short_shape *short_walk_shape(const attend_problem *p, const attend_operands *o, const attend_choice *c,
                                           short_walk *walk) {
  int64_t q_len, k_len;
  const short_shape *last = walk->shape < 0 ? NULL : &walk->shapes[walk->shape];
  if (last && !attend_lengths_vary(p)) return last;
  attend_sequence_lengths(p, o, walk->b, &q_len, &k_len);
  if (!attend_serves(c, q_len, k_len)) return NULL;
  if (last && last->slice.q_len == q_len && last->slice.k_len == k_len && !p->paged) return last;
  walk->shape = (walk->shape + 1) % (2 * SHORT_BATCH + 1);
  short_shape_make(p, o, c, walk, q_len, k_len, &walk->shapes[walk->shape]);
  return &walk->shapes[walk->shape];
}

/* ---- Scores ---- */

/* Queries of a tile of scores, but the first, and keys that share its LANES sums with n queries. */
enum { SHORT_ROWS = LANES < 4 ? LANES : 4 };
#define SHORT_KEYS(n) ((n) < LANES ? LANES / (n) : 1)

/* Lane m * n + i: the product of row i of q and row m of k, for n queries, a constant, and `keys` rows of k, at most
 * SHORT_KEYS(n). With `stairs`, a constant, row m of k meets rows m and later ones of q only. Other lanes are 0. */
WORD lanes short_dots(const vector_rows *q, int n, const vector_rows *k, int keys, bool stairs, int64_t vectors,
                      attend_type type) {
  lanes x[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) x[i] = lanes_zero();
  const char *a = q->rows, *b = k->rows;
  for (int64_t v = 0; v < vectors; v++, a += sizeof(lanes), b += sizeof(lanes)) {
    lanes y[5][2];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) short_load(a + i * q->step, y[i], type);
    const char *row = b;
#pragma GCC unroll 16
    for (int m = 0; m < LANES; m++, row += k->step) {
      if (m >= SHORT_KEYS(n) || m >= keys) continue;
      lanes z[2];
      short_load(row, z, type);
#pragma GCC unroll 2
      for (int part = 0; part < short_parts(type); part++)
#pragma GCC unroll 8
        for (int i = stairs ? m : 0; i < n; i++) x[m * n + i] = lanes_fma(y[i][part], z[part], x[m * n + i]);
    }
  }
  return lanes_sums(x);
}

/* S[j][i0 … i0 + n - 1] of keys first … last - 1. Returns zeros, or NaN where a score is not finite. Those of the first
 * queries are stored as whole vectors: what lies behind them is of no query, or of the next, stored later. */
WORD lanes short_dot_tiles(real *s, int width, const vector_rows *q, int i0, int n, const vector_rows *k, int first,
                           int last, int64_t vectors, lanes factor, short_ahead *ahead, attend_type type) {
  lanes check = lanes_zero();
  const vector_rows queries = {q->rows + i0 * q->step, q->step, type};
  s += first * width + i0;
  for (int j = first; j < last; j += SHORT_KEYS(n)) {
    const vector_rows some = {k->rows + j * k->step, k->step, type};
    int keys = last - j < SHORT_KEYS(n) ? last - j : SHORT_KEYS(n);
    lanes sums;
    if (keys == SHORT_KEYS(n)) /* constants, or each vector asks which keys there are */
      sums = short_dots(&queries, n, &some, SHORT_KEYS(n), false, vectors, type);
    else if (keys == 1)
      sums = short_dots(&queries, n, &some, 1, false, vectors, type);
    else
      sums = short_dots(&queries, n, &some, keys, false, vectors, type);
    sums = lanes_mul(sums, factor);
    check = lanes_fma(sums, lanes_zero(), check);
#pragma GCC unroll 16
    for (int m = 0; m < LANES; m++) {
      if (m >= SHORT_KEYS(n) || m >= keys) continue;
      if (i0 == 0)
        lanes_store(s, lanes_rotate(sums, m * n));
      else
        lanes_store_first(s, lanes_rotate(sums, m * n), SHORT_ROWS);
      s += width;
    }
    short_ahead_rows(ahead, ahead->pace);
  }
  return check;
}

WORD bool short_scores_as(real *s, int width, const vector_rows *q, int queries, const vector_rows *k,
                          const short_ranges *range, int64_t vectors, real factor, short_ahead *ahead,
                          attend_type type) {
  lanes check = lanes_zero();
  int rest = queries % SHORT_ROWS, n = rest == 0 ? SHORT_ROWS : rest;
  if (queries > 1 && n == 1 && LANES == 16) n = 5; /* 15 of 16 sums, for a tile of one query less */
  if (n > queries) return true;
#define TILES(n)                                                                                                       \
  case n:                                                                                                              \
    if (n <= LANES)                                                                                                    \
      check = short_dot_tiles(s, width, q, 0, n <= LANES ? n : 1, k, range->first_key[0], range->last_key[n - 1],      \
                              vectors, lanes_set1(factor), ahead, type);                                               \
    break;
  switch (n) { TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) }
#undef TILES
  for (int i = n; i < queries; i += SHORT_ROWS)
    check = lanes_add(check,
                      short_dot_tiles(s, width, q, i, SHORT_ROWS, k, range->first_key[i],
                                      range->last_key[i + SHORT_ROWS - 1], vectors, lanes_set1(factor), ahead, type));
  return !mask_any(lanes_unordered(check));
}

/* Scores of all pairs that causal and window leave; the others are whatever, and hidden by the passes. Are they finite?
 * Then the rows of `q` and `k` that they come from are: NaN and Inf make every score of their row one of the two. */
static bool short_scores(real *s, int width, const vector_rows *q, int queries, const vector_rows *k,
                         const short_ranges *range, int64_t columns, real factor, short_ahead *ahead) {
  if (q->type == TYPE_BF16)
    return short_scores_as(s, width, q, queries, k, range, short_padded(columns, TYPE_BF16) / (2 * LANES), factor,
                           ahead, TYPE_BF16);
  return short_scores_as(s, width, q, queries, k, range, short_padded(columns, REAL_TYPE) / LANES, factor, ahead,
                         REAL_TYPE);
}

/* ---- Rows past the cache ---- */

/* Two vectors of a row of `bytes` that does not begin where a line does, as those of malloc's large arrays: its whole
 * lines go past the cache in parts, the others, which hold ends of other rows, through it. */
static void short_stream_parts(char *to, const lanes x[2], const char *row, int64_t bytes, attend_type type) {
  const uintptr_t first = ((uintptr_t)row + 63) & ~(uintptr_t)63,
                  last = ((uintptr_t)row + (uintptr_t)bytes) & ~(uintptr_t)63;
  char pair[2 * sizeof(lanes)];
  lanes_store_pair(pair, x, type);
#pragma GCC unroll 8
  for (int at = 0; at < (int)(2 * LANES * attend_type_size(type)); at += (int)sizeof(stream_part))
    if ((uintptr_t)to + (uintptr_t)at >= first && (uintptr_t)to + (uintptr_t)at < last)
      lanes_stream_part(to + at, pair + at);
    else
      memcpy(to + at, pair + at, sizeof(stream_part));
}

/* Two vectors from column c on of a row of `columns`. */
WORD void short_stream(char *row, int64_t c, const lanes x[2], int64_t columns, attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type);
  if ((uintptr_t)row % 64 == 0) {
    lanes_stream_pair(row + c * size, x, type);
    return;
  }
  const lanes copy[2] = {x[0], x[1]}; /* x itself, a tile's sums, would go to memory for the call */
  short_stream_parts(row + c * size, copy, row, columns * size, type);
}

/* ---- One query, one key ---- */

/* Pairs of one query and one key go through each step as the lanes of one vector. In a vector of their own they took
 * 190 ns each forward and 370 backward at 64 dimensions, nearly all of it spent on the way into and out of a step. Each
 * lane does what its pair alone would: the bits are the same. Those that fill no vector go one by one. */
enum { SHORT_ONES = LANES < SHORT_BATCH ? LANES : SHORT_BATCH };

typedef struct short_ones {
  real *row[SHORT_ONES];
} short_ones;

/* Has every pair of the problem one query and one key, whose rows are read and written as whole vectors? */
static bool short_is_one(const attend_problem *p) {
  static const operand_id rows[] = {OPERAND_Q,   OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                    OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V, OPERAND_D_OUT};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (attend_has(p, rows[i]) && p->layout[rows[i]].col != 1) return false;
  return p->q_len == 1 && p->k_len == 1 && !attend_lengths_vary(p) && !p->paged && !short_has_options(p) &&
         p->softcap == 0 && p->type == REAL_TYPE && p->head_dim % (2 * LANES) == 0 && p->v_dim % (2 * LANES) == 0 &&
         p->heads == p->kv_heads && !p->accumulate && !attend_has(p, OPERAND_D_LSE);
}

/* Goes through the pairs of item `index`: SHORT_ONES at a time, then one at a time. */
typedef struct short_ones_walk {
  int64_t b, h, left;
} short_ones_walk;
static short_ones_walk short_ones_begin(const attend_problem *p, int64_t index) {
  const int64_t first = index * SHORT_PAIRS, left = p->batch * p->heads - first;
  short_ones_walk w = {.left = left < SHORT_PAIRS ? left : SHORT_PAIRS};
  if (index) w.b = first / p->heads, w.h = first % p->heads;
  return w;
}
WORD void short_ones_next(const attend_problem *p, short_ones_walk *w, int count) {
  w->left -= count;
  for (w->h += count; w->h >= p->heads; w->h -= p->heads) w->b++;
}

WORD short_ones short_ones_at(const attend_problem *p, const attend_operands *o, operand_id id,
                              const short_ones_walk *w, int count) {
  const attend_layout *l = &p->layout[id];
  int64_t b = w->b, h = w->h;
  short_ones x = {{NULL}};
  for (int i = 0; i < count; i++) {
    if (!o->data[id]) break;
    x.row[i] = (real *)o->data[id] + b * l->batch + h * l->head;
    if (++h == p->heads) h = 0, b++;
  }
  return x;
}

/* sum[i], whose lanes are yet to be added up: the product of row i of x and of y; 0 from `count`, a constant, on. */
WORD void short_ones_dots(const short_ones *x, const short_ones *y, int count, int64_t columns, lanes sum[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) sum[i] = lanes_zero();
  for (int64_t c = 0; c < columns; c += 2 * LANES)
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
      const real *a = x->row[i] + c, *b = y->row[i] + c;
      sum[i] = lanes_fma(lanes_load(a), lanes_load(b), sum[i]);
      sum[i] = lanes_fma(lanes_load(a + LANES), lanes_load(b + LANES), sum[i]);
    }
}

/* The softmax of one score: 1, and 0 of -inf, NaN of what else is not finite. */
WORD lanes short_ones_softmax(lanes s) {
  return lanes_select(lanes_equal(s, lanes_set1(-(real)INFINITY)), lanes_zero(),
                      lanes_add(lanes_set1(1), lanes_sub(s, s)));
}

/* Row i of out = lane i of a * row i of x; x NULL: 0, in a register, or gcc would call memset for each row. */
WORD void short_ones_products(const short_ones *out, lanes a, const short_ones *x, int count, int64_t columns,
                              bool stream) {
  real factor[LANES];
  lanes_store(factor, a);
  const lanes zero = lanes_once(lanes_zero());
  for (int i = 0; i < count; i++) {
    if (!out->row[i]) return;
    const lanes y = lanes_set1(factor[i]);
    for (int64_t c = 0; c < columns; c += 2 * LANES) {
      const real *from = x ? x->row[i] + c : NULL;
      const lanes z[2] = {x ? lanes_fma(y, lanes_load(from), zero) : zero,
                          x ? lanes_fma(y, lanes_load(from + LANES), zero) : zero};
      if (stream)
        lanes_stream_pair((char *)(out->row[i] + c), z, REAL_TYPE);
      else
        lanes_store_pair((char *)(out->row[i] + c), z, REAL_TYPE);
    }
  }
}

/* ---- Products ---- */

/* out[r, :] = factor[r] * (sums[r][:] + sum over t of A[r, t] * x[t][:]). */
typedef struct short_product {
  const real *a, *visible; /* visible: indexed like a; where it is 0 the term is left out. NULL: all count */
  int64_t a_step;
  bool along; /* A[r, t] is a[r * a_step + t], else a[t * a_step + r] */
  vector_rows x;
  int rows;
  const int *first, *last; /* terms of each row; both ascend */
  unsigned stairs;         /* of rows, as in short_ranges; 0 if `finite` is wanted, where all rows need all terms */
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

enum { SHORT_PRODUCT_ROWS = 4 }; /* of a tile, at most */

/* One term of rows `from` … `to` - 1. What one row alone loads may be the operand of its instruction. */
WORD void short_product_term(lanes sum[SHORT_PRODUCT_ROWS][8], const real *a, int64_t a_row, const char *x, int from,
                             int to, int vectors, attend_type as) {
  lanes p[SHORT_PRODUCT_ROWS];
#pragma GCC unroll 4
  for (int r = from; r < to; r++) p[r] = lanes_set1(a[r * a_row]);
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v += short_parts(as), x += sizeof(lanes)) {
    lanes y[2];
    if (to - from == 1 && as != TYPE_BF16)
      y[0] = lanes_load((const real *)(const void *)x);
    else
      short_load(x, y, as);
#pragma GCC unroll 2
    for (int part = 0; part < short_parts(as); part++)
#pragma GCC unroll 4
      for (int r = from; r < to; r++) sum[r][v + part] = lanes_fma(p[r], y[part], sum[r][v + part]);
  }
}

/* What the tiles of some rows share. */
typedef struct short_product_part {
  int row, terms;
  const real *a;
  const char *x;         /* their first term */
  char *out;             /* their first row */
  int64_t step, columns; /* of out, in bytes; those that are just to be stored in whole vectors */
} short_product_part;

/* n rows, `vectors` from column c on, whether A's terms of a row are `along` it in memory (else those of a term are),
 * whether n terms are `stairs`: all constants. Stairs are the last terms, term i of row i and later ones; or `along`,
 * the first, term i of rows up to i. Rows share what they load; eight sums are enough to wait for none. */
WORD void short_product_tile(const short_product *t, const short_product_part *part, int n, int64_t c, int vectors,
                             bool along, bool stairs, attend_type type) {
  const attend_type as = short_row_type(type);
  const int steps = stairs ? n : 0;
  const int64_t a_row = along ? t->a_step : 1, a_term = along ? 1 : t->a_step, x_term = t->x.step;
  const real *a = part->a;
  const char *x = part->x + c * (int64_t)attend_type_size(as);
  lanes sum[SHORT_PRODUCT_ROWS][8];
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sum[r][v] = lanes_zero();
  if (along)
#pragma GCC unroll 4
    for (int i = 0; i < steps; i++, a += a_term, x += x_term)
      short_product_term(sum, a, a_row, x, 0, i + 1, vectors, as);
  for (int k = part->terms - steps; k > 0; k--, a += a_term, x += x_term)
    short_product_term(sum, a, a_row, x, 0, n, vectors, as);
  if (!along)
#pragma GCC unroll 4
    for (int i = 0; i < steps; i++, a += a_term, x += x_term) short_product_term(sum, a, a_row, x, i, n, vectors, as);
  if (!stairs && t->finite) { /* all rows have the same terms, so that one row, even with a factor 0, tells */
    lanes check = lanes_zero();
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) check = lanes_fma(sum[0][v], lanes_zero(), check);
    if (mask_any(lanes_unordered(check))) *t->finite = false;
  }
  short_ahead_rows(t->ahead, t->ahead->pace);
  if (vectors % 2 || c + vectors * LANES > part->columns) {
    real copy[SHORT_PRODUCT_ROWS][8 * LANES];
#pragma GCC unroll 4
    for (int r = 0; r < n; r++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) lanes_store(copy[r] + v * LANES, sum[r][v]);
    for (int r = 0; r < n; r++) short_product_rest(t, part->row + r, c, copy[r], vectors, type);
    return;
  }
  const int64_t size = (int64_t)attend_type_size(type);
  char *row = part->out;
  if (t->factor) {
#pragma GCC unroll 4
    for (int r = 0; r < n; r++)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sum[r][v] = lanes_mul(sum[r][v], lanes_set1(t->factor[part->row + r]));
  }
  if (t->stream) {
#pragma GCC unroll 4
    for (int r = 0; r < n; r++, row += part->step)
#pragma GCC unroll 8
      for (int v = 0; v + 1 < vectors; v += 2) short_stream(row, c + v * LANES, sum[r] + v, t->columns, type);
    return;
  }
#pragma GCC unroll 4
  for (int r = 0; r < n; r++, row += part->step)
#pragma GCC unroll 8
    for (int v = 0; v + 1 < vectors; v += 2) lanes_store_pair(row + (c + v * LANES) * size, sum[r] + v, type);
}

/* All columns of n rows from r on: all but these are constants. Of 16 registers the sums leave some to load into. */
WORD void short_product_rows(const short_product *t, int r, int n, bool along, bool stairs, attend_type type) {
  const int64_t padded = short_padded(t->columns, type), parts = short_parts(type);
  const int most = n == 1 ? 8 : n > 2 && LANES * sizeof(real) < 64 ? 2 : 4, first = t->first[r];
  const bool whole = t->out.col == 1 && t->out.data && !t->sums && !t->add;
  short_product_part part = {.row = r, .terms = t->last[r + n - 1] - first};
  part.a = t->a + r * (along ? t->a_step : 1) + first * (along ? 1 : t->a_step);
  part.x = t->x.rows + first * t->x.step;
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
  if (t->visible) {
    for (int r = 0; r < t->rows; r++)
      for (int64_t c = 0; c < padded; c += parts * LANES) short_careful_tile(t, r, c, type);
    return;
  }
  /* With few registers a tile of four rows has two vectors of each: 16 tokens, rows past the cache, took 7% longer. */
  const bool four = LANES * sizeof(real) >= 64 || !t->stream;
  int r = 0;
  for (; four && r + 4 <= t->rows; r += 4)
    if (t->stairs >> (r / 4) & 1)
      short_product_rows(t, r, SHORT_PRODUCT_ROWS, along, true, type);
    else
      short_product_rows(t, r, SHORT_PRODUCT_ROWS, along, false, type);
  for (; r + 2 <= t->rows; r += 2) short_product_rows(t, r, 2, along, false, type);
  if (r < t->rows) short_product_rows(t, r, 1, along, false, type);
}
static void short_multiply(const short_product *t, attend_type type) {
  if (type == TYPE_F16 && t->along)
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

/* Would an output stay in the second-level cache until it is read again? */
static bool short_stays(const attend_problem *p, int64_t rows, int64_t columns) {
  return rows * columns * (int64_t)attend_type_size(p->type) <= attend_cpu_cache_sizes().second * p->threads;
}

/* May rows of this output be stored past the cache, as far as a plan knows, and is it worth it? */
static bool short_streams(const attend_problem *p, operand_id id, int64_t rows, int64_t columns) {
  const attend_layout *l = &p->layout[id];
  int64_t size = (int64_t)attend_type_size(p->type), steps = (l->batch | l->head | l->row) * size;
  return attend_has(p, id) && l->col == 1 && columns % (2 * LANES) == 0 && steps % 64 == 0 && !p->accumulate &&
         !short_stays(p, rows, columns);
}
/* The rest is known of an execution: rows that begin within a line go in parts; of one query and one key they gain
 * nothing (1.6 ms for 1.5, where lines go whole 0.8). */
static inline bool short_may_stream(const attend_choice *c, const attend_operands *o, int own, operand_id id) {
  const uintptr_t at = (uintptr_t)o->data[id] % 64;
  return c->own[own] && (c->own[SHORT_OWN_ONES] ? at == 0 : at % sizeof(stream_part) == 0);
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
