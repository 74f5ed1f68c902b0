/* SPDX-License-Identifier: MIT */
/* The tile word in AVX512-BF16 dot products: a word of 32 bits holds two bf16, neighbours along the sum, so that the
 * broadcasts and loads are those of fma.h and each step does two products. A word travels as a `real`. */
#ifndef ATTEND_TILE_BF16DOT_H
#define ATTEND_TILE_BF16DOT_H

#define TILE_TERMS 2

WORD lanes tile_step(lanes x, lanes y, lanes sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y); }
/* The same of one word in memory, read by the instruction itself: a broadcast into a register is a shuffle, on Zen 4 on
 * one of the two ports that multiply half of the time. */
WORD lanes tile_step_at(const real *x, lanes y, lanes sum) {
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(y), "m"(*x));
  return sum;
}
/* first in the low halves, second in the high ones, rounded to nearest even. */
WORD lanes tile_words(lanes first, lanes second) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (lanes)_mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* The same from bf16 in memory, LANES of each. */
WORD lanes tile_words_across(const uint16_t *low, const uint16_t *high) {
  __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)low));
  __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)high));
  return (lanes)_mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}
/* Words across two rows of 2 * LANES bf16, in the order of lanes_load_pair. */
WORD void tile_words_of(lanes first, lanes second, lanes y[2]) {
  y[0] = (lanes)_mm512_unpacklo_epi16((__m512i)first, (__m512i)second);
  y[1] = (lanes)_mm512_unpackhi_epi16((__m512i)first, (__m512i)second);
}
/* The column of lane i of two vectors that tile_words_of has made, side by side. */
WORD int tile_column(int i) { return i % LANES / 4 * 8 + i / LANES * 4 + i % 4; }
/* The same from memory, each row once. A row that is NULL, a constant, is of zeros. */
WORD void tile_words_pair(const char *first, const char *second, lanes y[2]) {
  tile_words_of(first ? lanes_once(lanes_load((const real *)(const void *)first)) : lanes_zero(),
                second ? lanes_once(lanes_load((const real *)(const void *)second)) : lanes_zero(), y);
}
/* 2^x for what becomes a word's element: lanes_exp2 with a polynomial of degree 5 for 6, error 1.0e-7, exact at whole
 * x. (Degree 4: 2.6e-6, which the sums would carry into lse.) */
WORD lanes tile_exp2(lanes x) {
  static const float c[] = {0x1.269deep-7f, 0x1.c94440p-5f, 0x1.ebd8a0p-3f, 0x1.62e4c8p-1f, 1};
  lanes r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF), p = _mm512_set1_ps(0x1.eca6f0p-10f);
#pragma GCC unroll 16
  for (int i = 0; i < 5; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c[i]));
  return _mm512_scalef_ps(p, x);
}
/* The elements of words, the first or the second of each, as reals. */
WORD lanes tile_element(lanes words, int which) {
  if (which == 0) return (lanes)_mm512_slli_epi32((__m512i)words, 16);
  return (lanes)_mm512_and_si512((__m512i)words, _mm512_set1_epi32((int)0xFFFF0000u));
}
/* A row of TILE_VECTORS * LANES elements as words along it. */
WORD void tile_store_along(real *out, const lanes x[TILE_VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < TILE_VECTORS; v += 2)
    lanes_store(out + v / 2 * LANES, (lanes)_mm512_cvtne2ps_pbh(x[v + 1], x[v]));
}

#include "cpu/tile/product.h"

_Static_assert(TILE_VECTORS % 2 == 0, "a row of words along it is whole vectors");

#endif
