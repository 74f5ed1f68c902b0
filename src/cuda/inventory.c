/* SPDX-License-Identifier: MIT */
/* All CUDA kernels as one table, fastest first. */
#include "rows.h"

#include <pthread.h>

enum { MOST_ROWS = 64 };

static attend_kernel_row rows[MOST_ROWS];
static int count;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void append(attend_kernel_table table) {
  for (int i = 0; i < table.count && count < MOST_ROWS; i++) rows[count++] = table.rows[i];
}

static void join(void) {
  append(cuda_short_rows());
  append(cuda_decode_rows());
  append(cuda_tile_rows());
  append(cuda_tile_backward_rows());
  append(cuda_split_rows());
  append(cuda_efficient_rows());
  append(cuda_product_rows());
  append(cuda_math_rows());
}

attend_kernel_table attend_cuda_kernels(void) {
  pthread_once(&once, join);
  return (attend_kernel_table){rows, count};
}
