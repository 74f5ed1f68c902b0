/* SPDX-License-Identifier: MIT */
/* Forward on short sequences: one tile. */
#ifndef ATTEND_CUDA_SHORT_FORWARD_CUH
#define ATTEND_CUDA_SHORT_FORWARD_CUH

#include "short.cuh"

WORD void short_forward_tile(const cuda_call &call, uint32_t number, const short_kind kind) {
  const attend_problem &p = call.problem;
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim;
  const int chunks = kind.general ? (head_dim + 63) / 64 : 1, v_chunks = kind.general ? (v_dim + 63) / 64 : 1;
  uint32_t again = 0; /* chunks of the output that came out NaN */
  for (bool careful = false;; careful = true) {
    short_sequence s[2];
    for (int x = 0; x < kind.pairs; x++) s[x] = short_slice(call, number * kind.pairs + x, false, 0, kind.general);
    block q[4], k[4], v[4];
    float c[2][4][4] = {}, factor[2][2], lse[2][2];
    uint32_t a[2][2][4], seen[2][2];
    short_load(q, s, SHORT_Q, 0, head_dim, kind);
    short_load(k, s, SHORT_K, 0, head_dim, kind);
    short_load(v, s, SHORT_V, 0, v_dim, kind);
    for (int chunk = 0; chunk < chunks; chunk++) {
      if (chunk) {
        short_load(q, s, SHORT_Q, chunk, head_dim, kind);
        short_load(k, s, SHORT_K, chunk, head_dim, kind);
      }
      UNROLLED
      for (int m = 0; m < short_tiles(kind); m++) UNROLLED
      for (int n = 0; n < kind.groups; n++) block_dots(c[m][n], q[2 * m], q[2 * m + 1], k[n]);
    }
    UNROLLED
    for (int m = 0; m < short_tiles(kind); m++) {
      short_scores row[2];
      UNROLLED
      for (int half = 0; half < 2; half++) {
        const short_sequence &own = s[short_pair(half, kind)];
        float shift;
        row[half] = short_finish(c[m], m, half, own, p, kind);
        float sum = short_softmax(row[half], own, shift, kind);
        seen[m][half] = row[half].seen;
        factor[m][half] = sum == 0 ? 0 : word_reciprocal(sum);
        if (!kind.general) {
          UNROLLED
          for (int n = 0; n < kind.groups; n++) UNROLLED
          for (int e = 0; e < 2; e++) row[half].x[n][e] *= factor[m][half];
          factor[m][half] = 1;
        }
        lse[m][half] = sum == 0 ? -INFINITY : (shift + word_log2(sum)) * LN_2;
        if (kind.general && p.dropout_threshold) {
          uint32_t keep = short_keep(p, own, m, half, kind);
          factor[m][half] *= (float)p.dropout_scale;
          UNROLLED
          for (int n = 0; n < kind.groups; n++)
            for (int e = 0; e < 2; e++)
              if (!(keep >> (2 * n + e) & 1)) row[half].x[n][e] *= 0;
        }
      }
      UNROLLED
      for (int x = 0; x < short_tiles(kind); x++) short_operand(a[m][x], row[0], row[1], x);
    }
    for (int chunk = 0; chunk < v_chunks; chunk++) {
      if (careful && !(again >> chunk & 1)) continue;
      if (chunk) short_load(v, s, SHORT_V, chunk, v_dim, kind);
      float sum[2][8][4] = {};
      UNROLLED
      for (int x = 0; x < short_tiles(kind); x++) {
        block low = block_transpose(v[2 * x]), high = block_transpose(v[2 * x + 1]);
        UNROLLED
        for (int m = 0; m < short_tiles(kind); m++)
          if (careful) {
            uint32_t allowed[4];
            short_allowed(allowed, seen[m][0], seen[m][1], x);
            block_product_careful(sum[m], a[m][x], allowed, low, high);
          } else
            block_product(sum[m], a[m][x], low, high);
      }
      bool nan = false;
      UNROLLED
      for (int m = 0; m < short_tiles(kind); m++) nan |= block_any_nan(sum[m]);
      if (nan && !careful) {
        again |= 1u << chunk;
        continue;
      }
      UNROLLED
      for (int m = 0; m < short_tiles(kind); m++)
        short_store(sum[m], s, SHORT_OUT, m, chunk, v_dim, factor[m], false, kind);
    }
    UNROLLED
    for (int m = 0; m < short_tiles(kind); m++) UNROLLED
    for (int half = 0; half < 2; half++) {
      const short_sequence &own = s[short_pair(half, kind)];
      int i = short_row(2 * m + half, kind);
      if (lane_column() == 0 && i < (int)own.q_len) short_store_lse(own, i, lse[m][half]);
    }
    if (careful || !again) break;
  }
}

WORD void short_forward(const cuda_call &call, const short_kind kind) {
  uint32_t number = blockIdx.x * SHORT_WARPS + (threadIdx.x >> 5);
  if (number * kind.pairs < (uint32_t)(call.problem.batch * call.problem.heads)) short_forward_tile(call, number, kind);
}

#endif
