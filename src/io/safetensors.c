/* SPDX-License-Identifier: MIT */
/* .safetensors: eight bytes of header length, a JSON header that names each tensor's type, shape and byte range, then
 * the bytes. As the format demands, the ranges cover the rest of the file without gap or overlap. */
#include "io.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct type_name {
  const char *name;
  attend_dtype dtype;
} type_name;

static const type_name types[] = {
    {"F32", {2, 32, 1}}, {"F16", {2, 16, 1}}, {"BF16", {4, 16, 1}}, {"F64", {2, 64, 1}},
    {"BOOL", {6, 8, 1}}, {"I32", {0, 32, 1}}, {"I64", {0, 64, 1}},
};
enum { TYPES = sizeof types / sizeof *types };

/* A JSON number that is a whole number of [0, 2^53]. */
static bool whole(const cJSON *item, int64_t *out) {
  if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 9007199254740992.0)) return false;
  *out = (int64_t)item->valuedouble;
  return (double)*out == item->valuedouble;
}

static bool parse_tensor(const char *path, const cJSON *entry, char *data, int64_t data_size, io_array *a,
                         int64_t range[2], io_error *error) {
  const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype"),
              *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
  const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
  if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2)
    return io_fail(error, "%s: tensor %.100s: expected dtype, shape and two data_offsets", path, entry->string);
  int type = 0;
  while (type < TYPES && strcmp(dtype->valuestring, types[type].name)) type++;
  if (type == TYPES)
    return io_fail(error, "%s: tensor %.100s: expected F32, F16, BF16, F64, BOOL, I32 or I64, got %.20s", path,
                   entry->string, dtype->valuestring);
  int ndim = cJSON_GetArraySize(shape);
  if (ndim > IO_MAX_DIMS)
    return io_fail(error, "%s: tensor %.100s: expected at most %d dimensions, got %d", path, entry->string, IO_MAX_DIMS,
                   ndim);
  memset(a, 0, sizeof *a);
  snprintf(a->name, sizeof a->name, "%s", entry->string);
  a->tensor = attend_tensor_of(NULL, types[type].dtype, ndim, a->shape);
  int64_t bytes = (int64_t)io_element_size(types[type].dtype);
  for (int i = 0; i < ndim; i++)
    if (!whole(cJSON_GetArrayItem(shape, i), &a->shape[i]) || __builtin_mul_overflow(bytes, a->shape[i], &bytes))
      return io_fail(error, "%s: tensor %.100s: a size is no whole number, or they overflow", path, entry->string);
  for (int64_t i = ndim - 1, step = 1; bytes && i >= 0; step *= a->shape[i--]) a->strides[i] = step;
  if (!whole(cJSON_GetArrayItem(offsets, 0), &range[0]) || !whole(cJSON_GetArrayItem(offsets, 1), &range[1]) ||
      range[0] > range[1] || range[1] > data_size || range[1] - range[0] != bytes)
    return io_fail(error, "%s: tensor %.100s: expected data_offsets of %lld bytes within %lld, got others", path,
                   entry->string, (long long)bytes, (long long)data_size);
  if ((uintptr_t)(data + range[0]) % io_element_size(types[type].dtype))
    return io_fail(error, "%s: tensor %.100s: expected its bytes aligned to its element in the file, got offset %lld",
                   path, entry->string, (long long)range[0]);
  a->tensor.data = data + range[0];
  return true;
}

typedef struct range {
  int64_t first, last;
} range;

static int by_first(const void *x, const void *y) {
  const range *a = x, *b = y;
  if (a->first != b->first) return a->first < b->first ? -1 : 1;
  return a->last < b->last ? -1 : a->last > b->last;
}

bool io_safetensors_parse(const char *path, void *bytes, size_t size, io_tensors *t, io_error *error) {
  bool good = false;
  cJSON *json = NULL;
  range *ranges = NULL;
  memset(t, 0, sizeof *t);
  t->bytes = bytes;
  uint64_t length = 0;
  if (size < 8) {
    io_fail(error, "%s: not a .safetensors file: expected at least 8 bytes, got %zu", path, size);
    goto done;
  }
  for (int i = 7; i >= 0; i--) length = length << 8 | ((unsigned char *)bytes)[i];
  if (length > size - 8 || length > 100000000) {
    io_fail(error, "%s: truncated: a header of %llu bytes, and %zu bytes left", path, (unsigned long long)length,
            size - 8);
    goto done;
  }
  char *text = (char *)bytes + 8;
  json = cJSON_ParseWithLength(text, (size_t)length);
  if (!cJSON_IsObject(json)) {
    io_fail(error, "%s: the header is no JSON object", path);
    goto done;
  }
  int most = cJSON_GetArraySize(json);
  t->arrays = calloc((size_t)most + 1, sizeof *t->arrays);
  ranges = calloc((size_t)most + 1, sizeof *ranges);
  if (!t->arrays || !ranges) {
    io_fail(error, "%s: out of memory", path);
    goto done;
  }
  int64_t data_size = (int64_t)(size - 8 - length);
  for (const cJSON *entry = json->child; entry; entry = entry->next) {
    if (!strcmp(entry->string, "__metadata__")) {
      free(t->metadata);
      t->metadata = cJSON_PrintUnformatted(entry);
      continue;
    }
    if (io_safetensors_find(t, entry->string)) {
      io_fail(error, "%s: tensor %.100s: named twice", path, entry->string);
      goto done;
    }
    int64_t r[2] = {0, 0};
    if (!parse_tensor(path, entry, text + length, data_size, &t->arrays[t->count], r, error)) goto done;
    io_array_fix(&t->arrays[t->count]);
    ranges[t->count++] = (range){r[0], r[1]};
  }
  qsort(ranges, (size_t)t->count, sizeof *ranges, by_first);
  int64_t covered = 0;
  for (int i = 0; i < t->count; i++) {
    if (ranges[i].first != covered) {
      io_fail(error, "%s: expected tensors without gap or overlap, got byte %lld after %lld", path,
              (long long)ranges[i].first, (long long)covered);
      goto done;
    }
    covered = ranges[i].last;
  }
  good = covered == data_size ||
         io_fail(error, "%s: expected %lld bytes of tensors, got %lld", path, (long long)covered, (long long)data_size);
done:
  cJSON_Delete(json);
  free(ranges);
  if (!good) io_safetensors_free(t);
  return good;
}

void io_safetensors_free(io_tensors *t) {
  free(t->arrays);
  free(t->metadata);
  free(t->bytes);
  memset(t, 0, sizeof *t);
}

const io_array *io_safetensors_find(const io_tensors *t, const char *name) {
  for (int i = 0; i < t->count; i++)
    if (!strcmp(t->arrays[i].name, name)) return &t->arrays[i];
  return NULL;
}

bool io_safetensors_read(const char *path, io_tensors *tensors, io_error *error) {
  size_t size;
  unsigned char *bytes = io_file_read(path, 8, "{", &size, error);
  return bytes && io_safetensors_parse(path, bytes, size, tensors, error);
}

bool io_safetensors_write(const char *path, const char *const *names, const attend_tensor *const *tensors, int count,
                          io_error *error) {
  cJSON *json = cJSON_CreateObject();
  int64_t at = 0;
  for (int i = 0; i < count; i++) {
    int type = 0;
    while (type < TYPES &&
           (types[type].dtype.code != tensors[i]->dtype.code || types[type].dtype.bits != tensors[i]->dtype.bits))
      type++;
    if (type == TYPES) {
      cJSON_Delete(json);
      return io_fail(error, "%s: tensor %s: an element type that cannot be written", path, names[i]);
    }
    cJSON *entry = cJSON_AddObjectToObject(json, names[i]);
    cJSON_AddStringToObject(entry, "dtype", types[type].name);
    cJSON *shape = cJSON_AddArrayToObject(entry, "shape"), *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
    int64_t bytes = (int64_t)io_element_size(tensors[i]->dtype);
    for (int d = 0; d < tensors[i]->ndim; d++) {
      cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensors[i]->shape[d]));
      bytes *= tensors[i]->shape[d];
    }
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)at));
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)(at += bytes)));
  }
  char *text = cJSON_PrintUnformatted(json);
  cJSON_Delete(json);
  if (!text) return io_fail(error, "%s: out of memory", path);
  size_t length = strlen(text), padded = (length + 7) / 8 * 8;
  io_output o;
  bool good = io_output_open(&o, path, error);
  if (good) {
    unsigned char size[8];
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    good = fwrite(size, 8, 1, o.file) == 1 && fwrite(text, length, 1, o.file) == 1;
    for (; good && length < padded; length++) good = fputc(' ', o.file) != EOF;
    for (int i = 0; good && i < count; i++) good = io_output_elements(&o, tensors[i]);
    if (good)
      good = io_output_commit(&o, error);
    else {
      io_fail(error, "%s: not written: %s", path, strerror(errno));
      io_output_abandon(&o);
    }
  }
  free(text);
  return good;
}
