/* SPDX-License-Identifier: MIT */
/* Gradients against central differences of the reference's forward, in f64: the reference, math and efficient. The
 * loss is <d_out, out> + <d_lse, lse>, whose gradients are what backward returns. */
#include "support/gate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <math.h>

static double loss(test_problem *p) {
  run_outputs outputs;
  if (run_kernel(p, ATTEND_FORWARD, NULL, 1, &outputs)) fail_msg("%s", attend_error_message());
  double sum = 0;
  for (int64_t i = 0; i < tensor_count(&p->t[OPERAND_D_OUT]); i++)
    sum += tensor_get(&p->t[OPERAND_D_OUT], i) * tensor_get(&outputs.t[OPERAND_OUT], i);
  for (int64_t i = 0; p->spec.d_lse && i < tensor_count(&p->t[OPERAND_D_LSE]); i++) {
    double lse = tensor_get(&outputs.t[OPERAND_LSE], i);
    if (isfinite(lse)) sum += tensor_get(&p->t[OPERAND_D_LSE], i) * lse;
  }
  run_free(&outputs);
  return sum;
}

static double difference(test_problem *p, operand_id id, int64_t element) {
  test_tensor *t = &p->t[id];
  double x = tensor_get(t, element), at[2], value[2];
  for (int side = 0; side < 2; side++) {
    tensor_set(t, element, side ? x + 1e-5 : x - 1e-5);
    at[side] = tensor_get(t, element); /* a bias may be f32 */
    value[side] = loss(p);
  }
  tensor_set(t, element, x);
  return (value[1] - value[0]) / (at[1] - at[0]);
}

static const struct {
  operand_id input, gradient;
  const char *name;
} pairs[] = {{OPERAND_Q, OPERAND_D_Q, "d_q"},
             {OPERAND_K, OPERAND_D_K, "d_k"},
             {OPERAND_V, OPERAND_D_V, "d_v"},
             {OPERAND_BIAS, OPERAND_D_BIAS, "d_bias"},
             {OPERAND_SINK, OPERAND_D_SINK, "d_sink"}};

enum { SAMPLES = 12 };

/* Some elements of each gradient, of every kernel; returns how many were compared. */
static int check_gradients(const problem_spec *spec) {
  test_problem p;
  run_outputs outputs[65];
  const char *kernel[65] = {NULL};
  int count = 1, compared = 0;
  problem_make(&p, spec);
  run_for_backward(&p);
  kernel_names usable = usable_kernels(ATTEND_BACKWARD, spec->dtype);
  if (run_kernel(&p, ATTEND_BACKWARD, NULL, 1, &outputs[0])) fail_msg("%s", attend_error_message());
  for (int k = 0; k < usable.count; k++)
    if (!run_kernel(&p, ATTEND_BACKWARD, usable.name[k], 1, &outputs[count])) kernel[count++] = usable.name[k];
  for (size_t n = 0; n < sizeof pairs / sizeof *pairs; n++) {
    test_tensor *gradient = &outputs[0].t[pairs[n].gradient];
    if (!gradient->view.data) continue;
    double largest = 1;
    int64_t elements = tensor_count(gradient);
    for (int64_t i = 0; i < elements; i++) largest = fmax(largest, fabs(tensor_get(gradient, i)));
    for (int64_t s = 0; s < SAMPLES && s < elements; s++) {
      int64_t i = elements <= SAMPLES ? s : (s * 7919 + (int64_t)(spec->seed % 1000)) % elements;
      if (!isfinite(tensor_get(&p.t[pairs[n].input], i))) continue; /* a bias of -inf hides: not differentiable */
      double want = difference(&p, pairs[n].input, i);
      for (int k = 0; k < count; k++, compared++) {
        double got = tensor_get(&outputs[k].t[pairs[n].gradient], i);
        if (fabs(got - want) <= 1e-6 * largest) continue;
        char text[512];
        problem_describe(&p.spec, text, sizeof text);
        fail_msg("%s: %s[%" PRId64 "] is %.12g, the difference %.12g\n%s", kernel[k] ? kernel[k] : "reference",
                 pairs[n].name, i, got, want, text);
      }
    }
  }
  for (int k = 0; k < count; k++) run_free(&outputs[k]);
  problem_free(&p);
  return compared;
}

static problem_spec small_spec(void) {
  return (problem_spec){.seed = 3,
                        .dtype = {2, 64, 1},
                        .batch = 2,
                        .heads = 4,
                        .kv_heads = 2,
                        .q_len = 5,
                        .k_len = 7,
                        .head_dim = 6,
                        .v_dim = 4,
                        .lse = true,
                        .d_q = true,
                        .d_k = true,
                        .d_v = true,
                        .options = {.threads = 1}};
}

static void each_option_alone(void **state) {
  (void)state;
  int compared = 0;
  for (int option = 0; option < 14; option++) {
    problem_spec s = small_spec();
    if (option == 1) s.options.flags = ATTEND_CAUSAL;
    if (option == 2) s.options.flags = ATTEND_CAUSAL | ATTEND_TOP_LEFT;
    if (option == 3) s.options.flags = ATTEND_WINDOW, s.options.window_left = 2, s.options.window_right = 1;
    if (option == 4) s.options.flags = ATTEND_SCALE, s.options.scale = -0.7;
    if (option == 5) s.options.softcap = 0.8;
    if (option == 6) s.dropout = 0.4;
    if (option == 7) s.alibi = 1;
    if (option == 8) s.mask_rank = 4;
    if (option == 9) s.bias = 1, s.d_bias = true;
    if (option == 10) s.bias = 1, s.d_bias = true, s.bias_shape = 5;
    if (option == 11) s.sink = 1, s.d_sink = true;
    if (option == 12) s.kv_len = true;
    if (option == 13) s.d_lse = true;
    compared += check_gradients(&s);
    s.q_len = 40, s.k_len = 45; /* beyond the kernels for short sequences */
    compared += check_gradients(&s);
  }
  print_message("%d elements compared\n", compared);
}

static void options_together(void **state) {
  (void)state;
  int compared = 0;
  for (uint64_t seed = 1; seed <= 60; seed++) {
    problem_spec s = random_spec(seed, (attend_dtype){2, 64, 1}, ATTEND_BACKWARD);
    int64_t longest = seed % 3 == 0 ? 36 : 9;
    if (s.q_len > longest) s.q_len = longest;
    if (s.k_len > longest) s.k_len = longest;
    if (s.head_dim > 5) s.head_dim = 5;
    if (s.v_dim > 5) s.v_dim = 5;
    if (s.options.flags & ATTEND_SCALE) s.options.scale = 0.3;
    s.options.flags &= ~(uint32_t)ATTEND_ACCUMULATE;
    s.magnitude = 1;
    s.lse = true;
    compared += check_gradients(&s);
  }
  print_message("%d elements compared\n", compared);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(each_option_alone), cmocka_unit_test(options_together)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
