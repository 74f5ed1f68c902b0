/* SPDX-License-Identifier: MIT */
/* The library's own threads. OpenMP's were rejected: libgomp exits the process when a thread cannot be created, and
 * hangs a forked child. */
#ifndef ATTEND_POOL_H
#define ATTEND_POOL_H

/* Call task(context, index) once for every index in [0, count), in any order, on the calling thread and on those of the
 * pool that are free, and return when all are done. The signature is attend_hooks.parallel_for; `user` is not used.
 *
 * Threads start when first needed and are kept. May be called by several threads at a time and from inside a task: the
 * caller always works, so that every call finishes even if no other thread can be had. After a fork the child starts
 * threads of its own. */
void attend_pool_parallel_for(void *user, int count, void (*task)(void *context, int index), void *context);

/* The CPUs this process may run on (its affinity mask), at least 1. */
int attend_pool_default_threads(void);

#endif
