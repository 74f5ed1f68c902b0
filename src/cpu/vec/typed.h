/* SPDX-License-Identifier: MIT */
/* Lane words that are the same in every vocabulary: loads and stores by element type (a constant at each call, so that
 * the switch folds away), and tanh. Include after a vocabulary. */
#ifndef ATTEND_VEC_TYPED_H
#define ATTEND_VEC_TYPED_H

#include <math.h>

#ifdef LANES_F64
#define REAL_TYPE TYPE_F64
#else
#define REAL_TYPE TYPE_F32
#endif

/* n < LANES elements of `type` at p, or LANES of them; the remaining lanes are 0. */
WORD lanes lanes_load_type(const void *p, int n, attend_type type) {
  if (type == TYPE_F16) return n >= LANES ? lanes_load_f16(p) : lanes_load_f16_first(p, n);
  if (type == TYPE_BF16) return n >= LANES ? lanes_load_bf16(p) : lanes_load_bf16_first(p, n);
#ifdef LANES_F64
  if (type == TYPE_F32) {
    lanes x = lanes_zero();
    for (int i = 0; i < (n < LANES ? n : LANES); i++) x[i] = ((const float *)p)[i];
    return x;
  }
#endif
  return n >= LANES ? lanes_load(p) : lanes_load_first(p, n);
}
WORD void lanes_store_type(void *p, lanes x, int n, attend_type type) {
  if (type == TYPE_F16) {
    if (n >= LANES)
      lanes_store_f16(p, x);
    else
      lanes_store_f16_first(p, x, n);
  } else if (type == TYPE_BF16) {
    if (n >= LANES)
      lanes_store_bf16(p, x);
    else
      lanes_store_bf16_first(p, x, n);
  } else if (n >= LANES)
    lanes_store(p, x);
  else
    lanes_store_first(p, x, n);
}

WORD void lanes_stream_type(void *p, lanes x, attend_type type) {
  if (type == TYPE_F16)
    lanes_stream_f16(p, x);
  else if (type == TYPE_BF16)
    lanes_stream_bf16(p, x);
  else
    lanes_stream(p, x);
}

/* Two vectors of one row, col = 1, in the order that is cheapest: for bf16 the vocabulary's own. What is computed for
 * each column alone may use any order, as long as all its operands have the same. */
WORD void lanes_load_pair(const char *p, lanes x[2], attend_type type) {
  if (type == TYPE_BF16) {
    lanes_load_bf16_pair((const uint16_t *)(const void *)p, x);
    return;
  }
  x[0] = lanes_load_type(p, LANES, type);
  x[1] = lanes_load_type(p + LANES * attend_type_size(type), LANES, type);
}
WORD void lanes_store_pair(char *p, const lanes x[2], attend_type type) {
  if (type == TYPE_BF16) {
    lanes_store_bf16_pair((uint16_t *)(void *)p, x);
    return;
  }
  lanes_store_type(p, x[0], LANES, type);
  lanes_store_type(p + LANES * attend_type_size(type), x[1], LANES, type);
}
WORD void lanes_stream_pair(char *p, const lanes x[2], attend_type type) {
  if (type == TYPE_BF16) {
    lanes_stream_bf16_pair((uint16_t *)(void *)p, x);
    return;
  }
  lanes_stream_type(p, x[0], type);
  lanes_stream_type(p + LANES * attend_type_size(type), x[1], type);
}

/* 16 bytes past the cache, to a multiple of 16, where compiler and machine can; elsewhere through it. */
#if defined(__clang__) || defined(__SSE__)
enum { STREAMS_PARTS = 1 };
#else
enum { STREAMS_PARTS = 0 };
#endif
typedef float stream_part __attribute__((vector_size(16)));
WORD void lanes_stream_part(void *to, const void *from) {
  stream_part x;
  memcpy(&x, from, sizeof x);
#if defined(__clang__)
  __builtin_nontemporal_store(x, (stream_part *)to);
#elif defined(__SSE__)
  __builtin_ia32_movntps(to, x);
#else
  memcpy(to, &x, sizeof x);
#endif
}

/* log2 of 0, NaN, Inf or a normal x > 0; relative error of f32 4e-8 beside the rounding, exact at powers of two. */
WORD lanes lanes_log2(lanes x) {
#ifdef LANES_F64
  for (int i = 0; i < LANES; i++) x[i] = log2(x[i]);
  return x;
#else
  static const float c[] = {0x1.025a20p-3f,  -0x1.a8cc5cp-3f, 0x1.b9b11ep-3f,  -0x1.e94f12p-3f, 0x1.26d410p-2f,
                            -0x1.715c9cp-2f, 0x1.ec73d4p-2f,  -0x1.715470p-1f, 0x1.715476p+0f};
  lanes exponent, m = lanes_split(x, &exponent), one = lanes_set1(1);
  lane_mask large = lanes_less(lanes_set1(0x1.6a09e6p+0f), m); /* sqrt(2) */
  m = lanes_select(large, lanes_mul(m, lanes_set1(0.5f)), m);
  exponent = lanes_select(large, lanes_add(exponent, one), exponent);
  lanes t = lanes_sub(m, one), p = lanes_set1(c[0]);
#pragma GCC unroll 16
  for (int i = 1; i < (int)(sizeof c / sizeof c[0]); i++) p = lanes_fma(p, t, lanes_set1(c[i]));
  lanes log = lanes_select(lanes_less(x, lanes_set1(INFINITY)), lanes_fma(t, p, exponent), x);
  return lanes_select(lanes_equal(x, lanes_zero()), lanes_set1(-INFINITY), log);
#endif
}

/* tanh(y / (2 log2 e)), that is (2^y - 1) / (2^y + 1): through 2^y - 1, which keeps the relative accuracy of small y
 * that 1 - 2 / (2^y + 1) would cancel away. */
WORD lanes lanes_tanh_base2(lanes y) {
  lanes magnitude = lanes_min(lanes_set1(64), lanes_abs(y)); /* a NaN stays */
  lanes n = lanes_round(magnitude), r = lanes_sub(magnitude, n), scale = lanes_pow2(n), one = lanes_set1(1);
  lanes e = lanes_fma(lanes_mul(r, lanes_exp2m1_over(r)), scale, lanes_sub(scale, one));
  lanes t = lanes_div(e, lanes_add(e, lanes_set1(2)));
  return lanes_select(lanes_less(y, lanes_zero()), lanes_sub(lanes_zero(), t), t);
}

#endif
