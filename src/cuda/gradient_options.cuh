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

/* Which of queries i0 .. and keys j0 .. (32 of a word) the mask allows, and which dropout keeps. */
WORD void gradient_bits_of(const gradient_bits &bits, const attend_problem &p, const attend_slice &s, int i0,
                           const int queries, int j0, const int words, const int threads) {
  if (s.mask.data) {
    int lane = (int)threadIdx.x & 7;
    UNROLLED_BY_4
    for (int n = 0; n < queries * words * 8 / threads; n++) {
      int at = ((int)threadIdx.x + n * threads) / 8, i = i0 + at / words, j = j0 + 32 * (at % words) + 4 * lane;
      const char *row = s.mask.data + i * s.mask.row + j * s.mask.col;
      uint32_t bytes = 0, x = 0;
      if (i < s.q_len && j + 4 <= s.k_len && s.mask.col == 1 && !((uintptr_t)row & 3))
        bytes = *(const uint32_t *)(const void *)row;
      else
        for (int e = 0; e < 4; e++)
          if (i < s.q_len && j + e < s.k_len) bytes |= (uint32_t)(row[e * s.mask.col] != 0) << 8 * e;
      UNROLLED
      for (int e = 0; e < 4; e++)
        if (bytes & 0xFFu << 8 * e) x |= 1u << (4 * lane + e);
      x |= word_shuffle_xor(x, 1);
      x |= word_shuffle_xor(x, 2);
      x |= word_shuffle_xor(x, 4);
      if (lane == 0) bits.mask[at] = x;
    }
  }
  if (p.dropout_threshold) {
    int lane = (int)threadIdx.x & 3;
    for (int n = 0; n < queries * words * 4 / threads; n++) {
      int at = ((int)threadIdx.x + n * threads) / 4;
      int64_t i = i0 + at / words, number = 4 * ((int64_t)(j0 >> 5) + at % words) + lane;
      uint32_t counter[4] = {(uint32_t)number, (uint32_t)(number >> 32), (uint32_t)i, (uint32_t)(i >> 32)}, draw[4];
      attend_philox(counter, s.dropout_key, draw);
      uint32_t x = 0;
      UNROLLED
      for (int e = 0; e < 4; e++) {
        if ((draw[e] & 0xFFFF) >= p.dropout_threshold) x |= 1u << (8 * e + 2 * lane);
        if (draw[e] >> 16 >= p.dropout_threshold) x |= 2u << (8 * e + 2 * lane);
      }
      x |= word_shuffle_xor(x, 1);
      x |= word_shuffle_xor(x, 2);
      if (lane == 0) bits.kept[at] = x;
    }
  }
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

/* What is added to the scores of one block of 16 rows and 8 `count` columns. */
WORD uint32_t gradient_add_bias(float c[][4], const int count, uint32_t seen, const attend_problem &p,
                                const attend_slice &s, int64_t i, int64_t j, const bool owns_keys) {
  attend_type type = p.layout[OPERAND_BIAS].type;
  int64_t along = owns_keys ? s.bias.row : s.bias.col, down = owns_keys ? s.bias.col : s.bias.row;
  const char *first = s.bias.data + slice_type_size(type) * (i * s.bias.row + j * s.bias.col);
  float y[8][4];
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) y[n][e] = 0;
  if (type == TYPE_F32) {
    const float *at = (const float *)(const void *)first;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (seen >> (4 * n + e) & 1) y[n][e] = at[(8 * n + e % 2) * along + e / 2 * 8 * down];
  } else if (!owns_keys && along == 1 && !((uintptr_t)first & 3) && !(down & 1) && seen == (1ull << 4 * count) - 1) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int h = 0; h < 2; h++) {
      uint32_t pair = *(const uint32_t *)(const void *)(first + 2 * (8 * n + 8 * h * down));
      y[n][2 * h] = half_of(pair, false), y[n][2 * h + 1] = half_of(pair, true);
    }
  } else {
    const uint16_t *at = (const uint16_t *)(const void *)first;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (seen >> (4 * n + e) & 1) y[n][e] = half_of(at[(8 * n + e % 2) * along + e / 2 * 8 * down], false);
  }
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    c[n][e] = word_multiply_add(y[n][e], LOG2_E, c[n][e]);
    if (y[n][e] == -INFINITY) seen &= ~(1u << (4 * n + e));
  }
  return seen;
}

/* c: dot products of 16 rows and 8 `count` columns; they become scores in units of log 2. d_capped: derivatives of
 * softcap, if there is one. i, j: the lane's first element. seen: the pairs that see each other, but for mask and bias.
 * Returns those that do. */
WORD uint32_t gradient_add_options(float c[][4], float d_capped[][4], const int count, uint32_t seen,
                                   const attend_problem &p, const attend_slice &s, int64_t i, int64_t j,
                                   const bool owns_keys) {
  float unit = (float)p.scale * LOG2_E;
  if (p.softcap > 0) {
    float cap = (float)p.softcap, inner = (float)p.scale / cap;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      float t = tanhf(c[n][e] * inner);
      c[n][e] = cap * LOG2_E * t, d_capped[n][e] = 1 - t * t;
    }
  } else {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) c[n][e] *= unit, d_capped[n][e] = 1;
  }
  if (s.slope != 0) {
    float slope = (float)s.slope * LOG2_E;
    int distance = (int)(i + s.off - j), along = owns_keys ? 1 : -1;
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) {
      int d = distance + along * (8 * n + e % 2 - e / 2 * 8);
      c[n][e] -= slope * (float)(d < 0 ? -d : d);
    }
  }
  return s.bias.data ? gradient_add_bias(c, count, seen, p, s, i, j, owns_keys) : seen;
}

/* c: scores in units of log 2, d: products of dO and V. They become P keep (not yet times 1/(1-dropout)) and dS, 0
 * where not seen. value_of: lse[] and delta[] are of columns 8n + e % 2, or of rows e / 2. */
WORD void gradient_finish(float c[][4], float d[][4], const float *lse, const float *delta, const float d_capped[][4],
                          const int count, uint32_t seen, uint32_t kept, const attend_problem &p, const bool capped,
                          const bool owns_keys) {
  if (p.dropout_threshold) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) d[n][e] = kept >> (4 * n + e) & 1 ? d[n][e] * (float)p.dropout_scale : 0;
  }
  UNROLLED
  for (int n = 0; n < count; n++) UNROLLED
  for (int e = 0; e < 4; e++) {
    int value = owns_keys ? 8 * n + e % 2 : e / 2;
    bool sees = seen >> (4 * n + e) & 1;
    c[n][e] = sees ? word_exp2(c[n][e] - lse[value]) : 0;
    d[n][e] = sees ? c[n][e] * (d[n][e] - delta[value]) : 0;
  }
  if (p.softcap > 0 && !capped) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++) d[n][e] *= d_capped[n][e];
  }
  if (p.dropout_threshold) {
    UNROLLED
    for (int n = 0; n < count; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!(kept >> (4 * n + e) & 1)) c[n][e] = 0;
  }
}

#endif
