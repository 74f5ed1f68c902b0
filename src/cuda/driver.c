/* SPDX-License-Identifier: MIT */
/* Finding the driver, its words for what went wrong, and whose context is used. */
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { CUDA_ERROR_OUT_OF_MEMORY = 2, OLDEST_DRIVER = 12000, OLDEST_EARLY = 12030, MAX_DEVICES = 64 };
enum { ATTRIBUTE_MULTIPROCESSORS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76 }; /* of a device */
enum { ATTRIBUTE_PTX = 5, ATTRIBUTE_MOST_SHARED = 8 }; /* of a kernel: virtual architecture; dynamic, of a block */
enum { ATTRIBUTE_EARLY = 6 };                          /* of a launch: programmatic stream serialization */

static cuda_driver driver;
static bool available;
static bool early; /* can launches be early, in a stream that is being captured too? */
static char unavailable[ATTEND_REASON_SIZE];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t primary_lock = PTHREAD_MUTEX_INITIALIZER;
static void *primary[MAX_DEVICES];

static void find_driver(void) {
  static const char *const names[] = {"cuInit",
                                      "cuDriverGetVersion",
                                      "cuGetErrorName",
                                      "cuGetErrorString",
                                      "cuDeviceGetCount",
                                      "cuDeviceGet",
                                      "cuDeviceGetName",
                                      "cuDeviceGetAttribute",
                                      "cuDeviceTotalMem_v2",
                                      "cuDevicePrimaryCtxRetain",
                                      "cuCtxGetCurrent",
                                      "cuCtxGetDevice",
                                      "cuCtxPushCurrent_v2",
                                      "cuCtxPopCurrent_v2",
                                      "cuLibraryLoadData",
                                      "cuLibraryLoadFromFile",
                                      "cuLibraryGetKernel",
                                      "cuKernelGetFunction",
                                      "cuKernelSetAttribute",
                                      "cuLaunchKernel",
                                      "cuLaunchKernelEx",
                                      "cuKernelGetAttribute",
                                      "cuMemAlloc_v2",
                                      "cuMemFree_v2",
                                      "cuMemcpyHtoD_v2",
                                      "cuMemcpyDtoH_v2",
                                      "cuMemcpyDtoDAsync_v2",
                                      "cuStreamSynchronize",
                                      "cuTensorMapEncodeTiled"};
  enum { COUNT = sizeof names / sizeof *names };
  _Static_assert(sizeof driver == COUNT * sizeof(void *), "one name for each entry point, in the order of cuda_driver");
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(unavailable, sizeof unavailable, "no CUDA driver (libcuda.so.1) on this machine");
    return;
  }
  void *entries[COUNT];
  for (int i = 0; i < COUNT; i++) {
    entries[i] = dlsym(library, names[i]);
    if (entries[i]) continue;
    snprintf(unavailable, sizeof unavailable, "the CUDA driver is too old: it lacks %s (12.0 or newer is needed)",
             names[i]);
    return;
  }
  memcpy(&driver, entries, sizeof driver);
  int error = driver.init(0), version = 0, count = 0;
  if (!error) error = driver.driver_version(&version);
  if (!error) error = driver.device_count(&count);
  const char *words = "";
  if (error && driver.error_string(error, &words)) words = "unknown error";
  if (error)
    snprintf(unavailable, sizeof unavailable, "the CUDA driver does not start: %.120s", words);
  else if (version < OLDEST_DRIVER)
    snprintf(unavailable, sizeof unavailable, "the CUDA driver is too old: %d.%d, needed is 12.0", version / 1000,
             version % 1000 / 10);
  else if (count == 0)
    snprintf(unavailable, sizeof unavailable, "the CUDA driver sees no GPU");
  else
    available = true, early = version >= OLDEST_EARLY;
}

const cuda_driver *cuda_driver_get(char reason[ATTEND_REASON_SIZE]) {
  pthread_once(&once, find_driver);
  if (available) return &driver;
  if (reason) memcpy(reason, unavailable, ATTEND_REASON_SIZE);
  return NULL;
}

attend_status cuda_status(int error, const char *doing) {
  if (!error) return ATTEND_OK;
  const char *name = NULL, *words = NULL;
  if (driver.error_name(error, &name)) name = "unknown error";
  if (driver.error_string(error, &words)) words = "";
  return attend_fail(error == CUDA_ERROR_OUT_OF_MEMORY ? ATTEND_ERROR_OUT_OF_MEMORY : ATTEND_ERROR_CUDA,
                     "%s: the CUDA driver says %s (%d): %s", doing, name, error, words);
}

bool cuda_agrees(attend_status status, char reason[ATTEND_REASON_SIZE]) {
  if (status) snprintf(reason, ATTEND_REASON_SIZE, "%.*s", ATTEND_REASON_SIZE - 1, attend_error_message());
  return !status;
}

attend_status cuda_enter(int ordinal, cuda_scope *scope) {
  char reason[ATTEND_REASON_SIZE];
  scope->pushed = false;
  if (!cuda_driver_get(reason)) return attend_fail(ATTEND_ERROR_DEVICE, "device %d: %s", ordinal, reason);
  int count = 0, wanted = 0, device = 0, error = driver.device_count(&count);
  if (!error && (ordinal < 0 || ordinal >= count || ordinal >= MAX_DEVICES))
    return attend_fail(ATTEND_ERROR_DEVICE, "device: expected a GPU below %d, got %d", count, ordinal);
  void *context = NULL;
  if (!error) error = driver.device_get(&wanted, ordinal);
  if (!error) error = driver.context_current(&context);
  if (!error && context) error = driver.context_device(&device);
  if (error) return cuda_status(error, "looking at the current context");
  if (context && device == wanted) return ATTEND_OK;
  pthread_mutex_lock(&primary_lock);
  if (!primary[ordinal]) error = driver.primary_retain(&primary[ordinal], wanted);
  context = primary[ordinal];
  pthread_mutex_unlock(&primary_lock);
  if (!error) error = driver.context_push(context);
  scope->pushed = !error;
  return cuda_status(error, "entering the primary context");
}

void cuda_leave(cuda_scope *scope) {
  void *context;
  if (scope->pushed) driver.context_pop(&context);
  scope->pushed = false;
}

int cuda_capability(int ordinal) {
  int device, major = 0, minor = 0;
  if (!cuda_driver_get(NULL) || driver.device_get(&device, ordinal) ||
      driver.device_attribute(&major, ATTRIBUTE_MAJOR, device) ||
      driver.device_attribute(&minor, ATTRIBUTE_MINOR, device))
    return 0;
  return 10 * major + minor;
}

int cuda_multiprocessors(int ordinal) {
  int device, count = 0;
  if (!cuda_driver_get(NULL) || driver.device_get(&device, ordinal) ||
      driver.device_attribute(&count, ATTRIBUTE_MULTIPROCESSORS, device))
    return 1;
  return count;
}

bool cuda_allow_shared(int ordinal, void *kernel, unsigned bytes, char reason[ATTEND_REASON_SIZE]) {
  int device, error = driver.device_get(&device, ordinal);
  if (!error) error = driver.kernel_attribute(ATTRIBUTE_MOST_SHARED, (int)bytes, kernel, device);
  return cuda_agrees(cuda_status(error, "allowing shared memory"), reason);
}

attend_status cuda_launch(void *kernel, int64_t blocks, unsigned threads, const void *arguments, void *stream) {
  return cuda_launch_shared(kernel, blocks, threads, 0, arguments, stream);
}

attend_status cuda_launch_shared(void *kernel, int64_t blocks, unsigned threads, unsigned shared_bytes,
                                 const void *arguments, void *stream) {
  if (blocks <= 0) return ATTEND_OK;
  void *parameters[] = {(void *)(uintptr_t)arguments};
  unsigned grid = blocks > INT32_MAX ? INT32_MAX : (unsigned)blocks;
  return cuda_status(driver.launch(kernel, grid, 1, 1, threads, 1, 1, shared_bytes, stream, parameters, NULL),
                     "launching a kernel");
}

attend_status cuda_launch_early(int ordinal, void *kernel, int64_t blocks, unsigned threads, const void *arguments,
                                void *stream) {
  int device, architecture = 0;
  if (!early || driver.device_get(&device, ordinal) ||
      driver.kernel_fact(&architecture, ATTRIBUTE_PTX, kernel, device) || architecture < 90)
    return cuda_launch(kernel, blocks, threads, arguments, stream);
  if (blocks <= 0) return ATTEND_OK;
  void *parameters[] = {(void *)(uintptr_t)arguments};
  cuda_launch_attribute attribute = {.id = ATTRIBUTE_EARLY, .value.number = 1};
  cuda_launch_config config = {.grid_x = blocks > INT32_MAX ? INT32_MAX : (unsigned)blocks,
                               .grid_y = 1,
                               .grid_z = 1,
                               .block_x = threads,
                               .block_y = 1,
                               .block_z = 1,
                               .stream = stream,
                               .attributes = &attribute,
                               .attribute_count = 1};
  return cuda_status(driver.launch_configured(&config, kernel, parameters, NULL), "launching a kernel");
}

bool cuda_map_tensor(void *map, void *data, const uint64_t sizes[4], const uint64_t strides[3], uint32_t rows) {
  enum { TYPE_16_BITS = 1, NOT_INTERLEAVED = 0, SWIZZLE_128 = 3, PROMOTION_256 = 3, FILL_ZEROS = 0 };
  const uint32_t box[4] = {64, rows, 1, 1}, steps[4] = {1, 1, 1, 1};
  return !driver.tensor_map(map, TYPE_16_BITS, 4, data, sizes, strides, box, steps, NOT_INTERLEAVED, SWIZZLE_128,
                            PROMOTION_256, FILL_ZEROS);
}
