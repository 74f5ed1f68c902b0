/* SPDX-License-Identifier: MIT */
/* All CUDA kernels as one table, fastest first. */
#include "rows.h"

attend_kernel_table attend_cuda_kernels(void) { return cuda_efficient_rows(); }
