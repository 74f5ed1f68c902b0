/* SPDX-License-Identifier: MIT */
/* The CUDA driver, found at run time. The declarations below are facts of its ABI; cuda.h is not needed to build, nor
 * libcuda.so to link. Kernels are loaded as libraries (cuLibraryLoadData, driver 12.0), which belong to no context: one
 * handle serves every device and every context, PyTorch's included. */
#ifndef ATTEND_CUDA_DRIVER_H
#define ATTEND_CUDA_DRIVER_H

#include "../api/problem.h"

typedef struct cuda_launch_attribute {
  int id, unused;
  union {
    int number;
    char bytes[64];
  } value;
} cuda_launch_attribute;
typedef struct cuda_launch_config {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void *stream;
  cuda_launch_attribute *attributes;
  unsigned attribute_count;
} cuda_launch_config;

typedef struct cuda_driver {
  int (*init)(unsigned flags);
  int (*driver_version)(int *version);
  int (*error_name)(int error, const char **name);
  int (*error_string)(int error, const char **text);
  int (*device_count)(int *count);
  int (*device_get)(int *device, int ordinal);
  int (*device_name)(char *name, int size, int device);
  int (*device_attribute)(int *value, int attribute, int device);
  int (*device_memory)(size_t *bytes, int device);
  int (*primary_retain)(void **context, int device);
  int (*context_current)(void **context);
  int (*context_device)(int *device);
  int (*context_push)(void *context);
  int (*context_pop)(void **context);
  int (*library_load)(void **library, const void *image, int *jit_options, void **jit_values, unsigned jit_count,
                      int *options, void **values, unsigned count);
  int (*library_load_file)(void **library, const char *path, int *jit_options, void **jit_values, unsigned jit_count,
                           int *options, void **values, unsigned count);
  int (*library_kernel)(void **kernel, void *library, const char *name);
  int (*kernel_function)(void **function, void *kernel); /* loads it into the current context */
  int (*kernel_attribute)(int attribute, int value, void *kernel, int device);
  int (*launch)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra);
  int (*launch_configured)(const cuda_launch_config *config, void *function, void **parameters, void **extra);
  int (*kernel_fact)(int *value, int attribute, void *kernel, int device);
  int (*allocate)(uint64_t *pointer, size_t bytes);
  int (*release)(uint64_t pointer);
  int (*copy_in)(uint64_t to, const void *from, size_t bytes);
  int (*copy_out)(void *to, uint64_t from, size_t bytes);
  int (*copy)(uint64_t to, uint64_t from, size_t bytes, void *stream);
  int (*stream_synchronize)(void *stream);
  int (*tensor_map)(void *map, int type, uint32_t rank, void *data, const uint64_t *sizes, const uint64_t *byte_strides,
                    const uint32_t *box, const uint32_t *element_strides, int interleave, int swizzle, int promotion,
                    int fill);
} cuda_driver;

/* The driver, initialised; NULL with the reason if there is none, or it is too old. The answer never changes. */
const cuda_driver *cuda_driver_get(char reason[ATTEND_REASON_SIZE]);

/* ATTEND_OK if error is 0; else the driver's words, OUT_OF_MEMORY where that is what they say. */
attend_status cuda_status(int error, const char *doing);
/* That status as the answer of a plan: false with its message as the reason. */
bool cuda_agrees(attend_status status, char reason[ATTEND_REASON_SIZE]);

/* Make a context of device `ordinal` current: the caller's if it is one, else the primary one, which is retained for
 * the life of the process. Pair with cuda_leave. */
typedef struct cuda_scope {
  bool pushed;
} cuda_scope;
attend_status cuda_enter(int ordinal, cuda_scope *scope);
void cuda_leave(cuda_scope *scope);

/* Is there a driver, and are there images? Otherwise the reason. */
bool cuda_usable(char reason[ATTEND_REASON_SIZE]);

/* May a plan go on? Not if the problem is `refused` (NULL: it is not), nor if device `ordinal` cannot run the images or
 * its compute capability is below `oldest`: then the reason. */
bool cuda_serves(int ordinal, int oldest, const char *refused, char reason[ATTEND_REASON_SIZE]);

/* Kernels names[i]_<type> of image family_<type> (a source file's name without .cu), loaded into the context of device
 * `ordinal`, ready to be launched without allocation. Handles serve every device: kernels[] is filled once. Otherwise
 * what the driver said against it. */
bool cuda_load(int ordinal, const char *family, attend_type type, const char *const *names, int count, void **kernels,
               char reason[ATTEND_REASON_SIZE]);

/* Which image serves compute capability `capability` (10 * major + minor): "sm_80", "ptx sm_90"; false with the reason
 * if none does, or the library holds none. */
bool cuda_image_for(int capability, char image[ATTEND_NAME_SIZE], char reason[ATTEND_REASON_SIZE]);

/* Compute capability of device `ordinal` as 10 * major + minor; 0 if it cannot be used. */
int cuda_capability(int ordinal);

/* Its multiprocessors; 1 if it cannot be used. */
int cuda_multiprocessors(int ordinal);

/* Enqueue kernel(arguments) on `blocks` blocks, at most 2^31 - 1: kernels step through their items by gridDim.x. */
attend_status cuda_launch(void *kernel, int64_t blocks, unsigned threads, const void *arguments, void *stream);

/* The same with dynamic shared memory. More than 48 KB a block must be allowed on the device beforehand. */
attend_status cuda_launch_shared(void *kernel, int64_t blocks, unsigned threads, unsigned shared_bytes,
                                 const void *arguments, void *stream);
bool cuda_allow_shared(int ordinal, void *kernel, unsigned bytes, char reason[ATTEND_REASON_SIZE]);

/* cuda_launch for a kernel that calls word_wait_before before it reads or writes memory (prefetches into L2 are free to
 * come earlier): where driver, hardware and image can, its blocks come to the multiprocessors while the kernel before
 * it in the stream still ends. */
attend_status cuda_launch_early(int ordinal, void *kernel, int64_t blocks, unsigned threads, const void *arguments,
                                void *stream);

/* Describe a tensor [sizes[3], .., sizes[0]] of 16-bit elements to the copy engine, which copies boxes of `rows` rows
 * of 64 columns, a row's words of 16 bytes where word_tile_at wants them, and zeros where the tensor ends. strides:
 * bytes, of rows, heads and sequences. False where the driver cannot. */
bool cuda_map_tensor(void *map, void *data, const uint64_t sizes[4], const uint64_t strides[3], uint32_t rows);

#endif
