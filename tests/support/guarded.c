/* SPDX-License-Identifier: MIT */
/* mmap and mprotect. */
#include "support/guarded.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

guarded guarded_make(size_t bytes, bool at_end) {
  size_t inside = (bytes + PAGE - 1) / PAGE * PAGE;
  guarded memory = {.bytes = bytes, .map_bytes = inside + 2 * PAGE};
  memory.map = mmap(NULL, memory.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory.map == MAP_FAILED || (inside && mprotect(memory.map + PAGE, inside, PROT_READ | PROT_WRITE))) abort();
  memory.data = memory.map + PAGE + (at_end ? inside - bytes : 0);
  if (inside) memset(memory.map + PAGE, 0xFF, inside);
  return memory;
}

void guarded_free(guarded *memory) {
  if (memory->map) munmap(memory->map, memory->map_bytes);
  *memory = (guarded){0};
}

void guarded_read_only(const guarded *memory, bool read_only) {
  size_t inside = memory->map_bytes - 2 * PAGE;
  if (inside && mprotect(memory->map + PAGE, inside, read_only ? PROT_READ : PROT_READ | PROT_WRITE)) abort();
}
