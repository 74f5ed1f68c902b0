/* SPDX-License-Identifier: MIT */
/* Score tiles: S[j - j0][i - i0] for `width` queries (the lanes) and up to KEY_BLOCK keys, in base 2 (scores times
 * log2 e). Each option is a pass of its own over a tile that lies in the first-level cache: about one cycle per vector,
 * against 2 * head_dim products, and no 2^7 copies of the kernel. Forward and backward read the same passes. */

enum { KEY_BLOCK = 128 };
#define LOG2_E 1.4426950408889634
#define LN_2 0.6931471805599453

typedef struct score_tile {
  const attend_problem *problem;
  const attend_slice *slice;
  int64_t i0, j0;
  int rows, keys;      /* queries i0 … i0 + rows - 1, keys j0 … j0 + keys - 1 */
  int width;           /* lanes of a row: a multiple of TILE_LANES, at least `rows` */
  real *s;             /* [keys][width] */
  real *visible;       /* [keys][width] 1 or 0; NULL: not wanted */
  real *softcap_slope; /* [keys][width] derivative of the softcap; NULL: not wanted */
} score_tile;

/* Keys that some query of i0 … i0 + rows - 1 may see, and those that all of them may, as far as causal, window and
 * kv_len go. Both bounds of a query's range ascend with i. */
typedef struct key_range {
  int64_t first, last, all_first, all_last;
} key_range;
static key_range visible_keys(const attend_problem *p, const attend_slice *s, int64_t i0, int rows) {
  key_range r;
  attend_visible_range(p, s, i0, &r.first, &r.all_last);
  attend_visible_range(p, s, i0 + rows - 1, &r.all_first, &r.last);
  return r;
}

/* What the product Q·K is multiplied by before the passes: folded into the packed Q. */
static real score_factor(const attend_problem *p) {
  return (real)(p->softcap > 0 ? 2 * LOG2_E * p->scale / p->softcap : LOG2_E * p->scale);
}

static void softcap_pass(const score_tile *t) {
  lanes cap = lanes_set1((real)(t->problem->softcap * LOG2_E));
  for (int k = 0; k < t->keys * t->width; k += LANES) {
    lanes x = lanes_tanh_base2(lanes_load(t->s + k));
    lanes_store(t->s + k, lanes_mul(cap, x));
    if (t->softcap_slope) lanes_store(t->softcap_slope + k, lanes_fnma(x, x, lanes_set1(1)));
  }
}

static void alibi_pass(const score_tile *t) {
  lanes slope = lanes_set1((real)(t->slice->slope * LOG2_E));
  for (int k = 0; k < t->keys; k++) {
    lanes distance = lanes_add(lanes_index(), lanes_set1((real)(t->i0 + t->slice->off - t->j0 - k)));
    for (int v = 0; v < t->width; v += LANES) {
      real *s = t->s + k * t->width + v;
      lanes_store(s, lanes_fnma(slope, lanes_abs(distance), lanes_load(s)));
      distance = lanes_add(distance, lanes_set1(LANES));
    }
  }
}

/* LANES queries from v on, of key k, where `hidden`: score -inf, and what else is wanted 0. */
WORD void hide(const score_tile *t, int k, int v, lane_mask hidden) {
  int at = k * t->width + v;
  lanes_store(t->s + at, lanes_select(hidden, lanes_set1(-(real)INFINITY), lanes_load(t->s + at)));
  if (t->visible) lanes_store(t->visible + at, lanes_select(hidden, lanes_zero(), lanes_load(t->visible + at)));
  if (t->softcap_slope)
    lanes_store(t->softcap_slope + at, lanes_select(hidden, lanes_zero(), lanes_load(t->softcap_slope + at)));
}

static void bias_pass(const score_tile *t) {
  attend_type type = t->problem->layout[OPERAND_BIAS].type;
  lanes minus_infinity = lanes_set1(-(real)INFINITY), log2_e = lanes_set1((real)LOG2_E);
  for (int k = 0; k < t->keys; k += LANES) {
    lanes x[LANES];
    for (int v = 0; v < t->width; v += LANES) {
      if (v == 0 || t->slice->bias.row != 0)
        pack_broadcast(x, &t->slice->bias, t->i0 + v, t->rows - v, t->j0 + k, t->keys - k, type);
      for (int c = 0; c < LANES && k + c < t->keys; c++) {
        real *s = t->s + (k + c) * t->width + v;
        lanes_store(s, lanes_fma(x[c], log2_e, lanes_load(s)));
        lane_mask hidden = lanes_equal(x[c], minus_infinity);
        if (mask_any(hidden)) hide(t, k + c, v, hidden);
      }
    }
  }
}

static void mask_pass(const score_tile *t) {
  const attend_matrix *m = &t->slice->mask;
  if (m->row == 0) { /* key padding: one byte hides a key from every query */
    for (int k = 0; k < t->keys; k++)
      if (!m->data[(t->j0 + k) * m->col])
        for (int v = 0; v < t->width; v += LANES) hide(t, k, v, mask_first(LANES));
    return;
  }
  for (int v = 0; v < t->width; v += LANES)
    for (int k = 0; k < t->keys; k += LANES) {
      lanes x[LANES];
      pack_broadcast(x, m, t->i0 + v, t->rows - v, t->j0 + k, t->keys - k, TYPE_BOOL);
      for (int c = 0; c < LANES && k + c < t->keys; c++) hide(t, k + c, v, lanes_equal(x[c], lanes_zero()));
    }
}

static real clamp_lane(int64_t lane, int width) { return (real)(lane < -1 ? -1 : lane > width ? width : lane); }

/* Causal and window at keys that not every query of the tile sees: key j is seen from lane j - center - right on (with
 * causal right is at most 0), up to lane j - center + left. */
static void edge_pass(const score_tile *t, const key_range *range) {
  const attend_problem *p = t->problem;
  const int64_t unbounded = INT64_MAX / 4;
  int64_t left = p->window_left >= 0 && p->window_left < unbounded ? p->window_left : unbounded;
  int64_t right = p->window_right >= 0 && p->window_right < unbounded ? p->window_right : unbounded;
  if (p->causal) right = 0;
  int64_t center = t->i0 + t->slice->off;
  for (int k = 0; k < t->keys; k++) {
    int64_t j = t->j0 + k;
    if (j >= range->all_first && j < range->all_last) continue;
    lanes from = lanes_set1(clamp_lane(j - center - right, t->width));
    lanes to = lanes_set1(clamp_lane(j - center + left, t->width)), lane = lanes_index();
    for (int v = 0; v < t->width; v += LANES) {
      hide(t, k, v, mask_or(lanes_less(lane, from), lanes_less(to, lane)));
      lane = lanes_add(lane, lanes_set1(LANES));
    }
  }
}

/* Does the mask hide every pair of the tile? */
static bool mask_is_empty(const attend_slice *s, int64_t i0, int rows, int64_t j0, int keys) {
  const uint8_t *base = (const uint8_t *)s->mask.data + i0 * s->mask.row + j0 * s->mask.col;
  if (s->mask.row == 0) rows = 1;
  if (s->mask.col == 0) keys = 1;
  for (int i = 0; i < rows; i++) {
    const uint8_t *row = base + i * s->mask.row;
    uint8_t any = 0;
    if (s->mask.col == 1)
      for (int k = 0; k < keys; k++) any |= row[k];
    else
      for (int k = 0; k < keys; k++) any |= row[k * s->mask.col];
    if (any) return false;
  }
  return true;
}

/* Do causal, a window or kv_len hide some pair of the tile? */
static bool is_edge(const score_tile *t, const key_range *range) {
  return t->j0 < range->all_first || t->j0 + t->keys > range->all_last;
}

/* All passes over a tile of products. True if some pair of it may be hidden. */
static bool score_passes(const score_tile *t, const key_range *range) {
  if (t->visible)
    for (int k = 0; k < t->keys * t->width; k += LANES) lanes_store(t->visible + k, lanes_set1(1));
  if (t->problem->softcap > 0) softcap_pass(t);
  if (t->slice->bias.data) bias_pass(t);
  if (t->slice->slope != 0) alibi_pass(t);
  if (t->slice->mask.data) mask_pass(t);
  bool edge = is_edge(t, range);
  if (edge) edge_pass(t, range);
  return edge || t->slice->mask.data || t->slice->bias.data;
}

/* Zero the dropped elements of a tile, and multiply the others by `scale`. One Philox block serves eight keys of a
 * group of 32. */
static void dropout_pass(const score_tile *t, real *x, real scale) {
  lanes factor = lanes_set1(scale);
  uint32_t draw[4 * LANES];
  for (int v = 0; v < t->width; v += LANES)
    for (int64_t group = t->j0 >> 5; group <= (t->j0 + t->keys - 1) >> 5; group++)
      for (int pair = 0; pair < 4; pair++) {
        lanes_philox(draw, (uint64_t)(4 * group + pair), (uint64_t)(t->i0 + v), t->slice->dropout_key);
        for (int word = 0; word < 4; word++)
          for (int half = 0; half < 2; half++) {
            int64_t k = 32 * group + 8 * word + 2 * pair + half - t->j0;
            if (k < 0 || k >= t->keys) continue;
            lane_mask keep = lanes_keep(draw + word * LANES, half, t->problem->dropout_threshold);
            real *p = x + k * t->width + v;
            lanes_store(p, lanes_select(keep, lanes_mul(lanes_load(p), factor), lanes_zero()));
          }
      }
}

/* Does some pass change scores of the tile? Those of any other tile are what the products gave. */
static bool needs_passes(const score_tile *t, const key_range *range) {
  const attend_slice *s = t->slice;
  return t->problem->softcap > 0 || s->bias.data || s->slope != 0 || s->mask.data || is_edge(t, range);
}

/* S = scale * rows of K (or V) times the packed B [terms][TILE_LANES], for `keys` rows, `width` apart; the last tile
 * repeats the last row and its surplus rows of S are never read: S has room for a multiple of TILE_ROWS. `largest` of
 * each lane, if wanted, is raised to what is stored: here a maximum is free, while adders wait for multipliers. */
WORD void score_products_as(real *s, int width, const key_rows *k, int keys, const real *b, int64_t terms, bool scaled,
                            real scale, real *largest) {
  for (int first = 0; first < keys; first += TILE_ROWS) {
    const real *a[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) a[r] = k->rows + (first + r < keys ? first + r : keys - 1) * k->row;
    tile_sums sums = tile_product_rows(a, b, TILE_LANES, terms);
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) {
      lanes most = largest ? lanes_load(largest + v * LANES) : lanes_zero();
#pragma GCC unroll 16
      for (int r = 0; r < TILE_ROWS; r++) {
        lanes x = scaled ? lanes_mul(sums.c[r][v], lanes_set1(scale)) : sums.c[r][v];
        lanes_store(s + (first + r) * width + v * LANES, x);
        if (largest) most = lanes_max(x, most);
      }
      if (largest) lanes_store(largest + v * LANES, most);
    }
  }
}
/* As they are, where B carries the scale or it is 1 or left for later. */
static void score_products(real *s, int width, const key_rows *k, int keys, const real *b, int64_t terms) {
  score_products_as(s, width, k, keys, b, terms, false, 1, NULL);
}
static void score_products_scaled(real *s, int width, const key_rows *k, int keys, const real *b, int64_t terms,
                                  real scale) {
  score_products_as(s, width, k, keys, b, terms, TILE_TERMS == 2, scale, NULL);
}
static void score_products_largest(real *s, int width, const key_rows *k, int keys, const real *b, int64_t terms,
                                   real scale, real largest[TILE_LANES]) {
  score_products_as(s, width, k, keys, b, terms, TILE_TERMS == 2, scale, largest);
}
