/* SPDX-License-Identifier: MIT */
/* What the math back-end does between the products of cuBLASLt: packs the operands, turns scores into probabilities
 * and into gradients of scores, and writes what the products left as the caller's tensors.
 *
 * A product over hidden pairs multiplies what they hold by 0, and NaN by 0 is NaN. So the right-hand sides of P V, dS
 * K, P^T dO and dS^T Q are packed with 0 in place of NaN and Inf; finishing then adds the terms that were left out, of
 * those pairs that do see each other. A hidden value does not change a bit of a row's result. */
#include "product.h"

struct alignas(4 * sizeof(real)) product_reals {
  real x[4];
};

/* ---- The chunk ----------------------------------------------------------------------------------------------------
 */

WORD attend_slice product_slice(const cuda_call &call, int64_t group, int64_t member) {
  const attend_problem &p = call.problem;
  int64_t at = call.product.group + group, key_rows;
  return slice_make(p, call.operands, at / p.kv_heads,
                    at % p.kv_heads * (p.heads / p.kv_heads) + call.product.member + member, key_rows);
}

WORD bool product_of_keys(operand_id id) {
  return id == OPERAND_K || id == OPERAND_V || id == OPERAND_D_K || id == OPERAND_D_V;
}
WORD bool product_of_head_dim(operand_id id) {
  return id == OPERAND_Q || id == OPERAND_K || id == OPERAND_D_Q || id == OPERAND_D_K;
}

WORD attend_matrix product_matrix(const attend_slice &s, operand_id id) {
  switch (id) {
  case OPERAND_Q:
    return s.q;
  case OPERAND_K:
    return s.k;
  case OPERAND_V:
    return s.v;
  case OPERAND_D_OUT:
    return s.d_out;
  case OPERAND_D_Q:
    return s.d_q;
  case OPERAND_D_K:
    return s.d_k;
  case OPERAND_D_V:
    return s.d_v;
  default:
    return s.out;
  }
}

/* Where it says whether that operand of a group holds a NaN or an Inf. */
WORD int *product_infinite(const product_step &m, operand_id id, int64_t group) {
  int which = id == OPERAND_Q ? 0 : id == OPERAND_K ? 1 : id == OPERAND_V ? 2 : 3;
  return m.infinite + 4 * (m.group + group) + which;
}
WORD void product_clear(const cuda_call &call) {
  int64_t count = 4 * call.problem.batch * call.problem.kv_heads;
  for (int64_t n = (int64_t)blockIdx.x * PRODUCT_THREADS + threadIdx.x; n < count;
       n += (int64_t)gridDim.x * PRODUCT_THREADS)
    call.product.infinite[n] = 0;
}

WORD bool product_finite(real x) { return x - x == 0; }

/* May query i see key j? [first, last) is its visible range. */
WORD bool product_sees(const attend_problem &p, const attend_slice &s, int64_t i, int64_t j, int64_t first,
                       int64_t last) {
  return j >= first && j < last && unmasked(p, s, i, j);
}

WORD real product_load_lse(const attend_problem &p, const attend_slice &s, int64_t i) {
  return load_any(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type);
}

WORD int64_t product_tiles(int64_t rows, int64_t tile) { return (rows + tile - 1) / tile; }

/* ---- Packing ------------------------------------------------------------------------------------------------------
 */

WORD void product_pack_operand(const cuda_call &call, operand_id id) {
  const attend_problem &p = call.problem;
  const product_step &m = call.product;
  const bool of_keys = product_of_keys(id), finite = m.finite >> id & 1;
  int64_t rows = of_keys ? m.keys : m.queries, length = of_keys ? p.k_len : p.q_len, members = of_keys ? 1 : m.members,
          width = product_of_head_dim(id) ? m.head_dim : m.v_dim,
          columns = product_of_head_dim(id) ? p.head_dim : p.v_dim;
  char *to = id == OPERAND_Q ? m.q : id == OPERAND_K ? m.k : id == OPERAND_V ? m.v : m.d_out;
  int64_t tiles = product_tiles(rows, PRODUCT_PACKED);
  for (int64_t item = blockIdx.x; item < m.groups * members * tiles; item += gridDim.x) {
    int64_t unit = item / tiles, first = item % tiles * PRODUCT_PACKED, group = unit / members;
    attend_slice s = product_slice(call, group, unit % members);
    attend_matrix x = product_matrix(s, id);
    bool infinite = false;
    for (int64_t e = 4 * (int64_t)threadIdx.x; e < PRODUCT_PACKED * width; e += 4 * PRODUCT_THREADS) {
      int64_t row = first + (uint32_t)e / (uint32_t)width, column = (uint32_t)e % (uint32_t)width;
      if (row >= rows) break;
      real value[4];
      UNROLLED
      for (int c = 0; c < 4; c++) {
        bool exists = row < length && column + c < columns;
        value[c] = exists ? load_element(x.data, row * x.row + (column + c) * x.col) : 0;
        if (finite && !product_finite(value[c])) infinite = true, value[c] = 0;
      }
      store_four(to, (unit * rows + row) * width + column, value);
    }
    if (infinite) *product_infinite(m, id, group) = 1;
  }
}

WORD void product_pack(const cuda_call &call) {
  for (int id = OPERAND_Q; id <= OPERAND_D_OUT; id++)
    if (call.product.operands >> id & 1) product_pack_operand(call, (operand_id)id);
}

/* ---- Scores -------------------------------------------------------------------------------------------------------
 */

/* The block's sum, or maximum, in a fixed order. */
WORD real product_reduce(real x, const bool maximum, real *part) {
  const int warps = PRODUCT_THREADS / 32;
  for (int lanes = 16; lanes; lanes /= 2) {
    real other = shuffle_xor(x, lanes);
    x = maximum ? max_of(x, other) : x + other;
  }
  word_sync_block(); /* until the last reduction has been read */
  if ((threadIdx.x & 31) == 0) part[threadIdx.x / 32] = x;
  word_sync_block();
  x = part[0];
  for (int w = 1; w < warps; w++) x = maximum ? max_of(x, part[w]) : x + part[w];
  return x;
}

/* What the product says of query i and keys j .. j + 3 becomes their scores: -inf where the query may not see the key.
 * d_capped, if given: what the score's gradient is multiplied by. `general`: with softcap, bias, ALiBi, mask, dropout
 * or scores that a caller asked for, which are written. Returns who is seen, a bit for each. */
WORD uint32_t product_scores(real x[4], real *d_capped, const attend_problem &p, const attend_slice &s, int64_t i,
                             int64_t j, int64_t first, int64_t last, const bool general) {
  bool all = j >= first && j + 4 <= last;
  uint32_t seen = 0;
  UNROLLED
  for (int c = 0; c < 4; c++) {
    bool sees = all || (j + c >= first && j + c < last);
    real score = (real)p.scale * x[c];
    if (d_capped) d_capped[c] = 1;
    if (general) {
      sees = sees && unmasked(p, s, i, j + c);
      if (s.scores.data && i < p.q_len && j + c < p.k_len) return_score(p, s, i, j + c, j + c < s.k_len, sees, x[c]);
      if (sees) {
        pair_score y = score_of(p, s, i, j + c, x[c]);
        score = y.biased;
        if (d_capped) d_capped[c] = y.d_capped;
      }
    }
    x[c] = sees ? score : (real)-INFINITY;
    if (sees) seen |= 1u << c;
  }
  return seen;
}

/* Of query i and keys j .. j + 3, where x are numerators of the row's probabilities. */
WORD void product_put_probs(const cuda_call &call, const attend_slice &s, int64_t pair, int64_t i, int64_t j, real x[4],
                            real total, int64_t first, int64_t last, const bool general) {
  const attend_problem &p = call.problem;
  const product_step &m = call.product;
  real scale = total == 0 ? 0 : 1 / total;
  UNROLLED
  for (int c = 0; c < 4; c++) {
    x[c] *= scale;
    if (scale != scale && !product_sees(p, s, i, j + c, first, last)) x[c] = 0;
    if (s.probs.data && i < p.q_len && j + c < p.k_len)
      store_element(s.probs.data, i * s.probs.row + (j + c) * s.probs.col, p.layout[OPERAND_PROBS].type, x[c]);
  }
  if (general && p.dropout_threshold)
    for (int c = 0; c < 4; c += 2) drop_pair(x[c], x[c + 1], 1, p, s, i, j + c);
  store_four(m.probs, (pair * m.queries + i) * m.keys + j, x);
}

WORD void product_probs_row(const cuda_call &call, const attend_slice &s, int64_t pair, int64_t i, real *part,
                            const bool general) {
  const attend_problem &p = call.problem;
  const product_step &m = call.product;
  const int64_t mine = 4 * (int64_t)threadIdx.x, step = 4 * PRODUCT_THREADS;
  real *row = (real *)m.scores + (pair * m.queries + i) * m.keys, top = (real)-INFINITY, total = 0;
  int64_t first = 0, last = 0;
  if (i < s.q_len) {
    attend_visible_range(&p, &s, i, &first, &last);
    top = (real)s.sink;
  }
  product_reals kept[PRODUCT_KEPT];
  UNROLLED
  for (int n = 0; n < PRODUCT_KEPT; n++) {
    int64_t j = mine + n * step;
    if (j >= m.keys) continue;
    kept[n] = *(const product_reals *)(const void *)(row + j);
    product_scores(kept[n].x, NULL, p, s, i, j, first, last, general);
    for (int c = 0; c < 4; c++) top = max_of(kept[n].x[c], top);
  }
  for (int64_t j = mine + PRODUCT_KEPT * step; j < m.keys; j += step) {
    product_reals x = *(const product_reals *)(const void *)(row + j);
    product_scores(x.x, NULL, p, s, i, j, first, last, general);
    for (int c = 0; c < 4; c++) top = max_of(x.x[c], top);
    *(product_reals *)(void *)(row + j) = x;
  }
  top = product_reduce(top, true, part);
  real shift = top == (real)-INFINITY ? 0 : top;
  UNROLLED
  for (int n = 0; n < PRODUCT_KEPT; n++)
    if (mine + n * step < m.keys)
      for (int c = 0; c < 4; c++) total += kept[n].x[c] = exp_of(kept[n].x[c] - shift);
  for (int64_t j = mine + PRODUCT_KEPT * step; j < m.keys; j += step)
    for (int c = 0; c < 4; c++) total += row[j + c] = exp_of(row[j + c] - shift);
  total = product_reduce(total, false, part);
  if (i < s.q_len && s.sink > -INFINITY) total += exp_of((real)s.sink - shift);
  UNROLLED
  for (int n = 0; n < PRODUCT_KEPT; n++)
    if (mine + n * step < m.keys)
      product_put_probs(call, s, pair, i, mine + n * step, kept[n].x, total, first, last, general);
  for (int64_t j = mine + PRODUCT_KEPT * step; j < m.keys; j += step) {
    product_reals x = *(const product_reals *)(const void *)(row + j);
    product_put_probs(call, s, pair, i, j, x.x, total, first, last, general);
  }
  if (s.lse && i < s.q_len && threadIdx.x == 0) {
    real lse = top + (ELEMENT == TYPE_F64 ? (real)log((double)total) : (real)logf((float)total));
    store_element(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type, total == 0 ? (real)-INFINITY : lse);
  }
}

WORD void product_probs(const cuda_call &call, const bool general) {
  __shared__ real part[PRODUCT_THREADS / 32];
  const product_step &m = call.product;
  int64_t tiles = product_tiles(m.queries, PRODUCT_ROWS);
  for (int64_t item = blockIdx.x; item < m.groups * m.members * tiles; item += gridDim.x) {
    int64_t pair = item / tiles, first = item % tiles * PRODUCT_ROWS;
    attend_slice s = product_slice(call, pair / m.members, pair % m.members);
    for (int64_t i = first; i < first + PRODUCT_ROWS && i < m.queries; i++)
      product_probs_row(call, s, pair, i, part, general);
  }
}

/* Backward: P and dS as in efficient_backward.cuh. P is without 1 / (1 - dropout), dS without scale: finishing has
 * them, so that neither leaves the range of f16. */
WORD void product_gradients(const cuda_call &call, const bool general) {
  const attend_problem &p = call.problem;
  const product_step &m = call.product;
  int64_t tiles = product_tiles(m.queries, PRODUCT_ROWS);
  for (int64_t item = blockIdx.x; item < m.groups * m.members * tiles; item += gridDim.x) {
    int64_t pair = item / tiles, first_row = item % tiles * PRODUCT_ROWS;
    attend_slice s = product_slice(call, pair / m.members, pair % m.members);
    for (int64_t i = first_row; i < first_row + PRODUCT_ROWS && i < m.queries; i++) {
      int64_t first = 0, last = 0, at = (pair * m.queries + i) * m.keys;
      real lse = (real)-INFINITY, delta = 0;
      if (i < s.q_len) {
        attend_visible_range(&p, &s, i, &first, &last);
        lse = product_load_lse(p, s, i), delta = delta_row(call, s)[i];
      }
      if (lse == (real)-INFINITY) last = first;
      for (int64_t j = 4 * (int64_t)threadIdx.x; j < m.keys; j += 4 * PRODUCT_THREADS) {
        product_reals x = *(const product_reals *)(const void *)((const real *)m.scores + at + j);
        product_reals d = *(const product_reals *)(const void *)((const real *)m.d_probs + at + j);
        real keep[4] = {1, 1, 1, 1};
        if (general && p.dropout_threshold)
          for (int c = 0; c < 4; c += 2) drop_pair(keep[c], keep[c + 1], 1, p, s, i, j + c);
        real d_capped[4];
        uint32_t seen = product_scores(x.x, d_capped, p, s, i, j, first, last, general);
        UNROLLED
        for (int c = 0; c < 4; c++) {
          bool sees = seen >> c & 1;
          real prob = sees ? exp_of(x.x[c] - lse) : 0, d_prob = keep[c] * (real)p.dropout_scale * d.x[c];
          x.x[c] = keep[c] * prob;
          d.x[c] = sees ? prob * (d_prob - delta) * d_capped[c] : 0;
        }
        store_four(m.probs, at + j, x.x);
        store_four(m.d_scores, at + j, d.x);
      }
    }
  }
}

/* ---- Finishing ----------------------------------------------------------------------------------------------------
 */

/* The terms of NaN and Inf in row `row`, column `column` of the product: those of one head's queries where the row is a
 * key, else of its keys. x: the right-hand side. */
WORD real product_left_out(const cuda_call &call, const attend_slice &s, const attend_matrix &x, const char *weights,
                           int64_t row, int64_t column, const bool of_keys) {
  const attend_problem &p = call.problem;
  real sum = 0;
  int64_t first, last, end = of_keys ? s.q_len : s.k_len;
  for (int64_t at = 0; at < end; at++) {
    int64_t i = of_keys ? at : row, j = of_keys ? row : at;
    real y = load_element(x.data, at * x.row + column * x.col);
    if (product_finite(y)) continue;
    attend_visible_range(&p, &s, i, &first, &last);
    if (product_sees(p, s, i, j, first, last) &&
        (p.direction == ATTEND_FORWARD || product_load_lse(p, s, i) != (real)-INFINITY))
      sum += load_element(weights, i * call.product.keys + j) * y;
  }
  return sum;
}

WORD void product_finish_operand(const cuda_call &call, operand_id id) {
  const attend_problem &p = call.problem;
  const product_step &m = call.product;
  const operand_id other = id == OPERAND_OUT   ? OPERAND_V
                           : id == OPERAND_D_Q ? OPERAND_K
                           : id == OPERAND_D_K ? OPERAND_Q
                                               : OPERAND_D_OUT;
  const bool of_keys = product_of_keys(id), of_values = id == OPERAND_OUT || id == OPERAND_D_V;
  real *sums = (real *)(id == OPERAND_D_K ? m.k_sums : id == OPERAND_D_V ? m.v_sums : m.sums);
  const char *weights = of_values ? m.probs : m.d_scores;
  int64_t rows = of_keys ? m.keys : m.queries, length = of_keys ? p.k_len : p.q_len, members = of_keys ? 1 : m.members,
          width = of_values ? m.v_dim : m.head_dim, columns = of_values ? p.v_dim : p.head_dim,
          matrix = m.queries * m.keys * slice_type_size(ELEMENT);
  bool done = !of_keys || m.member + m.members == p.heads / p.kv_heads;
  real scale = of_values ? (real)p.dropout_scale : (real)p.scale;
  int64_t tiles = product_tiles(length, PRODUCT_PACKED);
  for (int64_t item = blockIdx.x; item < m.groups * members * tiles; item += gridDim.x) {
    int64_t unit = item / tiles, first = item % tiles * PRODUCT_PACKED, group = unit / members;
    attend_slice s = product_slice(call, group, unit % members);
    attend_matrix to = product_matrix(s, id);
    bool infinite = *product_infinite(m, other, group) != 0;
    for (int64_t e = 4 * (int64_t)threadIdx.x; e < PRODUCT_PACKED * width; e += 4 * PRODUCT_THREADS) {
      int64_t row = first + (uint32_t)e / (uint32_t)width, column = (uint32_t)e % (uint32_t)width;
      if (row >= length) break;
      product_reals *sum = (product_reals *)(void *)(sums + (unit * rows + row) * width + column), x = *sum;
      for (int c = 0; c < 4 && column + c < columns; c++) {
        for (int64_t n = 0; infinite && n < (of_keys ? m.members : 1); n++) {
          attend_slice head = of_keys ? product_slice(call, group, n) : s;
          x.x[c] +=
              product_left_out(call, head, product_matrix(head, other),
                               weights + (of_keys ? group * m.members + n : unit) * matrix, row, column + c, of_keys);
        }
        int64_t at = row * to.row + (column + c) * to.col;
        if (done && id == OPERAND_OUT)
          store_element(to.data, at, p.type, scale * x.x[c]);
        else if (done)
          put_element(p, to.data, at, p.type, scale * x.x[c]);
      }
      if (!done) *sum = x;
    }
  }
}

WORD void product_finish(const cuda_call &call) {
  for (int id = OPERAND_OUT; id <= OPERAND_D_V; id++)
    if (call.product.operands >> id & 1) product_finish_operand(call, (operand_id)id);
}
