/* SPDX-License-Identifier: MIT */
/* cuBLASLt by dlopen, 13 or 12. Its descriptors are initialised in place (what cublasLt.h does inline), so that running
 * a product allocates nothing. Types, sizes and numbers below are facts of the ABI (cublasLt.h, cublas_api.h and
 * library_types.h of CUDA 13.0; the same in 12). */
#include "cublaslt.h"

#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { COMPUTE_32F = 68, COMPUTE_64F = 70 }; /* CUBLAS_COMPUTE_: 32F is without TF32 */
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { OP_T = 1 };
enum { DESC_TRANSA = 3, DESC_TRANSB = 4 };
enum { LAYOUT_BATCH_COUNT = 5, LAYOUT_STEP = 6 };
enum { PREFER_WORKSPACE = 1, PREFER_REDUCTION = 3 };
enum { MAX_DEVICES = 64 };

typedef struct descriptor {
  uint64_t words[32];
} descriptor;
typedef struct layout {
  uint64_t words[8];
} layout;
typedef struct preference {
  uint64_t words[8];
} preference;
typedef struct heuristic_result {
  cublaslt_algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
} heuristic_result;

static struct {
  int (*create)(void **handle);
  int (*descriptor_init)(descriptor *d, size_t size, int compute, int scale_type);
  int (*descriptor_set)(descriptor *d, int attribute, const void *value, size_t size);
  int (*layout_init)(layout *l, size_t size, int type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*layout_set)(layout *l, int attribute, const void *value, size_t size);
  int (*preference_init)(preference *p, size_t size);
  int (*preference_set)(preference *p, int attribute, const void *value, size_t size);
  int (*heuristic)(void *handle, descriptor *d, layout *a, layout *b, layout *c, layout *result, preference *p,
                   int requested, heuristic_result *results, int *count);
  int (*check)(void *handle, descriptor *d, layout *a, layout *b, layout *c, layout *result,
               const cublaslt_algorithm *algorithm, heuristic_result *results);
  int (*multiply)(void *handle, descriptor *d, const void *alpha, const void *a, layout *a_layout, const void *b,
                  layout *b_layout, const void *beta, const void *c, layout *c_layout, void *result,
                  layout *result_layout, const cublaslt_algorithm *algorithm, void *workspace, size_t bytes,
                  void *stream);
} library;
static int version = -1; /* of `library`: index into versions; -1: none has started yet */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *handles[MAX_DEVICES]; /* kept for the life of the process; used by any thread */

static const char *const versions[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
enum { VERSIONS = sizeof versions / sizeof *versions };

/* Fill `library`; false with the reason, which stays as it was where there is none of this version. */
static bool open_version(int wanted, char reason[ATTEND_REASON_SIZE]) {
  static const char *const names[] = {"cublasLtCreate",
                                      "cublasLtMatmulDescInit_internal",
                                      "cublasLtMatmulDescSetAttribute",
                                      "cublasLtMatrixLayoutInit_internal",
                                      "cublasLtMatrixLayoutSetAttribute",
                                      "cublasLtMatmulPreferenceInit_internal",
                                      "cublasLtMatmulPreferenceSetAttribute",
                                      "cublasLtMatmulAlgoGetHeuristic",
                                      "cublasLtMatmulAlgoCheck",
                                      "cublasLtMatmul"};
  enum { COUNT = sizeof names / sizeof *names };
  _Static_assert(sizeof library == COUNT * sizeof(void *), "one name for each entry point, in the order of library");
  void *found = dlopen(versions[wanted], RTLD_NOW | RTLD_LOCAL), *entries[COUNT];
  if (!found) return false;
  for (int i = 0; i < COUNT; i++) {
    entries[i] = dlsym(found, names[i]);
    if (entries[i]) continue;
    snprintf(reason, ATTEND_REASON_SIZE, "%s lacks %s", versions[wanted], names[i]);
    return false;
  }
  memcpy(&library, entries, sizeof library);
  return true;
}

/* The device's handle, made in its current context; NULL with the reason. The first decides on the version: the newest
 * that starts, since one that is too new for the driver may stand beside an older one. */
static void *start(int ordinal, char reason[ATTEND_REASON_SIZE]) {
  pthread_mutex_lock(&lock);
  void **handle = &handles[ordinal];
  if (version < 0) snprintf(reason, ATTEND_REASON_SIZE, "neither libcublasLt.so.13 nor .12 on this machine");
  for (int i = 0; i < VERSIONS && !*handle; i++) {
    if (version < 0 ? !open_version(i, reason) : i != version) continue;
    int error = library.create(handle);
    if (!error) {
      version = i;
      break;
    }
    *handle = NULL;
    snprintf(reason, ATTEND_REASON_SIZE, "cuBLASLt does not start: status %d", error);
  }
  void *made = *handle;
  pthread_mutex_unlock(&lock);
  return made;
}

/* How cuBLASLt is told of a product. */
typedef struct description {
  descriptor d;
  layout a, b, c;
} description;

static int describe_matrix(layout *l, int type, int64_t rows, int64_t columns, int64_t batch, int64_t step) {
  int32_t count = (int32_t)batch;
  int error = library.layout_init(l, sizeof *l, type, (uint64_t)rows, (uint64_t)columns, rows);
  if (!error) error = library.layout_set(l, LAYOUT_BATCH_COUNT, &count, sizeof count);
  if (!error) error = library.layout_set(l, LAYOUT_STEP, &step, sizeof step);
  return error;
}

static int describe(description *x, const cublaslt_product *p) {
  static const int types[] = {[TYPE_F32] = R_32F, [TYPE_F16] = R_16F, [TYPE_BF16] = R_16BF, [TYPE_F64] = R_64F};
  bool wide = p->type == TYPE_F64;
  int type = types[p->type], sum_type = wide ? R_64F : R_32F;
  int32_t turn = OP_T;
  int error = library.descriptor_init(&x->d, sizeof x->d, wide ? COMPUTE_64F : COMPUTE_32F, sum_type);
  if (!error && p->turn_a) error = library.descriptor_set(&x->d, DESC_TRANSA, &turn, sizeof turn);
  if (!error && p->turn_b) error = library.descriptor_set(&x->d, DESC_TRANSB, &turn, sizeof turn);
  if (!error)
    error = describe_matrix(&x->a, type, p->turn_a ? p->k : p->m, p->turn_a ? p->m : p->k, p->batch, p->a_step);
  if (!error)
    error = describe_matrix(&x->b, type, p->turn_b ? p->n : p->k, p->turn_b ? p->k : p->n, p->batch, p->b_step);
  if (!error) error = describe_matrix(&x->c, sum_type, p->m, p->n, p->batch, p->c_step);
  return error;
}

bool cublaslt_choose(int ordinal, const cublaslt_product *usual, const cublaslt_product *actual,
                     cublaslt_algorithm *algorithm, size_t *workspace_bytes, char reason[ATTEND_REASON_SIZE]) {
  description x, y;
  preference wish;
  heuristic_result result = {0};
  uint64_t bytes = 0;
  uint32_t reductions = 0; /* CUBLASLT_REDUCTION_SCHEME_NONE alone */
  int count = 0;
  cuda_scope scope;
  if (ordinal >= MAX_DEVICES || cuda_enter(ordinal, &scope)) {
    snprintf(reason, ATTEND_REASON_SIZE, "cuBLASLt is not started on this GPU");
    return false;
  }
  void *handle = start(ordinal, reason);
  if (!handle) {
    cuda_leave(&scope);
    return false;
  }
  int error = describe(&x, usual);
  if (!error) error = describe(&y, actual);
  if (!error) error = library.preference_init(&wish, sizeof wish);
  if (!error) error = library.preference_set(&wish, PREFER_WORKSPACE, &bytes, sizeof bytes);
  if (!error) error = library.preference_set(&wish, PREFER_REDUCTION, &reductions, sizeof reductions);
  if (!error) error = library.heuristic(handle, &x.d, &x.a, &x.b, &x.c, &x.c, &wish, 1, &result, &count);
  if (!error && count < 1) error = -1;
  if (!error) *algorithm = result.algorithm;
  if (!error) error = library.check(handle, &y.d, &y.a, &y.b, &y.c, &y.c, algorithm, &result);
  if (!error) *workspace_bytes = result.workspace_bytes;
  if (error) snprintf(reason, ATTEND_REASON_SIZE, "cuBLASLt has no algorithm for these sizes: status %d", error);
  cuda_leave(&scope);
  return !error;
}

attend_status cublaslt_run(int ordinal, const cublaslt_product *product, const cublaslt_algorithm *algorithm,
                           const void *a, const void *b, void *c, bool add, void *workspace, size_t bytes,
                           void *stream) {
  description x;
  float one = 1, beta = add;
  double one_f64 = 1, beta_f64 = add;
  bool wide = product->type == TYPE_F64;
  int error = describe(&x, product);
  if (!error)
    error = library.multiply(handles[ordinal], &x.d, wide ? (void *)&one_f64 : &one, a, &x.a, b, &x.b,
                             wide ? (void *)&beta_f64 : &beta, c, &x.c, c, &x.c, algorithm, workspace, bytes, stream);
  return error ? attend_fail(ATTEND_ERROR_CUDA, "a matrix product: cuBLASLt says status %d", error) : ATTEND_OK;
}
