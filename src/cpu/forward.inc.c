/* SPDX-License-Identifier: MIT */
/* Forward, tiled: O(N) memory, in lane words and the tile word of the stub that includes this.
 *
 * Queries are lanes. A block of TILE_LANES queries is transposed once into QT[d][lane], scaled; then for each block of
 * keys S[j][lane] = K[j][:] · QT          (tile word: rows of K broadcast) passes over S (scores.inc.c) M = max(m,
 * max_j S), P = 2^(S - M), l = l * 2^(m - M) + sum_j P      (all vertical: no reduction across lanes) OT[d][lane] = OT
 * * 2^(m - M) + V[:][d] · P                           (tile word: columns of V broadcast) Nothing of K or V is
 * transposed. Keys per row instead of queries (what ggml and BLAS-based kernels do) needs horizontal maxima and sums,
 * and a transposed K.
 *
 * An item of work is QUERY_BLOCKS such blocks of one (sequence, head), so that a packed block of keys serves several.
 */

enum { QUERY_BLOCKS = 4, QUERY_ROWS = QUERY_BLOCKS * TILE_LANES };

typedef struct forward_scratch {
  real *q, *o;       /* [QUERY_BLOCKS][head_dim][TILE_LANES], [QUERY_BLOCKS][v_dim padded][TILE_LANES] */
  real *s, *visible; /* [KEY_BLOCK][TILE_LANES] */
  real *k, *v;       /* [KEY_BLOCK][dimension padded] */
  real *max, *sum;   /* [QUERY_BLOCKS][TILE_LANES] */
} forward_scratch;

typedef struct forward_context {
  const attend_problem *problem;
  const attend_choice *choice;
  const attend_operands *operands;
  char *workspace;
  size_t bytes_per_worker;
} forward_context;

/* Room for `elements` reals behind *used bytes of `base`; with base NULL only counts. */
static real *take(char *base, int64_t *used, int64_t elements) {
  real *p = base ? (real *)(void *)(base + *used) : NULL;
  *used += round_up(elements * (int64_t)sizeof(real), 64);
  return p;
}

static forward_scratch forward_scratch_at(const attend_problem *p, char *base, int64_t *used) {
  forward_scratch w;
  int64_t v_padded = round_up(p->v_dim, TILE_ROWS), k_padded = round_up(p->head_dim, TILE_ROWS);
  w.q = take(base, used, QUERY_BLOCKS * round_up(p->head_dim, TILE_TERMS) * TILE_LANES);
  w.o = take(base, used, QUERY_BLOCKS * v_padded * TILE_LANES);
  w.s = take(base, used, (KEY_BLOCK + TILE_ROWS) * TILE_LANES);
  w.visible = take(base, used, KEY_BLOCK * TILE_LANES);
  w.k = take(base, used, KEY_BLOCK * k_padded);
  w.v = take(base, used, KEY_BLOCK * v_padded);
  w.max = take(base, used, QUERY_ROWS);
  w.sum = take(base, used, QUERY_ROWS);
  return w;
}

/* m[v] = the largest of max and the keys' scores. In chains: with one for each vector the latency of a maximum makes
 * this pass 2 cycles per vector where it takes half of one. A NaN among the scores is passed over, in any chain. */
WORD void block_max(const real *s, int keys, const real *max, lanes m[TILE_VECTORS]) {
  enum { CHAINS = 4 };
  lanes chain[CHAINS][TILE_VECTORS];
#pragma GCC unroll 4
  for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) chain[c][v] = lanes_load(max + v * LANES);
  int k = 0;
  for (; k + CHAINS <= keys; k += CHAINS, s += CHAINS * TILE_LANES)
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; v++)
        chain[c][v] = lanes_max(lanes_load(s + c * TILE_LANES + v * LANES), chain[c][v]);
  for (; k < keys; k++, s += TILE_LANES)
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) chain[0][v] = lanes_max(lanes_load(s + v * LANES), chain[0][v]);
#pragma GCC unroll 4
  for (int v = 0; v < TILE_VECTORS; v++)
    m[v] = lanes_max(lanes_max(chain[0][v], chain[1][v]), lanes_max(chain[2][v], chain[3][v]));
}

/* P = 2^(S - M) in place, as reals or as words; max and sum of the lanes brought up to date; rescale[lane] =
 * 2^(old max - M). `largest` are the lanes' largest S, if they are known. */
WORD void softmax_block_as(real *s, int keys, real *max, real *sum, real rescale[TILE_LANES], const real *largest,
                           bool as_words) {
  lanes m[TILE_VECTORS], base[TILE_VECTORS], l[TILE_VECTORS];
  if (!largest) block_max(s, keys, max, m);
#pragma GCC unroll 4
  for (int v = 0; v < TILE_VECTORS; v++) { /* a lane that has seen nothing yet subtracts 0: 2^-inf is 0 */
    if (largest) m[v] = lanes_max(lanes_load(largest + v * LANES), lanes_load(max + v * LANES));
    base[v] = lanes_select(lanes_equal(m[v], lanes_set1(-(real)INFINITY)), lanes_zero(), m[v]);
    lanes_store(rescale + v * LANES, lanes_exp2(lanes_sub(lanes_load(max + v * LANES), base[v])));
    lanes_store(max + v * LANES, m[v]);
    l[v] = lanes_zero();
  }
  const int terms = as_words ? TILE_TERMS : 1;
  for (int k = 0; k < keys; k += terms)
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) {
      lanes p[2] = {lanes_zero(), lanes_zero()};
#pragma GCC unroll 2
      for (int t = 0; t < terms; t++)
        if (k + t < keys) {
          p[t] = tile_exp2(lanes_sub(lanes_load(s + (k + t) * TILE_LANES + v * LANES), base[v]));
          l[v] = lanes_add(l[v], p[t]);
        }
      lanes_store(s + k / terms * TILE_LANES + v * LANES, terms == 1 ? p[0] : tile_words(p[0], p[1]));
    }
#pragma GCC unroll 4
  for (int v = 0; v < TILE_VECTORS; v++)
    lanes_store(sum + v * LANES, lanes_fma(lanes_load(sum + v * LANES), lanes_load(rescale + v * LANES), l[v]));
}
static void softmax_block(real *s, int keys, real *max, real *sum, real rescale[TILE_LANES]) {
  softmax_block_as(s, keys, max, sum, rescale, NULL, false);
}
static void softmax_block_words(real *s, int keys, real *max, real *sum, real rescale[TILE_LANES]) {
  softmax_block_as(s, keys, max, sum, rescale, NULL, true);
}
static void softmax_block_plain(real *s, int keys, real *max, real *sum, real rescale[TILE_LANES],
                                const real *largest) {
  softmax_block_as(s, keys, max, sum, rescale, largest, true);
}

/* Products and softmax of a tile whose scores nothing changes or drops. */
static void plain_tile(const score_tile *t, const key_rows *k, const real *q, const key_range *range, real *max,
                       real *sum, real rescale[TILE_LANES]) {
  const attend_problem *p = t->problem;
  if (t->visible) score_passes(t, range); /* all of it */
  real largest[TILE_LANES];
  for (int l = 0; l < TILE_LANES; l++) largest[l] = -(real)INFINITY;
  score_products_largest(t->s, TILE_LANES, k, t->keys, q, words(p->head_dim), score_factor(p), largest);
  softmax_block_plain(t->s, t->keys, max, sum, rescale, largest);
}

/* The same of any tile. True if some pair of it may be hidden. */
static bool tile_with_passes(const score_tile *t, const key_rows *k, const real *q, const key_range *range, real *max,
                             real *sum, real rescale[TILE_LANES]) {
  const attend_problem *p = t->problem;
  score_products_scaled(t->s, TILE_LANES, k, t->keys, q, words(p->head_dim), score_factor(p));
  bool hidden = score_passes(t, range);
  if (p->dropout_threshold) {
    softmax_block(t->s, t->keys, max, sum, rescale);
    dropout_pass(t, t->s, 1);
    make_words(t->s, t->keys);
  } else
    softmax_block_words(t->s, t->keys, max, sum, rescale);
  return hidden;
}

/* OT = OT * rescale + columns of V times P, whose rows are p_width apart. */
static void value_products(real *o, int64_t v_padded, const key_rows *v, int keys, const real *p, int p_width,
                           const real rescale[TILE_LANES]) {
  for (int64_t d = 0; d < v_padded; d += TILE_ROWS) {
    tile_sums sums = tile_product_columns(v->rows + d, v->row, p, p_width, words(keys));
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
      for (int x = 0; x < TILE_VECTORS; x++) {
        real *at = o + (d + r) * TILE_LANES + x * LANES;
        lanes_store(at, lanes_fma(lanes_load(at), lanes_load(rescale + x * LANES), sums.c[r][x]));
      }
  }
}

/* Element d of value k. */
static real value_of(const key_rows *v, int k, int64_t d) {
  const real *word = v->rows + k / TILE_TERMS * v->row + d;
  if (TILE_TERMS == 1) return *word;
  uint16_t half[2 * sizeof(real) / sizeof(float)];
  memcpy(half, word, sizeof(real));
  return (real)attend_f32_from_bf16(half[k % 2]);
}

/* The same with each value that a lane may not see taken as 0: what NaN and Inf behind a mask need. The same terms in
 * the same order, so that the other lanes keep their bits. */
static void value_products_careful(real *o, int64_t v_padded, const key_rows *v, int keys, const real *p, int p_width,
                                   const real rescale[TILE_LANES], const real *visible) {
  for (int64_t d = 0; d < v_padded; d++)
    for (int x = 0; x < TILE_VECTORS; x++) {
      lanes sum = lanes_zero();
      for (int k = 0; k < keys; k += TILE_TERMS) {
        lanes value[2] = {lanes_zero(), lanes_zero()};
        for (int t = 0; t < TILE_TERMS && k + t < keys; t++) {
          lane_mask hidden = lanes_equal(lanes_load(visible + (k + t) * p_width + x * LANES), lanes_zero());
          value[t] = lanes_select(hidden, lanes_zero(), lanes_set1(value_of(v, k + t, d)));
        }
        sum = tile_step(lanes_load(p + k / TILE_TERMS * p_width + x * LANES), tile_words(value[0], value[1]), sum);
      }
      real *at = o + d * TILE_LANES + x * LANES;
      lanes_store(at, lanes_fma(lanes_load(at), lanes_load(rescale + x * LANES), sum));
    }
}

/* Attend from queries first … first + rows - 1; true if some pair of a tile that was computed may be hidden. */
static bool forward_rows(const attend_problem *p, const attend_slice *s, int64_t first, int rows, bool careful,
                         const forward_scratch *w) {
  int64_t v_padded = round_up(p->v_dim, TILE_ROWS);
  int blocks = (rows + TILE_LANES - 1) / TILE_LANES;
  bool hidden = false;
  key_range range[QUERY_BLOCKS];
  int64_t begin = INT64_MAX, end = 0;
  for (int g = 0; g < blocks; g++) {
    int64_t i0 = first + g * TILE_LANES;
    int n = rows - g * TILE_LANES < TILE_LANES ? rows - g * TILE_LANES : TILE_LANES;
    range[g] = visible_keys(p, s, i0, n);
    if (range[g].first < range[g].last && range[g].first < begin) begin = range[g].first;
    if (range[g].last > end) end = range[g].last;
    real *q = w->q + g * round_up(p->head_dim, TILE_TERMS) * TILE_LANES;
    pack_transposed(q, &s->q, i0, n, p->head_dim, TILE_TERMS == 1 ? score_factor(p) : 1, p->type);
    make_words(q, p->head_dim);
    real sink = (real)(s->sink * LOG2_E);
    for (int l = 0; l < TILE_LANES; l++) {
      w->max[g * TILE_LANES + l] = sink;
      w->sum[g * TILE_LANES + l] = sink == -(real)INFINITY ? 0 : 1;
    }
  }
  memset(w->o, 0, (size_t)(blocks * v_padded * TILE_LANES) * sizeof(real));

  for (int64_t block = begin / KEY_BLOCK * KEY_BLOCK; block < end; block += KEY_BLOCK) {
    int64_t k_first = block > begin ? block : begin, k_last = block + KEY_BLOCK < end ? block + KEY_BLOCK : end;
    key_rows k = {0}, v = {0};
    for (int g = 0; g < blocks; g++) {
      int64_t i0 = first + g * TILE_LANES;
      int n = rows - g * TILE_LANES < TILE_LANES ? rows - g * TILE_LANES : TILE_LANES;
      int64_t j0 = k_first > range[g].first ? k_first : range[g].first;
      int64_t j1 = k_last < range[g].last ? k_last : range[g].last;
      if (TILE_TERMS == 2 && j0 < j1) j0 -= (j0 - k_first) % 2; /* two values to a word: the first may be hidden */
      if (j0 >= j1) continue;
      int keys = (int)(j1 - j0);
      if (s->mask.data && mask_is_empty(s, i0, n, j0, keys)) continue;
      if (!k.rows) {
        k = load_key_rows(s, &s->k, false, false, k_first, (int)(k_last - k_first), p->head_dim, p->type, w->k);
        v = load_key_rows(s, &s->v, true, true, k_first, (int)(k_last - k_first), p->v_dim, p->type, w->v);
      }
      key_rows k_tile = {k.rows + (j0 - k_first) * k.row, k.row},
               v_tile = {v.rows + (j0 - k_first) / TILE_TERMS * v.row, v.row};
      score_tile tile = {
          .problem = p, .slice = s, .i0 = i0, .j0 = j0, .rows = n, .keys = keys, .width = TILE_LANES, .s = w->s};
      if (careful) tile.visible = w->visible;
      const real *q = w->q + g * round_up(p->head_dim, TILE_TERMS) * TILE_LANES;
      real rescale[TILE_LANES], *max = w->max + g * TILE_LANES, *sum = w->sum + g * TILE_LANES;
      if (p->dropout_threshold || needs_passes(&tile, &range[g]))
        hidden |= tile_with_passes(&tile, &k_tile, q, &range[g], max, sum, rescale);
      else
        plain_tile(&tile, &k_tile, q, &range[g], max, sum, rescale);
      hidden |= keys % TILE_TERMS != 0;
      real *o = w->o + g * v_padded * TILE_LANES;
      if (careful)
        value_products_careful(o, v_padded, &v_tile, keys, w->s, TILE_LANES, rescale, w->visible);
      else
        value_products(o, v_padded, &v_tile, keys, w->s, TILE_LANES, rescale);
    }
  }
  return hidden;
}

static bool has_nan(const real *x, int64_t n) {
  lane_mask nan = lanes_unordered(lanes_zero());
  for (int64_t i = 0; i < n; i += LANES) nan = mask_or(nan, lanes_unordered(lanes_load(x + i)));
  return mask_any(nan);
}

static void forward_store(const attend_problem *p, const attend_slice *s, int64_t first, int rows,
                          const forward_scratch *w) {
  int64_t v_padded = round_up(p->v_dim, TILE_ROWS);
  for (int g = 0; g * TILE_LANES < rows; g++) {
    int64_t i0 = first + g * TILE_LANES;
    int n = rows - g * TILE_LANES < TILE_LANES ? rows - g * TILE_LANES : TILE_LANES;
    const real *max = w->max + g * TILE_LANES, *sum = w->sum + g * TILE_LANES;
    real factor[TILE_LANES];
    for (int l = 0; l < TILE_LANES; l++) factor[l] = sum[l] == 0 ? 0 : (real)p->dropout_scale / sum[l];
    unpack_transposed(&s->out, i0, n, p->v_dim, w->o + g * v_padded * TILE_LANES, factor, false, p->type);
    if (!s->lse) continue;
    for (int l = 0; l < n; l++) {
      double lse = LN_2 * ((double)max[l] + log2((double)sum[l]));
      attend_store(s->lse, (i0 + l) * s->lse_row, p->layout[OPERAND_LSE].type, lse);
    }
  }
}

static void forward_item(void *context, int worker, int64_t index) {
  const forward_context *f = context;
  const attend_problem *p = f->problem;
  int64_t pairs = p->batch * p->heads, blocks = (p->q_len + QUERY_ROWS - 1) / QUERY_ROWS;
  /* With causal the last queries see the most keys: they go first, so that the end is short items. But only among as
   * many pairs as keep all threads busy: going round all of them, each item finds its keys no longer in the cache. */
  int64_t together = p->causal ? (4 * f->choice->threads + blocks - 1) / blocks : 1;
  int64_t first_pair = index / (together * blocks) * together, within = index % (together * blocks);
  if (together > pairs - first_pair) together = pairs - first_pair;
  int64_t pair = first_pair + within % together, block = blocks - 1 - within / together;
  attend_slice s;
  attend_slice_make(p, f->operands, pair / p->heads, pair % p->heads, &s);
  /* The block that is not whole is the first: with causal it sees the fewest keys, as the last the most. */
  int64_t own_blocks = (s.q_len + QUERY_ROWS - 1) / QUERY_ROWS, first = s.q_len - (own_blocks - block) * QUERY_ROWS;
  if (block >= own_blocks || !attend_serves(f->choice, s.q_len, s.k_len)) return;
  int rows = first < 0 ? (int)(first + QUERY_ROWS) : QUERY_ROWS;
  if (first < 0) first = 0;
  int64_t used = 0;
  forward_scratch w = forward_scratch_at(p, f->workspace + (size_t)worker * f->bytes_per_worker, &used);
  bool hidden = forward_rows(p, &s, first, rows, false, &w);
  int64_t sums = (rows + TILE_LANES - 1) / TILE_LANES * round_up(p->v_dim, TILE_ROWS) * TILE_LANES;
  if (hidden && has_nan(w.o, sums)) forward_rows(p, &s, first, rows, true, &w);
  forward_store(p, &s, first, rows, &w);
}

static size_t forward_bytes_per_worker(const attend_problem *p) {
  int64_t used = 0;
  forward_scratch_at(p, NULL, &used);
  return (size_t)round_up(used, 256);
}

static int64_t forward_items(const attend_problem *p) {
  return p->batch * p->heads * ((p->q_len + QUERY_ROWS - 1) / QUERY_ROWS);
}

bool ENTRY(forward_tiled_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                               char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES)) {
    snprintf(reason, ATTEND_REASON_SIZE, "does not materialise probs or scores");
    return false;
  }
  int64_t items = forward_items(p);
  choice->tile_q = TILE_LANES;
  choice->tile_k = KEY_BLOCK;
  choice->splits = 1;
  choice->threads = items < p->threads ? (items > 0 ? items : 1) : p->threads;
  choice->workspace_bytes = (size_t)choice->threads * forward_bytes_per_worker(p);
  choice->alignment = attend_type_size(p->type);
  return true;
}

attend_status ENTRY(forward_tiled_run)(const attend_problem *p, const attend_choice *choice,
                                       const attend_operands *operands, const attend_services *services,
                                       void *workspace, void *stream) {
  (void)stream;
  forward_context f = {p, choice, operands, workspace, forward_bytes_per_worker(p)};
  attend_for_each(services, (int)choice->threads, forward_items(p), forward_item, &f);
  return ATTEND_OK;
}
