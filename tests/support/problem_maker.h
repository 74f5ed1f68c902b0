/* SPDX-License-Identifier: MIT */
/* Random attention problems: a seed gives sizes, options, layouts and data; the same seed gives the same problem. */
#ifndef TEST_PROBLEM_MAKER_H
#define TEST_PROBLEM_MAKER_H

#include "api/problem.h"
#include "support/guarded.h"

typedef struct test_tensor {
  attend_tensor view; /* data NULL: absent */
  int64_t shape[4], strides[4];
  guarded memory;
} test_tensor;

typedef enum batch_form { FORM_DENSE, FORM_RAGGED, FORM_PAGED } batch_form;

/* What a problem is made from. Zeros are a plain dense problem of type f32; sizes must be set. */
typedef struct problem_spec {
  uint64_t seed; /* of data and layouts */
  attend_dtype dtype;
  batch_form form;
  bool ragged_q; /* paged only */
  int64_t batch, heads, kv_heads, q_len, k_len, head_dim, v_dim, block_size;
  bool one_key_head;         /* k, v of three dimensions */
  int mask_rank, mask_shape; /* rank 0, 2 or 4; bits of mask_shape: dimension d is broadcast */
  int bias, bias_shape;      /* 0 none, 1 of type T, 2 f32 */
  int alibi;                 /* 0, or rank */
  int sink;                  /* 0 none, 1 of type T, 2 of type L */
  bool kv_len, index64, lse, probs, scores, d_lse;
  bool d_q, d_k, d_v, d_bias, d_sink; /* wanted */
  bool plain_layout;                  /* compact, no gaps */
  double magnitude;                   /* of q and k; 0 means 1 */
  double dropout;
  uint64_t dropout_seed, dropout_offset;
  attend_options options;
} problem_spec;

/* `t` points into itself: a problem is made where it stays. */
typedef struct test_problem {
  problem_spec spec;
  attend_options options;
  test_tensor t[OPERAND_COUNT]; /* inputs with data; outputs as templates: what they hold before a run */
} test_problem;

problem_spec random_spec(uint64_t seed, attend_dtype dtype, attend_direction direction);
void problem_make(test_problem *p, const problem_spec *spec);
void problem_free(test_problem *p);
/* One line for a failure's message. */
void problem_describe(const problem_spec *spec, char *text, size_t size);

bool is_output_of(attend_direction direction, operand_id id);
attend_type tensor_type(const test_tensor *t);
int64_t tensor_count(const test_tensor *t);
/* Element number `index`, counted with the last dimension fastest. */
double tensor_get(const test_tensor *t, int64_t index);
void tensor_set(test_tensor *t, int64_t index, double x);
/* The same view over memory of its own, with the same bytes. */
void tensor_clone(test_tensor *to, const test_tensor *from, bool at_end);
/* Are all bytes that belong to no element still as made? */
bool tensor_gaps_intact(const test_tensor *t);
/* The same bits in every element? */
bool tensor_same_bits(const test_tensor *a, const test_tensor *b);

uint64_t random_next(uint64_t *state);
double random_uniform(uint64_t *state); /* [0, 1) */
double random_normal(uint64_t *state);

#endif
