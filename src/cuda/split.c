/* SPDX-License-Identifier: MIT */
/* Planning and launching the f32 kernels in tiles on tensor cores. */
#include "split.h"

#include "call.h"
#include "driver.h"
#include "rows.h"
#include "tile_backward.h"

enum { OLDEST_CAPABILITY = 80, ROW_BYTES = 16, MOST_COLUMNS = 128 };

typedef enum entry_id {
  NARROW,
  WIDE,
  GENERAL, /* + one of the above */
  VARIANTS = 2 * GENERAL,
  FORWARD = 0, /* + a variant, as KEYS and QUERIES */
  KEYS = VARIANTS,
  QUERIES = 2 * VARIANTS,
  BIAS = 3 * VARIANTS, /* + NARROW or WIDE */
  DELTA = BIAS + GENERAL,
  SINK,
  ENTRY_COUNT
} entry_id;

#define NAMES(name) name "_narrow", name "_wide", name "_general_narrow", name "_general_wide"
static const char *const entry_names[ENTRY_COUNT] = {
    NAMES("split_forward"), NAMES("split_keys"), NAMES("split_queries"), "split_bias_narrow", "split_bias_wide",
    "split_delta",          "split_sink"};
#undef NAMES

static void *kernels[ENTRY_COUNT];

static int warps_of(int entry) {
  return entry >= KEYS && entry < BIAS && entry % GENERAL == WIDE ? SPLIT_WIDE_WARPS : SPLIT_WARPS;
}
static unsigned shared_of(int entry, int capability) {
  bool wide = entry % GENERAL == WIDE;
  if (entry >= DELTA) return 0;
  if (entry >= BIAS) return wide ? SPLIT_SHARED(128, SPLIT_WARPS, 2, 16) : SPLIT_SHARED(64, SPLIT_WARPS, 2, 32);
  if (entry >= KEYS) {
    unsigned rows = capability == 80 ? SPLIT_WIDE_ROWS_80 : SPLIT_WIDE_ROWS;
    return wide ? SPLIT_SHARED(128, SPLIT_WIDE_WARPS, 2, rows) : SPLIT_SHARED(64, SPLIT_WARPS, 2, 32);
  }
  return wide ? SPLIT_SHARED(128, SPLIT_WARPS, 1, 32) : SPLIT_SHARED(64, SPLIT_WARPS, 1, 64);
}

static int64_t rows_of(int entry) { return 16 * warps_of(entry); }
static bool is_wide(const attend_problem *p) { return p->head_dim > 64 || p->v_dim > 64; }
static int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/* A sink is in lse already when backward begins. */
static bool is_general(const attend_problem *p) {
  return attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_BIAS) || attend_has(p, OPERAND_ALIBI) || p->softcap > 0 ||
         p->dropout_threshold ||
         (p->direction == ATTEND_FORWARD && (attend_has(p, OPERAND_SINK) || p->scale < CALL_LEAST_SCALE));
}

/* TF32 has to be worth more than three times the multiply-adds: on GPUs made for graphics it is worth as many. */
static bool is_fast(int capability) {
  return capability == 80 || capability == 90 || capability == 100 || capability == 103;
}

static const char *refusal(const attend_problem *p) {
  static const operand_id ids[] = {OPERAND_Q,     OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                   OPERAND_D_OUT, OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V};
  if (p->paged) return "paged keys";
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES))
    return "probs and scores come from the math back-end";
  if (p->head_dim > MOST_COLUMNS || p->v_dim > MOST_COLUMNS) return "a head of more than 128 columns";
  bool aligned = p->head_dim % 4 == 0 && p->v_dim % 4 == 0 && p->head_dim && p->v_dim;
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
    if (attend_has(p, ids[i]))
      aligned = aligned && p->layout[ids[i]].col == 1 && p->layout[ids[i]].alignment % ROW_BYTES == 0;
  if (!aligned) return "rows that are not made of aligned 16-byte words";
  if (p->q_len < 1 || p->k_len < 1 || p->batch < 1 || p->heads < 1) return "no elements";
  int64_t longest = p->q_len > p->k_len ? p->q_len : p->k_len;
  if (longest > 1 << 29) return "more than 2^29 queries or keys";
  return tiles_of(longest, 16 * SPLIT_WARPS) > INT32_MAX / p->heads / p->batch ? "more than 2^31 blocks" : NULL;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  int id = p->device.id, capability = cuda_capability(id);
  const char *refused = refusal(p);
  if (!refused && capability >= OLDEST_CAPABILITY && !is_fast(capability))
    refused = "tensor cores as slow in TF32 as multiply-adds";
  if (!cuda_serves(id, OLDEST_CAPABILITY, refused, reason) ||
      !cuda_load(id, "split", TYPE_F32, entry_names, ENTRY_COUNT, kernels, reason))
    return false;
  for (int i = 0; i < DELTA; i++)
    if (!cuda_allow_shared(id, kernels[i], shared_of(i, capability), reason)) return false;
  bool backward = row->direction == ATTEND_BACKWARD;
  choice->tile_q = rows_of(backward ? KEYS + is_wide(p) : FORWARD);
  choice->tile_k = backward ? choice->tile_q : is_wide(p) ? 32 : 64;
  choice->alignment = ROW_BYTES;
  if (backward) /* lse and delta */
    choice->workspace_bytes =
        2 * sizeof(float) * (size_t)(p->batch * p->heads * tiles_of(p->q_len, GRADIENT_PAD) * GRADIENT_PAD);
  choice->state = kernels;
  return true;
}

/* A run is in a context of its device from `begin` to `end`, and stops at the first error. */
typedef struct launcher {
  const cuda_call *call;
  void *stream;
  int capability;
  attend_status status;
} launcher;

static void launch(launcher *l, int entry, int64_t blocks) {
  unsigned threads = entry == SINK ? GRADIENT_SINK_THREADS : 32 * (unsigned)warps_of(entry);
  if (!l->status)
    l->status =
        cuda_launch_shared(kernels[entry], blocks, threads, shared_of(entry, l->capability), l->call, l->stream);
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services, (void)choice;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  cuda_scope scope;
  launcher l = {&call, stream, cuda_capability(p->device.id), cuda_enter(p->device.id, &scope)};
  int variant = (is_wide(p) ? WIDE : NARROW) + (is_general(p) ? GENERAL : 0);
  int64_t pairs = p->batch * p->heads;
  if (p->direction == ATTEND_FORWARD)
    launch(&l, FORWARD + variant, pairs * tiles_of(p->q_len, rows_of(FORWARD + variant)));
  else {
    const int64_t *shape = p->bias_shape;
    launch(&l, DELTA, pairs * tiles_of(p->q_len, GRADIENT_PAD));
    if (attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V))
      launch(&l, KEYS + variant, p->batch * p->kv_heads * tiles_of(p->k_len, rows_of(KEYS + variant)));
    if (attend_has(p, OPERAND_D_Q))
      launch(&l, QUERIES + variant, pairs * tiles_of(p->q_len, rows_of(QUERIES + variant)));
    if (attend_has(p, OPERAND_D_BIAS)) {
      int entry = BIAS + is_wide(p);
      launch(&l, entry, shape[0] * shape[1] * tiles_of(shape[2], rows_of(entry)) * tiles_of(shape[3], 64));
    }
    if (attend_has(p, OPERAND_D_SINK)) launch(&l, SINK, p->heads);
  }
  cuda_leave(&scope);
  return l.status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

static const attend_kernel_row rows[] = {{"forward_f32_split_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA,
                                          ATTEND_FORWARD, TYPE_F32, usable, plan, run, NULL},
                                         {"backward_f32_split_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA,
                                          ATTEND_BACKWARD, TYPE_F32, usable, plan, run, NULL}};

attend_kernel_table cuda_split_rows(void) { return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)}; }
