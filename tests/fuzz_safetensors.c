/* SPDX-License-Identifier: MIT */
/* Any bytes as a .safetensors file: tensors whose every byte lies in the file, or an error with a text. An input whose
 * first byte is odd stands for choices from which a header is written, nearly right; others are taken as they are. */
#include "io/io.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct choices {
  const uint8_t *data;
  size_t size;
} choices;

static unsigned choose(choices *c, unsigned count) {
  if (!c->size) return 0;
  c->size--;
  return *c->data++ % count;
}

/* The file that the choices stand for; free it. */
static char *write_file(choices *c, size_t *size) {
  static const char *const names[] = {"q", "k", "mask", "__metadata__", "layer0.v", ""};
  static const char *const types[] = {"F32", "F16", "BF16", "F64", "BOOL", "I32", "I64", "U8", "f32"};
  static const int bytes[] = {4, 2, 2, 8, 1, 4, 8, 1, 4};
  static const char *const odd_sizes[] = {"-1", "0.5", "9007199254740992", "1e300", "null", "[1]"};
  enum { ROOM = 1 << 14, DATA = 1 << 12 };
  char *file = calloc(1, ROOM + DATA + 8), *text = file + 8;
  if (!file) abort();
  size_t n = 0;
  long long at = 0;
  n += (size_t)snprintf(text + n, ROOM - n, "{");
  for (unsigned t = 0, count = choose(c, 5); t < count; t++) {
    unsigned type = choose(c, 9);
    long long length = bytes[type];
    n += (size_t)snprintf(text + n, ROOM - n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", t ? "," : "",
                          names[choose(c, 6)], types[type]);
    for (unsigned d = 0, dims = choose(c, 10); d < dims; d++) {
      unsigned odd = choose(c, 64), extent = choose(c, 5);
      if (odd < 6)
        n += (size_t)snprintf(text + n, ROOM - n, "%s%s", d ? "," : "", odd_sizes[odd]);
      else
        n += (size_t)snprintf(text + n, ROOM - n, "%s%u", d ? "," : "", extent);
      length *= extent;
    }
    if (length > DATA) length = DATA;
    long long first = at + (choose(c, 16) == 1), last = at + length - (choose(c, 16) == 1);
    if (choose(c, 16) == 1) n += (size_t)snprintf(text + n, ROOM - n, "],\"other\":[[[{}]]],\"x\":[");
    n += (size_t)snprintf(text + n, ROOM - n, "],\"data_offsets\":[%lld,%lld]}", first, last);
    at += length;
  }
  n += (size_t)snprintf(text + n, ROOM - n, "}");
  while (n % 8 && choose(c, 8) != 1) text[n++] = ' ';
  for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)n >> (8 * i));
  if (choose(c, 32) == 1) file[choose(c, 8)] = (char)choose(c, 256);
  *size = 8 + n + (size_t)(at > DATA ? DATA : at) + (choose(c, 32) == 1);
  return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *written = NULL;
  if (size && data[0] % 2) {
    choices c = {data + 1, size - 1};
    written = write_file(&c, &size);
    data = (const uint8_t *)written;
  }
  char *bytes = malloc(size ? size : 1); /* no byte more, so that the sanitizer sees a read beyond */
  if (!bytes) abort();
  if (size) memcpy(bytes, data, size);
  free(written);
  io_tensors t;
  io_error error = {""};
  if (!io_safetensors_parse("fuzz", bytes, size, &t, &error)) {
    assert(error.text[0] && !t.bytes && !t.arrays);
    return 0;
  }
  unsigned sum = 0;
  for (int n = 0; n < t.count; n++) {
    const attend_tensor *a = &t.arrays[n].tensor;
    size_t count = io_element_size(a->dtype);
    for (int i = 0; i < a->ndim; i++) count *= (size_t)a->shape[i];
    assert(count <= size && (uintptr_t)a->data % io_element_size(a->dtype) == 0);
    for (size_t i = 0; i < count; i++) sum += ((const unsigned char *)a->data)[i];
    assert(io_safetensors_find(&t, t.arrays[n].name));
  }
  io_safetensors_free(&t);
  return sum == 1u << 31; /* libFuzzer keeps inputs that give 0 */
}
