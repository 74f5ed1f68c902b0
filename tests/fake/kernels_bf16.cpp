/* SPDX-License-Identifier: MIT */
/* Kernels for bf16 on the emulator. */
#include "fake/fake_kernels.h"

#include "cuda/efficient_bf16.cu"
#include "cuda/short_bf16.cu"
#include "cuda/decode_bf16.cu"
#include "cuda/tile_bf16.cu"
#include "cuda/tile_sm90_bf16.cu"
#include "cuda/tile_backward_bf16.cu"
#include "cuda/tile_backward_sm90_bf16.cu"

fake_kernels fake_kernels_bf16() {
  static const fake_kernel kernels[] = {FAKES_EFFICIENT(bf16), FAKES_SHORT(bf16), FAKES_DECODE(bf16), FAKES_TILE(bf16),
                                        FAKES_TILE_BACKWARD(bf16)};
  return {kernels, sizeof kernels / sizeof *kernels};
}
