/* SPDX-License-Identifier: MIT */
/* Forward in tiles: a block owns 128 queries of one (sequence, head), 32 of each warp, and goes through the keys they
 * see, 64 at a time, with the online softmax (Milakov & Gimelshein 2018; Dao et al. 2022; the division of work among
 * warps is that of Dao 2023). While a tile of K and V is worked on, the next comes to the other half of shared memory.
 * A warp has 32 rows, not 16, because each fragment of K and V then serves two products: with 16, shared memory would
 * be read faster than it can be. A block whose output came out NaN is done again, carefully. */
#ifndef ATTEND_CUDA_TILE_FORWARD_CUH
#define ATTEND_CUDA_TILE_FORWARD_CUH

#include "tile_shared.cuh"

/* What an entry point fixes: chunks of 64 columns (1, 2), whether all options are there, and whether hidden elements
 * that are NaN or Inf are kept apart. */
struct tile_kind {
  int chunks;
  bool general, careful;
};

/* Of the 32 rows of a warp: two groups of 16, of which a lane has rows g and g + 8 (`half`). */
struct tile_state {
  float largest[2][2], total[2][2], sum[2][16][4]; /* sum: [group][8 columns] */
};

/* What a warp has to know of its rows: keys before seen_first, or from seen_last on, nobody sees; those from all_first
 * up to all_last everybody does. */
struct tile_range {
  int seen_first, seen_last, all_first, all_last;
};

WORD tile_range tile_range_of(const attend_problem &p, const attend_slice &s, int64_t q0) {
  int64_t top = q0 + TILE_ROWS < s.q_len ? q0 + TILE_ROWS - 1 : s.q_len - 1, first, last, seen_last, all_first;
  tile_range r = {0, 0, 0, 0};
  if (q0 >= s.q_len) return r;
  attend_visible_range(&p, &s, q0, &first, &last); /* both ends grow with the query */
  attend_visible_range(&p, &s, top, &all_first, &seen_last);
  r.seen_first = (int)first, r.seen_last = (int)seen_last, r.all_first = (int)all_first, r.all_last = (int)last;
  return r;
}

/* What is the same for all tiles of a block: whether mask and bias lie in words of 16 bytes, that may be copied ahead;
 * whether options scale the scores, which then are in units of log 2, else of log 2 / unit. */
struct tile_options {
  bool mask_words, bias_words, scale;
  float unit;
};

WORD tile_options tile_options_of(const attend_problem &p, const attend_slice &s, const tile_kind kind) {
  tile_options r = {false, false, false, (float)p.scale * LOG2_E};
  if (!kind.general) return r;
  uintptr_t mask = (uintptr_t)s.mask.data | (uintptr_t)s.mask.row;
  uintptr_t bias = (uintptr_t)s.bias.data | (uintptr_t)(2 * s.bias.row);
  r.mask_words = s.mask.data && s.mask.col == 1 && mask % 16 == 0;
  r.bias_words = s.bias.data && s.bias.col == 1 && bias % 16 == 0 && p.layout[OPERAND_BIAS].type == ELEMENT;
  r.scale = p.scale < CALL_LEAST_SCALE || p.softcap > 0 || s.slope != 0 || s.bias.data || s.sink > -INFINITY;
  if (r.scale) r.unit = 1;
  return r;
}

/* Start copying the bias of a warp's rows and the keys of a tile to where the queries of narrow heads were. */
WORD void tile_bias_copy(char *tile, const attend_slice &s, int64_t q0, int64_t k0) {
  int lane = (int)(threadIdx.x & 31), warp_row = (int)(threadIdx.x >> 5) * TILE_ROWS;
  UNROLLED
  for (int row = lane / 8; row < TILE_ROWS; row += 4)
    word_copy_async(tile_word(tile, warp_row + row, lane % 8, 1),
                    s.bias.data + 2 * ((q0 + row) * s.bias.row + k0) + 16 * (lane % 8), q0 + row < s.q_len);
}

/* Sets of keys of a tile: bit j is key j. As a lane has them: bit 8n + e is key 8n + 2t + e. */
WORD uint64_t keys_below(int64_t n) { return n <= 0 ? 0 : n >= TILE_KEYS ? ~0ull : (1ull << n) - 1; }
WORD bool sees(uint64_t keys, const int n, const int e) { return keys >> (8 * n + e) & 1; }

/* Which bytes of four are not 0. */
WORD uint32_t bytes_set(uint32_t x) {
  x |= x >> 4;
  x |= x >> 2;
  x |= x >> 1;
  return ((x & 0x01010101) * 0x01020408) >> 24;
}
/* The keys that a row's mask allows, of which each of its four lanes has 16 bytes. */
WORD uint64_t keys_allowed(uint4 mask) {
  int t = lane_column();
  uint32_t own = bytes_set(mask.x) | bytes_set(mask.y) << 4 | bytes_set(mask.z) << 8 | bytes_set(mask.w) << 12;
  uint32_t half = t & 1 ? own << 16 : own;
  half |= word_shuffle_xor(half, 1);
  uint32_t other = word_shuffle_xor(half, 2);
  return t & 2 ? (uint64_t)half << 32 | other : (uint64_t)other << 32 | half;
}

/* Adds one score's bias. Returns whether it hides the key. */
WORD bool tile_bias(float &score, float y) {
  bool hides = y == -INFINITY; /* also where the score is NaN */
  score = hides ? -INFINITY : word_multiply_add(y, LOG2_E, score);
  return hides;
}
/* Adds the bias of 16 rows from `row` on, element by element: slow, and short in instructions. */
WORD void tile_bias_elements(float c[8][4], uint64_t seen[2], const attend_problem &p, const attend_slice &s,
                             int64_t row, int64_t k0) {
  UNROLLED_BY_1
  for (int at = 0; at < TILE_KEYS / 2; at++) {
    int64_t i = row + 8 * (at / 2 % 2) + lane_row(), j = k0 + 8 * (at / 4) + 2 * lane_column() + at % 2;
    float y = 0;
    if (i < s.q_len && j < s.k_len)
      y = load_any(s.bias.data, i * s.bias.row + j * s.bias.col, p.layout[OPERAND_BIAS].type);
    UNROLLED
    for (int n = 0; n < TILE_KEYS / 8; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (at == 4 * n + e && tile_bias(c[n][e], y)) seen[e / 2] &= ~(1ull << (8 * n + e % 2));
  }
}
/* The same of words of 16 bytes: in shared memory, from row tile_row of a tile on, or not (NULL). */
WORD void tile_bias_words(float c[8][4], uint64_t seen[2], const attend_slice &s, int64_t row, int64_t k0, char *tile,
                          int tile_row, const bool careful) {
  uint32_t pair[4][4];
  UNROLLED
  for (int x = 0; x < TILE_KEYS / 16; x++)
    if (tile)
      tile_a(pair[x], tile, tile_row, 2 * x, 1);
    else
      for (int r = 0; r < 4; r++) {
        int64_t i = row + 8 * (r % 2) + lane_row(), j = k0 + 8 * (2 * x + r / 2) + 2 * lane_column();
        const char *word = s.bias.data + 2 * ((i < s.q_len ? i : s.q_len - 1) * s.bias.row + j);
        pair[x][r] = *(const uint32_t *)(const void *)word;
      }
  UNROLLED
  for (int x = 0; x < TILE_KEYS / 16; x++) UNROLLED
  for (int r = 0; r < 4; r++) UNROLLED
  for (int e = 0; e < 2; e++)
    if (tile_bias(c[2 * x + r / 2][r % 2 * 2 + e], half_of(pair[x][r], e != 0)) && careful)
      seen[r % 2] &= ~(1ull << (8 * (2 * x + r / 2) + e));
}

/* What the options make of the scores of 16 rows from `row` on. Each is a loop of its own, so that only those that are
 * there cost anything. `careful`: keys that the bias hides leave `seen`; their scores are -inf in any case. */
WORD void tile_apply(float c[8][4], uint64_t seen[2], const attend_problem &p, const attend_slice &s,
                     const tile_options &options, int64_t row, int64_t k0, char *bias_tile, int tile_row,
                     const bool careful) {
  if (!options.scale) return;
  float unit = (float)p.scale * LOG2_E;
  if (p.softcap > 0) {
    float cap = (float)p.softcap * LOG2_E, twice = 2 * unit / (float)p.softcap;
    UNROLLED
    for (int n = 0; n < TILE_KEYS / 8; n++) UNROLLED
    for (int e = 0; e < 4; e++) c[n][e] = cap - 2 * cap * word_reciprocal(1 + word_exp2(c[n][e] * twice)); /* tanh */
    unit = 1;
  }
  UNROLLED
  for (int n = 0; n < TILE_KEYS / 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) c[n][e] *= unit;
  if (s.slope != 0) {
    float distance = (float)(row + lane_row() + s.off - k0 - 2 * lane_column()), slope = (float)s.slope * LOG2_E;
    UNROLLED
    for (int n = 0; n < TILE_KEYS / 8; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      c[n][e] = word_multiply_add(-slope, fabsf(distance + (float)(8 * (e / 2) - 8 * n - e % 2)), c[n][e]);
  }
  if (!s.bias.data) return;
  if (options.bias_words && k0 + TILE_KEYS <= s.k_len)
    tile_bias_words(c, seen, s, row, k0, bias_tile, tile_row, careful);
  else
    tile_bias_elements(c, seen, p, s, row, k0);
}

/* The keys that the mask of a row allows, one by one. */
WORD uint64_t tile_mask(const attend_slice &s, int64_t i, int64_t k0) {
  int j = 2 * lane_column(), keys = s.k_len - k0 < TILE_KEYS ? (int)(s.k_len - k0) : TILE_KEYS;
  const char *row = s.mask.data + (i < s.q_len ? i : s.q_len - 1) * s.mask.row + k0 * s.mask.col;
  uint64_t allowed = 0;
  UNROLLED_BY_1
  for (int n = 0; n < TILE_KEYS; n += 8)
    for (int e = 0; e < 2; e++)
      if (n + j + e < keys && row[(n + j + e) * s.mask.col]) allowed |= 1ull << (n + e);
  return allowed;
}

/* Weights of what is dropped become 0: a draw serves 32 keys. */
WORD void tile_drop(float c[8][4], const int half, const attend_problem &p, const attend_slice &s, int64_t i,
                    int64_t k0) {
  UNROLLED
  for (int part = 0; part < TILE_KEYS / 32; part++) {
    int64_t number = 4 * ((k0 >> 5) + part) + lane_column();
    uint32_t counter[4] = {(uint32_t)number, (uint32_t)(number >> 32), (uint32_t)i, (uint32_t)(i >> 32)}, word[4];
    attend_philox(counter, s.dropout_key, word);
    UNROLLED
    for (int n = 0; n < 4; n++) {
      if ((word[n] & 0xFFFF) < p.dropout_threshold) c[4 * part + n][2 * half] *= 0;
      if (word[n] >> 16 < p.dropout_threshold) c[4 * part + n][2 * half + 1] *= 0;
    }
  }
}

/* What the values of 16 keys that are NaN or Inf add to 16 columns, by products of ones: `positive` and `zero` (operand
 * A) say which weights of pairs that see each other are positive, and which are 0. A product with the values themselves
 * would reach the rows that do not see them. */
WORD void tile_spare(float sum[2][4], const uint32_t positive[4], const uint32_t zero[4], const uint32_t b[4]) {
  UNROLLED
  for (int n = 0; n < 2; n++) {
    uint32_t nan[2], plus[2], minus[2];
    UNROLLED
    for (int h = 0; h < 2; h++) {
      nan[h] = pair_where(b[2 * n + h], PAIR_NAN);
      plus[h] = pair_where(b[2 * n + h], PAIR_PLUS), minus[h] = pair_where(b[2 * n + h], PAIR_MINUS);
    }
    float no[4] = {}, up[4] = {}, down[4] = {};
    multiply(no, positive, nan[0], nan[1]);
    multiply(no, zero, nan[0] | plus[0] | minus[0], nan[1] | plus[1] | minus[1]);
    multiply(up, positive, plus[0], plus[1]);
    multiply(down, positive, minus[0], minus[1]);
    UNROLLED
    for (int e = 0; e < 4; e++) {
      if (up[e] > 0) sum[n][e] += INFINITY;
      if (down[e] > 0) sum[n][e] -= INFINITY;
      if (no[e] > 0) sum[n][e] = NAN;
    }
  }
}

/* The keys of a tile, of which the first is key k0, for one warp. q: the fragments of its queries, of
 * narrow heads only. */
WORD void tile_step(const attend_problem &p, const attend_slice &s, const uint32_t q[2][4][4], char *queries, char *k,
                    char *v, int64_t q0, int64_t k0, int64_t next_bias, bool inside, const tile_options &options,
                    tile_state &state, const tile_kind kind) {
  const int warp_row = (int)(threadIdx.x >> 5) * TILE_ROWS;
  const float unit = options.unit;
  const bool whole = k0 + TILE_KEYS <= s.k_len;
  uint4 mask[2][2];
  if (kind.general && options.mask_words && whole) {
    UNROLLED
    for (int m = 0; m < 2; m++) UNROLLED
    for (int half = 0; half < 2; half++) {
      int64_t i = q0 + 16 * m + 8 * half + lane_row();
      mask[m][half] = word_load_if(s.mask.data + i * s.mask.row + k0 + 16 * lane_column(), i < s.q_len);
    }
  }
  float c[2][8][4] = {};
  UNROLLED
  for (int x = 0; x < 4 * kind.chunks; x++) {
    uint32_t a[2][4];
    UNROLLED
    for (int m = 0; m < 2; m++)
      if (kind.chunks == 1)
        for (int r = 0; r < 4; r++) a[m][r] = q[m][x][r];
      else
        tile_a(a[m], queries, warp_row + 16 * m, 2 * x, kind.chunks);
    UNROLLED
    for (int n = 0; n < TILE_KEYS / 16; n++) {
      uint32_t b[4];
      tile_b_transposed(b, k, 16 * n, 2 * x, kind.chunks);
      UNROLLED
      for (int m = 0; m < 2; m++) {
        multiply(c[m][2 * n], a[m], b[0], b[1]);
        multiply(c[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
  uint64_t seen[2][2] = {{~0ull, ~0ull}, {~0ull, ~0ull}};
  float rescale[2][2];
  bool changed = false;
  if (kind.general) {
    const bool ahead = kind.chunks == 1;
    if (ahead) {
      word_copy_wait(1);
      word_sync_warp();
    }
    UNROLLED
    for (int m = 0; m < 2; m++)
      tile_apply(c[m], seen[m], p, s, options, q0 + 16 * m, k0, ahead ? queries : NULL, warp_row + 16 * m,
                 kind.careful);
    if (ahead) {
      word_sync_warp();
      if (next_bias >= 0) tile_bias_copy(queries, s, q0, next_bias);
      word_copy_commit();
    }
    if (s.mask.data) {
      UNROLLED
      for (int m = 0; m < 2; m++) UNROLLED
      for (int half = 0; half < 2; half++)
        seen[m][half] &= options.mask_words && whole ? keys_allowed(mask[m][half]) >> (2 * lane_column())
                                                     : tile_mask(s, q0 + 16 * m + 8 * half + lane_row(), k0);
    }
  }
  if (!inside) {
    UNROLLED
    for (int m = 0; m < 2; m++) UNROLLED
    for (int half = 0; half < 2; half++) {
      int64_t i = q0 + 16 * m + 8 * half + lane_row(), first = 0, last = 0;
      if (i < s.q_len) attend_visible_range(&p, &s, i, &first, &last);
      seen[m][half] &= (keys_below(last - k0) & ~keys_below(first - k0)) >> (2 * lane_column());
    }
  }
  if (!inside || (kind.general && s.mask.data)) {
    UNROLLED
    for (int m = 0; m < 2; m++) UNROLLED
    for (int n = 0; n < TILE_KEYS / 8; n++) UNROLLED
    for (int e = 0; e < 4; e++)
      if (!sees(seen[m][e / 2], n, e % 2)) c[m][n][e] = -INFINITY;
  }
  UNROLLED
  for (int m = 0; m < 2; m++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = q0 + 16 * m + 8 * half + lane_row();
    float before = state.largest[m][half], most = before, part = 0;
    UNROLLED
    for (int n = 0; n < TILE_KEYS / 8; n++) most = word_max(word_max(c[m][n][2 * half], c[m][n][2 * half + 1]), most);
    most = quad_max(most);
    float shift = most == -INFINITY ? 0 : most * unit;
    rescale[m][half] = before == most ? 1 : word_exp2(before * unit - shift);
    changed |= before != most;
    state.largest[m][half] = most;
    UNROLLED
    for (int n = 0; n < TILE_KEYS / 8; n++) UNROLLED
    for (int e = 0; e < 2; e++) {
      float &x = c[m][n][2 * half + e];
      part += x = word_exp2(word_multiply_add(x, unit, -shift));
    }
    state.total[m][half] = state.total[m][half] * rescale[m][half] + part;
    if (kind.general && p.dropout_threshold) tile_drop(c[m], half, p, s, i, k0);
  }
  if (kind.chunks == 2 || word_any(changed)) { /* wide heads: the branch costs more than it saves */
    UNROLLED
    for (int m = 0; m < 2; m++) UNROLLED
    for (int n = 0; n < 8 * kind.chunks; n++) UNROLLED
    for (int e = 0; e < 4; e++) state.sum[m][n][e] *= rescale[m][e / 2];
  }
  UNROLLED
  for (int x = 0; x < TILE_KEYS / 16; x++) {
    uint32_t a[2][4], positive[2][4], zero[2][4];
    UNROLLED
    for (int m = 0; m < 2; m++) {
      UNROLLED
      for (int r = 0; r < 4; r++) a[m][r] = pack(c[m][2 * x + r / 2][r % 2 * 2], c[m][2 * x + r / 2][r % 2 * 2 + 1]);
      if (kind.careful) {
        UNROLLED
        for (int r = 0; r < 4; r++) {
          bool first = sees(seen[m][r % 2], 2 * x + r / 2, 0), second = sees(seen[m][r % 2], 2 * x + r / 2, 1);
          const float *w = &c[m][2 * x + r / 2][r % 2 * 2];
          positive[m][r] = pack(first && w[0] != 0, second && w[1] != 0);
          zero[m][r] = pack(first && w[0] == 0, second && w[1] == 0);
        }
      }
    }
    UNROLLED
    for (int n = 0; n < 4 * kind.chunks; n++) {
      uint32_t b[4];
      tile_b(b, v, 16 * x, 2 * n, kind.chunks);
      if (kind.careful) {
        UNROLLED
        for (int m = 0; m < 2; m++) tile_spare(state.sum[m] + 2 * n, positive[m], zero[m], b);
        UNROLLED
        for (int r = 0; r < 4; r++) b[r] = pair_finite(b[r]);
      }
      UNROLLED
      for (int m = 0; m < 2; m++) {
        multiply(state.sum[m][2 * n], a[m], b[0], b[1]);
        multiply(state.sum[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/* All keys of a block. Returns whether any output of the block is NaN. */
WORD bool tile_keys(const attend_problem &p, const attend_slice &s, char *queries, int64_t block_first, int64_t first,
                    int64_t last, const tile_range &range, tile_state &state, const tile_kind kind) {
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, bytes = 128 * kind.chunks * TILE_KEYS;
  const int64_t q0 = block_first + (threadIdx.x >> 5) * TILE_ROWS;
  const tile_options options = tile_options_of(p, s, kind);
  const bool ahead = kind.general && kind.chunks == 1; /* the bias of the next tile comes to where the queries were */
  char *stages = queries + 128 * kind.chunks * TILE_QUERIES;
  UNROLLED
  for (int m = 0; m < 2; m++) {
    UNROLLED
    for (int half = 0; half < 2; half++) {
      state.largest[m][half] = kind.general ? (float)s.sink * LOG2_E : -INFINITY;
      state.total[m][half] = 0;
    }
    UNROLLED
    for (int n = 0; n < 8 * kind.chunks; n++) UNROLLED
    for (int e = 0; e < 4; e++) state.sum[m][n][e] = 0;
  }
  tile_copy(queries, TILE_QUERIES, s.q.data + 2 * block_first * s.q.row, s.q.row, s.q_len - block_first, head_dim,
            kind.chunks);
  tile_copy(stages, TILE_KEYS, s.k.data + 2 * first * s.k.row, s.k.row, s.k_len - first, head_dim, kind.chunks);
  tile_copy(stages + bytes, TILE_KEYS, s.v.data + 2 * first * s.v.row, s.v.row, s.k_len - first, v_dim, kind.chunks);
  word_copy_commit();
  uint32_t q[2][4][4];
  if (kind.chunks == 1) {
    word_copy_wait(0);
    word_sync_block();
    UNROLLED
    for (int m = 0; m < 2; m++) UNROLLED
    for (int x = 0; x < 4; x++)
      tile_a(q[m][x], queries, (int)(threadIdx.x >> 5) * TILE_ROWS + 16 * m, 2 * x, kind.chunks);
  }
  if (ahead) {
    word_sync_warp();
    if (options.bias_words && first + TILE_KEYS <= s.k_len) tile_bias_copy(queries, s, q0, first);
    word_copy_commit();
  }
  int stage = 0;
  for (int64_t k0 = first; k0 < last; k0 += TILE_KEYS, stage ^= 1) {
    char *k = stages + 2 * bytes * stage, *other = stages + 2 * bytes * (stage ^ 1);
    if (ahead)
      word_copy_wait(1); /* the bias may still be under way */
    else
      word_copy_wait(0);
    word_sync_block();
    int64_t next = k0 + TILE_KEYS,
            next_bias = options.bias_words && next < last && next + TILE_KEYS <= s.k_len ? next : -1;
    if (next < last) {
      tile_copy(other, TILE_KEYS, s.k.data + 2 * next * s.k.row, s.k.row, s.k_len - next, head_dim, kind.chunks);
      tile_copy(other + bytes, TILE_KEYS, s.v.data + 2 * next * s.v.row, s.v.row, s.k_len - next, v_dim, kind.chunks);
    }
    word_copy_commit();
    if (k0 < range.seen_last && next > range.seen_first) {
      bool inside = k0 >= range.all_first && next <= range.all_last;
      tile_step(p, s, q, queries, k, k + bytes, q0, k0, next_bias, inside, options, state, kind);
    } else if (ahead) {
      if (next_bias >= 0) tile_bias_copy(queries, s, q0, next_bias);
      word_copy_commit();
    }
  }
  word_copy_wait(0);
  float sum = 0;
  UNROLLED
  for (int m = 0; m < 2; m++) UNROLLED
  for (int n = 0; n < 8 * kind.chunks; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum += state.sum[m][n][e] * 0; /* NaN of Inf too: then once more, in vain */
  return word_sync_block_any(sum != sum);
}

/* Returns whether an output is NaN: then nothing is written, unless `careful`. */
WORD bool tile_forward(const cuda_call &call, const tile_kind kind) {
  DYNAMIC_SHARED(memory);
  const attend_problem &p = call.problem;
  uint32_t tiles = (uint32_t)((p.q_len + TILE_QUERIES - 1) / TILE_QUERIES);
  int64_t key_rows, unused, first, last;
  uint32_t pair = blockIdx.x / tiles, tile = tiles - 1 - blockIdx.x % tiles; /* the longest first */
  attend_slice s = slice_make(p, call.operands, pair / (uint32_t)p.heads, pair % (uint32_t)p.heads, key_rows);
  int64_t block_first = (int64_t)tile * TILE_QUERIES, q0 = block_first + (threadIdx.x >> 5) * TILE_ROWS;
  if (block_first >= s.q_len) return false;
  int64_t top = block_first + TILE_QUERIES < s.q_len ? block_first + TILE_QUERIES - 1 : s.q_len - 1;
  attend_visible_range(&p, &s, block_first, &first, &unused);
  attend_visible_range(&p, &s, top, &unused, &last);
  first = first / TILE_KEYS * TILE_KEYS;
  tile_range range = tile_range_of(p, s, q0);

  tile_state state;
  if (tile_keys(p, s, memory, block_first, first, last, range, state, kind) && !kind.careful) return true;

  const float unit = tile_options_of(p, s, kind).unit;
  UNROLLED
  for (int m = 0; m < 2; m++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int64_t i = q0 + 16 * m + 8 * half + lane_row();
    float total = quad_sum(state.total[m][half]), largest = state.largest[m][half];
    if (kind.general && s.sink > -INFINITY) total += word_exp2((float)s.sink * LOG2_E - largest);
    float factor = total == 0 ? 0 : word_reciprocal(total);
    if (kind.general) factor *= (float)p.dropout_scale;
    if (i >= s.q_len) continue;
    char *row = s.out.data + 2 * (i * s.out.row + 2 * lane_column());
    UNROLLED
    for (int n = 0; n < 8 * kind.chunks; n++)
      if (8 * n < (int)p.v_dim)
        *(uint32_t *)(void *)(row + 16 * n) =
            pack(state.sum[m][n][2 * half] * factor, state.sum[m][n][2 * half + 1] * factor);
    if (s.lse && lane_column() == 0)
      ((float *)(void *)s.lse)[i * s.lse_row] = total == 0 ? -INFINITY : largest * unit * LN_2 + logf(total);
  }
  return false;
}

#endif
