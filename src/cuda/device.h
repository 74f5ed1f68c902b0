/* SPDX-License-Identifier: MIT */
/* What the API, the command and the tests need of a GPU besides kernels. Every function enters a context of the device
 * (cuda_enter) and leaves it again. */
#ifndef ATTEND_CUDA_DEVICE_H
#define ATTEND_CUDA_DEVICE_H

#include "../api/problem.h"

/* Number of GPUs that the driver sees; 0 with the reason if none can be used. */
int cuda_device_count(char reason[ATTEND_REASON_SIZE]);

attend_status cuda_allocate(int ordinal, size_t bytes, void **memory);
void cuda_release(int ordinal, void *memory);
attend_status cuda_copy_in(int ordinal, void *to, const void *from, size_t bytes);
attend_status cuda_copy_out(int ordinal, void *to, const void *from, size_t bytes);
attend_status cuda_wait(int ordinal, void *stream);

/* Tell the caller's log, once in the life of the process for each GPU, what was found and the kernel chosen. */
void cuda_notice(int ordinal, const char *kernel, const attend_services *services);

#endif
