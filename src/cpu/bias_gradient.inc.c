/* SPDX-License-Identifier: MIT */
/* dBias: dS summed over whatever the bias is broadcast over. An item owns a tile of the bias and goes through all
 * (sequence, head) pairs and all tiles of scores that it stands for, in a fixed order, so that no two workers add to
 * one element. Scores and dP are computed once more for it: 2 products beside the 5 of the other gradients. */

static int64_t bias_row_blocks(const attend_problem *p) {
  return p->bias_shape[2] == 1 ? 1 : (p->q_len + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
}
static int64_t bias_key_blocks(const attend_problem *p) {
  return p->bias_shape[3] == 1 ? 1 : (p->k_len + KEY_CHUNK - 1) / KEY_CHUNK;
}
static int64_t bias_items(const attend_problem *p) {
  return p->bias_shape[0] * p->bias_shape[1] * bias_row_blocks(p) * bias_key_blocks(p);
}

/* The sum at row l and column j of the item's tile. */
static real *bias_sum_at(const backward_scratch *w, int l, int64_t j) {
  return w->d_bias + (l / TILE_LANES * KEY_CHUNK + j) * TILE_LANES + l % TILE_LANES;
}

/* Add dS of queries i0 … and keys first … to the tile in scratch. */
static void add_bias_gradient(const attend_problem *p, const attend_slice *s, int64_t i0, int64_t first,
                              const backward_scratch *w) {
  int rows = s->q_len - i0 < GRADIENT_ROWS ? (int)(s->q_len - i0) : GRADIENT_ROWS;
  key_range range = visible_keys(p, s, i0, rows);
  int64_t last = first + KEY_CHUNK < range.last ? first + KEY_CHUNK : range.last;
  if (range.first >= range.last || range.first >= last || first >= last) return;
  gradient_rows q = load_gradient_rows(p, s, i0, rows, w);
  gradient_keys keys = load_gradient_keys(p, s, first, w);
  for (int64_t block = first; block < last; block += GRADIENT_KEYS) {
    int64_t j0 = block > range.first ? block : range.first,
            j1 = block + GRADIENT_KEYS < last ? block + GRADIENT_KEYS : last;
    if (j0 >= j1 || (s->mask.data && mask_is_empty(s, i0, rows, j0, (int)(j1 - j0)))) continue;
    gradient_tile(p, s, &q, &keys, j0, (int)(j1 - j0), false, w);
    for (int64_t j = j0; j < j1; j++)
      for (int l = 0; l < q.width; l += LANES) {
        real *at = bias_sum_at(w, l, j - first);
        lanes ds = lanes_load(w->ds + (j - j0) * q.width + l);
        if (rows - l < LANES) ds = lanes_select(mask_first(rows - l), ds, lanes_zero());
        lanes_store(at, lanes_add(lanes_load(at), ds));
      }
  }
}

static void bias_item(void *context, int worker, int64_t index) {
  const backward_context *c = context;
  const attend_problem *p = c->problem;
  backward_scratch w = worker_scratch(c, worker);
  const int64_t *shape = p->bias_shape;
  int64_t key_block = index % bias_key_blocks(p), row_block = index / bias_key_blocks(p) % bias_row_blocks(p);
  int64_t pair = index / bias_key_blocks(p) / bias_row_blocks(p), head = pair % shape[1], sequence = pair / shape[1];
  memset(w.d_bias, 0, KEY_CHUNK * GRADIENT_ROWS * sizeof(real));
  attend_slice s;
  for (int64_t b = shape[0] == 1 ? 0 : sequence; b < (shape[0] == 1 ? p->batch : sequence + 1); b++)
    for (int64_t h = shape[1] == 1 ? 0 : head; h < (shape[1] == 1 ? p->heads : head + 1); h++) {
      attend_slice_make(p, c->operands, b, h, &s);
      int64_t i_end = shape[2] == 1 ? s.q_len : row_block * GRADIENT_ROWS + 1;
      int64_t j_end = shape[3] == 1 ? s.k_len : key_block * KEY_CHUNK + 1;
      if (i_end > s.q_len) i_end = s.q_len;
      for (int64_t i0 = row_block * GRADIENT_ROWS; i0 < i_end; i0 += GRADIENT_ROWS)
        for (int64_t j0 = key_block * KEY_CHUNK; j0 < j_end; j0 += KEY_CHUNK) add_bias_gradient(p, &s, i0, j0, &w);
    }
  const attend_layout *to = &p->layout[OPERAND_D_BIAS]; /* not the slice's: of no sequence there is none */
  void *d_bias = c->operands->data[OPERAND_D_BIAS];
  int64_t rows = shape[2] == 1 ? 1 : p->q_len - row_block * GRADIENT_ROWS;
  int64_t keys = shape[3] == 1 ? 1 : p->k_len - key_block * KEY_CHUNK;
  if (rows > GRADIENT_ROWS) rows = GRADIENT_ROWS;
  if (keys > KEY_CHUNK) keys = KEY_CHUNK;
  const int64_t size = (int64_t)attend_type_size(to->type), i0 = row_block * GRADIENT_ROWS, j0 = key_block * KEY_CHUNK;
  const int64_t origin = sequence * to->batch + head * to->head + i0 * to->row + j0 * to->col;
  /* A tile that stands for itself is transposed in vectors: element by element it took longer than its products. */
  if (shape[2] != 1 && shape[3] != 1 && (to->type == p->type || to->type == REAL_TYPE)) {
    const attend_matrix tile = {(char *)d_bias + origin * size, to->row, to->col};
    real one[TILE_LANES];
    for (int l = 0; l < TILE_LANES; l++) one[l] = 1;
    for (int g = 0; g < rows; g += TILE_LANES)
      unpack_transposed(&tile, g, (int)rows - g, keys, bias_sum_at(&w, g, 0), one, p->accumulate, to->type);
    return;
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < keys; j++) {
      double sum = 0;
      for (int64_t y = j; y < (shape[3] == 1 ? KEY_CHUNK : j + 1); y++)
        for (int64_t x = i; x < (shape[2] == 1 ? GRADIENT_ROWS : i + 1); x++)
          sum += (double)*bias_sum_at(&w, (int)x, y);
      int64_t at = origin + i * to->row + j * to->col;
      attend_store(d_bias, at, to->type, sum + (p->accumulate ? attend_load(d_bias, at, to->type) : 0));
    }
}
