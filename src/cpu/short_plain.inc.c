/* SPDX-License-Identifier: MIT */
/* Forward on short sequences without options, in blocks. */

static void short_plain_scores(const short_forward_context *f, const short_forward_pair *x,
                               const short_forward_scratch *w, short_ahead *ahead) {
  const attend_slice *s = &x->shape->slice;
  const vector_rows q = short_forward_rows(f, s, OPERAND_Q, &f->q, x->q, w->q);
  const vector_rows k = short_forward_rows(f, s, OPERAND_K, &f->k, x->k, w->k);
  short_blocks_scores(x->blocks, x->s, &q, &k, f->problem->head_dim, score_factor(f->problem), ahead);
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

static void short_plain_values(const short_forward_context *f, const short_forward_pair *x,
                               const short_forward_scratch *w, short_ahead *ahead) {
  const attend_problem *p = f->problem;
  const short_values t = {.v = short_forward_rows(f, &x->shape->slice, OPERAND_V, &f->v, x->v, w->v),
                          .out = f->out.in_place ? x->out : (char *)w->out,
                          .step = f->out.step,
                          .columns = p->v_dim,
                          .stream = f->out.in_place && f->stream};
  if (!short_blocks_values(x->blocks, x->s, &t, ahead))
    short_blocks_values_apart(x->blocks, x->s, &t, &x->shape->range);
  const int64_t step = p->layout[OPERAND_OUT].row * (int64_t)attend_type_size(p->type);
  for (int64_t i = 0; !f->out.in_place && i < x->shape->slice.q_len; i++)
    short_plain_row(f, x->out + i * step, t.out + i * t.step);
}

/* Pairs whose rows are asked for, whose scores are taken and whose values. */
enum { SHORT_RING = SHORT_LEAD + 2 };

/* A pair's values come after the next one's scores: the softmax in between has time, and stores past the cache never
 * follow each other for longer than the core's queue of them. */
static void short_plain_item(void *context, int worker, int64_t index) {
  const short_forward_context *f = context;
  int64_t used = 0;
  short_forward_scratch w =
      short_forward_scratch_at(f->problem, f->workspace + (size_t)worker * f->bytes_per_worker, &used);
  short_walk walk;
  short_forward_pair ring[SHORT_RING];
  short_blocks blocks[SHORT_RING]; /* of the pairs of the ring */
  const short_shape *last = NULL;
  short_forward_begin(f, index, &walk);
  short_ahead ahead;
  ahead.second = true; /* in [B,N,H,D] 817 ns, not 1430, at 16 keys */
  for (unsigned n = 0, count = SHORT_PAIRS, made = 0; n <= count + SHORT_LEAD; n++) {
    ahead.parts = ahead.now = ahead.rows = 0;
    short_forward_pair *next = &ring[n % SHORT_RING], *before = n > 0 ? &ring[(n - 1) % SHORT_RING] : NULL;
    if (n < count && short_forward_next(f, &walk, before, next, &ahead)) {
      if (next->shape != last) {
        last = next->shape;
        made = (made + 1) % SHORT_RING;
        short_blocks_make(&last->range, (int)last->slice.q_len, &blocks[made]);
      }
      next->blocks = &blocks[made];
      next->s = w.s + n % 2 * (SHORT_MAX + 1) * SHORT_MAX;
    } else if (n < count)
      count = n;
    const short_forward_pair *scores = &ring[(n + 2) % SHORT_RING], *values = &ring[(n + 1) % SHORT_RING];
    const bool has_scores = n >= SHORT_LEAD && n < count + SHORT_LEAD;
    ahead.pace = has_scores && ahead.rows ? 1 + ahead.rows / scores->blocks->tiles : 0;
    if (has_scores) short_plain_scores(f, scores, &w, &ahead);
    if (n > SHORT_LEAD) short_plain_values(f, values, &w, &ahead);
    if (has_scores) short_blocks_softmax(scores->blocks, scores->s, scores->lse, f->problem->layout[OPERAND_LSE].row);
    short_ahead_rows(&ahead, 4 * SHORT_MAX);
  }
  if (f->stream) lanes_stream_end();
}
