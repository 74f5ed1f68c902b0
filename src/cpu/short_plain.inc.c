/* SPDX-License-Identifier: MIT */
/* Forward on short sequences without options, in blocks. */

static void short_plain_scores(const short_forward_context *f, short_forward_pair *x, const short_forward_scratch *w,
                               real factor, short_ahead *ahead) {
  const attend_slice *s = &x->shape->slice;
  x->q_rows.rows = f->q.in_place ? x->q : short_forward_copy(f, s, OPERAND_Q, x->q, w->q);
  x->k_rows.rows = f->k.in_place ? x->k : short_forward_copy(f, s, OPERAND_K, x->k, w->k);
  short_blocks_scores(x->blocks, x->s, &x->q_rows, &x->k_rows, f->problem->head_dim, factor, ahead);
}

/* A row of O to where it belongs. */
static void short_plain_row(const short_forward_context *f, char *to, const char *from) {
  const attend_problem *p = f->problem;
  const int64_t size = (int64_t)attend_type_size(p->type), col = p->layout[OPERAND_OUT].col;
  if (p->type == TYPE_F16 && f->stream)
    for (int64_t c = 0; c < p->v_dim; c += 2 * LANES) {
      const real *x = (const real *)(const void *)from + c;
      const lanes two[2] = {lanes_load(x), lanes_load(x + LANES)};
      short_stream(to, c, two, p->v_dim, TYPE_F16);
    }
  else if (p->type == TYPE_F16)
    for (int64_t c = 0; c < p->v_dim; c += LANES) {
      const int64_t count = p->v_dim - c < LANES ? p->v_dim - c : LANES;
      const lanes x = lanes_load((const real *)(const void *)from + c);
      uint16_t copy[LANES];
      if (col == 1)
        lanes_store_type(to + c * size, x, (int)count, TYPE_F16);
      else {
        lanes_store_f16(copy, x);
        short_scatter(to + c * col * size, copy, col, count, size);
      }
    }
  else if (f->stream)
    short_stream_parts(to, from, (int)(p->v_dim * size), to, p->v_dim * size);
  else
    short_scatter(to, from, col, p->v_dim, size);
}

static void short_plain_store(const short_forward_context *f, const short_forward_pair *x) {
  const int64_t step = f->problem->layout[OPERAND_OUT].row * (int64_t)attend_type_size(f->problem->type);
  for (int64_t i = 0; i < x->shape->slice.q_len; i++)
    short_plain_row(f, x->out + i * step, x->values.out + i * x->values.step);
}
static void short_plain_values(const short_forward_context *f, short_forward_pair *x, const short_forward_scratch *w,
                               short_ahead *ahead) {
  x->values.v.rows = f->v.in_place ? x->v : short_forward_copy(f, &x->shape->slice, OPERAND_V, x->v, w->v);
  if (f->out.in_place) x->values.out = x->out;
  if (!short_blocks_values(x->blocks, x->s, &x->values, ahead))
    short_blocks_values_apart(x->blocks, x->s, &x->values, &x->shape->range);
  if (!f->out.in_place) short_plain_store(f, x);
}

/* Pairs whose rows are asked for, whose scores are taken and whose values. */
enum { SHORT_RING = SHORT_LEAD + 2 };

/* What does not change from pair to pair. */
static void short_plain_ring(const short_forward_context *f, const short_forward_scratch *w,
                             short_forward_pair ring[SHORT_RING]) {
  const attend_type type = short_row_type(f->problem->type);
  for (int i = 0; i < SHORT_RING; i++) {
    short_forward_pair *x = &ring[i];
    x->s = w->s + i % 2 * SHORT_MAX * SHORT_MAX;
    x->q_rows.step = f->q.step, x->k_rows.step = f->k.step, x->values.v.step = f->v.step;
    x->q_rows.type = x->k_rows.type = x->values.v.type = type;
    x->values.out = (char *)w->out, x->values.step = f->out.step, x->values.columns = f->problem->v_dim;
    x->values.stream = f->out.in_place && f->stream;
  }
}

/* A pair's values come after the next one's scores: the softmax in between has time, and stores past the cache never
 * follow each other for longer than the core's queue of them. */
static void short_plain_item(void *context, int worker, int64_t index) {
  const short_forward_context *f = context;
  const attend_problem *p = f->problem;
  int64_t used = 0;
  short_forward_scratch w = short_forward_scratch_at(p, f->workspace + (size_t)worker * f->bytes_per_worker, &used);
  const real factor = score_factor(p);
  short_walk walk;
  short_forward_pair ring[SHORT_RING];
  short_blocks blocks[SHORT_RING]; /* of the pairs of the ring */
  const short_shape *last = NULL;
  short_forward_begin(f, index, &walk);
  short_plain_ring(f, &w, ring);
  short_ahead ahead;
  ahead.parts = ahead.now = ahead.rows = 0, ahead.second = true; /* in [B,N,H,D] 817 ns, not 1430, at 16 keys */
  for (unsigned n = 0, count = SHORT_PAIRS, made = 0; n <= count + SHORT_LEAD; n++) {
    short_forward_pair *next = &ring[n % SHORT_RING], *before = &ring[(n - 1) % SHORT_RING];
    short_forward_pair *scores = &ring[(n - SHORT_LEAD) % SHORT_RING], *values = &ring[(n + 1) % SHORT_RING];
    if (n < count) {
      if (!short_forward_next(f, &walk, n > 0 ? before : NULL, next, &ahead))
        count = n;
      else if (next->shape == last)
        next->blocks = before->blocks;
      else {
        last = next->shape;
        made = (made + 1) % SHORT_RING;
        short_blocks_make(&last->range, (int)last->slice.q_len, &blocks[made]);
        next->blocks = &blocks[made];
      }
    }
    const bool has_scores = n >= SHORT_LEAD && n < count + SHORT_LEAD;
    ahead.pace = has_scores && ahead.rows ? 1 + ahead.rows / scores->blocks->tiles : 0;
    if (has_scores) short_plain_scores(f, scores, &w, factor, &ahead);
    if (n > SHORT_LEAD) short_plain_values(f, values, &w, &ahead);
    if (has_scores) short_blocks_softmax(scores->blocks, scores->s, scores->lse, p->layout[OPERAND_LSE].row);
    short_ahead_rows(&ahead, 4 * SHORT_MAX);
    ahead.parts = ahead.now = ahead.rows = 0;
  }
  if (f->stream) lanes_stream_end();
}
