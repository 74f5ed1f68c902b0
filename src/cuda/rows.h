/* SPDX-License-Identifier: MIT */
/* The tables of CUDA kernels, one for each family; inventory.c joins them, fastest first. */
#ifndef ATTEND_CUDA_ROWS_H
#define ATTEND_CUDA_ROWS_H

#include "../api/problem.h"

attend_kernel_table cuda_short_rows(void);
attend_kernel_table cuda_decode_rows(void);
attend_kernel_table cuda_tile_rows(void);
attend_kernel_table cuda_tile_backward_rows(void);
attend_kernel_table cuda_split_rows(void);
attend_kernel_table cuda_efficient_rows(void);
attend_kernel_table cuda_product_rows(void);
attend_kernel_table cuda_math_rows(void);

#endif
