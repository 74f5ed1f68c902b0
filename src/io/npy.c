/* SPDX-License-Identifier: MIT */
/* NumPy's .npy, versions 1 to 3 (numpy.lib.format): a Python dict literal, then the elements. */
#include "io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct npy_type {
  const char *code;
  attend_dtype dtype;
} npy_type;

/* V2 is how ml_dtypes' bfloat16 is saved. */
static const npy_type types[] = {
    {"f4", {2, 32, 1}}, {"f2", {2, 16, 1}}, {"f8", {2, 64, 1}}, {"V2", {4, 16, 1}},
    {"b1", {6, 8, 1}},  {"i4", {0, 32, 1}}, {"i8", {0, 64, 1}},
};
enum { TYPES = sizeof types / sizeof *types };

/* The text after  'key':  in the header, or NULL. */
static const char *value_of(const char *header, const char *key) {
  for (const char *at = header; (at = strstr(at, key)); at++) {
    size_t n = strlen(key);
    if (at > header && (at[-1] == '\'' || at[-1] == '"') && at[n] == at[-1]) {
      at += n + 1;
      while (*at == ' ') at++;
      if (*at++ != ':') return NULL;
      while (*at == ' ') at++;
      return at;
    }
  }
  return NULL;
}

static bool parse_header(const char *path, const char *header, io_array *a, bool *fortran, io_error *error) {
  const char *descr = value_of(header, "descr"), *order = value_of(header, "fortran_order"),
             *shape = value_of(header, "shape");
  if (!descr || !order || !shape)
    return io_fail(error, "%s: .npy header lacks descr, fortran_order or shape: \"%.200s\"", path, header);
  char code[16] = "";
  size_t n = 0;
  if (*descr != '\'' && *descr != '"')
    return io_fail(error, "%s: expected a plain element type, got %.60s", path, descr);
  for (const char *c = descr + 1; *c && *c != *descr && n + 1 < sizeof code; c++) code[n++] = *c;
  code[n] = 0;
  if (code[0] == '>') return io_fail(error, "%s: expected little-endian elements, got big-endian %s", path, code);
  const char *plain = strchr("<|=", code[0]) && code[0] ? code + 1 : code;
  if (!strcmp(plain, "bfloat16")) plain = "V2";
  int type = 0;
  while (type < TYPES && strcmp(plain, types[type].code)) type++;
  if (type == TYPES)
    return io_fail(error, "%s: expected f2, f4, f8, bfloat16, bool, i4 or i8 elements, got '%s'", path, code);
  *fortran = !strncmp(order, "True", 4);
  if (!*fortran && strncmp(order, "False", 5))
    return io_fail(error, "%s: fortran_order: expected True or False, got %.20s", path, order);
  if (*shape++ != '(') return io_fail(error, "%s: shape: expected a tuple, got %.60s", path, shape - 1);
  int ndim = 0;
  int64_t sizes[IO_MAX_DIMS];
  for (;;) {
    while (*shape == ' ' || *shape == ',') shape++;
    if (*shape == ')') break;
    char *end;
    errno = 0;
    long long size = strtoll(shape, &end, 10);
    if (end == shape || errno || size < 0) return io_fail(error, "%s: shape: expected sizes, got %.60s", path, shape);
    if (ndim == IO_MAX_DIMS) return io_fail(error, "%s: shape: expected at most %d dimensions", path, IO_MAX_DIMS);
    sizes[ndim++] = size;
    shape = *end == 'L' ? end + 1 : end;
  }
  memset(a, 0, sizeof *a);
  a->tensor = attend_tensor_of(NULL, types[type].dtype, ndim, a->shape);
  memcpy(a->shape, sizes, (size_t)ndim * sizeof *sizes);
  return true;
}

bool io_npy_parse(const char *path, const unsigned char *bytes, size_t size, io_array *a, io_error *error) {
  if (size < 10 || memcmp(bytes, "\x93NUMPY", 6))
    return io_fail(error, "%s: not an .npy file: expected \\x93NUMPY first", path);
  int version = bytes[6];
  if (version < 1 || version > 3) return io_fail(error, "%s: expected .npy format 1, 2 or 3, got %d", path, version);
  size_t fixed = version == 1 ? 10 : 12;
  if (size < fixed) return io_fail(error, "%s: truncated in the header", path);
  size_t length = bytes[8] | (size_t)bytes[9] << 8;
  if (version > 1) length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
  if (length > size - fixed || length > 1 << 20)
    return io_fail(error, "%s: truncated: a header of %zu bytes, and %zu bytes left", path, length, size - fixed);
  char *header = malloc(length + 1);
  if (!header) return io_fail(error, "%s: out of memory", path);
  memcpy(header, bytes + fixed, length);
  header[length] = 0;
  bool fortran = false, good = parse_header(path, header, a, &fortran, error);
  free(header);
  if (!good) return false;
  int64_t count = (int64_t)io_element_size(a->tensor.dtype), sizes[IO_MAX_DIMS];
  int ndim = a->tensor.ndim;
  attend_dtype dtype = a->tensor.dtype;
  for (int i = 0; i < ndim; i++) {
    sizes[i] = a->shape[i];
    if (__builtin_mul_overflow(count, sizes[i], &count)) return io_fail(error, "%s: shape: the size overflows", path);
  }
  if ((uint64_t)count != size - fixed - length)
    return io_fail(error, "%s: expected %lld bytes of elements for its shape, got %zu", path, (long long)count,
                   size - fixed - length);
  if (!io_array_new(a, dtype, ndim, sizes, error)) return false;
  memcpy(a->owned, bytes + fixed + length, (size_t)count);
  for (int64_t i = 0, step = 1; fortran && i < ndim; step *= sizes[i++]) a->strides[i] = step;
  return true;
}

bool io_npy_read(const char *path, io_array *a, io_error *error) {
  size_t size;
  unsigned char *bytes = io_file_read(path, 0, "\x93NUMPY", &size, error);
  if (!bytes) return false;
  bool good = io_npy_parse(path, bytes, size, a, error);
  free(bytes);
  return good;
}

bool io_npy_write(const char *path, const attend_tensor *t, io_error *error) {
  int type = 0;
  while (type < TYPES && (types[type].dtype.code != t->dtype.code || types[type].dtype.bits != t->dtype.bits)) type++;
  if (type == TYPES) return io_fail(error, "%s: an element type that .npy files of this program cannot hold", path);
  char header[512];
  int n = snprintf(header, sizeof header, "{'descr': '%s%s', 'fortran_order': False, 'shape': (",
                   types[type].code[0] == 'b' ? "|" : "<", types[type].code);
  for (int i = 0; i < t->ndim; i++)
    n += snprintf(header + n, sizeof header - (size_t)n, "%lld,", (long long)t->shape[i]);
  n += snprintf(header + n, sizeof header - (size_t)n, "), }");
  while ((10 + n + 1) % 64) header[n++] = ' ';
  header[n++] = '\n';
  io_output o;
  if (!io_output_open(&o, path, error)) return false;
  const unsigned char magic[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)n, (unsigned char)(n >> 8)};
  if (fwrite(magic, 10, 1, o.file) != 1 || fwrite(header, (size_t)n, 1, o.file) != 1 || !io_output_elements(&o, t)) {
    io_fail(error, "%s: not written: %s", path, strerror(errno));
    io_output_abandon(&o);
    return false;
  }
  return io_output_commit(&o, error);
}
