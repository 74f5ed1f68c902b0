/* SPDX-License-Identifier: MIT */
/* Short sequences (at most 32 queries and keys), f16 and bf16: what forward and backward share.
 *
 * The floor is memory: a pair (b, h) of N = 5, D = 64 moves 2560 bytes forward for 3200 multiply-adds. So a warp owns a
 * tile of 16, 24 or 32 rows, all of it in registers; with at most 8 queries and keys a tile holds two pairs, whose
 * cross products are computed and hidden. A tile whose product came out NaN is done again, carefully. */
#ifndef ATTEND_CUDA_SHORT_CUH
#define ATTEND_CUDA_SHORT_CUH

#include "fragment.cuh"
#include "short.h"
#include "short_slice.cuh"

/* What an entry point fixes: groups of 8 rows in a tile (2, 3, 4), pairs in it (1, 2), and whether all options are
 * there. Passed as constants to always-inline bodies. */
struct short_kind {
  int groups, pairs;
  bool general;
};
WORD int short_tiles(const short_kind kind) { return (kind.groups + 1) / 2; } /* of 16 rows */

/* Which pair of the tile rows 8n .. 8n+7 belong to, and this lane's row of them within it. */
WORD int short_pair(int n, const short_kind kind) { return kind.pairs == 2 ? n : 0; }
WORD int short_row(int n, const short_kind kind) { return (kind.pairs == 2 ? 0 : 8 * n) + lane_row(); }

/* Blocks of all rows of the tile, 64 columns from column 64 * chunk on, of one matrix: `matrix(slice)` says which. */
enum short_operand_id { SHORT_Q, SHORT_K, SHORT_V, SHORT_D_OUT, SHORT_OUT, SHORT_D_Q, SHORT_D_K, SHORT_D_V };
WORD const attend_matrix &short_select(const attend_slice &s, const short_operand_id m) {
  return m == SHORT_Q     ? s.q
         : m == SHORT_K   ? s.k
         : m == SHORT_V   ? s.v
         : m == SHORT_OUT ? s.out
         : m == SHORT_D_Q ? s.d_q
         : m == SHORT_D_K ? s.d_k
         : m == SHORT_D_V ? s.d_v
                          : s.d_out;
}
WORD void short_load(block x[4], const short_sequence s[2], const short_operand_id which, int chunk, int columns,
                     const short_kind kind) {
  bool keys = which == SHORT_K || which == SHORT_V;
  UNROLLED
  for (int n = 0; n < 2 * short_tiles(kind); n++) {
    if (n >= kind.groups) {
      x[n] = {};
      continue;
    }
    const short_sequence &own = s[short_pair(n, kind)];
    const attend_matrix &m = short_select(own, which);
    int row = short_row(n, kind);
    x[n] = block_load(m.data + 2 * ((int64_t)row * m.row + 64 * chunk), row < (int)(keys ? own.k_len : own.q_len),
                      columns - 64 * chunk);
  }
}
/* The rows 16m .. 16m+15 of a product. */
WORD void short_store(const float c[8][4], const short_sequence s[2], const short_operand_id which, int m,
                      int64_t chunk, int64_t columns, const float factor[2], bool accumulate, const short_kind kind) {
  bool keys = which == SHORT_D_K || which == SHORT_D_V;
  UNROLLED
  for (int half = 0; half < 2; half++) {
    if (2 * m + half >= kind.groups) continue;
    const short_sequence &own = s[short_pair(half, kind)];
    const attend_matrix &to = short_select(own, which);
    int row = short_row(2 * m + half, kind);
    block x = block_of(c, half, factor[half]);
    bool exists = to.data && row < (int)(keys ? own.key_rows : own.q_len);
    char *at = to.data + 2 * ((int64_t)row * to.row + 64 * chunk);
    if (kind.general && accumulate)
      block_store(at, exists, columns - 64 * chunk, x, true);
    else
      block_store(at, exists, columns - 64 * chunk, x, false);
  }
}

/* The scores of one query: those of this lane's keys. key(n, e) = 8n + 2t + e, or 2t + e where pairs share a tile. */
struct short_scores {
  float x[4][2];        /* scores in units of log 2, then weights */
  float d_capped[4][2]; /* general */
  uint32_t seen;        /* bit 2n + e: the query may see the key */
};

/* Scores of row (m, half) from its dot products. */
WORD short_scores short_finish(const float c[4][4], int m, const int half, const attend_slice &s,
                               const attend_problem &p, const short_kind kind) {
  short_scores r;
  int i = short_row(2 * m + half, kind);
  int64_t first = 0, last = 0;
  if (kind.general) {
    if (i < s.q_len) attend_visible_range(&p, &s, i, &first, &last);
  } else if (i < (int)s.q_len)
    last = p.causal && i + (int)s.off + 1 < (int)s.k_len ? i + (int)s.off + 1 : (int)s.k_len;
  float unit = (float)p.scale * LOG2_E;
  r.seen = 0;
  r.x[3][0] = r.x[3][1] = 0; /* absent where a tile has three groups of rows */
  UNROLLED
  for (int n = 0; n < kind.groups; n++) UNROLLED
  for (int e = 0; e < 2; e++) {
    r.x[n][e] = -INFINITY;
    r.d_capped[n][e] = 1;
    if (kind.pairs == 2 && n != half) continue; /* the other pair's keys */
    int j = (kind.pairs == 2 ? 0 : 8 * n) + 2 * lane_column() + e;
    bool seen = j < (int)last;
    if (kind.general) seen = seen && j >= (int)first && unmasked(p, s, i, j);
    if (seen) r.seen |= 1u << (2 * n + e);
    float dot = c[n][2 * half + e];
    if (!kind.general)
      r.x[n][e] = seen ? dot * unit : -INFINITY;
    else if (seen) {
      pair_score score = score_of(p, s, i, j, dot);
      r.x[n][e] = score.biased * LOG2_E;
      r.d_capped[n][e] = score.d_capped;
    }
  }
  return r;
}

/* Softmax of a row, not divided by its sum: weights into x. Returns the sum; `shift` is what was subtracted. */
WORD float short_softmax(short_scores &r, const attend_slice &s, float &shift, const short_kind kind) {
  float most = kind.general ? (float)s.sink * LOG2_E : -INFINITY, sum = 0;
  float sink = most;
  UNROLLED
  for (int n = 0; n < kind.groups; n++) most = max_of(max_of(r.x[n][0], r.x[n][1]), most);
  most = quad_max(most);
  shift = most == -INFINITY ? 0 : most;
  UNROLLED
  for (int n = 0; n < kind.groups; n++) UNROLLED
  for (int e = 0; e < 2; e++) sum += r.x[n][e] = word_exp2(r.x[n][e] - shift);
  sum = quad_sum(sum);
  return kind.general ? sum + word_exp2(sink - shift) : sum;
}

/* keep(...) as bits like `seen`: one draw serves the 32 keys of a row, of which this lane has those of one counter. */
WORD uint32_t short_keep(const attend_problem &p, const attend_slice &s, int m, const int half, const short_kind kind) {
  uint32_t counter[4] = {(uint32_t)lane_column(), 0, (uint32_t)short_row(2 * m + half, kind), 0}, word[4], keep = 0;
  attend_philox(counter, s.dropout_key, word);
  UNROLLED
  for (int n = 0; n < kind.groups; n++) {
    uint32_t draw = word[kind.pairs == 2 ? 0 : n];
    if ((draw & 0xFFFF) >= p.dropout_threshold) keep |= 1u << (2 * n);
    if (draw >> 16 >= p.dropout_threshold) keep |= 2u << (2 * n);
  }
  return keep;
}

/* Keys 16k .. 16k+15 of two rows as operand A; and 1 where they are seen, in the same arrangement. */
WORD void short_operand(uint32_t a[4], const short_scores &top, const short_scores &bottom, int k) {
  a[0] = pack(top.x[2 * k][0], top.x[2 * k][1]);
  a[1] = pack(bottom.x[2 * k][0], bottom.x[2 * k][1]);
  a[2] = pack(top.x[2 * k + 1][0], top.x[2 * k + 1][1]);
  a[3] = pack(bottom.x[2 * k + 1][0], bottom.x[2 * k + 1][1]);
}
WORD void short_allowed(uint32_t a[4], uint32_t top, uint32_t bottom, int k) {
  allowed_pairs(a, top >> 4 * k, bottom >> 4 * k);
}

#endif
