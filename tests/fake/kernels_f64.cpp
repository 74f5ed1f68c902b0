/* SPDX-License-Identifier: MIT */
/* Kernels for f64 on the emulator. */
#include "fake/fake_kernels.h"

#include "cuda/efficient_f64.cu"

fake_kernels fake_kernels_f64() {
  static const fake_kernel kernels[] = {FAKES_EFFICIENT(f64)};
  return {kernels, sizeof kernels / sizeof *kernels};
}
