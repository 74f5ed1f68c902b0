/* SPDX-License-Identifier: MIT */
/* The floating-point state that kernels assume: round to nearest, results that would be subnormal are 0, no traps. A
 * caller, or a thread of somebody else's pool, may have set another, and gets its own back, with its exception flags.
 *
 * Flushing loses at most 2^-126 a product. Without it, a key far behind ALiBi's slope, whose probability is around
 * 2^-126, costs some 150 cycles in each product: forward took ten times as long. Subnormal inputs count (on x86). */
#ifndef ATTEND_FLOAT_STATE_H
#define ATTEND_FLOAT_STATE_H

#include <stdint.h>

#if defined(__SSE2__)
#include <xmmintrin.h>
static inline uint64_t attend_float_state_set(void) {
  unsigned before = _mm_getcsr();
  _mm_setcsr(0x9F80);
  return before;
}
static inline void attend_float_state_restore(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static inline uint64_t attend_float_state_set(void) {
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24));
  return before;
}
static inline void attend_float_state_restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static inline uint64_t attend_float_state_set(void) { return 0; }
static inline void attend_float_state_restore(uint64_t before) { (void)before; }
#endif

#endif
