/* SPDX-License-Identifier: MIT */
/* The tile word in multiply-adds: TILE_ROWS x TILE_VECTORS vectors of sums stay in registers while one row of B is
 * loaded and TILE_ROWS elements of A are broadcast for each term. The stub of an instruction set defines both
 * constants:
 *
 *   AVX-512  8 x 2   10 loads for 16 products, 32 registers
 *   AVX2     4 x 3    7 loads for 12 products, 16 registers (6 x 2: 8 loads, and 64 is no multiple of 6)
 *   scalar   4 x 2    6 loads for 8 products; without a fused multiply-add 4 x 3 would spill
 *
 * Sums start at 0 and are added to what was there only when the tile is done: shorter chains of roundings than naive
 * summation, and the rescaling of the softmax costs nothing. */
#ifndef ATTEND_TILE_FMA_H
#define ATTEND_TILE_FMA_H

#define TILE_TERMS 1 /* products of one step: elements of a word of A and B */

WORD lanes tile_step(lanes x, lanes y, lanes sum) { return lanes_fma(x, y, sum); }
/* The same of one word in memory. (As the operand of the instruction it was 2 to 5% slower: 5, 8 and 16 tokens backward
 * with AVX-512; the shuffles of bf16 are not there.) */
WORD lanes tile_step_at(const real *x, lanes y, lanes sum) { return lanes_fma(lanes_set1(*x), y, sum); }
/* One row of words from TILE_TERMS rows of elements. */
WORD lanes tile_words(lanes first, lanes second) {
  (void)second;
  return first;
}

/* The column of lane i of two vectors that tile_words_of has made, side by side. */
WORD int tile_column(int i) { return i; }
WORD lanes tile_words_across(const uint16_t *low, const uint16_t *high) { /* only for words of two elements */
  (void)low;
  (void)high;
  return lanes_zero();
}
WORD void tile_words_of(lanes first, lanes second, lanes y[2]) { y[0] = first, y[1] = second; } /* as well */
WORD void tile_words_pair(const char *first, const char *second, lanes y[2]) {                  /* as well */
  (void)first;
  (void)second;
  y[0] = y[1] = lanes_zero();
}
/* 2^x for what becomes a word's element. */
WORD lanes tile_exp2(lanes x) { return lanes_exp2(x); }
/* The elements of words, as reals. */
WORD lanes tile_element(lanes words, int which) {
  (void)which;
  return words;
}
/* A row of TILE_VECTORS * LANES elements as words along it. */
WORD void tile_store_along(real *out, const lanes x[TILE_VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < TILE_VECTORS; v++) lanes_store(out + v * LANES, x[v]);
}

#include "cpu/tile/product.h"

#endif
