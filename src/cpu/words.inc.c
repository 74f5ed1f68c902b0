/* SPDX-License-Identifier: MIT */
/* Rows of words: what the tile word reads as A and B. A word is TILE_TERMS elements that are neighbours along the sum,
 * one `real` or two bf16. Where the sum goes along a row of a tensor its words lie there already; where it goes across
 * rows, words of two are made from two rows. */

/* Rows j0 … of K, V or what has their shape, as words: in place where the tensor allows it, else packed. */
typedef struct key_rows {
  const real *rows;
  int64_t row;
} key_rows;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t words(int64_t elements) { return (elements + TILE_TERMS - 1) / TILE_TERMS; }

/* Rows of words in place of `rows` rows of elements [rows][TILE_LANES]: what the tile word reads as B. */
static void make_words(real *x, int64_t rows) {
  if (TILE_TERMS == 1) return;
  for (int64_t r = 0; r < rows; r += 2)
    for (int v = 0; v < TILE_LANES; v += LANES) {
      const real *at = x + r * TILE_LANES + v;
      lanes second = r + 1 < rows ? lanes_load(at + TILE_LANES) : lanes_zero();
      lanes_store(x + r / 2 * TILE_LANES + v, tile_words(lanes_load(at), second));
    }
}

/* Can the tile word read rows of this matrix in place? Columns that are read in tiles must be a multiple of them. */
static bool readable_in_place(const attend_slice *s, const attend_matrix *m, bool across, int64_t columns,
                              attend_type type) {
  if (m->col != 1 || s->pages.table) return false;
  if (TILE_TERMS == 1) return type == REAL_TYPE && columns % TILE_ROWS == 0;
  return !across && columns % 2 == 0 && m->row % 2 == 0 && (uintptr_t)m->data % sizeof(real) == 0;
}

/* Words along a row of bf16: out[0 … words(columns)). */
static void pack_words_along(real *out, const uint16_t *row, int64_t col, int64_t columns) {
  for (int64_t c = 0; c < words(columns); c++) {
    uint32_t word = row[2 * c * col];
    if (2 * c + 1 < columns) word |= (uint32_t)row[(2 * c + 1) * col] << 16;
    memcpy(out + c, &word, sizeof word);
  }
}

/* Words across two rows of bf16, the second of zeros if NULL: out[0 … padded), 0 from `columns` on. */
static void pack_words_across(real *out, const uint16_t *low, const uint16_t *high, int64_t col, int64_t columns,
                              int64_t padded) {
  int64_t c = 0;
  if (col == 1 && high)
    for (; c + LANES <= columns; c += LANES) lanes_store(out + c, tile_words_across(low + c, high + c));
  for (; c < columns; c++) {
    uint32_t word = low[c * col] | (high ? (uint32_t)high[c * col] << 16 : 0);
    memcpy(out + c, &word, sizeof word);
  }
  for (; c < padded; c++) out[c] = 0;
}

/* Rows j0 … j0 + keys - 1 of K or V (or what has their shape) as words along them or across them, in place or packed
 * into `buffer`, where words across have `columns` padded to TILE_ROWS. */
static key_rows load_key_rows(const attend_slice *s, const attend_matrix *m, bool is_value, bool across, int64_t j0,
                              int keys, int64_t columns, attend_type type, real *buffer) {
  if (readable_in_place(s, m, across, columns, type)) {
    const void *first = m->data + j0 * m->row * (int64_t)attend_type_size(type);
    return (key_rows){first, m->row / TILE_TERMS};
  }
  int64_t row = TILE_TERMS == 1 || across ? round_up(columns, TILE_ROWS) : words(columns);
  int step = across ? TILE_TERMS : 1;
  for (int k = 0; k < keys; k += step) {
    int64_t index = is_value ? attend_value_row(s, j0 + k) : attend_key_row(s, j0 + k);
    real *out = buffer + k / step * row;
    if (TILE_TERMS == 1) {
      pack_row(out, m->data, index, m->col, columns, row, type);
      continue;
    }
    const uint16_t *base = (const uint16_t *)(const void *)m->data;
    if (!across) {
      pack_words_along(out, base + index, m->col, columns);
      continue;
    }
    const uint16_t *high = NULL;
    if (k + 1 < keys) high = base + (is_value ? attend_value_row(s, j0 + k + 1) : attend_key_row(s, j0 + k + 1));
    pack_words_across(out, base + index, high, m->col, columns, row);
  }
  return (key_rows){buffer, row};
}
