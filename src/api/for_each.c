/* SPDX-License-Identifier: MIT */
/* Dynamic scheduling on top of parallel_for: the hook hands out workers, the workers take items from one counter. So a
 * hook need not balance anything, and scratch is per worker. All work of the CPU back-ends passes through here, so this
 * is also where it gets its floating-point state. */
#include "problem.h"

#include "cpu/float_state.h"

#include <stdatomic.h>

typedef struct queue {
  _Atomic int64_t next;
  int64_t items;
  void (*item)(void *context, int worker, int64_t index);
  void *context;
} queue;

static void work(void *context, int worker) {
  queue *q = context;
  uint64_t float_state = attend_float_state_set();
  for (;;) {
    int64_t index = atomic_fetch_add_explicit(&q->next, 1, memory_order_relaxed);
    if (index >= q->items) break;
    q->item(q->context, worker, index);
  }
  attend_float_state_restore(float_state);
}

void attend_for_each(const attend_services *services, int workers, int64_t items,
                     void (*item)(void *context, int worker, int64_t index), void *context) {
  if (items <= 0) return;
  queue q = {.items = items, .item = item, .context = context};
  if (workers > items) workers = (int)items;
  if (workers > 1) {
    services->parallel_for(services->user, workers, work, &q);
    return;
  }
  uint64_t float_state = attend_float_state_set();
  for (int64_t i = 0; i < items; i++) item(context, 0, i);
  attend_float_state_restore(float_state);
}
