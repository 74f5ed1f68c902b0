/* SPDX-License-Identifier: MIT */
/* Memory of order N: 65536 causal queries of 64 dimensions, one head, f32, within 32 MiB of resident memory beyond the
 * tensors; and the workspace that the plan reports is what that memory is. The matrix of scores would take 16 GiB. */
#include "attend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 65536, D = 64, MIB = 1 << 20, LIMIT = 32 * MIB, SLACK = 2 * MIB };

/* "VmRSS:" or "VmHWM:" (the peak) of this process, in bytes. */
static long resident(const char *field) {
  char line[256];
  long kib = -1;
  FILE *f = fopen("/proc/self/status", "r");
  while (f && kib < 0 && fgets(line, sizeof line, f))
    if (!strncmp(line, field, strlen(field))) kib = strtol(line + strlen(field), NULL, 10);
  if (f) fclose(f);
  return kib < 0 ? -1 : kib * 1024;
}

/* Begin a new peak; false where the kernel cannot. */
static bool reset_peak(void) {
  FILE *f = fopen("/proc/self/clear_refs", "w");
  if (!f) return false;
  bool written = fputs("5", f) >= 0;
  return fclose(f) == 0 && written;
}

static const int64_t shape[] = {1, 1, N, D}, lse_shape[] = {1, 1, N};

static attend_tensor tensor(int64_t columns, float value) {
  float *data = malloc((size_t)(N * columns) * sizeof *data);
  if (!data) skip();
  for (int64_t i = 0; i < N * columns; i++) data[i] = value * (float)(i * 7919 % 1000 - 500);
  return attend_tensor_of(data, ATTEND_F32, columns == 1 ? 3 : 4, columns == 1 ? lse_shape : shape);
}

static void stays_within(attend_direction direction, const attend_args *args, uint32_t backends) {
  attend_options options = {.flags = ATTEND_CAUSAL, .backends = backends, .threads = 2};
  attend_explanation e = {.size = sizeof e};
  assert_int_equal(attend_explain(direction, args, &options, &e), ATTEND_OK);
  assert_true(e.workspace_bytes < LIMIT);
  if (!reset_peak()) skip();
  long before = resident("VmRSS:");
  assert_int_equal((direction ? attend_backward_once : attend_forward_once)(args, &options), ATTEND_OK);
  long more = resident("VmHWM:") - before;
  print_message("%s: %.2f MiB resident, workspace %.2f MiB\n", e.kernel, (double)more / MIB,
                (double)e.workspace_bytes / MIB);
  assert_true(more < LIMIT);
  assert_true(more < (long)e.workspace_bytes + SLACK);
}

static void attention_needs_memory_of_order_n(void **state) {
  (void)state;
  if (resident("VmHWM:") < 0) skip();
  attend_tensor q = tensor(D, 1e-3f), k = tensor(D, 2e-3f), v = tensor(D, 3e-3f), out = tensor(D, 0);
  attend_tensor lse = tensor(1, 0), d_out = tensor(D, 1e-3f), d_q = tensor(D, 0), d_k = tensor(D, 0),
                d_v = tensor(D, 0);
  attend_args args = {
      .q = &q, .k = &k, .v = &v, .out = &out, .lse = &lse, .d_out = &d_out, .d_q = &d_q, .d_k = &d_k, .d_v = &d_v};
  stays_within(ATTEND_FORWARD, &args, ATTEND_BACKEND_EFFICIENT);
  stays_within(ATTEND_FORWARD, &args, 0);
  stays_within(ATTEND_BACKWARD, &args, 0);
  const attend_tensor *all[] = {&q, &k, &v, &out, &lse, &d_out, &d_q, &d_k, &d_v};
  for (int i = 0; i < 9; i++) free(all[i]->data);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(attention_needs_memory_of_order_n)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
