/* SPDX-License-Identifier: MIT */
/* The lane words for any machine: vectors in the language extension that gcc and clang share, of 16 bytes, which become
 * SSE2 on x86-64, NEON on aarch64 and plain code elsewhere. Before the include, VECTOR_BYTES 32 makes them what AVX2
 * has, LANES_F64 makes the lanes doubles.
 *
 * A vocabulary defines `real` (the type of a lane), LANES, `lanes`, `lane_mask` and the words below;
 * docs/kernel-contract.md lists them. Words have no side effect but their stores, and touch no memory beyond the lanes
 * they name. Where an argument is NaN, lanes_max(a, b) and lanes_min(a, b) return b. */
#ifndef ATTEND_VEC_SCALAR_H
#define ATTEND_VEC_SCALAR_H

#include "api/element.h"

#include <string.h>

#define WORD static inline __attribute__((always_inline))

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif
#ifdef LANES_F64
typedef double real;
typedef int64_t lane_integer;
#define LANES (VECTOR_BYTES / 8)
#define FUSED __builtin_fma
#define FUSED_VECTOR __builtin_ia32_vfmaddpd256
#else
typedef float real;
typedef int32_t lane_integer;
#define LANES (VECTOR_BYTES / 4)
#define FUSED __builtin_fmaf
#define FUSED_VECTOR __builtin_ia32_vfmaddps256
#endif
typedef real lanes __attribute__((vector_size(VECTOR_BYTES)));
typedef lane_integer lane_mask __attribute__((vector_size(VECTOR_BYTES)));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lane_mask){__VA_ARGS__})
#endif
#if LANES == 2
#define LANE_NUMBERS ((lane_mask){0, 1})
#define FIRST_BY_TURNS 0, 2
#define SECOND_BY_TURNS 1, 3
#elif LANES == 4
#define LANE_NUMBERS ((lane_mask){0, 1, 2, 3})
#define FIRST_BY_TURNS 0, 4, 1, 5
#define SECOND_BY_TURNS 2, 6, 3, 7
#else
#define LANE_NUMBERS ((lane_mask){0, 1, 2, 3, 4, 5, 6, 7})
#define FIRST_BY_TURNS 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_BY_TURNS 4, 12, 5, 13, 6, 14, 7, 15
#endif

/* ---- Memory ---- */

WORD lanes lanes_zero(void) { return (lanes){0}; }
WORD lanes lanes_set1(real x) { return x - (lanes){0}; }
/* Lanes anywhere in memory: what memcpy has put into them gcc may keep there. */
typedef real lanes_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
WORD lanes lanes_load(const real *p) { return *(const lanes_anywhere *)p; }
WORD void lanes_store(real *p, lanes x) { *(lanes_anywhere *)p = x; }
/* x as a register, where gcc would read it from memory for each of its uses. */
WORD lanes lanes_once(lanes x) {
#if defined(__SSE2__)
  __asm__("" : "+x"(x));
#endif
  return x;
}
WORD lanes lanes_load_next(const real *p) { return lanes_load(p); }
/* The first n of LANES lanes, 0 <= n <= LANES; a load leaves 0 in the others. */
WORD lanes lanes_load_first(const real *p, int n) {
  lanes x = {0};
  for (int i = 0; i < LANES; i++)
    if (i < n) x[i] = p[i];
  return x;
}
WORD void lanes_store_first(real *p, lanes x, int n) {
  if (__builtin_constant_p(n)) {
    memcpy(p, &x, (size_t)n * sizeof(real));
    return;
  }
  for (int i = 0; i < LANES; i++)
    if (i < n) p[i] = x[i];
}
WORD lanes lanes_load_f16_first(const uint16_t *p, int n) {
  lanes x = {0};
  for (int i = 0; i < LANES; i++)
    if (i < n) x[i] = attend_f32_from_f16(p[i]);
  return x;
}
WORD lanes lanes_load_bf16_first(const uint16_t *p, int n) {
  lanes x = {0};
  for (int i = 0; i < LANES; i++)
    if (i < n) x[i] = attend_f32_from_bf16(p[i]);
  return x;
}
WORD void lanes_store_f16_first(uint16_t *p, lanes x, int n) {
  for (int i = 0; i < LANES; i++)
    if (i < n) p[i] = attend_f16_from_f32((float)x[i]);
}
WORD void lanes_store_bf16_first(uint16_t *p, lanes x, int n) {
  for (int i = 0; i < LANES; i++)
    if (i < n) p[i] = attend_bf16_from_f32((float)x[i]);
}
WORD lanes lanes_load_f16(const uint16_t *p) { return lanes_load_f16_first(p, LANES); }
WORD lanes lanes_load_bf16(const uint16_t *p) { return lanes_load_bf16_first(p, LANES); }
WORD void lanes_store_f16(uint16_t *p, lanes x) { lanes_store_f16_first(p, x, LANES); }
WORD void lanes_store_bf16(uint16_t *p, lanes x) { lanes_store_bf16_first(p, x, LANES); }
/* 2 * LANES elements as two vectors in an order of the vocabulary's own, which lanes_store_bf16_pair undoes: here
 * even and odd, where two of them fill a lane. */
#ifdef LANES_F64
WORD void lanes_load_bf16_pair(const uint16_t *p, lanes x[2]) {
  x[0] = lanes_load_bf16(p);
  x[1] = lanes_load_bf16(p + LANES);
}
WORD void lanes_store_bf16_pair(uint16_t *p, const lanes x[2]) {
  lanes_store_bf16(p, x[0]);
  lanes_store_bf16(p + LANES, x[1]);
}
#else
typedef uint32_t lane_bits __attribute__((vector_size(VECTOR_BYTES)));
WORD void lanes_load_bf16_pair(const uint16_t *p, lanes x[2]) {
  lane_bits both;
  memcpy(&both, p, sizeof both);
  x[0] = (lanes)(both << 16);
  x[1] = (lanes)(both & 0xFFFF0000u);
}
WORD lane_bits round_bf16(lanes x) { /* in the upper halves; the lower are whatever */
  lane_bits bits = (lane_bits)x, rounded = bits + 0x7FFF + ((bits >> 16) & 1), nan = (lane_bits)(x != x);
  return (rounded & ~nan) | ((bits | 0x400000) & nan);
}
WORD void lanes_store_bf16_pair(uint16_t *p, const lanes x[2]) {
  lane_bits both = (round_bf16(x[0]) >> 16) | (round_bf16(x[1]) & 0xFFFF0000u);
  memcpy(p, &both, sizeof both);
}
#endif
/* Stores past the cache, of LANES elements to addresses that are multiples of their bytes; lanes_stream_end makes them
 * visible to other threads. */
WORD void lanes_stream(real *p, lanes x) {
#if defined(__clang__)
  __builtin_nontemporal_store(x, (lanes *)(void *)p);
#elif defined(__AVX__) && VECTOR_BYTES == 32 && defined(LANES_F64)
  __builtin_ia32_movntpd256(p, x);
#elif defined(__AVX__) && VECTOR_BYTES == 32
  __builtin_ia32_movntps256(p, x);
#else
  lanes_store(p, x);
#endif
}
WORD void lanes_stream_f16(uint16_t *p, lanes x) { lanes_store_f16(p, x); }
WORD void lanes_stream_bf16(uint16_t *p, lanes x) { lanes_store_bf16(p, x); }
WORD void lanes_stream_bf16_pair(uint16_t *p, const lanes x[2]) { lanes_store_bf16_pair(p, x); }
WORD void lanes_stream_end(void) {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}
/* Bytes of a bool tensor as 0 or 1. */
WORD lanes lanes_load_bool(const uint8_t *p) {
  lanes x;
  for (int i = 0; i < LANES; i++) x[i] = p[i] != 0;
  return x;
}

/* ---- Arithmetic ---- */

WORD lanes lanes_select(lane_mask m, lanes a, lanes b) { return (lanes)(((lane_mask)a & m) | ((lane_mask)b & ~m)); }
WORD lanes lanes_add(lanes a, lanes b) { return a + b; }
WORD lanes lanes_sub(lanes a, lanes b) { return a - b; }
WORD lanes lanes_mul(lanes a, lanes b) { return a * b; }
WORD lanes lanes_div(lanes a, lanes b) { return a / b; }
/* a * b + c, fused where that is one instruction, which is what the loop becomes; but in the longest blocks of code gcc
 * gives up looking for vectors, and takes half as long to compile where it need not look. */
WORD lanes lanes_fma(lanes a, lanes b, lanes c) {
#if defined(__FMA__) && VECTOR_BYTES == 32
  return FUSED_VECTOR(a, b, c);
#elif defined(__FMA__) || defined(__aarch64__)
  lanes x = {0};
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i++) x[i] = FUSED(a[i], b[i], c[i]);
  return x;
#else
  return a * b + c;
#endif
}
WORD lanes lanes_fnma(lanes a, lanes b, lanes c) { return lanes_fma(-a, b, c); }
WORD lanes lanes_max(lanes a, lanes b) { return lanes_select(a > b, a, b); }
WORD lanes lanes_min(lanes a, lanes b) { return lanes_select(a < b, a, b); }
WORD lanes lanes_abs(lanes a) { return (lanes)((lane_mask)a & ~(lane_mask)lanes_set1(-(real)0)); }
WORD real lanes_reduce_add(lanes a) {
  for (int step = LANES / 2; step; step /= 2)
    for (int i = 0; i < step; i++) a[i] += a[i + step];
  return a[0];
}
WORD real lanes_reduce_max(lanes a) {
  for (int i = 1; i < LANES; i++)
    if (a[i] > a[0]) a[0] = a[i];
  return a[0];
}
/* Lanes of two vectors by turns: of their first halves, of their second halves. */
WORD lanes interleave_first(lanes a, lanes b) { return SHUFFLE(a, b, FIRST_BY_TURNS); }
WORD lanes interleave_second(lanes a, lanes b) { return SHUFFLE(a, b, SECOND_BY_TURNS); }
/* A round moves the highest bit of the row behind the bits of the column, and the highest of the column behind those of
 * the row: after as many as there are bits, rows are columns. */
WORD void lanes_transpose(lanes x[LANES]) {
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    lanes y[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; i++) {
      y[2 * i] = interleave_first(x[i], x[i + LANES / 2]);
      y[2 * i + 1] = interleave_second(x[i], x[i + LANES / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = y[i];
  }
}
#if LANES == 8
/* Within halves, which is one instruction a shuffle of AVX2; halves are added last: 21 in all, not 35. */
WORD lanes lanes_sums(const lanes x[LANES]) { /* lane i is the sum of the lanes of x[i] */
  lanes y[4], z[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    y[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13) +
           SHUFFLE(x[2 * i], x[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    z[i] = SHUFFLE(y[2 * i], y[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
           SHUFFLE(y[2 * i], y[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  return SHUFFLE(z[0], z[1], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(z[0], z[1], 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
WORD lanes lanes_sums(const lanes x[LANES]) { /* lane i is the sum of the lanes of x[i]; the same rounds, added up */
  lanes y[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) y[i] = x[i];
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; i++) y[i] = interleave_first(y[i], y[i + half]) + interleave_second(y[i], y[i + half]);
  return y[0];
}
#endif
WORD lanes lanes_rotate(lanes a, int n) { /* lane i is lane (i + n) % LANES of a; n is a constant */
#ifdef __clang__
  lanes x = {0};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) x[i] = a[(i + n) % LANES];
  return x;
#else
  return __builtin_shuffle(a, (n + LANE_NUMBERS) % LANES); /* set one by one, gcc would make the lanes at run time */
#endif
}
WORD lanes lanes_swap(lanes a, int n) { /* lane i is lane i ^ n of a; n is a constant power of two below LANES */
#ifdef __clang__
  lanes x = {0};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) x[i] = a[(i ^ n) % LANES];
  return x;
#else
  return __builtin_shuffle(a, (n ^ LANE_NUMBERS) % LANES);
#endif
}
WORD lanes lanes_index(void) { /* 0, 1, 2, … */
  lanes x;
  for (int i = 0; i < LANES; i++) x[i] = (real)i;
  return x;
}

/* ---- Masks ---- */

WORD lane_mask lanes_less(lanes a, lanes b) { return a < b; }   /* false where either is NaN */
WORD lane_mask lanes_equal(lanes a, lanes b) { return a == b; } /* the same */
WORD lane_mask lanes_unordered(lanes a) { return a != a; }      /* is it NaN? */
WORD lane_mask mask_or(lane_mask a, lane_mask b) { return a | b; }
WORD lane_mask mask_not(lane_mask a) { return ~a; }
typedef long long mask_words __attribute__((vector_size(VECTOR_BYTES)));
WORD int mask_any(lane_mask m) {
  mask_words words = (mask_words)m;
#if defined(__AVX__) && VECTOR_BYTES == 32
  return !__builtin_ia32_ptestz256(words, words);
#else
  int64_t any = 0;
#pragma GCC unroll 4
  for (int i = 0; i < VECTOR_BYTES / 8; i++) any |= words[i];
  return any != 0;
#endif
}
WORD lane_mask mask_first(int n) { /* lanes 0 … n-1 */
  return lanes_index() < lanes_set1((real)n);
}

/* ---- exp2 ---- */

/* Nearest integer, for |x| < 2^21: added to 1.5 * 2^(fraction bits), what is behind the point rounds away. */
#ifdef LANES_F64
#define ROUNDING_MAGIC 0x1.8p52
#define EXPONENT_BIAS 1023
#define FRACTION_BITS 52
#else
#define ROUNDING_MAGIC 0x1.8p23f
#define EXPONENT_BIAS 127
#define FRACTION_BITS 23
#endif
WORD lanes lanes_round(lanes x) { return (x + ROUNDING_MAGIC) - ROUNDING_MAGIC; }

/* 2^n for an integral n from -EXPONENT_BIAS (which gives 0) to EXPONENT_BIAS. */
WORD lanes lanes_pow2(lanes n) { return (lanes)((lane_mask)(n + (ROUNDING_MAGIC + EXPONENT_BIAS)) << FRACTION_BITS); }

#include "cpu/vec/exp2.h"

WORD lanes lanes_exp2(lanes x) {
  x = lanes_max(lanes_set1(-EXPONENT_BIAS), x);
  lanes n = lanes_round(x);
  return lanes_pow2(n) * lanes_fma(x - n, lanes_exp2m1_over(x - n), lanes_set1(1));
}

/* ---- log2 ---- */

/* x = mantissa * 2^exponent with 1 <= mantissa < 2, for a normal x > 0. */
WORD lanes lanes_split(lanes x, lanes *exponent) {
  lane_mask bits = (lane_mask)x;
  for (int i = 0; i < LANES; i++) (*exponent)[i] = (real)((bits[i] >> FRACTION_BITS) - EXPONENT_BIAS);
  const lane_integer fraction = ((lane_integer)1 << FRACTION_BITS) - 1,
                     one = (lane_integer)EXPONENT_BIAS << FRACTION_BITS;
  return (lanes)((bits & fraction) | one);
}

/* ---- Random draws ---- */

/* Philox4x32-10 with counters {c, i + lane} and one key: word w of lane n goes to out[w * LANES + n]. */
WORD void lanes_philox(uint32_t out[4 * LANES], uint64_t c, uint64_t i, const uint32_t key[2]) {
  for (int n = 0; n < LANES; n++) {
    uint64_t row = i + (uint64_t)n;
    uint32_t counter[4] = {(uint32_t)c, (uint32_t)(c >> 32), (uint32_t)row, (uint32_t)(row >> 32)}, word[4];
    attend_philox(counter, key, word);
    for (int w = 0; w < 4; w++) out[w * LANES + n] = word[w];
  }
}
/* Which lanes keep their element: half 0 is the low 16 bits of the draw. threshold <= 65536. */
WORD lane_mask lanes_keep(const uint32_t draw[LANES], int half, uint32_t threshold) {
  lane_mask keep;
  for (int n = 0; n < LANES; n++) keep[n] = -(lane_integer)(((draw[n] >> (16 * half)) & 0xFFFFu) >= threshold);
  return keep;
}

#endif
