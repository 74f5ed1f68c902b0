/* SPDX-License-Identifier: MIT */
/* What a GPU allows: from what its driver says of clocks, units and bus, and by copying. */
#include "ceiling.h"

#include "cuda/device.h"
#include "cuda/driver.h"

#include <time.h>

enum {
  ATTRIBUTE_CLOCK_KHZ = 13,
  ATTRIBUTE_MULTIPROCESSORS = 16,
  ATTRIBUTE_MEMORY_CLOCK_KHZ = 36,
  ATTRIBUTE_MEMORY_BUS_BITS = 37
};

/* Operations of one multiprocessor in one clock, a multiply-add counted as two: "Arithmetic Instructions" of the CUDA
 * C++ Programming Guide for f32, the architectures' white papers for dense f16 and bf16 matrix products. */
static const struct {
  int capability; /* and newer */
  double f32, tensor;
} rates[] = {{120, 256, 1024}, {100, 256, 8192}, {90, 256, 4096}, {86, 256, 1024}, {80, 128, 2048}, {75, 128, 1024}};

enum { COPY_BYTES = 1 << 28, COPIES = 20, ROUNDS = 3 }; /* beyond every L2 */

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The best of a few rounds, in bytes read and written in a second; 0 where there is no memory for it. */
static double copy_gbytes(const cuda_driver *driver, int ordinal) {
  void *from = NULL, *to = NULL;
  double best = 0;
  cuda_scope scope;
  if (cuda_allocate(ordinal, COPY_BYTES, &from) || cuda_allocate(ordinal, COPY_BYTES, &to) ||
      cuda_enter(ordinal, &scope)) {
    cuda_release(ordinal, to);
    cuda_release(ordinal, from);
    return 0;
  }
  for (int round = 0; round <= ROUNDS; round++) { /* the first warms up */
    int error = driver->stream_synchronize(NULL);
    double begin = seconds_now();
    for (int i = 0; i < COPIES && !error; i++)
      error = driver->copy((uint64_t)(uintptr_t)to, (uint64_t)(uintptr_t)from, COPY_BYTES, NULL);
    if (error || driver->stream_synchronize(NULL)) break;
    double rate = 2.0 * COPY_BYTES * COPIES / (seconds_now() - begin) * 1e-9;
    if (round && rate > best) best = rate;
  }
  cuda_leave(&scope);
  cuda_release(ordinal, to);
  cuda_release(ordinal, from);
  return best;
}

ceilings gpu_ceilings(int ordinal) {
  ceilings c = {0};
  const cuda_driver *driver = cuda_driver_get(NULL);
  int device, clock = 0, units = 0, memory_clock = 0, bus = 0, capability = cuda_capability(ordinal);
  if (!driver || driver->device_get(&device, ordinal) ||
      driver->device_attribute(&clock, ATTRIBUTE_CLOCK_KHZ, device) ||
      driver->device_attribute(&units, ATTRIBUTE_MULTIPROCESSORS, device) ||
      driver->device_attribute(&memory_clock, ATTRIBUTE_MEMORY_CLOCK_KHZ, device) ||
      driver->device_attribute(&bus, ATTRIBUTE_MEMORY_BUS_BITS, device))
    return c;
  for (unsigned i = 0; i < sizeof rates / sizeof *rates; i++)
    if (capability >= rates[i].capability) {
      c.f32_gflops = rates[i].f32 * units * clock * 1e-6;
      c.bf16_gflops = rates[i].tensor * units * clock * 1e-6;
      break;
    }
  c.read_gbytes = 2.0 * memory_clock * (bus / 8) * 1e-6; /* two transfers in a clock */
  c.stream_gbytes = copy_gbytes(driver, ordinal);
  return c;
}
