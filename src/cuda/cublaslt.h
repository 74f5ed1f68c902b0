/* SPDX-License-Identifier: MIT */
/* Matrix products by cuBLASLt, which is found at run time: neither its header nor the library is needed to build. */
#ifndef ATTEND_CUDA_CUBLASLT_H
#define ATTEND_CUDA_CUBLASLT_H

#include "../api/problem.h"

/* C [m, n] (+)= op(A) op(B) with k terms to a sum, column by column as BLAS does: A is [m, k], or [k, m] where it is
 * turned, B [k, n] or [n, k]. All compact; the same of every matrix of a batch. */
typedef struct cublaslt_product {
  attend_type type; /* of A and B; C is f64 for f64, else f32 */
  bool turn_a, turn_b;
  int64_t m, n, k;
  int64_t batch, a_step, b_step, c_step; /* elements from matrix to matrix */
} cublaslt_product;

typedef struct cublaslt_algorithm {
  uint64_t words[8];
} cublaslt_algorithm;

/* The algorithm for products like `usual`, without split sums, if it can compute `actual`, and the workspace that it
 * then needs. Loads the library when it is first needed. Otherwise the reason. */
bool cublaslt_choose(int ordinal, const cublaslt_product *usual, const cublaslt_product *actual,
                     cublaslt_algorithm *algorithm, size_t *workspace_bytes, char reason[ATTEND_REASON_SIZE]);

/* Enqueue it, in the current context, which is of device `ordinal`: neither allocates nor waits. add: C += . */
attend_status cublaslt_run(int ordinal, const cublaslt_product *product, const cublaslt_algorithm *algorithm,
                           const void *a, const void *b, void *c, bool add, void *workspace, size_t bytes,
                           void *stream);

#endif
