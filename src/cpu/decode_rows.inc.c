/* SPDX-License-Identifier: MIT */
/* The products and passes of decoding: a few query rows (those of all heads that share a key head) against DECODE_BLOCK
 * keys that are read from memory once. Lanes = dimensions for both products, since there are too few queries to fill
 * lanes; scores then lie along the keys, S[row][key], which is how masks and biases lie in memory too. */

enum {
  DECODE_ROWS = LANES < 4 ? LANES : 4, /* the lanes of one sum are shared out over the rows */
  DECODE_BLOCK = 64,
  DECODE_WIDE = LANES >= 16 ? 4 : 2,
  DECODE_CHUNK = 16, /* keys whose values stay in the first-level cache until all rows and columns have read them */
  DECODE_AHEAD = 16  /* how many keys before its turn a row is asked for */
};

/* Rows of K or V of one block: of the tensor's type where it can be read in place, else packed as reals. */
typedef struct decode_block {
  const char *rows[DECODE_BLOCK + DECODE_AHEAD]; /* further ones only to ask for; past the end the last again */
  attend_type type;
} decode_block;

/* Rows are asked for line by line between the products, in the order in which they lie in memory, whatever the order in
 * which products read them. On Zen 4 all of a row at once gave 14 GB/s: it leaves no line buffer to what is read now;
 * in the order of the products 9: no prefetcher of the hardware follows that. */
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

/* S[r][k … k + LANES / n) for n rows of Q, n a constant. */
WORD void decode_scores_of(real *s, const real *q, int64_t columns, int n, const decode_block *b, int k, int keys,
                           bool ask, attend_type type) {
  enum { MOST = LANES };
  int group = LANES / n;
  lanes sum[MOST];
  const char *row[MOST];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) sum[i] = lanes_zero();
#pragma GCC unroll 16
  for (int i = 0; i < group; i++) row[i] = b->rows[k + i < keys ? k + i : keys - 1];
  int64_t size = (int64_t)attend_type_size(type);
  decode_cursor ahead = {b->rows + k + DECODE_AHEAD, 0, 0};
  for (int64_t c = 0; c < columns; c += LANES) {
    if (ask) decode_ask(&ahead, columns * size, group * LANES * size);
    lanes y[DECODE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) y[r] = lanes_load(q + r * columns + c);
#pragma GCC unroll 16
    for (int i = 0; i < group; i++) {
      lanes x = lanes_load_type(row[i] + c * size, LANES, type);
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) sum[r * group + i] = lanes_fma(x, y[r], sum[r * group + i]);
    }
  }
  real scores[LANES];
  lanes_store(scores, lanes_sums(sum));
#pragma GCC unroll 4
  for (int r = 0; r < n; r++) memcpy(s + r * DECODE_BLOCK + k, scores + r * group, (size_t)group * sizeof(real));
}

/* Scores of all rows. The first pass over the block asks for what is ahead. */
WORD void decode_scores_as(real *s, const real *q, int rows, int64_t columns, const decode_block *b, int keys,
                           attend_type type) {
  int r = 0;
  for (; r + DECODE_ROWS <= rows; r += DECODE_ROWS)
    for (int k = 0; k < keys; k += LANES / DECODE_ROWS)
      decode_scores_of(s + r * DECODE_BLOCK, q + r * columns, columns, DECODE_ROWS, b, k, keys, r == 0, type);
  for (; r < rows; r++)
    for (int k = 0; k < keys; k += LANES)
      decode_scores_of(s + r * DECODE_BLOCK, q + r * columns, columns, 1, b, k, keys, r == 0, type);
}
static void decode_scores(real *s, const real *q, int rows, int64_t columns, const decode_block *b, int keys) {
  if (b->type == TYPE_F16)
    decode_scores_as(s, q, rows, columns, b, keys, TYPE_F16);
  else if (b->type == TYPE_BF16)
    decode_scores_as(s, q, rows, columns, b, keys, TYPE_BF16);
  else
    decode_scores_as(s, q, rows, columns, b, keys, REAL_TYPE);
}

/* O[r][c …] = O * rescale[r] + sum over keys k0 … k1 - 1 of P[r][k] V[k][c …], n rows of `wide` vectors: constants.
 * `rescale` NULL: 1. */
WORD void decode_values_of(real *o, int64_t columns, int64_t c, const real *p, const real *visible, int n, int wide,
                           const real *rescale, const decode_block *b, int k0, int k1, decode_cursor *ahead,
                           attend_type type) {
  lanes sum[DECODE_ROWS][DECODE_WIDE];
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) sum[r][v] = lanes_zero();
  int64_t size = (int64_t)attend_type_size(type);
  for (int k = k0; k < k1; k++) {
    if (ahead) decode_ask(ahead, columns * size, wide * LANES * size);
    lanes y[DECODE_WIDE];
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) y[v] = lanes_load_type(b->rows[k] + (c + v * LANES) * size, LANES, type);
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) {
      if (visible && visible[r * DECODE_BLOCK + k] == 0) continue;
      lanes x = lanes_set1(p[r * DECODE_BLOCK + k]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) sum[r][v] = lanes_fma(x, y[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      real *at = o + r * columns + c + v * LANES;
      lanes_store(at, lanes_fma(lanes_load(at), lanes_set1(rescale ? rescale[r] : 1), sum[r][v]));
    }
}

WORD void decode_values_as(real *o, int rows, int64_t columns, const real *p, const real *visible, const real *rescale,
                           const decode_block *b, int keys, attend_type type) {
  for (int k0 = 0; k0 < keys; k0 += DECODE_CHUNK) {
    int k1 = k0 + DECODE_CHUNK < keys ? k0 + DECODE_CHUNK : keys;
    decode_cursor ahead = {b->rows + k0 + DECODE_AHEAD, 0, 0};
    int64_t c = 0;
#define AT(n, wide)                                                                                                    \
  decode_values_of(o + r * columns, columns, c, p + r * DECODE_BLOCK, visible ? visible + r * DECODE_BLOCK : NULL, n,  \
                   wide, k0 ? NULL : rescale + r, b, k0, k1, r == 0 ? &ahead : NULL, type)
    for (; c + DECODE_WIDE * LANES <= columns; c += DECODE_WIDE * LANES) {
      int r = 0;
      for (; r + DECODE_ROWS <= rows; r += DECODE_ROWS) AT(DECODE_ROWS, DECODE_WIDE);
      for (; r < rows; r++) AT(1, DECODE_WIDE);
    }
    for (; c < columns; c += LANES)
      for (int r = 0; r < rows; r++) AT(1, 1);
#undef AT
  }
}
static void decode_values(real *o, int rows, int64_t columns, const real *p, const real *visible, const real *rescale,
                          const decode_block *b, int keys) {
  if (b->type == TYPE_F16)
    decode_values_as(o, rows, columns, p, visible, rescale, b, keys, TYPE_F16);
  else if (b->type == TYPE_BF16)
    decode_values_as(o, rows, columns, p, visible, rescale, b, keys, TYPE_BF16);
  else
    decode_values_as(o, rows, columns, p, visible, rescale, b, keys, REAL_TYPE);
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
    lanes e = lanes_exp2(lanes_sub(lanes_load(row + k), lanes_set1(base)));
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
