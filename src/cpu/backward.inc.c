/* SPDX-License-Identifier: MIT */
/* Backward, tiled: who computes which gradient, in which order.
 *
 * An item of work owns KEY_CHUNK keys of one (sequence, key head) and their dK and dV, and goes through the queries of
 * all heads of the group, GRADIENT_ROWS at a time, from the last to the first. dQ is the sum of the chunks' parts in
 * ascending order of the chunks: chunk c waits before each step until chunk c - 1 has done it. So the bits do not
 * depend on the threads, and few heads with many keys still occupy many threads. Items start in ascending order, hence
 * the one that is waited for runs or has run.
 *
 * Where d_q has 16 bits, its sums are kept as reals: for as many pairs at a time as DQ_BYTES hold, or, where one pair
 * needs more, by a second pass over the keys, 7 products instead of 5. Every way adds in the same order: the same bits.
 */

#include <sched.h>
#include <stdatomic.h>

#define DQ_BYTES ((int64_t)16 << 20)
#define MAX_PAIRS 4096 /* of a round: bounds the counters */

typedef struct backward_context {
  const attend_problem *problem;
  const attend_choice *choice;
  const attend_operands *operands;
  char *workspace;
  size_t bytes_per_worker;
  int64_t chunks, group;
  int64_t first_pair, pairs; /* (sequence, key head) pairs of this round */
  int64_t together;          /* of them, those whose chunks alternate */
  _Atomic int64_t *progress; /* [pairs][chunks] steps done */
  real *d_q;                 /* [pairs][group][q_len][head_dim]; NULL: sums go to d_q itself, or are not wanted here */
  bool want_q, want_keys;
} backward_context;

/* How a problem is cut. */
typedef struct backward_cut {
  int64_t chunks, group, pairs; /* pairs of a round */
  bool two_passes, buffer;
  int64_t scratch_bytes, progress_bytes, d_q_bytes;
} backward_cut;

static backward_cut cut_backward(const attend_problem *p) {
  backward_cut c = {.chunks = (p->k_len + KEY_CHUNK - 1) / KEY_CHUNK, .group = attend_group(p)};
  if (c.chunks < 1) c.chunks = 1;
  c.pairs = p->batch * p->kv_heads;
  if (c.pairs > MAX_PAIRS) c.pairs = MAX_PAIRS;
  int64_t bytes = c.group * p->q_len * p->head_dim * (int64_t)sizeof(real);
  if (attend_has(p, OPERAND_D_Q) && p->type != REAL_TYPE && c.chunks > 1 && bytes > 0) {
    c.two_passes = bytes > DQ_BYTES;
    c.buffer = !c.two_passes;
    if (c.buffer && c.pairs > DQ_BYTES / bytes) c.pairs = DQ_BYTES / bytes;
  }
  int64_t used = 0;
  backward_scratch_at(p, NULL, &used);
  c.scratch_bytes = round_up(used, 256);
  c.progress_bytes = c.chunks > 1 ? round_up(c.pairs * c.chunks * (int64_t)sizeof(int64_t), 256) : 0;
  c.d_q_bytes = c.buffer ? round_up(c.pairs * bytes, 256) : 0;
  return c;
}

/* Rows of K that sequence b owns: those from kv_len on get zero gradients. */
static int64_t owned_keys(const attend_problem *p, const attend_operands *o, int64_t b) {
  if (!p->ragged_k) return p->k_len;
  const attend_layout *l = &p->layout[OPERAND_K_OFFSETS];
  const void *offsets = o->data[OPERAND_K_OFFSETS];
  return attend_load_index(offsets, (b + 1) * l->batch, l->type) - attend_load_index(offsets, b * l->batch, l->type);
}

static backward_scratch worker_scratch(const backward_context *c, int worker) {
  int64_t used = 0;
  return backward_scratch_at(c->problem, c->workspace + (size_t)worker * c->bytes_per_worker, &used);
}

static void wait_for(const _Atomic int64_t *progress, int64_t step) {
  for (int spin = 0; atomic_load_explicit(progress, memory_order_acquire) <= step; spin++)
    if (spin > 64) sched_yield();
}

/* d_q of queries i0 … i0 + rows - 1 = scale * the part in scratch, or += it. */
static void store_query_part(const attend_problem *p, const attend_matrix *m, attend_type type, const gradient_rows *q,
                             bool add, const backward_scratch *w) {
  real scale[TILE_LANES];
  for (int l = 0; l < TILE_LANES; l++) scale[l] = (real)p->scale;
  for (int g = 0; g < q->rows; g += TILE_LANES)
    unpack_transposed(m, q->i0 + g, q->rows - g, p->head_dim, w->d_q_t + g * round_up(p->head_dim, TILE_ROWS), scale,
                      add, type);
}

static void store_key_gradients(const backward_context *c, const attend_slice *s, const gradient_keys *keys,
                                int64_t end, const backward_scratch *w) {
  const attend_problem *p = c->problem;
  for (int64_t j = keys->first; j < end; j++) {
    if (s->d_k.data)
      unpack_row(s->d_k.data, j * s->d_k.row, s->d_k.col, p->head_dim, w->d_k + (j - keys->first) * key_width(p),
                 (real)p->scale, p->accumulate, p->type);
    if (s->d_v.data)
      unpack_row(s->d_v.data, j * s->d_v.row, s->d_v.col, p->v_dim, w->d_v + (j - keys->first) * value_width(p), 1,
                 p->accumulate, p->type);
  }
}

static void chunk_item(void *context, int worker, int64_t index) {
  const backward_context *c = context;
  const attend_problem *p = c->problem;
  /* Chunks of one pair follow each other, while its queries are in the cache; pairs alternate to occupy the threads. */
  int64_t first_local = index / (c->together * c->chunks) * c->together, within = index % (c->together * c->chunks);
  int64_t together = c->together < c->pairs - first_local ? c->together : c->pairs - first_local;
  int64_t chunk = within / together, local = first_local + within % together, pair = c->first_pair + local;
  if (pair >= p->batch * p->kv_heads) return;
  int64_t b = pair / p->kv_heads, head = pair % p->kv_heads * c->group, step = 0;
  backward_scratch w = worker_scratch(c, worker);
  attend_slice s;
  attend_slice_make(p, c->operands, b, head, &s);
  int64_t owned = owned_keys(p, c->operands, b), first = chunk * KEY_CHUNK;
  if ((first >= owned && chunk > 0) || !attend_serves(c->choice, s.q_len, s.k_len)) return;
  gradient_keys keys = load_gradient_keys(p, &s, first, &w);
  int64_t stored = owned < first + KEY_CHUNK ? owned : first + KEY_CHUNK;
  if (c->want_keys) {
    int64_t rows = round_up(stored - first, TILE_ROWS);
    memset(w.d_k, 0, (size_t)(rows * key_width(p)) * sizeof(real));
    memset(w.d_v, 0, (size_t)(rows * value_width(p)) * sizeof(real));
  }
  for (int64_t h = 0; h < c->group; h++) {
    attend_slice_make(p, c->operands, b, head + h, &s);
    attend_matrix target = s.d_q;
    if (c->d_q)
      target = (attend_matrix){(char *)(c->d_q + (local * c->group + h) * p->q_len * p->head_dim), p->head_dim, 1};
    for (int64_t i0 = (s.q_len - 1) / GRADIENT_ROWS * GRADIENT_ROWS; i0 >= 0 && s.q_len > 0;
         i0 -= GRADIENT_ROWS, step++) {
      gradient_rows q = {.i0 = i0, .rows = s.q_len - i0 < GRADIENT_ROWS ? (int)(s.q_len - i0) : GRADIENT_ROWS};
      q.range = visible_keys(p, &s, i0, q.rows);
      bool meets = q.range.first < keys.last && q.range.last > keys.first && q.range.first < q.range.last;
      if (meets) {
        q = load_gradient_rows(p, &s, i0, q.rows, &w);
        gradient_step(p, &s, &q, &keys, c->want_q, c->want_keys, &w);
      }
      if (!c->want_q) continue;
      if (chunk > 0) wait_for(&c->progress[local * c->chunks + chunk - 1], step);
      bool add = chunk > 0 || (p->accumulate && !c->d_q);
      if (!meets && !add) memset(w.d_q_t, 0, (size_t)(round_up(p->head_dim, TILE_ROWS) * GRADIENT_ROWS) * sizeof(real));
      if (meets || !add) store_query_part(p, &target, c->d_q ? REAL_TYPE : p->type, &q, add, &w);
      if (c->chunks > 1) atomic_store_explicit(&c->progress[local * c->chunks + chunk], step + 1, memory_order_release);
    }
  }
  if (c->want_keys) store_key_gradients(c, &s, &keys, stored, &w);
}

/* Round the sums of one query head of the round to d_q. */
static void round_item(void *context, int worker, int64_t index) {
  (void)worker;
  const backward_context *c = context;
  const attend_problem *p = c->problem;
  int64_t pair = c->first_pair + index / c->group;
  if (pair >= p->batch * p->kv_heads) return;
  attend_slice s;
  attend_slice_make(p, c->operands, pair / p->kv_heads, pair % p->kv_heads * c->group + index % c->group, &s);
  if (!attend_serves(c->choice, s.q_len, s.k_len)) return;
  const real *sums = c->d_q + index * p->q_len * p->head_dim;
  for (int64_t i = 0; i < s.q_len; i++)
    unpack_row(s.d_q.data, i * s.d_q.row, s.d_q.col, p->head_dim, sums + i * p->head_dim, 1, p->accumulate, p->type);
}

/* The second pass: GRADIENT_ROWS queries of one head over all chunks. Sums stand where dK does in the first. */
static void query_item(void *context, int worker, int64_t index) {
  const backward_context *c = context;
  const attend_problem *p = c->problem;
  int64_t blocks = (p->q_len + GRADIENT_ROWS - 1) / GRADIENT_ROWS, i0 = index % blocks * GRADIENT_ROWS;
  backward_scratch w = worker_scratch(c, worker);
  attend_slice s;
  attend_slice_make(p, c->operands, index / blocks / p->heads, index / blocks % p->heads, &s);
  if (i0 >= s.q_len || !attend_serves(c->choice, s.q_len, s.k_len)) return;
  int rows = s.q_len - i0 < GRADIENT_ROWS ? (int)(s.q_len - i0) : GRADIENT_ROWS;
  gradient_rows q = load_gradient_rows(p, &s, i0, rows, &w), at_zero = {.i0 = 0, .rows = rows};
  attend_matrix sums = {(char *)w.d_k, p->head_dim, 1};
  memset(w.d_k, 0, (size_t)(rows * p->head_dim) * sizeof(real));
  for (int64_t first = 0; first < q.range.last; first += KEY_CHUNK) {
    if (first + KEY_CHUNK <= q.range.first) continue;
    gradient_keys keys = load_gradient_keys(p, &s, first, &w);
    gradient_step(p, &s, &q, &keys, true, false, &w);
    store_query_part(p, &sums, REAL_TYPE, &at_zero, true, &w);
  }
  for (int l = 0; l < rows; l++)
    unpack_row(s.d_q.data, (i0 + l) * s.d_q.row, s.d_q.col, p->head_dim, w.d_k + l * p->head_dim, 1, p->accumulate,
               p->type);
}

/* dSink of one head: -sum over its queries of exp(sink - lse) * delta. */
static void sink_item(void *context, int worker, int64_t h) {
  const backward_context *c = context;
  const attend_problem *p = c->problem;
  backward_scratch w = worker_scratch(c, worker);
  attend_slice s;
  double sum = 0;
  for (int64_t b = 0; b < p->batch; b++) {
    attend_slice_make(p, c->operands, b, h, &s);
    for (int64_t i0 = 0; i0 < s.q_len; i0 += TILE_LANES) {
      int rows = s.q_len - i0 < TILE_LANES ? (int)(s.q_len - i0) : TILE_LANES;
      pack_transposed(w.d_out_t, &s.d_out, i0, rows, p->v_dim, 1, p->type);
      make_words(w.d_out_t, p->v_dim);
      load_delta(p, &s, i0, rows, w.d_out_t, w.d_q_t, w.delta);
      for (int l = 0; l < rows; l++) {
        double lse = attend_load(s.lse, (i0 + l) * s.lse_row, p->layout[OPERAND_LSE].type);
        if (s.sink != -INFINITY) sum -= exp(s.sink - lse) * (double)w.delta[l];
      }
    }
  }
  const attend_layout *l = &p->layout[OPERAND_D_SINK];
  void *d_sink = c->operands->data[OPERAND_D_SINK]; /* not the slice's: of no sequence there is none */
  double before = p->accumulate ? attend_load(d_sink, h * l->head, l->type) : 0;
  attend_store(d_sink, h * l->head, l->type, sum + before);
}

#include "cpu/bias_gradient.inc.c"

attend_status ENTRY(backward_tiled_run)(const attend_problem *p, const attend_choice *choice,
                                        const attend_operands *operands, const attend_services *services,
                                        void *workspace, void *stream) {
  (void)stream;
  backward_cut cut = cut_backward(p);
  int workers = (int)choice->threads;
  backward_context c = {.problem = p,
                        .choice = choice,
                        .operands = operands,
                        .workspace = workspace,
                        .chunks = cut.chunks,
                        .group = cut.group,
                        .pairs = cut.pairs,
                        .together = (4 * workers + cut.chunks - 1) / cut.chunks,
                        .bytes_per_worker = (size_t)cut.scratch_bytes};
  char *after = (char *)workspace + workers * cut.scratch_bytes;
  c.progress = (_Atomic int64_t *)(void *)after;
  if (cut.buffer) c.d_q = (real *)(void *)(after + cut.progress_bytes);
  c.want_q = operands->data[OPERAND_D_Q] && !cut.two_passes;
  c.want_keys = operands->data[OPERAND_D_K] || operands->data[OPERAND_D_V];
  int64_t pairs = p->batch * p->kv_heads;
  for (c.first_pair = 0; c.first_pair < pairs && (c.want_q || c.want_keys); c.first_pair += c.pairs) {
    if (c.chunks > 1)
      for (int64_t i = 0; i < c.pairs * c.chunks; i++) atomic_init(&c.progress[i], 0);
    attend_for_each(services, workers, c.pairs * c.chunks, chunk_item, &c);
    if (c.d_q) attend_for_each(services, workers, c.pairs * c.group, round_item, &c);
  }
  if (cut.two_passes) {
    int64_t blocks = (p->q_len + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
    attend_for_each(services, workers, p->batch * p->heads * blocks, query_item, &c);
  }
  if (operands->data[OPERAND_D_SINK]) attend_for_each(services, workers, p->heads, sink_item, &c);
  if (operands->data[OPERAND_D_BIAS]) attend_for_each(services, workers, bias_items(p), bias_item, &c);
  return ATTEND_OK;
}

bool ENTRY(backward_tiled_plan)(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                                char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (p->paged) {
    snprintf(reason, ATTEND_REASON_SIZE, "paged keys have no gradients");
    return false;
  }
  backward_cut cut = cut_backward(p);
  choice->tile_q = GRADIENT_ROWS;
  choice->tile_k = KEY_CHUNK;
  choice->splits = 1;
  choice->threads = p->threads;
  choice->workspace_bytes = (size_t)(choice->threads * cut.scratch_bytes + cut.progress_bytes + cut.d_q_bytes);
  choice->alignment = attend_type_size(p->type);
  return true;
}
