/* SPDX-License-Identifier: MIT */
/* What forward and backward on short sequences share. A whole (sequence, head) is one tile of at most SHORT_MAX queries
 * and keys, so its bytes, not its arithmetic, should be the bound:
 *
 *   S[j][i] = K[j] · QT                 lanes = queries, so that every option's pass and the softmax are those of
 * scores.inc.c O[i][:] = sum_j P[j][i] V[j][:]     lanes = dimensions, P broadcast: rows leave as they lie in memory,
 * past the cache
 *
 * Lanes = dimensions for the scores too was rejected: a sum across lanes per score costs more than the transposition of
 * Q, and options would need passes of their own. */

enum { SHORT_MAX = 32, SHORT_KEYS = 8, SHORT_ROWS = 4, SHORT_WIDE = LANES >= 16 ? 4 : 2, SHORT_PAIRS = 64 };

/* out[c][l] = scale * m[l, c], `width` lanes (a multiple of LANES, >= rows); lanes from `rows` on are 0. */
WORD void short_transposed_as(real *out, int width, const attend_matrix *m, int rows, int64_t columns, real scale,
                              attend_type type) {
  lanes factor = lanes_set1(scale);
  for (int v = 0; v < width; v += LANES)
    for (int64_t c = 0; c < columns; c += LANES) {
      int n = columns - c < LANES ? (int)(columns - c) : LANES;
      lanes x[LANES];
#pragma GCC unroll 16
      for (int l = 0; l < LANES; l++)
        x[l] = v + l < rows ? pack_load(m->data, (v + l) * m->row + c * m->col, m->col, n, type) : lanes_zero();
      lanes_transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        if (i < n) lanes_store(out + (c + i) * width + v, lanes_mul(x[i], factor));
    }
}
static void short_transposed(real *out, int width, const attend_matrix *m, int rows, int64_t columns, real scale,
                             attend_type type) {
  if (type == TYPE_F16)
    short_transposed_as(out, width, m, rows, columns, scale, TYPE_F16);
  else if (type == TYPE_BF16)
    short_transposed_as(out, width, m, rows, columns, scale, TYPE_BF16);
  else
    short_transposed_as(out, width, m, rows, columns, scale, REAL_TYPE);
}

/* Rows of a matrix as reals, readable in whole vectors: in place, or packed into `buffer` and padded with 0. */
static key_rows short_rows(const attend_matrix *m, int rows, int64_t columns, attend_type type, real *buffer) {
  if (type == REAL_TYPE && m->col == 1 && columns % LANES == 0)
    return (key_rows){(const real *)(const void *)m->data, m->row};
  int64_t padded = round_up(columns, LANES);
  for (int r = 0; r < rows; r++) pack_row(buffer + r * padded, m->data, r * m->row, m->col, columns, padded, type);
  return (key_rows){buffer, padded};
}

/* Are these rows free of NaN and Inf? */
static bool short_finite(const key_rows *x, int rows, int64_t columns) {
  lanes sum = lanes_zero();
  for (int r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c += LANES)
      sum = lanes_fma(lanes_load(x->rows + r * x->row + c), lanes_zero(), sum);
  return !mask_any(lanes_unordered(sum));
}

/* S[r][0 … LANES) = rows of K times the columns of QT that begin at b. `n` is a constant. */
WORD void short_scores_of(real *s, int width, const real *k, int64_t k_row, int n, const real *b, int64_t terms) {
  lanes sum[SHORT_KEYS];
#pragma GCC unroll 8
  for (int r = 0; r < n; r++) sum[r] = lanes_zero();
  for (int64_t c = 0; c < terms; c++) {
    lanes y = lanes_load(b + c * width);
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) sum[r] = lanes_fma(lanes_set1(k[r * k_row + c]), y, sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < n; r++) lanes_store(s + r * width, sum[r]);
}

static void short_scores(real *s, int width, const key_rows *k, int keys, const real *b, int64_t terms) {
  for (int v = 0; v < width; v += LANES) {
    int j = 0;
    for (; j + SHORT_KEYS <= keys; j += SHORT_KEYS)
      short_scores_of(s + j * width + v, width, k->rows + j * k->row, k->row, SHORT_KEYS, b + v, terms);
    for (; j + 4 <= keys; j += 4)
      short_scores_of(s + j * width + v, width, k->rows + j * k->row, k->row, 4, b + v, terms);
    for (; j < keys; j++) short_scores_of(s + j * width + v, width, k->rows + j * k->row, k->row, 1, b + v, terms);
  }
}

/* out[r, :] = factor[r] * (sums[r][:] + sum over t of a[r * a_row + t * a_term] * x[t][:]). */
typedef struct short_product {
  const real *a, *visible; /* visible: indexed like a; where it is 0 the term is left out. NULL: all count */
  int64_t a_row, a_term;
  key_rows x;
  int rows, terms;
  int64_t columns;
  const real *factor;
  attend_matrix out; /* data NULL: the sums stay in `sums` */
  real *sums;        /* [rows][columns padded to lanes], begins with them; NULL: begin with 0 */
  bool add, stream;
} short_product;

/* `n` rows from r on, `wide` vectors from column c on: both constants. */
WORD void short_product_tile(const short_product *t, int r0, int n, int64_t c, int wide, attend_type type) {
  lanes sum[SHORT_ROWS][SHORT_WIDE];
  int64_t padded = round_up(t->columns, LANES);
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++)
      sum[r][v] = t->sums ? lanes_load(t->sums + (r0 + r) * padded + c + v * LANES) : lanes_zero();
  const real *a = t->a + r0 * t->a_row, *x = t->x.rows + c;
  if (t->visible) {
    const real *visible = t->visible + r0 * t->a_row;
    for (int k = 0; k < t->terms; k++)
      for (int r = 0; r < n; r++)
        if (visible[r * t->a_row + k * t->a_term] != 0)
          for (int v = 0; v < wide; v++)
            sum[r][v] = lanes_fma(lanes_set1(a[r * t->a_row + k * t->a_term]), lanes_load(x + k * t->x.row + v * LANES),
                                  sum[r][v]);
  } else {
    for (int k = 0; k < t->terms; k++, a += t->a_term, x += t->x.row) {
      lanes y[SHORT_WIDE];
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) y[v] = lanes_load(x + v * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) {
        lanes p = lanes_set1(a[r * t->a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) sum[r][v] = lanes_fma(p, y[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < n; r++)
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      int64_t column = c + v * LANES, index = (r0 + r) * t->out.row + column * t->out.col;
      if (!t->out.data) {
        lanes_store(t->sums + (r0 + r) * padded + column, sum[r][v]);
        continue;
      }
      lanes y = lanes_mul(sum[r][v], lanes_set1(t->factor[r0 + r]));
      if (t->stream) {
        lanes_stream_type(t->out.data + index * (int64_t)attend_type_size(type), y, type);
        continue;
      }
      int width = t->columns - column < LANES ? (int)(t->columns - column) : LANES;
      if (t->add) y = lanes_add(pack_load(t->out.data, index, t->out.col, width, type), y);
      pack_store(t->out.data, index, t->out.col, y, width, type);
    }
}

WORD void short_product_as(const short_product *t, attend_type type) {
  int64_t c = 0;
  for (; c + SHORT_WIDE * LANES <= t->columns; c += SHORT_WIDE * LANES) {
    int r = 0;
    for (; r + SHORT_ROWS <= t->rows; r += SHORT_ROWS) short_product_tile(t, r, SHORT_ROWS, c, SHORT_WIDE, type);
    for (; r < t->rows; r++) short_product_tile(t, r, 1, c, SHORT_WIDE, type);
  }
  for (; c < t->columns; c += LANES)
    for (int r = 0; r < t->rows; r++) short_product_tile(t, r, 1, c, 1, type);
}
static void short_multiply(const short_product *t, attend_type type) {
  if (type == TYPE_F16)
    short_product_as(t, TYPE_F16);
  else if (type == TYPE_BF16)
    short_product_as(t, TYPE_BF16);
  else
    short_product_as(t, REAL_TYPE);
}

/* Ask for the rows of the next (sequence, head): with [B,N,H,D] memory they are not where a hardware prefetcher looks,
 * and with [B,H,N,D] it stops at each page. */
static void short_prefetch(const attend_matrix *m, int rows, int64_t columns, attend_type type) {
  int64_t size = (int64_t)attend_type_size(type);
  for (int r = 0; r < rows && m->data; r++)
    for (int64_t byte = 0; byte < columns * size; byte += 64) __builtin_prefetch(m->data + r * m->row * size + byte);
}

/* May rows of this output be stored past the cache, and is it worth it? An output that would stay in the second-level
 * cache until it is read again should. */
static bool short_streams(const attend_problem *p, const attend_operands *o, operand_id id, int64_t rows,
                          int64_t columns) {
  const attend_layout *l = &p->layout[id];
  int64_t size = (int64_t)attend_type_size(p->type);
  int64_t steps = (l->batch | l->head | l->row) * size | (int64_t)(uintptr_t)o->data[id];
  return o->data[id] && l->col == 1 && columns % LANES == 0 && steps % (LANES * size) == 0 && !p->accumulate &&
         rows * columns * size > attend_cpu_cache_sizes().second * p->threads;
}

/* Does the whole problem consist of short sequences? Only sizes that every sequence has may decide, so that the choice
 * for one does not depend on its neighbours: ragged batches and kv_len go to the tiled kernel. */
static bool short_serves(const attend_problem *p, char reason[ATTEND_REASON_SIZE]) {
  if (p->ragged_q || p->ragged_k || p->paged || attend_has(p, OPERAND_KV_LEN))
    snprintf(reason, ATTEND_REASON_SIZE, "sequences of lengths of their own: ragged, paged or kv_len");
  else if (p->q_len > SHORT_MAX || p->k_len > SHORT_MAX)
    snprintf(reason, ATTEND_REASON_SIZE, "sequences longer than %d", SHORT_MAX);
  else
    return true;
  return false;
}
