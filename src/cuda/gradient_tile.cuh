/* SPDX-License-Identifier: MIT */
/* What the kernels of backward in tiles of 16-bit elements share: rows staged in shared memory, their products with the
 * rows that a warp holds, and the gradients' way out. Included once for each element type. */
#ifndef ATTEND_CUDA_GRADIENT_TILE_CUH
#define ATTEND_CUDA_GRADIENT_TILE_CUH

#include "gradient_scores.cuh"

/* What an entry point fixes: warps of a block, tiles of 16 rows of a warp, chunks of 64 columns (1, 2), whether all
 * options are there, and whether gradients of scores are wanted as the bias meets them: after softcap. */
struct gradient_kind {
  int warps, tiles, chunks;
  bool general, capped;
};

enum {
  STAGE_UNITS = 512, /* of 16 bytes: 64 rows of 64 columns, or 32 of 128 */
  GRADIENT_TILES = 2,
  GRADIENT_WORDS = 256 /* of 32 pairs of a stage, where all options are there: then a block owns 128 rows at most */
};

struct gradient_memory {
  uint4 rows[2][2][STAGE_UNITS];       /* [stage][Q or K; dO or V] */
  uint4 values[2][2][16];              /* [stage][lse; delta] of 64 queries */
  uint32_t bits[2][2][GRADIENT_WORDS]; /* [stage][mask; kept] */
  int flags[8];
};

WORD int staged_rows(const gradient_kind kind) { return 64 / kind.chunks; }

/* ---- Staged rows ------------------------------------------------------------------------------------------------- */

/* Units of 16 bytes, swizzled so that eight rows of a column of units touch all banks. */
WORD int stage_at(int row, int unit, const gradient_kind kind) {
  return unit / 8 * 8 * staged_rows(kind) + 8 * row + (unit % 8 ^ (row & 7));
}

/* Where a thread reads of one matrix: row tid / units and unit tid % units of the next stage. */
struct gradient_stream {
  const char *at;
  int64_t row_bytes;
  bool exists; /* the unit, in these rows */
};

WORD int stage_units(const gradient_kind kind) { return 8 * kind.chunks; }

WORD gradient_stream stream_of(const attend_matrix &m, int first, int columns, const gradient_kind kind) {
  int row = (int)threadIdx.x / stage_units(kind), unit = (int)threadIdx.x % stage_units(kind);
  gradient_stream s = {m.data + 2 * ((first + row) * m.row + 8 * unit), 2 * m.row, 8 * unit < columns};
  return s;
}

/* Of a stage, where all options are there. */
WORD gradient_bits bits_of_stage(gradient_memory &memory, const int stage) {
  gradient_bits bits = {memory.bits[stage][0], memory.bits[stage][1]};
  return bits;
}

/* Copy a stage, of which `left` rows exist. */
WORD void stage_copy(uint4 *to, const gradient_stream &s, int left, const gradient_kind kind) {
  const int every = 32 * kind.warps / stage_units(kind);
  int row = (int)threadIdx.x / stage_units(kind), unit = (int)threadIdx.x % stage_units(kind);
  to += stage_at(row, unit, kind);
  UNROLLED
  for (int n = 0; n < staged_rows(kind) / every; n++)
    word_copy_async(to + 8 * every * n, s.at + n * every * s.row_bytes, s.exists && row + every * n < left);
}

/* 16 rows from `first` on as operands A, one for each 16 columns. */
WORD void operand_load(uint32_t a[8][4], const attend_matrix &m, int first, int end, int columns,
                       const gradient_kind kind) {
  UNROLLED
  for (int x = 0; x < 4 * kind.chunks; x++) UNROLLED
  for (int r = 0; r < 4; r++) {
    int row = first + lane_row() + 8 * (r & 1);
    int column = 16 * x + 8 * (r >> 1) + 2 * lane_column();
    a[x][r] =
        row < end && column < columns ? *(const uint32_t *)(const void *)(m.data + 2 * (row * m.row + column)) : 0;
  }
}

/* c[tile] = rows of A x the staged rows at .. at + 7, over all columns. */
WORD void stage_dots(float c[GRADIENT_TILES][4], const uint32_t a[GRADIENT_TILES][8][4], const uint4 *stage, int at,
                     const gradient_kind kind) {
  int lane = (int)threadIdx.x & 31;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) c[m][0] = c[m][1] = c[m][2] = c[m][3] = 0;
  UNROLLED
  for (int x = 0; x < 2 * kind.chunks; x++) {
    uint32_t b[4];
    word_load_matrices(b, stage + stage_at(at + (lane & 7), 4 * x + (lane >> 3), kind));
    UNROLLED
    for (int m = 0; m < kind.tiles; m++) {
      multiply(c[m], a[m][2 * x], b[0], b[1]);
      multiply(c[m], a[m][2 * x + 1], b[2], b[3]);
    }
  }
}

/* sum[tile][chunk] += A x the staged rows at .. at + 15. */
WORD void stage_product(float sum[GRADIENT_TILES][2][8][4], const uint32_t a[GRADIENT_TILES][4],
                        const uint32_t allowed[GRADIENT_TILES][4], const uint4 *stage, int at, const bool careful,
                        const gradient_kind kind) {
  int lane = (int)threadIdx.x & 31;
  UNROLLED
  for (int x = 0; x < kind.chunks; x++) {
    block low, high;
    UNROLLED
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      word_load_matrices_transposed(b, stage + stage_at(at + (lane & 15), 8 * x + n + (lane >> 4), kind));
      low.r[n] = b[0], high.r[n] = b[1], low.r[n + 1] = b[2], high.r[n + 1] = b[3];
    }
    UNROLLED
    for (int m = 0; m < kind.tiles; m++)
      if (careful)
        block_product_careful(sum[m][x], a[m], allowed[m], low, high);
      else
        block_product(sum[m][x], a[m], low, high);
  }
}

/* Half n of operand A, from 8 columns of its rows; `allowed` likewise, from bits. */
WORD void gradient_operand(uint32_t a[4], const int n, const float c[4]) {
  a[2 * n] = pack(c[0], c[1]), a[2 * n + 1] = pack(c[2], c[3]);
}
WORD void gradient_allowed(uint32_t a[4], const int n, uint32_t seen) {
  a[2 * n] = (seen & 1) | (seen >> 1 & 1) << 16, a[2 * n + 1] = (seen >> 2 & 1) | (seen >> 3 & 1) << 16;
}

/* Rows from `first` on of a gradient. */
WORD void gradient_store(const attend_problem &p, const attend_matrix &to, const float sum[2][8][4], int first, int end,
                         int columns, float factor, const gradient_kind kind) {
  UNROLLED
  for (int x = 0; x < kind.chunks; x++) UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int half = 0; half < 2; half++) {
    int row = first + lane_row() + 8 * half;
    int column = 64 * x + 8 * n + 2 * lane_column();
    if (row >= end || column >= columns) continue;
    uint32_t *at = (uint32_t *)(void *)(to.data + 2 * (row * to.row + column));
    float lo = sum[x][n][2 * half] * factor, hi = sum[x][n][2 * half + 1] * factor;
    if (p.accumulate) {
      uint32_t old = *at, fresh = pack(lo, hi);
      lo = half_of(old, false) + half_of(fresh, false), hi = half_of(old, true) + half_of(fresh, true);
    }
    *at = pack(lo, hi);
  }
}

/* Is it so in any warp of the block? */
WORD bool gradient_any(bool x, gradient_memory &memory, const gradient_kind kind) {
  bool warp = word_any(x), any = false;
  if ((threadIdx.x & 31) == 0) memory.flags[threadIdx.x >> 5] = warp;
  word_sync_block();
  for (int n = 0; n < kind.warps; n++) any |= memory.flags[n] != 0;
  return any;
}
WORD bool gradient_nan(const float sum[GRADIENT_TILES][2][8][4], const gradient_kind kind) {
  bool nan = false;
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) UNROLLED
  for (int x = 0; x < kind.chunks; x++) nan |= block_any_nan(sum[m][x]);
  return nan;
}
WORD void gradient_clear(float sum[GRADIENT_TILES][2][8][4], const gradient_kind kind) {
  UNROLLED
  for (int m = 0; m < kind.tiles; m++) UNROLLED
  for (int x = 0; x < kind.chunks; x++) UNROLLED
  for (int n = 0; n < 8; n++) UNROLLED
  for (int e = 0; e < 4; e++) sum[m][x][n][e] = 0;
}

#endif
