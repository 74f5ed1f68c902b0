/* SPDX-License-Identifier: MIT */
/* Memory between two pages that nobody may touch, at the very end of its pages or at their very beginning. */
#ifndef TEST_GUARDED_H
#define TEST_GUARDED_H

#include <stdbool.h>
#include <stddef.h>

typedef struct guarded {
  char *data;
  size_t bytes;
  char *map;
  size_t map_bytes;
} guarded;

/* Filled with bytes 0xFF: NaN in every float type. */
guarded guarded_make(size_t bytes, bool at_end);
void guarded_free(guarded *memory);
void guarded_read_only(const guarded *memory, bool read_only);

#endif
