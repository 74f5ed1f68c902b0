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

#define TILE_LANES (TILE_VECTORS * LANES)

typedef struct tile_sums {
  lanes c[TILE_ROWS][TILE_VECTORS];
} tile_sums;

/* c[r][l] = sum over k < n of a[r][k] * b[k * b_row + l]: A's rows lie along the sum. */
WORD tile_sums tile_product_rows(const real *const a[TILE_ROWS], const real *b, int64_t b_row, int64_t n) {
  tile_sums s;
#pragma GCC unroll 16
  for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = lanes_zero();
  for (int64_t k = 0; k < n; k++, b += b_row) {
    lanes y[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) y[v] = lanes_load(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
      lanes x = lanes_set1(a[r][k]);
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = lanes_fma(x, y[v], s.c[r][v]);
    }
  }
  return s;
}

/* c[r][l] = sum over k < n of a[k * a_row + r] * b[k * b_row + l]: A's rows lie across the sum. */
WORD tile_sums tile_product_columns(const real *a, int64_t a_row, const real *b, int64_t b_row, int64_t n) {
  tile_sums s;
#pragma GCC unroll 16
  for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = lanes_zero();
  for (int64_t k = 0; k < n; k++, a += a_row, b += b_row) {
    lanes y[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) y[v] = lanes_load(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
      lanes x = lanes_set1(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = lanes_fma(x, y[v], s.c[r][v]);
    }
  }
  return s;
}

#endif
