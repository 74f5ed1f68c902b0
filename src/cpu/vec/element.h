/* SPDX-License-Identifier: MIT */
/* Lane words that are the same in every vocabulary: loads and stores by element type (a constant at each call, so that
 * the switch folds away), and tanh. Include after a vocabulary. */
#ifndef ATTEND_VEC_ELEMENT_H
#define ATTEND_VEC_ELEMENT_H

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

/* Lane i is the sum of the lanes of x[i]; x is overwritten. */
WORD lanes lanes_sums(lanes x[LANES]) {
  lanes_transpose(x);
#pragma GCC unroll 4
  for (int step = LANES / 2; step > 0; step /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < step; i++) x[i] = lanes_add(x[i], x[i + step]);
  return x[0];
}

WORD void lanes_stream_type(void *p, lanes x, attend_type type) {
  if (type == TYPE_F16)
    lanes_stream_f16(p, x);
  else if (type == TYPE_BF16)
    lanes_stream_bf16(p, x);
  else
    lanes_stream(p, x);
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
