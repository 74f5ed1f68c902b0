/* SPDX-License-Identifier: MIT */
/* The tensors of files are made in host memory; a GPU gets copies of them for as long as a call is on it. */
#include "device_tensors.h"

#include "cuda/device.h"

#include <stdlib.h>

static bool refused(io_error *error) { return io_fail(error, "%s", attend_error_message()); }

bool device_usable(attend_device device, io_error *error) {
  char reason[ATTEND_REASON_SIZE] = "";
  if (device.type == ATTEND_CPU) return true;
  int count = cuda_device_count(reason);
  if (count == 0) return io_fail(error, "--device cuda: %s", reason);
  return device.id < count || io_fail(error, "--device cuda:%d: expected a GPU below %d", (int)device.id, count);
}

static size_t bytes_of(const io_array *a) {
  int64_t n = 1; /* strides are permutations of compact ones: there are no gaps */
  for (int i = 0; i < a->tensor.ndim; i++) n *= a->shape[i];
  return (size_t)n * io_element_size(a->tensor.dtype);
}

bool device_take(attend_device device, cli_call *c, io_error *error) {
  if (device.type == ATTEND_CPU) return true;
  io_array *all[CLI_ARRAYS];
  cli_call_arrays(c, all);
  for (int i = 0; i < CLI_ARRAYS; i++) {
    io_array *a = all[i];
    void *memory;
    if (!a->tensor.data) continue;
    /* Of no elements too: a tensor on a GPU has a pointer of the GPU's. */
    size_t bytes = bytes_of(a);
    if (cuda_allocate(device.id, bytes ? bytes : 1, &memory)) return refused(error);
    c->on_host[i] = a->tensor.data;
    a->tensor.data = memory;
    a->tensor.device = device;
    if (cuda_copy_in(device.id, memory, c->on_host[i], bytes)) return refused(error);
  }
  return true;
}

bool device_return(attend_device device, cli_call *c, io_error *error) {
  if (device.type == ATTEND_CPU) return true;
  bool good = true;
  io_array *all[CLI_ARRAYS];
  cli_call_arrays(c, all);
  for (int i = 0; i < CLI_ARRAYS; i++) {
    io_array *a = all[i];
    if (!c->on_host[i]) continue;
    if (good && i >= CLI_FIRST_RESULT && cuda_copy_out(device.id, c->on_host[i], a->tensor.data, bytes_of(a)))
      good = refused(error);
    cuda_release(device.id, a->tensor.data);
    a->tensor.data = c->on_host[i];
    a->tensor.device = (attend_device){ATTEND_CPU, 0};
    c->on_host[i] = NULL;
  }
  return good;
}

void *device_workspace(attend_device device, size_t bytes, io_error *error) {
  void *memory = NULL;
  if (device.type == ATTEND_CPU) {
    memory = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT,
                           (bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT);
    if (!memory) io_fail(error, "out of memory: a workspace of %zu bytes", bytes);
  } else if (cuda_allocate(device.id, bytes ? bytes : 1, &memory))
    refused(error);
  return memory;
}

void device_workspace_free(attend_device device, void *workspace) {
  if (device.type == ATTEND_CPU)
    free(workspace);
  else
    cuda_release(device.id, workspace);
}

bool device_wait(attend_device device, io_error *error) {
  return device.type == ATTEND_CPU || !cuda_wait(device.id, NULL) || refused(error);
}
