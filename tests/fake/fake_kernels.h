/* SPDX-License-Identifier: MIT */
/* The kernels of one element type, compiled for the emulator: each kernels_<type>.cpp includes their sources. */
#ifndef FAKE_KERNELS_H
#define FAKE_KERNELS_H

#include "support/emulate.h"

#include "cuda/call.h"

struct fake_kernel {
  const char *name;
  void (*run)(const void *argument);
};

struct fake_kernels {
  const fake_kernel *kernels;
  int count;
};
fake_kernels fake_kernels_f32(), fake_kernels_f16(), fake_kernels_bf16(), fake_kernels_f64();

#define FAKE_NAMED(name)                                                                                               \
  {                                                                                                                    \
#name, [](const void *argument) { name(*static_cast<const cuda_call *>(argument)); }                               \
  }
#define FAKES_EFFICIENT(type)                                                                                          \
  FAKE_NAMED(forward_narrow_##type), FAKE_NAMED(forward_wide_##type), FAKE_NAMED(forward_materialise_##type),          \
      FAKE_NAMED(backward_delta_kernel_##type), FAKE_NAMED(backward_keys_narrow_##type),                               \
      FAKE_NAMED(backward_keys_wide_##type), FAKE_NAMED(backward_queries_narrow_##type),                               \
      FAKE_NAMED(backward_queries_wide_##type), FAKE_NAMED(backward_bias_kernel_##type),                               \
      FAKE_NAMED(backward_sink_kernel_##type), FAKE_NAMED(product_pack_kernel_##type),                                 \
      FAKE_NAMED(product_probs_plain_##type), FAKE_NAMED(product_probs_general_##type),                                \
      FAKE_NAMED(product_gradients_plain_##type), FAKE_NAMED(product_gradients_general_##type),                        \
      FAKE_NAMED(product_finish_kernel_##type), FAKE_NAMED(product_clear_kernel_##type)

#define FAKES_SHORT(type)                                                                                              \
  FAKE_NAMED(short_forward_8_##type), FAKE_NAMED(short_forward_16_##type), FAKE_NAMED(short_forward_32_##type),        \
      FAKE_NAMED(short_backward_8_##type), FAKE_NAMED(short_backward_16_##type), FAKE_NAMED(short_backward_32_##type), \
      FAKE_NAMED(short_forward_general_8_##type), FAKE_NAMED(short_forward_general_16_##type),                         \
      FAKE_NAMED(short_forward_general_32_##type), FAKE_NAMED(short_backward_general_8_##type),                        \
      FAKE_NAMED(short_backward_general_16_##type), FAKE_NAMED(short_backward_general_32_##type),                      \
      FAKE_NAMED(short_forward_24_##type), FAKE_NAMED(short_backward_24_##type)

#define FAKES_SPLIT(type)                                                                                              \
  FAKE_NAMED(split_forward_narrow_##type), FAKE_NAMED(split_forward_wide_##type),                                      \
      FAKE_NAMED(split_forward_general_narrow_##type), FAKE_NAMED(split_forward_general_wide_##type),                  \
      FAKE_NAMED(split_keys_narrow_##type), FAKE_NAMED(split_keys_wide_##type),                                        \
      FAKE_NAMED(split_keys_general_narrow_##type), FAKE_NAMED(split_keys_general_wide_##type),                        \
      FAKE_NAMED(split_queries_narrow_##type), FAKE_NAMED(split_queries_wide_##type),                                  \
      FAKE_NAMED(split_queries_general_narrow_##type), FAKE_NAMED(split_queries_general_wide_##type),                  \
      FAKE_NAMED(split_bias_narrow_##type), FAKE_NAMED(split_bias_wide_##type), FAKE_NAMED(split_delta_##type),        \
      FAKE_NAMED(split_sink_##type)

#define FAKES_DECODE(type)                                                                                             \
  FAKE_NAMED(decode_8_narrow_##type), FAKE_NAMED(decode_8_wide_##type), FAKE_NAMED(decode_16_narrow_##type),           \
      FAKE_NAMED(decode_16_wide_##type), FAKE_NAMED(decode_general_8_narrow_##type),                                   \
      FAKE_NAMED(decode_general_8_wide_##type), FAKE_NAMED(decode_general_16_narrow_##type),                           \
      FAKE_NAMED(decode_general_16_wide_##type), FAKE_NAMED(decode_spans_8_narrow_##type),                             \
      FAKE_NAMED(decode_spans_8_wide_##type), FAKE_NAMED(decode_merge_##type), FAKE_NAMED(decode_merge_spans_##type)

#define FAKES_TILE(type)                                                                                               \
  FAKE_NAMED(tile_forward_narrow_##type), FAKE_NAMED(tile_forward_wide_##type),                                        \
      FAKE_NAMED(tile_forward_general_narrow_##type), FAKE_NAMED(tile_forward_general_wide_##type),                    \
      FAKE_NAMED(tile_sm90_narrow_##type), FAKE_NAMED(tile_sm90_wide_##type)

#define FAKES_SM90_OPTIONS(options, type)                                                                              \
  FAKE_NAMED(tile_backward_sm90_keys_##options##_narrow_##type),                                                       \
      FAKE_NAMED(tile_backward_sm90_keys_##options##_wide_##type),                                                     \
      FAKE_NAMED(tile_backward_sm90_queries_##options##_narrow_##type),                                                \
      FAKE_NAMED(tile_backward_sm90_queries_##options##_wide_##type),                                                  \
      FAKE_NAMED(tile_backward_sm90_bias_##options##_narrow_##type),                                                   \
      FAKE_NAMED(tile_backward_sm90_bias_##options##_wide_##type)
#define FAKES_TILE_BACKWARD(type)                                                                                      \
  FAKE_NAMED(tile_backward_delta_##type), FAKE_NAMED(tile_backward_keys_narrow_##type),                                \
      FAKE_NAMED(tile_backward_keys_general_narrow_##type), FAKE_NAMED(tile_backward_queries_narrow_##type),           \
      FAKE_NAMED(tile_backward_queries_general_narrow_##type), FAKE_NAMED(tile_backward_keys_wide_##type),             \
      FAKE_NAMED(tile_backward_keys_general_wide_##type), FAKE_NAMED(tile_backward_queries_wide_##type),               \
      FAKE_NAMED(tile_backward_queries_general_wide_##type), FAKE_NAMED(tile_backward_bias_narrow_##type),             \
      FAKE_NAMED(tile_backward_bias_wide_##type), FAKE_NAMED(tile_backward_sink_##type),                               \
      FAKE_NAMED(tile_backward_sm90_keys_narrow_##type), FAKE_NAMED(tile_backward_sm90_keys_wide_##type),              \
      FAKE_NAMED(tile_backward_sm90_queries_narrow_##type), FAKE_NAMED(tile_backward_sm90_queries_wide_##type),        \
      FAKES_SM90_OPTIONS(options, type), FAKES_SM90_OPTIONS(general, type),                                            \
      FAKE_NAMED(tile_backward_sm90_mask_##type), FAKE_NAMED(tile_backward_sm90_again_narrow_##type),                  \
      FAKE_NAMED(tile_backward_sm90_again_wide_##type)

#endif
