/* SPDX-License-Identifier: MIT */
/* Planning and launching forward in tiles on tensor cores. */
#include "tile.h"

#include "call.h"
#include "driver.h"
#include "rows.h"
#include "tile_sm90.h"

enum {
  OLDEST_CAPABILITY = 80,
  ROW_BYTES = 16,
  MOST_COLUMNS = 128,
  CHUNK_BYTES = 16 << 20, /* of keys and values */
  SHORT_QUERIES = 2 * 64 * SM90_NARROW_GROUPS,
  MOST_SOFTCAP = 128 /* tanh is a difference of two numbers near 1, which leaves scores an error of softcap 2^-21 */
};

typedef enum entry_id { NARROW, WIDE, GENERAL, ENTRY_COUNT = 2 * GENERAL } entry_id;

static const char *const entry_names[ENTRY_COUNT] = {"tile_forward_narrow", "tile_forward_wide",
                                                     "tile_forward_general_narrow", "tile_forward_general_wide"};

static void *kernels[TYPE_F64 + 1][ENTRY_COUNT]; /* of each element type */

static const char *const sm90_names[GENERAL] = {"tile_sm90_narrow", "tile_sm90_wide"};
static const struct {
  unsigned queries, threads, shared;
} sm90_entries[GENERAL] = {{64 * SM90_NARROW_GROUPS, 128 * (SM90_NARROW_GROUPS + 1), SM90_NARROW_SHARED},
                           {64 * SM90_WIDE_GROUPS, 128 * (SM90_WIDE_GROUPS + 1), SM90_WIDE_SHARED}};
static void *sm90_kernels[TYPE_F64 + 1][GENERAL];

static bool is_general(const attend_problem *p) {
  return p->scale < CALL_LEAST_SCALE || attend_has(p, OPERAND_MASK) || attend_has(p, OPERAND_BIAS) ||
         attend_has(p, OPERAND_ALIBI) || attend_has(p, OPERAND_SINK) || p->softcap > 0 || p->dropout_threshold;
}

static bool is_wide(const attend_problem *p) { return p->head_dim > 64 || p->v_dim > 64; }
static int64_t blocks_of(const attend_problem *p, int64_t queries) { return (p->q_len + queries - 1) / queries; }

/* So few queries that a block of the kernel for 9.0 is not paid back: at 8x32x256x64 it takes 26 us instead of 25. Not
 * where sequences have lengths of their own: there q_len is not theirs. */
static bool is_short_for_sm90(const attend_problem *p) {
  return !is_wide(p) && !attend_lengths_vary(p) && p->q_len < SHORT_QUERIES;
}

static const char *refusal(const attend_problem *p) {
  static const operand_id ids[] = {OPERAND_Q, OPERAND_K, OPERAND_V, OPERAND_OUT};
  if (p->paged) return "paged keys";
  if (attend_has(p, OPERAND_PROBS) || attend_has(p, OPERAND_SCORES))
    return "probs and scores come from the math back-end";
  if (p->softcap > MOST_SOFTCAP) return "a softcap above 128";
  if (p->head_dim > MOST_COLUMNS || p->v_dim > MOST_COLUMNS) return "a head of more than 128 columns";
  bool aligned = p->head_dim % 8 == 0 && p->v_dim % 8 == 0 && p->head_dim && p->v_dim;
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
    aligned = aligned && p->layout[ids[i]].col == 1 && p->layout[ids[i]].alignment % ROW_BYTES == 0;
  if (!aligned) return "rows that are not made of aligned 16-byte words";
  if (p->q_len < 1 || p->batch < 1 || p->heads < 1) return "no elements";
  if (p->k_len > INT32_MAX - SM90_KEYS) return "more than 2^31 keys";
  return blocks_of(p, TILE_QUERIES) > INT32_MAX / p->heads / p->batch ? "more than 2^31 blocks" : NULL;
}

static bool plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                 char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  if (!cuda_serves(p->device.id, OLDEST_CAPABILITY, refusal(p), reason) ||
      !cuda_load(p->device.id, "tile", p->type, entry_names, ENTRY_COUNT, kernels[p->type], reason))
    return false;
  for (int i = WIDE; i < ENTRY_COUNT; i += GENERAL)
    if (!cuda_allow_shared(p->device.id, kernels[p->type][i], TILE_SHARED_WIDE, reason)) return false;
  choice->tile_q = TILE_QUERIES;
  choice->tile_k = TILE_KEYS;
  choice->alignment = ROW_BYTES;
  choice->state = kernels[p->type];
  return true;
}

static attend_status run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                         const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  void *const *entries = choice->state;
  int entry = (is_wide(p) ? WIDE : NARROW) + (is_general(p) ? GENERAL : 0);
  cuda_scope scope;
  attend_status status = cuda_enter(p->device.id, &scope);
  if (!status)
    status = cuda_launch_shared(entries[entry], p->batch * p->heads * blocks_of(p, TILE_QUERIES), 32 * TILE_WARPS,
                                is_wide(p) ? TILE_SHARED_WIDE : TILE_SHARED_NARROW, &call, stream);
  cuda_leave(&scope);
  return status;
}

static bool sm90_plan(const attend_kernel_row *row, const attend_problem *p, attend_choice *choice,
                      char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  const char *refused = refusal(p);
  if (!refused && is_general(p)) refused = "options other than causal and a window";
  if (!refused && is_short_for_sm90(p)) refused = "few queries, which the tiles of mma.sync serve faster";
  int id = p->device.id;
  if (!refused && cuda_capability(id) != 90) refused = "instructions of compute capability 9.0 only";
  void **entries = sm90_kernels[p->type];
  if (!cuda_serves(id, OLDEST_CAPABILITY, refused, reason) ||
      !cuda_load(id, "tile_sm90", p->type, sm90_names, GENERAL, entries, reason))
    return false;
  for (int i = 0; i < GENERAL; i++)
    if (!cuda_allow_shared(id, entries[i], sm90_entries[i].shared, reason)) return false;
  choice->tile_q = sm90_entries[is_wide(p)].queries;
  choice->tile_k = SM90_KEYS;
  choice->alignment = ROW_BYTES;
  choice->state = entries;
  return true;
}

/* How blocks share the items of work. Where all take as long, a block for each multiprocessor goes through them, and
 * begins with the next while the last ends; so too where two by two they take as long, unless the last turn would be
 * nearly empty. Else there is a block for each, which the GPU starts where there is room: the longest first, of as many
 * pairs as have their keys in half of L2. Returns the blocks of the grid. */
static int64_t sm90_items(const attend_problem *p, tile_items *tiles) {
  int64_t pairs = p->batch * p->heads, multiprocessors = cuda_multiprocessors(p->device.id);
  int64_t blocks = blocks_of(p, sm90_entries[is_wide(p)].queries), items = pairs * blocks;
  bool alike = !p->causal && p->window_left < 0 && p->window_right < 0;
  *tiles = (tile_items){.turns = (uint64_t)items, .blocks = (uint32_t)blocks, .chunk = 1};
  if (attend_lengths_vary(p)) return items;
  if (!alike) {
    int64_t twins = (pairs + 1) / 2 * blocks, rounds = (twins + multiprocessors - 1) / multiprocessors;
    if (10 * rounds * multiprocessors > 11 * twins) {
      int64_t chunk = CHUNK_BYTES / (2 * p->k_len * (p->head_dim + p->v_dim) + 1) + 1;
      tiles->chunk = (uint32_t)(chunk < pairs ? chunk : pairs);
      return items;
    }
    tiles->twins = true, tiles->turns = (uint64_t)twins;
  }
  int64_t turns = (int64_t)tiles->turns, most = SM90_MOST_ITEMS / (tiles->twins ? 2 : 1);
  int64_t least = (turns + most - 1) / most, grid = multiprocessors > least ? multiprocessors : least;
  return grid < turns ? grid : turns;
}

static bool sm90_map(tile_map *map, const attend_problem *p, const attend_operands *o, operand_id id, int64_t heads,
                     int64_t rows, int64_t columns, uint32_t box) {
  const attend_layout *l = &p->layout[id];
  const uint64_t sizes[4] = {(uint64_t)columns, (uint64_t)rows, (uint64_t)heads, (uint64_t)p->batch};
  uint64_t strides[3] = {2 * (uint64_t)l->row, 2 * (uint64_t)l->head, 2 * (uint64_t)l->batch};
  for (int i = 0; i < 3; i++)
    if (sizes[i + 1] == 1) strides[i] = ROW_BYTES; /* never used, but looked at */
  return cuda_map_tensor(map, o->data[id], sizes, strides, box);
}

/* Not where sequences have lengths of their own, which are only known on the GPU. */
static bool sm90_maps(const attend_problem *p, const attend_operands *o, cuda_call *call) {
  return !attend_lengths_vary(p) && p->q_len <= INT32_MAX / 2 &&
         sm90_map(&call->q, p, o, OPERAND_Q, p->heads, p->q_len, p->head_dim, sm90_entries[is_wide(p)].queries) &&
         sm90_map(&call->k, p, o, OPERAND_K, p->kv_heads, p->k_len, p->head_dim, SM90_KEYS) &&
         sm90_map(&call->v, p, o, OPERAND_V, p->kv_heads, p->k_len, p->v_dim, SM90_KEYS);
}

static attend_status sm90_run(const attend_problem *p, const attend_choice *choice, const attend_operands *o,
                              const attend_services *services, void *workspace, void *stream) {
  (void)services;
  cuda_call call = {.problem = *p, .operands = *o, .workspace = workspace};
  void *const *entries = choice->state;
  int entry = is_wide(p) ? WIDE : NARROW;
  int64_t grid = sm90_items(p, &call.tiles);
  cuda_scope scope;
  attend_status status = cuda_enter(p->device.id, &scope);
  if (!status) {
    call.tiles.mapped = sm90_maps(p, o, &call); /* in the context: the driver looks at the memory */
    status = cuda_launch_shared(entries[entry], grid, sm90_entries[entry].threads, sm90_entries[entry].shared, &call,
                                stream);
  }
  cuda_leave(&scope);
  return status;
}

static bool usable(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return cuda_usable(reason);
}

static const attend_kernel_row rows[] = {
    {"forward_f16_tile_sm90_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_FORWARD, TYPE_F16, usable, sm90_plan,
     sm90_run, NULL},
    {"forward_bf16_tile_sm90_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_FORWARD, TYPE_BF16, usable, sm90_plan,
     sm90_run, NULL},
    {"forward_f16_tile_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_FORWARD, TYPE_F16, usable, plan, run, NULL},
    {"forward_bf16_tile_cuda", ATTEND_BACKEND_EFFICIENT, ATTEND_CUDA, ATTEND_FORWARD, TYPE_BF16, usable, plan, run,
     NULL}};

attend_kernel_table cuda_tile_rows(void) { return (attend_kernel_table){rows, (int)(sizeof rows / sizeof *rows)}; }
