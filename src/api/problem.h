/* SPDX-License-Identifier: MIT */
/* The seam between the API and the back-ends: what is known when a plan is made (attend_problem), what is known when it
 * is executed (attend_operands), and one (sequence, head) of it (attend_slice), which is all that most kernels see.
 *
 * Everything here has been checked: back-ends assert, they do not validate. Strides are in elements. */
#ifndef ATTEND_PROBLEM_H
#define ATTEND_PROBLEM_H

#include "attend.h"

#include <stdbool.h>

/* What every file relies on, said where a compiler that lacks it stops. */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "libattend cannot be compiled with -ffast-math, -ffinite-math-only or -Ofast: -inf and NaN have a meaning here. Add -fno-fast-math, as CMakeLists.txt does."
#endif
#if !defined(__SIZEOF_INT128__)
#error "libattend needs a 64-bit target (x86-64 or AArch64): sizes are 64-bit, and their products are checked in 128 bits"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "libattend needs a little-endian target: on others nothing of it was ever tested"
#endif

typedef enum attend_type { TYPE_NONE, TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_F64, TYPE_BOOL, TYPE_I32, TYPE_I64 } attend_type;

/* Every tensor of an execution, in the order of attend_args. */
typedef enum operand_id {
  OPERAND_Q, OPERAND_K, OPERAND_V, OPERAND_OUT,
  OPERAND_MASK, OPERAND_BIAS, OPERAND_ALIBI, OPERAND_SINK, OPERAND_KV_LEN, OPERAND_Q_OFFSETS, OPERAND_K_OFFSETS,
  OPERAND_BLOCK_TABLE,
  OPERAND_LSE, OPERAND_PROBS, OPERAND_SCORES,
  OPERAND_D_OUT, OPERAND_D_LSE, OPERAND_D_Q, OPERAND_D_K, OPERAND_D_V, OPERAND_D_BIAS, OPERAND_D_SINK,
  OPERAND_COUNT
} operand_id;

/* Strides of one operand, normalised: `batch` steps sequences (dense only), `head` heads, `row` the rows (i of q-like, j
 * of k-like operands; i of [.., Nq, Nk] operands), `col` the last dimension. A broadcast dimension has stride 0. For a
 * paged k or v, `batch` steps blocks. For 1-D and 2-D operands the unused ones are 0:
 *   lse, d_lse: batch, head, row      alibi: batch, head      sink: head      kv_len, offsets: batch
 *   block_table: batch, row           mask of rank 2: batch, col (head = row = 0) */
typedef struct attend_layout {
  attend_type type; /* TYPE_NONE: this operand is absent */
  int64_t batch, head, row, col;
  int64_t alignment; /* bytes: every row of it starts at a multiple (data pointer and all strides but col) */
} attend_layout;

typedef struct attend_problem {
  attend_direction direction;
  attend_device device;
  attend_type type;                  /* of q, k, v, out and the gradients */
  int64_t batch, heads, kv_heads;    /* heads % kv_heads == 0 */
  int64_t q_len, k_len;              /* per sequence; the upper bound in ragged batches; capacity when paged */
  int64_t q_total, k_total;          /* rows of the first dimension when ragged, else 0 */
  int64_t head_dim, v_dim;
  bool ragged_q, ragged_k, paged;
  int64_t block_size, block_count, table_columns; /* paged */
  bool causal, top_left;
  int64_t window_left, window_right; /* -1: unbounded (also when no window is given) */
  double scale, softcap;             /* softcap 0: none */
  uint32_t dropout_threshold;        /* 0: no dropout */
  double dropout_scale;              /* 65536 / (65536 - threshold); 1 without dropout */
  bool accumulate;
  attend_stage scores_stage;
  attend_layout layout[OPERAND_COUNT];
  int64_t bias_shape[4];             /* of bias and d_bias: 1 where broadcast */
  int threads;                       /* CPU, at least 1 */
} attend_problem;

/* Data of one execution: pointers with byte_offset applied, NULL where absent. */
typedef struct attend_operands {
  void *data[OPERAND_COUNT];
  uint64_t dropout_seed, dropout_offset;
} attend_operands;

/* Does the problem have this operand? */
ATTEND_INLINE bool attend_has(const attend_problem *p, operand_id id) { return p->layout[id].type != TYPE_NONE; }

/* Query heads on each key head; 0 heads of both are legal. */
ATTEND_INLINE int64_t attend_group(const attend_problem *p) { return p->kv_heads > 0 ? p->heads / p->kv_heads : 0; }

/* ---- One (sequence, head) -------------------------------------------------------------------------------------- */

/* A matrix in memory: element (i, j) is at data + (i * row + j * col) elements. data NULL: absent. */
typedef struct attend_matrix {
  char *data;
  int64_t row, col;
} attend_matrix;

/* Key and value rows of a paged sequence: row j is row j % block_size of block table[j / block_size]. */
typedef struct attend_pages {
  const char *table; /* NULL: not paged */
  int64_t table_stride;
  attend_type table_type;
  int64_t block_size, k_block, v_block; /* strides from block to block */
} attend_pages;

typedef struct attend_slice {
  int64_t b, h, kv_head;
  int64_t q_len, k_len; /* of this sequence; k_len is kv_len[b] */
  int64_t off;          /* i + off is the key position of query i */
  attend_matrix q, k, v, out, d_out, d_q, d_k, d_v;
  attend_matrix mask, bias, d_bias, probs, scores;
  char *lse, *d_lse;
  int64_t lse_row, d_lse_row;
  char *d_sink;
  attend_pages pages;
  double slope; /* ALiBi; 0: none */
  double sink;  /* -inf: none */
  uint32_t dropout_key[2]; /* words 0, 1 of the first Philox */
} attend_slice;

/* Do sequences have lengths of their own, known only when the plan is executed? */
ATTEND_INLINE bool attend_lengths_vary(const attend_problem *p) {
  return p->ragged_q || p->ragged_k || attend_has(p, OPERAND_KV_LEN);
}

/* Those of sequence b, on the CPU; k_len is kv_len[b]. Out-of-line in problem.c, as is the next. */
void attend_sequence_lengths(const attend_problem *p, const attend_operands *o, int64_t b, int64_t *q_len,
                             int64_t *k_len);

/* Slice (b, h) of an execution on the CPU. */
void attend_slice_make(const attend_problem *p, const attend_operands *o, int64_t b, int64_t h, attend_slice *slice);

/* The keys [first, last) that causal, window and kv_len leave to query i; empty is first == last. Mask and bias may
 * still hide some of them. */
ATTEND_INLINE void attend_visible_range(const attend_problem *p, const attend_slice *s, int64_t i, int64_t *first,
                                        int64_t *last) {
  int64_t center = i + s->off, lo = 0, hi = s->k_len;
  if (p->window_left >= 0 && center - p->window_left > lo) lo = center - p->window_left;
  if (p->window_right >= 0 && p->window_right < hi - center - 1) hi = center + p->window_right + 1;
  if (p->causal && center + 1 < hi) hi = center + 1;
  if (hi < 0) hi = 0;
  if (lo > hi) lo = hi;
  *first = lo;
  *last = hi;
}

/* Element offset, from slice->k.data, of key row j (and from slice->v.data of value row j). */
ATTEND_INLINE int64_t attend_page(const attend_pages *pages, int64_t j) {
  const char *entry = pages->table + (j / pages->block_size) * pages->table_stride *
                                         (pages->table_type == TYPE_I64 ? 8 : 4);
  return pages->table_type == TYPE_I64 ? *(const int64_t *)(const void *)entry : *(const int32_t *)(const void *)entry;
}
ATTEND_INLINE int64_t attend_key_row(const attend_slice *s, int64_t j) {
  if (!s->pages.table) return j * s->k.row;
  return attend_page(&s->pages, j) * s->pages.k_block + (j % s->pages.block_size) * s->k.row;
}
ATTEND_INLINE int64_t attend_value_row(const attend_slice *s, int64_t j) {
  if (!s->pages.table) return j * s->v.row;
  return attend_page(&s->pages, j) * s->pages.v_block + (j % s->pages.block_size) * s->v.row;
}

/* ---- Back-ends ------------------------------------------------------------------------------------------------- */

/* The library's services after hooks: never NULL members. */
typedef struct attend_services {
  void *user;
  void *(*allocate)(void *user, size_t bytes, size_t alignment);
  void (*release)(void *user, void *memory, size_t bytes);
  void (*parallel_for)(void *user, int count, void (*task)(void *context, int index), void *context);
  void (*log)(void *user, attend_log_level level, const char *message);
} attend_services;

/* Calls item(context, worker, index) once for every index in [0, items), in ascending order of their start, on at most
 * `workers` threads at a time; worker in [0, workers) says which scratch to use. Returns when all are done. */
void attend_for_each(const attend_services *services, int workers, int64_t items,
                     void (*item)(void *context, int worker, int64_t index), void *context);

typedef struct attend_kernel_row attend_kernel_row;

/* Sequences of at most so many queries and keys; 0: any number. */
typedef struct attend_limit {
  int64_t queries, keys;
} attend_limit;
ATTEND_INLINE bool attend_within(attend_limit limit, int64_t q_len, int64_t k_len) {
  return (limit.queries == 0 || q_len <= limit.queries) && (limit.keys == 0 || k_len <= limit.keys);
}

/* Kernels that share a batch whose sequences have lengths of their own (ragged, or with kv_len): each sequence goes to
 * the first that is for its lengths, which is the one that a call with this sequence alone would choose. */
enum { ATTEND_MOST_KERNELS = 3 };

/* What a kernel decides when a plan is made. */
typedef struct attend_choice {
  const attend_kernel_row *kernel;
  int64_t tile_q, tile_k, splits, threads;
  size_t workspace_bytes;
  size_t alignment;     /* of data pointers, assumed by the kernel, bytes; at least the element size */
  attend_limit limit;   /* sequences that this kernel is for, where they have lengths of their own */
  attend_limit before[ATTEND_MOST_KERNELS - 1]; /* those that kernels before it are for: set by attend_choose */
  int before_count;
  void *state;          /* the back-end's own (loaded CUDA functions …), shared and immutable; not freed with the plan */
  uint64_t own[48];     /* the back-end's own, of this plan */
} attend_choice;

/* Is a sequence of these lengths left to this kernel? */
ATTEND_INLINE bool attend_serves(const attend_choice *c, int64_t q_len, int64_t k_len) {
  for (int i = 0; i < c->before_count; i++)
    if (attend_within(c->before[i], q_len, k_len)) return false;
  return attend_within(c->limit, q_len, k_len);
}

/* One kernel that the library contains. Each back-end exports a table of them, fastest first; the API goes through the
 * tables in the order of attend_backends[] and takes the first whose `plan` says yes. */
struct attend_kernel_row {
  const char *name; /* "<op>_<dtype>_<variant>_<isa>" */
  uint32_t backend; /* ATTEND_BACKEND_... */
  int32_t device;   /* ATTEND_CPU, ATTEND_CUDA */
  attend_direction direction;
  attend_type type; /* TYPE_NONE: every element type */
  /* Can this machine run it at all? Otherwise writes why not. */
  bool (*usable)(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]);
  /* Can it serve this problem? Fills the choice, or writes why not. Called only if usable, and type and direction fit. */
  bool (*plan)(const attend_kernel_row *row, const attend_problem *problem, attend_choice *choice,
               char reason[ATTEND_REASON_SIZE]);
  /* Run it. The workspace is aligned and large enough. On the CPU nothing can fail any more. */
  attend_status (*run)(const attend_problem *problem, const attend_choice *choice, const attend_operands *operands,
                       const attend_services *services, void *workspace, void *stream);
  const void *constants; /* the row's own (tile sizes, inner functions), read by plan and run */
};

typedef struct attend_kernel_table {
  const attend_kernel_row *rows;
  int count;
} attend_kernel_table;

attend_kernel_table attend_reference_kernels(void);
attend_kernel_table attend_math_kernels(void);
attend_kernel_table attend_cpu_kernels(void);  /* flash and efficient */
attend_kernel_table attend_cuda_kernels(void); /* all CUDA kernels; empty where they are not compiled in */

/* ---- Errors ---------------------------------------------------------------------------------------------------- */

/* Set the thread's message and return the status: `return attend_fail(ATTEND_ERROR_SHAPE, "k: ...", ...)`. */
attend_status attend_fail(attend_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
