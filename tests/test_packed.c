/* SPDX-License-Identifier: MIT */
/* One buffer [B,N,slots,H,D] that holds q, k, v, out, d_q, d_k, d_v of a call side by side, as models with one product
 * for all of them have it: every kernel of the CPU gives the bits that it gives on tensors of their own, and writes
 * nothing but its outputs. */
#include "attend.h"

#include "api/element.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

enum { Q = 1, K, V, OUT, D_Q, D_K, D_V, D_OUT, SLOTS = 10 }; /* the first and the last belong to nobody */

typedef struct buffer {
  int64_t shape[4], strides[4]; /* [B,H,N,D] */
  int64_t slot;                 /* elements from one operand to the next */
  size_t bytes;
  unsigned char *memory;
  attend_tensor tensors[SLOTS];
} buffer;

/* Packed, the operands alternate within a token; otherwise each is compact, one after another. */
static void make(buffer *b, attend_dtype dtype, const int64_t size[4], bool packed) {
  const int64_t batch = size[0], heads = size[1], n = size[2], dim = size[3];
  const int64_t shape[4] = {batch, heads, n, dim};
  const int64_t apart[4] = {heads * n * dim, n * dim, dim, 1};
  const int64_t together[4] = {n * SLOTS * heads * dim, dim, SLOTS * heads * dim, 1};
  memcpy(b->shape, shape, sizeof shape);
  memcpy(b->strides, packed ? together : apart, sizeof shape);
  b->slot = packed ? heads * dim : batch * heads * n * dim;
  b->bytes = (size_t)(SLOTS * batch * heads * n * dim) * dtype.bits / 8;
  b->memory = malloc(b->bytes);
  assert_non_null(b->memory);
  memset(b->memory, 0x5a, b->bytes);
  for (int s = 0; s < SLOTS; s++)
    b->tensors[s] =
        attend_tensor_strided(b->memory + (size_t)(s * b->slot) * dtype.bits / 8, dtype, 4, b->shape, b->strides);
}

static attend_type type_of(attend_dtype d) {
  return d.bits == 64 ? TYPE_F64 : d.bits == 32 ? TYPE_F32 : d.code == 4 ? TYPE_BF16 : TYPE_F16;
}

static int64_t place(const buffer *b, int64_t i) {
  int64_t at = 0;
  for (int d = 3; d >= 0; i /= b->shape[d--]) at += i % b->shape[d] * b->strides[d];
  return at;
}

static void fill(const buffer *b, int slot, attend_dtype dtype) {
  const int64_t n = b->shape[0] * b->shape[1] * b->shape[2] * b->shape[3];
  uint32_t state = 17 + (uint32_t)slot;
  for (int64_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    attend_store(b->tensors[slot].data, place(b, i), type_of(dtype), (double)(state >> 8) * 0x1p-23 - 1);
  }
}

/* Copy a slot's elements into a buffer of the other layout. */
static void copy(const buffer *from, const buffer *to, int slot, size_t size) {
  const int64_t n = from->shape[0] * from->shape[1] * from->shape[2] * from->shape[3];
  for (int64_t i = 0; i < n; i++)
    memcpy((char *)to->tensors[slot].data + (size_t)place(to, i) * size,
           (const char *)from->tensors[slot].data + (size_t)place(from, i) * size, size);
}

static attend_args args_of(const buffer *b, const attend_tensor *lse, bool backward) {
  const attend_tensor *t = b->tensors;
  attend_args args = {.q = &t[Q], .k = &t[K], .v = &t[V], .out = &t[OUT], .lse = lse};
  if (backward) args.d_out = &t[D_OUT], args.d_q = &t[D_Q], args.d_k = &t[D_K], args.d_v = &t[D_V];
  return args;
}

/* Whether the kernel serves this. */
static bool check(const attend_kernel *kernel, attend_dtype dtype, const int64_t size[4], uint32_t flags) {
  const bool backward = kernel->direction == ATTEND_BACKWARD;
  const size_t element = dtype.bits / 8;
  attend_options options = {.flags = flags, .backends = kernel->backend, .kernel = kernel->name, .threads = 2};
  attend_options reference = {.flags = flags, .backends = ATTEND_BACKEND_REFERENCE};
  buffer apart, packed, expected;
  make(&apart, dtype, size, false);
  make(&packed, dtype, size, true);
  make(&expected, dtype, size, true);
  const int64_t rows[3] = {size[0], size[1], size[2]};
  void *lse_memory = malloc((size_t)(rows[0] * rows[1] * rows[2]) * 8);
  assert_non_null(lse_memory);
  attend_tensor lse = attend_tensor_of(lse_memory, dtype.bits == 64 ? ATTEND_F64 : ATTEND_F32, 3, rows);
  const int inputs[] = {Q, K, V, D_OUT};
  for (int i = 0; i < 4; i++) fill(&apart, inputs[i], dtype);
  attend_args args = args_of(&apart, &lse, false);
  if (backward) assert_int_equal(attend_forward_once(&args, &reference), ATTEND_OK);
  for (int slot = Q; slot <= D_OUT; slot++) copy(&apart, &packed, slot, element);
  args = args_of(&apart, &lse, backward);
  attend_status status = backward ? attend_backward_once(&args, &options) : attend_forward_once(&args, &options);
  if (status != ATTEND_ERROR_NO_BACKEND) {
    assert_int_equal(status, ATTEND_OK);
    for (int slot = Q; slot <= D_OUT; slot++) copy(&apart, &expected, slot, element);
    args = args_of(&packed, &lse, backward);
    status = backward ? attend_backward_once(&args, &options) : attend_forward_once(&args, &options);
    if (status) print_message("%s: %s\n", kernel->name, attend_error_message());
    assert_int_equal(status, ATTEND_OK);
    if (memcmp(packed.memory, expected.memory, packed.bytes)) {
      size_t at = 0;
      while (packed.memory[at] == expected.memory[at]) at++;
      print_message("%s, B %d, H %d, N %d, D %d, flags %u: slot %d differs\n", kernel->name, (int)size[0], (int)size[1],
                    (int)size[2], (int)size[3], flags, (int)((int64_t)(at / element) / packed.slot % SLOTS));
      fail();
    }
  }
  free(apart.memory), free(packed.memory), free(expected.memory), free(lse_memory);
  return status == ATTEND_OK;
}

static void every_kernel_writes_its_outputs_only(void **state) {
  (void)state;
  static const int64_t sizes[][4] = {{3, 2, 5, 64}, {2, 3, 16, 24}, {1, 2, 70, 64}, {2, 1, 33, 7}};
  static const int64_t beyond_cache[][4] = {{220, 8, 5, 64}, {2300, 4, 1, 64}}; /* stored past it if short, in f32 */
  const attend_dtype dtypes[] = {ATTEND_F32, ATTEND_F16, ATTEND_BF16, ATTEND_F64};
  int kernels = 0, served = 0;
  attend_kernel k = {.size = sizeof k};
  for (int64_t i = 0; attend_kernel_at(i, &k) == ATTEND_OK; i++) {
    if (!k.usable || k.device != ATTEND_CPU) continue;
    int here = 0;
    for (int d = 0; d < 4; d++) {
      if (k.dtype.bits && (k.dtype.bits != dtypes[d].bits || k.dtype.code != dtypes[d].code)) continue;
      for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (uint32_t flags = 0; flags <= ATTEND_CAUSAL; flags++) here += check(&k, dtypes[d], sizes[s], flags);
      for (size_t s = 0; s < 2 && d == 0 && strstr(k.name, "short"); s++)
        here += check(&k, dtypes[d], beyond_cache[s], ATTEND_CAUSAL);
    }
    kernels += here > 0, served += here;
  }
  print_message("%d calls of %d kernels\n", served, kernels);
  assert_true(kernels >= 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_kernel_writes_its_outputs_only)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
