/* SPDX-License-Identifier: MIT */
/* The GPU images inside the library, loaded when a plan first needs one and kept for the life of the process. */
#include "driver.h"

#include <pthread.h>
#include <string.h>

#ifdef ATTEND_HAVE_CUDA_IMAGES
#define IMAGE(name) extern const unsigned char attend_image_##name[];
#include "cuda_images.h"
#undef IMAGE
#endif

typedef struct image {
  const char *name;
  const void *bytes;
  void *library;
} image;

static image images[] = {
#ifdef ATTEND_HAVE_CUDA_IMAGES
#define IMAGE(name) {#name, attend_image_##name, NULL},
#include "cuda_images.h"
#undef IMAGE
#endif
    {NULL, NULL, NULL}};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

attend_status cuda_kernel(int ordinal, const char *image_name, const char *name, void **kernel) {
  image *found = images;
  while (found->name && strcmp(found->name, image_name)) found++;
  if (!found->name)
    return attend_fail(ATTEND_ERROR_NO_BACKEND, "%s: this library was built without its GPU images", image_name);
  cuda_scope scope;
  attend_status status = cuda_enter(ordinal, &scope);
  if (status) return status;
  const cuda_driver *driver = cuda_driver_get(NULL);
  void *function;
  int error = 0;
  pthread_mutex_lock(&lock);
  if (!found->library) error = driver->library_load(&found->library, found->bytes, NULL, NULL, 0, NULL, NULL, 0);
  pthread_mutex_unlock(&lock);
  if (!error) error = driver->library_kernel(kernel, found->library, name);
  if (!error) error = driver->kernel_function(&function, *kernel);
  cuda_leave(&scope);
  return cuda_status(error, "loading a kernel");
}
