/* SPDX-License-Identifier: MIT */
/* Forward for a few queries over many keys (decoding): the time is that of reading K and V, so every byte is read once
 * for all heads that share it, and the keys are divided over the threads.
 *
 * An item of work is one part of the keys of one sequence, for one head of keys or for a group of them whose rows lie
 * side by side in memory. It leaves maximum, sum and output of each query row, which are merged in ascending order of
 * the parts. The size of a part depends on the sequence's own lengths alone, and a head's sums not on its group, hence
 * the bits do not depend on threads, neighbours or other heads; there are at most DECODE_PARTS, so that one sequence
 * with one head of keys keeps no more threads than that busy. */

enum { DECODE_QUERIES = 16, DECODE_PART = 512, DECODE_PARTS = 16, DECODE_SCORES = 4 * DECODE_BLOCK };
#define DECODE_BYTES ((int64_t)16 << 20) /* of parts' results kept at a time */

typedef struct decode_cut {
  int64_t rows, parts;         /* the most query rows and parts of a pair, which is a (sequence, key head) */
  int64_t heads, groups, lots; /* pairs of an item; of these in a sequence; and in a round */
  int64_t k_padded, v_padded;  /* columns in whole vectors of words */
  int64_t scores;              /* of a block */
  int64_t pair_reals;          /* results of a pair */
  int64_t scratch_bytes, result_bytes;
} decode_cut;

/* Results of one pair: of its own parts and rows. */
typedef struct decode_results {
  int64_t rows, size, parts; /* query rows, keys of a part, parts */
  real *max, *sum, *o;       /* [parts][rows], the same, [parts][rows][v_padded] */
} decode_results;

typedef struct decode_context {
  const attend_problem *problem;
  const attend_choice *choice;
  const attend_operands *operands;
  decode_cut cut;
  char *workspace;
  real *results; /* [lots][heads][pair_reals] */
  int64_t first_lot;
} decode_context;

/* Rows are those of all heads of an item, one head after the other. */
typedef struct decode_scratch {
  attend_slice *slices;      /* [heads][group] */
  real *q, *s, *o;           /* [rows][k_padded] words, [rows][s_row], [rows][v_padded] */
  real *max, *sum, *rescale; /* [rows] */
  real *visible;             /* [rows][s_row] of one head */
  real *k, *v;               /* [DECODE_CHUNK][k_padded] words, [DECODE_CHUNK][v_padded], also of O's row */
} decode_scratch;

static decode_scratch decode_scratch_at(const attend_problem *p, const decode_cut *cut, char *base, int64_t *used) {
  decode_scratch w;
  int64_t slices = cut->heads * attend_group(p) * (int64_t)(sizeof(attend_slice) / sizeof(real) + 1);
  int64_t rows = cut->heads * cut->rows;
  w.slices = (attend_slice *)(void *)take(base, used, slices);
  w.q = take(base, used, rows * cut->k_padded);
  w.s = take(base, used, cut->heads * cut->scores);
  w.o = take(base, used, rows * cut->v_padded);
  w.max = take(base, used, rows);
  w.sum = take(base, used, rows);
  w.rescale = take(base, used, rows);
  w.visible = take(base, used, cut->scores);
  w.k = take(base, used, DECODE_CHUNK * cut->k_padded);
  w.v = take(base, used, DECODE_CHUNK * cut->v_padded);
  return w;
}

/* Keys of a softmax: many, since reading stands still when it turns from K to V and back, although the scores leave the
 * first-level cache (32 heads on 8 in bf16 by 1024, 2048, 4096 keys: 5.9, 5.4, 5.1 ms; f32 10.1, 9.7, 9.4). */
static int64_t decode_block(int64_t rows) {
  int64_t keys = DECODE_SCORES / (rows > 0 ? rows : 1) / DECODE_CHUNK * DECODE_CHUNK;
  return keys > DECODE_BLOCK ? DECODE_BLOCK : keys < DECODE_CHUNK ? DECODE_CHUNK : keys;
}
/* Between two rows of scores: not a power of two, whose rows would displace each other. */
static int64_t decode_s_row(int64_t rows) { return decode_block(rows) + LANES; }

/* The most parts of a sequence, whatever its keys, whose pair has so many query rows: results within DECODE_BYTES. */
static int64_t decode_most_parts(int64_t rows, int64_t v_padded) {
  int64_t most = DECODE_BYTES / ((rows > 0 ? rows : 1) * (v_padded + 2) * (int64_t)sizeof(real));
  return most > DECODE_PARTS ? DECODE_PARTS : most < 1 ? 1 : most;
}

static decode_results decode_results_of(const attend_problem *p, int64_t q_len, int64_t k_len, int64_t v_padded) {
  decode_results r = {.rows = attend_group(p) * q_len};
  int64_t most = decode_most_parts(r.rows, v_padded);
  r.size = round_up((k_len + most - 1) / most, DECODE_CHUNK);
  if (r.size < DECODE_PART) r.size = DECODE_PART;
  r.parts = (k_len + r.size - 1) / r.size;
  return r;
}
/* The same with the results' places, for pair `local` of the round, whose slice s is. */
static decode_results decode_results_at(const decode_context *d, const attend_slice *s, int64_t local) {
  const decode_cut *c = &d->cut;
  decode_results r = decode_results_of(d->problem, s->q_len, s->k_len, c->v_padded);
  r.o = d->results + local * c->pair_reals;
  r.max = r.o + r.parts * r.rows * c->v_padded;
  r.sum = r.max + r.parts * r.rows;
  return r;
}

/* Can whole vectors be read in place? 16-bit rows that are widened are worth it once when many query rows read them. */
static bool decode_direct(const attend_matrix *m, int64_t columns, attend_type type, int64_t rows) {
  return m->col == 1 && columns % (TILE_TERMS * LANES) == 0 &&
         (type == REAL_TYPE || TILE_TERMS == 2 || rows <= DECODE_ROWS);
}

/* Are whole rows read, as they must be in order? Not where V's columns take several passes (D = 256: 20 ms instead of
 * 12). */
static bool decode_whole(int64_t columns) {
  return columns % (DECODE_WIDE * LANES) == 0 && columns <= 2 * DECODE_WIDE * LANES;
}
/* Are rows, of one head or of the heads of a key, that lie `step` elements apart side by side, and read in order? With
 * more rows of Q the products take longer than asking costs: dot products for twice as many. */
static bool decode_in_order(int64_t step, int64_t columns, int64_t rows) {
  return decode_whole(columns) && rows <= TILE_TERMS * DECODE_ROWS && step == columns;
}
/* Do the pages of the heads, which are read in order? Not pages so large that one alone is worth it. */
static bool decode_by_page(const attend_problem *p, const attend_layout *l, int64_t columns, int64_t rows) {
  return p->paged && decode_in_order(l->row, columns, rows) && l->head == p->block_size * columns &&
         p->block_size >= DECODE_PAGE && p->block_size < DECODE_BLOCK / 4;
}

/* Heads of an item: one, or those whose rows together are a longer way in the order of memory; of rows side by side all
 * or one, since a way through some of them has gaps (bf16, 64 heads on 8, 16384 keys: 20 ms by fours, 7.7 one by one).
 * That they are fewer for more threads changes no bits. */
static void decode_cut_heads(const attend_problem *p, decode_cut *c) {
  const attend_layout *k = p->layout + OPERAND_K, *v = p->layout + OPERAND_V;
  const attend_matrix key = {.col = k->col}, value = {.col = v->col};
  int64_t columns = c->k_padded > c->v_padded ? c->k_padded : c->v_padded,
          bytes = c->rows * columns * (int64_t)sizeof(real);
  bool direct = p->kv_heads > 1 && bytes > 0 && decode_direct(&key, p->head_dim, p->type, c->rows) &&
                decode_direct(&value, p->v_dim, p->type, c->rows),
       by_page = direct && decode_by_page(p, k, p->head_dim, c->rows) && decode_by_page(p, v, p->v_dim, c->rows),
       by_key = direct && decode_in_order(k->head, p->head_dim, c->rows) && decode_in_order(v->head, p->v_dim, c->rows);
  c->heads = by_page || by_key ? DECODE_HEADS_BYTES / bytes : 1;
  if (c->heads > p->kv_heads) c->heads = p->kv_heads;
  if (c->heads < 1 || (by_key && c->heads < p->kv_heads)) c->heads = 1;
  c->groups = (p->kv_heads + c->heads - 1) / c->heads;
  while (c->heads > 1 && p->batch * c->groups * c->parts < 2 * p->threads) {
    c->heads = by_key ? 1 : (c->heads + 1) / 2;
    c->groups = (p->kv_heads + c->heads - 1) / c->heads;
  }
}

static decode_cut cut_decode(const attend_problem *p) {
  int64_t most_queries = p->q_len < DECODE_QUERIES ? p->q_len : DECODE_QUERIES;
  decode_cut c = {.rows = attend_group(p) * most_queries, .parts = 1};
  c.k_padded = round_up(p->head_dim, TILE_TERMS * LANES);
  c.v_padded = round_up(p->v_dim, TILE_TERMS * LANES);
  /* What rows * decode_s_row(rows) can be for as many rows or fewer. */
  int64_t scores = c.rows * DECODE_BLOCK < DECODE_SCORES ? c.rows * DECODE_BLOCK : DECODE_SCORES;
  if (scores < c.rows * DECODE_CHUNK) scores = c.rows * DECODE_CHUNK;
  c.scores = scores + c.rows * LANES;
  /* Room for the parts of any lengths up to these, of which shorter ones may have more. */
  for (int64_t queries = p->ragged_q ? 1 : most_queries; queries <= most_queries; queries++) {
    int64_t rows = attend_group(p) * queries, most = decode_most_parts(rows, c.v_padded);
    int64_t parts = (p->k_len + DECODE_PART - 1) / DECODE_PART;
    if (parts > most) parts = most;
    if (parts > c.parts) c.parts = parts;
    if (parts * rows * (c.v_padded + 2) > c.pair_reals) c.pair_reals = parts * rows * (c.v_padded + 2);
  }
  c.pair_reals = round_up(c.pair_reals, LANES);
  decode_cut_heads(p, &c);
  int64_t bytes = c.heads * (c.pair_reals > 0 ? c.pair_reals : 1) * (int64_t)sizeof(real);
  c.lots = p->batch * c.groups;
  if (c.lots > DECODE_BYTES / bytes) c.lots = DECODE_BYTES / bytes;
  if (c.lots < 1) c.lots = 1;
  int64_t used = 0;
  decode_scratch_at(p, &c, NULL, &used);
  c.scratch_bytes = round_up(used, 256);
  c.result_bytes = round_up(c.lots * bytes, 256);
  return c;
}

/* One row of Q, K or V as words along it, zeros from `columns` on. */
static void decode_pack(real *out, const attend_matrix *m, int64_t index, int64_t columns, attend_type type) {
  int64_t padded = round_up(columns, TILE_TERMS * LANES);
  if (TILE_TERMS == 1) {
    pack_row(out, m->data, index, m->col, columns, padded, type);
    return;
  }
  const uint16_t *from = (const uint16_t *)(const void *)m->data + index;
  memset(out, 0, (size_t)(2 * padded));
  if (m->col == 1)
    memcpy(out, from, (size_t)(2 * columns));
  else
    pack_words_along(out, from, m->col, columns);
}

/* Keys of the next product of K or V, of `keys` that are left: those of a page that is read in order, or a chunk. */
static int decode_run(const attend_slice *s, const attend_matrix *m, int64_t j, int keys, int64_t columns,
                      attend_type type, int rows, bool *in_order) {
  *in_order = decode_direct(m, columns, type, rows) && decode_in_order(m->row, columns, rows);
  if (s->pages.table && *in_order) {
    int64_t left = s->pages.block_size - j % s->pages.block_size;
    *in_order = s->pages.block_size >= DECODE_PAGE && (left % TILE_TERMS == 0 || left >= keys);
    if (*in_order) return left < keys ? (int)left : keys;
  }
  return keys < DECODE_CHUNK ? keys : DECODE_CHUNK;
}

/* Rows j0 … j0 + keys - 1 of K or V, and those to ask for, before `end`. */
static void decode_load(const attend_slice *s, const attend_matrix *m, bool is_value, int64_t j0, int keys, int64_t end,
                        int64_t columns, attend_type type, int rows, real *buffer, decode_rows *b) {
  int64_t size = (int64_t)attend_type_size(type), row = round_up(columns, TILE_TERMS * LANES) / TILE_TERMS;
  bool direct = decode_direct(m, columns, type, rows);
  b->type = direct ? type : REAL_TYPE;
  if (b->in_order) {
    b->row[0] = m->data + (is_value ? attend_value_row(s, j0) : attend_key_row(s, j0)) * size;
    return;
  }
  for (int k = 0, most = (int)round_up(keys, LANES) + DECODE_AHEAD; k < most; k++) {
    int64_t j = j0 + k < end ? j0 + k : end - 1;
    int64_t index = is_value ? attend_value_row(s, j) : attend_key_row(s, j);
    b->row[k] = m->data + index * size;
    if (direct || k >= keys) continue;
    decode_pack(buffer + k * row, m, index, columns, type);
    b->row[k] = (const char *)(buffer + k * row);
  }
}

/* Scores of keys j0 … j0 + keys - 1. */
static void decode_part_scores(const decode_context *d, const decode_scratch *w, int heads, int rows, int64_t s_row,
                               int64_t j0, int keys) {
  const attend_problem *p = d->problem;
  const int64_t group = attend_group(p), columns = d->cut.k_padded / TILE_TERMS;
  const bool by_key = heads > 1 && decode_in_order(p->layout[OPERAND_K].head, p->head_dim, rows);
  decode_rows b;
  for (int k = 0, some; k < keys; k += some) {
    some = decode_run(w->slices, &w->slices->k, j0 + k, keys - k, p->head_dim, p->type, rows, &b.in_order);
    if (by_key) b.in_order = false, some = keys - k < DECODE_CHUNK ? keys - k : DECODE_CHUNK;
    for (int h = 0; h < (by_key ? 1 : heads); h++) {
      const attend_slice *s = w->slices + h * group;
      const real *q = w->q + h * rows * columns;
      real *to = w->s + h * rows * s_row + k;
      decode_load(s, &s->k, false, j0 + k, some, s->k_len, p->head_dim, p->type, rows, w->k, &b);
      if (by_key)
        decode_scores_keys(to, s_row, q, heads, rows, columns, score_factor(p), &b, some);
      else
        decode_scores(to, s_row, q, rows, columns, score_factor(p), &b, some);
    }
  }
}
/* O = O * rescale + P V of the same keys. */
static void decode_part_values(const decode_context *d, const decode_scratch *w, int heads, int rows, int64_t s_row,
                               int64_t j0, int keys, bool careful) {
  const attend_problem *p = d->problem;
  const int64_t group = attend_group(p), columns = d->cut.v_padded;
  const bool by_key = heads > 1 && decode_in_order(p->layout[OPERAND_V].head, p->v_dim, rows);
  decode_rows b;
  for (int k = 0, some; k < keys; k += some) {
    some = decode_run(w->slices, &w->slices->v, j0 + k, keys - k, p->v_dim, p->type, rows, &b.in_order);
    if (by_key) b.in_order = false, some = keys - k < DECODE_CHUNK ? keys - k : DECODE_CHUNK;
    for (int h = 0; h < (by_key ? 1 : heads); h++) {
      const attend_slice *s = w->slices + h * group;
      decode_load(s, &s->v, true, j0 + k, some, s->k_len, p->v_dim, p->type, rows, w->v, &b);
      decode_product m = {.o = w->o + h * rows * columns, .rows = rows, .columns = columns, .s_row = s_row};
      m.p = w->s + h * rows * s_row + k / TILE_TERMS, m.rescale = k ? NULL : w->rescale + h * rows;
      m.visible = careful ? w->visible + k : NULL, m.b = &b, m.keys = some;
      if (by_key)
        decode_values_keys(&m, heads);
      else
        decode_values(&m);
    }
  }
}

/* Keys first … last - 1 of so many heads: maximum, sum and O of each row. `careful` is for one head alone. True if some
 * pair may be hidden. */
static bool decode_part(const decode_context *d, const decode_scratch *w, int heads, int64_t first, int64_t last,
                        bool careful) {
  const attend_problem *p = d->problem;
  const attend_slice *s = w->slices;
  int queries = (int)s->q_len, rows = (int)attend_group(p) * queries;
  key_range range = visible_keys(p, s, 0, queries);
  bool hidden = s->mask.data || s->bias.data || first < range.all_first || last > range.all_last;
  if (first < range.first) first = range.first;
  if (last > range.last) last = range.last;
  for (int r = 0; r < heads * rows; r++) {
    w->max[r] = -(real)INFINITY;
    w->sum[r] = 0;
  }
  memset(w->o, 0, (size_t)(heads * rows * d->cut.v_padded) * sizeof(real));
  int64_t block = decode_block(rows), s_row = decode_s_row(rows);
  for (int64_t j0 = first; j0 < last; j0 += block) {
    int keys = last - j0 < block ? (int)(last - j0) : (int)block;
    decode_part_scores(d, w, heads, rows, s_row, j0, keys);
    for (int r = 0; r < heads * rows; r++) {
      const attend_slice *head = w->slices + r / queries;
      real *row = w->s + r * s_row;
      decode_passes(p, head, r % queries, j0, keys, row, careful ? w->visible + r * s_row : NULL);
      w->rescale[r] = decode_softmax(row, keys, w->max + r, w->sum + r);
      if (p->dropout_threshold) decode_dropout(p, head, r % queries, j0, keys, row);
      decode_make_words(row, keys);
    }
    decode_part_values(d, w, heads, rows, s_row, j0, keys, careful);
  }
  return hidden && first < last;
}

/* The heads of keys of an item: its sequence and the first of them; returns how many. */
static int decode_heads_of(const attend_problem *p, const decode_cut *c, int64_t lot, int64_t *batch, int64_t *first) {
  *batch = lot / c->groups;
  *first = lot % c->groups * c->heads;
  return (int)(p->kv_heads - *first < c->heads ? p->kv_heads - *first : c->heads);
}

static void decode_item(void *context, int worker, int64_t index) {
  const decode_context *d = context;
  const attend_problem *p = d->problem;
  const decode_cut *c = &d->cut;
  int64_t local = index / c->parts, part = index % c->parts, lot = d->first_lot + local, used = 0, batch, head;
  if (lot >= p->batch * c->groups) return;
  decode_scratch w = decode_scratch_at(p, c, d->workspace + worker * c->scratch_bytes, &used);
  int heads = decode_heads_of(p, c, lot, &batch, &head);
  int64_t group = attend_group(p);
  attend_slice_make(p, d->operands, batch, head * group, w.slices);
  int64_t queries = w.slices->q_len, keys = w.slices->k_len, rows = group * queries;
  if (!attend_serves(d->choice, queries, keys)) return;
  decode_results size = decode_results_of(p, queries, keys, c->v_padded);
  if (part >= size.parts) return;
  int64_t first = part * size.size, last = first + size.size < keys ? first + size.size : keys;
  for (int64_t g = 0; g < heads * group; g++) {
    attend_slice *s = w.slices + g;
    if (g > 0) attend_slice_make(p, d->operands, batch, head * group + g, s);
    for (int64_t i = 0; i < queries; i++)
      decode_pack(w.q + (g * queries + i) * c->k_padded / TILE_TERMS, &s->q, i * s->q.row, p->head_dim, p->type);
  }
  bool hidden = decode_part(d, &w, heads, first, last, false);
  for (int h = 0; h < heads; h++) {
    if (hidden && has_nan(w.o, rows * c->v_padded)) decode_part(d, &w, 1, first, last, true);
    decode_results results = decode_results_at(d, w.slices, local * c->heads + h);
    memcpy(results.max + part * rows, w.max, (size_t)rows * sizeof(real));
    memcpy(results.sum + part * rows, w.sum, (size_t)rows * sizeof(real));
    memcpy(results.o + part * rows * c->v_padded, w.o, (size_t)(rows * c->v_padded) * sizeof(real));
    w.slices += group, w.q += rows * c->k_padded / TILE_TERMS, w.max += rows, w.sum += rows;
    w.o += rows * c->v_padded;
  }
}

/* From the order of tile_words_pair to that of a row. */
static void decode_order(real *o, int64_t columns) {
  for (int64_t c = 0; TILE_TERMS == 2 && c < columns; c += 2 * LANES) {
    real copy[2 * LANES];
    memcpy(copy, o + c, sizeof copy);
    for (int i = 0; i < 2 * LANES; i++) o[c + tile_column(i)] = copy[i];
  }
}

/* O and lse of one query row from its parts. */
static void decode_merge_row(const decode_context *d, const attend_slice *s, const decode_results *results, int64_t row,
                             real *o) {
  const attend_problem *p = d->problem;
  const decode_cut *c = &d->cut;
  int64_t i = row % s->q_len;
  real sink = (real)(s->sink * LOG2_E), max = sink, sum = 0, weight[LANES];
  for (int64_t n = 0; n < results->parts; n++) {
    real m = results->max[n * results->rows + row];
    if (m > max) max = m;
  }
  real base = max == -(real)INFINITY ? 0 : max;
  if (sink != -(real)INFINITY) {
    lanes_store(weight, lanes_exp2(lanes_set1(sink - base)));
    sum = weight[0];
  }
  memset(o, 0, (size_t)c->v_padded * sizeof(real));
  for (int64_t n = 0; n < results->parts; n++) {
    int64_t at = n * results->rows + row;
    real m = results->max[at];
    if (m == -(real)INFINITY && results->sum[at] == 0) continue; /* saw nothing */
    lanes w = lanes_exp2(lanes_set1(m - base));
    lanes_store(weight, w);
    sum += results->sum[at] * weight[0];
    const real *part = results->o + at * c->v_padded;
    for (int64_t x = 0; x < c->v_padded; x += LANES)
      lanes_store(o + x, lanes_fma(lanes_load(part + x), w, lanes_load(o + x)));
  }
  decode_order(o, c->v_padded);
  real factor = sum == 0 ? 0 : (real)p->dropout_scale / sum;
  unpack_row(s->out.data, i * s->out.row, s->out.col, p->v_dim, o, factor, false, p->type);
  if (s->lse)
    attend_store(s->lse, i * s->lse_row, p->layout[OPERAND_LSE].type, LN_2 * ((double)max + log2((double)sum)));
}

static void decode_merge_item(void *context, int worker, int64_t local) {
  const decode_context *d = context;
  const attend_problem *p = d->problem;
  const decode_cut *c = &d->cut;
  int64_t lot = d->first_lot + local / c->heads, h = local % c->heads, used = 0, batch, head;
  if (lot >= p->batch * c->groups || h >= decode_heads_of(p, c, lot, &batch, &head)) return;
  decode_scratch w = decode_scratch_at(p, c, d->workspace + worker * c->scratch_bytes, &used);
  head = (head + h) * attend_group(p);
  attend_slice_make(p, d->operands, batch, head, w.slices);
  if (!attend_serves(d->choice, w.slices->q_len, w.slices->k_len)) return;
  decode_results results = decode_results_at(d, w.slices, local);
  for (int64_t row = 0; row < results.rows; row++) {
    if (row > 0 && row % w.slices->q_len == 0)
      attend_slice_make(p, d->operands, batch, head + row / w.slices->q_len, w.slices);
    decode_merge_row(d, w.slices, &results, row, w.v);
  }
}

bool ENTRY(forward_decode_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                                char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  choice->limit = (attend_limit){.queries = DECODE_QUERIES};
  if (!p->ragged_q && p->q_len > DECODE_QUERIES) {
    snprintf(reason, ATTEND_REASON_SIZE, "for up to %d queries", DECODE_QUERIES);
    return false;
  }
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES)) {
    snprintf(reason, ATTEND_REASON_SIZE, "does not materialise probs or scores");
    return false;
  }
  decode_cut cut = cut_decode(p);
  int64_t items = cut.lots * cut.parts;
  choice->tile_q = cut.rows;
  choice->tile_k = decode_block(cut.rows);
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
  decode_context d = {
      .problem = p, .choice = choice, .operands = operands, .cut = cut_decode(p), .workspace = workspace};
  int64_t lots = p->batch * d.cut.groups;
  if (p->q_len == 0) return ATTEND_OK;
  d.results = (real *)(void *)(d.workspace + choice->threads * d.cut.scratch_bytes);
  for (d.first_lot = 0; d.first_lot < lots; d.first_lot += d.cut.lots) {
    attend_for_each(services, (int)choice->threads, d.cut.lots * d.cut.parts, decode_item, &d);
    attend_for_each(services, (int)choice->threads, d.cut.lots * d.cut.heads, decode_merge_item, &d);
  }
  return ATTEND_OK;
}
