/* SPDX-License-Identifier: MIT */
/* Planning and launching the kernels for decoding: one launch reads K and V, a second adds the parts of sequences that
 * were cut. */
#include "decode.h"

#include "call.h"
#include "driver.h"
#include "rows.h"

enum { OLDEST_CAPABILITY = 80, ROW_BYTES = 16 };

typedef enum entry_id {
  NARROW_8,
  WIDE_8,
  NARROW_16,
  WIDE_16,
  GENERAL,             /* + one of the above */
  SPANS = 2 * GENERAL, /* + NARROW_8 or WIDE_8 */
  MERGE = SPANS + NARROW_16,
  MERGE_SPANS,
  ENTRY_COUNT
} entry_id;

static const char *const entry_names[ENTRY_COUNT] = {"decode_8_narrow",
                                                     "decode_8_wide",
                                                     "decode_16_narrow",
                                                     "decode_16_wide",
                                                     "decode_general_8_narrow",
                                                     "decode_general_8_wide",
                                                     "decode_general_16_narrow",
                                                     "decode_general_16_wide",
                                                     "decode_spans_8_narrow",
                                                     "decode_spans_8_wide",
                                                     "decode_merge",
                                                     "decode_merge_spans"};

static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

static bool is_general(const attend_problem *p) {
  return attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_BIAS) || attend_has(p, OPERAND_ALIBI) || p->softcap > 0;
}

/* Do blocks take spans? The bits are the same. */
static bool by_spans(const attend_problem *p) {
  if (is_general(p) || decode_rows(p) != 8 || decode_most_parts(p) == 1) return false;
  return decode_tiles(p) * decode_most_spans(p) >= (int64_t)DECODE_ENOUGH * cuda_multiprocessors(p->device.id);
}

static int64_t widest(const attend_problem *p) { return p->head_dim > p->v_dim ? p->head_dim : p->v_dim; }

static const char *refusal(const attend_problem *p) {
  static const operand_id ids[] = {OPERAND_Q, OPERAND_K, OPERAND_V};
  if (p->q_len > DECODE_MOST_QUERIES) return "more than 16 queries";
  if (p->dropout_threshold) return "dropout";
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES))
    return "probs and scores come from the math back-end";
  if (widest(p) > DECODE_MOST_COLUMNS) return "a head of more than 128 columns";
  bool aligned = p->head_dim % 8 == 0 && p->v_dim % 8 == 0 && p->head_dim && p->v_dim;
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
    aligned = aligned && p->layout[ids[i]].col == 1 && p->layout[ids[i]].alignment % ROW_BYTES == 0;
  if (!aligned) return "rows that are not made of aligned 16-byte words";
  if (p->q_len < 1 || p->k_len < 1 || p->batch < 1 || p->heads < 1) return "no elements";
  int64_t blocks = decode_most_parts(p) * decode_row_tiles(p);
  if (p->k_len > DECODE_MOST_KEYS) return "more than 2^30 keys";
  if (p->batch * p->kv_heads > INT32_MAX / blocks / decode_rows(p)) return "more than 2^31 parts";
  return NULL;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, refusal(p), reason) ||
      !cuda_load(p->device.id, "decode", p->type, entry_names, ENTRY_COUNT, kernels[p->type], reason))
    return false;
  choice->tile_q = decode_rows(p);
  choice->tile_k = DECODE_KEYS;
  choice->splits = by_spans(p) ? decode_most_spans(p) : decode_most_parts(p);
  choice->alignment = ROW_BYTES;
  choice->state = kernels[p->type];
  if (choice->splits > 1)
    choice->workspace_bytes =
        (size_t)(decode_tiles(p) * choice->splits * decode_rows(p) * decode_part_reals(p)) * sizeof(float);
  return true;
}

static decode_source source(const attend_problem *p, const attend_operands *o, operand_id id) {
  const attend_layout *l = &p->layout[id];
  return (decode_source){o->data[id], l->batch, l->head, l->row};
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services;
  decode_shape shape = {.group = (uint32_t)(p->heads / p->kv_heads),
                        .row_tiles = (uint32_t)decode_row_tiles(p),
                        .limit = (uint32_t)decode_limit(p),
                        .most_sums = (uint32_t)choice->splits,
                        .span = choice->splits < decode_most_parts(p),
                        .kv_heads = (uint32_t)p->kv_heads,
                        .k_len = (uint32_t)p->k_len,
                        .part = decode_part((uint32_t)decode_limit(p), (uint32_t)p->k_len),
                        .parts = decode_parts((uint32_t)decode_limit(p), (uint32_t)p->k_len),
                        .plain = !p->ragged_k && !p->paged && !attend_has(p, OPERAND_KV_LEN),
                        .k = source(p, o, OPERAND_K),
                        .v = source(p, o, OPERAND_V)};
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace, .decode = shape};
  void *const *entries = choice->state;
  int entry = (decode_rows(p) == 8 ? NARROW_8 : NARROW_16) + (widest(p) > 64) +
              (is_general(p) ? GENERAL
               : shape.span  ? SPANS
                             : 0);
  cuda_scope scope;
  attend_status status = cuda_enter(p->device.id, &scope);
  if (!status)
    status = cuda_launch_early(p->device.id, entries[entry], decode_tiles(p) * choice->splits, 32 * DECODE_WARPS, &call,
                               stream);
  int64_t blocks = p->batch * p->heads * p->q_len;
  if (shape.span) blocks = (blocks + DECODE_WARPS - 1) / DECODE_WARPS;
  if (!status && choice->splits > 1)
    status = cuda_launch_early(p->device.id, entries[shape.span ? MERGE_SPANS : MERGE], blocks, 32 * DECODE_WARPS,
                               &call, stream);
  cuda_leave(&scope);
  return status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

static const attend_kernel_row rows[] = {
    {"forward_f16_decode_cuda", ATTEND_BACKEND_FLASH, ATTEND_CUDA, ATTEND_FORWARD, TYPE_F16, usable, plan, run, NULL},
    {"forward_bf16_decode_cuda", ATTEND_BACKEND_FLASH, ATTEND_CUDA, ATTEND_FORWARD, TYPE_BF16, usable, plan, run,
     NULL}};

attend_kernel_table cuda_decode_rows(void) { return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)}; }
