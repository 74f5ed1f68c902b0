/* SPDX-License-Identifier: MIT */
/* The products of decoding for all key heads of an item, key by key: where the heads of a key lie side by side
 * ([B,N,H,D] memory), rows [heads][columns] of K and V are read in the order of memory, as the prefetchers of the
 * hardware want it. Q and O of all heads stay in the first-level cache meanwhile, scores of a vector go to as many
 * rows of S. Sums have the order of the products of one head, hence the same bits. */

enum {
  DECODE_HEADS_BYTES = 16 << 10, /* of Q, or O, of an item's heads: half of the first-level cache */
  DECODE_PAGE = 8                /* the least keys of a page that is read in order */
};

/* S[head][row][k] of all keys of the chunk, from Q[head][row][columns]: n rows of a head at a time, n a constant. As
 * many sums as a vector has lanes stay in registers and become one vector of scores. */
WORD void decode_scores_by(real *s, int64_t s_row, const real *q, int heads, int rows, int n, int64_t columns,
                           real factor, const decode_rows *b, int keys, attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type);
  for (int k = 0; k < keys; k++) {
    const char *row = b->row[k];
    for (int r0 = 0, left = rows; r0 < heads * rows; r0 += LANES) {
      const int some = heads * rows - r0 < LANES ? heads * rows - r0 : LANES;
      const real *at = q + r0 * columns;
      real *to = s + r0 * s_row + k, scores[LANES];
      lanes sum[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) sum[i] = lanes_zero();
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i += n) {
        if (i >= some) continue; /* a loop that may be left is not unrolled by clang */
#pragma GCC unroll 8
        for (int64_t c = 0; c < columns; c += LANES) {
          lanes x = decode_load_next(row + c * size, type);
#pragma GCC unroll 4
          for (int r = i; r < i + n; r++) sum[r] = tile_step(x, lanes_load(at + r * columns + c), sum[r]);
        }
        if ((left -= n) == 0) left = rows, row += columns * size;
      }
      lanes_store(scores, lanes_mul(lanes_sums(sum), lanes_set1(factor)));
      for (int i = 0; i < some; i++) to[i * s_row] = scores[i];
    }
  }
}
WORD void decode_scores_keys_typed(real *s, int64_t s_row, const real *q, int heads, int rows, int64_t columns,
                                   real factor, const decode_rows *b, int keys, attend_type type) {
  if (rows % DECODE_ROWS == 0)
    decode_scores_by(s, s_row, q, heads, rows, DECODE_ROWS, columns, factor, b, keys, type);
  else
    decode_scores_by(s, s_row, q, heads, rows, 1, columns, factor, b, keys, type);
}
WORD void decode_scores_keys_of(real *s, int64_t s_row, const real *q, int heads, int rows, int64_t columns,
                                real factor, const decode_rows *b, int keys, attend_type type) {
  if (columns == DECODE_WHOLE / TILE_TERMS)
    decode_scores_keys_typed(s, s_row, q, heads, rows, DECODE_WHOLE / TILE_TERMS, factor, b, keys, type);
  else
    decode_scores_keys_typed(s, s_row, q, heads, rows, columns, factor, b, keys, type);
}
static void decode_scores_keys(real *s, int64_t s_row, const real *q, int heads, int rows, int64_t columns, real factor,
                               const decode_rows *b, int keys) {
  if (TILE_TERMS == 2 || b->type == REAL_TYPE)
    decode_scores_keys_of(s, s_row, q, heads, rows, columns, factor, b, keys, REAL_TYPE);
  else if (b->type == TYPE_F16)
    decode_scores_keys_of(s, s_row, q, heads, rows, columns, factor, b, keys, TYPE_F16);
  else
    decode_scores_keys_of(s, s_row, q, heads, rows, columns, factor, b, keys, TYPE_BF16);
}

/* O[r] += P[r] V over one key or two, n rows of which p are the first's words (with words of one element the second
 * key's is the next); n and two are constants. */
WORD void decode_add_keys(real *o, int64_t columns, const real *p, int64_t s_row, int n, decode_term t, bool two,
                          attend_type type) {
  const int64_t size = LANES * (int64_t)attend_type_size(type);
  lanes x[DECODE_ROWS], next[DECODE_ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < n; r++) {
    x[r] = lanes_set1(p[r * s_row]);
    if (TILE_TERMS == 1 && two) next[r] = lanes_set1(p[r * s_row + 1]);
  }
#pragma GCC unroll 8
  for (int64_t c = 0; c < columns; c += TILE_TERMS * LANES) {
    const char *first = t.first + c / (TILE_TERMS * LANES) * size, *second = t.second + c / (TILE_TERMS * LANES) * size;
    lanes y[2];
    if (TILE_TERMS == 1) {
      y[0] = two ? lanes_load_type(first, LANES, type) : decode_load_next(first, type);
      if (two) y[1] = decode_load_next(second, type);
    } else if (two)
      tile_words_of(lanes_load((const real *)(const void *)first), decode_load_next(second, type), y);
    else
      tile_words_pair(first, NULL, y);
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) {
      real *at = o + r * columns + c;
      lanes sum = tile_step(x[r], y[0], lanes_load(at));
      if (TILE_TERMS == 1 && two) sum = tile_step(next[r], y[1], sum);
      lanes_store(at, sum);
      if (TILE_TERMS == 2) lanes_store(at + LANES, tile_step(x[r], y[1], lanes_load(at + LANES)));
    }
  }
}
/* The same for all heads. Of two keys the first's row is read before, for the order of memory: O then moves half as
 * often (f32 5.3 instead of 5.8 ms), but with four keys it stands still for too long (8). */
WORD void decode_values_key(const decode_product *m, int heads, int k, bool two, attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type), row = m->columns / TILE_TERMS * size;
  decode_term t = {m->b->row[k], m->b->row[two ? k + 1 : k]};
  if (two)
    for (int64_t byte = 0; byte + LANES * (int64_t)sizeof(real) <= heads * row; byte += LANES * (int64_t)sizeof(real))
      lanes_once(lanes_load_next((const real *)(const void *)(t.first + byte)));
  for (int h = 0, first = 0; h < heads; h++, first += m->rows, t.first += row, t.second += row) {
    const real *p = m->p + k / TILE_TERMS;
    int r = first;
    for (; r + DECODE_ROWS <= first + m->rows; r += DECODE_ROWS)
      decode_add_keys(m->o + r * m->columns, m->columns, p + r * m->s_row, m->s_row, DECODE_ROWS, t, two, type);
    for (; r < first + m->rows; r++)
      decode_add_keys(m->o + r * m->columns, m->columns, p + r * m->s_row, m->s_row, 1, t, two, type);
  }
}
WORD void decode_values_keys_typed(const decode_product *m, int heads, attend_type type) {
  for (int64_t r = 0; m->rescale && r < heads * m->rows; r++)
    for (int64_t c = r * m->columns; c < (r + 1) * m->columns; c += LANES)
      lanes_store(m->o + c, lanes_mul(lanes_load(m->o + c), lanes_set1(m->rescale[r])));
  int k = 0;
  for (; k + 2 <= m->keys; k += 2) decode_values_key(m, heads, k, true, type);
  if (k < m->keys) decode_values_key(m, heads, k, false, type);
}
WORD void decode_values_keys_of(const decode_product *m, int heads, attend_type type) {
  if (m->columns == DECODE_WHOLE) {
    decode_product whole = *m;
    whole.columns = DECODE_WHOLE;
    decode_values_keys_typed(&whole, heads, type);
  } else
    decode_values_keys_typed(m, heads, type);
}
/* O[head][row] = O * rescale + P V; m->rows are those of one head. */
static void decode_values_keys(const decode_product *m, int heads) {
  if (TILE_TERMS == 2 || m->b->type == REAL_TYPE)
    decode_values_keys_of(m, heads, REAL_TYPE);
  else if (m->b->type == TYPE_F16)
    decode_values_keys_of(m, heads, TYPE_F16);
  else
    decode_values_keys_of(m, heads, TYPE_BF16);
}
