/* SPDX-License-Identifier: MIT */
/* A CUDA driver without a GPU: libcuda.so.1 for tests. Device memory is host memory, and a launch runs the kernel's
 * source block by block on the emulator. So the host side, the table of kernels and the kernels themselves are tested
 * end to end where there is no GPU; what it cannot show is said in emulate.h. */
#include "support/emulate.h"

#include "api/problem.h"

#include <cstdlib>

namespace f32 {
#include "cuda/efficient_f32.cu"
}
#undef ATTEND_CUDA_EFFICIENT_H
#undef ATTEND_CUDA_SLICE_CUH
namespace f64 {
#include "cuda/efficient_f64.cu"
}
#undef ATTEND_CUDA_EFFICIENT_H
#undef ATTEND_CUDA_SLICE_CUH
namespace f16 {
#include "cuda/efficient_f16.cu"
}
#undef ATTEND_CUDA_EFFICIENT_H
#undef ATTEND_CUDA_SLICE_CUH
namespace bf16 {
#include "cuda/efficient_bf16.cu"
}

namespace {

struct fake_kernel {
  const char *name;
  void (*run)(const void *argument);
};

#define FAKE(type, entry)                                                                                              \
  {                                                                                                                    \
#entry "_" #type,                                                                                                  \
        [](const void *argument) { type::entry##_##type(*static_cast<const type::efficient_call *>(argument)); }       \
  }
#define FAKES(type)                                                                                                    \
  FAKE(type, forward_narrow), FAKE(type, forward_wide), FAKE(type, forward_materialise),                               \
      FAKE(type, backward_delta_kernel), FAKE(type, backward_keys_narrow), FAKE(type, backward_keys_wide),             \
      FAKE(type, backward_queries_narrow), FAKE(type, backward_queries_wide), FAKE(type, backward_bias_kernel),        \
      FAKE(type, backward_sink_kernel)
const fake_kernel kernels[] = {FAKES(f32), FAKES(f64), FAKES(f16), FAKES(bf16)};

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
int context_of_device, *current;

} // namespace

#define ENTRY_POINT extern "C" __attribute__((visibility("default"))) int

ENTRY_POINT cuInit(unsigned) { return OK; }
ENTRY_POINT cuDriverGetVersion(int *version) { return *version = 13000, OK; }
ENTRY_POINT cuGetErrorName(int error, const char **name) {
  return *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE", OK;
}
ENTRY_POINT cuGetErrorString(int error, const char **text) {
  return *text = error == OUT_OF_MEMORY ? "out of memory" : "invalid argument", OK;
}
ENTRY_POINT cuDeviceGetCount(int *count) { return *count = 1, OK; }
ENTRY_POINT cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal ? INVALID : OK; }
ENTRY_POINT cuDeviceGetName(char *name, int size, int) { return strncpy(name, "emulated GPU", (size_t)size), OK; }
ENTRY_POINT cuDeviceGetAttribute(int *value, int attribute, int) {
  return *value = attribute == 75 ? 9 : attribute == 16 ? 1 : 0, OK;
}
ENTRY_POINT cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = (size_t)1 << 30, OK; }
ENTRY_POINT cuDevicePrimaryCtxRetain(void **context, int) { return *context = &context_of_device, OK; }
ENTRY_POINT cuCtxGetCurrent(void **context) { return *context = current, OK; }
ENTRY_POINT cuCtxGetDevice(int *device) { return *device = 0, current ? OK : INVALID; }
ENTRY_POINT cuCtxPushCurrent_v2(void *context) { return current = static_cast<int *>(context), OK; }
ENTRY_POINT cuCtxPopCurrent_v2(void **context) { return *context = current, current = nullptr, OK; }
ENTRY_POINT cuLibraryLoadData(void **library, const void *image, int *, void **, unsigned, int *, void **, unsigned) {
  return *library = const_cast<void *>(image), OK;
}
ENTRY_POINT cuLibraryGetKernel(void **kernel, void *, const char *name) {
  for (const fake_kernel &k : kernels)
    if (!strcmp(k.name, name)) return *kernel = const_cast<fake_kernel *>(&k), OK;
  return NOT_FOUND;
}
ENTRY_POINT cuKernelGetFunction(void **function, void *kernel) { return *function = kernel, OK; }
ENTRY_POINT cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                           unsigned block_z, unsigned, void *, void **parameters, void **) {
  if (!current || !x) return INVALID;
  dim3 grid, block;
  grid.x = x, grid.y = y, grid.z = z, block.x = block_x, block.y = block_y, block.z = block_z;
  const fake_kernel *kernel = static_cast<const fake_kernel *>(function);
  emulate(grid, block, [=] { kernel->run(parameters[0]); });
  return OK;
}
ENTRY_POINT cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
  if (bytes > (size_t)1 << 30) return OUT_OF_MEMORY;
  return *pointer = (uint64_t)(uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256), *pointer ? OK : OUT_OF_MEMORY;
}
ENTRY_POINT cuMemFree_v2(uint64_t pointer) { return free((void *)(uintptr_t)pointer), OK; }
ENTRY_POINT cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
  return memcpy((void *)(uintptr_t)to, from, bytes), OK;
}
ENTRY_POINT cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
  return memcpy(to, (const void *)(uintptr_t)from, bytes), OK;
}
ENTRY_POINT cuStreamSynchronize(void *) { return OK; }
