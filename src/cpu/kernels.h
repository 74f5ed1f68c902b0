/* SPDX-License-Identifier: MIT */
/* The entry points of src/cpu/isa, one plan and one run per line of kernels.def. */
#ifndef ATTEND_CPU_KERNELS_H
#define ATTEND_CPU_KERNELS_H

#include "api/problem.h"

#define KERNEL(operation, type, variant, isa, stub, backend, needs)                                                    \
  bool attend_##operation##_##variant##_plan_##stub(const attend_kernel_row *row, const attend_problem *problem,       \
                                                    attend_choice *choice, char reason[ATTEND_REASON_SIZE]);           \
  attend_status attend_##operation##_##variant##_run_##stub(                                                           \
      const attend_problem *problem, const attend_choice *choice, const attend_operands *operands,                     \
      const attend_services *services, void *workspace, void *stream);
#define DOT_FIRST 1
#include "cpu/kernels.def"
#undef DOT_FIRST
#undef KERNEL

#endif
