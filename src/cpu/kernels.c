/* SPDX-License-Identifier: MIT */
/* The table of CPU kernels: one row per line of kernels.def. */
#include "cpu/kernels.h"

#include "cpu/features.h"

static bool needs_SCALAR(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  (void)reason;
  return true;
}

#if defined(__x86_64__)
static bool needs_AVX2(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return attend_cpu_has(CPU_AVX2, reason, ATTEND_REASON_SIZE);
}

static bool needs_AVX512(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return attend_cpu_has(CPU_AVX512, reason, ATTEND_REASON_SIZE);
}

static bool needs_AVX512BF16(const attend_kernel_row *row, char reason[ATTEND_REASON_SIZE]) {
  (void)row;
  return attend_cpu_has(CPU_AVX512 | CPU_AVX512BF16, reason, ATTEND_REASON_SIZE);
}

/* AMD's cores issue two VDPBF16PS a cycle: twice the products of multiply-adds. Intel's server cores issue one every
 * other cycle (measured: 86 GFLOP/s against 175 with multiply-adds), so there bf16 is better widened. */
static bool dot_is_fast(void) { return __builtin_cpu_is("amd"); }
#else
static bool dot_is_fast(void) { return false; }
#endif

#define DIRECTION_forward ATTEND_FORWARD
#define DIRECTION_backward ATTEND_BACKWARD
#define TYPE_f32 TYPE_F32
#define TYPE_f16 TYPE_F16
#define TYPE_bf16 TYPE_BF16
#define TYPE_f64 TYPE_F64

#define KERNEL(operation, element, variant, isa, stub, set, needs)                                                     \
  {.name = #operation "_" #element "_" #variant "_" #isa,                                                              \
   .backend = ATTEND_BACKEND_##set,                                                                                    \
   .device = ATTEND_CPU,                                                                                               \
   .direction = DIRECTION_##operation,                                                                                 \
   .type = TYPE_##element,                                                                                             \
   .usable = needs_##needs,                                                                                            \
   .plan = attend_##operation##_##variant##_plan_##stub,                                                               \
   .run = attend_##operation##_##variant##_run_##stub},

static const attend_kernel_row rows[] = {
#define DOT_FIRST 0
#include "cpu/kernels.def"
#undef DOT_FIRST
};
static const attend_kernel_row rows_dot_first[] = {
#define DOT_FIRST 1
#include "cpu/kernels.def"
#undef DOT_FIRST
};

attend_kernel_table attend_cpu_kernels(void) {
  return (attend_kernel_table){dot_is_fast() ? rows_dot_first : rows, (int)(sizeof rows / sizeof rows[0])};
}
