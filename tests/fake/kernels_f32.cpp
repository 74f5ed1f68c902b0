/* SPDX-License-Identifier: MIT */
/* Kernels for f32 on the emulator. */
#include "fake/fake_kernels.h"

#include "cuda/split_f32.cu"
#undef ELEMENT
#undef SUFFIX
#include "cuda/short_f32.cu"
#undef ELEMENT
#undef SUFFIX
#include "cuda/efficient_f32.cu"

fake_kernels fake_kernels_f32() {
  static const fake_kernel kernels[] = {FAKES_EFFICIENT(f32), FAKES_SHORT(f32), FAKES_SPLIT(f32)};
  return {kernels, sizeof kernels / sizeof *kernels};
}
