/* SPDX-License-Identifier: MIT */
/* A CUDA driver without a GPU: libcuda.so.1 for tests. Device memory is host memory that only copies and the launches
 * of its own device may touch, with a page behind every allocation that nobody may touch; a launch runs the kernel's
 * source block by block on the emulator. So the host side, the table of kernels and the kernels themselves are tested
 * end to end where there is no GPU; what it cannot show is said in emulate.h. The environment changes what it is, call
 * by call: FAKE_CUDA_GPUS=2           number of devices                  FAKE_CUDA_VERSION=11080   version of the
 * driver FAKE_CUDA_CAPABILITY=75    compute capability of all          FAKE_CUDA_FAIL=cuMemAlloc_v2:2   an entry point
 * fails FAKE_CUDA_CAPTURE=1        a stream is being captured: what would allocate or wait fails, as it does then */
#include "cuda/driver.h"
#include "fake/fake_kernels.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <vector>

namespace {

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NOT_FOUND = 500, IN_CAPTURE = 900 };
enum { PAGE = 4096, MAX_GPUS = 8 };

struct allocation {
  char *map;
  size_t map_bytes;
  int device;
};
std::map<uint64_t, allocation> memory;
int contexts[MAX_GPUS];                /* the primary contexts: contexts + device */
thread_local std::vector<int *> stack; /* of contexts */

int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

/* What FAKE_CUDA_FAIL wants this entry point to return. */
int failure(const char *entry) {
  const char *wanted = getenv("FAKE_CUDA_FAIL");
  size_t length = strlen(entry);
  return wanted && !strncmp(wanted, entry, length) && wanted[length] == ':' ? atoi(wanted + length + 1) : OK;
}

int waits(const char *entry) { return number("FAKE_CUDA_CAPTURE", 0) ? IN_CAPTURE : failure(entry); }

void open_memory(int device, bool open) {
  for (const auto &m : memory)
    if (m.second.device == device || device < 0)
      mprotect(m.second.map, m.second.map_bytes - PAGE, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

struct open_scope {
  explicit open_scope(int device) : device(device) { open_memory(device, true); }
  ~open_scope() { open_memory(device, false); }
  int device;
};

int current_device() { return stack.empty() ? -1 : (int)(stack.back() - contexts); }

} // namespace

#define ENTRY_POINT extern "C" __attribute__((visibility("default"))) int

ENTRY_POINT cuInit(unsigned) { return failure("cuInit"); }
ENTRY_POINT cuDriverGetVersion(int *version) { return *version = number("FAKE_CUDA_VERSION", 13000), OK; }
ENTRY_POINT cuGetErrorName(int error, const char **name) {
  static const std::map<int, const char *> names = {{INVALID, "CUDA_ERROR_INVALID_VALUE"},
                                                    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                    {100, "CUDA_ERROR_NO_DEVICE"},
                                                    {NO_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
                                                    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
                                                    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                                    {IN_CAPTURE, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}};
  auto found = names.find(error);
  return found == names.end() ? INVALID : (*name = found->second, OK);
}
ENTRY_POINT cuGetErrorString(int error, const char **text) {
  return *text = error == OUT_OF_MEMORY ? "out of memory" : "the emulated driver's words", OK;
}
ENTRY_POINT cuDeviceGetCount(int *count) { return *count = number("FAKE_CUDA_GPUS", 1), OK; }
ENTRY_POINT cuDeviceGet(int *device, int ordinal) {
  return *device = ordinal, ordinal < number("FAKE_CUDA_GPUS", 1) ? OK : INVALID;
}
ENTRY_POINT cuDeviceGetName(char *name, int size, int) { return strncpy(name, "emulated GPU", (size_t)size), OK; }
ENTRY_POINT cuDeviceGetAttribute(int *value, int attribute, int) {
  int capability = number("FAKE_CUDA_CAPABILITY", 90);
  return *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 16 ? 1 : 0, OK;
}
ENTRY_POINT cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = (size_t)1 << 30, OK; }
ENTRY_POINT cuDevicePrimaryCtxRetain(void **context, int device) {
  return *context = contexts + device, failure("cuDevicePrimaryCtxRetain");
}
ENTRY_POINT cuCtxGetCurrent(void **context) { return *context = stack.empty() ? nullptr : stack.back(), OK; }
ENTRY_POINT cuCtxGetDevice(int *device) { return *device = current_device(), stack.empty() ? NO_CONTEXT : OK; }
ENTRY_POINT cuCtxPushCurrent_v2(void *context) { return stack.push_back(static_cast<int *>(context)), OK; }
ENTRY_POINT cuCtxPopCurrent_v2(void **context) {
  if (stack.empty()) return NO_CONTEXT;
  return *context = stack.back(), stack.pop_back(), OK;
}
ENTRY_POINT cuLibraryLoadData(void **library, const void *image, int *, void **, unsigned, int *, void **, unsigned) {
  return *library = const_cast<void *>(image), waits("cuLibraryLoadData");
}
ENTRY_POINT cuLibraryLoadFromFile(void **library, const char *, int *, void **, unsigned, int *, void **, unsigned) {
  return *library = contexts, waits("cuLibraryLoadFromFile"); /* whatever the file: the kernels are in here */
}
ENTRY_POINT cuLibraryGetKernel(void **kernel, void *, const char *name) {
  static const fake_kernels lists[] = {fake_kernels_f32(), fake_kernels_f16(), fake_kernels_bf16(), fake_kernels_f64()};
  for (const fake_kernels &list : lists)
    for (int i = 0; i < list.count; i++)
      if (!strcmp(list.kernels[i].name, name)) return *kernel = const_cast<fake_kernel *>(list.kernels + i), OK;
  return NOT_FOUND;
}
ENTRY_POINT cuKernelSetAttribute(int, int, void *, int) { return 0; }
ENTRY_POINT cuKernelGetFunction(void **function, void *kernel) {
  return *function = kernel, stack.empty() ? NO_CONTEXT : OK;
}
ENTRY_POINT cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                           unsigned block_z, unsigned, void *, void **parameters, void **) {
  if (stack.empty()) return NO_CONTEXT;
  if (!x || !y || !z) return INVALID;
  if (int error = failure("cuLaunchKernel")) return error;
  dim3 grid, block;
  grid.x = x, grid.y = y, grid.z = z, block.x = block_x, block.y = block_y, block.z = block_z;
  const fake_kernel *kernel = static_cast<const fake_kernel *>(function);
  open_scope open(current_device());
  emulate(grid, block, [=] { kernel->run(parameters[0]); });
  return OK;
}
ENTRY_POINT cuKernelGetAttribute(int *value, int, void *, int) { return *value = 90, OK; }
ENTRY_POINT cuLaunchKernelEx(const cuda_launch_config *c, void *function, void **parameters, void **extra) {
  return cuLaunchKernel(function, c->grid_x, c->grid_y, c->grid_z, c->block_x, c->block_y, c->block_z, c->shared_bytes,
                        c->stream, parameters, extra);
}
ENTRY_POINT cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
  if (int error = waits("cuMemAlloc_v2")) return error;
  if (stack.empty()) return NO_CONTEXT;
  if (!bytes || bytes > (size_t)1 << 30) return bytes ? OUT_OF_MEMORY : INVALID;
  size_t inside = (bytes + PAGE - 1) / PAGE * PAGE, rounded = (bytes + 255) / 256 * 256;
  void *map = mmap(nullptr, inside + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return OUT_OF_MEMORY;
  *pointer = (uint64_t)(uintptr_t)map + inside - rounded;
  memory[*pointer] = {static_cast<char *>(map), inside + PAGE, current_device()};
  return OK;
}
ENTRY_POINT cuMemFree_v2(uint64_t pointer) {
  if (int error = waits("cuMemFree_v2")) return error;
  auto found = memory.find(pointer);
  if (found == memory.end() || found->second.device != current_device()) return INVALID;
  munmap(found->second.map, found->second.map_bytes);
  memory.erase(found);
  return OK;
}
ENTRY_POINT cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
  if (int error = waits("cuMemcpyHtoD_v2")) return error;
  open_scope open(-1);
  return memcpy((void *)(uintptr_t)to, from, bytes), OK;
}
ENTRY_POINT cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
  if (int error = waits("cuMemcpyDtoH_v2")) return error;
  open_scope open(-1);
  return memcpy(to, (const void *)(uintptr_t)from, bytes), OK;
}
ENTRY_POINT cuStreamSynchronize(void *) { return waits("cuStreamSynchronize"); }

/* What emulate_copy_box reads. Strides of 0 are refused, so that tests go without a map as well. */
ENTRY_POINT cuTensorMapEncodeTiled(uint64_t *map, int, unsigned, void *data, const uint64_t *sizes,
                                   const uint64_t *strides, const unsigned *box, const unsigned *, int, int, int, int) {
  map[0] = (uint64_t)(uintptr_t)data;
  for (int d = 0; d < 4; d++) map[1 + d] = sizes[d];
  for (int d = 0; d < 3; d++) map[5 + d] = strides[d];
  map[8] = box[1];
  return strides[0] && strides[1] && strides[2] ? OK : INVALID;
}

/* Events and graphs, for a dry run of tests/time_cuda: everything has happened when it is enqueued, or captured. */
ENTRY_POINT cuStreamCreate(void **stream, unsigned) { return *stream = new int, OK; }
ENTRY_POINT cuStreamBeginCapture_v2(void *, int) { return OK; }
ENTRY_POINT cuStreamEndCapture(void *, void **graph) { return *graph = new int, OK; }
ENTRY_POINT cuGraphInstantiateWithFlags(void **executable, void *, unsigned long long) {
  return *executable = new int, OK;
}
ENTRY_POINT cuGraphLaunch(void *, void *) { return OK; }
ENTRY_POINT cuGraphExecDestroy(void *executable) { return delete (int *)executable, OK; }
ENTRY_POINT cuGraphDestroy(void *graph) { return delete (int *)graph, OK; }
ENTRY_POINT cuEventCreate(void **event, unsigned) { return *event = new int, OK; }
ENTRY_POINT cuEventRecord(void *, void *) { return OK; }
ENTRY_POINT cuEventSynchronize(void *) { return OK; }
ENTRY_POINT cuEventElapsedTime(float *milliseconds, void *, void *) { return *milliseconds = 1, OK; }
ENTRY_POINT cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) {
  open_scope open(-1);
  return memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes), OK;
}
