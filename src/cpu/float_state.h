/* SPDX-License-Identifier: MIT */
/* The floating-point state that kernels assume: round to nearest, subnormals kept, no traps. A caller, or a thread of
 * somebody else's pool, may have set another (-ffast-math sets flush-to-zero for the whole process), and gets its own
 * back, with its exception flags. */
#ifndef ATTEND_FLOAT_STATE_H
#define ATTEND_FLOAT_STATE_H

#include <stdint.h>

#if defined(__SSE2__)
#include <xmmintrin.h>
static inline uint64_t attend_float_state_set(void) {
  unsigned before = _mm_getcsr();
  _mm_setcsr(0x1F80);
  return before;
}
static inline void attend_float_state_restore(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static inline uint64_t attend_float_state_set(void) {
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
  return before;
}
static inline void attend_float_state_restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static inline uint64_t attend_float_state_set(void) { return 0; }
static inline void attend_float_state_restore(uint64_t before) { (void)before; }
#endif

#endif
