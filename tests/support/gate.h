/* SPDX-License-Identifier: MIT */
/* Runs kernels on test problems, and says whether what they wrote is as exact as house rule 6 asks: against the f64
 * reference, max|error| at most 2 times (gradients: 3 times) that of the naive computation in the same element type,
 * plus 2 ulp at max|reference|. */
#ifndef TEST_GATE_H
#define TEST_GATE_H

#include "support/problem_maker.h"

/* Outputs of one run. */
typedef struct run_outputs {
  test_tensor t[OPERAND_COUNT];
} run_outputs;

/* Run the kernel of that name on p, into fresh outputs, inputs read-only, every tensor and the workspace between guard
 * pages. NULL kernel: the reference. On ATTEND_ERROR_NO_BACKEND nothing is made. */
attend_status run_kernel(test_problem *p, attend_direction direction, const char *kernel, int threads,
                         run_outputs *outputs);
void run_free(run_outputs *outputs);

/* Run forward by the reference into p's own out and lse, as backward reads them. */
void run_for_backward(test_problem *p);

/* The naive computation: S and P rounded to the element type, sums in f32 (f64 for f64), in one of `NAIVE_ORDERS`
 * orders of summation: a single order is exact by luck on small problems. For f64 everything is rounded to f32 instead,
 * and the gate scales the error down: the reference, in f64 too, could not tell an f64 error from its own. */
enum { NAIVE_ORDERS = 4 };
void run_naive(test_problem *p, attend_direction direction, int order, run_outputs *outputs);

typedef struct gate_result {
  bool passed;
  char message[512];
  /* Of the output that failed by its error alone; id is OPERAND_COUNT where something else is wrong. */
  operand_id id;
  double error, naive_error, largest;
} gate_result;
gate_result check_gate(test_problem *p, attend_direction direction, const run_outputs *kernel,
                       const run_outputs *reference, const run_outputs naive[NAIVE_ORDERS]);

/* Its numbers for one output, passed or not; and what error they allow. */
gate_result check_numbers(const run_outputs *kernel, const run_outputs *reference,
                          const run_outputs naive[NAIVE_ORDERS], operand_id id);
double allowed_error(const test_problem *p, attend_direction direction, operand_id id, double naive_error,
                     double largest);

/* Gaps untouched? Empty message if so. */
gate_result check_gaps(attend_direction direction, const run_outputs *outputs);

/* Usable CPU kernels of a direction and type, without the reference. Returns how many. */
typedef struct kernel_names {
  int count;
  char name[64][ATTEND_NAME_SIZE];
  uint32_t backend[64];
} kernel_names;
kernel_names usable_kernels(attend_direction direction, attend_dtype dtype);

#endif
