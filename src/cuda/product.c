/* SPDX-License-Identifier: MIT */
/* Planning and launching the math back-end on CUDA where cuBLASLt computes the products. Heads go through the workspace
 * a chunk at a time, whose scores are materialised:
 *
 *     forward    S = Q K^T                 P = softmax(S)       O = P V
 *     backward   S = Q K^T, dP = dO V^T    P, dS from S, dP     dQ = dS K, dV = P^T dO, dK = dS^T Q
 *
 * The same bits: an algorithm is chosen for products of usual sizes, of which only the number of queries is the call's
 * own. Neither the batch, nor the chunk, nor the keys of a longer sequence beside it change it. Heads that share one of
 * K and V are summed one after another. */
#include "product.h"

#include "cublaslt.h"
#include "driver.h"
#include "efficient.h"
#include "rows.h"

/* Usual sizes: with a batch of 32, tiles are so large that a chunk's few heads leave multiprocessors idle (dQ of 32
 * heads 2048 x 64 in bf16: 351 us instead of 142); from 2 to 16 it makes no difference. */
enum { OLDEST_CAPABILITY = 75, USUAL = 2048, USUAL_BATCH = 4, MOST_GROUPS = 65535, TERMS = 64 };
static const int64_t CHUNK_BYTES = (int64_t)256 << 20, MOST_BYTES = (int64_t)4 << 30;

typedef enum entry_id {
  PACK,
  PROBS,
  PROBS_GENERAL,
  GRADIENTS,
  GRADIENTS_GENERAL,
  FINISH,
  CLEAR,
  DELTA,
  BIAS,
  SINK,
  ENTRY_COUNT
} entry_id;
static const char *const entry_names[ENTRY_COUNT] = {
    "product_pack_kernel",       "product_probs_plain",   "product_probs_general", "product_gradients_plain",
    "product_gradients_general", "product_finish_kernel", "product_clear_kernel",  "backward_delta_kernel",
    "backward_bias_kernel",      "backward_sink_kernel"};
static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

/* The products: their algorithms in attend_choice.own. */
typedef enum product_id { DOTS, D_PROBS, OUT, D_Q, D_K, D_V, PRODUCT_COUNT } product_id;
_Static_assert(PRODUCT_COUNT * sizeof(cublaslt_algorithm) <= sizeof(((attend_choice *)0)->own), "room for all");

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t element_size(const attend_problem *p) { return p->type == TYPE_F64 ? 8 : p->type == TYPE_F32 ? 4 : 2; }
static int64_t real_size(const attend_problem *p) { return p->type == TYPE_F64 ? 8 : 4; }
static bool narrow(const attend_problem *p) { return element_size(p) < real_size(p); }

/* ---- The workspace ----------------------------------------------------------------------------------------------- */

/* Columns of scores. Kernels for GPUs before Hopper start a sum with the terms that do not fill a step, of at most
 * TERMS: where sequences have lengths of their own, longer ones beside a sequence must not change which those are. */
static int64_t padded_keys(const attend_problem *p) {
  return round_up(p->k_len, attend_has(p, OPERAND_KV_LEN) ? TERMS : PRODUCT_ALIGNED);
}

/* Bytes of a pair's scores in all their forms. */
static double score_bytes(const attend_problem *p) {
  double pairs = (double)round_up(p->q_len, PRODUCT_ALIGNED) * (double)padded_keys(p);
  return pairs * (double)(real_size(p) + (narrow(p) ? element_size(p) : 0)) * (p->direction == ATTEND_BACKWARD ? 2 : 1);
}

static char *take(char *workspace, int64_t *at, int64_t bytes) {
  int64_t from = round_up(*at, 256);
  *at = from + bytes;
  return workspace ? workspace + from : NULL;
}

/* What a chunk holds for a pair: its scores, and matrices that outweigh them where there are few queries or keys. */
static double pair_bytes(const attend_problem *p) {
  bool backward = p->direction == ATTEND_BACKWARD;
  double head_dim = (double)round_up(p->head_dim, PRODUCT_ALIGNED), v_dim = (double)round_up(p->v_dim, PRODUCT_ALIGNED);
  double size = (double)element_size(p), real = (double)real_size(p);
  double query = head_dim * size + (backward ? v_dim * size + head_dim * real : v_dim * real);
  double key = (head_dim + v_dim) * (size + (backward ? real : 0));
  return score_bytes(p) + (double)round_up(p->q_len, PRODUCT_ALIGNED) * query + (double)padded_keys(p) * key;
}

/* The largest chunk; its matrices lie in the workspace one behind the other. Returns where they end. */
static int64_t lay_out(const attend_problem *p, char *workspace, product_step *m) {
  bool backward = p->direction == ATTEND_BACKWARD;
  int64_t group = attend_group(p), all = p->batch * p->kv_heads, pairs = (int64_t)((double)CHUNK_BYTES / pair_bytes(p));
  *m = (product_step){.queries = round_up(p->q_len, PRODUCT_ALIGNED),
                      .keys = padded_keys(p),
                      .head_dim = round_up(p->head_dim, PRODUCT_ALIGNED),
                      .v_dim = round_up(p->v_dim, PRODUCT_ALIGNED)};
  m->members = most(least(pairs, group), 1);
  int64_t chunks = (all - 1) / most(least(pairs / group, MOST_GROUPS), 1) + 1;
  m->groups = m->members < group ? 1 : (all - 1) / chunks + 1; /* all chunks about as large */
  int64_t at = 0, heads = m->groups * m->members, size = element_size(p), real = real_size(p);
  if (backward) take(workspace, &at, p->batch * p->heads * p->q_len * real); /* delta, as efficient's kernels have it */
  m->q = take(workspace, &at, heads * m->queries * m->head_dim * size);
  m->k = take(workspace, &at, m->groups * m->keys * m->head_dim * size);
  m->v = take(workspace, &at, m->groups * m->keys * m->v_dim * size);
  m->scores = take(workspace, &at, heads * m->queries * m->keys * real);
  m->probs = narrow(p) ? take(workspace, &at, heads * m->queries * m->keys * size) : m->scores;
  if (backward) {
    m->d_out = take(workspace, &at, heads * m->queries * m->v_dim * size);
    m->d_probs = take(workspace, &at, heads * m->queries * m->keys * real);
    m->d_scores = narrow(p) ? take(workspace, &at, heads * m->queries * m->keys * size) : m->d_probs;
  }
  m->infinite = (void *)take(workspace, &at, 4 * all * (int64_t)sizeof(int));
  m->sums = take(workspace, &at, heads * m->queries * (backward ? m->head_dim : m->v_dim) * real);
  if (backward) {
    m->k_sums = take(workspace, &at, m->groups * m->keys * m->head_dim * real);
    m->v_sums = take(workspace, &at, m->groups * m->keys * m->v_dim * real);
  }
  return round_up(at, 256);
}

/* ---- The products ------------------------------------------------------------------------------------------------ */

static cublaslt_product product_of(const attend_problem *p, product_id id, const product_step *m) {
  int64_t width = id == DOTS || id == D_Q || id == D_K ? m->head_dim : m->v_dim;
  int64_t scores = m->members * m->queries * m->keys, rows = m->members * m->queries;
  switch (id) {
  case DOTS:
  case D_PROBS: /* S^T = K Q^T: a group's heads are rows of one product */
    return (cublaslt_product){p->type, true,      false,           m->keys,      rows,
                              width,   m->groups, m->keys * width, rows * width, scores};
  case OUT:
  case D_Q: /* O^T = V^T P^T */
    return (cublaslt_product){p->type, false,     false,           width,  rows,
                              m->keys, m->groups, m->keys * width, scores, rows * width};
  default: /* dV^T = dO^T P, of one head */
    return (cublaslt_product){p->type,    false,     true,         width,  m->keys,
                              m->queries, m->groups, rows * width, scores, m->keys * width};
  }
}

/* Sizes that an algorithm is chosen for. */
static product_step usual_step(const product_step *m) {
  product_step usual = {.groups = USUAL_BATCH, .members = 1, .queries = 64, .keys = USUAL};
  while (usual.queries < m->queries && usual.queries < USUAL) usual.queries *= 2;
  usual.head_dim = m->head_dim, usual.v_dim = m->v_dim;
  return usual;
}

static bool needs(const attend_problem *p, product_id id) {
  bool scores = attend_has(p, OPERAND_D_Q) || attend_has(p, OPERAND_D_K);
  switch (id) {
  case DOTS:
    return p->direction == ATTEND_FORWARD || scores || attend_has(p, OPERAND_D_V);
  case OUT:
    return p->direction == ATTEND_FORWARD;
  case D_PROBS:
    return p->direction == ATTEND_BACKWARD && (scores || attend_has(p, OPERAND_D_V));
  case D_Q:
    return p->direction == ATTEND_BACKWARD && attend_has(p, OPERAND_D_Q);
  case D_K:
    return p->direction == ATTEND_BACKWARD && attend_has(p, OPERAND_D_K);
  default:
    return p->direction == ATTEND_BACKWARD && attend_has(p, OPERAND_D_V);
  }
}

/* ---- Planning ---------------------------------------------------------------------------------------------------- */

/* Why these kernels cannot serve a problem; NULL: they can. */
static const char *refusal(const attend_problem *p) {
  if (p->ragged_q || p->ragged_k || p->paged) return "not for ragged batches and paged K and V";
  if (!p->batch || !p->heads || !p->q_len || !p->k_len || !p->head_dim || !p->v_dim) return "not for sizes of zero";
  return score_bytes(p) > (double)MOST_BYTES ? "the scores of one head take more than 4 GB" : NULL;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, refusal(p), reason) ||
      !cuda_load(p->device.id, "efficient", p->type, entry_names, ENTRY_COUNT, kernels[p->type], reason))
    return false;
  product_step m;
  int64_t bytes = lay_out(p, NULL, &m);
  size_t product_bytes = 0;
  product_step usual = usual_step(&m);
  cublaslt_algorithm *algorithms = (cublaslt_algorithm *)(void *)choice->own;
  for (product_id id = 0; id < PRODUCT_COUNT; id++) {
    cublaslt_product wanted = product_of(p, id, &usual), actual = product_of(p, id, &m);
    size_t needed = 0;
    if (needs(p, id) && !cublaslt_choose(p->device.id, &wanted, &actual, &algorithms[id], &needed, reason))
      return false;
    if (needed > product_bytes) product_bytes = needed;
  }
  choice->tile_q = p->q_len, choice->tile_k = p->k_len;
  choice->threads = p->batch * p->heads;
  choice->workspace_bytes = (size_t)bytes + product_bytes;
  choice->alignment = (size_t)element_size(p);
  choice->state = kernels[p->type];
  return true;
}

/* ---- Running ----------------------------------------------------------------------------------------------------- */

typedef struct runner {
  const attend_problem *p;
  const attend_choice *choice;
  cuda_call call;
  char *workspace; /* of the products */
  size_t bytes;
  void *stream;
  attend_status status; /* the first error */
} runner;

static void launch(runner *r, entry_id entry, int64_t blocks, int threads) {
  void *const *loaded = r->choice->state;
  if (!r->status) r->status = cuda_launch(loaded[entry], blocks, (unsigned)threads, &r->call, r->stream);
}

/* Does anything but causal, window and kv_len act on the scores, or return them? */
static bool general(const attend_problem *p) {
  return p->softcap > 0 || p->dropout_threshold || attend_has(p, OPERAND_BIAS) || attend_has(p, OPERAND_ALIBI) ||
         attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_SCORES);
}

/* A block for `tile` rows of the operand that has most. */
static void step(runner *r, entry_id entry, int tile, uint32_t operands, uint32_t finite) {
  product_step *m = &r->call.product;
  m->operands = operands, m->finite = finite;
  launch(r, entry, m->groups * m->members * ((most(m->keys, m->queries) - 1) / tile + 1), PRODUCT_THREADS);
}

static void multiply(runner *r, product_id id, const char *a, const char *b, void *c, bool add) {
  if (r->status) return;
  cublaslt_product product = product_of(r->p, id, &r->call.product);
  const cublaslt_algorithm *algorithms = (const cublaslt_algorithm *)(const void *)r->choice->own;
  r->status = cublaslt_run(r->p->device.id, &product, &algorithms[id], a, b, c, add, r->workspace, r->bytes, r->stream);
}

#define BIT(operand) (1u << OPERAND_##operand)

static void forward_chunk(runner *r) {
  product_step *m = &r->call.product;
  step(r, PACK, PRODUCT_PACKED, BIT(Q) | BIT(K) | BIT(V), BIT(V));
  multiply(r, DOTS, m->k, m->q, m->scores, false);
  step(r, general(r->p) ? PROBS_GENERAL : PROBS, PRODUCT_ROWS, 0, 0);
  multiply(r, OUT, m->v, m->probs, m->sums, false);
  step(r, FINISH, PRODUCT_PACKED, BIT(OUT), 0);
}

/* dV or dK: the heads of a group one after another. right: rows of dO or Q. */
static void multiply_keys(runner *r, product_id id, const char *right, const char *left, int64_t width, void *sums) {
  product_step *m = &r->call.product;
  int64_t size = element_size(r->p);
  for (int64_t n = 0; n < m->members && needs(r->p, id); n++)
    multiply(r, id, right + n * m->queries * width * size, left + n * m->queries * m->keys * size, sums,
             m->member + n > 0);
}

static void backward_chunk(runner *r) {
  product_step *m = &r->call.product;
  uint32_t outputs = 0;
  for (operand_id id = OPERAND_D_Q; id <= OPERAND_D_V; id++)
    if (attend_has(r->p, id)) outputs |= 1u << id;
  step(r, PACK, PRODUCT_PACKED, BIT(Q) | BIT(K) | BIT(V) | BIT(D_OUT), 0);
  multiply(r, DOTS, m->k, m->q, m->scores, false);
  multiply(r, D_PROBS, m->v, m->d_out, m->d_probs, false);
  step(r, general(r->p) ? GRADIENTS_GENERAL : GRADIENTS, PRODUCT_ROWS, 0, 0);
  step(r, PACK, PRODUCT_PACKED, BIT(Q) | BIT(K) | BIT(D_OUT), BIT(Q) | BIT(K) | BIT(D_OUT));
  if (needs(r->p, D_Q)) multiply(r, D_Q, m->k, m->d_scores, m->sums, false);
  multiply_keys(r, D_K, m->q, m->d_scores, m->head_dim, m->k_sums);
  multiply_keys(r, D_V, m->d_out, m->probs, m->v_dim, m->v_sums);
  step(r, FINISH, PRODUCT_PACKED, outputs, 0);
}

static void run_chunks(runner *r, void (*chunk)(runner *r)) {
  product_step *m = &r->call.product;
  int64_t group = attend_group(r->p), all = r->p->batch * r->p->kv_heads, groups = m->groups, members = m->members;
  for (m->group = 0; m->group < all; m->group += groups)
    for (m->member = 0; m->member < group; m->member += members) {
      m->groups = least(groups, all - m->group);
      m->members = least(members, group - m->member);
      chunk(r);
    }
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_scope scope;
  runner r = {
      .p = p, .choice = choice, .call = {.problem = *p, .operands = *o, .workspace = workspace}, .stream = stream};
  int64_t bytes = lay_out(p, workspace, &r.call.product);
  r.workspace = (char *)workspace + bytes, r.bytes = choice->workspace_bytes - (size_t)bytes;
  r.status = cuda_enter(p->device.id, &scope);
  launch(&r, CLEAR, (p->batch * p->kv_heads - 1) / PRODUCT_THREADS + 1, PRODUCT_THREADS);
  if (p->direction == ATTEND_FORWARD) {
    run_chunks(&r, forward_chunk);
  } else {
    launch(&r, DELTA, (p->batch * p->heads * p->q_len - 1) / (EFFICIENT_THREADS / 32) + 1, EFFICIENT_THREADS);
    if (needs(p, DOTS)) run_chunks(&r, backward_chunk);
    const int64_t *shape = p->bias_shape;
    int64_t keys = p->type == TYPE_F64 ? EFFICIENT_KEYS_F64 : EFFICIENT_KEYS;
    if (attend_has(p, OPERAND_D_BIAS))
      launch(&r, BIAS, shape[0] * shape[1] * ((shape[2] - 1) / EFFICIENT_QUERIES + 1) * ((shape[3] - 1) / keys + 1),
             EFFICIENT_THREADS);
    if (attend_has(p, OPERAND_D_SINK)) launch(&r, SINK, p->heads, EFFICIENT_THREADS);
  }
  cuda_leave(&scope);
  return r.status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

#define ROWS(dtype, TYPE)                                                                                              \
  {"forward_" #dtype "_math_cublaslt_cuda",                                                                            \
   ATTEND_BACKEND_MATH,                                                                                                \
   ATTEND_CUDA,                                                                                                        \
   ATTEND_FORWARD,                                                                                                     \
   TYPE,                                                                                                               \
   usable,                                                                                                             \
   plan,                                                                                                               \
   run,                                                                                                                \
   NULL},                                                                                                              \
  {                                                                                                                    \
    "backward_" #dtype "_math_cublaslt_cuda", ATTEND_BACKEND_MATH, ATTEND_CUDA, ATTEND_BACKWARD, TYPE, usable, plan,   \
        run, NULL                                                                                                      \
  }

static const attend_kernel_row rows[] = {ROWS(f32, TYPE_F32), ROWS(f16, TYPE_F16), ROWS(bf16, TYPE_BF16),
                                         ROWS(f64, TYPE_F64)};

attend_kernel_table cuda_product_rows(void) { return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)}; }
