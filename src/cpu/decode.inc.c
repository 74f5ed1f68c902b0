/* SPDX-License-Identifier: MIT */
/* Forward for a few queries over many keys (decoding): the time is that of reading K and V, so every byte is read once
 * for all heads that share it, and the keys are divided over the threads.
 *
 * An item of work is one part of the keys of one (sequence, key head). It leaves maximum, sum and output of each query
 * row, which are merged in ascending order of the parts. The size of a part depends on the sequence's own length alone,
 * hence the bits do not depend on threads or neighbours. */

enum { DECODE_QUERIES = 16, DECODE_PART = 512, DECODE_PARTS = 64 };
#define DECODE_BYTES ((int64_t)16 << 20) /* of parts' results kept at a time */

typedef struct decode_cut {
  int64_t rows, pairs;       /* query rows of a pair, pairs of a round */
  int64_t most_parts, parts; /* of any sequence of this shape; of those of this problem */
  int64_t k_padded, v_padded;
  int64_t scratch_bytes, result_bytes;
} decode_cut;

typedef struct decode_context {
  const attend_problem *problem;
  const attend_operands *operands;
  decode_cut cut;
  char *workspace;
  real *max, *sum, *o; /* [pairs][parts][rows], the same, [pairs][parts][rows][v_padded] */
  int64_t first_pair;
} decode_context;

typedef struct decode_scratch {
  attend_slice *slices;  /* [group] */
  real *q, *s, *visible; /* [rows][k_padded], [rows][DECODE_BLOCK], the same */
  real *rescale, *k, *v; /* [rows], [DECODE_BLOCK][k_padded], [DECODE_BLOCK][v_padded] */
} decode_scratch;

static decode_scratch decode_scratch_at(const attend_problem *p, const decode_cut *cut, char *base, int64_t *used) {
  decode_scratch w;
  int64_t slices = attend_group(p) * (int64_t)(sizeof(attend_slice) / sizeof(real) + 1);
  w.slices = (attend_slice *)(void *)take(base, used, slices);
  w.q = take(base, used, cut->rows * cut->k_padded);
  w.s = take(base, used, cut->rows * DECODE_BLOCK);
  w.visible = take(base, used, cut->rows * DECODE_BLOCK);
  w.rescale = take(base, used, cut->rows);
  w.k = take(base, used, DECODE_BLOCK * cut->k_padded);
  w.v = take(base, used, DECODE_BLOCK * cut->v_padded);
  return w;
}

/* Keys of a part of a sequence of `keys` keys: at most DECODE_PARTS parts, and results within DECODE_BYTES. */
static int64_t decode_part_size(const decode_cut *c, int64_t keys) {
  int64_t size = round_up((keys + c->most_parts - 1) / c->most_parts, DECODE_BLOCK);
  return size > DECODE_PART ? size : DECODE_PART;
}

static decode_cut cut_decode(const attend_problem *p) {
  decode_cut c = {.rows = attend_group(p) * p->q_len, .pairs = p->batch * p->kv_heads};
  c.k_padded = round_up(p->head_dim, LANES);
  c.v_padded = round_up(p->v_dim, LANES);
  int64_t part_bytes = (c.rows > 0 ? c.rows : 1) * (c.v_padded + 2) * (int64_t)sizeof(real);
  c.most_parts = DECODE_BYTES / part_bytes;
  if (c.most_parts > DECODE_PARTS) c.most_parts = DECODE_PARTS;
  if (c.most_parts < 1) c.most_parts = 1;
  /* Room for the parts of any length up to k_len, of which a shorter one may have more. */
  c.parts = (p->k_len + DECODE_PART - 1) / DECODE_PART;
  if (c.parts > c.most_parts) c.parts = c.most_parts;
  if (c.parts < 1) c.parts = 1;
  if (c.pairs > DECODE_BYTES / (c.parts * part_bytes)) c.pairs = DECODE_BYTES / (c.parts * part_bytes);
  if (c.pairs < 1) c.pairs = 1;
  int64_t used = 0;
  decode_scratch_at(p, &c, NULL, &used);
  c.scratch_bytes = round_up(used, 256);
  c.result_bytes = round_up(c.pairs * c.parts * part_bytes, 256);
  return c;
}

/* Rows j0 … j0 + keys - 1 of K or V, and which to prefetch, those before `end`. */
static void decode_load(const attend_slice *s, const attend_matrix *m, bool is_value, int64_t j0, int keys, int64_t end,
                        int64_t columns, attend_type type, bool direct, real *buffer, decode_block *b) {
  int64_t size = (int64_t)attend_type_size(type), padded = round_up(columns, LANES);
  b->type = direct ? type : REAL_TYPE;
  for (int k = 0; k < keys; k++) {
    int64_t index = is_value ? attend_value_row(s, j0 + k) : attend_key_row(s, j0 + k),
            ahead = j0 + k + DECODE_PREFETCH;
    b->ahead[k] = NULL;
    if (!direct) {
      pack_row(buffer + k * padded, m->data, index, m->col, columns, padded, type);
      b->rows[k] = (const char *)(buffer + k * padded);
      continue;
    }
    b->rows[k] = m->data + index * size;
    if (ahead < end) b->ahead[k] = m->data + (is_value ? attend_value_row(s, ahead) : attend_key_row(s, ahead)) * size;
  }
}

/* Can whole vectors be read in place? 16-bit rows are worth converting once when many query rows read them. */
static bool decode_direct(const attend_matrix *m, int64_t columns, attend_type type, int64_t rows) {
  return m->col == 1 && columns % LANES == 0 && (type == REAL_TYPE || rows <= DECODE_ROWS);
}

/* Keys first … last - 1; maximum, sum and O of each row are written. True if some pair may be hidden. */
static bool decode_part(const decode_context *d, const decode_scratch *w, int64_t first, int64_t last, bool careful,
                        real *max, real *sum, real *o) {
  const attend_problem *p = d->problem;
  const attend_slice *s = w->slices;
  const decode_cut *c = &d->cut;
  int rows = (int)c->rows, queries = (int)s->q_len;
  key_range range = visible_keys(p, s, 0, queries);
  bool hidden = s->mask.data || s->bias.data || first < range.all_first || last > range.all_last;
  if (first < range.first) first = range.first;
  if (last > range.last) last = range.last;
  for (int r = 0; r < rows; r++) {
    max[r] = -(real)INFINITY;
    sum[r] = 0;
  }
  if (first >= last) return false;
  memset(o, 0, (size_t)(rows * c->v_padded) * sizeof(real));
  decode_block b;
  bool k_direct = decode_direct(&s->k, p->head_dim, p->type, rows);
  bool v_direct = decode_direct(&s->v, p->v_dim, p->type, rows);
  for (int64_t j0 = first; j0 < last; j0 += DECODE_BLOCK) {
    int keys = last - j0 < DECODE_BLOCK ? (int)(last - j0) : DECODE_BLOCK;
    decode_load(s, &s->k, false, j0, keys, last, p->head_dim, p->type, k_direct, w->k, &b);
    decode_scores(w->s, w->q, rows, c->k_padded, &b, keys);
    for (int r = 0; r < rows; r++) {
      const attend_slice *head = w->slices + r / queries;
      real *row = w->s + r * DECODE_BLOCK;
      decode_passes(p, head, r % queries, j0, keys, row, careful ? w->visible + r * DECODE_BLOCK : NULL);
      w->rescale[r] = decode_softmax(row, keys, max + r, sum + r);
      if (p->dropout_threshold) decode_dropout(p, head, r % queries, j0, keys, row);
    }
    decode_load(s, &s->v, true, j0, keys, last, p->v_dim, p->type, v_direct, w->v, &b);
    decode_values(o, rows, c->v_padded, w->s, careful ? w->visible : NULL, w->rescale, &b, keys);
  }
  return hidden;
}

static void decode_item(void *context, int worker, int64_t index) {
  const decode_context *d = context;
  const attend_problem *p = d->problem;
  const decode_cut *c = &d->cut;
  int64_t local = index / c->parts, part = index % c->parts, pair = d->first_pair + local, used = 0;
  if (pair >= p->batch * p->kv_heads) return;
  decode_scratch w = decode_scratch_at(p, c, d->workspace + worker * c->scratch_bytes, &used);
  int64_t group = attend_group(p), head = pair % p->kv_heads * group;
  attend_slice_make(p, d->operands, pair / p->kv_heads, head, w.slices);
  int64_t size = decode_part_size(c, w.slices->k_len), first = part * size, last = first + size;
  if (first >= w.slices->k_len) return;
  if (last > w.slices->k_len) last = w.slices->k_len;
  lanes factor = lanes_set1(score_factor(p));
  for (int64_t g = 0; g < group; g++) {
    attend_slice *s = w.slices + g;
    if (g > 0) attend_slice_make(p, d->operands, pair / p->kv_heads, head + g, s);
    for (int64_t i = 0; i < p->q_len; i++) {
      real *row = w.q + (g * p->q_len + i) * c->k_padded;
      pack_row(row, s->q.data, i * s->q.row, s->q.col, p->head_dim, c->k_padded, p->type);
      for (int64_t x = 0; x < c->k_padded; x += LANES) lanes_store(row + x, lanes_mul(lanes_load(row + x), factor));
    }
  }
  real *max = d->max + index * c->rows, *sum = d->sum + index * c->rows, *o = d->o + index * c->rows * c->v_padded;
  bool hidden = decode_part(d, &w, first, last, false, max, sum, o);
  if (hidden && has_nan(o, c->rows * c->v_padded)) decode_part(d, &w, first, last, true, max, sum, o);
}

/* O and lse of one query row from its parts. */
static void decode_merge_row(const decode_context *d, const attend_slice *s, int64_t first_part, int64_t parts,
                             int64_t row, int64_t i, real *o) {
  const attend_problem *p = d->problem;
  const decode_cut *c = &d->cut;
  real sink = (real)(s->sink * LOG2_E), max = sink, sum = 0, weight[LANES];
  for (int64_t n = 0; n < parts; n++) {
    real m = d->max[(first_part + n) * c->rows + row];
    if (m > max) max = m;
  }
  real base = max == -(real)INFINITY ? 0 : max;
  if (sink != -(real)INFINITY) {
    lanes_store(weight, lanes_exp2(lanes_set1(sink - base)));
    sum = weight[0];
  }
  memset(o, 0, (size_t)c->v_padded * sizeof(real));
  for (int64_t n = 0; n < parts; n++) {
    int64_t at = (first_part + n) * c->rows + row;
    if (d->max[at] == -(real)INFINITY && d->sum[at] == 0) continue; /* saw nothing; O may not have been written */
    lanes w = lanes_exp2(lanes_set1(d->max[at] - base));
    lanes_store(weight, w);
    sum += d->sum[at] * weight[0];
    const real *part = d->o + at * c->v_padded;
    for (int64_t x = 0; x < c->v_padded; x += LANES)
      lanes_store(o + x, lanes_fma(lanes_load(part + x), w, lanes_load(o + x)));
  }
  real factor = sum == 0 ? 0 : (real)p->dropout_scale / sum;
  unpack_row(s->out.data, i * s->out.row, s->out.col, p->v_dim, o, factor, false, p->type);
  if (s->lse)
    attend_store(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type, LN_2 * ((double)max + log2((double)sum)));
}

static void decode_merge_item(void *context, int worker, int64_t local) {
  const decode_context *d = context;
  const attend_problem *p = d->problem;
  const decode_cut *c = &d->cut;
  int64_t pair = d->first_pair + local, used = 0;
  if (pair >= p->batch * p->kv_heads) return;
  decode_scratch w = decode_scratch_at(p, c, d->workspace + worker * c->scratch_bytes, &used);
  for (int64_t row = 0; row < c->rows; row++) {
    int64_t head = pair % p->kv_heads * attend_group(p) + row / p->q_len;
    if (row % p->q_len == 0) attend_slice_make(p, d->operands, pair / p->kv_heads, head, w.slices);
    int64_t size = decode_part_size(c, w.slices->k_len), parts = (w.slices->k_len + size - 1) / size;
    decode_merge_row(d, w.slices, local * c->parts, parts, row, row % p->q_len, w.v);
  }
}

bool ENTRY(forward_decode_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                                char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (p->ragged_q || p->q_len > DECODE_QUERIES) {
    snprintf(reason, ATTEND_REASON_SIZE, "for up to %d queries, as many for each sequence", DECODE_QUERIES);
    return false;
  }
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES)) {
    snprintf(reason, ATTEND_REASON_SIZE, "does not materialise probs or scores");
    return false;
  }
  decode_cut cut = cut_decode(p);
  int64_t items = cut.pairs * cut.parts;
  choice->tile_q = cut.rows;
  choice->tile_k = DECODE_BLOCK;
  choice->splits = cut.parts;
  choice->threads = items < p->threads ? (items > 0 ? items : 1) : p->threads;
  choice->workspace_bytes = (size_t)(choice->threads * cut.scratch_bytes + cut.result_bytes);
  choice->alignment = attend_type_size(p->type);
  return true;
}

attend_status ENTRY(forward_decode_run)(const attend_problem *p, const attend_choice *choice,
                                        const attend_operands *operands, const attend_services *services,
                                        void *workspace, void *stream) {
  (void)stream;
  decode_context d = {.problem = p, .operands = operands, .cut = cut_decode(p), .workspace = workspace};
  int64_t results = d.cut.pairs * d.cut.parts * d.cut.rows, pairs = p->batch * p->kv_heads;
  if (p->q_len == 0) return ATTEND_OK;
  d.o = (real *)(void *)(d.workspace + choice->threads * d.cut.scratch_bytes);
  d.max = d.o + results * d.cut.v_padded;
  d.sum = d.max + results;
  for (d.first_pair = 0; d.first_pair < pairs; d.first_pair += d.cut.pairs) {
    attend_for_each(services, (int)choice->threads, d.cut.pairs * d.cut.parts, decode_item, &d);
    attend_for_each(services, (int)choice->threads, d.cut.pairs, decode_merge_item, &d);
  }
  return ATTEND_OK;
}
