/* SPDX-License-Identifier: MIT */
/* .npy and .safetensors files: what is written comes back, what is wrong is refused by name, and a file is replaced
 * whole or not at all. */
#include "io/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[] = "/tmp/attend-test-io-XXXXXX";

static const char *in_directory(const char *name) {
  static char path[256];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

static int enter(void **state) {
  (void)state;
  return mkdtemp(directory) ? 0 : -1;
}

static int leave(void **state) {
  (void)state;
  const char *names[] = {"a.npy", "a.safetensors", "a.png"};
  for (int i = 0; i < 3; i++) unlink(in_directory(names[i]));
  return rmdir(directory); /* fails if a temporary file was left behind */
}

static const attend_dtype types[] = {{2, 32, 1}, {2, 16, 1}, {4, 16, 1}, {2, 64, 1}, {6, 8, 1}, {0, 32, 1}, {0, 64, 1}};
enum { TYPES = sizeof types / sizeof *types, MOST_BYTES = 8 * 120 };

static void fill(unsigned char *bytes) {
  for (int i = 0; i < MOST_BYTES; i++) bytes[i] = (unsigned char)(7 * i + i / 13);
}

static void same_elements(const attend_tensor *a, const attend_tensor *b) {
  size_t size = io_element_size(a->dtype);
  assert_memory_equal(&a->dtype, &b->dtype, sizeof a->dtype);
  assert_int_equal(a->ndim, b->ndim);
  int64_t at[2] = {0, 0}, index[IO_MAX_DIMS] = {0}, count = 1;
  for (int d = 0; d < a->ndim; d++) {
    assert_int_equal(a->shape[d], b->shape[d]);
    count *= a->shape[d];
  }
  for (int64_t i = 0; i < count; i++) {
    at[0] = at[1] = 0;
    for (int d = 0; d < a->ndim; d++) at[0] += index[d] * a->strides[d], at[1] += index[d] * b->strides[d];
    assert_memory_equal((char *)a->data + at[0] * (int64_t)size, (char *)b->data + at[1] * (int64_t)size, size);
    for (int d = a->ndim - 1; d >= 0 && ++index[d] == a->shape[d]; d--) index[d] = 0;
  }
}

/* Any type, compact and transposed, zero-sized and of rank 0. */
static void npy_round_trip(void **state) {
  (void)state;
  unsigned char bytes[MOST_BYTES];
  fill(bytes);
  int64_t shape[] = {2, 3, 4, 5}, strides[] = {60, 20, 5, 1}, turned_shape[] = {5, 3, 2, 4}, turned[] = {1, 20, 60, 5};
  int64_t empty[] = {2, 0, 4, 5};
  io_error error;
  for (int t = 0; t < TYPES; t++) {
    attend_tensor tensors[] = {attend_tensor_strided(bytes, types[t], 4, shape, strides),
                               attend_tensor_strided(bytes, types[t], 4, turned_shape, turned),
                               attend_tensor_strided(bytes, types[t], 4, empty, strides),
                               attend_tensor_strided(bytes, types[t], 0, shape, strides)};
    for (int i = 0; i < 4; i++) {
      io_array a;
      assert_true(io_npy_write(in_directory("a.npy"), &tensors[i], &error));
      assert_true(io_npy_read(in_directory("a.npy"), &a, &error));
      same_elements(&tensors[i], &a.tensor);
      io_array_free(&a);
    }
  }
}

static void safetensors_round_trip(void **state) {
  (void)state;
  unsigned char bytes[MOST_BYTES];
  fill(bytes);
  int64_t shape[] = {2, 3, 4, 5}, strides[] = {60, 20, 5, 1}, turned_shape[] = {5, 3, 2, 4}, turned[] = {1, 20, 60, 5};
  attend_tensor tensors[TYPES];
  const attend_tensor *list[TYPES];
  const char *names[TYPES] = {"f64 comes later", "half", "b\"f", "", "mask", "\xC3\xA9", "i64"};
  const int order[TYPES] = {3, 6, 0, 5, 1, 2, 4}; /* widest first: the format wants aligned elements */
  for (int i = 0; i < TYPES; i++) {
    tensors[i] = i % 2 ? attend_tensor_strided(bytes, types[order[i]], 4, turned_shape, turned)
                       : attend_tensor_strided(bytes, types[order[i]], 4, shape, strides);
    list[i] = &tensors[i];
  }
  io_error error;
  io_tensors read;
  assert_true(io_safetensors_write(in_directory("a.safetensors"), names, list, TYPES, &error));
  assert_true(io_safetensors_read(in_directory("a.safetensors"), &read, &error));
  assert_int_equal(read.count, TYPES);
  for (int i = 0; i < TYPES; i++) {
    const io_array *a = io_safetensors_find(&read, names[i]);
    assert_non_null(a);
    same_elements(&tensors[i], &a->tensor);
  }
  assert_null(io_safetensors_find(&read, "no such tensor"));
  io_safetensors_free(&read);
}

static void fortran_order(void **state) {
  (void)state;
  static const char header[] = "{'descr': '<i4', 'fortran_order': True, 'shape': (2, 3), }";
  unsigned char file[128] = "\x93NUMPY\x01\0";
  int32_t elements[] = {1, 2, 3, 4, 5, 6};
  file[8] = sizeof header - 1;
  memcpy(file + 10, header, sizeof header - 1);
  memcpy(file + 10 + sizeof header - 1, elements, sizeof elements);
  io_array a;
  io_error error;
  assert_true(io_npy_parse("f", file, 10 + sizeof header - 1 + sizeof elements, &a, &error));
  assert_int_equal(a.strides[0], 1);
  assert_int_equal(a.strides[1], 2);
  assert_memory_equal(a.tensor.data, elements, sizeof elements);
  io_array_free(&a);
}

typedef struct bad_file {
  const char *header; /* without the bytes before it, which tell its length */
  int elements;       /* bytes after it */
  const char *words;  /* of the message */
} bad_file;

static void bad_npy(void **state) {
  (void)state;
  static const bad_file files[] = {
      {"{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", 8, "big-endian"},
      {"{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }", 16, "got '<c8'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 8, "expected 12 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", 8, "expected 4 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 8, "expected sizes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", 8, "overflows"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", 8, "expected sizes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }", 4, "at most 8"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': 2, }", 8, "tuple"},
      {"{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,), }", 8, "True or False"},
      {"{'descr': '<f4', 'shape': (2,), }", 8, "lacks"},
      {"{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8, "plain element type"},
      {"", 0, "lacks"},
      {"\0\0\0\0", 0, "lacks"},
  };
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    unsigned char file[512] = "\x93NUMPY\x01\0";
    size_t n = strlen(files[i].header);
    file[8] = (unsigned char)n, file[9] = (unsigned char)(n >> 8);
    memcpy(file + 10, files[i].header, n);
    io_array a;
    io_error error = {""};
    assert_false(io_npy_parse("the.npy", file, 10 + n + (size_t)files[i].elements, &a, &error));
    assert_non_null(strstr(error.text, "the.npy"));
    if (!strstr(error.text, files[i].words)) fail_msg("expected \"%s\" in \"%s\"", files[i].words, error.text);
  }
  static const struct {
    const char *bytes;
    size_t size;
    const char *words;
  } raw[] = {{"", 0, "not an .npy"},
             {"\x93NUMPY\x01\0", 8, "not an .npy"},
             {"PK\x03\x04......", 10, "not an .npy"},
             {"\x93NUMPY\x09\0\0\0\0\0", 12, "got 9"},
             {"\x93NUMPY\x02\0\0\0\0", 11, "truncated"},
             {"\x93NUMPY\x02\0\xFF\xFF\xFF\xFF", 12, "truncated"},
             {"\x93NUMPY\x01\0\x10\0", 10, "truncated"}};
  for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
    io_array a;
    io_error error = {""};
    assert_false(io_npy_parse("the.npy", (const unsigned char *)raw[i].bytes, raw[i].size, &a, &error));
    if (!strstr(error.text, raw[i].words)) fail_msg("expected \"%s\" in \"%s\"", raw[i].words, error.text);
  }
  io_array a;
  io_error error;
  assert_false(io_npy_read("/no/such/file.npy", &a, &error));
  assert_non_null(strstr(error.text, "/no/such/file.npy: cannot be read"));
  assert_false(io_npy_read("/tmp", &a, &error));
  assert_non_null(strstr(error.text, "cannot be read"));
}

static void bad_safetensors(void **state) {
  (void)state;
  static const bad_file files[] = {
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "within 7"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "got 9"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 8, "data_offsets"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "data_offsets"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "data_offsets"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "two data_offsets"},
      {"{\"q\":{\"dtype\":\"F8\",\"shape\":[8],\"data_offsets\":[0,8]}}", 8, "got F8"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "whole number"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,8]}}", 8, "whole number"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[9007199254740992,9007199254740992],\"data_offsets\":[0,8]}}", 8,
       "overflow"},
      {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, "at most 8"},
      {"{\"q\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "expected dtype"},
      {"{\"q\":7}", 0, "expected dtype"},
      {"{\"q\":{\"dtype\":\"BOOL\",\"shape\":[4],\"data_offsets\":[0,4]},"
       "\"k\":{\"dtype\":\"BOOL\",\"shape\":[4],\"data_offsets\":[2,6]}}",
       6, "overlap"},
      {"{\"q\":{\"dtype\":\"BOOL\",\"shape\":[4],\"data_offsets\":[0,4]},"
       "\"k\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[5,7]}}",
       7, "gap"},
      {"{\"q\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[0,2]},"
       "\"q\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[2,4]}}",
       4, "named twice"},
      {"[]", 0, "no JSON object"},
      {"{\"q\":", 0, "no JSON object"},
      {"", 0, "no JSON object"},
  };
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    size_t n = strlen(files[i].header), padded = (n + 7) / 8 * 8, size = 8 + padded + (size_t)files[i].elements;
    char *file = calloc(1, size);
    assert_non_null(file);
    file[0] = (char)padded, file[1] = (char)(padded >> 8);
    memset(file + 8, ' ', padded);
    memcpy(file + 8, files[i].header, n);
    io_tensors t;
    io_error error = {""};
    assert_false(io_safetensors_parse("the.safetensors", file, size, &t, &error));
    assert_non_null(strstr(error.text, "the.safetensors"));
    if (!strstr(error.text, files[i].words)) fail_msg("expected \"%s\" in \"%s\"", files[i].words, error.text);
  }
  static const char headers[][9] = {"", "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", "\x10\0\0\0\0\0\0\0"};
  for (size_t i = 0; i < 3; i++) { /* too short, and lengths beyond the end */
    size_t size = i ? 8 : 3;
    char *file = malloc(size);
    assert_non_null(file);
    memcpy(file, headers[i], size);
    io_tensors t;
    io_error error = {""};
    assert_false(io_safetensors_parse("the.safetensors", file, size, &t, &error));
    assert_true(strstr(error.text, "truncated") || strstr(error.text, "at least 8"));
  }
  /* Brackets deeper than any stack. */
  size_t deep = 1 << 20, size = 8 + deep;
  char *file = malloc(size);
  assert_non_null(file);
  for (int i = 0; i < 8; i++) file[i] = (char)(deep >> (8 * i));
  memset(file + 8, '[', deep);
  io_tensors t;
  io_error error;
  assert_false(io_safetensors_parse("the.safetensors", file, size, &t, &error));
}

/* The old file stays, and nothing else, when the disk is full. */
static void written_whole_or_not_at_all(void **state) {
  (void)state;
  static float many[1 << 16];
  int64_t few_shape[] = {2}, many_shape[] = {1 << 16};
  attend_tensor few = attend_tensor_of(many, ATTEND_F32, 1, few_shape);
  attend_tensor lots = attend_tensor_of(many, ATTEND_F32, 1, many_shape);
  few.strides = lots.strides = (int64_t[]){1};
  const attend_tensor *list[] = {&lots};
  io_error error;
  assert_true(io_npy_write(in_directory("a.npy"), &few, &error));
  struct rlimit before, limit;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  limit = before;
  limit.rlim_cur = 4096;
  void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
  char texts[2][1024];
  bool wrote = io_npy_write(in_directory("a.npy"), &lots, &error);
  memcpy(texts[0], error.text, sizeof texts[0]);
  bool wrote_tensors = io_safetensors_write(in_directory("none.safetensors"), (const char *[]){"x"}, list, 1, &error);
  memcpy(texts[1], error.text, sizeof texts[1]);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  assert_false(wrote);
  assert_false(wrote_tensors);
  assert_non_null(strstr(texts[0], "File too large"));
  assert_non_null(strstr(texts[1], "File too large"));
  io_array a;
  assert_true(io_npy_read(in_directory("a.npy"), &a, &error));
  assert_int_equal(a.shape[0], 2);
  io_array_free(&a);
  assert_int_not_equal(access(in_directory("none.safetensors"), F_OK), 0);
  assert_false(io_npy_write("/no/such/directory/a.npy", &few, &error));
  assert_non_null(strstr(error.text, "cannot be written"));
}

/* Ctrl-C between opening and renaming leaves the old file and no temporary. */
static void interrupted(void **state) {
  (void)state;
  static float two[2];
  int64_t shape[] = {2}, strides[] = {1};
  attend_tensor t = attend_tensor_strided(two, ATTEND_F32, 1, shape, strides);
  io_error error;
  assert_true(io_npy_write(in_directory("a.npy"), &t, &error));
  const int signals[] = {SIGINT, SIGTERM, SIGHUP};
  for (int i = 0; i < 3; i++) {
    pid_t child = fork();
    if (child == 0) {
      io_output o;
      signal(signals[i], SIG_DFL);
      if (!io_output_open(&o, in_directory("a.npy"), &error)) _exit(1);
      fputs("half a file", o.file);
      fflush(o.file);
      raise(signals[i]);
      _exit(2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), signals[i]);
  }
  io_array a;
  assert_true(io_npy_read(in_directory("a.npy"), &a, &error));
  io_array_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(npy_round_trip),  cmocka_unit_test(safetensors_round_trip),
      cmocka_unit_test(fortran_order),   cmocka_unit_test(bad_npy),
      cmocka_unit_test(bad_safetensors), cmocka_unit_test(written_whole_or_not_at_all),
      cmocka_unit_test(interrupted),
  };
  return cmocka_run_group_tests(tests, enter, leave);
}
