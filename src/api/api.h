/* SPDX-License-Identifier: MIT */
/* What the files of src/api share: a plan is a checked problem, the kernels chosen for it, and the services it runs
 * on. */
#ifndef ATTEND_API_INTERNAL_H
#define ATTEND_API_INTERNAL_H

#include "problem.h"

__extension__ typedef __int128 wide; /* byte extents before they are known to fit in 60 bits */

/* A tensor of the caller's, and an array of its sizes or strides: what they held. */
typedef struct attend_given_tensor {
  _Alignas(16) attend_tensor held;
  const attend_tensor *at;
} attend_given_tensor;
typedef struct attend_given_array {
  _Alignas(16) int64_t held[4];
  const int64_t *at;
  int count;
} attend_given_array;

typedef const attend_tensor *attend_tensors[OPERAND_COUNT];

/* What execution compares an operand with. */
typedef struct attend_expected {
  attend_dtype dtype;
  bool empty;          /* no elements: strides and data may be anything */
  bool compact;        /* NULL strides are the plan's */
  bool chosen;         /* a kernel asks for the alignment, not the element type */
  uintptr_t alignment; /* of data, a power of two */
  int64_t low, high;   /* bytes from the first element to the lowest byte, and past the highest */
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
  uintptr_t minded[OPERAND_COUNT]; /* 0: a tensor there is ignored; else all ones */
  /* What it was made with: tensors by operand_id; operand[i]'s at i; their arrays, each once, or none if one is empty.
   */
  attend_tensors tensors;
  attend_given_tensor given[OPERAND_COUNT];
  attend_given_array array[2 * OPERAND_COUNT];
  int arrays;
  bool distinct;         /* the data is right, and shares nothing that it must not */
  attend_operands bound; /* what it was made with */
};

/* The operands of attend_args, which lie there in the order of operand_id. */
extern const char *const attend_operand_names[OPERAND_COUNT];
_Static_assert(offsetof(attend_args, dropout_seed) - offsetof(attend_args, q) == sizeof(attend_tensors) &&
                   offsetof(attend_args, lse) - offsetof(attend_args, q) == OPERAND_LSE * sizeof(attend_tensor *),
               "operand_id does not name the tensors of attend_args");
ATTEND_INLINE const attend_tensors *attend_args_tensors(const attend_args *args) {
  return (const attend_tensors *)(const void *)((const char *)args + offsetof(attend_args, q));
}

/* Where a tensor's first element is: of any tensor, one that is yet to be checked too, whose sum may wrap around. */
ATTEND_INLINE void *attend_first_element(const attend_tensor *t) {
  return (void *)((uintptr_t)t->data + (uintptr_t)t->byte_offset);
}

/* A caller's struct of its own version as the current one (missing fields zero), copied if it is not; fails if the
 * caller's is newer and sets fields that this library does not know. */
attend_status attend_copy_args(const attend_args *caller, attend_args *copy);
static inline attend_status attend_read_args(const attend_args *caller, attend_args *copy, const attend_args **args) {
  bool current = caller && (caller->size == 0 || caller->size == sizeof *caller);
  *args = current ? caller : copy;
  return current ? ATTEND_OK : attend_copy_args(caller, copy);
}
attend_status attend_read_options(const attend_options *caller, attend_options *options);

/* Check everything but data; fill plan's problem, shapes and services. */
attend_status attend_check(attend_direction direction, const attend_args *args, const attend_options *options,
                           attend_plan *plan);
/* Fill what attend_bind goes by; the kernels have been chosen. */
void attend_expect(attend_plan *plan, const attend_args *args);
/* Check that args fit the plan; operands are the plan's, or own, which it fills. Is their data other than what is known
 * to be distinct? */
attend_status attend_bind(const attend_plan *plan, const attend_args *args, attend_operands *own,
                          const attend_operands **operands, bool *moved);
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
