/* SPDX-License-Identifier: MIT */
/* Planning and launching the f32 kernels in tiles. */
#include "simt.h"

#include "call.h"
#include "driver.h"
#include "efficient.h"
#include "rows.h"

#include <stdio.h>

enum {
  OLDEST_CAPABILITY = 90, /* for its shared memory */
  ROW_BYTES = 16,
  MOST_COLUMNS = 128,
  FEWEST_KEYS = 64 /* with fewer, blocks spend their time on starting */
};

typedef enum entry_id {
  FORWARD_NARROW,
  FORWARD_WIDE,
  KEYS_NARROW,
  KEYS_WIDE,
  QUERIES_NARROW,
  QUERIES_WIDE,
  ENTRY_COUNT,
  DELTA = ENTRY_COUNT, /* of the efficient back-end */
  KERNEL_COUNT
} entry_id;

static const char *const entry_names[ENTRY_COUNT] = {"simt_forward_narrow",          "simt_forward_wide",
                                                     "simt_backward_keys_narrow",    "simt_backward_keys_wide",
                                                     "simt_backward_queries_narrow", "simt_backward_queries_wide"};
static const char *const delta_name[] = {"backward_delta_kernel"};
static const unsigned shared_bytes[ENTRY_COUNT] = {SIMT_SHARED(64, 1),  SIMT_SHARED(128, 1), SIMT_SHARED(64, 2),
                                                   SIMT_SHARED(128, 2), SIMT_SHARED(64, 2),  SIMT_SHARED(128, 2)};

static void *kernels[KERNEL_COUNT];

static int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }
static bool is_wide(const attend_problem *p) { return p->head_dim > 64 || p->v_dim > 64; }

static const char *refusal(const attend_problem *p) {
  static const operand_id options[] = {OPERAND_MASK, OPERAND_BIAS,  OPERAND_ALIBI,
                                       OPERAND_SINK, OPERAND_PROBS, OPERAND_SCORES};
  static const operand_id ids[] = {OPERAND_Q,     OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                   OPERAND_D_OUT, OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V};
  for (size_t i = 0; i < sizeof options / sizeof *options; i++)
    if (attend_has(p, options[i])) return "masks, biases, sinks, probs and scores";
  if (p->softcap > 0 || p->dropout_threshold) return "softcap and dropout";
  if (p->paged) return "paged keys";
  if (!(p->scale > 0)) return "a scale that is not positive";
  if (p->head_dim > MOST_COLUMNS || p->v_dim > MOST_COLUMNS) return "a head of more than 128 columns";
  bool aligned = p->head_dim % 4 == 0 && p->v_dim % 4 == 0 && p->head_dim && p->v_dim;
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
    if (attend_has(p, ids[i]))
      aligned = aligned && p->layout[ids[i]].col == 1 && p->layout[ids[i]].alignment % ROW_BYTES == 0;
  if (!aligned) return "rows that are not made of aligned 16-byte words";
  if (p->q_len < 1 || p->batch < 1 || p->heads < 1) return "no elements";
  if (p->k_len < FEWEST_KEYS) return "fewer than 64 keys";
  int64_t longest = p->q_len > p->k_len ? p->q_len : p->k_len;
  return tiles_of(longest, SIMT_ROWS) > INT32_MAX / p->heads / p->batch ? "more than 2^31 blocks" : NULL;
}

static attend_status load(int ordinal) {
  attend_status status = cuda_load(ordinal, "simt", TYPE_F32, entry_names, ENTRY_COUNT, kernels);
  for (int i = 0; i < ENTRY_COUNT && !status; i++) status = cuda_allow_shared(ordinal, kernels[i], shared_bytes[i]);
  if (!status) status = cuda_load(ordinal, "efficient", TYPE_F32, delta_name, 1, kernels + DELTA);
  return status;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, reason)) return false;
  const char *refused = refusal(p);
  if (refused) {
    snprintf(reason, ATTEND_REASON_SIZE, "%s", refused);
    return false;
  }
  if (load(p->device.id)) {
    snprintf(reason, ATTEND_REASON_SIZE, "%.*s", ATTEND_REASON_SIZE - 1, attend_error_message());
    return false;
  }
  choice->tile_q = SIMT_ROWS;
  choice->tile_k = is_wide(p) ? 128 : 64;
  choice->alignment = ROW_BYTES;
  if (row->direction == ATTEND_BACKWARD)
    choice->workspace_bytes = (size_t)(p->batch * p->heads * p->q_len) * sizeof(float); /* delta */
  choice->state = kernels;
  return true;
}

static attend_status launch(entry_id narrow, const attend_problem *p, int64_t blocks, const cuda_call *call,
                            void *stream) {
  int entry = (int)narrow + is_wide(p);
  return cuda_launch_shared(kernels[entry], blocks, SIMT_THREADS, shared_bytes[entry], call, stream);
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services, (void)choice;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  cuda_scope scope;
  attend_status status = cuda_enter(p->device.id, &scope);
  int64_t pairs = p->batch * p->heads, q_blocks = pairs * tiles_of(p->q_len, SIMT_ROWS);
  if (p->direction == ATTEND_FORWARD) {
    if (!status) status = launch(FORWARD_NARROW, p, q_blocks, &call, stream);
  } else {
    if (!status)
      status = cuda_launch(kernels[DELTA], tiles_of(pairs * p->q_len, EFFICIENT_THREADS / 32), EFFICIENT_THREADS, &call,
                           stream);
    if (!status && (attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V)))
      status = launch(KEYS_NARROW, p, p->batch * p->kv_heads * tiles_of(p->k_len, SIMT_ROWS), &call, stream);
    if (!status && attend_has(p, OPERAND_D_Q)) status = launch(QUERIES_NARROW, p, q_blocks, &call, stream);
  }
  cuda_leave(&scope);
  return status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

static const attend_kernel_row rows[] = {
    {"forward_f32_simt_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_FORWARD, TYPE_F32, usable, plan, run, NULL},
    {"backward_f32_simt_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_BACKWARD, TYPE_F32, usable, plan, run,
     NULL}};

attend_kernel_table cuda_simt_rows(void) { return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)}; }
