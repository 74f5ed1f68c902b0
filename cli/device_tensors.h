/* SPDX-License-Identifier: MIT */
/* --device: where the tensors of a call are while it runs. On the CPU these functions have nothing to do. */
#ifndef ATTEND_CLI_DEVICE_H
#define ATTEND_CLI_DEVICE_H

#include "cli.h"

/* Does the device exist? Otherwise why not. */
bool device_usable(attend_device device, io_error *error);
/* Copy every tensor of the call to the device and let args see it there. */
bool device_take(attend_device device, cli_call *call, io_error *error);
/* Copy the results back, let args see host memory again, free the device's; also after a device_take that failed. */
bool device_return(attend_device device, cli_call *call, io_error *error);
/* Memory of at least `bytes` bytes, aligned as a workspace; NULL on failure. */
void *device_workspace(attend_device device, size_t bytes, io_error *error);
void device_workspace_free(attend_device device, void *workspace);
/* Until everything enqueued has been executed. */
bool device_wait(attend_device device, io_error *error);

#endif
