/* SPDX-License-Identifier: MIT */
/* The CUDA kernels and GPUs that this build of the library can use: none. */
#include "../api/problem.h"

attend_kernel_table attend_cuda_kernels(void) { return (attend_kernel_table){NULL, 0}; }

attend_status attend_gpu_at(int64_t index, attend_gpu *gpu) {
  (void)index;
  if (!gpu) return attend_fail(ATTEND_ERROR_NULL, "gpu: expected a pointer to attend_gpu, got NULL");
  return attend_fail(ATTEND_ERROR_INDEX, "index: no GPU, since this library was built without its CUDA kernels");
}
