/* SPDX-License-Identifier: MIT */
/* The library's own allocation, threads and (silent) log, where no hook replaces them. */
#include "api.h"

#include "../cpu/pool.h"

#include <stdlib.h>
#include <string.h>

static void *allocate(void *user, size_t bytes, size_t alignment) {
  (void)user;
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + (bytes ? 0 : alignment));
}

static void release(void *user, void *memory, size_t bytes) {
  (void)user;
  (void)bytes;
  free(memory);
}

static void no_log(void *user, attend_log_level level, const char *message) {
  (void)user;
  (void)level;
  (void)message;
}

/* `user` of the hooks belongs to all four callbacks; the library's own ignore it. */
void attend_services_from(const attend_hooks *hooks, attend_services *services) {
  *services = (attend_services){NULL, allocate, release, attend_pool_parallel_for, no_log};
  if (!hooks) return;
  services->user = hooks->user;
  if (hooks->allocate) services->allocate = hooks->allocate;
  if (hooks->release) services->release = hooks->release;
  if (hooks->parallel_for) services->parallel_for = hooks->parallel_for;
  if (hooks->log) services->log = hooks->log;
}

int attend_cpu_threads(void) { return attend_pool_default_threads(); }
