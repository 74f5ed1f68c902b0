/* SPDX-License-Identifier: MIT */
/* The lane words in AVX2, FMA and F16C: 8 floats, masks as lanes of all ones. See scalar.h for what each word does. */
#ifndef ATTEND_VEC_AVX2_H
#define ATTEND_VEC_AVX2_H

#include "api/element.h"

#include <immintrin.h>
#include <string.h>

#define WORD static inline __attribute__((always_inline))

typedef float real;
typedef __m256 lanes;
typedef __m256 lane_mask;
#define LANES 8

WORD __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* ---- Memory ---- */

WORD lanes lanes_zero(void) { return _mm256_setzero_ps(); }
WORD lanes lanes_set1(real x) { return _mm256_set1_ps(x); }
WORD lanes lanes_load(const real *p) { return _mm256_loadu_ps(p); }
WORD void lanes_store(real *p, lanes x) { _mm256_storeu_ps(p, x); }
WORD lanes lanes_once(lanes x) {
  __asm__("" : "+x"(x));
  return x;
}
WORD lanes lanes_load_next(const real *p) { return lanes_load(p); }
WORD lanes lanes_load_first(const real *p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
WORD void lanes_store_first(real *p, lanes x, int n) {
  if (__builtin_constant_p(n) && n == 4) /* AMD's cores take tens of cycles for a masked store */
    _mm_storeu_ps(p, _mm256_castps256_ps128(x));
  else
    _mm256_maskstore_ps(p, first_lanes(n), x);
}

WORD lanes widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
WORD __m128i narrow_bf16(lanes x) { /* to nearest even */
  __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
  __m256i even = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
/* There are no masked 16-bit loads: tails go through the stack. */
WORD __m128i load_16_first(const uint16_t *p, int n) {
  uint16_t copy[LANES] = {0};
  for (int i = 0; i < n; i++) copy[i] = p[i];
  return _mm_loadu_si128((const __m128i *)(const void *)copy);
}
WORD void store_16_first(uint16_t *p, __m128i x, int n) {
  uint16_t copy[LANES];
  _mm_storeu_si128((__m128i *)(void *)copy, x);
  for (int i = 0; i < n; i++) p[i] = copy[i];
}
WORD __m128i narrow_f16(lanes x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
WORD lanes lanes_load_bf16(const uint16_t *p) { return widen_bf16(_mm_loadu_si128((const __m128i *)(const void *)p)); }
WORD void lanes_load_bf16_pair(const uint16_t *p, lanes x[2]) { /* even and odd: no shuffle is needed */
  __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)p);
  x[0] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  x[1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xFFFF0000u)));
}
WORD __m256i round_bf16(lanes x) { /* in the upper halves; the lower are whatever */
  __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
  __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), even);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
}
WORD __m256i narrow_bf16_pair(const lanes x[2]) {
  return _mm256_blend_epi16(_mm256_srli_epi32(round_bf16(x[0]), 16), round_bf16(x[1]), 0xAA);
}
WORD void lanes_store_bf16_pair(uint16_t *p, const lanes x[2]) {
  _mm256_storeu_si256((__m256i *)(void *)p, narrow_bf16_pair(x));
}
WORD void lanes_stream_bf16_pair(uint16_t *p, const lanes x[2]) {
  _mm256_stream_si256((__m256i *)(void *)p, narrow_bf16_pair(x));
}
WORD lanes lanes_load_bf16_first(const uint16_t *p, int n) { return widen_bf16(load_16_first(p, n)); }
WORD void lanes_store_bf16(uint16_t *p, lanes x) { _mm_storeu_si128((__m128i *)(void *)p, narrow_bf16(x)); }
WORD void lanes_store_bf16_first(uint16_t *p, lanes x, int n) { store_16_first(p, narrow_bf16(x), n); }
WORD lanes lanes_load_f16(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
WORD lanes lanes_load_f16_first(const uint16_t *p, int n) { return _mm256_cvtph_ps(load_16_first(p, n)); }
WORD void lanes_store_f16(uint16_t *p, lanes x) { _mm_storeu_si128((__m128i *)(void *)p, narrow_f16(x)); }
WORD void lanes_store_f16_first(uint16_t *p, lanes x, int n) { store_16_first(p, narrow_f16(x), n); }
WORD void lanes_stream(real *p, lanes x) { _mm256_stream_ps(p, x); }
WORD void lanes_stream_f16(uint16_t *p, lanes x) { _mm_stream_si128((__m128i *)(void *)p, narrow_f16(x)); }
WORD void lanes_stream_bf16(uint16_t *p, lanes x) { _mm_stream_si128((__m128i *)(void *)p, narrow_bf16(x)); }
WORD void lanes_stream_end(void) { _mm_sfence(); }
WORD lanes lanes_load_bool(const uint8_t *p) {
  __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
  __m256i zero = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
  return _mm256_andnot_ps(_mm256_castsi256_ps(zero), _mm256_set1_ps(1));
}

/* ---- Arithmetic ---- */

WORD lanes lanes_select(lane_mask m, lanes a, lanes b) { return _mm256_blendv_ps(b, a, m); }
WORD lanes lanes_add(lanes a, lanes b) { return _mm256_add_ps(a, b); }
WORD lanes lanes_sub(lanes a, lanes b) { return _mm256_sub_ps(a, b); }
WORD lanes lanes_mul(lanes a, lanes b) { return _mm256_mul_ps(a, b); }
WORD lanes lanes_div(lanes a, lanes b) { return _mm256_div_ps(a, b); }
WORD lanes lanes_fma(lanes a, lanes b, lanes c) { return _mm256_fmadd_ps(a, b, c); }
WORD lanes lanes_fnma(lanes a, lanes b, lanes c) { return _mm256_fnmadd_ps(a, b, c); }
WORD lanes lanes_max(lanes a, lanes b) { return _mm256_max_ps(a, b); }
WORD lanes lanes_min(lanes a, lanes b) { return _mm256_min_ps(a, b); }
WORD lanes lanes_abs(lanes a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
WORD real lanes_reduce_add(lanes a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
WORD real lanes_reduce_max(lanes a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
WORD lanes lanes_index(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

WORD void lanes_transpose(lanes x[LANES]) {
  lanes t[LANES];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    x[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    x[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    x[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) x[i] = t[i];
}

WORD lanes lanes_rotate(lanes a, int n) {
  __m256i index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(n));
  return _mm256_permutevar8x32_ps(a, index); /* which reads three bits of an index */
}

WORD lanes lanes_swap(lanes a, int n) {
  return n == 4 ? _mm256_permute2f128_ps(a, a, 1) : n == 2 ? _mm256_permute_ps(a, 0x4E) : _mm256_permute_ps(a, 0xB1);
}

WORD lanes lanes_sums(const lanes x[LANES]) {
  lanes t[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    t[i] = _mm256_add_ps(_mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    t[i] =
        _mm256_add_ps(_mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44), _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0xEE));
  return _mm256_add_ps(_mm256_permute2f128_ps(t[0], t[1], 0x20), _mm256_permute2f128_ps(t[0], t[1], 0x31));
}

/* ---- Masks ---- */

WORD lane_mask lanes_less(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
WORD lane_mask lanes_equal(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
WORD lane_mask lanes_unordered(lanes a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
WORD lane_mask mask_or(lane_mask a, lane_mask b) { return _mm256_or_ps(a, b); }
WORD lane_mask mask_not(lane_mask a) { return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }
WORD int mask_any(lane_mask m) { return _mm256_movemask_ps(m) != 0; }
WORD lane_mask mask_first(int n) { return _mm256_castsi256_ps(first_lanes(n)); }

/* ---- exp2 ---- */

WORD lanes lanes_round(lanes x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* 1.5 * 2^23 + 127 + n has n's biased exponent in its low bits; shifted up they are the float 2^n. */
WORD lanes lanes_pow2(lanes n) {
  __m256i bits = _mm256_castps_si256(_mm256_add_ps(n, _mm256_set1_ps(0x1.8p23f + 127)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}

#include "cpu/vec/exp2.h"

/* 2^n is added to the exponent. What is clamped to -127 comes out as exactly 0: 1 with the biased exponent 0. For
 * x below 129: sums of the softmax have x <= 0. */
WORD lanes lanes_exp2(lanes x) {
  x = _mm256_max_ps(_mm256_set1_ps(-127), x);
  lanes r = _mm256_sub_ps(x, lanes_round(x));
  __m256i n = _mm256_slli_epi32(_mm256_cvtps_epi32(x), 23);
  lanes p = _mm256_fmadd_ps(r, lanes_exp2m1_over(r), _mm256_set1_ps(1));
  return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_castps_si256(p)));
}

/* ---- log2 ---- */

WORD lanes lanes_split(lanes x, lanes *exponent) {
  __m256i bits = _mm256_castps_si256(x);
  *exponent = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127)));
  bits = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFF)), _mm256_set1_epi32(0x3F800000));
  return _mm256_castsi256_ps(bits);
}

/* ---- Random draws ---- */

WORD void multiply_wide(__m256i x, uint32_t m, __m256i *high, __m256i *low) {
  __m256i factor = _mm256_set1_epi64x((long long)m);
  __m256i even = _mm256_mul_epu32(x, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}
WORD void lanes_philox(uint32_t out[4 * LANES], uint64_t c, uint64_t i, const uint32_t key[2]) {
  uint32_t row[LANES], row_high[LANES];
  for (int n = 0; n < LANES; n++) {
    row[n] = (uint32_t)(i + (uint64_t)n);
    row_high[n] = (uint32_t)((i + (uint64_t)n) >> 32);
  }
  __m256i c0 = _mm256_set1_epi32((int)(uint32_t)c), c1 = _mm256_set1_epi32((int)(uint32_t)(c >> 32));
  __m256i c2 = _mm256_loadu_si256((const __m256i *)(const void *)row);
  __m256i c3 = _mm256_loadu_si256((const __m256i *)(const void *)row_high);
  uint32_t k0 = key[0], k1 = key[1];
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    __m256i high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, &high0, &low0);
    multiply_wide(c2, 0xCD9E8D57u, &high1, &low1);
    c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), _mm256_set1_epi32((int)k0));
    c1 = low1;
    c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), _mm256_set1_epi32((int)k1));
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  _mm256_storeu_si256((__m256i *)(void *)out, c0);
  _mm256_storeu_si256((__m256i *)(void *)(out + LANES), c1);
  _mm256_storeu_si256((__m256i *)(void *)(out + 2 * LANES), c2);
  _mm256_storeu_si256((__m256i *)(void *)(out + 3 * LANES), c3);
}
WORD lane_mask lanes_keep(const uint32_t draw[LANES], int half, uint32_t threshold) {
  __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)draw);
  x = half ? _mm256_srli_epi32(x, 16) : _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF));
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(x, _mm256_set1_epi32((int)threshold - 1)));
}

#endif
