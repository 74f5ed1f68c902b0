/* SPDX-License-Identifier: MIT */
/* The steps of a block of queries of a short sequence: its scores, their softmax, its rows of O. What is called a
 * constant here is one where these functions are inlined: in short_blocks.inc.c the number of rows, in
 * short_lengths.inc.c every length. */

enum { SHORT_BLOCK = LANES < 4 ? LANES : 4 };                 /* rows of a block, at most */
enum { SHORT_BLOCK_TILES = SHORT_MAX * SHORT_BLOCK / LANES }; /* its tiles, at most */

/* ---- Scores ---- */

/* Of n queries, a constant, from `query` on with keys first to last - 1, whose last n, if `stairs`, a constant, are
 * seen by one query more each. */
WORD void short_block_scores(int n, int query, int first, int last, bool stairs, real *s, const vector_rows *q,
                             const vector_rows *k, int64_t vectors, lanes factor, short_ahead *ahead, short_feed *feed,
                             attend_type type) {
  const vector_rows queries = {q->rows + query * q->step, q->step, type};
  const bool steps = stairs && n == SHORT_KEYS(n); /* a tile of its own */
  const int tiles = (last - first - (steps ? n : 0)) / SHORT_KEYS(n), rest = last - first - tiles * SHORT_KEYS(n);
  vector_rows keys = {k->rows + first * k->step, k->step, type};
  for (int t = 0; t < tiles; t++, keys.rows += SHORT_KEYS(n) * k->step, s += LANES) {
    lanes_store(s, lanes_mul(short_dots(&queries, n, &keys, SHORT_KEYS(n), false, vectors, feed, type), factor));
    short_ahead_rows(ahead, ahead->pace);
  }
  if (steps)
    lanes_store(s, lanes_mul(short_dots(&queries, n, &keys, n, true, vectors, feed, type), factor));
  else if (rest > 0)
    lanes_store(s, lanes_mul(short_dots_of(&queries, n, &keys, rest, vectors, feed, type), factor));
  else
    return;
  short_ahead_rows(ahead, ahead->pace);
}

/* ---- Softmax ---- */

/* From scores of `rows` queries, a constant, to P, in place, as words of keys that follow each other, in the lane of
 * the first; the lanes of `hidden` are of no pair, or of one that is not to be seen. lse in base e, unless NULL, its
 * elements `step` apart. If the number of tiles is a constant of at most 4 they stay `in_registers`, a constant. A
 * row's lanes are added in halves, so that all of them have the same sum. */
WORD void short_block_softmax(int rows, int tiles, bool in_registers, const lane_mask *hidden, real *s, real *lse,
                              int64_t step) {
  lanes minus_infinity = lanes_set1(-(real)INFINITY), m = minus_infinity, l = lanes_zero(), x[4];
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++) {
    lanes y = lanes_load(s + t * LANES);
    if (mask_any(hidden[t])) y = lanes_select(hidden[t], minus_infinity, y);
    m = lanes_max(y, m);
    if (in_registers)
      x[t] = y;
    else
      lanes_store(s + t * LANES, y);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= rows; lane /= 2) m = lanes_max(lanes_rotate(m, lane), m);
  lanes base = lanes_select(lanes_equal(m, minus_infinity), lanes_zero(), m);
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++) {
    lanes p = tile_exp2(lanes_sub(in_registers ? x[t] : lanes_load(s + t * LANES), base));
    l = lanes_add(l, p);
    if (in_registers)
      x[t] = p;
    else
      lanes_store(s + t * LANES, p);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= rows; lane /= 2) l = lanes_add(lanes_rotate(l, lane), l);
  lanes share = lanes_select(lanes_equal(l, lanes_zero()), lanes_zero(), lanes_div(lanes_set1(1), l));
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++) {
    lanes p = lanes_mul(in_registers ? x[t] : lanes_load(s + t * LANES), share);
    lanes_store(s + t * LANES, tile_words(p, lanes_rotate(p, rows)));
  }
  if (!lse) return;
  real copy[LANES];
  lanes_store(copy, lanes_mul(lanes_set1((real)LN_2), lanes_add(m, lanes_log2(l))));
  for (int r = 0; r < rows; r++) lse[r * step] = copy[r];
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

/* `vectors` of columns of O, from `out` on, of n queries: false if something `hides` and not all values were finite. */
WORD bool short_values_tile(const short_values *t, const real *p, int p_step, const char *v, char *out, int keys,
                            bool half, int n, int vectors, bool stairs, bool hides, short_feed *feed,
                            attend_type type) {
  lanes sum[SHORT_PRODUCT_ROWS][8];
  short_product_sums(sum, p, 1, p_step, v, t->v.step, keys, half, n, vectors, false, stairs, feed, type);
  if (t->stream)
    short_values_store(out, t->step, sum, n, vectors, true, type);
  else
    short_values_store(out, t->step, sum, n, vectors, false, type);
  return stairs || !hides || short_product_finite(sum, vectors);
}

/* O of n queries, a constant, from `query` on, with `keys` from `first` on, if `stairs`, a constant, as
 * short_product_sums says; P of a word begins p_step behind that of the one before. False as above. */
WORD bool short_values_rows(const short_values *t, int64_t columns, const real *p, int p_step, int query, int n,
                            int first, int keys, bool half, bool stairs, bool hides, short_feed *feed,
                            attend_type type) {
  const int parts = short_parts(type), size = (int)sizeof(lanes) / parts; /* bytes of LANES columns */
  char *out = t->out + query * t->step;
  const char *v = keys ? t->v.rows + first * t->v.step : out; /* or anything that is not read */
  bool finite = true;
  int64_t left = columns;
  for (; left >= 4 * LANES; left -= 4 * LANES, v += 4 * size, out += 4 * size)
    finite &= short_values_tile(t, p, p_step, v, out, keys, half, n, 4, stairs, hides, feed, type);
  if (left >= 2 * LANES) {
    finite &= short_values_tile(t, p, p_step, v, out, keys, half, n, 2, stairs, hides, feed, type);
    left -= 2 * LANES, v += 2 * size, out += 2 * size;
  }
  if (left >= LANES && parts == 1) {
    finite &= short_values_tile(t, p, p_step, v, out, keys, half, n, 1, stairs, hides, feed, type);
    left -= LANES, v += size, out += size;
  }
  if (left > 0) {
    lanes sum[SHORT_PRODUCT_ROWS][8];
    short_product_sums(sum, p, 1, p_step, v, t->v.step, keys, half, n, parts, false, stairs, feed, type);
    finite &= stairs || !hides || short_product_finite(sum, parts);
    short_values_store_first(out, t->step, sum, n, (int)left, type);
  }
  return finite;
}
