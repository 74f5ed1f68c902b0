/* SPDX-License-Identifier: MIT */
/* The lane words in AVX-512 (F, DQ, BW, VL): 16 floats, masks in mask registers. See scalar.h for what each word does.
 */
#ifndef ATTEND_VEC_AVX512_H
#define ATTEND_VEC_AVX512_H

#include "api/element.h"

#include <immintrin.h>

#define WORD static inline __attribute__((always_inline))

typedef float real;
typedef __m512 lanes;
typedef __mmask16 lane_mask;
#define LANES 16

WORD __mmask16 first_lanes(int n) { return (__mmask16)_bzhi_u32(0xFFFFu, (unsigned)n); }

/* ---- Memory ---- */

WORD lanes lanes_zero(void) { return _mm512_setzero_ps(); }
WORD lanes lanes_set1(real x) { return _mm512_set1_ps(x); }
WORD lanes lanes_load(const real *p) { return _mm512_loadu_ps(p); }
WORD void lanes_store(real *p, lanes x) { _mm512_storeu_ps(p, x); }
WORD lanes lanes_once(lanes x) {
  __asm__("" : "+v"(x));
  return x;
}
/* By two halves: prefetchers follow sooner where each line is asked for twice (decoding in bf16 5.9 instead of 6.4 ms).
 */
WORD lanes lanes_load_next(const real *p) {
  lanes x;
  __asm__ volatile("vmovups %1, %t0\n\tvinsertf64x4 $1, %2, %0, %0"
                   : "=&v"(x)
                   : "m"(*(const __m256_u *)(const void *)p), "m"(*(const __m256_u *)(const void *)(p + LANES / 2)));
  return x;
}
WORD lanes lanes_load_first(const real *p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
WORD void lanes_store_first(real *p, lanes x, int n) {
  if (__builtin_constant_p(n) && n == 4) /* a load soon after finds it on its way; not so behind a mask */
    _mm_storeu_ps(p, _mm512_castps512_ps128(x));
  else
    _mm512_mask_storeu_ps(p, first_lanes(n), x);
}

WORD lanes widen_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
/* Round to nearest even in integers: VCVTNEPS2BF16 would flush subnormals, and not every AVX-512 has it. */
WORD __m256i narrow_bf16(lanes x) {
  __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
  __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF))), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}
WORD lanes lanes_load_bf16(const uint16_t *p) {
  return widen_bf16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
WORD __m512i round_bf16(lanes x) { /* in the upper halves; the lower are whatever */
  __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), even);
  return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
}
#ifdef __AVX512BF16__ /* where sums are dot products of bf16, which flush subnormals too */
/* The order is that of words made across two rows by two unpacking instructions: of every 8 columns the first 4 in
 * x[0], the last 4 in x[1]. Even and odd, two permutations, which have no destination of their own, took 214 and 650 ns
 * for 196 and 598, backward on 8 and 16 tokens. */
WORD void lanes_load_bf16_pair(const uint16_t *p, lanes x[2]) {
  __m512i both = _mm512_loadu_si512(p), zero = _mm512_setzero_si512();
  x[0] = (lanes)_mm512_unpacklo_epi16(zero, both), x[1] = (lanes)_mm512_unpackhi_epi16(zero, both);
}
WORD __m512i narrow_bf16_pair(const lanes x[2]) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm512_permutexvar_epi64(order, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
}
#else
WORD void lanes_load_bf16_pair(const uint16_t *p, lanes x[2]) { /* even and odd: no shuffle is needed */
  __m512i both = _mm512_loadu_si512(p);
  x[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  x[1] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xFFFF0000u)));
}
WORD __m512i narrow_bf16_pair(const lanes x[2]) {
  return _mm512_mask_blend_epi16(0xAAAAAAAAu, _mm512_srli_epi32(round_bf16(x[0]), 16), round_bf16(x[1]));
}
#endif
WORD void lanes_store_bf16_pair(uint16_t *p, const lanes x[2]) { _mm512_storeu_si512(p, narrow_bf16_pair(x)); }
WORD void lanes_stream_bf16_pair(uint16_t *p, const lanes x[2]) {
  _mm512_stream_si512((__m512i *)(void *)p, narrow_bf16_pair(x));
}
WORD lanes lanes_load_bf16_first(const uint16_t *p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
WORD void lanes_store_bf16(uint16_t *p, lanes x) { _mm256_storeu_si256((__m256i *)(void *)p, narrow_bf16(x)); }
WORD void lanes_store_bf16_first(uint16_t *p, lanes x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_bf16(x));
}
WORD lanes lanes_load_f16(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
WORD lanes lanes_load_f16_first(const uint16_t *p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
WORD void lanes_store_f16(uint16_t *p, lanes x) {
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
WORD void lanes_store_f16_first(uint16_t *p, lanes x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
WORD void lanes_stream(real *p, lanes x) { _mm512_stream_ps(p, x); }
WORD void lanes_stream_f16(uint16_t *p, lanes x) {
  _mm256_stream_si256((__m256i *)(void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
WORD void lanes_stream_bf16(uint16_t *p, lanes x) { _mm256_stream_si256((__m256i *)(void *)p, narrow_bf16(x)); }
WORD void lanes_stream_end(void) { _mm_sfence(); }
WORD lanes lanes_load_bool(const uint8_t *p) {
  __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
  return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(bytes, bytes), _mm512_set1_ps(1));
}

/* ---- Arithmetic ---- */

WORD lanes lanes_select(lane_mask m, lanes a, lanes b) { return _mm512_mask_blend_ps(m, b, a); }
WORD lanes lanes_add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
WORD lanes lanes_sub(lanes a, lanes b) { return _mm512_sub_ps(a, b); }
WORD lanes lanes_mul(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
WORD lanes lanes_div(lanes a, lanes b) { return _mm512_div_ps(a, b); }
WORD lanes lanes_fma(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
WORD lanes lanes_fnma(lanes a, lanes b, lanes c) { return _mm512_fnmadd_ps(a, b, c); }
WORD lanes lanes_max(lanes a, lanes b) { return _mm512_max_ps(a, b); }
WORD lanes lanes_min(lanes a, lanes b) { return _mm512_min_ps(a, b); }
WORD lanes lanes_abs(lanes a) { return _mm512_abs_ps(a); }
WORD real lanes_reduce_add(lanes a) { return _mm512_reduce_add_ps(a); }
WORD real lanes_reduce_max(lanes a) { return _mm512_reduce_max_ps(a); }
WORD lanes lanes_index(void) { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

WORD void lanes_transpose(lanes x[LANES]) {
  lanes t[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) { /* pairs of rows, then of columns within 128 bits */
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    x[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    x[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    x[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) { /* then the 4x4 blocks of 128 bits */
    lanes a = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), b = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xDD);
    lanes c = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88), d = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xDD);
    t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
    t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = t[i];
}

WORD lanes lanes_rotate(lanes a, int n) {
  return _mm512_permutexvar_ps(
      _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(n)),
      a); /* which reads four bits of an index */
}

WORD lanes lanes_swap(lanes a, int n) {
  return n == 8   ? _mm512_shuffle_f32x4(a, a, 0x4E)
         : n == 4 ? _mm512_shuffle_f32x4(a, a, 0xB1)
         : n == 2 ? _mm512_permute_ps(a, 0x4E)
                  : _mm512_permute_ps(a, 0xB1);
}

/* A tree: what a transposition would move is added as soon as it lies in one place, 30 shuffles instead of 64. */
WORD lanes lanes_sums(const lanes x[LANES]) {
  lanes t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    t[i] =
        _mm512_add_ps(_mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44), _mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0xEE));
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xDD));
}

/* ---- Masks ---- */

WORD lane_mask lanes_less(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
WORD lane_mask lanes_equal(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
WORD lane_mask lanes_unordered(lanes a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
WORD lane_mask mask_or(lane_mask a, lane_mask b) { return (lane_mask)(a | b); }
WORD lane_mask mask_not(lane_mask a) { return (lane_mask)~a; }
WORD int mask_any(lane_mask m) { return m != 0; }
WORD lane_mask mask_first(int n) { return first_lanes(n); }

/* ---- exp2 ---- */

WORD lanes lanes_round(lanes x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
WORD lanes lanes_pow2(lanes n) { return _mm512_scalef_ps(_mm512_set1_ps(1), n); }

#include "cpu/vec/exp2.h"

/* VREDUCEPS gives the fraction above the floor and VSCALEFPS applies the floor, both right at the infinities: no clamp
 * and no rounding. Hence a polynomial for [0, 1) rather than [-1/2, 1/2]: error 1.2e-8. */
WORD lanes lanes_exp2(lanes x) {
  static const float c[] = {0x1.4cb7b0p-10f, 0x1.3c487cp-7f, 0x1.c69f98p-5f, 0x1.ebfc3ep-3f, 0x1.62e430p-1f, 1};
  lanes r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF), p = _mm512_set1_ps(0x1.b49554p-13f);
#pragma GCC unroll 16
  for (int i = 0; i < 6; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c[i]));
  return _mm512_scalef_ps(p, x);
}

/* ---- log2 ---- */

WORD lanes lanes_split(lanes x, lanes *exponent) {
  *exponent = _mm512_getexp_ps(x);
  return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
}

/* ---- Random draws ---- */

/* High and low halves of x * m, 32 bits each. */
WORD void multiply_wide(__m512i x, uint32_t m, __m512i *high, __m512i *low) {
  __m512i factor = _mm512_set1_epi64((long long)m);
  __m512i even = _mm512_mul_epu32(x, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
  *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}
WORD void lanes_philox(uint32_t out[4 * LANES], uint64_t c, uint64_t i, const uint32_t key[2]) {
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i row = _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)i), index);
  __mmask16 carry = _mm512_cmplt_epu32_mask(row, index);
  __m512i c0 = _mm512_set1_epi32((int)(uint32_t)c), c1 = _mm512_set1_epi32((int)(uint32_t)(c >> 32)), c2 = row;
  __m512i c3 = _mm512_set1_epi32((int)(uint32_t)(i >> 32));
  c3 = _mm512_mask_add_epi32(c3, carry, c3, _mm512_set1_epi32(1));
  uint32_t k0 = key[0], k1 = key[1];
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    __m512i high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, &high0, &low0);
    multiply_wide(c2, 0xCD9E8D57u, &high1, &low1);
    c0 = _mm512_ternarylogic_epi32(high1, c1, _mm512_set1_epi32((int)k0), 0x96); /* three-way exclusive or */
    c1 = low1;
    c2 = _mm512_ternarylogic_epi32(high0, c3, _mm512_set1_epi32((int)k1), 0x96);
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  _mm512_storeu_si512(out, c0);
  _mm512_storeu_si512(out + LANES, c1);
  _mm512_storeu_si512(out + 2 * LANES, c2);
  _mm512_storeu_si512(out + 3 * LANES, c3);
}
WORD lane_mask lanes_keep(const uint32_t draw[LANES], int half, uint32_t threshold) {
  __m512i x = _mm512_loadu_si512(draw);
  x = half ? _mm512_srli_epi32(x, 16) : _mm512_and_si512(x, _mm512_set1_epi32(0xFFFF));
  return _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32((int)threshold));
}

#endif
