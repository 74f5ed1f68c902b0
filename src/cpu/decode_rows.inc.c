/* SPDX-License-Identifier: MIT */
/* The products and passes of decoding: a few query rows (those of all heads that share a key head) against keys that
 * are read from memory once. Lanes = dimensions for both products, since there are too few queries to fill lanes;
 * scores then lie along the keys, S[row][key], which is how masks and biases lie in memory too.
 *
 * Words of Q, K and P lie along their rows: two bf16 of a row are one. Words of V are made across two rows, hence O's
 * columns have the order of tile_words_pair. */

enum {
  DECODE_ROWS = LANES < 4 ? LANES : 4, /* the lanes of one sum are shared out over the rows */
  DECODE_BLOCK = 4096,                 /* the most keys of a softmax */
  DECODE_CHUNK = 64,                   /* keys of one product */
  DECODE_WIDE = LANES >= 16 ? 4 : 2,
  DECODE_WHOLE = 2 * DECODE_WIDE * LANES, /* columns of the most usual rows, for which there are loops of their own */
  DECODE_HELD = 16,                       /* vectors of Q that stay in registers */
  DECODE_AHEAD = 16                       /* how many keys before its turn a row is asked for */
};

/* Rows of K or V of one chunk: of the tensor's type where it can be read in place, else packed as reals (as words, with
 * words of two elements). */
typedef struct decode_rows {
  const char *row[DECODE_CHUNK + DECODE_AHEAD]; /* in_order: the first alone; else further ones to ask for */
  bool in_order;                                /* side by side, and read like that */
  attend_type type;
} decode_rows;

/* How products read memory. In order, with as few loads as possible between a row and the next, they let the
 * prefetchers of the hardware follow (Zen 4: 30 GB/s and more). Those do not follow rows with gaps, nor several rows
 * side by side: such are asked for by software, line by line between the products, in the order in which they lie in
 * memory (20 GB/s; all of a row at once gave 14: it leaves no line buffer to what is read now). */
typedef struct decode_cursor {
  const char *const *row;
  int64_t byte, due; /* due: bytes not asked for yet, or asked for too early */
} decode_cursor;
WORD void decode_ask(decode_cursor *a, int64_t row_bytes, int64_t bytes) {
  if (bytes % 64) { /* known to the compiler */
    a->due += bytes;
    if (a->due <= 0) return;
    bytes = (a->due + 63) / 64 * 64;
    a->due -= bytes;
  }
  for (int64_t n = 0; n < bytes; n += 64) {
    __builtin_prefetch(*a->row + a->byte, 0, 2);
    a->byte += 64;
    if (a->byte >= row_bytes) a->byte = 0, a->row++;
  }
}

/* sum[r * group + i]: of n rows of Q and LANES / n keys from k on, n a constant; keys past the end are the last. Here,
 * and wherever scores are computed, columns are words. */
WORD void decode_sums(lanes sum[LANES], const real *q, int64_t columns, int n, const decode_rows *b, int k, int keys,
                      bool ask, attend_type type) {
  enum { MOST = LANES };
  int group = LANES / n;
  const char *row[MOST];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) sum[i] = lanes_zero();
#pragma GCC unroll 16
  for (int i = 0; i < group; i++) row[i] = b->row[k + i < keys ? k + i : keys - 1];
  int64_t size = (int64_t)attend_type_size(type);
  decode_cursor ahead = {b->row + k + DECODE_AHEAD, 0, 0};
  for (int64_t c = 0; c < columns; c += LANES) {
    if (ask) decode_ask(&ahead, columns * size, group * LANES * size);
    lanes y[DECODE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) y[r] = lanes_load(q + r * columns + c);
#pragma GCC unroll 16
    for (int i = 0; i < group; i++) {
      lanes x = lanes_load_type(row[i] + c * size, LANES, type);
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) sum[r * group + i] = tile_step(x, y[r], sum[r * group + i]);
    }
  }
}

/* A vector of a row that is read in order: compilers move other loads past each other. (Not K in f32, where Q is
 * loaded beside it: 10.3 ms instead of 9.9.) */
WORD lanes decode_load_next(const char *p, attend_type type) {
  return type == REAL_TYPE ? lanes_load_next((const real *)(const void *)p) : lanes_load_type(p, LANES, type);
}

/* The same, one key after the other. The loop over them must stay one: unrolled, gcc mixes the loads of several rows
 * (11 GB/s instead of 32). `held`: Q in registers; NULL: it is too large. */
WORD void decode_sums_in_order(lanes sum[LANES], const real *q, const lanes *held, int64_t columns, int n,
                               const char *first, int k, int keys, attend_type type) {
  int group = LANES / n;
  int64_t size = (int64_t)attend_type_size(type);
#pragma GCC unroll 1
  for (int i = 0; i < group; i++) {
    const char *row = first + (k + i < keys ? k + i : keys - 1) * columns * size;
    lanes part[DECODE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) part[r] = lanes_zero();
#pragma GCC unroll 8
    for (int64_t c = 0; c < columns; c += LANES) {
      lanes x = TILE_TERMS == 1 ? lanes_load_type(row + c * size, LANES, type) : decode_load_next(row + c * size, type);
#pragma GCC unroll 4
      for (int r = 0; r < n; r++)
        part[r] = tile_step(x, held ? held[(r * columns + c) / LANES] : lanes_load(q + r * columns + c), part[r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) sum[r * group + i] = part[r];
  }
}

/* S[r][k] of n rows of Q, n a constant, and all keys of the chunk. */
WORD void decode_scores_of(real *s, int64_t s_row, const real *q, int64_t columns, real factor, int n,
                           const decode_rows *b, int keys, bool ask, bool in_order, attend_type type) {
  const bool hold = in_order && columns == DECODE_WHOLE / TILE_TERMS && n * columns <= DECODE_HELD * LANES;
  const char *first = b->row[0];
  int group = LANES / n;
  lanes held[DECODE_HELD];
#pragma GCC unroll 16
  for (int i = 0; i < DECODE_HELD; i++)
    if (hold && i < n * columns / LANES) held[i] = lanes_once(lanes_load(q + i * LANES));
  for (int k = 0; k < keys; k += group) {
    lanes sum[LANES];
    real scores[LANES];
    if (in_order)
      decode_sums_in_order(sum, q, hold ? held : NULL, columns, n, first, k, keys, type);
    else
      decode_sums(sum, q, columns, n, b, k, keys, ask, type);
    lanes_store(scores, lanes_mul(lanes_sums(sum), lanes_set1(factor)));
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) memcpy(s + r * s_row + k, scores + r * group, (size_t)group * sizeof(real));
  }
}

/* Scores of all rows. The first pass over the chunk asks for what is ahead. */
WORD void decode_scores_as(real *s, int64_t s_row, const real *q, int rows, int64_t columns, real factor,
                           const decode_rows *b, int keys, bool in_order, attend_type type) {
  int r = 0;
  for (; r + DECODE_ROWS <= rows; r += DECODE_ROWS)
    decode_scores_of(s + r * s_row, s_row, q + r * columns, columns, factor, DECODE_ROWS, b, keys, r == 0, in_order,
                     type);
  for (; r < rows; r++)
    decode_scores_of(s + r * s_row, s_row, q + r * columns, columns, factor, 1, b, keys, r == 0, in_order, type);
}
WORD void decode_scores_typed(real *s, int64_t s_row, const real *q, int rows, int64_t columns, real factor,
                              const decode_rows *b, int keys, attend_type type) {
  if (!b->in_order)
    decode_scores_as(s, s_row, q, rows, columns, factor, b, keys, false, type);
  else if (columns == DECODE_WHOLE / TILE_TERMS)
    decode_scores_as(s, s_row, q, rows, DECODE_WHOLE / TILE_TERMS, factor, b, keys, true, type);
  else
    decode_scores_as(s, s_row, q, rows, columns, factor, b, keys, true, type);
}
static void decode_scores(real *s, int64_t s_row, const real *q, int rows, int64_t columns, real factor,
                          const decode_rows *b, int keys) {
  if (TILE_TERMS == 2 || b->type == REAL_TYPE)
    decode_scores_typed(s, s_row, q, rows, columns, factor, b, keys, REAL_TYPE);
  else if (b->type == TYPE_F16)
    decode_scores_typed(s, s_row, q, rows, columns, factor, b, keys, TYPE_F16);
  else
    decode_scores_typed(s, s_row, q, rows, columns, factor, b, keys, TYPE_BF16);
}

/* A row of P as words along it, in place. */
static void decode_make_words(real *row, int keys) {
  for (int k = 0; TILE_TERMS == 2 && k < keys; k += TILE_LANES) {
    lanes x[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) x[v] = lanes_load(row + k + v * LANES);
    tile_store_along(row + k / TILE_TERMS, x);
  }
}

/* Where the rows of V lie that one word of P is for. NULL: no row. */
typedef struct decode_term {
  const char *first, *second;
} decode_term;

/* `wide` vectors of words across two rows, each read whole and in order. */
WORD void decode_load_pair(lanes *y, int wide, decode_term t) {
  const real *first = (const real *)(const void *)t.first, *second = (const real *)(const void *)t.second;
#pragma GCC unroll 4
  for (int v = 0; v < wide / 2; v++) y[2 * v] = lanes_load_next(first + v * LANES);
#pragma GCC unroll 4
  for (int v = 0; v < wide / 2; v++) tile_words_of(y[2 * v], lanes_load_next(second + v * LANES), y + 2 * v);
}
/* sum[r][v] += P[r][k] V[k][v], n rows of P of which p is the first's word, `wide` vectors: constants. */
WORD void decode_add_term(lanes *sum, const real *p, int64_t s_row, int n, int wide, decode_term t, attend_type type) {
  const int64_t size = LANES * (int64_t)attend_type_size(type); /* of a vector */
  lanes y[2 * DECODE_WIDE];
  if (TILE_TERMS == 2 && t.first && t.second)
    decode_load_pair(y, wide, t);
  else
#pragma GCC unroll 8
    for (int v = 0; v < wide; v += TILE_TERMS)
      if (TILE_TERMS == 2)
        tile_words_pair(t.first ? t.first + v / 2 * size : NULL, t.second ? t.second + v / 2 * size : NULL, y + v);
      else
        y[v] = decode_load_next(t.first + v * size, type);
#pragma GCC unroll 4
  for (int r = 0; r < n; r++) {
    lanes x = lanes_set1(p[r * s_row]);
#pragma GCC unroll 8
    for (int v = 0; v < wide; v++) sum[r * wide + v] = tile_step(x, y[v], sum[r * wide + v]);
  }
}
/* The same for one row of P, without what is hidden from it. */
WORD void decode_add_visible(lanes *sum, const real *p, const real *visible, int wide, decode_term t,
                             attend_type type) {
  const bool first = visible[0] != 0, second = t.second && visible[1] != 0;
  if (first && (second || TILE_TERMS == 1))
    decode_add_term(sum, p, 0, 1, wide, t, type);
  else if (first)
    decode_add_term(sum, p, 0, 1, wide, (decode_term){t.first, NULL}, type);
  else if (second)
    decode_add_term(sum, p, 0, 1, wide, (decode_term){NULL, t.second}, type);
}

/* O = O * rescale + P V over the keys of a chunk. */
typedef struct decode_product {
  real *o; /* [rows][columns] */
  int rows;
  int64_t columns;
  const real *p, *visible; /* [rows] words, [rows] reals, rows s_row apart; visible NULL: all are */
  int64_t s_row;
  const real *rescale; /* [rows]; NULL: 1 */
  const decode_rows *b;
  int keys;
} decode_product;

/* The row of V of key k, from column c on. */
WORD const char *decode_value(const decode_product *m, int k, int64_t c, bool in_order, attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type);
  return (in_order ? m->b->row[0] + k * (m->columns / TILE_TERMS * size) : m->b->row[k]) + c / TILE_TERMS * size;
}

/* Rows r0 … r0 + n - 1, columns from c on, `wide` vectors: n and wide are constants. Key after key, so that the bits
 * are the same whatever the keys at a time. */
WORD void decode_values_of(const decode_product *m, int r0, int n, int64_t c, int wide, int k0, int k1,
                           decode_cursor *ahead, bool in_order, bool careful, attend_type type) {
  const int64_t columns = m->columns, s_row = m->s_row, size = (int64_t)attend_type_size(type);
  const real *rescale = k0 ? NULL : m->rescale, *p = m->p + r0 * s_row;
  real *o = m->o + r0 * columns + c;
  lanes sum[DECODE_ROWS * DECODE_WIDE];
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 8
    for (int v = 0; v < wide; v++) {
      lanes x = lanes_load(o + r * columns + v * LANES);
      sum[r * wide + v] = rescale ? lanes_mul(x, lanes_set1(rescale[r0 + r])) : x;
    }
#pragma GCC unroll 1
  for (int k = k0; k < k1; k += TILE_TERMS) {
    if (ahead) decode_ask(ahead, columns / TILE_TERMS * size, wide * LANES * size);
    decode_term t = {decode_value(m, k, c, in_order, type), NULL};
    if (TILE_TERMS == 2 && k + 1 < k1) t.second = decode_value(m, k + 1, c, in_order, type);
    if (careful)
      decode_add_visible(sum, p + k / TILE_TERMS, m->visible + r0 * s_row + k, wide, t, type);
    else
      decode_add_term(sum, p + k / TILE_TERMS, s_row, n, wide, t, type);
  }
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 8
    for (int v = 0; v < wide; v++) lanes_store(o + r * columns + v * LANES, sum[r * wide + v]);
}

/* Columns from c on, as far as there are `wide` vectors of them, for all rows; returns the first that is left. */
WORD int64_t decode_values_columns(const decode_product *m, int n, int64_t c, int wide, int k0, int k1,
                                   decode_cursor *ahead, bool in_order, bool careful, attend_type type) {
  for (; c + wide * LANES <= m->columns; c += wide * LANES) {
    int r = 0;
    for (; r + n <= m->rows; r += n)
      decode_values_of(m, r, n, c, wide, k0, k1, r == 0 ? ahead : NULL, in_order, careful, type);
    for (; n > 1 && r < m->rows; r++)
      decode_values_of(m, r, 1, c, wide, k0, k1, r == 0 ? ahead : NULL, in_order, careful, type);
  }
  return c;
}

/* Keys whose values stay in the first-level cache until all rows and columns have read them: few where the prefetchers
 * of the hardware must not stand still for long, many where O's way to registers and back counts. */
WORD int decode_values_chunk(int rows, bool in_order) { return in_order ? 8 : rows <= 4 * DECODE_ROWS ? 16 : 32; }

/* In order: rows of V are read whole, hence by half as many rows of P at a time. */
WORD void decode_values_as(const decode_product *m, bool in_order, attend_type type) {
  int chunk = decode_values_chunk(m->rows, in_order);
  for (int k0 = 0; k0 < m->keys; k0 += chunk) {
    int k1 = k0 + chunk < m->keys ? k0 + chunk : m->keys;
    decode_cursor cursor = {m->b->row + k0 + DECODE_AHEAD, 0, 0}, *ahead = in_order ? NULL : &cursor;
    int64_t c = 0;
    if (m->visible) {
      decode_values_columns(m, 1, c, TILE_TERMS, k0, k1, ahead, in_order, true, type);
      continue;
    }
    if (in_order) c = decode_values_columns(m, DECODE_ROWS / 2, c, 2 * DECODE_WIDE, k0, k1, NULL, true, false, type);
    c = decode_values_columns(m, DECODE_ROWS, c, DECODE_WIDE, k0, k1, ahead, in_order, false, type);
    decode_values_columns(m, 1, c, TILE_TERMS, k0, k1, ahead, in_order, false, type);
  }
}
WORD void decode_values_typed(const decode_product *m, attend_type type) {
  if (!m->b->in_order)
    decode_values_as(m, false, type);
  else if (m->columns == DECODE_WHOLE) {
    decode_product whole = *m;
    whole.columns = DECODE_WHOLE;
    decode_values_as(&whole, true, type);
  } else
    decode_values_as(m, true, type);
}
static void decode_values(const decode_product *m) {
  if (TILE_TERMS == 2 || m->b->type == REAL_TYPE)
    decode_values_typed(m, REAL_TYPE);
  else if (m->b->type == TYPE_F16)
    decode_values_typed(m, TYPE_F16);
  else
    decode_values_typed(m, TYPE_BF16);
}

static void decode_hide(real *s, real *visible, int k) {
  s[k] = -(real)INFINITY;
  if (visible) visible[k] = 0;
}

/* Every option on the scores of query i and keys j0 … j0 + keys - 1; `visible` NULL: not wanted. What fills the last
 * vector becomes -inf. */
static void decode_passes(const attend_problem *p, const attend_slice *s, int64_t i, int64_t j0, int keys, real *row,
                          real *visible) {
  int padded = (int)round_up(keys, LANES);
  for (int k = 0; visible && k < keys; k++) visible[k] = 1;
  if (p->softcap > 0) {
    lanes cap = lanes_set1((real)(p->softcap * LOG2_E));
    for (int k = 0; k < padded; k += LANES) lanes_store(row + k, lanes_mul(cap, lanes_tanh_base2(lanes_load(row + k))));
  }
  if (s->bias.data) {
    real bias[DECODE_BLOCK];
    attend_type type = p->layout[OPERAND_BIAS].type;
    int64_t index = i * s->bias.row + j0 * s->bias.col;
    if (type == TYPE_F32)
      pack_row_as(bias, s->bias.data, index, s->bias.col, keys, padded, TYPE_F32);
    else
      pack_row(bias, s->bias.data, index, s->bias.col, keys, padded, type);
    for (int k = 0; k < padded; k += LANES)
      lanes_store(row + k, lanes_fma(lanes_load(bias + k), lanes_set1((real)LOG2_E), lanes_load(row + k)));
    for (int k = 0; k < keys; k++)
      if (bias[k] == -(real)INFINITY) decode_hide(row, visible, k);
  }
  if (s->slope != 0)
    for (int k = 0; k < padded; k += LANES) {
      lanes distance = lanes_sub(lanes_index(), lanes_set1((real)(i + s->off - j0 - k)));
      lanes slope = lanes_set1((real)(s->slope * LOG2_E));
      lanes_store(row + k, lanes_fnma(slope, lanes_abs(distance), lanes_load(row + k)));
    }
  if (s->mask.data) {
    const char *mask = s->mask.data + i * s->mask.row + j0 * s->mask.col;
    for (int k = 0; k < keys; k++)
      if (!mask[k * s->mask.col]) decode_hide(row, visible, k);
  }
  int64_t first, last;
  attend_visible_range(p, s, i, &first, &last);
  for (int k = 0; k < keys && j0 + k < first; k++) decode_hide(row, visible, k);
  for (int k = last > j0 ? last - j0 < keys ? (int)(last - j0) : keys : 0; k < keys; k++) decode_hide(row, visible, k);
  for (int k = keys; k < padded; k++) row[k] = -(real)INFINITY;
}

/* P = 2^(S - max) in place; max and sum brought up to date; returns 2^(old max - max). */
static real decode_softmax(real *row, int keys, real *max, real *sum) {
  lanes m = lanes_set1(*max), l = lanes_zero();
  for (int k = 0; k < keys; k += LANES) m = lanes_max(lanes_load(row + k), m);
  real new_max = lanes_reduce_max(m), base = new_max == -(real)INFINITY ? 0 : new_max, rescale[LANES];
  lanes_store(rescale, lanes_exp2(lanes_set1(*max - base)));
  for (int k = 0; k < keys; k += LANES) {
    lanes e = tile_exp2(lanes_sub(lanes_load(row + k), lanes_set1(base)));
    l = lanes_add(l, e);
    lanes_store(row + k, e);
  }
  *max = new_max;
  *sum = *sum * rescale[0] + lanes_reduce_add(l);
  return rescale[0];
}

/* Zero the dropped elements of a row of P. */
static void decode_dropout(const attend_problem *p, const attend_slice *s, int64_t i, int64_t j0, int keys, real *row) {
  for (int64_t c = 4 * (j0 >> 5); c < 4 * ((j0 + keys - 1) >> 5) + 4; c++) {
    uint32_t counter[4] = {(uint32_t)c, (uint32_t)(c >> 32), (uint32_t)i, (uint32_t)(i >> 32)}, word[4];
    attend_philox(counter, s->dropout_key, word);
    for (int n = 0; n < 8; n++) {
      int64_t k = 32 * (c >> 2) + 8 * (n >> 1) + 2 * (c & 3) + (n & 1) - j0;
      if (k >= 0 && k < keys && ((word[n >> 1] >> (16 * (n & 1))) & 0xFFFFu) < p->dropout_threshold) row[k] = 0;
    }
  }
}
