/* SPDX-License-Identifier: MIT */
/* Planning and launching the kernels for short sequences. */
#include "short.h"

#include "call.h"
#include "driver.h"
#include "rows.h"

enum { OLDEST_CAPABILITY = 80, ROW_BYTES = 16 };

typedef enum entry_id {
  FORWARD_8,
  FORWARD_16,
  FORWARD_32,
  BACKWARD_8,
  BACKWARD_16,
  BACKWARD_32,
  GENERAL, /* + one of the above */
  FORWARD_24 = 2 * GENERAL,
  BACKWARD_24,
  ENTRY_COUNT
} entry_id;

static const char *const entry_names[ENTRY_COUNT] = {
    "short_forward_8",          "short_forward_16",         "short_forward_32",          "short_backward_8",
    "short_backward_16",        "short_backward_32",        "short_forward_general_8",   "short_forward_general_16",
    "short_forward_general_32", "short_backward_general_8", "short_backward_general_16", "short_backward_general_32",
    "short_forward_24",         "short_backward_24"};

static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

static int64_t longest(const attend_problem *p) { return p->q_len > p->k_len ? p->q_len : p->k_len; }
static int64_t widest(const attend_problem *p) { return p->head_dim > p->v_dim ? p->head_dim : p->v_dim; }

static int64_t elements_of_word(const attend_problem *p) { return ROW_BYTES / (p->type == TYPE_F32 ? 4 : 2); }

static bool is_general(const attend_problem *p) {
  static const operand_id options[] = {OPERAND_MASK,   OPERAND_BIAS,      OPERAND_ALIBI,    OPERAND_SINK,
                                       OPERAND_KV_LEN, OPERAND_Q_OFFSETS, OPERAND_K_OFFSETS};
  for (size_t i = 0; i < sizeof options / sizeof *options; i++)
    if (attend_has(p, options[i])) return true;
  if (p->direction == ATTEND_BACKWARD && (p->heads != p->kv_heads || p->accumulate || attend_has(p, OPERAND_D_LSE)))
    return true;
  return p->softcap > 0 || p->window_left >= 0 || p->window_right >= 0 || p->dropout_threshold || widest(p) > 64;
}

/* Rows of 16-byte words, at multiples of 16 bytes. */
static bool has_aligned_rows(const attend_problem *p) {
  static const operand_id ids[] = {OPERAND_Q,     OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                   OPERAND_D_OUT, OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V};
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
    const attend_layout *l = &p->layout[ids[i]];
    if (l->type != TYPE_NONE && (l->col != 1 || l->alignment % ROW_BYTES)) return false;
  }
  int64_t word = elements_of_word(p);
  return p->head_dim >= word && p->v_dim >= word && p->head_dim % word == 0 && p->v_dim % word == 0;
}

static const char *refusal(const attend_problem *p) {
  if (p->heads < 1) return "no heads";
  if (longest(p) > 32) return "more than 32 queries or keys";
  if (p->paged) return "paged keys";
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES))
    return "probs and scores come from the math back-end";
  if (attend_has(p, OPERAND_D_BIAS) || attend_has(p, OPERAND_D_SINK))
    return "d_bias and d_sink are sums over sequences";
  if (widest(p) > 64 * SHORT_MOST_CHUNKS) return "a head of more than 1024 columns";
  if (!has_aligned_rows(p)) return "rows that are not made of aligned 16-byte words";
  if (p->direction == ATTEND_BACKWARD && p->heads / p->kv_heads > SHORT_MOST_GROUP)
    return "more than 32 heads share a head of k";
  return p->batch * p->heads * ((widest(p) + 63) / 64) > INT32_MAX / 4 ? "more than 2^29 sequences times heads" : NULL;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, refusal(p), reason) ||
      !cuda_load(p->device.id, "short", p->type, entry_names, ENTRY_COUNT, kernels[p->type], reason))
    return false;
  choice->tile_q = choice->tile_k = longest(p) <= 8                      ? 8
                                    : longest(p) <= 16                   ? 16
                                    : longest(p) <= 24 && !is_general(p) ? 24
                                                                         : 32;
  choice->alignment = ROW_BYTES;
  choice->state = kernels[p->type];
  return true;
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  void *const *entries = choice->state;
  bool forward = p->direction == ATTEND_FORWARD, general = is_general(p);
  int size = choice->tile_q == 8 ? 0 : choice->tile_q == 16 ? 1 : 2;
  int entry = (forward ? FORWARD_8 : BACKWARD_8) + size + (general ? GENERAL : 0);
  if (choice->tile_q == 24) entry = forward ? FORWARD_24 : BACKWARD_24;
  int64_t items = p->batch * (forward ? p->heads : p->kv_heads), warps = SHORT_WARPS;
  if (p->type == TYPE_F32)
    warps = SHORT_LANES_WARPS(choice->tile_q);
  else if (size == 0)
    items = (items + 1) / 2;
  if (!forward && general) items *= (widest(p) + 63) / 64;
  cuda_scope scope;
  attend_status status = cuda_enter(p->device.id, &scope);
  int64_t blocks = (items + warps - 1) / warps;
  unsigned threads = (unsigned)(32 * warps);
  /* The general kernels and those in f32 do not wait for the kernel before them. */
  if (!status && (general || p->type == TYPE_F32))
    status = cuda_launch(entries[entry], blocks, threads, &call, stream);
  else if (!status)
    status = cuda_launch_early(p->device.id, entries[entry], blocks, threads, &call, stream);
  cuda_leave(&scope);
  return status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

#define ROW(direction, DIRECTION, dtype, TYPE)                                                                         \
  { #direction "_" #dtype "_short_cuda", ATTEND_BACKEND_FLASH, ATTEND_CUDA, DIRECTION, TYPE, usable, plan, run, NULL }
static const attend_kernel_row rows[] = {
    ROW(forward, ATTEND_FORWARD, f32, TYPE_F32),   ROW(backward, ATTEND_BACKWARD, f32, TYPE_F32),
    ROW(forward, ATTEND_FORWARD, f16, TYPE_F16),   ROW(backward, ATTEND_BACKWARD, f16, TYPE_F16),
    ROW(forward, ATTEND_FORWARD, bf16, TYPE_BF16), ROW(backward, ATTEND_BACKWARD, bf16, TYPE_BF16)};

attend_kernel_table cuda_short_rows(void) { return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)}; }
