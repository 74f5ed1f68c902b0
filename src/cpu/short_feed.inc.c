/* SPDX-License-Identifier: MIT */
/* Short sequences: whole inputs asked for in the order of memory, evenly, while pairs are computed: as many bytes as a
 * pair has, of each in turn, a few lines at every step of a pair some before. Whose rows they are does not matter, but
 * that the lines follow each other: so the core's prefetchers help. And that there is time between them: it drops
 * requests for which it has no buffer (bench/bounds.c: asked for every 0.6, 1.2, 1.5 and 1.8 ns, 30, 60, 78 and 99% of
 * a stream's lines arrive). So each is asked for again later, which costs next to nothing if it is there. */

enum { SHORT_FED = 4 }; /* inputs, at most */

/* How inputs lie in memory. */
typedef struct short_order {
  const char *input[SHORT_FED];
  int inputs;
  bool adjacent; /* a pair's rows follow each other, and pairs do; else a token's heads lie side by side and sequences
                    follow each other: a pair has rows all over its own */
  int64_t bytes; /* of a pair's rows of one input */
  int64_t lead;  /* pairs that they are asked for ahead; 0: not so, as there are gaps or shared keys, as so many would
                    fill the cache, or as the core asks by itself */
} short_order;

/* Of rows of `columns` that are read in place, as many keys as queries. Adjacent rows of a pair of less than `least`
 * bytes are left to the core, which asks for them in time by itself. */
static short_order short_order_of(const attend_problem *p, const attend_operands *o, const operand_id *inputs,
                                  int count, int64_t columns, int64_t least) {
  const int64_t pair = p->q_len * columns;
  short_order x = {.inputs = count, .adjacent = true, .bytes = pair * (int64_t)attend_type_size(p->type)};
  if (p->kv_heads != p->heads) return x;
  for (int i = 0; i < count; i++) {
    const attend_layout *l = &p->layout[inputs[i]];
    const bool adjacent = l->row == columns && l->head == pair;
    if (!adjacent && (l->row != p->heads * columns || l->head != columns)) return x;
    if (p->batch > 1 && l->batch != p->heads * pair) return x;
    x.input[i] = o->data[inputs[i]], x.adjacent &= adjacent;
  }
  const int64_t lead = (x.adjacent ? 0 : p->heads) + 2 * SHORT_LEAD;
  if ((!x.adjacent || x.bytes >= least) && count * lead * x.bytes <= attend_cpu_cache_sizes().second / 2) x.lead = lead;
  return x;
}

/* Pairs of an item of work, which has at least so many: if there are many, few items have to begin with what nothing
 * asked for. */
static int64_t short_order_pairs(const attend_problem *p, int64_t pairs, int64_t threads) {
  for (int times = 1; times < 8 && p->batch * p->heads > 16 * pairs * threads; times *= 2) pairs *= 2;
  return pairs;
}

/* Reads what nothing asked for, where so many pairs' rows lie, those of these or others. */
static void short_order_touch(const short_order *x, int64_t first, int64_t end) {
  for (int64_t at = first * x->bytes; at < end * x->bytes; at += 64)
    for (int i = 0; i < x->inputs; i++) (void)*(const volatile char *)(x->input[i] + at);
}

/* What is left to ask for while a pair is computed. */
typedef struct short_feed {
  const short_order *order;
  int64_t at;             /* byte of each input, of the pair asked for */
  const char *line, *end; /* of the input whose turn it is */
  int inputs;             /* whose turn is to come */
  int lines;              /* of a step, a constant */
  int64_t bytes;          /* the order's, a constant where lengths are */
  uintptr_t one;          /* 1, which compilers are not to know */
} short_feed;

WORD void short_feed_begin(short_feed *x, const short_order *order) {
  *x = (short_feed){.order = order, .one = 1};
  __asm__("" : "+r"(x->one));
}
WORD void short_feed_pair(short_feed *x, int64_t pair) {
  x->at = pair * x->order->bytes, x->inputs = x->order->inputs, x->line = x->end = NULL;
}
/* A line's address is known an addition and two multiplications after that of the line before, on x86 seven cycles: a
 * core that has run ahead to the next requests would else send them all at once. */
WORD void short_feed_step(short_feed *x) {
  if (!x) return;
  if (x->line >= x->end) {
    if (x->inputs == 0) return;
    x->line = x->order->input[--x->inputs] + x->at, x->end = x->line + x->bytes;
  }
#pragma GCC unroll 8
  for (int i = 0; i < x->lines; i++) {
    __builtin_prefetch(x->line, 0, 2);
    __builtin_prefetch(x->line - SHORT_LEAD * x->bytes, 0, 2);
    uintptr_t next = ((uintptr_t)x->line + 64) * x->one;
    __asm__("" : "+r"(next));
    x->line = (const char *)(next * x->one);
  }
}
