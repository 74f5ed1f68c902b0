/* SPDX-License-Identifier: MIT */
/* What the files of src/api share: a plan is a checked problem, the kernels chosen for it, and the services it runs
 * on. */
#ifndef ATTEND_API_INTERNAL_H
#define ATTEND_API_INTERNAL_H

#include "problem.h"

__extension__ typedef __int128 wide; /* byte extents before they are known to fit in 60 bits */

/* What execution compares an operand with. */
typedef struct attend_expected {
  attend_dtype dtype;
  bool empty;          /* no elements: strides and data may be anything */
  bool compact;        /* NULL strides are the plan's */
  uintptr_t alignment; /* of data, a power of two */
  bool chosen;         /* a kernel asks for it, not the element type */
} attend_expected;

struct attend_plan {
  attend_problem problem;
  attend_choice choice[ATTEND_MOST_KERNELS]; /* in this order; the last is for the longest sequences */
  int choices;
  size_t workspace_bytes, alignment; /* the most of any */
  attend_services services;
  int32_t ndim[OPERAND_COUNT];
  int64_t shape[OPERAND_COUNT][4], strides[OPERAND_COUNT][4];
  attend_expected expected[OPERAND_COUNT];
  operand_id operand[OPERAND_COUNT]; /* those that the problem has */
  int operands;
  const void *distinct[OPERAND_COUNT]; /* data known to share nothing that it must not; all NULL: not known */
};

/* The operands of attend_args in the order of operand_id. */
extern const char *const attend_operand_names[OPERAND_COUNT];
void attend_args_tensors(const attend_args *args, const attend_tensor *tensors[OPERAND_COUNT]);

/* Where a tensor's first element is: of any tensor, one that is yet to be checked too, whose sum may wrap around. */
ATTEND_INLINE void *attend_first_element(const attend_tensor *t) {
  return (void *)((uintptr_t)t->data + (uintptr_t)t->byte_offset);
}

/* Copy a caller's struct of its own version into the current one (missing fields zero); fails if the caller's is newer
 * and sets fields that this library does not know. */
attend_status attend_read_args(const attend_args *caller, attend_args *args);
attend_status attend_read_options(const attend_options *caller, attend_options *options);

/* Check everything but data; fill plan's problem, shapes and services. */
attend_status attend_check(attend_direction direction, const attend_args *args, const attend_options *options,
                           attend_plan *plan);
/* Fill what attend_bind goes by; the kernels have been chosen. */
void attend_expect(attend_plan *plan);
/* Check that args fit the plan; fill operands. */
attend_status attend_bind(const attend_plan *plan, const attend_args *args, attend_operands *operands);
/* Check host index tensors of bound operands. */
attend_status attend_check_host_indices(const attend_problem *problem, const attend_operands *operands);
/* Does an output hold an element twice? */
attend_status attend_check_repeats(const attend_plan *plan);
/* Does an output share elements with another operand? */
attend_status attend_check_overlap(const attend_plan *plan, const attend_operands *operands);
/* Look at the data of args now, so that executions with the same need not. */
void attend_remember_distinct(attend_plan *plan, const attend_args *args);

/* Without query heads: writes what there is to write and returns true; false if a kernel must run. */
bool attend_run_without_heads(const attend_plan *plan, const attend_operands *operands);

/* Choose the kernels, one unless sequences have lengths of their own, among those allowed; explanation may be NULL. */
attend_status attend_choose(attend_plan *plan, const attend_options *options, attend_explanation *explanation);

void attend_services_from(const attend_hooks *hooks, attend_services *services);

#endif
