/* SPDX-License-Identifier: MIT */
/* After dlpack.h (here the declarations of its version 1.0 that matter), the header proves that the layouts agree. */
#include <stddef.h>
#include <stdint.h>

#define DLPACK_MAJOR_VERSION 1
typedef struct {
  int32_t device_type, device_id;
} DLDevice;
typedef struct {
  uint8_t code, bits;
  uint16_t lanes;
} DLDataType;
typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;
#include <attend.h>

int main(void) {
  int64_t shape[1] = {3};
  float x[3] = {1, 2, 3};
  DLTensor d = {.data = x, .device = {1, 0}, .ndim = 1, .dtype = {2, 32, 1}, .shape = shape};
  const attend_tensor *t = attend_from_dlpack(&d);
  return !(t->data == x && t->device.type == ATTEND_CPU && t->dtype.bits == 32 && t->shape[0] == 3);
}
