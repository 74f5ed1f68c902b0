/* SPDX-License-Identifier: MIT */
/* The loops of the tile word, over the step of the header that includes this. */
#ifndef ATTEND_TILE_PRODUCT_H
#define ATTEND_TILE_PRODUCT_H

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
#pragma GCC unroll 4
  for (int64_t k = 0; k < n; k++, b += b_row) {
    lanes y[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) y[v] = lanes_load(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
      lanes x = lanes_set1(a[r][k]);
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = tile_step(x, y[v], s.c[r][v]);
    }
  }
  return s;
}

/* Rows of A that are asked for ahead where they lie across the sum: each is in another line, and 512 bytes apart (128
 * columns in f32) they displace each other from the first-level cache, so that every tile fetches them anew. */
enum { TILE_ROWS_AHEAD = 8 };

/* c[r][l] = sum over k < n of a[k * a_row + r] * b[k * b_row + l]: A's rows lie across the sum. */
WORD tile_sums tile_product_columns(const real *a, int64_t a_row, const real *b, int64_t b_row, int64_t n) {
  tile_sums s;
#pragma GCC unroll 16
  for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = lanes_zero();
#pragma GCC unroll 4
  for (int64_t k = 0; k < n; k++, a += a_row, b += b_row) {
    __builtin_prefetch(a + TILE_ROWS_AHEAD * a_row);
    lanes y[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) y[v] = lanes_load(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
      lanes x = lanes_set1(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; v++) s.c[r][v] = tile_step(x, y[v], s.c[r][v]);
    }
  }
  return s;
}

#endif
