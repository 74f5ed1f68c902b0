/* SPDX-License-Identifier: MIT */
/* Forward on short sequences: what its kernels share. An item of work is SHORT_PAIRS pairs (sequence, head); while one
 * is computed the next is asked for. */

/* What all pairs share of Q, K, V or O. */
typedef struct short_operand {
  int64_t head;  /* bytes from a head to the next */
  int64_t step;  /* from a row to the next, as it is read or written: in place, or where a copy is */
  int64_t bytes; /* of a row's elements */
  int64_t left;  /* rows of a pair of at most so many bytes are left to the hardware to ask for */
  bool in_place;
} short_operand;

typedef struct short_forward_context {
  const attend_problem *problem;
  const attend_choice *choice;
  const attend_operands *operands;
  char *workspace;
  size_t bytes_per_worker;
  int64_t group; /* query heads that share keys */
  int together;  /* pairs that go through each step together, at most */
  bool stream, options, in_blocks;
  short_operand q, k, v, out;
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
  real *s, *lse; /* lse NULL: not wanted */
  int64_t b, h;
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
  const bool adjacent = l->row == columns && l->col == 1;
  short_operand x;
  x.in_place = type == as && l->col == 1;
  if (id == OPERAND_OUT)
    x.in_place &= !f->stream || (uintptr_t)f->operands->data[id] % 64 == 0; /* whole lines */
  else
    x.in_place &= padded == columns && !(p->paged && id != OPERAND_Q);
  x.head = l->head * size, x.bytes = columns * size;
  x.step = x.in_place ? l->row * size : padded * (int64_t)attend_type_size(as);
  /* Where rows follow each other the core asks for the next by itself, and to do so as well is in its way; but it stops
   * at the end of a page of 4 KB, and larger pairs gain: of f32, 5 keys lose (158 to 181 ns a pair), 6 gain (250 to
   * 209); of bf16, half as long and with less to wait for, 16 lose (377 to 390). */
  if (f->in_blocks)
    x.left = f->choice->own[SHORT_OWN_STAYS] ? INT64_MAX : !adjacent ? 0 : size == 2 ? 2048 : 1400;
  else
    x.left = f->stream && adjacent ? INT64_MAX : 0;
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

static void short_forward_first(const short_forward_context *f, short_forward_pair *x) {
  const attend_problem *p = f->problem;
  x->q = short_matrix(p, f->operands, OPERAND_Q, x->b, x->h).data;
  x->k = short_matrix(p, f->operands, OPERAND_K, x->b, x->h / f->group).data;
  x->v = short_matrix(p, f->operands, OPERAND_V, x->b, x->h / f->group).data;
  x->out = short_matrix(p, f->operands, OPERAND_OUT, x->b, x->h).data;
  x->lse = (real *)(void *)short_matrix(p, f->operands, OPERAND_LSE, x->b, x->h).data;
}

WORD void short_forward_ask(const short_forward_context *f, short_ahead *ahead, operand_id id, const short_operand *o,
                            char *data, int64_t rows, int64_t columns) {
  if (rows * o->bytes <= o->left) return;
  const attend_matrix m = short_forward_matrix(f, id, data);
  short_ahead_add(ahead, &m, rows, columns, f->problem->type);
}

/* The next pair, its rows to be asked for; false if there is none. `before`: the one before, or NULL. */
static bool short_forward_next(const short_forward_context *f, short_walk *walk, const short_forward_pair *before,
                               short_forward_pair *x, short_ahead *ahead) {
  const attend_problem *p = f->problem;
  const bool same = before && walk->h > 0;
  while (walk->left > 0 && !same && !(x->shape = short_walk_shape(p, f->operands, f->choice, walk))) {
    walk->left -= p->heads - walk->h;
    walk->h = 0, walk->b++;
  }
  if (walk->left <= 0) return false;
  const bool own_keys = f->group == 1 || walk->h % f->group == 0;
  x->b = walk->b, x->h = walk->h;
  if (same) {
    x->shape = before->shape;
    x->q = before->q + f->q.head, x->out = before->out + f->out.head;
    x->k = before->k ? before->k + (own_keys ? f->k.head : 0) : NULL; /* no keys */
    x->v = before->v ? before->v + (own_keys ? f->v.head : 0) : NULL;
    x->lse = before->lse ? before->lse + p->layout[OPERAND_LSE].head : NULL;
  } else
    short_forward_first(f, x);
  const int64_t keys = x->shape->slice.k_len, queries = x->shape->slice.q_len;
  short_forward_ask(f, ahead, OPERAND_Q, &f->q, x->q, queries, p->head_dim);
  if (own_keys && !p->paged) {
    short_forward_ask(f, ahead, OPERAND_K, &f->k, x->k, keys, p->head_dim);
    short_forward_ask(f, ahead, OPERAND_V, &f->v, x->v, keys, p->v_dim);
  }
  if (f->stream) short_ahead_ends(ahead, short_forward_matrix(f, OPERAND_OUT, x->out), queries, p->v_dim, p->type);
  walk->left--;
  if (++walk->h == p->heads) walk->h = 0, walk->b++;
  return true;
}

static void short_forward_begin(const short_forward_context *f, int64_t index, short_walk *walk) {
  int64_t at = index * SHORT_PAIRS, heads = f->problem->heads, pairs = f->problem->batch * heads;
  walk->b = at / heads, walk->h = at % heads, walk->shape = -1;
  walk->left = pairs - at < SHORT_PAIRS ? pairs - at : SHORT_PAIRS;
}
