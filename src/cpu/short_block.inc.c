/* SPDX-License-Identifier: MIT */
/* The steps of a block of queries of a short sequence: its scores, their softmax, its rows of O. What is called a
 * constant here is one where these functions are inlined: in short_blocks.inc.c the number of rows, in
 * short_lengths.inc.c every length. */

enum { SHORT_BLOCK = LANES < 4 ? LANES : 4 };                 /* rows of a block, at most */
enum { SHORT_BLOCK_TILES = SHORT_MAX * SHORT_BLOCK / LANES }; /* its tiles, at most */
enum { SHORT_BLOCKS = SHORT_MAX / SHORT_BLOCK + 2 };          /* of a pair, at most */

/* What -inf and 0 become where they cannot be subtracted or divided by: a maximum where comparing and selecting would
 * take the pipes of multiply-adds (bench/bounds.c). */
#define REAL_MOST _Generic((real)0, float : FLT_MAX, double : DBL_MAX)
#define REAL_LEAST _Generic((real)0, float : FLT_MIN, double : DBL_MIN) /* that is normal */

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

/* In three steps, each of which waits for what the last one ends with, across lanes: other work fits between them. All
 * lanes of a row hold its maximum and its sum, which halves that are swapped and added leave the same in all. */
typedef struct short_statistics {
  lanes max[SHORT_BLOCKS], sum[SHORT_BLOCKS]; /* of each block */
} short_statistics;

/* Of the scores of `rows` queries, a constant; the lanes of `hidden` are of no pair, or of one that is not to be seen,
 * and become -inf. */
WORD lanes short_block_max(int rows, int tiles, const lane_mask *hidden, real *s) {
  const lanes minus_infinity = lanes_set1(-(real)INFINITY);
  lanes max = minus_infinity;
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++, s += LANES) {
    lanes x = lanes_load(s);
    if (mask_any(hidden[t])) {
      x = lanes_select(hidden[t], minus_infinity, x);
      lanes_store(s, x);
    }
    max = lanes_max(x, max);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= rows; lane /= 2) max = lanes_max(lanes_swap(max, lane), max);
  return max;
}

/* From scores to their powers, in place; returns the sums. Where nothing is seen the maximum is -inf, which cannot be
 * subtracted. */
WORD lanes short_block_exp(int rows, int tiles, real *s, lanes max) {
  const lanes base = lanes_max(lanes_set1(-REAL_MOST), max);
  lanes sum = lanes_zero();
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++, s += LANES) {
    const lanes p = tile_exp2(lanes_sub(lanes_load(s), base));
    sum = lanes_add(sum, p);
    lanes_store(s, p);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= rows; lane /= 2) sum = lanes_add(lanes_swap(sum, lane), sum);
  return sum;
}

/* To P, as words of keys that follow each other, in the lane of the first. Where nothing is seen all powers are 0. */
WORD void short_block_share(int rows, int tiles, real *s, lanes sum) {
  const lanes share = lanes_div(lanes_set1(1), lanes_max(lanes_set1(REAL_LEAST), sum));
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++, s += LANES) {
    const lanes p = lanes_mul(lanes_load(s), share);
    lanes_store(s, tile_words(p, lanes_rotate(p, rows)));
  }
}

/* Maximum and sum of the block of queries from `query` on to the lanes of these queries, modulo LANES, among others: so
 * that one logarithm does for all. */
WORD void short_block_gather(const short_statistics *soft, int block, int query, lanes *max, lanes *sum) {
  const lane_mask before = mask_first(query % LANES);
  *max = lanes_select(before, *max, soft->max[block]), *sum = lanes_select(before, *sum, soft->sum[block]);
}
/* lse in base e of so many rows, its elements `step` apart. */
WORD void short_store_lse(real *lse, int64_t step, int rows, lanes max, lanes sum) {
  const lanes x = lanes_mul(lanes_set1((real)LN_2), lanes_add(max, lanes_log2(sum)));
  if (step == 1) {
    lanes_store_first(lse, x, rows);
    return;
  }
  real copy[LANES];
  lanes_store(copy, x);
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
