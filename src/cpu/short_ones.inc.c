/* SPDX-License-Identifier: MIT */
/* Short sequences of one query and one key: pairs go through each step as the lanes of one vector. In vectors of their
 * own they took 190 ns each forward and 370 backward at 64 dimensions, nearly all of it spent on the way into and out
 * of a step. Each lane does what its pair alone would: the bits are the same. Those that fill no vector go one by one.
 */
enum { SHORT_ONES = LANES < SHORT_BATCH ? LANES : SHORT_BATCH };
enum { SHORT_ONES_USUAL = 64 }; /* columns that a single pair has code of its own for: a call for it is all overhead */

typedef struct short_ones {
  real *row[SHORT_ONES];
} short_ones;

/* Has every pair of the problem one query and one key, whose rows are read and written as whole vectors? */
static bool short_is_one(const attend_problem *p) {
  static const operand_id rows[] = {OPERAND_Q,   OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                    OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V, OPERAND_D_OUT};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (attend_has(p, rows[i]) && p->layout[rows[i]].col != 1) return false;
  return p->q_len == 1 && p->k_len == 1 && !attend_lengths_vary(p) && !p->paged && !short_has_options(p) &&
         p->softcap == 0 && p->type == REAL_TYPE && p->head_dim % (2 * LANES) == 0 && p->v_dim % (2 * LANES) == 0 &&
         p->heads == p->kv_heads && !p->accumulate && !attend_has(p, OPERAND_D_LSE);
}

/* Goes through the pairs of item `index`: SHORT_ONES at a time, then one at a time. */
typedef struct short_ones_walk {
  int64_t b, h, left;
} short_ones_walk;
static short_ones_walk short_ones_begin(const attend_problem *p, int64_t index) {
  const int64_t first = index * SHORT_PAIRS, left = p->batch * p->heads - first;
  short_ones_walk w = {.left = left < SHORT_PAIRS ? left : SHORT_PAIRS};
  if (index) w.b = first / p->heads, w.h = first % p->heads;
  return w;
}
WORD void short_ones_next(const attend_problem *p, short_ones_walk *w, int count) {
  w->left -= count;
  for (w->h += count; w->h >= p->heads; w->h -= p->heads) w->b++;
}

WORD short_ones short_ones_at(const attend_problem *p, const attend_operands *o, operand_id id,
                              const short_ones_walk *w, int count) {
  const attend_layout *l = &p->layout[id];
  int64_t b = w->b, h = w->h;
  short_ones x = {{NULL}};
  for (int i = 0; i < count; i++) {
    if (!o->data[id]) break;
    x.row[i] = o->data[id];
    if (b | h) x.row[i] += b * l->batch + h * l->head; /* a call for one pair does without */
    if (++h == p->heads) h = 0, b++;
  }
  return x;
}

/* sum[i], whose lanes are yet to be added up: the product of row i of x and of y; 0 from `count`, a constant, on. */
WORD void short_ones_dots(const short_ones *x, const short_ones *y, int count, int64_t columns, lanes sum[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) sum[i] = lanes_zero();
#pragma GCC unroll 4
  for (int64_t c = 0; c < columns; c += 2 * LANES)
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
      const real *a = x->row[i] + c, *b = y->row[i] + c;
      sum[i] = lanes_fma(lanes_load(a), lanes_load(b), sum[i]);
      sum[i] = lanes_fma(lanes_load(a + LANES), lanes_load(b + LANES), sum[i]);
    }
}

/* The softmax of one score: 1, and 0 of -inf, NaN of what else is not finite. */
WORD lanes short_ones_softmax(lanes s) {
  return lanes_select(lanes_equal(s, lanes_set1(-(real)INFINITY)), lanes_zero(),
                      lanes_add(lanes_set1(1), lanes_sub(s, s)));
}

/* Row i of out = lane i of a * row i of x; x NULL: 0, in a register, or gcc would call memset for each row. */
WORD void short_ones_products(const short_ones *out, lanes a, const short_ones *x, int count, int64_t columns,
                              bool stream) {
  real factor[LANES];
  lanes_store(factor, a);
  const lanes zero = lanes_once(lanes_zero());
  for (int i = 0; i < count; i++) {
    if (!out->row[i]) return;
    const lanes y = lanes_set1(factor[i]);
#pragma GCC unroll 4
    for (int64_t c = 0; c < columns; c += 2 * LANES) {
      const real *from = x ? x->row[i] + c : NULL;
      const lanes z[2] = {x ? lanes_fma(y, lanes_load(from), zero) : zero,
                          x ? lanes_fma(y, lanes_load(from + LANES), zero) : zero};
      if (stream)
        lanes_stream_pair((char *)(out->row[i] + c), z, REAL_TYPE);
      else
        lanes_store_pair((char *)(out->row[i] + c), z, REAL_TYPE);
    }
  }
}
