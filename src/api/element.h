/* SPDX-License-Identifier: MIT */
/* Elements of any type as doubles, one at a time: for code that is obvious rather than fast, and for edges. f16 and
 * bf16 are converted by bit arithmetic, so that no instruction set is assumed; stores round to nearest, ties to even.
 */
#ifndef ATTEND_ELEMENT_H
#define ATTEND_ELEMENT_H

#include "problem.h"

#include <string.h>

static inline size_t attend_type_size(attend_type type) {
  switch (type) {
  case TYPE_BOOL:
    return 1;
  case TYPE_F16:
  case TYPE_BF16:
    return 2;
  case TYPE_F32:
  case TYPE_I32:
    return 4;
  case TYPE_F64:
  case TYPE_I64:
    return 8;
  case TYPE_NONE:
    break;
  }
  return 0;
}

static inline float attend_f32_from_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
static inline uint32_t attend_f32_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return bits;
}

static inline float attend_f32_from_bf16(uint16_t x) { return attend_f32_from_bits((uint32_t)x << 16); }

static inline uint16_t attend_bf16_from_f32(float f) {
  uint32_t bits = attend_f32_bits(f);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u); /* NaN stays NaN, quiet */
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float attend_f32_from_f16(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = (x >> 10) & 31u, fraction = x & 0x3FFu;
  if (exponent == 31) return attend_f32_from_bits(sign | 0x7F800000u | (fraction << 13));
  if (exponent) return attend_f32_from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
  float magnitude = (float)fraction * 0x1p-24f; /* subnormal: exact */
  return sign ? -magnitude : magnitude;
}

static inline uint16_t attend_f16_from_f32(float f) {
  uint32_t bits = attend_f32_bits(f), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and above round to infinity */
  if (magnitude < 0x38800000u) {                                   /* below 2^-14: subnormal, unit 2^-24 */
    float m = attend_f32_from_bits(magnitude) + 0.5f;              /* ulp of [0.5, 1) is 2^-24: the addition rounds */
    return (uint16_t)(sign | (attend_f32_bits(m) - 0x3F000000u));
  }
  magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
  return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

/* f64 to a 16-bit type in one rounding: round to odd in f32 first, which keeps enough for the second to be right. */
static inline float attend_f32_round_to_odd(double x) {
  float f = (float)x;
  if ((double)f == x || f != f || f - f != 0.0f) {
    if (f - f != 0.0f && f == f && x - x == 0.0) return x > 0 ? 0x1.fffffep127f : -0x1.fffffep127f;
    return f;
  }
  uint32_t bits = attend_f32_bits(f);
  if (bits & 1u) return f;
  /* f is even and inexact: step to the odd neighbour on the other side of x. */
  double magnitude_f = f < 0 ? -(double)f : (double)f, magnitude_x = x < 0 ? -x : x;
  return attend_f32_from_bits(magnitude_f < magnitude_x ? bits + 1 : bits - 1);
}

/* Element `index` (in elements) of an array of `type`. */
static inline double attend_load(const void *data, int64_t index, attend_type type) {
  switch (type) {
  case TYPE_F32:
    return ((const float *)data)[index];
  case TYPE_F64:
    return ((const double *)data)[index];
  case TYPE_F16:
    return attend_f32_from_f16(((const uint16_t *)data)[index]);
  case TYPE_BF16:
    return attend_f32_from_bf16(((const uint16_t *)data)[index]);
  case TYPE_BOOL:
    return ((const uint8_t *)data)[index] != 0;
  case TYPE_I32:
    return ((const int32_t *)data)[index];
  case TYPE_I64:
    return (double)((const int64_t *)data)[index];
  case TYPE_NONE:
    break;
  }
  return 0;
}

static inline void attend_store(void *data, int64_t index, attend_type type, double x) {
  switch (type) {
  case TYPE_F32:
    ((float *)data)[index] = (float)x;
    break;
  case TYPE_F64:
    ((double *)data)[index] = x;
    break;
  case TYPE_F16:
    ((uint16_t *)data)[index] = attend_f16_from_f32(attend_f32_round_to_odd(x));
    break;
  case TYPE_BF16:
    ((uint16_t *)data)[index] = attend_bf16_from_f32(attend_f32_round_to_odd(x));
    break;
  default:
    break;
  }
}

/* Element of an index tensor (i32 or i64). */
static inline int64_t attend_load_index(const void *data, int64_t index, attend_type type) {
  return type == TYPE_I64 ? ((const int64_t *)data)[index] : ((const int32_t *)data)[index];
}

#endif
