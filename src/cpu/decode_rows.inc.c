/* SPDX-License-Identifier: MIT */
/* The products and passes of decoding: a few query rows (those of all heads that share a key head) against keys that
 * are read from memory once. Lanes = dimensions for both products, since there are too few queries to fill lanes;
 * scores then lie along the keys, S[row][key], which is how masks and biases lie in memory too. */

enum {
  DECODE_ROWS = LANES < 4 ? LANES : 4, /* the lanes of one sum are shared out over the rows */
  DECODE_BLOCK = 1024,                 /* the most keys of a softmax */
  DECODE_CHUNK = 64,                   /* keys of one product */
  DECODE_WIDE = LANES >= 16 ? 4 : 2,
  DECODE_AHEAD = 16 /* how many keys before its turn a row is asked for */
};

/* Rows of K or V of one chunk: of the tensor's type where it can be read in place, else packed as reals. */
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

/* sum[r * group + i]: of n rows of Q and LANES / n keys from k on, n a constant; keys past the end are the last. */
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
      for (int r = 0; r < n; r++) sum[r * group + i] = lanes_fma(x, y[r], sum[r * group + i]);
    }
  }
}

/* The same, one key after the other. The loop over them must stay one: unrolled, gcc mixes the loads of several rows
 * (11 GB/s instead of 32). */
WORD void decode_sums_in_order(lanes sum[LANES], const real *q, int64_t columns, int n, const decode_rows *b, int k,
                               int keys, attend_type type) {
  int group = LANES / n;
  int64_t size = (int64_t)attend_type_size(type);
#pragma GCC unroll 1
  for (int i = 0; i < group; i++) {
    const char *row = b->row[0] + (k + i < keys ? k + i : keys - 1) * columns * size;
    lanes part[DECODE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) part[r] = lanes_zero();
#pragma GCC unroll 8
    for (int64_t c = 0; c < columns; c += LANES) {
      lanes x = lanes_load_type(row + c * size, LANES, type);
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) part[r] = lanes_fma(x, lanes_load(q + r * columns + c), part[r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) sum[r * group + i] = part[r];
  }
}

/* S[r][k] of n rows of Q, n a constant, and all keys of the chunk. */
WORD void decode_scores_of(real *s, int64_t s_row, const real *q, int64_t columns, int n, const decode_rows *b,
                           int keys, bool ask, bool in_order, attend_type type) {
  int group = LANES / n;
  for (int k = 0; k < keys; k += group) {
    lanes sum[LANES];
    real scores[LANES];
    if (in_order)
      decode_sums_in_order(sum, q, columns, n, b, k, keys, type);
    else
      decode_sums(sum, q, columns, n, b, k, keys, ask, type);
    lanes_store(scores, lanes_sums(sum));
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) memcpy(s + r * s_row + k, scores + r * group, (size_t)group * sizeof(real));
  }
}

/* Scores of all rows. The first pass over the chunk asks for what is ahead. */
WORD void decode_scores_as(real *s, int64_t s_row, const real *q, int rows, int64_t columns, const decode_rows *b,
                           int keys, bool in_order, attend_type type) {
  int r = 0;
  for (; r + DECODE_ROWS <= rows; r += DECODE_ROWS)
    decode_scores_of(s + r * s_row, s_row, q + r * columns, columns, DECODE_ROWS, b, keys, r == 0, in_order, type);
  for (; r < rows; r++)
    decode_scores_of(s + r * s_row, s_row, q + r * columns, columns, 1, b, keys, r == 0, in_order, type);
}
static void decode_scores(real *s, int64_t s_row, const real *q, int rows, int64_t columns, const decode_rows *b,
                          int keys) {
#define WITH(type)                                                                                                     \
  if (!b->in_order)                                                                                                    \
    decode_scores_as(s, s_row, q, rows, columns, b, keys, false, type);                                                \
  else if (columns == 2 * DECODE_WIDE * LANES)                                                                         \
    decode_scores_as(s, s_row, q, rows, 2 * DECODE_WIDE * LANES, b, keys, true, type);                                 \
  else                                                                                                                 \
    decode_scores_as(s, s_row, q, rows, columns, b, keys, true, type)
  if (b->type == TYPE_F16) {
    WITH(TYPE_F16);
  } else if (b->type == TYPE_BF16) {
    WITH(TYPE_BF16);
  } else {
    WITH(REAL_TYPE);
  }
#undef WITH
}

/* O[r][c …] = O * rescale[r] + sum over keys k0 … k1 - 1 of P[r][k] V[k][c …], n rows of `wide` vectors: constants.
 * `rescale` NULL: 1. Key after key, so that the bits are the same whatever the keys at a time. */
WORD void decode_values_of(real *o, int64_t columns, int64_t c, const real *p, const real *visible, int64_t s_row,
                           int n, int wide, const real *rescale, const decode_rows *b, int k0, int k1,
                           decode_cursor *ahead, bool in_order, attend_type type) {
  lanes sum[DECODE_ROWS * DECODE_WIDE];
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 8
    for (int v = 0; v < wide; v++) {
      lanes x = lanes_load(o + r * columns + c + v * LANES);
      sum[r * wide + v] = rescale ? lanes_mul(x, lanes_set1(rescale[r])) : x;
    }
  int64_t size = (int64_t)attend_type_size(type);
#pragma GCC unroll 1
  for (int k = k0; k < k1; k++) {
    const char *row = in_order ? b->row[0] + k * columns * size : b->row[k];
    if (ahead) decode_ask(ahead, columns * size, wide * LANES * size);
    lanes y[2 * DECODE_WIDE];
#pragma GCC unroll 8
    for (int v = 0; v < wide; v++) y[v] = lanes_load_type(row + (c + v * LANES) * size, LANES, type);
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) {
      if (visible && visible[r * s_row + k] == 0) continue;
      lanes x = lanes_set1(p[r * s_row + k]);
#pragma GCC unroll 8
      for (int v = 0; v < wide; v++) sum[r * wide + v] = lanes_fma(x, y[v], sum[r * wide + v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 8
    for (int v = 0; v < wide; v++) lanes_store(o + r * columns + c + v * LANES, sum[r * wide + v]);
}

/* Keys whose values stay in the first-level cache until all rows and columns have read them: few where the prefetchers
 * of the hardware must not stand still for long, many where O's way to registers and back counts. */
WORD int decode_values_chunk(int rows, bool in_order) { return in_order ? 8 : rows <= 4 * DECODE_ROWS ? 16 : 32; }

/* In order: rows of V are read whole, hence by half as many rows of P at a time. */
WORD void decode_values_as(real *o, int rows, int64_t columns, const real *p, const real *visible, int64_t s_row,
                           const real *rescale, const decode_rows *b, int keys, bool in_order, attend_type type) {
  int chunk = decode_values_chunk(rows, in_order);
  for (int k0 = 0; k0 < keys; k0 += chunk) {
    int k1 = k0 + chunk < keys ? k0 + chunk : keys;
    decode_cursor ahead = {b->row + k0 + DECODE_AHEAD, 0, 0};
    int64_t c = 0;
#define AT(n, wide)                                                                                                    \
  decode_values_of(o + r * columns, columns, c, p + r * s_row, visible ? visible + r * s_row : NULL, s_row, n, wide,   \
                   k0 || !rescale ? NULL : rescale + r, b, k0, k1, r == 0 && !in_order ? &ahead : NULL, in_order,      \
                   type)
#define COLUMNS(n, wide)                                                                                               \
  for (; c + (wide)*LANES <= columns; c += (wide)*LANES) {                                                             \
    int r = 0;                                                                                                         \
    for (; r + (n) <= rows; r += (n)) AT(n, wide);                                                                     \
    for (; r < rows; r++) AT(1, wide);                                                                                 \
  }
    if (in_order) COLUMNS(DECODE_ROWS / 2, 2 * DECODE_WIDE)
    COLUMNS(DECODE_ROWS, DECODE_WIDE)
    for (; c < columns; c += LANES)
      for (int r = 0; r < rows; r++) AT(1, 1);
#undef COLUMNS
#undef AT
  }
}
static void decode_values(real *o, int rows, int64_t columns, const real *p, const real *visible, int64_t s_row,
                          const real *rescale, const decode_rows *b, int keys) {
#define WITH(type)                                                                                                     \
  if (!b->in_order)                                                                                                    \
    decode_values_as(o, rows, columns, p, visible, s_row, rescale, b, keys, false, type);                              \
  else if (columns == 2 * DECODE_WIDE * LANES)                                                                         \
    decode_values_as(o, rows, 2 * DECODE_WIDE * LANES, p, visible, s_row, rescale, b, keys, true, type);               \
  else                                                                                                                 \
    decode_values_as(o, rows, columns, p, visible, s_row, rescale, b, keys, true, type)
  if (b->type == TYPE_F16) {
    WITH(TYPE_F16);
  } else if (b->type == TYPE_BF16) {
    WITH(TYPE_BF16);
  } else {
    WITH(REAL_TYPE);
  }
#undef WITH
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
