/* SPDX-License-Identifier: MIT */
/* Kernels for f16 on the emulator. */
#include "fake/fake_kernels.h"

#include "cuda/efficient_f16.cu"
#include "cuda/short_f16.cu"
#include "cuda/decode_f16.cu"
#include "cuda/tile_f16.cu"
#include "cuda/tile_sm90_f16.cu"
#include "cuda/tile_backward_f16.cu"
#include "cuda/tile_backward_sm90_f16.cu"

fake_kernels fake_kernels_f16() {
  static const fake_kernel kernels[] = {FAKES_EFFICIENT(f16), FAKES_SHORT(f16), FAKES_DECODE(f16), FAKES_TILE(f16),
                                        FAKES_TILE_BACKWARD(f16)};
  return {kernels, sizeof kernels / sizeof *kernels};
}
