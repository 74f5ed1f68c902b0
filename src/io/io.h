/* SPDX-License-Identifier: MIT */
/* Arrays in files: .npy (NumPy format 1 to 3) and .safetensors, read into memory, written whole or not at all; and
 * pictures as PNG. Every function returns false on failure, with what was expected and what came in the error. */
#ifndef ATTEND_IO_H
#define ATTEND_IO_H

#include "attend.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct io_error {
  char text[1024];
} io_error;

/* Set the text; false, so that `return io_fail(...)`. */
bool io_fail(io_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

enum { IO_MAX_DIMS = 8, IO_NAME_SIZE = 256 };

/* A tensor that owns its shape and, where `owned` is set, its memory. tensor.shape and strides point into the struct:
 * after copying an io_array call io_array_fix. */
typedef struct io_array {
  attend_tensor tensor;
  int64_t shape[IO_MAX_DIMS], strides[IO_MAX_DIMS];
  char name[IO_NAME_SIZE]; /* safetensors: the tensor's; otherwise "" */
  void *owned;
} io_array;

/* Memory that free() takes back, of huge pages where it is 4 MiB or more and the system has them; NULL when out of it.
 */
void *io_memory_new(size_t bytes);

void io_array_fix(io_array *array);
void io_array_free(io_array *array);
size_t io_element_size(attend_dtype dtype); /* bytes; 0 if the type is none of attend.h's */
/* Shape, compact strides and the bytes they take, without memory; false if that overflows. */
bool io_array_describe(io_array *array, attend_dtype dtype, int ndim, const int64_t *shape, size_t *bytes,
                       io_error *error);
/* A compact zeroed array; false when out of memory. */
bool io_array_new(io_array *array, attend_dtype dtype, int ndim, const int64_t *shape, io_error *error);

/* The whole file; free it. NULL: failed. Of one without `mark` at byte `at` only the beginning, enough to refuse it:
 * a device may have no end. */
unsigned char *io_file_read(const char *path, size_t at, const char *mark, size_t *size, io_error *error);

bool io_npy_read(const char *path, io_array *array, io_error *error);
bool io_npy_parse(const char *path, const unsigned char *bytes, size_t size, io_array *array, io_error *error);
bool io_npy_write(const char *path, const attend_tensor *tensor, io_error *error);

typedef struct io_tensors {
  io_array *arrays; /* memory belongs to `bytes` */
  int count;
  char *metadata; /* the JSON text of __metadata__, or NULL */
  void *bytes;
} io_tensors;

bool io_safetensors_read(const char *path, io_tensors *tensors, io_error *error);
/* Takes the bytes (from malloc), also when it fails. */
bool io_safetensors_parse(const char *path, void *bytes, size_t size, io_tensors *tensors, io_error *error);
void io_safetensors_free(io_tensors *tensors);
const io_array *io_safetensors_find(const io_tensors *tensors, const char *name); /* NULL: none */
bool io_safetensors_write(const char *path, const char *const *names, const attend_tensor *const *tensors, int count,
                          io_error *error);

/* Writing whole or not at all: a temporary file beside the target, renamed over it by io_output_commit. A signal that
 * ends the program removes it. What is there and is no file (a pipe, a terminal) is written to as it is. */
typedef struct io_output {
  FILE *file;
  char path[4096], temporary[4096 + 32]; /* temporary: "" if there is none */
} io_output;
bool io_output_open(io_output *output, const char *path, io_error *error);
bool io_output_commit(io_output *output, io_error *error); /* on failure the temporary file is gone too */
void io_output_abandon(io_output *output);
/* The tensor's elements in row-major order, whatever its strides. */
bool io_output_elements(io_output *output, const attend_tensor *tensor);

/* 8-bit RGB, rows of 3 * width bytes. */
bool io_png_write(const char *path, const unsigned char *rgb, int width, int height, io_error *error);

#endif
