/* SPDX-License-Identifier: MIT */
/* Forward on short sequences of 1 to SHORT_LENGTHS tokens, causal or not, of SHORT_COLUMNS dimensions, with every
 * length a constant. Blocks, their order and the bits are those of short_blocks.inc.c, which takes lengths from memory:
 * of 5 tokens that were 1245 instructions a pair, of which 480 are vectors'. Nothing is called from pair to pair: with
 * a call for each of scores, softmax and values 5 tokens took 7 ns more in the cache and 33 more from memory. */

enum { SHORT_LENGTHS = 16, SHORT_COLUMNS = 64 };
static const attend_type short_length_type = TILE_TERMS == 2 ? TYPE_BF16 : REAL_TYPE;

typedef void short_item(void *context, int worker, int64_t index);

#if LANES >= 16

/* What the steps of a pair are told; scores of query i begin at s + i * LANES. */
typedef struct short_length_pair {
  vector_rows q, k;
  short_values values;
  real *s, *lse;
} short_length_pair;

/* Blocks, their first queries, queries, keys, tiles. */
WORD int short_length_blocks(int length) { return length / 4 + length / 2 % 2 + length % 2; }
WORD int short_length_query(int length, int block) {
  return block < length / 4 ? 4 * block : block == length / 4 && length & 2 ? length & ~3 : length - 1;
}
WORD int short_length_rows(int length, int block) {
  const int left = length - short_length_query(length, block);
  return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}
WORD int short_length_keys(int length, bool causal, int block) {
  return causal ? short_length_query(length, block) + short_length_rows(length, block) : length;
}
WORD int short_length_tiles(int length, bool causal, int block) {
  const int keys = LANES / short_length_rows(length, block);
  return (short_length_keys(length, causal, block) + keys - 1) / keys;
}

/* Steps of the blocks from `from` to `to` - 1, constants as all else. */
WORD void short_length_scores(int length, bool causal, int from, int to, const short_length_pair *x, lanes factor,
                              short_ahead *ahead, short_feed *feed) {
#pragma GCC unroll 4
  for (int b = from; b < to; b++) {
    const int query = short_length_query(length, b);
    short_block_scores(short_length_rows(length, b), query, 0, short_length_keys(length, causal, b), causal,
                       x->s + query * LANES, &x->q, &x->k, SHORT_COLUMNS / (short_parts(short_length_type) * LANES),
                       factor, ahead, feed, short_length_type);
  }
}
WORD void short_length_values(int length, bool causal, int from, int to, const short_length_pair *x, short_ahead *ahead,
                              short_feed *feed) {
#pragma GCC unroll 4
  for (int b = from; b < to; b++) {
    const int query = short_length_query(length, b), n = short_length_rows(length, b);
    short_values_rows(&x->values, SHORT_COLUMNS, x->s + query * LANES, n * TILE_TERMS, query, n, 0,
                      short_length_keys(length, causal, b), false, causal && n > 1, false, feed, short_length_type);
    short_ahead_rows(ahead, ahead->pace);
  }
}

/* Those of the softmax, of all blocks. */
WORD void short_length_max(int length, bool causal, const short_length_pair *x, short_statistics *soft) {
#pragma GCC unroll 5
  for (int b = 0; b < short_length_blocks(length); b++) {
    const int query = short_length_query(length, b), n = short_length_rows(length, b), keys = LANES / n;
    const int last = short_length_keys(length, causal, b), tiles = short_length_tiles(length, causal, b);
    lane_mask hidden[4];
#pragma GCC unroll 4
    for (int t = 0; t < tiles; t++) {
      hidden[t] = 0;
#pragma GCC unroll 16
      for (int l = 0; l < LANES; l++)
        if (t * keys + l / n >= (causal ? query + l % n + 1 : last)) hidden[t] |= (lane_mask)(1 << l);
    }
    soft->max[b] = short_block_max(n, tiles, hidden, x->s + query * LANES);
  }
}
WORD void short_length_exp(int length, bool causal, const short_length_pair *x, short_statistics *soft) {
#pragma GCC unroll 5
  for (int b = 0; b < short_length_blocks(length); b++)
    soft->sum[b] = short_block_exp(short_length_rows(length, b), short_length_tiles(length, causal, b),
                                   x->s + short_length_query(length, b) * LANES, soft->max[b]);
}
WORD void short_length_share(int length, bool causal, const short_length_pair *x, int64_t step,
                             const short_statistics *soft) {
  lanes max = lanes_zero(), sum = lanes_zero();
#pragma GCC unroll 5
  for (int b = 0; b < short_length_blocks(length); b++) {
    short_block_share(short_length_rows(length, b), short_length_tiles(length, causal, b),
                      x->s + short_length_query(length, b) * LANES, soft->sum[b]);
    short_block_gather(soft, b, short_length_query(length, b), &max, &sum);
  }
  if (x->lse) short_store_lse(x->lse, step, length, max, sum);
}

WORD void short_length_next(const short_forward_context *f, short_forward_pair *x) {
  if (x->h + 1 < f->problem->heads)
    short_forward_beside(f, x, x->h + 1, x);
  else
    short_forward_at(f, x->b + 1, 0, x);
}

/* ---- From pair to pair ---- */

/* Decides in which order rows are asked for, and with it how long items are. 8 tokens in bf16 whose rows follow each
 * other, and so less than a page of them, take 112 ns a pair if the core asks for them, 124 if we do. */
enum { SHORT_PAGE = 4096 };
static void short_length_plan(short_forward_context *f, int64_t *items) {
  static const operand_id inputs[] = {OPERAND_Q, OPERAND_K, OPERAND_V};
  const attend_problem *p = f->problem;
  if (f->choice->own[SHORT_OWN_STAYS]) return;
  f->order = short_order_of(p, f->operands, inputs, 3, SHORT_COLUMNS, SHORT_PAGE);
  if (!f->order.lead) return;
  f->pairs = short_order_pairs(p, f->pairs, f->choice->threads);
  *items = (p->batch * p->heads + f->pairs - 1) / f->pairs;
}

/* Lines of a step of short_feed_step: all of a pair's are asked for when it has a fifth of its steps left. */
WORD int short_length_feed(int length, bool causal) {
  const int vectors = SHORT_COLUMNS / (short_parts(short_length_type) * LANES);
  int steps = 0;
#pragma GCC unroll 5
  for (int b = 0; b < short_length_blocks(length); b++)
    steps += short_length_tiles(length, causal, b) * vectors + short_length_keys(length, causal, b) / TILE_TERMS;
  return (3 * length * vectors * 5 / 4 + steps - 1) / steps;
}

/* A pair's softmax, whose steps would wait for each other, goes between the blocks of the next one's scores and of the
 * values of the one before: 5 tokens take 78 ns instead of 90 in the cache, 16 take 418 instead of 448. Rows are asked
 * for in the order of memory where they are all of it, `fed`, else SHORT_LEAD pairs ahead: constants, as a step that
 * finds nothing to ask for would still part the loads (8 tokens, by the core alone: 310 ns instead of 250). */
WORD void short_length_pairs(const short_forward_context *f, int64_t index, int length, bool causal, bool fed) {
  const int tiles = length * (causal ? length / 2 : length) / LANES, slots = tiles + length / 4 + 1;
  const int blocks = short_length_blocks(length), half = (blocks + 1) / 2;
  const lanes factor = lanes_set1(score_factor(f->problem));
  const int64_t step = f->problem->layout[OPERAND_LSE].row;
  real s[2][SHORT_LENGTHS * LANES] __attribute__((aligned(64)));
  short_statistics soft = {0};
  short_walk walk;
  short_forward_begin(f, index, &walk);
  const bool adjacent = f->q.adjacent && f->k.adjacent && f->v.adjacent;
  const bool asks = walk.left > SHORT_LEAD && !fed && !adjacent && short_forward_asks(f, length, length);
  short_forward_pair at, far;
  short_forward_at(f, walk.b, walk.h, &at);
  far = at;
  for (int n = 0; asks && n < SHORT_LEAD; n++) short_length_next(f, &far);
  short_length_pair now = {.q = {at.q, f->q.step, short_length_type}, .k = {at.k, f->k.step, short_length_type}};
  now.values = (short_values){{at.v, f->v.step, short_length_type}, at.out, f->out.step, SHORT_COLUMNS, f->stream};
  short_length_pair before = now;
  short_ahead ahead;
  ahead.parts = ahead.now = ahead.rows = ahead.pace = 0, ahead.second = true;
  const short_order *order = &f->order;
  const int64_t first = walk.b * f->problem->heads + walk.h, lead = order->lead;
  short_feed feed;
  short_feed_begin(&feed, order);
  feed.lines = short_length_feed(length, causal);
  feed.bytes = length * SHORT_COLUMNS * (int64_t)attend_type_size(short_length_type);
  if (fed && !order->adjacent) short_order_touch(order, first - walk.h, first + (lead < walk.left ? lead : walk.left));
  for (int64_t n = 0; n <= walk.left; n++) {
    if (fed && n + lead < walk.left) short_feed_pair(&feed, first + n + lead);
    if (asks && n + SHORT_LEAD < walk.left) {
      short_forward_ask_all(f, &far, length, length, far.h % f->group == 0, &ahead);
      short_length_next(f, &far);
      ahead.pace = 1 + ahead.rows / slots;
    }
    now.q.rows = at.q, now.k.rows = at.k, now.values.v.rows = at.v, now.values.out = at.out, now.lse = at.lse;
    now.s = s[n % 2];
    short_feed *const feeds = fed ? &feed : NULL;
    if (n < walk.left) short_length_scores(length, causal, 0, half, &now, factor, &ahead, feeds);
    if (n > 0) short_length_share(length, causal, &before, step, &soft);
    if (n < walk.left) short_length_scores(length, causal, half, blocks, &now, factor, &ahead, feeds);
    if (n > 0) short_length_values(length, causal, 0, half, &before, &ahead, feeds);
    if (n < walk.left) short_length_max(length, causal, &now, &soft);
    if (n > 0) short_length_values(length, causal, half, blocks, &before, &ahead, feeds);
    if (n < walk.left) short_length_exp(length, causal, &now, &soft);
    before = now;
    if (n + 1 < walk.left) short_length_next(f, &at);
    if (asks) {
      short_ahead_rows(&ahead, 4 * SHORT_MAX);
      ahead.parts = ahead.now = ahead.rows = 0;
    }
  }
  if (f->stream) lanes_stream_end();
}
WORD void short_length_item(const short_forward_context *f, int64_t index, int length, bool causal) {
  if (f->order.lead)
    short_length_pairs(f, index, length, causal, true);
  else
    short_length_pairs(f, index, length, causal, false);
}

#define LENGTH(length)                                                                                                 \
  static void short_full_##length(void *context, int worker, int64_t index) {                                          \
    (void)worker;                                                                                                      \
    short_length_item(context, index, length, false);                                                                  \
  }                                                                                                                    \
  static void short_causal_##length(void *context, int worker, int64_t index) {                                        \
    (void)worker;                                                                                                      \
    short_length_item(context, index, length, true);                                                                   \
  }
/* clang-format off */
LENGTH(1) LENGTH(2) LENGTH(3) LENGTH(4) LENGTH(5) LENGTH(6) LENGTH(7) LENGTH(8)
LENGTH(9) LENGTH(10) LENGTH(11) LENGTH(12) LENGTH(13) LENGTH(14) LENGTH(15) LENGTH(16)
#undef LENGTH
    /* clang-format on */

    static short_item *const short_full[] = {
        short_full_1,  short_full_2,  short_full_3,  short_full_4,  short_full_5,  short_full_6,
        short_full_7,  short_full_8,  short_full_9,  short_full_10, short_full_11, short_full_12,
        short_full_13, short_full_14, short_full_15, short_full_16,
};
static short_item *const short_causal[] = {
    short_causal_1,  short_causal_2,  short_causal_3,  short_causal_4,  short_causal_5,  short_causal_6,
    short_causal_7,  short_causal_8,  short_causal_9,  short_causal_10, short_causal_11, short_causal_12,
    short_causal_13, short_causal_14, short_causal_15, short_causal_16,
};

/* NULL: there is none for this problem. */
static short_item *short_length_item_of(const short_forward_context *f) {
  const attend_problem *p = f->problem;
  if (!f->in_blocks || p->head_dim != SHORT_COLUMNS || p->v_dim != SHORT_COLUMNS || p->type != short_length_type ||
      attend_lengths_vary(p) || p->q_len != p->k_len || p->q_len > SHORT_LENGTHS || p->q_len == 0 || !f->q.in_place ||
      !f->k.in_place || !f->v.in_place || !f->out.in_place)
    return NULL;
  const int length = (int)p->q_len;
  short_ranges range;
  memcpy(&range, &f->choice->own[SHORT_OWN_RANGES], sizeof range);
  bool full = true, causal = true;
  for (int i = 0; i < length; i++) {
    full &= range.first_key[i] == 0 && range.last_key[i] == length;
    causal &= range.first_key[i] == 0 && range.last_key[i] == i + 1;
  }
  return full ? short_full[length - 1] : causal ? short_causal[length - 1] : NULL;
}

#else /* not in blocks */
static short_item *short_length_item_of(const short_forward_context *f) {
  (void)f;
  return NULL;
}
static void short_length_plan(short_forward_context *f, int64_t *items) { (void)f, (void)items; }
#endif
