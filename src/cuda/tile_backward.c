/* SPDX-License-Identifier: MIT */
/* Planning and launching backward in tiles on tensor cores: delta first, then the owners of keys, then of queries. */
#include "tile_backward.h"

#include "call.h"
#include "driver.h"
#include "rows.h"

#include <stdio.h>

enum { OLDEST_CAPABILITY = 80, ROW_BYTES = 16, MOST_COLUMNS = 128 };

typedef enum entry_id {
  KEYS_NARROW,
  KEYS_WIDE,
  QUERIES_NARROW,
  QUERIES_WIDE,
  GENERAL, /* + one of the above */
  DELTA = 2 * GENERAL,
  ENTRY_COUNT
} entry_id;

static const char *const entry_names[ENTRY_COUNT] = {"tile_backward_keys_narrow",
                                                     "tile_backward_keys_wide",
                                                     "tile_backward_queries_narrow",
                                                     "tile_backward_queries_wide",
                                                     "tile_backward_keys_general_narrow",
                                                     "tile_backward_keys_general_wide",
                                                     "tile_backward_queries_general_narrow",
                                                     "tile_backward_queries_general_wide",
                                                     "tile_backward_delta"};

static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

/* A sink is in lse already. */
static bool is_general(const attend_problem *p) {
  return attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_BIAS) || attend_has(p, OPERAND_ALIBI) || p->softcap > 0 ||
         p->dropout_threshold;
}

static bool is_wide(const attend_problem *p) { return p->head_dim > 64 || p->v_dim > 64; }
static int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/* Of a block that owns keys, or queries. */
static int64_t warps_of(const attend_problem *p, bool keys) {
  if (is_wide(p)) return keys ? KEYS_WARPS_WIDE : QUERIES_WARPS_WIDE;
  return keys ? KEYS_WARPS_NARROW : QUERIES_WARPS_NARROW;
}
static int64_t rows_of(const attend_problem *p, bool keys) {
  int64_t tiles = keys ? KEYS_TILES_NARROW : QUERIES_TILES_NARROW;
  if (is_wide(p)) tiles = keys ? KEYS_TILES_WIDE : QUERIES_TILES_WIDE;
  return 16 * tiles * warps_of(p, keys);
}

static const char *refusal(const attend_problem *p) {
  static const operand_id ids[] = {OPERAND_Q,     OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                   OPERAND_D_OUT, OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V};
  if (attend_has(p, OPERAND_D_BIAS) || attend_has(p, OPERAND_D_SINK))
    return "d_bias and d_sink are sums over sequences";
  if (p->head_dim > MOST_COLUMNS || p->v_dim > MOST_COLUMNS) return "a head of more than 128 columns";
  bool aligned = p->head_dim % 8 == 0 && p->v_dim % 8 == 0 && p->head_dim && p->v_dim;
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
    const attend_layout *l = &p->layout[ids[i]];
    aligned = aligned && (l->type == TYPE_NONE || (l->col == 1 && l->alignment % ROW_BYTES == 0));
  }
  if (!aligned) return "rows that are not made of aligned 16-byte words";
  if (p->q_len < 1 || p->k_len < 1 || p->batch < 1 || p->heads < 1) return "no elements";
  int64_t longest = p->q_len > p->k_len ? p->q_len : p->k_len;
  if (longest > 1 << 29) return "more than 2^29 queries or keys";
  return tiles_of(longest, 64) > INT32_MAX / p->heads / p->batch ? "more than 2^31 blocks" : NULL;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  const char *refused = refusal(p);
  if (refused) {
    snprintf(reason, ATTEND_REASON_SIZE, "%s", refused);
    return false;
  }
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, reason)) return false;
  if (cuda_load(p->device.id, "tile_backward", p->type, entry_names, ENTRY_COUNT, kernels[p->type])) {
    snprintf(reason, ATTEND_REASON_SIZE, "%.*s", ATTEND_REASON_SIZE - 1, attend_error_message());
    return false;
  }
  choice->tile_q = rows_of(p, false);
  choice->tile_k = rows_of(p, true);
  choice->alignment = ROW_BYTES;
  choice->workspace_bytes =
      2 * sizeof(float) * (size_t)(p->batch * p->heads * tiles_of(p->q_len, GRADIENT_PAD) * GRADIENT_PAD);
  choice->state = kernels[p->type];
  return true;
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_call call = {*p, *o, workspace, {0}};
  void *const *entries = choice->state;
  int variant = (is_wide(p) ? KEYS_WIDE : KEYS_NARROW) + (is_general(p) ? GENERAL : 0);
  cuda_scope scope;
  attend_status status = cuda_enter(p->device.id, &scope);
  if (!status)
    status = cuda_launch(entries[DELTA], p->batch * p->heads * tiles_of(p->q_len, GRADIENT_PAD), GRADIENT_DELTA_THREADS,
                         &call, stream);
  if (!status && (attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V)))
    status = cuda_launch(entries[variant], p->batch * p->kv_heads * tiles_of(p->k_len, rows_of(p, true)),
                         (unsigned)(32 * warps_of(p, true)), &call, stream);
  if (!status && attend_has(p, OPERAND_D_Q))
    status = cuda_launch(entries[variant + QUERIES_NARROW], p->batch * p->heads * tiles_of(p->q_len, rows_of(p, false)),
                         (unsigned)(32 * warps_of(p, false)), &call, stream);
  cuda_leave(&scope);
  return status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

static const attend_kernel_row rows[] = {{"backward_f16_tile_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA,
                                          ATTEND_BACKWARD, TYPE_F16, usable, plan, run, NULL},
                                         {"backward_bf16_tile_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA,
                                          ATTEND_BACKWARD, TYPE_BF16, usable, plan, run, NULL}};

attend_kernel_table cuda_tile_backward_rows(void) {
  return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)};
}
