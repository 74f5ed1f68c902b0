/* SPDX-License-Identifier: MIT */
/* Tiles of 16-bit elements in shared memory, and their fragments. Included once for each element type (ELEMENT).
 *
 * A row of a tile is 64 or 128 columns (chunks = 1, 2): words of 16 bytes, which lie where their number XOR the row's
 * last three bits says. So the eight rows that a phase of ldmatrix reads are in eight different banks of 16 bytes. */
#ifndef ATTEND_CUDA_TILE_SHARED_CUH
#define ATTEND_CUDA_TILE_SHARED_CUH

#include "fragment.cuh"
#include "tile.h"

WORD char *tile_word(char *tile, int row, int word, const int chunks) {
  return tile + row * 128 * chunks + ((word ^ (row & 7)) << 4);
}

/* Start copying `rows` rows of a matrix; `first` is the first of them, `exist` how many exist. What does not exist
 * becomes 0, and nothing of it is read. All threads of the block take part. */
WORD void tile_copy(char *tile, const int rows, const char *first, int64_t row_elements, int64_t exist, int columns,
                    const int chunks) {
  const int words = 8 * chunks, step = 32 * TILE_WARPS / words;
  int word = (int)threadIdx.x % words, row = (int)threadIdx.x / words;
  const char *from = first + 2 * (row * row_elements) + 16 * word;
  UNROLLED
  for (int n = 0; n < rows / step; n++, row += step, from += 2 * step * row_elements)
    word_copy_async(tile_word(tile, row, word, chunks), from, row < exist && 8 * word < columns);
}

/* Operand A: rows row .. row+15, columns 8 word .. 8 word + 15. */
WORD void tile_a(uint32_t a[4], char *tile, int row, int word, const int chunks) {
  int lane = (int)(threadIdx.x & 31);
  word_load_matrices(a, tile_word(tile, row + (lane & 15), word + (lane >> 4), chunks));
}
/* Operands B of two products with the transpose of rows row .. row+15: (b0, b1) of the first eight rows, (b2, b3) of
 * the others; their k are columns 8 word .. 8 word + 15. */
WORD void tile_b_transposed(uint32_t b[4], char *tile, int row, int word, const int chunks) {
  int lane = (int)(threadIdx.x & 31);
  word_load_matrices(b, tile_word(tile, row + (lane & 7) + (lane >> 4) * 8, word + (lane >> 3 & 1), chunks));
}
/* Operands B of two products with columns 8 word .. 8 word + 7 and the next eight; their k are rows row .. row+15. */
WORD void tile_b(uint32_t b[4], char *tile, int row, int word, const int chunks) {
  int lane = (int)(threadIdx.x & 31);
  word_load_matrices_transposed(b, tile_word(tile, row + (lane & 15), word + (lane >> 4), chunks));
}

/* Elements that are NaN or Inf become 0. */
WORD uint32_t pair_finite(uint32_t x) {
  const uint32_t exponent = ELEMENT == TYPE_BF16 ? 0x7F80 : 0x7C00;
  if ((x & exponent) == exponent) x &= 0xFFFF0000u;
  if ((x >> 16 & exponent) == exponent) x &= 0xFFFF;
  return x;
}
/* 1 where an element is NaN (Inf, -Inf), else 0. */
enum pair_class { PAIR_NAN, PAIR_PLUS, PAIR_MINUS };
WORD uint32_t pair_where(uint32_t x, const pair_class wanted) {
  float is[2];
  UNROLLED
  for (int h = 0; h < 2; h++) {
    float y = half_of(x, h != 0);
    is[h] = wanted == PAIR_NAN ? y != y : wanted == PAIR_PLUS ? y == INFINITY : y == -INFINITY;
  }
  return pack(is[0], is[1]);
}

#endif
