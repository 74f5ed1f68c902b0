/* SPDX-License-Identifier: MIT */
/* From scores and dP in the blocks of short_blocks.inc.c to P and dS. */

/* `n` lanes of each of the keys of a tile, from `key` to last - 1, to a matrix [keys][width]; of every second key, if
 * `step`, a constant, is 2. */
WORD void short_block_store(real *to, int width, int key, int last, lanes x, int n, int step) {
  const int keys = LANES / n;
  real copy[LANES];
  if (n < SHORT_BLOCK) lanes_store(copy, x);
#pragma GCC unroll 16
  for (int m = 0; m < keys; m += step) {
    if (key + m >= last) return;
    if (n == SHORT_BLOCK)
      lanes_store_first(to + (key + m) * width, lanes_rotate(x, m * n), SHORT_BLOCK);
    else
      memcpy(to + (key + m) * width, copy + m * n, (size_t)n * sizeof(real));
  }
}

/* The matrices P and scale * dS, [keys][width]. With words of two elements p and ds are of queries that follow each
 * other, in the column of the first, and ds_across is dS in words of keys, in the row of the first; else it is ds. */
typedef struct short_gradient {
  real *p, *ds, *ds_across;
  int width;
  real scale;
} short_gradient;

/* Blocks, at most, that go through the softmax together. */
enum { SHORT_SOFTMAXES = 4 };

/* From scores to P and from dP to scale * dS, in place, of `count` blocks, a constant: block b has tiles[b] tiles,
 * constants if they are to stay in registers, of rows[b] queries, constants. Step by step for all of them, so that one
 * has something to wait beside. Where hidden a score is -inf and dP 0. Returns 0, or NaN for queries whose delta
 * overflows: then dS is NaN where hidden, too. */
WORD lanes short_softmax_gradient(int count, const int *rows, const int *tiles, lanes (*x)[SHORT_BLOCK_TILES],
                                  lanes (*z)[SHORT_BLOCK_TILES], lanes scale) {
  const lanes minus_infinity = lanes_set1(-(real)INFINITY);
  lanes max[SHORT_SOFTMAXES], sum[SHORT_SOFTMAXES], delta[SHORT_SOFTMAXES], check = lanes_zero();
#pragma GCC unroll 4
  for (int b = 0; b < count; b++) {
    max[b] = minus_infinity;
#pragma GCC unroll 4
    for (int t = 0; t < tiles[b]; t++) max[b] = lanes_max(x[b][t], max[b]);
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= 1; lane /= 2)
#pragma GCC unroll 4
    for (int b = 0; b < count; b++)
      if (lane >= rows[b]) max[b] = lanes_max(lanes_swap(max[b], lane), max[b]);
#pragma GCC unroll 4
  for (int b = 0; b < count; b++) {
    max[b] = lanes_max(lanes_set1(-REAL_MOST), max[b]);
    sum[b] = delta[b] = lanes_zero();
#pragma GCC unroll 4
    for (int t = 0; t < tiles[b]; t++) {
      x[b][t] = tile_exp2(lanes_sub(x[b][t], max[b]));
      sum[b] = lanes_add(sum[b], x[b][t]);
      delta[b] = lanes_fma(x[b][t], z[b][t], delta[b]);
    }
  }
#pragma GCC unroll 4
  for (int lane = LANES / 2; lane >= 1; lane /= 2)
#pragma GCC unroll 4
    for (int b = 0; b < count; b++)
      if (lane >= rows[b]) {
        sum[b] = lanes_add(lanes_swap(sum[b], lane), sum[b]);
        delta[b] = lanes_add(lanes_swap(delta[b], lane), delta[b]);
      }
#pragma GCC unroll 4
  for (int b = 0; b < count; b++) {
    const lanes share = lanes_div(lanes_set1(1), lanes_max(lanes_set1(REAL_LEAST), sum[b]));
    delta[b] = lanes_mul(delta[b], share);
    check = lanes_fma(delta[b], lanes_zero(), check);
#pragma GCC unroll 4
    for (int t = 0; t < tiles[b]; t++) {
      x[b][t] = lanes_mul(x[b][t], share);
      z[b][t] = lanes_mul(lanes_mul(x[b][t], lanes_sub(z[b][t], delta[b])), scale);
    }
  }
  return check;
}

/* From the scores of a block at s and its dP at `dp`, tile by tile, to its queries in the matrices. n = b->rows is a
 * constant, and `constant`, the number of tiles, or it is 0: any number. Returns 0, or NaN where scores, dP or their
 * delta are not finite, hidden or not: then P and dS are right only where they are not hidden, but 0 there in words of
 * two. */
WORD lanes short_block_gradient(const short_block *b, int n, int constant, const real *s, const real *dp,
                                const short_gradient *to) {
  const int keys = LANES / n, tiles = constant ? constant : b->tiles;
  const int last = (int)round_up(b->last, SHORT_BLOCK);
  lanes check = lanes_zero(), x[SHORT_BLOCK_TILES], z[SHORT_BLOCK_TILES];
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++) {
    x[t] = lanes_load(s + t * LANES), z[t] = lanes_load(dp + t * LANES);
    check = lanes_fma(z[t], lanes_zero(), lanes_fma(x[t], lanes_zero(), check));
    if (mask_any(b->hidden[t])) {
      x[t] = lanes_select(b->hidden[t], lanes_set1(-(real)INFINITY), x[t]);
      z[t] = lanes_select(b->hidden[t], lanes_zero(), z[t]);
    }
  }
  check = lanes_add(check, short_softmax_gradient(1, &n, &tiles, &x, &z, lanes_set1(to->scale)));
#pragma GCC unroll 4
  for (int t = 0; t < tiles; t++) {
    const int key = b->first + t * keys;
    if (TILE_TERMS == 2 && mask_any(b->hidden[t])) {
      x[t] = lanes_select(b->hidden[t], lanes_zero(), x[t]);
      z[t] = lanes_select(b->hidden[t], lanes_zero(), z[t]);
    }
    /* The next query's: of the last it is another key's, but words are read of even queries alone, and blocks begin
     * at one. */
    const lanes next[2] = {n == 1 ? lanes_zero() : lanes_rotate(x[t], 1),
                           n == 1 ? lanes_zero() : lanes_rotate(z[t], 1)};
    short_block_store(to->p + b->query, to->width, key, last, tile_words(x[t], next[0]), n, 1);
    short_block_store(to->ds + b->query, to->width, key, last, tile_words(z[t], next[1]), n, 1);
    if (TILE_TERMS == 2)
      short_block_store(to->ds_across + b->query, to->width, key, last, tile_words(z[t], lanes_rotate(z[t], n)), n, 2);
  }
  return check;
}
WORD lanes short_block_gradient_of(const short_block *b, int n, const real *s, const real *dp,
                                   const short_gradient *to) {
  const int tiles = b->tiles;
  s += b->query * SHORT_MAX, dp += b->query * SHORT_MAX;
  if (tiles == 1) return short_block_gradient(b, n, 1, s, dp, to);
  if (n == SHORT_BLOCK && tiles == 2) return short_block_gradient(b, n, 2, s, dp, to);
  if (n == SHORT_BLOCK && tiles == 3) return short_block_gradient(b, n, 3, s, dp, to);
  if (n == SHORT_BLOCK && tiles == 4) return short_block_gradient(b, n, 4, s, dp, to);
  return short_block_gradient(b, n, 0, s, dp, to);
}

/* The same of all blocks. Are scores, dP and delta finite? */
static bool short_blocks_gradient(const short_blocks *x, const real *s, const real *dp, const short_gradient *to) {
  lanes check = lanes_zero();
  for (int i = 0; i < x->count; i++) {
    const short_block *b = &x->block[i];
    lanes of;
    if (b->rows == SHORT_BLOCK)
      of = short_block_gradient_of(b, SHORT_BLOCK, s, dp, to);
    else if (b->rows == 2)
      of = short_block_gradient_of(b, 2, s, dp, to);
    else
      of = short_block_gradient_of(b, 1, s, dp, to);
    check = lanes_add(check, of);
  }
  return !mask_any(lanes_unordered(check));
}
