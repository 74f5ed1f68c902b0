/* SPDX-License-Identifier: MIT */
/* Matrix products of 16-bit elements between registers of one warp, with rows as memory has them. Included once for
 * each element type (ELEMENT).
 *
 * A block is 8 rows x 64 columns: lane (g, t) holds of row g the columns 8t .. 8t+7 in r[0..3] and 32+8t .. in r[4..7],
 * so that a row moves in 16-byte words, and the four lanes of a row touch whole sectors. Two facts make that enough:
 *   - the k index of a product may be permuted if both operands agree: registers 2s, 2s+1 of Q and of K are the k-step
 * s of Q K^T as they are;
 *   - register n of a block is an 8x8 matrix, and transposed (movmatrix) it is the operand B of n-tile n of P V: k =
 * the block's rows, columns 32(n/4) + 8(g/2) + 2(n%4) + g%2. Accumulators c0, c1 of that n-tile are then the columns
 * that register n of an output block holds. So nothing passes through shared memory. (Rejected: ldmatrix, which costs a
 * write, a barrier and a read for each byte; loading V a second time in another arrangement, whose traffic depends on
 * what L1 kept.) */
#ifndef ATTEND_CUDA_FRAGMENT_CUH
#define ATTEND_CUDA_FRAGMENT_CUH

#include "pair.cuh"

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

struct block {
  uint32_t r[8];
};

WORD int lane_row(void) { return (int)(threadIdx.x & 31) >> 2; }
WORD int lane_column(void) { return (int)(threadIdx.x & 3); }

/* C[16,8] += A[16,16] B[16,8] in f32. */
WORD void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  if (ELEMENT == TYPE_BF16)
    word_mma_bf16(c, a, b0, b1);
  else
    word_mma_f16(c, a, b0, b1);
}
WORD uint32_t pack(float lo, float hi) { return ELEMENT == TYPE_BF16 ? word_pack_bf16(lo, hi) : word_pack_f16(lo, hi); }
WORD float half_of(uint32_t x, const bool high) {
  if (ELEMENT == TYPE_BF16) return word_f32_from_bits(high ? x & 0xFFFF0000u : x << 16);
  return word_f32_from_f16(high ? x >> 16 : x & 0xFFFFu);
}

/* ---- Memory ----------------------------------------------------------------------------------------------------- */

/* `row`: the first of the 64 columns in this lane's row. Where the row does not exist, and beyond `columns`, zeros;
 * there nothing is read. */
WORD block block_load(const char *row, bool exists, int columns) {
  int t = lane_column();
  uint4 low = word_load_once_if(row + 16 * t, exists && 8 * t < columns);
  uint4 high = word_load_once_if(row + 64 + 16 * t, exists && 32 + 8 * t < columns);
  block x = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  return x;
}

/* The same for rows that other warps read too. */
WORD block block_load_again(const char *row, bool exists, int columns) {
  int t = lane_column();
  uint4 low = word_load_if(row + 16 * t, exists && 8 * t < columns);
  uint4 high = word_load_if(row + 64 + 16 * t, exists && 32 + 8 * t < columns);
  block x = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  return x;
}

WORD void block_store(char *row, bool exists, int columns, block x, const bool accumulate) {
  int t = lane_column();
  UNROLLED
  for (int half = 0; half < 2; half++) {
    if (!exists || 32 * half + 8 * t >= columns) continue;
    char *at = row + 64 * half + 16 * t;
    uint32_t *r = x.r + 4 * half;
    if (accumulate) {
      const uint32_t *old = (const uint32_t *)(const void *)at;
      for (int i = 0; i < 4; i++)
        r[i] = pack(half_of(old[i], false) + half_of(r[i], false), half_of(old[i], true) + half_of(r[i], true));
    }
    word_store_once(at, make_uint4(r[0], r[1], r[2], r[3]));
  }
}

/* ---- Products --------------------------------------------------------------------------------------------------- */

/* C[16,8] += rows of (top, bottom) x rows of `keys`, over 64 columns. */
WORD void block_dots(float c[4], const block &top, const block &bottom, const block &keys) {
  UNROLLED
  for (int s = 0; s < 4; s++) {
    uint32_t a[4] = {top.r[2 * s], bottom.r[2 * s], top.r[2 * s + 1], bottom.r[2 * s + 1]};
    multiply(c, a, keys.r[2 * s], keys.r[2 * s + 1]);
  }
}

WORD block block_transpose(const block &x) {
  block y;
  UNROLLED
  for (int n = 0; n < 8; n++) y.r[n] = word_transpose(x.r[n]);
  return y;
}

/* Operand A [16,16] transposed. */
WORD void transpose_a(uint32_t to[4], const uint32_t a[4]) {
  to[0] = word_transpose(a[0]);
  to[1] = word_transpose(a[2]);
  to[2] = word_transpose(a[1]);
  to[3] = word_transpose(a[3]);
}

/* Rows of a transposed block that hold a NaN or an Inf, as bits. */
WORD uint32_t block_bad_rows(const block &x) {
  const uint32_t exponent = ELEMENT == TYPE_BF16 ? 0x7F80 : 0x7C00;
  bool low = false, high = false;
  for (int n = 0; n < 8; n++) {
    low |= (x.r[n] & exponent) == exponent;
    high |= (x.r[n] >> 16 & exponent) == exponent;
  }
  uint32_t lows = word_ballot(low), highs = word_ballot(high), rows = 0;
  for (int t = 0; t < 4; t++) {
    if (lows & 0x11111111u << t) rows |= 1u << (2 * t);
    if (highs & 0x11111111u << t) rows |= 2u << (2 * t);
  }
  return rows;
}

/* Set those rows to 0. */
WORD void block_clear_rows(block &x, uint32_t rows) {
  int t = lane_column();
  uint32_t keep = (rows >> (2 * t) & 1 ? 0 : 0xFFFFu) | (rows >> (2 * t + 1) & 1 ? 0 : 0xFFFF0000u);
  for (int n = 0; n < 8; n++) x.r[n] &= keep;
}

/* Take rows that hold a NaN or an Inf out of a transposed block, and add their products to C here, element by element:
 * only where `allowed` (A's arrangement, 1 where row and k may meet). a0, a1: the half of A that multiplies this block.
 */
WORD void block_spare(float c[8][4], uint32_t a0, uint32_t a1, uint32_t allowed0, uint32_t allowed1, block &x) {
  uint32_t rows = block_bad_rows(x);
  int g = lane_row(), t = lane_column();
  for (int k = 0; k < 8; k++) {
    if (!(rows >> k & 1)) continue;
    int from = 4 * g + k / 2;
    float top = half_of(word_shuffle(a0, from) >> 16 * (k & 1), false);
    float bottom = half_of(word_shuffle(a1, from) >> 16 * (k & 1), false);
    bool top_sees = word_shuffle(allowed0, from) >> 16 * (k & 1) & 1;
    bool bottom_sees = word_shuffle(allowed1, from) >> 16 * (k & 1) & 1;
    UNROLLED
    for (int n = 0; n < 8; n++)
      for (int e = 0; e < 2; e++) {
        float y = half_of(word_shuffle(x.r[n], 4 * (2 * t + e) + k / 2) >> 16 * (k & 1), false);
        if (top_sees) c[n][e] += top * y;
        if (bottom_sees) c[n][2 + e] += bottom * y;
      }
  }
  block_clear_rows(x, rows);
}

/* C[16,64] += A[16,16] x the rows of (low, high), which are transposed. */
WORD void block_product(float c[8][4], const uint32_t a[4], const block &low, const block &high) {
  UNROLLED
  for (int n = 0; n < 8; n++) multiply(c[n], a, low.r[n], high.r[n]);
}

/* The same where pairs that may not meet hold NaN or Inf. */
WORD void block_product_careful(float c[8][4], const uint32_t a[4], const uint32_t allowed[4], block low, block high) {
  block_spare(c, a[0], a[1], allowed[0], allowed[1], low);
  block_spare(c, a[2], a[3], allowed[2], allowed[3], high);
  block_product(c, a, low, high);
}

/* From bits 2n + e (n-tile n, column 2t + e) of rows g and g + 8: 1 where they are set, arranged as operand A. */
WORD void allowed_pairs(uint32_t a[4], uint32_t top, uint32_t bottom) {
  a[0] = (top & 1) | (top >> 1 & 1) << 16;
  a[1] = (bottom & 1) | (bottom >> 1 & 1) << 16;
  a[2] = (top >> 2 & 1) | (top >> 3 & 1) << 16;
  a[3] = (bottom >> 2 & 1) | (bottom >> 3 & 1) << 16;
}

/* Does any lane hold a NaN? */
WORD bool block_any_nan(const float c[8][4]) {
  float sum = 0;
  UNROLLED
  for (int n = 0; n < 8; n++)
    for (int e = 0; e < 4; e++) sum += c[n][e];
  return word_any(sum != sum);
}

/* The rows g (bottom: g + 8) of C, times a factor of the row. */
WORD block block_of(const float c[8][4], const bool bottom, float factor) {
  block x;
  UNROLLED
  for (int n = 0; n < 8; n++) x.r[n] = pack(c[n][2 * bottom] * factor, c[n][2 * bottom + 1] * factor);
  return x;
}

WORD float quad_sum(float x) {
  x += word_shuffle_xor_f32(x, 1);
  return x + word_shuffle_xor_f32(x, 2);
}
WORD float quad_max(float x) {
  x = max_of(x, word_shuffle_xor_f32(x, 1));
  return max_of(x, word_shuffle_xor_f32(x, 2));
}

#endif
