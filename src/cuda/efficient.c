/* SPDX-License-Identifier: MIT */
/* Planning and launching the efficient back-end on CUDA, and math where cuBLASLt does not serve (product.c). Both run
 * the same kernels: math adds one that writes the scores and probabilities that were asked for, since materialising
 * what nobody reads would only cost memory. */
#include "efficient.h"

#include "driver.h"
#include "rows.h"

enum { OLDEST_CAPABILITY = 75 };

typedef enum entry_id {
  FORWARD_NARROW,
  FORWARD_WIDE,
  FORWARD_MATERIALISE,
  BACKWARD_DELTA,
  BACKWARD_KEYS_NARROW,
  BACKWARD_KEYS_WIDE,
  BACKWARD_QUERIES_NARROW,
  BACKWARD_QUERIES_WIDE,
  BACKWARD_BIAS,
  BACKWARD_SINK,
  ENTRY_COUNT
} entry_id;

static const char *const entry_names[ENTRY_COUNT] = {
    "forward_narrow",       "forward_wide",        "forward_materialise",     "backward_delta_kernel",
    "backward_keys_narrow", "backward_keys_wide",  "backward_queries_narrow", "backward_queries_wide",
    "backward_bias_kernel", "backward_sink_kernel"};

static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

static int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }
static int64_t at_least_one(int64_t x) { return x < 1 ? 1 : x; }
static int64_t keys_of(const attend_problem *p) { return p->type == TYPE_F64 ? EFFICIENT_KEYS_F64 : EFFICIENT_KEYS; }
static int64_t real_size(const attend_problem *p) { return p->type == TYPE_F64 ? 8 : 4; }
static bool wide(const attend_problem *p, int64_t width) { return width > 64 && p->type != TYPE_F64; }

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  bool returns = attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES);
  const char *refused =
      returns && row->backend != ATTEND_BACKEND_MATH ? "probs and scores come from the math back-end" : NULL;
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, refused, reason) ||
      !cuda_load(p->device.id, "efficient", p->type, entry_names, ENTRY_COUNT, kernels[p->type], reason))
    return false;
  int64_t rows = p->ragged_q ? p->q_total : p->batch * p->q_len, values = 0;
  if (row->direction == ATTEND_BACKWARD)
    values = p->batch * p->q_len; /* delta */
  else if (attend_has(p, OPERAND_PROBS) && !attend_has(p, OPERAND_LSE))
    values = rows; /* lse */
  choice->tile_q = EFFICIENT_QUERIES;
  choice->tile_k = keys_of(p);
  choice->threads = p->batch * p->heads * tiles_of(p->q_len, EFFICIENT_QUERIES);
  choice->workspace_bytes = (size_t)(values * p->heads * real_size(p));
  choice->alignment = p->type == TYPE_F64 ? 8 : p->type == TYPE_F32 ? 4 : 2;
  choice->state = kernels[p->type];
  return true;
}

/* A run is in a context of its device from `begin` to `end`, and stops at the first error. */
typedef struct launcher {
  void *const *kernels;
  const cuda_call *call;
  void *stream;
  attend_status status;
} launcher;

static void launch(launcher *l, entry_id entry, int64_t blocks) {
  if (!l->status) l->status = cuda_launch(l->kernels[entry], blocks, EFFICIENT_THREADS, l->call, l->stream);
}

static attend_status run_forward(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                                 const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  bool returns = attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES);
  if (attend_has(p, OPERAND_PROBS) && !attend_has(p, OPERAND_LSE)) {
    int64_t row_count = p->ragged_q ? p->q_total : p->q_len;
    call.problem.layout[OPERAND_LSE] =
        (attend_layout){p->type == TYPE_F64 ? TYPE_F64 : TYPE_F32, p->heads * row_count, row_count, 1, 0, real_size(p)};
    call.operands.data[OPERAND_LSE] = workspace;
  }
  cuda_scope scope;
  launcher l = {choice->state, &call, stream, cuda_enter(p->device.id, &scope)};
  bool is_wide = wide(p, p->v_dim);
  int64_t pairs = p->batch * p->heads, chunks = at_least_one(tiles_of(p->v_dim, is_wide ? 128 : 64));
  launch(&l, is_wide ? FORWARD_WIDE : FORWARD_NARROW, pairs * tiles_of(p->q_len, EFFICIENT_QUERIES) * chunks);
  if (returns)
    launch(&l, FORWARD_MATERIALISE, pairs * tiles_of(p->q_len, EFFICIENT_QUERIES) * tiles_of(p->k_len, keys_of(p)));
  cuda_leave(&scope);
  return l.status;
}

static attend_status run_backward(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                                  const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  /* Without query heads the gradients of K, V and a broadcast bias are 0, as without queries; kernels divide by the
   * heads of a group. */
  if (!p->heads) call.problem.heads = p->kv_heads, call.problem.q_len = 0;
  cuda_scope scope;
  launcher l = {choice->state, &call, stream, cuda_enter(p->device.id, &scope)};
  int64_t pairs = p->batch * p->heads, q_tiles = tiles_of(p->q_len, EFFICIENT_QUERIES),
          k_tiles = tiles_of(p->k_len, keys_of(p));
  launch(&l, BACKWARD_DELTA, tiles_of(pairs * p->q_len, EFFICIENT_THREADS / 32));
  if (attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V)) {
    int64_t width = p->head_dim > p->v_dim ? p->head_dim : p->v_dim,
            chunks = tiles_of(width, wide(p, width) ? 128 : 64);
    launch(&l, wide(p, width) ? BACKWARD_KEYS_WIDE : BACKWARD_KEYS_NARROW, p->batch * p->kv_heads * k_tiles * chunks);
  }
  if (attend_has(p, OPERAND_D_Q)) {
    bool is_wide = wide(p, p->head_dim);
    int64_t chunks = tiles_of(p->head_dim, is_wide ? 128 : 64);
    launch(&l, is_wide ? BACKWARD_QUERIES_WIDE : BACKWARD_QUERIES_NARROW, pairs * q_tiles * chunks);
  }
  if (attend_has(p, OPERAND_D_BIAS)) {
    const int64_t *shape = p->bias_shape;
    launch(&l, BACKWARD_BIAS,
           shape[0] * shape[1] * tiles_of(shape[2], EFFICIENT_QUERIES) * tiles_of(shape[3], keys_of(p)));
  }
  if (attend_has(p, OPERAND_D_SINK)) launch(&l, BACKWARD_SINK, p->heads);
  cuda_leave(&scope);
  return l.status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

#define ROW(dtype, TYPE, variant, BACKEND)                                                                             \
  {                                                                                                                    \
      "forward_" #dtype "_" #variant "_cuda",                                                                          \
      BACKEND,                                                                                                         \
      ATTEND_CUDA,                                                                                                     \
      ATTEND_FORWARD,                                                                                                  \
      TYPE,                                                                                                            \
      usable,                                                                                                          \
      plan,                                                                                                            \
      run_forward,                                                                                                     \
      NULL},                                                                                                           \
  {                                                                                                                    \
    "backward_" #dtype "_" #variant "_cuda", BACKEND, ATTEND_CUDA, ATTEND_BACKWARD, TYPE, usable, plan, run_backward,  \
        NULL                                                                                                           \
  }
#define ROWS(variant, BACKEND)                                                                                         \
  ROW(f32, TYPE_F32, variant, BACKEND), ROW(f16, TYPE_F16, variant, BACKEND), ROW(bf16, TYPE_BF16, variant, BACKEND),  \
      ROW(f64, TYPE_F64, variant, BACKEND)

static const attend_kernel_row efficient_rows[] = {ROWS(efficient, ATTEND_BACKEND_EFFICIENT)};
static const attend_kernel_row math_rows[] = {ROWS(math, ATTEND_BACKEND_MATH)};
enum { ROW_COUNT = sizeof math_rows / sizeof *math_rows };

attend_kernel_table cuda_efficient_rows(void) { return (attend_kernel_table){efficient_rows, ROW_COUNT}; }
attend_kernel_table cuda_math_rows(void) { return (attend_kernel_table){math_rows, ROW_COUNT}; }
