/* SPDX-License-Identifier: MIT */
/* Elements, and the score of one (query, key) pair with everything that the formulas add to it. Included once for each
 * element type; the includer defines ELEMENT (an attend_type) and `real`, the type of sums. */
#ifndef ATTEND_CUDA_PAIR_CUH
#define ATTEND_CUDA_PAIR_CUH

#include "call.h"
#include "slice.cuh"

WORD real load_element(const char *data, int64_t at) {
  if (ELEMENT == TYPE_F64) return (real)((const double *)data)[at];
  return (real)slice_load_f32(data, at, ELEMENT);
}
WORD void store_element(char *data, int64_t at, attend_type type, real x) {
  if (type == TYPE_F64)
    ((double *)data)[at] = x;
  else if (type == TYPE_F32)
    ((float *)data)[at] = (float)x;
  else
    ((uint16_t *)data)[at] = (uint16_t)(type == TYPE_BF16 ? word_pack_bf16((float)x, 0) : word_pack_f16((float)x, 0));
}
WORD real load_any(const char *data, int64_t at, attend_type type) {
  return type == TYPE_F64 ? (real)((const double *)data)[at] : (real)slice_load_f32(data, at, type);
}
/* A gradient: x, or += x. */
WORD void put_element(const attend_problem &p, char *data, int64_t at, attend_type type, real x) {
  store_element(data, at, type, p.accumulate ? load_any(data, at, type) + x : x);
}

/* exp(x) for x <= 0 (or NaN). */
WORD real exp_of(real x) {
  if (ELEMENT == TYPE_F64) return (real)exp((double)x);
  return (real)word_exp2((float)x * 1.44269504f);
}

WORD real max_of(real a, real b) { return a > b ? a : b; }

/* One score on its way. */
struct pair_score {
  real raw, capped, biased, d_capped;
};
WORD pair_score score_of(const attend_problem &p, const attend_slice &s, int64_t i, int64_t j, real dot) {
  pair_score x;
  x.raw = x.capped = (real)p.scale * dot;
  x.d_capped = 1;
  if (p.softcap > 0) {
    real t = ELEMENT == TYPE_F64 ? (real)tanh((double)x.raw / p.softcap) : (real)tanhf((float)x.raw / (float)p.softcap);
    x.capped = (real)p.softcap * t;
    x.d_capped = 1 - t * t;
  }
  x.biased = x.capped;
  if (s.bias.data) x.biased += load_any(s.bias.data, i * s.bias.row + j * s.bias.col, p.layout[OPERAND_BIAS].type);
  if (s.slope != 0) {
    int64_t distance = i + s.off - j;
    x.biased -= (real)s.slope * (real)(distance < 0 ? -distance : distance);
  }
  return x;
}

/* May query i see key j, given that [lo, hi) of attend_visible_range holds j? */
WORD bool unmasked(const attend_problem &p, const attend_slice &s, int64_t i, int64_t j) {
  if (s.mask.data && !s.mask.data[i * s.mask.row + j * s.mask.col]) return false;
  return !s.bias.data ||
         load_any(s.bias.data, i * s.bias.row + j * s.bias.col, p.layout[OPERAND_BIAS].type) != (real)-INFINITY;
}

/* a, b of query i and keys j (even), j + 1: each times `scale`, or 0 where it is dropped. They share a word of a draw.
 */
WORD void drop_pair(real &a, real &b, real scale, const attend_problem &p, const attend_slice &s, int64_t i,
                    int64_t j) {
  int64_t block = 4 * (j >> 5) + (j >> 1 & 3);
  uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)i, (uint32_t)(i >> 32)}, word[4];
  attend_philox(counter, s.dropout_key, word);
  uint32_t draw = j & 16 ? (j & 8 ? word[3] : word[2]) : (j & 8 ? word[1] : word[0]);
  a *= (draw & 0xFFFF) >= p.dropout_threshold ? scale : 0;
  b *= draw >> 16 >= p.dropout_threshold ? scale : 0;
}

/* Write the score of pair (i, j) at the stage that the caller asked for. `exists`: j is a key of the sequence. */
WORD void return_score(const attend_problem &p, const attend_slice &s, int64_t i, int64_t j, bool exists, bool visible,
                       real dot) {
  real score = (real)-INFINITY;
  if (exists) {
    pair_score x = score_of(p, s, i, j, dot);
    if (p.scores_stage == ATTEND_SCORES_RAW)
      score = x.raw;
    else if (p.scores_stage == ATTEND_SCORES_SOFTCAP)
      score = x.capped;
    else if (visible)
      score = x.biased;
  }
  store_element(s.scores.data, i * s.scores.row + j * s.scores.col, p.layout[OPERAND_SCORES].type, score);
}

/* x at four neighbouring elements, the first of which is a multiple of four. */
WORD void store_four(char *data, int64_t at, const real x[4]) {
  if (ELEMENT == TYPE_F32 || ELEMENT == TYPE_F64) {
    struct alignas(4 * sizeof(real)) four {
      real x[4];
    } y = {{x[0], x[1], x[2], x[3]}};
    *(four *)(void *)(data + at * (int64_t)sizeof(real)) = y;
  } else {
    struct alignas(8) four {
      uint32_t x[2];
    } y;
    for (int c = 0; c < 2; c++)
      y.x[c] = ELEMENT == TYPE_BF16 ? word_pack_bf16((float)x[2 * c], (float)x[2 * c + 1])
                                    : word_pack_f16((float)x[2 * c], (float)x[2 * c + 1]);
    *(four *)(void *)(data + at * 2) = y;
  }
}

#endif
