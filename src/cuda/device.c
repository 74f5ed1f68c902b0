/* SPDX-License-Identifier: MIT */
/* GPUs: which there are, their memory, copies, waiting. */
#include "device.h"
#include "driver.h"

#include <stdatomic.h>
#include <stdio.h>

enum { ATTRIBUTE_MULTIPROCESSORS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76 };

int cuda_device_count(char reason[ATTEND_REASON_SIZE]) {
  int count = 0;
  const cuda_driver *driver = cuda_driver_get(reason);
  return driver && !driver->device_count(&count) ? count : 0;
}

attend_status cuda_allocate(int ordinal, size_t bytes, void **memory) {
  cuda_scope scope;
  uint64_t pointer = 0;
  *memory = NULL;
  attend_status status = cuda_enter(ordinal, &scope);
  if (status || !bytes) goto leave;
  status = cuda_status(cuda_driver_get(NULL)->allocate(&pointer, bytes), "allocating GPU memory");
  *memory = (void *)(uintptr_t)pointer;
leave:
  cuda_leave(&scope);
  return status;
}

void cuda_release(int ordinal, void *memory) {
  cuda_scope scope;
  if (memory && !cuda_enter(ordinal, &scope)) {
    cuda_driver_get(NULL)->release((uint64_t)(uintptr_t)memory);
    cuda_leave(&scope);
  }
}

attend_status cuda_copy_in(int ordinal, void *to, const void *from, size_t bytes) {
  cuda_scope scope;
  attend_status status = cuda_enter(ordinal, &scope);
  if (!status && bytes)
    status = cuda_status(cuda_driver_get(NULL)->copy_in((uint64_t)(uintptr_t)to, from, bytes), "copying to the GPU");
  cuda_leave(&scope);
  return status;
}

attend_status cuda_copy_out(int ordinal, void *to, const void *from, size_t bytes) {
  cuda_scope scope;
  attend_status status = cuda_enter(ordinal, &scope);
  if (!status && bytes)
    status = cuda_status(cuda_driver_get(NULL)->copy_out(to, (uint64_t)(uintptr_t)from, bytes), "copying from the GPU");
  cuda_leave(&scope);
  return status;
}

attend_status cuda_wait(int ordinal, void *stream) {
  cuda_scope scope;
  attend_status status = cuda_enter(ordinal, &scope);
  if (!status) status = cuda_status(cuda_driver_get(NULL)->stream_synchronize(stream), "waiting for the GPU");
  cuda_leave(&scope);
  return status;
}

/* The seed's notice, once for each GPU. */
void cuda_notice(int ordinal, const char *kernel, const attend_services *services) {
  static atomic_uint_least64_t noticed;
  uint64_t bit = (uint64_t)1 << (ordinal & 63);
  if (atomic_fetch_or(&noticed, bit) & bit) return;
  attend_gpu gpu = {.size = sizeof gpu};
  char message[320];
  if (attend_gpu_at(ordinal, &gpu)) return;
  snprintf(message, sizeof message, "GPU %d: %s, compute capability %d.%d, image %s; the first call runs %.64s",
           ordinal, gpu.name, (int)gpu.major, (int)gpu.minor, gpu.image, kernel);
  services->log(services->user, ATTEND_LOG_INFO, message);
}

attend_status attend_gpu_at(int64_t index, attend_gpu *out) {
  char reason[ATTEND_REASON_SIZE] = "";
  if (!out) return attend_fail(ATTEND_ERROR_NULL, "gpu: expected a pointer to attend_gpu, got NULL");
  if (out->size && out->size < sizeof *out)
    return attend_fail(ATTEND_ERROR_OPTION, "attend_gpu.size: expected at least %zu, got %zu", sizeof *out, out->size);
  int count = cuda_device_count(reason);
  if (index < 0 || index >= count)
    return attend_fail(ATTEND_ERROR_INDEX, "index: expected a GPU below %d, got %lld%s%s", count, (long long)index,
                       reason[0] ? ": " : "", reason);
  const cuda_driver *driver = cuda_driver_get(NULL);
  attend_gpu gpu = {.size = out->size};
  int device = 0, multiprocessors = 0, major = 0, minor = 0;
  size_t bytes = 0;
  int error = driver->device_get(&device, (int)index);
  if (!error) error = driver->device_name(gpu.name, sizeof gpu.name, device);
  if (!error) error = driver->device_attribute(&multiprocessors, ATTRIBUTE_MULTIPROCESSORS, device);
  if (!error) error = driver->device_attribute(&major, ATTRIBUTE_MAJOR, device);
  if (!error) error = driver->device_attribute(&minor, ATTRIBUTE_MINOR, device);
  if (!error) error = driver->device_memory(&bytes, device);
  if (error) return cuda_status(error, "reading the GPU's properties");
  gpu.major = major, gpu.minor = minor, gpu.multiprocessors = multiprocessors, gpu.memory_bytes = bytes;
  if (!cuda_image_for(10 * major + minor, gpu.image, gpu.reason)) gpu.image[0] = 0;
  *out = gpu;
  return ATTEND_OK;
}
