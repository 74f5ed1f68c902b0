/* SPDX-License-Identifier: MIT */
/* Between tensors of any type and stride and the compact tiles of `real` that the tile word reads. The element type is
 * a constant in each loop; what is not contiguous goes element by element. */

/* One row's n elements (n <= LANES), from element `index` on, `col` apart. */
WORD lanes pack_load(const char *data, int64_t index, int64_t col, int n, attend_type type) {
  if (col == 1) return lanes_load_type(data + index * (int64_t)attend_type_size(type), n, type);
  real x[LANES] = {0};
  for (int i = 0; i < n && i < LANES; i++) x[i] = (real)attend_load(data, index + i * col, type);
  return lanes_load(x);
}

WORD void pack_store(char *data, int64_t index, int64_t col, lanes x, int n, attend_type type) {
  if (col == 1) {
    lanes_store_type(data + index * (int64_t)attend_type_size(type), x, n, type);
    return;
  }
  real copy[LANES];
  lanes_store(copy, x);
  for (int i = 0; i < n && i < LANES; i++) attend_store(data, index + i * col, type, (double)copy[i]);
}

/* One block of LANES columns from c on, of lanes v. `whole` is a constant: all rows and columns are there, and the
 * vectors stay in registers (with the general bounds they live on the stack: four times slower). */
WORD void pack_block(real *out, const attend_matrix *m, int64_t first, int rows, int64_t c, int width, int v,
                     lanes factor, bool whole, attend_type type) {
  lanes x[LANES];
#pragma GCC unroll 16
  for (int l = 0; l < LANES; l++)
    x[l] = whole || v + l < rows
               ? pack_load(m->data, (first + v + l) * m->row + c * m->col, m->col, whole ? LANES : width, type)
               : lanes_zero();
  lanes_transpose(x);
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    if (whole || i < width) lanes_store(out + (c + i) * TILE_LANES + v, lanes_mul(x[i], factor));
}

/* out[c][l] = scale * m[first + l, c]: TILE_LANES rows of the matrix become lanes; lanes from `rows` on are 0. */
WORD void pack_transposed_as(real *out, const attend_matrix *m, int64_t first, int rows, int64_t columns, real scale,
                             attend_type type) {
  const attend_matrix unit = {m->data, m->row, 1};
  for (int v = 0; v < TILE_LANES; v += LANES)
    for (int64_t c = 0; c < columns; c += LANES)
      if (m->col == 1 && rows - v >= LANES && columns - c >= LANES)
        pack_block(out, &unit, first, rows, c, LANES, v, lanes_set1(scale), true, type);
      else
        pack_block(out, m, first, rows, c, columns - c < LANES ? (int)(columns - c) : LANES, v, lanes_set1(scale),
                   false, type);
}
static void pack_transposed(real *out, const attend_matrix *m, int64_t first, int rows, int64_t columns, real scale,
                            attend_type type) {
  if (type == TYPE_F16)
    pack_transposed_as(out, m, first, rows, columns, scale, TYPE_F16);
  else if (type == TYPE_BF16)
    pack_transposed_as(out, m, first, rows, columns, scale, TYPE_BF16);
  else
    pack_transposed_as(out, m, first, rows, columns, scale, REAL_TYPE);
}

/* One row of a matrix, from element `index` on, as reals: out[0 … padded), 0 from `columns` on. */
WORD void pack_row_as(real *out, const char *data, int64_t index, int64_t col, int64_t columns, int64_t padded,
                      attend_type type) {
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES) lanes_store(out + c, pack_load(data, index + c * col, col, LANES, type));
  if (c < columns) {
    real tail[LANES];
    lanes_store(tail, pack_load(data, index + c * col, col, (int)(columns - c), type));
    for (int i = 0; c < columns; i++, c++) out[c] = tail[i];
  }
  for (; c < padded; c++) out[c] = 0;
}
static void pack_row(real *out, const char *data, int64_t index, int64_t col, int64_t columns, int64_t padded,
                     attend_type type) {
  if (type == TYPE_F16)
    pack_row_as(out, data, index, col, columns, padded, TYPE_F16);
  else if (type == TYPE_BF16)
    pack_row_as(out, data, index, col, columns, padded, TYPE_BF16);
  else
    pack_row_as(out, data, index, col, columns, padded, REAL_TYPE);
}

WORD void unpack_block(const attend_matrix *m, int64_t first, int rows, int64_t c, int width, const real *in, int v,
                       lanes factor, bool add, bool whole, attend_type type) {
  lanes x[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    x[i] = whole || i < width ? lanes_mul(lanes_load(in + (c + i) * TILE_LANES + v), factor) : lanes_zero();
  lanes_transpose(x);
#pragma GCC unroll 16
  for (int l = 0; l < LANES; l++) {
    if (!whole && v + l >= rows) break;
    int64_t index = (first + v + l) * m->row + c * m->col;
    lanes y = add ? lanes_add(pack_load(m->data, index, m->col, whole ? LANES : width, type), x[l]) : x[l];
    pack_store(m->data, index, m->col, y, whole ? LANES : width, type);
  }
}

/* m[first + l, c] = in[c][l] * factor[l], or += with `add`: the inverse of pack_transposed. */
WORD void unpack_transposed_as(const attend_matrix *m, int64_t first, int rows, int64_t columns, const real *in,
                               const real factor[TILE_LANES], bool add, attend_type type) {
  const attend_matrix unit = {m->data, m->row, 1};
  for (int v = 0; v < TILE_LANES; v += LANES) {
    lanes f = lanes_load(factor + v);
    for (int64_t c = 0; c < columns; c += LANES)
      if (m->col == 1 && rows - v >= LANES && columns - c >= LANES)
        unpack_block(&unit, first, rows, c, LANES, in, v, f, add, true, type);
      else
        unpack_block(m, first, rows, c, columns - c < LANES ? (int)(columns - c) : LANES, in, v, f, add, false, type);
  }
}
static void unpack_transposed(const attend_matrix *m, int64_t first, int rows, int64_t columns, const real *in,
                              const real factor[TILE_LANES], bool add, attend_type type) {
  if (type == TYPE_F16)
    unpack_transposed_as(m, first, rows, columns, in, factor, add, TYPE_F16);
  else if (type == TYPE_BF16)
    unpack_transposed_as(m, first, rows, columns, in, factor, add, TYPE_BF16);
  else
    unpack_transposed_as(m, first, rows, columns, in, factor, add, REAL_TYPE);
}

/* x[c] = lanes of m[first + l, column + c], c < LANES, for tensors that broadcast over rows or columns (mask, bias).
 * Rows from `rows` and columns from `columns` on are 0 and not read. */
WORD void pack_broadcast_as(lanes x[LANES], const attend_matrix *m, int64_t first, int rows, int64_t column,
                            int columns, attend_type type) {
  if (columns > LANES) columns = LANES;
  if (m->row == 0) { /* one row for all queries */
    for (int c = 0; c < LANES; c++)
      x[c] = c < columns ? lanes_set1((real)attend_load(m->data, (column + c) * m->col, type)) : lanes_zero();
    return;
  }
  for (int l = 0; l < LANES; l++) {
    int64_t index = (first + l) * m->row + column * m->col;
    if (l >= rows)
      x[l] = lanes_zero();
    else if (type == TYPE_BOOL && m->col == 1 && columns == LANES)
      x[l] = lanes_load_bool((const uint8_t *)m->data + index);
    else if (type == TYPE_BOOL || m->col != 1) {
      real copy[LANES] = {0};
      for (int c = 0; c < columns; c++) copy[c] = (real)attend_load(m->data, index + c * m->col, type);
      x[l] = lanes_load(copy);
    } else
      x[l] = lanes_load_type(m->data + index * (int64_t)attend_type_size(type), columns, type);
  }
  lanes_transpose(x);
}
static void pack_broadcast(lanes x[LANES], const attend_matrix *m, int64_t first, int rows, int64_t column, int columns,
                           attend_type type) {
  if (type == TYPE_BOOL)
    pack_broadcast_as(x, m, first, rows, column, columns, TYPE_BOOL);
  else if (type == TYPE_F16)
    pack_broadcast_as(x, m, first, rows, column, columns, TYPE_F16);
  else if (type == TYPE_BF16)
    pack_broadcast_as(x, m, first, rows, column, columns, TYPE_BF16);
  else if (type == TYPE_F32)
    pack_broadcast_as(x, m, first, rows, column, columns, TYPE_F32);
  else
    pack_broadcast_as(x, m, first, rows, column, columns, REAL_TYPE);
}
