/* SPDX-License-Identifier: MIT */
/* What a GPU allows, from what its driver says of clocks, units and bus. */
#include "ceiling.h"

#include "cuda/driver.h"

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
  c.read_gbytes = c.stream_gbytes = 2.0 * memory_clock * (bus / 8) * 1e-6; /* two transfers in a clock */
  return c;
}
