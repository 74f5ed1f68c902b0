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

/* What a plan decides beside the workspace: attend_choice.own. */
enum {
  SHORT_OWN_ONES,
  SHORT_OWN_TRIANGLE,
  SHORT_OWN_OPTIONS,
  SHORT_OWN_STREAM_Q,
  SHORT_OWN_STREAM_K,
  SHORT_OWN_STREAM_V,
  SHORT_OWN_STAYS,
  SHORT_OWN_RANGES /* the last: short_ranges of every pair, where lengths do not vary */
};

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
static vector_rows short_paged_rows(const attend_slice *s, const attend_matrix *m, bool is_value, int64_t columns,
                                    attend_type type, real *buffer) {
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
WORD vector_rows short_key_rows(const attend_slice *s, const attend_matrix *m, bool is_value, int64_t columns,
                                attend_type type, real *buffer) {
  if (!s->pages.table) return short_rows(m, (int)s->k_len, columns, type, buffer);
  return short_paged_rows(s, m, is_value, columns, type, buffer);
}

/* Words of two elements are bf16: nothing else is compiled. */
WORD attend_type short_type(attend_type type) { return TILE_TERMS == 2 ? TYPE_BF16 : type; }

/* What lies in one vector: one vector of reals, or two. */
WORD int short_parts(attend_type type) { return type == TYPE_BF16 ? 2 : 1; }
WORD void short_load(const char *at, lanes x[2], attend_type type) {
  if (type == TYPE_BF16)
    lanes_load_pair(at, x, TYPE_BF16);
  else
    x[0] = lanes_once(lanes_load((const real *)(const void *)at));
}
/* The same as words along the row: those of two elements lie there. */
WORD int short_word_parts(attend_type type) { return TILE_TERMS == 2 ? 1 : short_parts(type); }
WORD void short_load_words(const char *at, lanes x[2], attend_type type) {
  short_load(at, x, TILE_TERMS == 2 ? REAL_TYPE : type);
}
/* As words across two rows of a product; NULL: no row. */
WORD void short_load_term(const char *first, const char *second, lanes x[2], attend_type type) {
  if (TILE_TERMS == 2)
    tile_words_pair(first, second, x);
  else
    short_load(first, x, type);
}

/* ---- Which pairs (query, key) causal and window leave: the same for sequences of the same lengths ---- */

typedef struct short_ranges {
  key_range keys;
  uint8_t first_key[SHORT_MAX], last_key[SHORT_MAX];     /* of each query */
  uint8_t first_query[SHORT_MAX], last_query[SHORT_MAX]; /* of each key */
  /* Stairs: bit n is set if of rows 4 n … 4 n + 3 each sees one key more than the one before, or one query less sees
   * it, and no other pair is left out; SHORT_FIVE, if this is so of the last five, of one more than a multiple of four.
   */
  unsigned query_stairs, key_stairs;
} short_ranges;

enum { SHORT_FIVE = 1 << (SHORT_MAX / 4) };

/* Do `rows` rows differ by one in `steps` from one to the next, and in nothing else? */
static bool short_is_stairs(int rows, const uint8_t *first, const uint8_t *last, const uint8_t *same,
                            const uint8_t *steps) {
  bool stairs = last[rows - 1] - first[0] >= rows;
  for (int i = 1; i < rows; i++) stairs &= same[i] == same[0] && steps[i] == steps[0] + i;
  return stairs;
}
static unsigned short_stairs(int rows, const uint8_t *first, const uint8_t *last, const uint8_t *same,
                             const uint8_t *steps) {
  unsigned stairs = 0;
  for (int i = 0; i + 4 <= rows; i += 4)
    if (short_is_stairs(4, first + i, last + i, same + i, steps + i)) stairs |= 1u << (i / 4);
  const int five = rows - 5;
  if (five >= 0 && five % 4 == 0 && short_is_stairs(5, first + five, last + five, same + five, steps + five))
    stairs |= SHORT_FIVE;
  return stairs;
}

static void short_ranges_make(const attend_problem *p, const attend_slice *s, short_ranges *r) {
  const int queries = (int)s->q_len, keys = (int)s->k_len;
  for (int i = 0; i < queries; i++) {
    int64_t first, last;
    attend_visible_range(p, s, i, &first, &last);
    r->first_key[i] = (uint8_t)first;
    r->last_key[i] = (uint8_t)last;
  }
  int first = 0, last = 0; /* queries before it see keys before j only; those from it on, keys behind j only */
  for (int j = 0; j < keys; j++) {
    while (first < queries && r->last_key[first] <= j) first++;
    while (last < queries && r->first_key[last] <= j) last++;
    r->first_query[j] = (uint8_t)first;
    r->last_query[j] = (uint8_t)(last > first ? last : first); /* a key that nobody sees */
  }
  r->keys = (key_range){0, 0, 0, 0};
  if (queries)
    r->keys = (key_range){r->first_key[0], r->last_key[queries - 1], r->first_key[queries - 1], r->last_key[0]};
  r->query_stairs = short_stairs(queries, r->first_key, r->last_key, r->first_key, r->last_key);
  r->key_stairs = short_stairs(keys, r->first_query, r->last_query, r->last_query, r->first_query);
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
  if (attend_lengths_vary(p))
    short_ranges_make(p, &x->slice, &x->range);
  else
    memcpy(&x->range, &c->own[SHORT_OWN_RANGES], sizeof x->range);
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
 * SHORT_KEYS(n). With `stairs`, a constant, row m of k meets rows m and later ones of q only. Other lanes are 0. `feed`
 * may be NULL, a constant. */
WORD lanes short_dots(const vector_rows *q, int n, const vector_rows *k, int keys, bool stairs, int64_t vectors,
                      short_feed *feed, attend_type type) {
  lanes x[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) x[i] = lanes_zero();
  const char *a = q->rows, *b = k->rows;
#pragma GCC unroll 1 /* gcc would mix the steps of constant vectors, and store sums that find no register */
  for (int64_t v = 0; v < vectors; v++, a += sizeof(lanes), b += sizeof(lanes)) {
    lanes y[5][2];
    short_feed_step(feed);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) short_load_words(a + i * q->step, y[i], type);
    const char *row = b;
#pragma GCC unroll 16
    for (int m = 0; m < LANES; m++, row += k->step) {
      if (m >= SHORT_KEYS(n) || m >= keys) continue;
      lanes z[2];
      if (n == 1 && TILE_TERMS == 1 && type != TYPE_BF16) /* the operand of its one instruction */
        z[0] = lanes_load((const real *)(const void *)row);
      else
        short_load_words(row, z, type);
#pragma GCC unroll 2
      for (int part = 0; part < short_word_parts(type); part++)
#pragma GCC unroll 8
        for (int i = stairs ? m : 0; i < n; i++) x[m * n + i] = tile_step(y[i][part], z[part], x[m * n + i]);
    }
  }
  return lanes_sums(x);
}

/* Sums of a tile of n queries, a constant, and `keys`, made one: 5 queries take 160 ns, 180 with a loop over keys. */
WORD lanes short_dots_of(const vector_rows *q, int n, const vector_rows *k, int keys, int64_t vectors, short_feed *feed,
                         attend_type type) {
#define KEYS(keys)                                                                                                     \
  case keys:                                                                                                           \
    if (keys <= SHORT_KEYS(n)) return short_dots(q, n, k, keys, false, vectors, feed, type);                           \
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
    if (LANES < 16)
      sums = short_dots_of(&queries, n, &some, keys, vectors, NULL, type);
    else if (keys == SHORT_KEYS(n)) /* constants, or each vector asks which keys there are */
      sums = short_dots(&queries, n, &some, SHORT_KEYS(n), false, vectors, NULL, type);
    else if (keys == 1)
      sums = short_dots(&queries, n, &some, 1, false, vectors, NULL, type);
    else
      sums = short_dots(&queries, n, &some, keys, false, vectors, NULL, type);
    sums = lanes_mul(sums, factor);
    check = lanes_fma(sums, lanes_zero(), check);
#pragma GCC unroll 16
    for (int m = 0; m < LANES; m++) {
      if (m >= SHORT_KEYS(n) || m >= keys) continue;
      if (i0 == 0)
        lanes_store(s, lanes_rotate(sums, m * n));
      else
        lanes_store_first(s, lanes_rotate(sums, m * n), n);
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
  const int at = LANES == 16 ? 0 : queries - n;
#define TILES(n)                                                                                                       \
  case n:                                                                                                              \
    if (n <= LANES)                                                                                                    \
      check =                                                                                                          \
          lanes_add(check, short_dot_tiles(s, width, q, at, n <= LANES ? n : 1, k, range->first_key[at],               \
                                           range->last_key[at + n - 1], vectors, lanes_set1(factor), ahead, type));    \
    break;
  for (int i = 0; i < at; i += SHORT_ROWS) {
    int last = range->last_key[i + SHORT_ROWS - 1];
    const bool stairs = range->query_stairs >> (i / SHORT_ROWS) & 1;
    if (LANES == 8 && stairs) last -= 2;
    check = lanes_add(check, short_dot_tiles(s, width, q, i, SHORT_ROWS, k, range->first_key[i], last, vectors,
                                             lanes_set1(factor), ahead, type));
    if (LANES == 8 && stairs)
      check = lanes_add(
          check, short_dot_tiles(s, width, q, i + 2, 2, k, last, last + 2, vectors, lanes_set1(factor), ahead, type));
  }
  switch (n) { TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) }
#undef TILES
  for (int i = at + n; i < queries; i += SHORT_ROWS)
    check = lanes_add(check,
                      short_dot_tiles(s, width, q, i, SHORT_ROWS, k, range->first_key[i],
                                      range->last_key[i + SHORT_ROWS - 1], vectors, lanes_set1(factor), ahead, type));
  return !mask_any(lanes_unordered(check));
}

/* Scores of all pairs that causal and window leave; the others are whatever, and hidden by the passes. Are they finite?
 * Then the rows of `q` and `k` that they come from are: NaN and Inf make every score of their row one of the two. */
static bool short_scores(real *s, int width, const vector_rows *q, int queries, const vector_rows *k,
                         const short_ranges *range, int64_t columns, real factor, short_ahead *ahead) {
  if (short_type(q->type) == TYPE_BF16)
    return short_scores_as(s, width, q, queries, k, range, short_padded(columns, TYPE_BF16) / (2 * LANES), factor,
                           ahead, TYPE_BF16);
  return short_scores_as(s, width, q, queries, k, range, short_padded(columns, REAL_TYPE) / LANES, factor, ahead,
                         REAL_TYPE);
}

/* ---- What a plan decides ---- */

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
  const bool in_parts = STREAMS_PARTS && !c->own[SHORT_OWN_ONES] && at % sizeof(stream_part) == 0;
  return c->own[own] && (at == 0 || in_parts);
}

/* Working the ranges out takes a tenth of a call for one pair of 5 tokens. */
static void short_keep_ranges(const attend_problem *p, attend_choice *choice) {
  const attend_slice s = {.q_len = p->q_len, .k_len = p->k_len, .off = p->top_left ? 0 : p->k_len - p->q_len};
  short_ranges ranges;
  _Static_assert(sizeof ranges <= sizeof choice->own - SHORT_OWN_RANGES * sizeof *choice->own, "no room for ranges");
  short_ranges_make(p, &s, &ranges);
  memcpy(&choice->own[SHORT_OWN_RANGES], &ranges, sizeof ranges);
}

/* May the problem have short sequences, on which what is known of it leaves this kernel? */
static bool short_serves(const attend_problem *p, attend_choice *choice, char reason[ATTEND_REASON_SIZE]) {
  bool own_keys = p->ragged_k || attend_has(p, OPERAND_KV_LEN);
  choice->limit = (attend_limit){SHORT_MAX, SHORT_MAX};
  choice->tile_q = p->q_len < SHORT_MAX ? p->q_len : SHORT_MAX;
  choice->tile_k = p->k_len < SHORT_MAX ? p->k_len : SHORT_MAX;
  if (!attend_lengths_vary(p) && p->q_len <= SHORT_MAX && p->k_len <= SHORT_MAX) short_keep_ranges(p, choice);
  if ((p->q_len <= SHORT_MAX || p->ragged_q) && (p->k_len <= SHORT_MAX || own_keys)) return true;
  snprintf(reason, ATTEND_REASON_SIZE, "sequences longer than %d", SHORT_MAX);
  return false;
}
