/* SPDX-License-Identifier: MIT */
/* The GPU images inside the library, loaded when a plan first needs one and kept for the life of the process.
 * ATTEND_CUDA_IMAGES in the environment names a directory with other ones (NAME.fatbin): for trying a kernel without
 * building the library again, and for a library built without nvcc. */
#include "driver.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef ATTEND_HAVE_CUDA_IMAGES
#include "cuda_targets.h" /* generated: TARGET_MACHINE_CODE, TARGET_PTX */
#define IMAGE(name) extern const unsigned char attend_image_##name[];
#include "cuda_images.h"
#undef IMAGE
#else
#define TARGET_MACHINE_CODE 0
#define TARGET_PTX INT32_MAX
#endif

enum { MAX_IMAGES = 32, CUDA_ERROR_NOT_FOUND = 500 };

typedef struct image {
  char name[32];
  const void *bytes; /* NULL: in a file */
  void *library;     /* NULL until it is loaded */
} image;

static image images[MAX_IMAGES] = {
#ifdef ATTEND_HAVE_CUDA_IMAGES
#define IMAGE(name) {#name, attend_image_##name, NULL},
#include "cuda_images.h"
#undef IMAGE
#endif
    {"", NULL, NULL}};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

bool cuda_image_for(int capability, char name[ATTEND_NAME_SIZE], char reason[ATTEND_REASON_SIZE]) {
  static const int targets[] = {TARGET_MACHINE_CODE};
  int best = 0;
  for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) /* machine code serves later minors of its major */
    if (targets[i] / 10 == capability / 10 && targets[i] <= capability && targets[i] > best) best = targets[i];
  if (getenv("ATTEND_CUDA_IMAGES"))
    snprintf(name, ATTEND_NAME_SIZE, "ATTEND_CUDA_IMAGES");
  else if (best)
    snprintf(name, ATTEND_NAME_SIZE, "sm_%d", best);
  else if (capability >= TARGET_PTX)
    snprintf(name, ATTEND_NAME_SIZE, "ptx sm_%d", TARGET_PTX);
  else if (!images[0].name[0])
    snprintf(reason, ATTEND_REASON_SIZE, "this library was built without its GPU images");
  else if (capability < targets[0])
    snprintf(reason, ATTEND_REASON_SIZE, "compute capability %d.%d is below %d.%d", capability / 10, capability % 10,
             targets[0] / 10, targets[0] % 10);
  else
    snprintf(reason, ATTEND_REASON_SIZE, "this library holds no image for compute capability %d.%d", capability / 10,
             capability % 10);
  return reason[0] == 0;
}

/* The image of that name, loaded. */
static int load(const cuda_driver *driver, const char *name, void **library) {
  const char *directory = getenv("ATTEND_CUDA_IMAGES");
  image *found = images;
  while (found->name[0] && strcmp(found->name, name)) found++;
  if (!found->name[0] && found < images + MAX_IMAGES - 1) snprintf(found->name, sizeof found->name, "%s", name);
  int error = found->bytes || directory || found->library ? 0 : CUDA_ERROR_NOT_FOUND;
  *library = found->library;
  if (!*library && directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.fatbin", directory, name);
    error = driver->library_load_file(library, path, NULL, NULL, 0, NULL, NULL, 0);
  } else if (!*library && !error)
    error = driver->library_load(library, found->bytes, NULL, NULL, 0, NULL, NULL, 0);
  if (!error) found->library = *library;
  return error;
}

bool cuda_usable(char reason[ATTEND_REASON_SIZE]) {
  if (!cuda_driver_get(reason)) return false;
  bool held = images[0].name[0] || getenv("ATTEND_CUDA_IMAGES");
  if (!held) snprintf(reason, ATTEND_REASON_SIZE, "this library was built without its GPU images");
  return held;
}

bool cuda_serves(int ordinal, int oldest, const char *refused, char reason[ATTEND_REASON_SIZE]) {
  char name[ATTEND_NAME_SIZE];
  if (refused) {
    snprintf(reason, ATTEND_REASON_SIZE, "%s", refused);
    return false;
  }
  int capability = cuda_capability(ordinal);
  if (!capability) {
    snprintf(reason, ATTEND_REASON_SIZE, "the CUDA driver sees no GPU %d", ordinal);
    return false;
  }
  if (capability < oldest) {
    snprintf(reason, ATTEND_REASON_SIZE, "GPU %d: compute capability %d.%d, needed is %d.%d", ordinal, capability / 10,
             capability % 10, oldest / 10, oldest % 10);
    return false;
  }
  return cuda_image_for(capability, name, reason);
}

bool cuda_load(int ordinal, const char *family, attend_type type, const char *const *names, int count, void **kernels,
               char reason[ATTEND_REASON_SIZE]) {
  static const char *const types[] = {[TYPE_F32] = "f32", [TYPE_F16] = "f16", [TYPE_BF16] = "bf16", [TYPE_F64] = "f64"};
  char image_name[32], name[64];
  snprintf(image_name, sizeof image_name, "%s_%s", family, types[type]);
  cuda_scope scope;
  attend_status status = cuda_enter(ordinal, &scope);
  if (!cuda_agrees(status, reason)) return false;
  const cuda_driver *driver = cuda_driver_get(NULL);
  void *library = NULL;
  pthread_mutex_lock(&lock);
  int error = load(driver, image_name, &library);
  for (int i = 0; i < count && !error; i++) {
    void *function, *found = NULL;
    snprintf(name, sizeof name, "%s_%s", names[i], types[type]);
    error = driver->library_kernel(&found, library, name);
    if (!error) error = driver->kernel_function(&function, found);
    if (!error && !kernels[i]) kernels[i] = found; /* written once, before any plan that reads it exists */
  }
  pthread_mutex_unlock(&lock);
  cuda_leave(&scope);
  return cuda_agrees(cuda_status(error, "loading a kernel"), reason);
}
