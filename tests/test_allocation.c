/* SPDX-License-Identifier: MIT */
/* Every allocation made to fail once, in every kernel and both directions: the status is ATTEND_ERROR_OUT_OF_MEMORY,
 * what was allocated is released, and no output is touched. The library allocates through one hook, services.c, which
 * the default fills with aligned_alloc; so the hook sees all of it. */
#include "attend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

typedef struct heap {
  int made, fail_at; /* the allocation of this number fails; -1: none */
  int64_t live, bytes;
} heap;

static void *allocate(void *user, size_t bytes, size_t alignment) {
  heap *h = user;
  assert_true(alignment && (alignment & (alignment - 1)) == 0);
  if (h->made++ == h->fail_at) return NULL;
  void *memory = aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
  assert_non_null(memory);
  memset(memory, 0xA5, bytes); /* its content must not matter */
  h->live++;
  h->bytes += (int64_t)bytes;
  return memory;
}

static void release(void *user, void *memory, size_t bytes) {
  heap *h = user;
  if (!memory) return;
  h->live--;
  h->bytes -= (int64_t)bytes;
  free(memory);
}

enum { B = 2, H = 2, MOST = B * H * 96 * 40, OUTPUTS = 6 };

typedef struct problem {
  float in[5][MOST], out[OUTPUTS][MOST]; /* q k v bias d_out; out lse d_q d_k d_v d_bias */
  int64_t q_shape[4], k_shape[4], lse_shape[3], bias_shape[4];
  attend_tensor t[5 + OUTPUTS];
  attend_args args;
} problem;

static void make(problem *p, int64_t q_len, int64_t k_len, bool bias) {
  memset(p, 0, sizeof *p);
  for (int t = 0; t < 5; t++)
    for (int i = 0; i < MOST; i++) p->in[t][i] = (float)((7 * i + t) % 11 - 5) / 4;
  memset(p->out, 0x7B, sizeof p->out);
  const int64_t q[] = {B, H, q_len, 8}, k[] = {B, H, k_len, 8}, s[] = {1, H, q_len, k_len};
  memcpy(p->q_shape, q, sizeof q);
  memcpy(p->k_shape, k, sizeof k);
  memcpy(p->lse_shape, q, sizeof p->lse_shape);
  memcpy(p->bias_shape, s, sizeof s);
  float *data[] = {p->in[0],  p->in[1],  p->in[2],  p->in[3],  p->in[4], p->out[0],
                   p->out[1], p->out[2], p->out[3], p->out[4], p->out[5]};
  const int64_t *shapes[] = {p->q_shape,   p->k_shape, p->k_shape, p->bias_shape, p->q_shape,   p->q_shape,
                             p->lse_shape, p->q_shape, p->k_shape, p->k_shape,    p->bias_shape};
  for (int t = 0; t < 5 + OUTPUTS; t++) p->t[t] = attend_tensor_of(data[t], ATTEND_F32, t == 6 ? 3 : 4, shapes[t]);
  p->args = (attend_args){.q = &p->t[0], .k = &p->t[1], .v = &p->t[2], .out = &p->t[5], .lse = &p->t[6]};
  if (bias) p->args.bias = &p->t[3];
}

/* Untouched since make? Backward's out and lse are inputs: those begin at `first`. */
static void assert_untouched(const problem *p, int first) {
  const unsigned char *byte = (const unsigned char *)p->out[first];
  for (size_t i = 0; i < sizeof p->out[0] * (size_t)(OUTPUTS - first); i++) assert_int_equal(byte[i], 0x7B);
}

static void fail_each(int64_t q_len, int64_t k_len, bool bias, bool backward, uint32_t backends, const char *kernel) {
  problem *p = malloc(sizeof *p);
  assert_non_null(p);
  make(p, q_len, k_len, bias);
  heap h = {0, -1, 0, 0};
  attend_hooks hooks = {.user = &h, .allocate = allocate, .release = release};
  attend_options options = {.backends = backends, .kernel = kernel, .hooks = &hooks, .threads = 2};
  if (backward) {
    assert_int_equal(attend_forward_once(&p->args, NULL), ATTEND_OK);
    p->args.d_out = &p->t[4];
    p->args.d_q = &p->t[7], p->args.d_k = &p->t[8], p->args.d_v = &p->t[9];
    if (bias) p->args.d_bias = &p->t[10];
  }
  attend_status (*once)(const attend_args *, const attend_options *) =
      backward ? attend_backward_once : attend_forward_once;
  attend_direction direction = backward ? ATTEND_BACKWARD : ATTEND_FORWARD;
  attend_plan *plan;
  attend_status status = attend_plan_create(direction, &p->args, &options, &plan);
  attend_plan_destroy(plan);
  assert_int_equal(h.live, 0);
  assert_int_equal(h.bytes, 0);
  if (status == ATTEND_ERROR_NO_BACKEND) { /* not for this kernel */
    free(p);
    return;
  }
  assert_int_equal(status, ATTEND_OK);
  int needed = h.made;
  for (int n = 0; n < needed; n++) {
    h.made = 0, h.fail_at = n;
    assert_int_equal(attend_plan_create(direction, &p->args, &options, &plan), ATTEND_ERROR_OUT_OF_MEMORY);
    assert_null(plan);
    assert_int_equal(h.live, 0);
    assert_non_null(strstr(attend_error_message(), "bytes"));
  }
  for (int n = 0;; n++) {
    h.made = 0, h.fail_at = n;
    status = once(&p->args, &options);
    assert_int_equal(h.live, 0);
    assert_int_equal(h.bytes, 0);
    if (h.made <= n) break; /* it needs no more */
    assert_int_equal(status, ATTEND_ERROR_OUT_OF_MEMORY);
    assert_untouched(p, backward ? 2 : 0);
    attend_explanation e = {.size = sizeof e};
    h.made = 0;
    assert_int_not_equal(attend_explain(direction, &p->args, &options, &e), ATTEND_ERROR_NULL);
    assert_int_equal(h.live, 0);
    assert_true(n < 100);
  }
  assert_int_equal(status, ATTEND_OK);
  free(p);
}

static void every_kernel(void **state) {
  (void)state;
  attend_kernel k = {.size = sizeof k};
  int kernels = 0;
  for (int64_t i = 0; attend_kernel_at(i, &k) == ATTEND_OK; i++) {
    bool f32 = k.dtype.bits == 0 || (k.dtype.code == 2 && k.dtype.bits == 32);
    if (k.device != ATTEND_CPU || !k.usable || !f32) continue;
    bool backward = k.direction == ATTEND_BACKWARD;
    fail_each(40, 96, true, backward, k.backend, k.name);
    fail_each(5, 5, false, backward, k.backend, k.name);
    fail_each(1, 96, false, backward, k.backend, k.name);
    kernels++;
  }
  assert_true(kernels >= 6);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_kernel)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
