/* SPDX-License-Identifier: MIT */
/* The pieces of both directions: matrices copied to reals, the product, and the scores of a block of queries. */

/* Left factor of a product: element (i, d) is data[i * row + d * col]. Where `seen` is given, it says of the same (i,
 * d) whether that pair takes part: weights of hidden pairs are 0, but 0 * NaN is not. */
typedef struct factor {
  const real *data;
  int64_t row, col;
  const unsigned char *seen;
} factor;

/* C[m, n] += A[m, depth] * B[depth, n]. Four steps of depth at a time, so that C is loaded and stored a quarter as
 * often; along n it vectorises for any instruction set. */
static void product(int64_t m, int64_t n, int64_t depth, factor a, const real *b, int64_t b_row, real *c,
                    int64_t c_row) {
  for (int64_t i = 0; i < m; i++) {
    real *restrict out = c + i * c_row;
    int64_t d = 0;
    for (; d + 4 <= depth; d += 4) {
      const real *x = a.data + i * a.row + d * a.col, *y = b + d * b_row;
      real x0 = x[0], x1 = x[a.col], x2 = x[2 * a.col], x3 = x[3 * a.col];
      const unsigned char *seen = a.seen ? a.seen + i * a.row + d * a.col : NULL;
      if (!seen || (seen[0] && seen[a.col] && seen[2 * a.col] && seen[3 * a.col]))
        for (int64_t j = 0; j < n; j++)
          out[j] += (x0 * y[j] + x1 * y[b_row + j]) + (x2 * y[2 * b_row + j] + x3 * y[3 * b_row + j]);
      else /* in the same order, so that what is hidden does not change a bit */
        for (int64_t j = 0; j < n; j++)
          out[j] += ((seen[0] ? x0 * y[j] : 0) + (seen[a.col] ? x1 * y[b_row + j] : 0)) +
                    ((seen[2 * a.col] ? x2 * y[2 * b_row + j] : 0) + (seen[3 * a.col] ? x3 * y[3 * b_row + j] : 0));
    }
    for (; d < depth; d++) {
      int64_t at = i * a.row + d * a.col;
      if (a.seen && !a.seen[at]) continue;
      for (int64_t j = 0; j < n; j++) out[j] += a.data[at] * b[d * b_row + j];
    }
  }
}

static void load_rows(const attend_problem *p, const attend_matrix *m, int64_t first, int64_t rows, int64_t columns,
                      real *to) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t c = 0; c < columns; c++)
      to[i * columns + c] = (real)attend_load(m->data, (first + i) * m->row + c * m->col, p->type);
}

static bool all_finite(const real *x, int64_t count) {
  real sum = 0;
  for (int64_t i = 0; i < count; i++) sum += x[i] * 0; /* 0, or NaN */
  return sum == 0;
}

/* Keys [first, first + count) of one sequence and head, as rows and transposed. */
typedef struct key_block {
  int64_t first, count;
  real *k, *k_t, *v, *v_t;
  bool finite;
} key_block;

static int64_t key_block_reals(const attend_problem *p) { return 2 * p->k_len * (p->head_dim + p->v_dim); }

static key_block load_keys(const attend_problem *p, const attend_slice *s, int64_t first, int64_t last, real *memory) {
  int64_t n = last - first, dim = p->head_dim, v_dim = p->v_dim;
  key_block b = {.first = first, .count = n, .k = memory, .k_t = memory + n * dim};
  b.v = b.k_t + n * dim;
  b.v_t = b.v + n * v_dim;
  for (int64_t j = 0; j < n; j++) {
    int64_t key = attend_key_row(s, first + j), value = attend_value_row(s, first + j);
    for (int64_t c = 0; c < dim; c++)
      b.k_t[c * n + j] = b.k[j * dim + c] = (real)attend_load(s->k.data, key + c * s->k.col, p->type);
    for (int64_t c = 0; c < v_dim; c++)
      b.v_t[c * n + j] = b.v[j * v_dim + c] = (real)attend_load(s->v.data, value + c * s->v.col, p->type);
  }
  b.finite = all_finite(b.k, n * dim) && all_finite(b.v, n * v_dim);
  return b;
}

/* Queries [first, first + rows), and the scores of the keys [keys_first, keys_first + n) that any of them may see. */
typedef struct query_block {
  int64_t first, rows, keys_first, n;
  real *q;             /* [rows, head_dim] */
  real *scores;        /* [rows, n] */
  unsigned char *seen; /* [rows, n] */
} query_block;

static void visible_keys(const attend_problem *p, const attend_slice *s, query_block *block) {
  int64_t first = s->k_len, last = 0;
  for (int64_t r = 0; r < block->rows; r++) {
    int64_t f, l;
    attend_visible_range(p, s, block->first + r, &f, &l);
    if (f < l && f < first) first = f;
    if (f < l && l > last) last = l;
  }
  block->keys_first = first < last ? first : 0;
  block->n = first < last ? last - first : 0;
}

static void find_seen(const attend_problem *p, const attend_slice *s, const query_block *block) {
  for (int64_t r = 0; r < block->rows; r++) {
    int64_t i = block->first + r, first, last;
    attend_visible_range(p, s, i, &first, &last);
    for (int64_t x = 0; x < block->n; x++) {
      int64_t j = block->keys_first + x;
      bool seen = j >= first && j < last;
      if (seen && s->mask.data) seen = attend_load(s->mask.data, i * s->mask.row + j * s->mask.col, TYPE_BOOL) != 0;
      if (seen && s->bias.data)
        seen = attend_load(s->bias.data, i * s->bias.row + j * s->bias.col, p->layout[OPERAND_BIAS].type) != -INFINITY;
      block->seen[r * block->n + x] = seen;
    }
  }
}

static void write_scores(const attend_problem *p, const attend_slice *s, const query_block *block, attend_stage stage) {
  if (!s->scores.data || p->scores_stage != stage) return;
  for (int64_t r = 0; r < block->rows; r++)
    for (int64_t x = 0; x < block->n; x++)
      attend_store(s->scores.data, (block->first + r) * s->scores.row + (block->keys_first + x) * s->scores.col,
                   p->layout[OPERAND_SCORES].type, (double)block->scores[r * block->n + x]);
}

/* Scores of the block up to what the softmax sees. `slope`, if given, receives d softcap(s) / d s. */
static void score_block(const attend_problem *p, const attend_slice *s, const key_block *keys, const query_block *block,
                        real *slope) {
  int64_t rows = block->rows, n = block->n, count = rows * n;
  load_rows(p, &s->q, block->first, rows, p->head_dim, block->q);
  memset(block->scores, 0, (size_t)count * sizeof(real));
  product(rows, n, p->head_dim, (factor){block->q, p->head_dim, 1, NULL}, keys->k_t + (block->keys_first - keys->first),
          keys->count, block->scores, n);
  for (int64_t x = 0; x < count; x++) block->scores[x] *= (real)p->scale;
  write_scores(p, s, block, ATTEND_SCORES_RAW);
  if (p->softcap > 0)
    for (int64_t x = 0; x < count; x++) {
      real t = real_tanh(block->scores[x] / (real)p->softcap);
      block->scores[x] = (real)p->softcap * t;
      if (slope) slope[x] = 1 - t * t;
    }
  write_scores(p, s, block, ATTEND_SCORES_SOFTCAP);
  find_seen(p, s, block);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t x = 0; x < n; x++) {
      int64_t i = block->first + r, j = block->keys_first + x;
      real *score = &block->scores[r * n + x];
      if (!block->seen[r * n + x]) {
        *score = -INFINITY;
        continue;
      }
      if (s->bias.data)
        *score += (real)attend_load(s->bias.data, i * s->bias.row + j * s->bias.col, p->layout[OPERAND_BIAS].type);
      if (attend_has(p, OPERAND_ALIBI)) *score -= (real)(s->slope * fabs((double)(i + s->off - j)));
    }
  write_scores(p, s, block, ATTEND_SCORES_MASKED);
}

/* Multiply the weights of one block by keep / (1 - dropout). */
static void drop_block(const attend_problem *p, const attend_operands *o, const attend_slice *s,
                       const query_block *block, real *weights) {
  if (p->dropout_threshold == 0) return;
  for (int64_t r = 0; r < block->rows; r++)
    for (int64_t x = 0; x < block->n; x++) {
      uint32_t draw = attend_dropout_draw(o->dropout_seed, o->dropout_offset, (uint32_t)s->b, (uint32_t)s->h,
                                          (uint64_t)(block->first + r), (uint64_t)(block->keys_first + x));
      weights[r * block->n + x] *= draw >= p->dropout_threshold ? (real)p->dropout_scale : 0;
    }
}

static int64_t block_rows(const attend_problem *p) { return p->q_len < MATH_ROWS ? p->q_len : MATH_ROWS; }
static int64_t block_count(const attend_problem *p) { return (p->q_len + MATH_ROWS - 1) / MATH_ROWS; }
