/* SPDX-License-Identifier: MIT */
/* libcublasLt.so.13 for tests: what src/cuda/cublaslt.c calls of it, as obvious loops that the emulated driver
 * launches. It is strict where the real one reads 16 bytes at a time. FAKE_CUDA_FAIL=cublasLtCreate:1 makes an entry
 * point fail, as for the driver's. */
#include "api/element.h"
#include "fake/fake_kernels.h"

#include <cstdlib>
#include <map>

extern "C" int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                              unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra);
extern "C" int cuCtxGetDevice(int *device);

namespace {

enum { OK = 0, NOT_INITIALIZED = 1, INVALID = 7, EXECUTION_FAILED = 13 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
const uint64_t ALGORITHM = 0xA1602174; /* word 0 of the only one */

struct layout {
  int32_t type, batch;
  int64_t rows, columns, leading, step;
};
struct descriptor {
  int32_t compute, scale_type, turn_a, turn_b;
};
struct preference {
  uint64_t workspace_bytes;
  uint32_t reductions;
};
struct result {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

struct product {
  descriptor d;
  layout a_layout, b_layout, c_layout;
  const char *a, *b;
  char *c;
  double beta;
};

int failure(const char *entry) {
  const char *wanted = getenv("FAKE_CUDA_FAIL");
  size_t length = strlen(entry);
  return wanted && !strncmp(wanted, entry, length) && wanted[length] == ':' ? atoi(wanted + length + 1) : OK;
}

int size_of(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

double load(const char *data, int type, int64_t at) {
  data += at * size_of(type);
  uint16_t half;
  memcpy(&half, data, 2);
  if (type == R_64F) return *(const double *)(const void *)data;
  if (type == R_32F) return (double)*(const float *)(const void *)data;
  return (double)(type == R_16F ? attend_f32_from_f16(half) : word_f32_from_bits((uint32_t)half << 16));
}

void multiply(const void *argument) {
  const product &p = *static_cast<const product *>(argument);
  int64_t terms = p.d.turn_a ? p.a_layout.rows : p.a_layout.columns;
  for (int64_t n = 0; n < p.c_layout.batch; n++)
    for (int64_t column = 0; column < p.c_layout.columns; column++)
      for (int64_t row = 0; row < p.c_layout.rows; row++) {
        int64_t a = p.a_layout.step * n + (p.d.turn_a ? row * p.a_layout.leading : row),
                b = p.b_layout.step * n + (p.d.turn_b ? column : column * p.b_layout.leading),
                c = p.c_layout.step * n + column * p.c_layout.leading + row;
        double sum = 0;
        for (int64_t k = 0; k < terms; k++) {
          double x = load(p.a, p.a_layout.type, a + (p.d.turn_a ? k : k * p.a_layout.leading)),
                 y = load(p.b, p.b_layout.type, b + (p.d.turn_b ? k * p.b_layout.leading : k));
          sum = p.c_layout.type == R_64F ? sum + x * y : (double)fmaf((float)x, (float)y, (float)sum);
        }
        if (p.beta != 0) sum += p.beta * load(p.c, p.c_layout.type, c);
        if (p.c_layout.type == R_64F)
          reinterpret_cast<double *>(p.c)[c] = sum;
        else
          reinterpret_cast<float *>(p.c)[c] = (float)sum;
      }
}

/* Do the matrices fit each other, and lie so that words of 16 bytes can be read? */
bool fits(const descriptor &d, const layout &a, const layout &b, const layout &c) {
  bool wide = c.type == R_64F;
  if (d.compute != (wide ? 70 : 68) || d.scale_type != c.type || (!wide && c.type != R_32F) || a.type != b.type)
    return false;
  for (const layout *l : {&a, &b, &c})
    if (l->rows < 1 || l->columns < 1 || l->leading < l->rows || l->batch < 1 || l->batch != c.batch ||
        l->leading * size_of(l->type) % 16 || l->step * size_of(l->type) % 16)
      return false;
  return (d.turn_a ? a.columns : a.rows) == c.rows && (d.turn_b ? b.rows : b.columns) == c.columns &&
         (d.turn_a ? a.rows : a.columns) == (d.turn_b ? b.columns : b.rows);
}

} // namespace

#define ENTRY_POINT extern "C" __attribute__((visibility("default"))) int

ENTRY_POINT cublasLtCreate(void **handle) {
  static int handles[8];
  int device;
  if (int error = failure("cublasLtCreate")) return error;
  if (cuCtxGetDevice(&device)) return NOT_INITIALIZED;
  return *handle = handles + device, OK;
}
ENTRY_POINT cublasLtMatmulDescInit_internal(descriptor *d, size_t size, int compute, int scale_type) {
  if (size < 256) return INVALID;
  return *d = {compute, scale_type, 0, 0}, OK;
}
ENTRY_POINT cublasLtMatmulDescSetAttribute(descriptor *d, int attribute, const int32_t *value, size_t size) {
  if (size != 4 || (attribute != 3 && attribute != 4)) return INVALID;
  return (attribute == 3 ? d->turn_a : d->turn_b) = *value, OK;
}
ENTRY_POINT cublasLtMatrixLayoutInit_internal(layout *l, size_t size, int type, uint64_t rows, uint64_t columns,
                                              int64_t leading) {
  if (size < 64) return INVALID;
  return *l = {type, 1, (int64_t)rows, (int64_t)columns, leading, 0}, OK;
}
ENTRY_POINT cublasLtMatrixLayoutSetAttribute(layout *l, int attribute, const void *value, size_t size) {
  if (attribute == 5 && size == 4) return memcpy(&l->batch, value, size), OK;
  if (attribute == 6 && size == 8) return memcpy(&l->step, value, size), OK;
  return INVALID;
}
ENTRY_POINT cublasLtMatmulPreferenceInit_internal(preference *p, size_t size) {
  return size < 64 ? INVALID : (*p = {UINT64_MAX, UINT32_MAX}, OK);
}
ENTRY_POINT cublasLtMatmulPreferenceSetAttribute(preference *p, int attribute, const void *value, size_t size) {
  if (attribute == 1 && size == 8) return memcpy(&p->workspace_bytes, value, size), OK;
  if (attribute == 3 && size == 4) return memcpy(&p->reductions, value, size), OK;
  return INVALID;
}
ENTRY_POINT cublasLtMatmulAlgoCheck(void *, const descriptor *d, const layout *a, const layout *b, const layout *c,
                                    const layout *, const uint64_t *algorithm, result *r) {
  return *r = {{ALGORITHM}, 0, OK, 1, {0}}, algorithm[0] == ALGORITHM && fits(*d, *a, *b, *c) ? OK : INVALID;
}
ENTRY_POINT cublasLtMatmulAlgoGetHeuristic(void *handle, const descriptor *d, const layout *a, const layout *b,
                                           const layout *c, const layout *, const preference *p, int wanted, result *r,
                                           int *count) {
  const uint64_t algorithm[8] = {ALGORITHM};
  if (int error = failure("cublasLtMatmulAlgoGetHeuristic")) return error;
  if (wanted < 1 || p->workspace_bytes || p->reductions) return INVALID; /* what "same bits" needs */
  return *count = 1, cublasLtMatmulAlgoCheck(handle, d, a, b, c, c, algorithm, r);
}
ENTRY_POINT cublasLtMatmul(const void *handle, const descriptor *d, const void *alpha, const char *a,
                           const layout *a_layout, const char *b, const layout *b_layout, const void *beta,
                           const char *c, const layout *c_layout, char *to, const layout *, const uint64_t *algorithm,
                           const void *, size_t, void *stream) {
  static const fake_kernel kernel = {"product", multiply};
  bool wide = c_layout->type == R_64F;
  double one = wide ? *(const double *)alpha : (double)*(const float *)alpha;
  if (int error = failure("cublasLtMatmul")) return error;
  if (!handle || one != 1 || c != to || algorithm[0] != ALGORITHM || !fits(*d, *a_layout, *b_layout, *c_layout) ||
      (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) & 15))
    return INVALID;
  product p = {*d, *a_layout, *b_layout, *c_layout, a, b, to, wide ? *(const double *)beta : *(const float *)beta};
  void *parameters[] = {&p};
  return cuLaunchKernel(const_cast<fake_kernel *>(&kernel), 1, 1, 1, 1, 1, 1, 0, stream, parameters, nullptr)
             ? EXECUTION_FAILED
             : OK;
}
