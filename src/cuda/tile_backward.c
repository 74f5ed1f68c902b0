/* SPDX-License-Identifier: MIT */
/* Planning and launching backward in tiles on tensor cores: delta first, then the owners of keys, of
 * queries, of the bias, and the sinks. */
#include "tile_backward.h"
#include "tile_backward_sm90.h"

#include "call.h"
#include "driver.h"
#include "rows.h"

enum { OLDEST_CAPABILITY = 80, ROW_BYTES = 16, MOST_COLUMNS = 128 };

typedef enum entry_id {
  KEYS_NARROW,
  KEYS_WIDE,
  QUERIES_NARROW,
  QUERIES_WIDE,
  GENERAL, /* + one of the above */
  DELTA = 2 * GENERAL,
  BIAS_NARROW,
  BIAS_WIDE,
  SINK,
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
                                                     "tile_backward_delta",
                                                     "tile_backward_bias_narrow",
                                                     "tile_backward_bias_wide",
                                                     "tile_backward_sink"};

static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

/* On sm_90 each of those, of keys and queries, comes with no options, with the common ones, and with all; the owners of
 * a bias that is not broadcast over queries or keys with the latter two. And there the mask becomes bits, and tiles of
 * which NaN came out are done again by a kernel of its own. */
typedef enum sm90_entry_id {
  SM90_OPTIONS = 4, /* + one of KEYS_NARROW to QUERIES_WIDE, or of the next two */
  SM90_BIAS_NARROW = 4,
  SM90_BIAS_WIDE,
  SM90_ALL = SM90_OPTIONS + 6, /* likewise */
  SM90_AGAIN_NARROW = SM90_ALL + 6,
  SM90_AGAIN_WIDE,
  SM90_MASK,
  SM90_COUNT
} sm90_entry_id;
static const char *const sm90_names[SM90_COUNT] = {"tile_backward_sm90_keys_narrow",
                                                   "tile_backward_sm90_keys_wide",
                                                   "tile_backward_sm90_queries_narrow",
                                                   "tile_backward_sm90_queries_wide",
                                                   "tile_backward_sm90_keys_options_narrow",
                                                   "tile_backward_sm90_keys_options_wide",
                                                   "tile_backward_sm90_queries_options_narrow",
                                                   "tile_backward_sm90_queries_options_wide",
                                                   "tile_backward_sm90_bias_options_narrow",
                                                   "tile_backward_sm90_bias_options_wide",
                                                   "tile_backward_sm90_keys_general_narrow",
                                                   "tile_backward_sm90_keys_general_wide",
                                                   "tile_backward_sm90_queries_general_narrow",
                                                   "tile_backward_sm90_queries_general_wide",
                                                   "tile_backward_sm90_bias_general_narrow",
                                                   "tile_backward_sm90_bias_general_wide",
                                                   "tile_backward_sm90_again_narrow",
                                                   "tile_backward_sm90_again_wide",
                                                   "tile_backward_sm90_mask"};
static void *sm90_kernels[TYPE_F64 + 1][SM90_COUNT];

/* A sink is in lse already. */
static bool is_general(const attend_problem *p) {
  return attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_BIAS) || attend_has(p, OPERAND_ALIBI) || p->softcap > 0 ||
         p->dropout_threshold;
}

static bool is_wide(const attend_problem *p) { return p->head_dim > 64 || p->v_dim > 64; }

/* Where the entry points begin that have this problem's options. */
static int sm90_first(const attend_problem *p) {
  if (!is_general(p)) return 0;
  bool rare = p->softcap > 0 || (attend_has(p, OPERAND_BIAS) && !async_bias_staged(p));
  return rare ? SM90_ALL : SM90_OPTIONS;
}

/* Bytes of shared memory of an entry point, one of those. */
static unsigned sm90_shared(int first, int entry) {
  bool wide = entry % 2;
  int groups = wide ? ASYNC_GROUPS_WIDE : ASYNC_GROUPS_NARROW, panels = wide ? 2 : 1;
  if (entry - first >= SM90_BIAS_NARROW) return (unsigned)ASYNC_SHARED_D_BIAS(groups, panels);
  return (unsigned)(first ? ASYNC_SHARED_OPTIONS(groups, panels) : ASYNC_SHARED(groups, panels));
}
static int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/* Of a block that owns keys, or queries. */
static int64_t warps_of(const attend_problem *p, bool keys) {
  if (is_general(p)) return GENERAL_WARPS;
  if (is_wide(p)) return keys ? KEYS_WARPS_WIDE : QUERIES_WARPS_WIDE;
  return keys ? KEYS_WARPS_NARROW : QUERIES_WARPS_NARROW;
}
static int64_t rows_of(const attend_problem *p, bool keys) {
  int64_t tiles = keys ? KEYS_TILES_NARROW : QUERIES_TILES_NARROW;
  if (is_general(p))
    tiles = 1;
  else if (is_wide(p))
    tiles = keys ? KEYS_TILES_WIDE : QUERIES_TILES_WIDE;
  return 16 * tiles * warps_of(p, keys);
}

static const char *refusal(const attend_problem *p) {
  static const operand_id ids[] = {OPERAND_Q,     OPERAND_K,   OPERAND_V,   OPERAND_OUT,
                                   OPERAND_D_OUT, OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V};
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

/* What all plans need: the kernels of tile_backward, of which those on sm_90 use delta and sinks. */
static bool plan_with(const attend_problem *p, const char *refused, attend_choice *choice,
                      char reason[ATTEND_REASON_SIZE]) {
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, refused, reason) ||
      !cuda_load(p->device.id, "tile_backward", p->type, entry_names, ENTRY_COUNT, kernels[p->type], reason))
    return false;
  choice->alignment = ROW_BYTES;
  choice->workspace_bytes =
      2 * sizeof(float) * (size_t)(p->batch * p->heads * tiles_of(p->q_len, GRADIENT_PAD) * GRADIENT_PAD);
  return true;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!plan_with(p, refusal(p), choice, reason)) return false;
  choice->tile_q = rows_of(p, false);
  choice->tile_k = rows_of(p, true);
  choice->state = kernels[p->type];
  return true;
}

static bool sm90_plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                      char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  const char *refused = refusal(p);
  int id = p->device.id;
  if (!refused && cuda_capability(id) != 90) refused = "instructions of compute capability 9.0 only";
  void **entries = sm90_kernels[p->type];
  if (!plan_with(p, refused, choice, reason) ||
      !cuda_load(id, "tile_backward_sm90", p->type, sm90_names, SM90_COUNT, entries, reason))
    return false;
  int first = sm90_first(p), count = first ? 6 : 4;
  for (int i = first + is_wide(p); i < first + count; i += 2)
    if (!cuda_allow_shared(id, entries[i], sm90_shared(first, i), reason)) return false;
  choice->tile_q = choice->tile_k = async_rows_of(p);
  choice->state = entries;
  const async_tiles tiles = async_tiles_of(p);
  choice->workspace_bytes += (size_t)(async_mask_bytes(p) + tiles.keys + tiles.queries + tiles.bias);
  return true;
}

/* A run is in a context of its device from `begin` to `end`, and stops at the first error. */
typedef struct launcher {
  const cuda_call *call;
  void *stream;
  attend_status status;
} launcher;

static void launch(launcher *l, void *kernel, int64_t blocks, int64_t threads, unsigned shared) {
  if (!l->status) l->status = cuda_launch_shared(kernel, blocks, (unsigned)threads, shared, l->call, l->stream);
}

/* dK, dV; dQ; dBias. */
static void launch_owners(launcher *l) {
  const attend_problem *p = &l->call->problem;
  void *const *entries = kernels[p->type];
  int entry = (is_wide(p) ? KEYS_WIDE : KEYS_NARROW) + (is_general(p) ? GENERAL : 0);
  if (attend_has(p, OPERAND_D_K) || attend_has(p, OPERAND_D_V))
    launch(l, entries[entry], p->batch * p->kv_heads * tiles_of(p->k_len, rows_of(p, true)), 32 * warps_of(p, true), 0);
  if (attend_has(p, OPERAND_D_Q))
    launch(l, entries[entry + QUERIES_NARROW], p->batch * p->heads * tiles_of(p->q_len, rows_of(p, false)),
           32 * warps_of(p, false), 0);
}
static void launch_bias(launcher *l) {
  const attend_problem *p = &l->call->problem;
  const int64_t *shape = p->bias_shape;
  launch(l, kernels[p->type][is_wide(p) ? BIAS_WIDE : BIAS_NARROW],
         shape[0] * shape[1] * tiles_of(shape[2], 16 * BIAS_WARPS) * tiles_of(shape[3], BIAS_KEYS), 32 * BIAS_WARPS, 0);
}

/* The same on sm_90, but for a bias that is broadcast over queries or keys. */
static void sm90_launch_owners(launcher *l) {
  const attend_problem *p = &l->call->problem;
  void *const *entries = sm90_kernels[p->type];
  const async_tiles tiles = async_tiles_of(p);
  const int64_t count[3] = {tiles.keys, tiles.queries, tiles.bias}, threads = 2 * async_rows_of(p);
  int first = sm90_first(p), wide = is_wide(p);
  if (attend_has(p, OPERAND_MASK)) {
    const async_mask_shape mask = async_mask_shape_of(p);
    launch(l, entries[SM90_MASK], async_mask_tiles(&mask), 128, 0);
  }
  for (int owner = 0; owner < 3; owner++) {
    int entry = first + 2 * owner + wide; /* KEYS, QUERIES, SM90_BIAS */
    if (count[owner]) launch(l, entries[entry], count[owner], threads, sm90_shared(first, entry));
  }
  int64_t all = tiles.keys + tiles.queries + tiles.bias;
  if (all) launch(l, entries[SM90_AGAIN_NARROW + wide], tiles_of(all, ASYNC_AGAIN_TILES), threads, 0);
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services;
  const cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  void *const *entries = kernels[p->type];
  bool sm90 = choice->state != entries;
  cuda_scope scope;
  launcher l = {&call, stream, cuda_enter(p->device.id, &scope)};
  launch(&l, entries[DELTA], p->batch * p->heads * tiles_of(p->q_len, GRADIENT_PAD), GRADIENT_DELTA_THREADS, 0);
  if (sm90)
    sm90_launch_owners(&l);
  else
    launch_owners(&l);
  if (attend_has(p, OPERAND_D_BIAS) && !(sm90 && async_tiles_of(p).bias)) launch_bias(&l);
  if (attend_has(p, OPERAND_D_SINK)) launch(&l, entries[SINK], p->heads, GRADIENT_SINK_THREADS, 0);
  cuda_leave(&scope);
  return l.status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

#define ROW(dtype, TYPE, variant, plan)                                                                                \
  {                                                                                                                    \
    "backward_" #dtype "_" #variant "_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_BACKWARD, TYPE, usable,     \
        plan, run, NULL                                                                                                \
  }
static const attend_kernel_row rows[] = {ROW(f16, TYPE_F16, tile_sm90, sm90_plan),
                                         ROW(bf16, TYPE_BF16, tile_sm90, sm90_plan), ROW(f16, TYPE_F16, tile, plan),
                                         ROW(bf16, TYPE_BF16, tile, plan)};

attend_kernel_table cuda_tile_backward_rows(void) {
  return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)};
}
