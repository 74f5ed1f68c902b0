/* SPDX-License-Identifier: MIT */
/* What options do to the scores of backward in tiles. Mask and dropout come as bits of 32 keys to a word, which a block
 * works out for a stage at a time: each byte and each draw is looked at once, and keys that lie along rows of a
 * fragment cost no more than queries. Included once for each element type. */
#ifndef ATTEND_CUDA_GRADIENT_OPTIONS_CUH
#define ATTEND_CUDA_GRADIENT_OPTIONS_CUH

#include "fragment.cuh"

/* Of the pairs of a stage: bits[query * words + key / 32] */
struct gradient_bits {
  uint32_t *mask, *kept;
};

/* Reads what the mask says of queries i0 .. and keys j0 .. (32 of a word), four keys to a thread. */
WORD void gradient_mask_read(uint32_t bytes[8], const attend_matrix &mask, int q_len, int k_len, int i0,
                             const int queries, int j0, const int words, const int threads) {
  const int count = queries * words * 8 / threads;
  int first = (int)threadIdx.x / 8, column = j0 + 4 * ((int)threadIdx.x & 7);
  if (i0 + queries <= q_len && j0 + 32 * words <= k_len && mask.col == 1 &&
      !((mask.row | (int64_t)(uintptr_t)mask.data) & 3)) {
    UNROLLED
    for (int n = 0; n < count; n++) {
      int at = first + n * threads / 8;
      bytes[n] =
          *(const uint32_t *)(const void *)(mask.data + (i0 + at / words) * mask.row + column + 32 * (at % words));
    }
    return;
  }
  UNROLLED
  for (int n = 0; n < count; n++) {
    int at = first + n * threads / 8, i = i0 + at / words, j = column + 32 * (at % words);
    bytes[n] = 0;
    for (int e = 0; e < 4; e++)
      if (i < q_len && j + e < k_len)
        bytes[n] |= (uint32_t)(mask.data[i * mask.row + (j + e) * mask.col] != 0) << 8 * e;
  }
}

/* Which of those pairs the mask allows, and which dropout keeps. */
WORD void gradient_bits_of(const gradient_bits &bits, const uint32_t bytes[8], const attend_problem &p,
                           const attend_slice &s, int i0, const int queries, int j0, const int words,
                           const int threads) {
  if (s.mask.data) {
    int lane = (int)threadIdx.x & 7;
    UNROLLED
    for (int n = 0; n < queries * words * 8 / threads; n++) {
      uint32_t x = 0;
      UNROLLED
      for (int e = 0; e < 4; e++)
        if (bytes[n] & 0xFFu << 8 * e) x |= 1u << e;
      x <<= 4 * lane;
      x |= word_shuffle_xor(x, 1);
      x |= word_shuffle_xor(x, 2);
      x |= word_shuffle_xor(x, 4);
      if (lane == 0) bits.mask[((int)threadIdx.x + n * threads) / 8] = x;
    }
  }
  if (p.dropout_threshold) {
    int lane = (int)threadIdx.x & 3;
    UNROLLED
    for (int n = 0; n < queries * words * 4 / threads; n++) {
      int at = ((int)threadIdx.x + n * threads) / 4;
      uint32_t number = 4 * ((uint32_t)(j0 >> 5) + (uint32_t)(at % words)) + (uint32_t)lane, draw[4], x = 0;
      uint32_t counter[4] = {number, 0, (uint32_t)(i0 + at / words), 0};
      attend_philox(counter, s.dropout_key, draw);
      UNROLLED
      for (int e = 0; e < 4; e++) {
        if ((draw[e] & 0xFFFF) >= p.dropout_threshold) x |= 1u << 8 * e;
        if (draw[e] >> 16 >= p.dropout_threshold) x |= 2u << 8 * e;
      }
      x <<= 2 * lane;
      x |= word_shuffle_xor(x, 1);
      x |= word_shuffle_xor(x, 2);
      if (lane == 0) bits.kept[at] = x;
    }
  }
}

/* What a block works out of queries i0 .. and keys j0 .. for a stage. */
WORD void gradient_prepare(const gradient_bits &bits, const attend_problem &p, const attend_slice &s, int i0,
                           const int queries, int j0, const int words, const int threads) {
  uint32_t bytes[8];
  if (s.mask.data) gradient_mask_read(bytes, s.mask, (int)s.q_len, (int)s.k_len, i0, queries, j0, words, threads);
  gradient_bits_of(bits, bytes, p, s, i0, queries, j0, words, threads);
}

/* Those of a lane, bit 4n + e for element e of fragment n: `own` is the lane's first row in the block. */
WORD uint32_t gradient_lane_bits(const uint32_t *bits, const int count, int own, int at, const int words,
                                 const bool owns_keys) {
  int t = lane_column();
  uint32_t x = 0;
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 2; e++)
    if (owns_keys) {
      uint32_t y = bits[(at + 8 * n + 2 * t + e) * words + (own >> 5)] >> (own & 31);
      x |= (y & 1) << (4 * n + e) | (y >> 8 & 1) << (4 * n + 2 + e);
    } else
      x |= (bits[(own + 8 * e) * words + (at + 8 * n) / 32] >> ((at + 8 * n) % 32 + 2 * t) & 3) << (4 * n + 2 * e);
  return x;
}

/* Add the bias to 16 rows and 8 `count` columns. `full`: all pairs exist. Returns who sees whom. */
WORD uint32_t gradient_add_bias(float c[][4], const int count, uint32_t seen, const bool full, const attend_problem &p,
                                const attend_slice &s, int64_t i, int64_t j, const bool owns_keys) {
  attend_type type = p.layout[OPERAND_BIAS].type;
  int64_t along = owns_keys ? s.bias.row : s.bias.col, down = owns_keys ? s.bias.col : s.bias.row;
  const char *first = s.bias.data + slice_type_size(type) * (i * s.bias.row + j * s.bias.col);
  const float *reals = (const float *)(const void *)first;
  const uint16_t *halves = (const uint16_t *)(const void *)first;
  float y[8][4];
  if (!full) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      int64_t at = (8 * n + e % 2) * along + e / 2 * 8 * down;
      y[n][e] = 0;
      if (seen >> (4 * n + e) & 1) y[n][e] = type == TYPE_F32 ? reals[at] : half_of(halves[at], false);
    }
  } else if (type == TYPE_F32) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) y[n][e] = reals[(8 * n + e % 2) * along + e / 2 * 8 * down];
  } else if (!owns_keys && along == 1 && !(((int64_t)(uintptr_t)first | 2 * down) & 3)) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int h = 0; h < 2; h++) {
      uint32_t pair = *(const uint32_t *)(const void *)(halves + 8 * n + 8 * h * down);
      y[n][2 * h] = half_of(pair, false), y[n][2 * h + 1] = half_of(pair, true);
    }
  } else {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) y[n][e] = half_of(halves[(8 * n + e % 2) * along + e / 2 * 8 * down], false);
  }
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    c[n][e] = word_multiply_add(y[n][e], LOG2_E, c[n][e]);
    if (y[n][e] == -INFINITY) seen &= ~(1u << (4 * n + e));
  }
  return seen;
}

/* c: dot products of Q and K, d: of dO and V less their rows' delta, for 16 rows and 8 `count` columns. c becomes
 * scores in units of log 2, d what P multiplies in dS; `capped`: as the bias meets it. i, j: the lane's first element.
 * seen: the pairs that see each other, but for mask and bias; `full`: all. Returns who sees whom, but for the mask. */
WORD uint32_t gradient_add_options(float c[][4], float d[][4], const int count, uint32_t seen, const bool full,
                                   const attend_problem &p, const attend_slice &s, int64_t i, int64_t j,
                                   const bool capped, const bool owns_keys) {
  if (p.softcap > 0) {
    float cap = (float)p.softcap, inner = (float)p.scale / cap;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      float t = tanhf(c[n][e] * inner);
      c[n][e] = cap * LOG2_E * t;
      if (!capped) d[n][e] *= 1 - t * t;
    }
  } else {
    float unit = (float)p.scale * LOG2_E;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) c[n][e] *= unit;
  }
  if (s.slope != 0) {
    float slope = (float)s.slope * LOG2_E;
    int distance = (int)(i + s.off - j), along = owns_keys ? 1 : -1;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      int x = distance + along * (8 * n + e % 2 - e / 2 * 8);
      c[n][e] -= slope * (float)(x < 0 ? -x : x);
    }
  }
  return s.bias.data ? gradient_add_bias(c, count, seen, full, p, s, i, j, owns_keys) : seen;
}

#endif
