/* SPDX-License-Identifier: MIT */
/* How an entry point is declared: a stub NAME.cu defines ELEMENT, SUFFIX and `real`, then includes a file that lists
 *   ENTRY(name, threads, blocks) { always-inline body with constants (call, 64, false); }
 * The host knows kernels by name and image. `blocks`: how many must fit on a multiprocessor, which caps registers. */
#ifndef ATTEND_CUDA_ENTRY_H
#define ATTEND_CUDA_ENTRY_H

#include "call.h"
#include "ptx.h"

#ifdef __CUDACC__
#define CALL const __grid_constant__ cuda_call call
#else
#define CALL const cuda_call &call /* by value gcc notes that its ABI for such alignment changed in 4.6 */
#endif
#define PASTE(a, b) a##_##b
#define SUFFIXED(a, b) PASTE(a, b)
#define ENTRY(name, threads, blocks)                                                                                   \
  KERNEL void __launch_bounds__(threads, blocks) SUFFIXED(name, SUFFIX)(CALL);                                         \
  KERNEL void SUFFIXED(name, SUFFIX)(CALL)

#endif
