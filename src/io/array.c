/* SPDX-License-Identifier: MIT */
/* Arrays in memory, and files that appear whole or not at all. */
#include "io.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool io_fail(io_error *error, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  return false;
}

size_t io_element_size(attend_dtype d) {
  const attend_dtype known[] = {ATTEND_F32, ATTEND_F16, ATTEND_BF16, ATTEND_F64, ATTEND_BOOL, ATTEND_I32, ATTEND_I64};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (d.code == known[i].code && d.bits == known[i].bits && d.lanes == 1) return d.bits / 8u;
  return 0;
}

void io_array_fix(io_array *a) {
  a->tensor.shape = a->shape;
  a->tensor.strides = a->strides;
}

void io_array_free(io_array *a) {
  free(a->owned);
  a->owned = NULL;
}

bool io_array_describe(io_array *a, attend_dtype dtype, int ndim, const int64_t *shape, size_t *bytes,
                       io_error *error) {
  memset(a, 0, sizeof *a);
  a->tensor = attend_tensor_of(NULL, dtype, ndim, a->shape);
  int64_t count = 1, size;
  for (int i = ndim - 1; i >= 0; i--) {
    a->shape[i] = shape[i];
    a->strides[i] = count;
    if (__builtin_mul_overflow(count, shape[i], &count)) return io_fail(error, "an array's size overflows");
  }
  if (__builtin_mul_overflow(count, (int64_t)io_element_size(dtype), &size) || size > PTRDIFF_MAX - 4096)
    return io_fail(error, "an array's size overflows");
  io_array_fix(a);
  *bytes = (size_t)size;
  return true;
}

/* Reading is twice as fast from huge pages on Zen 4 (30 GB/s beside 16); NumPy asks for them from 4 MiB on. Whole
 * pages, so that none is shared with what else is on the heap. */
void *io_memory_new(size_t bytes) {
  const size_t huge = 2 << 20, alignment = bytes < 2 * huge ? 64 : huge;
  if (bytes > PTRDIFF_MAX - 2 * huge) return NULL;
  bytes = (bytes / alignment + 1) * alignment;
  void *memory = aligned_alloc(alignment, bytes);
#ifdef MADV_HUGEPAGE
  if (memory && alignment == huge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

bool io_array_new(io_array *a, attend_dtype dtype, int ndim, const int64_t *shape, io_error *error) {
  size_t bytes = 0;
  if (!io_array_describe(a, dtype, ndim, shape, &bytes, error)) return false;
  a->owned = io_memory_new(bytes);
  if (!a->owned) return io_fail(error, "out of memory: an array of %zu bytes", bytes);
  memset(a->owned, 0, bytes);
  a->tensor.data = a->owned;
  return true;
}

/* Grows as it reads: what a file says of its size need not be true. */
unsigned char *io_file_read(const char *path, size_t at, const char *mark, size_t *size, io_error *error) {
  FILE *f = fopen(path, "rb");
  if (!f) {
    io_fail(error, "%s: cannot be read: %s", path, strerror(errno));
    return NULL;
  }
  size_t room = 1 << 16, n = 0;
  unsigned char *bytes = malloc(room);
  while (bytes) {
    n += fread(bytes + n, 1, room - n, f);
    if (n < room || memcmp(bytes + at, mark, strlen(mark)) != 0) break;
    unsigned char *more = realloc(bytes, room *= 2);
    if (!more) free(bytes);
    bytes = more;
  }
  if (!bytes)
    io_fail(error, "%s: out of memory", path);
  else if (ferror(f)) {
    io_fail(error, "%s: cannot be read: %s", path, strerror(errno));
    free(bytes);
    bytes = NULL;
  }
  fclose(f);
  *size = n;
  return bytes;
}

/* ---- Output ---------------------------------------------------------------------------------------------------- */

/* The one file being written, for the signal handler. */
static const char *volatile unfinished;

static void remove_unfinished(int signal_number) {
  if (unfinished) unlink(unfinished);
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

bool io_output_open(io_output *o, const char *path, io_error *error) {
  memset(o, 0, sizeof *o);
  if (strlen(path) >= sizeof o->path) return io_fail(error, "%.60s...: the path is too long", path);
  struct stat is;
  if (!stat(path, &is) && S_ISDIR(is.st_mode)) return io_fail(error, "%s: cannot be written: it is a directory", path);
  if (!stat(path, &is) && !S_ISREG(is.st_mode)) { /* a pipe or a device is written to, not replaced by a file */
    strcpy(o->path, path);
    o->file = fopen(path, "wb");
    return o->file || io_fail(error, "%s: cannot be written: %s", path, strerror(errno));
  }
  if (!realpath(path, o->path)) strcpy(o->path, path); /* through a link: what it points to is replaced, not the link */
  snprintf(o->temporary, sizeof o->temporary, "%s.%ld.part", o->path, (long)getpid());
  const int ending[] = {SIGINT, SIGTERM, SIGHUP};
  for (int i = 0; i < 3; i++) {
    struct sigaction before, action = {.sa_handler = remove_unfinished};
    if (!sigaction(ending[i], NULL, &before) && before.sa_handler != SIG_IGN) sigaction(ending[i], &action, NULL);
  }
  unfinished = o->temporary;
  o->file = fopen(o->temporary, "wb");
  if (o->file) return true;
  unfinished = NULL;
  return io_fail(error, "%s: cannot be written: %s", path, strerror(errno));
}

void io_output_abandon(io_output *o) {
  if (!o->file) return;
  fclose(o->file);
  if (o->temporary[0]) unlink(o->temporary);
  unfinished = NULL;
  o->file = NULL;
}

bool io_output_commit(io_output *o, io_error *error) {
  bool whole = o->temporary[0];
  bool good = !ferror(o->file) && !fflush(o->file) && (!whole || !fsync(fileno(o->file)));
  if (!good) {
    int why = errno;
    io_output_abandon(o);
    return io_fail(error, "%s: not written: %s", o->path, strerror(why));
  }
  good = !fclose(o->file) && (!whole || !rename(o->temporary, o->path));
  if (!good) {
    int why = errno;
    if (whole) unlink(o->temporary);
    io_fail(error, "%s: not written: %s", o->path, strerror(why));
  }
  unfinished = NULL;
  o->file = NULL;
  return good;
}

static bool write_dimension(FILE *f, const attend_tensor *t, int d, const char *at, size_t size) {
  if (d == t->ndim) return fwrite(at, size, 1, f) == 1;
  int64_t compact = 1;
  for (int i = d + 1; i < t->ndim; i++) compact *= t->shape[i];
  int64_t stride = t->strides ? t->strides[d] : compact;
  if (d == t->ndim - 1 && stride == 1) return fwrite(at, size, (size_t)t->shape[d], f) == (size_t)t->shape[d];
  for (int64_t i = 0; i < t->shape[d]; i++)
    if (!write_dimension(f, t, d + 1, at + i * stride * (int64_t)size, size)) return false;
  return true;
}

bool io_output_elements(io_output *o, const attend_tensor *t) {
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] == 0) return true;
  return write_dimension(o->file, t, 0, (const char *)t->data + t->byte_offset, io_element_size(t->dtype));
}
