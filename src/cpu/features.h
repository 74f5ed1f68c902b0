/* SPDX-License-Identifier: MIT */
/* What the CPU and the operating system offer to the kernels, after the cap that the environment variable ATTEND_CPU
 * sets. Found once. */
#ifndef ATTEND_FEATURES_H
#define ATTEND_FEATURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  CPU_AVX2 = 1 << 0,   /* with FMA and F16C: no CPU has it without */
  CPU_AVX512 = 1 << 1, /* F, DQ, BW, VL */
  CPU_AVX512BF16 = 1 << 2,
  CPU_AVX512FP16 = 1 << 3,
  CPU_AMX_BF16 = 1 << 4, /* and the kernel's permission to use tiles */
  CPU_AMX_INT8 = 1 << 5,
  CPU_AMX_FP16 = 1 << 6,
  CPU_NEON = 1 << 7
};

uint32_t attend_cpu_feature_bits(void);

/* The features that the levels scalar, avx2, avx512, avx512bf16, amx, neon allow; all for NULL and for other words. */
uint32_t attend_cpu_cap(const char *level);

/* Has the CPU all of `needs`? Otherwise writes which are missing, and whether the cap is why. */
bool attend_cpu_has(uint32_t needs, char *reason, size_t reason_size);

/* Bytes of the data caches of one core, and of the last one, which cores share; a guess where it cannot be known. */
typedef struct attend_cpu_caches {
  int64_t first, second, last;
} attend_cpu_caches;
attend_cpu_caches attend_cpu_cache_sizes(void);

#endif
