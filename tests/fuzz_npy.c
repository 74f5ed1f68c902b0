/* SPDX-License-Identifier: MIT */
/* Any bytes as an .npy file: an array whose every element can be read, or an error with a text. */
#include "io/io.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  io_array a;
  io_error error = {""};
  if (!io_npy_parse("fuzz", data, size, &a, &error)) {
    assert(error.text[0]);
    return 0;
  }
  const unsigned char *bytes = a.tensor.data;
  size_t count = io_element_size(a.tensor.dtype);
  unsigned sum = 0;
  for (int i = 0; i < a.tensor.ndim; i++) count *= (size_t)a.tensor.shape[i];
  for (size_t i = 0; i < count; i++) sum += bytes[i];
  for (int64_t at = 0, i = 0; count && i < a.tensor.ndim; i++) {
    at += (a.tensor.shape[i] - 1) * a.tensor.strides[i]; /* the last element in the file's own order */
    sum += bytes[(size_t)at * io_element_size(a.tensor.dtype)];
  }
  io_array_free(&a);
  return sum == 1u << 31; /* libFuzzer keeps inputs that give 0 */
}

/* Mutations alone seldom find a header whose length is right: half of the inputs get one that is. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  static const char header[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
  if (size < 12 && most > 10 + sizeof header + 24) {
    memcpy(data, "\x93NUMPY\x01\0", 8);
    memcpy(data + 10, header, sizeof header - 1);
    memset(data + 10 + sizeof header - 1, (int)seed, 24);
    size = 10 + sizeof header - 1 + 24;
    data[8] = (uint8_t)(sizeof header - 1), data[9] = 0;
    return size;
  }
  size = LLVMFuzzerMutate(data, size, most);
  if (seed % 2 && size > 12) {
    const uint8_t *end = memchr(data + 10, '}', size - 10);
    if (end) data[8] = (uint8_t)(end + 1 - (data + 10)), data[9] = (uint8_t)((end + 1 - (data + 10)) >> 8);
  }
  return size;
}
