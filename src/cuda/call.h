/* SPDX-License-Identifier: MIT */
/* The one argument of every kernel, passed by value: below the 4 KB that every driver accepts. */
#ifndef ATTEND_CUDA_CALL_H
#define ATTEND_CUDA_CALL_H

#include "../api/problem.h"

/* What the host works out for decoding, since long divisions take a kernel microseconds; and, close together, what it
 * takes to ask for the first keys, since every line of arguments is a wait of its own (decode.h). */
typedef struct decode_source {
  const char *data;
  int64_t batch, head, row; /* strides */
} decode_source;
typedef struct decode_shape {
  uint32_t group, row_tiles, limit;      /* heads that share a head of K, tiles of rows, most parts */
  uint32_t most_sums;                    /* parts, or spans, of the longest sequence: blocks of a tile */
  uint32_t kv_heads, k_len, part, parts; /* keys of a sequence; of these, keys of a part, and parts */
  bool span;                             /* a block takes a span, not a part */
  bool plain;                            /* all sequences have k_len keys, which lie in one piece */
  decode_source k, v;
} decode_shape;

/* One step of the math back-end around cuBLASLt's products: a chunk of the heads, in the workspace (product.c). A group
 * is a head of K and V of a sequence, its members the heads of Q that share it. Matrices are compact, their rows and
 * columns a multiple of PRODUCT_ALIGNED, with zeros where the tensors have nothing. */
typedef struct product_step {
  int64_t group, groups, member, members; /* the first of each, and how many */
  int64_t queries, keys, head_dim, v_dim; /* rounded up */
  char *q, *k, *v, *d_out;                /* [groups][members][queries][..] or [groups][keys][..]: the element type */
  void *scores, *d_probs;                 /* reals [groups][members][queries][keys]: Q K^T, dO V^T */
  char *probs, *d_scores;                 /* the element type, where that is the type of sums in their place */
  void *sums, *k_sums, *v_sums;           /* reals, what the products left: of out or d_q, d_k, d_v */
  int *infinite;                          /* [batch][kv_heads][4]: do q, k, v, d_out hold a NaN or an Inf? */
  uint32_t operands;                      /* bits of those that are packed, or finished */
  uint32_t finite;                        /* bits of those that are packed with 0 for NaN and Inf */
} product_step;

/* With a lower scale, or none above 0, kernels may not keep the largest score in units of it: in f32 it may be 0, and
 * -inf times it NaN. */
#define CALL_LEAST_SCALE 1e-30

/* The items of work of forward in tiles on sm_90, `blocks` for every pair of sequence and head, and how the grid's
 * blocks share them: in `turns`, at each of which one takes an item, or (twins) two. */
typedef struct tile_items {
  uint64_t turns;
  uint32_t blocks, chunk; /* chunk: pairs whose longest items come first, together */
  bool twins, mapped;
} tile_items;

/* What the copy engine has to know of a tensor [batch, heads, rows, columns] of 16-bit elements; the driver makes it.
 */
typedef struct tile_map {
#ifdef __cplusplus
  alignas(64)
#else
  _Alignas(64)
#endif
      uint64_t words[16];
} tile_map;

typedef struct cuda_call {
  attend_problem problem;
  attend_operands operands;
  void *workspace; /* efficient backward: delta, reals [batch][heads][q_len]; decode: the parts of split sequences */
  union {
    decode_shape decode;
    product_step product;
  };
  tile_items tiles;
  tile_map q, k, v; /* forward in tiles on sm_90 where tiles.mapped */
} cuda_call;

#endif
