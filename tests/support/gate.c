/* SPDX-License-Identifier: MIT */
/* Runs, comparisons, and the list of kernels. */
#include "support/gate.h"

#include "api/element.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static bool takes_part(const test_problem *p, attend_direction direction, operand_id id) {
  if (!p->t[id].view.data) return false;
  if (direction == ATTEND_FORWARD) return id < OPERAND_D_OUT && (id != OPERAND_LSE || p->spec.lse);
  return id != OPERAND_PROBS && id != OPERAND_SCORES;
}

attend_status run_kernel(test_problem *p, attend_direction direction, const char *kernel, int threads,
                         run_outputs *outputs) {
  *outputs = (run_outputs){0};
  attend_args args = {.dropout_seed = p->spec.dropout_seed, .dropout_offset = p->spec.dropout_offset};
  const attend_tensor **slots = &args.q; /* attend_args has its tensors in the order of operand_id */
  uint64_t place = p->spec.seed;
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    if (!takes_part(p, direction, id)) continue;
    slots[id] = &p->t[id].view;
    if (is_output_of(direction, id)) {
      tensor_clone(&outputs->t[id], &p->t[id], random_next(&place) % 4 != 0);
      slots[id] = &outputs->t[id].view;
    } else
      guarded_read_only(&p->t[id].memory, true);
  }
  attend_options options = p->options;
  options.kernel = kernel ? kernel : direction == ATTEND_FORWARD ? "forward_any_reference" : "backward_any_reference";
  options.backends = ATTEND_BACKEND_ALL | ATTEND_BACKEND_REFERENCE;
  options.threads = threads;
  attend_plan *plan = NULL;
  attend_status status = attend_plan_create(direction, &args, &options, &plan);
  if (status == ATTEND_OK) {
    size_t bytes = attend_plan_workspace_bytes(plan),
           rounded = (bytes + ATTEND_WORKSPACE_ALIGNMENT - 1) / ATTEND_WORKSPACE_ALIGNMENT * ATTEND_WORKSPACE_ALIGNMENT;
    guarded workspace = guarded_make(rounded, true);
    status = (direction == ATTEND_FORWARD ? attend_forward : attend_backward)(plan, &args, workspace.data, bytes, NULL);
    guarded_free(&workspace);
    attend_plan_destroy(plan);
  }
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (takes_part(p, direction, id) && !is_output_of(direction, id)) guarded_read_only(&p->t[id].memory, false);
  if (status != ATTEND_OK) run_free(outputs);
  return status;
}

void run_free(run_outputs *outputs) {
  for (operand_id id = 0; id < OPERAND_COUNT; id++) guarded_free(&outputs->t[id].memory);
  *outputs = (run_outputs){0};
}

void run_for_backward(test_problem *p) {
  bool lse = p->spec.lse;
  p->spec.lse = true;
  run_outputs outputs;
  if (run_kernel(p, ATTEND_FORWARD, NULL, 1, &outputs)) {
    fprintf(stderr, "reference: %s\n", attend_error_message());
    abort();
  }
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    for (int64_t i = 0; outputs.t[id].view.data && i < tensor_count(&p->t[id]); i++)
      tensor_set(&p->t[id], i, tensor_get(&outputs.t[id], i));
  run_free(&outputs);
  p->spec.lse = lse;
}

/* ---- The gate -------------------------------------------------------------------------------------------------- */

static double ulp_at(attend_type type, double x) {
  int bits = type == TYPE_F64 ? 53 : type == TYPE_F32 ? 24 : type == TYPE_F16 ? 11 : 8;
  int least = type == TYPE_F64 ? -1074 : type == TYPE_F32 ? -149 : type == TYPE_F16 ? -24 : -133, exponent;
  if (x == 0) return ldexp(1, least);
  frexp(x, &exponent);
  return ldexp(1, exponent - bits < least ? least : exponent - bits);
}

/* max|a - reference| over elements that are finite in both. */
static double largest_error(const test_tensor *a, const test_tensor *reference) {
  double most = 0;
  for (int64_t i = 0; i < tensor_count(a); i++) {
    double error = fabs(tensor_get(a, i) - tensor_get(reference, i));
    if (error > most && isfinite(error)) most = error;
  }
  return most;
}

static const char *const names[OPERAND_COUNT] = {
    [OPERAND_OUT] = "out",       [OPERAND_LSE] = "lse",       [OPERAND_PROBS] = "probs",
    [OPERAND_SCORES] = "scores", [OPERAND_D_Q] = "d_q",       [OPERAND_D_K] = "d_k",
    [OPERAND_D_V] = "d_v",       [OPERAND_D_BIAS] = "d_bias", [OPERAND_D_SINK] = "d_sink"};

double allowed_error(const test_problem *p, attend_direction direction, operand_id id, double naive_error,
                     double largest) {
  double factor = direction == ATTEND_FORWARD ? 2 : 3, ulps = 2;
  if (p->spec.dtype.bits == 64) { /* the reference errs too, and the naive computation was made in f32 */
    factor *= 2 * ldexp(1, 24 - 53);
    ulps *= 2;
  }
  return factor * naive_error + ulps * ulp_at(tensor_type(&p->t[id]), largest);
}

gate_result check_numbers(const run_outputs *kernel, const run_outputs *reference,
                          const run_outputs naive[NAIVE_ORDERS], operand_id id) {
  const test_tensor *want = &reference->t[id];
  gate_result result = {.id = id, .error = largest_error(&kernel->t[id], want)};
  for (int64_t i = 0; i < tensor_count(want); i++)
    if (isfinite(tensor_get(want, i))) result.largest = fmax(result.largest, fabs(tensor_get(want, i)));
  for (int n = 0; n < NAIVE_ORDERS; n++)
    result.naive_error = fmax(result.naive_error, largest_error(&naive[n].t[id], want));
  return result;
}

/* Whether NaN and infinities are where they should be, and nowhere else. */
static gate_result check_kinds(const test_tensor *got, const test_tensor *want, operand_id id) {
  gate_result result = {.passed = true, .id = OPERAND_COUNT};
  for (int64_t i = 0; i < tensor_count(want) && result.passed; i++) {
    double x = tensor_get(got, i), y = tensor_get(want, i);
    result.passed = isnan(y) ? isnan(x) : isinf(y) ? x == y : isfinite(x);
    if (!result.passed)
      snprintf(result.message, sizeof result.message, "%s[%" PRId64 "] is %.9g, expected %.9g", names[id], i, x, y);
  }
  return result;
}

gate_result check_gate(test_problem *p, attend_direction direction, const run_outputs *kernel,
                       const run_outputs *reference, const run_outputs naive[NAIVE_ORDERS]) {
  for (operand_id id = 0; id < OPERAND_COUNT; id++) {
    const test_tensor *got = &kernel->t[id], *want = &reference->t[id];
    if (!got->view.data) continue;
    gate_result kinds = check_kinds(got, want, id);
    if (!kinds.passed) return kinds;
    gate_result result = check_numbers(kernel, reference, naive, id);
    double allowed = allowed_error(p, direction, id, result.naive_error, result.largest);
    if (result.error <= allowed) continue;
    int64_t worst = 0;
    while (!(fabs(tensor_get(got, worst) - tensor_get(want, worst)) >= result.error)) worst++;
    snprintf(result.message, sizeof result.message,
             "%s[%" PRId64 "] is %.9g, expected %.9g: error %.3g, allowed %.3g (naive %.3g, max|reference| %.3g)",
             names[id], worst, tensor_get(got, worst), tensor_get(want, worst), result.error, allowed,
             result.naive_error, result.largest);
    return result;
  }
  return (gate_result){.passed = true, .id = OPERAND_COUNT};
}

gate_result check_gaps(attend_direction direction, const run_outputs *outputs) {
  gate_result result = {.passed = true};
  for (operand_id id = 0; id < OPERAND_COUNT; id++)
    if (outputs->t[id].view.data && is_output_of(direction, id) && !tensor_gaps_intact(&outputs->t[id])) {
      result.passed = false;
      snprintf(result.message, sizeof result.message, "%s: wrote between the elements", names[id]);
    }
  return result;
}

kernel_names usable_kernels(attend_direction direction, attend_dtype dtype) {
  kernel_names list = {0};
  attend_kernel kernel = {.size = sizeof kernel};
  for (int64_t i = 0; attend_kernel_at(i, &kernel) == ATTEND_OK; i++) {
    bool any_type = kernel.dtype.bits == 0, same = !memcmp(&kernel.dtype, &dtype, sizeof dtype);
    if (kernel.device != ATTEND_CPU || kernel.direction != (int32_t)direction || !kernel.usable ||
        kernel.backend == ATTEND_BACKEND_REFERENCE || !(any_type || same) || list.count == 64)
      continue;
    snprintf(list.name[list.count], ATTEND_NAME_SIZE, "%s", kernel.name);
    list.backend[list.count++] = kernel.backend;
  }
  return list;
}
