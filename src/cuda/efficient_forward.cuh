/* SPDX-License-Identifier: MIT */
/* Forward: a block owns 64 queries of one (sequence, head) and `columns` columns of their output, and goes through the
 * keys they see with the online softmax (Milakov & Gimelshein 2018; Dao et al. 2022). Rows that came out NaN make the
 * block do its tile again, carefully: most inputs never pay for what hides behind their masks. */

WORD void forward_tile(const cuda_call &call, const attend_slice &s, int64_t q0, int64_t column, const int columns,
                       bool careful, real (*sum)[MAX_COLUMNS / 16], real largest[ROWS], real total[ROWS],
                       tile_memory &m) {
  const attend_problem &p = call.problem;
  slice_rows q = slice_rows_of(s.q, s.q_len);
  slice_rows k = slice_rows_paged(s.k, s, s.pages.k_block, p.block_count);
  slice_rows v = slice_rows_paged(s.v, s, s.pages.v_block, p.block_count);
  for (int r = 0; r < ROWS; r++) {
    largest[r] = (real)s.sink;
    total[r] = s.sink > -INFINITY ? (real)(s.sink - s.sink + 1) : 0; /* exp(sink - largest) */
    for (int e = 0; e < columns / 16; e++) sum[r][e] = 0;
  }
  int64_t first, last;
  tile_key_range(p, s, q0, first, last);
  for (int64_t k0 = first; k0 < last; k0 += KEYS) {
    real w[ROWS][COLS];
    bool visible[ROWS][COLS];
    tile_scores(w, q, q0, k, k0, p.head_dim, m.stage);
    tile_finish_scores(w, NULL, visible, p, s, q0, k0);
    for (int r = 0; r < ROWS; r++) {
      real top = largest[r], part = 0;
      for (int c = 0; c < COLS; c++) top = max_of(w[r][c], top);
      top = row_max(top);
      real shift = top == (real)-INFINITY ? 0 : top, rescale = largest[r] == top ? 1 : exp_of(largest[r] - shift);
      for (int c = 0; c < COLS; c++) part += w[r][c] = exp_of(w[r][c] - shift);
      total[r] = total[r] * rescale + row_sum(part);
      largest[r] = top;
      for (int e = 0; e < columns / 16; e++) sum[r][e] *= rescale;
    }
    tile_drop(w, p, s, q0, k0);
    tile_put_weights(w, visible, true, m);
    tile_values(sum, QUERIES, KEYS, columns, v, k0, column, p.v_dim, m, careful);
  }
}

WORD void forward(const cuda_call &call, const int columns) {
  __shared__ tile_memory m;
  const attend_problem &p = call.problem;
  int64_t tiles = (p.q_len + QUERIES - 1) / QUERIES, chunks = (p.v_dim + columns - 1) / columns;
  if (chunks < 1) chunks = 1;
  for (int64_t item = blockIdx.x; item < p.batch * p.heads * tiles * chunks; item += gridDim.x) {
    int64_t chunk = item % chunks, pair = item / chunks / tiles, key_rows;
    int64_t tile = tiles - 1 - item / chunks % tiles; /* causal: the longest first */
    attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
    int64_t q0 = tile * QUERIES;
    if (q0 >= s.q_len) continue;
    real sum[ROWS][MAX_COLUMNS / 16], largest[ROWS], total[ROWS];
    forward_tile(call, s, q0, chunk * columns, columns, false, sum, largest, total, m);
    if (tile_any_nan(sum, QUERIES, columns, m))
      forward_tile(call, s, q0, chunk * columns, columns, true, sum, largest, total, m);
    for (int r = 0; r < ROWS; r++) {
      int64_t i = q0 + ROWS * thread_y() + r;
      if (i >= s.q_len) continue;
      for (int e = 0; e < columns / 16; e++) {
        int64_t c = chunk * columns + column_of(e);
        if (c < p.v_dim)
          store_element(s.out.data, i * s.out.row + c * s.out.col, p.type, total[r] == 0 ? 0 : sum[r][e] / total[r]);
      }
      real lse = largest[r] + (ELEMENT == TYPE_F64 ? (real)log((double)total[r]) : (real)logf((float)total[r]));
      if (s.lse && chunk == 0 && thread_x() == 0)
        store_element(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type, total[r] == 0 ? (real)-INFINITY : lse);
    }
  }
}

/* What the math back-end returns besides: scores at the stage asked for, probabilities from the lse that forward left
 * (in lse if the caller has one, else in the workspace). One thread a pair of a tile; hidden pairs are computed only
 * for a caller who asked to see their scores. */
WORD void materialise(const cuda_call &call) {
  __shared__ tile_memory m;
  const attend_problem &p = call.problem;
  int64_t q_tiles = (p.q_len + QUERIES - 1) / QUERIES, k_tiles = (p.k_len + KEYS - 1) / KEYS;
  for (int64_t item = blockIdx.x; item < p.batch * p.heads * q_tiles * k_tiles; item += gridDim.x) {
    int64_t k0 = item % k_tiles * KEYS, q0 = item / k_tiles % q_tiles * QUERIES, pair = item / k_tiles / q_tiles,
            key_rows;
    attend_slice s = slice_make(p, call.operands, pair / p.heads, pair % p.heads, key_rows);
    real dot[ROWS][COLS];
    tile_scores(dot, slice_rows_of(s.q, s.q_len), q0, slice_rows_paged(s.k, s, s.pages.k_block, p.block_count), k0,
                p.head_dim, m.stage);
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < COLS; c++) {
        int64_t i = q0 + ROWS * thread_y() + r, j = k0 + COLS * thread_x() + c, first = 0, last = 0;
        if (i >= p.q_len || j >= p.k_len) continue;
        bool exists = i < s.q_len && j < s.k_len;
        if (exists) attend_visible_range(&p, &s, i, &first, &last);
        bool visible = j >= first && j < last && unmasked(p, s, i, j);
        if (s.scores.data) return_score(p, s, i, j, exists, visible, dot[r][c]);
        if (!s.probs.data) continue;
        real lse = visible ? load_any(s.lse, i * s.lse_row, p.layout[OPERAND_LSE].type) : (real)-INFINITY;
        real prob = lse == (real)-INFINITY ? 0 : exp_of(score_of(p, s, i, j, dot[r][c]).biased - lse);
        store_element(s.probs.data, i * s.probs.row + j * s.probs.col, p.layout[OPERAND_PROBS].type, prob);
      }
  }
}
