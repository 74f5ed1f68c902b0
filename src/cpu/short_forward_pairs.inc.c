/* SPDX-License-Identifier: MIT */
/* Forward on short sequences: what its kernels share. An item of work is some pairs (sequence, head), SHORT_PAIRS or
 * more; while one is computed the next is asked for. */

/* What all pairs share of Q, K, V or O. */
typedef struct short_operand {
  int64_t head;            /* bytes from a head to the next; 0 where there are no rows at all */
  int64_t step;            /* from a row to the next, as it is read or written: in place, or where a copy is */
  int64_t bytes;           /* of a row's elements */
  int64_t left;            /* rows of a pair of at most so many bytes are left to the hardware to ask for */
  bool in_place, adjacent; /* rows follow each other */
} short_operand;

typedef struct short_forward_context {
  const attend_problem *problem;
  const attend_choice *choice;
  const attend_operands *operands;
  char *workspace;
  size_t bytes_per_worker;
  int64_t group;    /* query heads that share keys */
  int64_t lse_head; /* elements of lse from a head to the next */
  int64_t pairs;    /* of an item */
  int together;     /* pairs that go through each step together, at most */
  bool stream, options, in_blocks;
  short_operand q, k, v, out;
  short_order order; /* of q, k and v: short_lengths.inc.c */
} short_forward_context;

typedef struct short_forward_scratch {
  real *s, *visible, *q, *k, *v, *out; /* [2][SHORT_MAX + 1][SHORT_MAX]: of all pairs of a step, or of two pairs;
                                          [SHORT_MAX][SHORT_MAX]; [SHORT_MAX][padded] */
} short_forward_scratch;

/* One (sequence, head). */
typedef struct short_forward_pair {
  const short_shape *shape;
  const short_blocks *blocks;
  char *q, *k, *v, *out;
  real *s, *lse;              /* lse NULL: not wanted */
  vector_rows q_rows, k_rows; /* in blocks, as they are read */
  short_values values;
  int64_t b, h;
  bool asks; /* rows of such a pair are asked for */
  real factor[SHORT_MAX];
} short_forward_pair;

static short_forward_scratch short_forward_scratch_at(const attend_problem *p, char *base, int64_t *used) {
  short_forward_scratch w;
  w.s = take(base, used, 2 * (SHORT_MAX + 1) * SHORT_MAX);
  w.visible = take(base, used, SHORT_MAX * SHORT_MAX);
  w.q = take(base, used, SHORT_MAX * short_padded(p->head_dim, p->type));
  w.k = take(base, used, SHORT_MAX * short_padded(p->head_dim, p->type));
  w.v = take(base, used, SHORT_MAX * short_padded(p->v_dim, p->type));
  w.out = take(base, used, SHORT_MAX * short_padded(p->v_dim, p->type));
  return w;
}

/* ---- Operands ---- */

static short_operand short_operand_at(const short_forward_context *f, operand_id id, int64_t columns) {
  const attend_problem *p = f->problem;
  const attend_layout *l = &p->layout[id];
  const attend_type type = p->type, as = short_row_type(type);
  const int64_t size = (int64_t)attend_type_size(type), padded = short_padded(columns, type);
  short_operand x;
  x.adjacent = l->row == columns && l->col == 1;
  x.in_place = type == as && l->col == 1;
  if (id == OPERAND_OUT)
    x.in_place &= !f->stream || (uintptr_t)f->operands->data[id] % 64 == 0; /* whole lines */
  else
    x.in_place &= padded == columns && !(p->paged && id != OPERAND_Q);
  x.head = f->operands->data[id] ? l->head * size : 0, x.bytes = columns * size;
  x.step = x.in_place ? l->row * size : padded * (int64_t)attend_type_size(as);
  /* Where rows follow each other the core asks for the next by itself, and to do so as well is in its way; but it stops
   * at the end of a page of 4 KB, and larger pairs gain: of f32, 5 keys lose (158 to 181 ns a pair), 6 gain (250 to
   * 209); of bf16, half as long and with less to wait for, 16 lose (377 to 390). */
  if (f->in_blocks)
    x.left = f->choice->own[SHORT_OWN_STAYS] ? INT64_MAX : !x.adjacent ? 0 : size == 2 ? 2048 : 1400;
  else
    x.left = f->stream && x.adjacent ? INT64_MAX : 0;
  return x;
}

static attend_matrix short_forward_matrix(const short_forward_context *f, operand_id id, char *data) {
  const attend_layout *l = &f->problem->layout[id];
  return (attend_matrix){data, l->row, l->col};
}

/* Rows of Q, K or V at `data` as they can be read. */
static const char *short_forward_copy(const short_forward_context *f, const attend_slice *s, operand_id id, char *data,
                                      real *buffer) {
  const attend_problem *p = f->problem;
  const attend_matrix m = short_forward_matrix(f, id, data);
  if (id == OPERAND_Q) return short_rows(&m, (int)s->q_len, p->head_dim, p->type, buffer).rows;
  return short_key_rows(s, &m, id == OPERAND_V, id == OPERAND_V ? p->v_dim : p->head_dim, p->type, buffer).rows;
}
WORD vector_rows short_forward_rows(const short_forward_context *f, const attend_slice *s, operand_id id,
                                    const short_operand *x, char *data, real *buffer) {
  return (vector_rows){x->in_place ? data : short_forward_copy(f, s, id, data, buffer), x->step,
                       short_row_type(f->problem->type)};
}

/* ---- From pair to pair ---- */

WORD bool short_forward_must_ask(const short_operand *o, int64_t rows) { return rows * o->bytes > o->left; }

WORD void short_forward_ask(const short_forward_context *f, short_ahead *ahead, operand_id id, const short_operand *o,
                            char *data, int64_t rows, int64_t columns) {
  if (!short_forward_must_ask(o, rows)) return;
  const attend_matrix m = short_forward_matrix(f, id, data);
  short_ahead_add(ahead, &m, rows, columns, f->problem->type);
}
static void short_forward_ask_all(const short_forward_context *f, const short_forward_pair *x, int64_t queries,
                                  int64_t keys, bool own_keys, short_ahead *ahead) {
  const attend_problem *p = f->problem;
  short_forward_ask(f, ahead, OPERAND_Q, &f->q, x->q, queries, p->head_dim);
  if (own_keys && !p->paged) {
    short_forward_ask(f, ahead, OPERAND_K, &f->k, x->k, keys, p->head_dim);
    short_forward_ask(f, ahead, OPERAND_V, &f->v, x->v, keys, p->v_dim);
  }
  if (f->stream) short_ahead_ends(ahead, short_forward_matrix(f, OPERAND_OUT, x->out), queries, p->v_dim, p->type);
}

static bool short_forward_asks(const short_forward_context *f, int64_t queries, int64_t keys) {
  return short_forward_must_ask(&f->q, queries) || short_forward_must_ask(&f->k, keys) ||
         short_forward_must_ask(&f->v, keys) || (f->stream && (uintptr_t)f->operands->data[OPERAND_OUT] % 64);
}

/* Where head h of sequence b lies. */
static void short_forward_at(const short_forward_context *f, int64_t b, int64_t h, short_forward_pair *x) {
  const attend_problem *p = f->problem;
  const attend_operands *o = f->operands;
  x->b = b, x->h = h;
  x->q = short_matrix(p, o, OPERAND_Q, b, h).data;
  x->k = short_matrix(p, o, OPERAND_K, b, h / f->group).data;
  x->v = short_matrix(p, o, OPERAND_V, b, h / f->group).data;
  x->out = short_matrix(p, o, OPERAND_OUT, b, h).data;
  x->lse = (real *)(void *)short_matrix(p, o, OPERAND_LSE, b, h).data;
}
/* The same of the next head, h. */
WORD void short_forward_beside(const short_forward_context *f, const short_forward_pair *before, int64_t h,
                               short_forward_pair *x) {
  x->b = before->b, x->h = h;
  x->q = before->q + f->q.head, x->out = before->out + f->out.head;
  x->k = before->k, x->v = before->v;
  if (f->group == 1 || h % f->group == 0) x->k += f->k.head, x->v += f->v.head;
  x->lse = before->lse ? before->lse + f->lse_head : NULL;
}

/* The first pair of the item, or of a sequence; false if there is none. */
static bool short_forward_first(const short_forward_context *f, short_walk *walk, short_forward_pair *x) {
  const attend_problem *p = f->problem;
  const attend_operands *o = f->operands;
  while (walk->left > 0 && !(x->shape = short_walk_shape(p, o, f->choice, walk))) {
    walk->left -= p->heads - walk->h;
    walk->h = 0, walk->b++;
  }
  if (walk->left <= 0) return false;
  short_forward_at(f, walk->b, walk->h, x);
  x->asks = short_forward_asks(f, x->shape->slice.q_len, x->shape->slice.k_len);
  return true;
}

/* The next pair, its rows to be asked for; false if there is none. `before`: the one before, or NULL. */
WORD bool short_forward_next(const short_forward_context *f, short_walk *walk, const short_forward_pair *before,
                             short_forward_pair *x, short_ahead *ahead) {
  if (before && walk->h > 0) {
    if (walk->left == 0) return false;
    x->shape = before->shape, x->asks = before->asks;
    short_forward_beside(f, before, walk->h, x);
  } else if (!short_forward_first(f, walk, x))
    return false;
  if (x->asks) short_forward_ask_all(f, x, x->shape->slice.q_len, x->shape->slice.k_len, x->h % f->group == 0, ahead);
  walk->left--;
  if (++walk->h == f->problem->heads) walk->h = 0, walk->b++;
  return true;
}

static void short_forward_begin(const short_forward_context *f, int64_t index, short_walk *walk) {
  int64_t at = index * f->pairs, heads = f->problem->heads, pairs = f->problem->batch * heads;
  walk->b = at / heads, walk->h = at % heads, walk->shape = -1;
  walk->left = pairs - at < f->pairs ? pairs - at : f->pairs;
}
