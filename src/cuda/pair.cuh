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

#endif
