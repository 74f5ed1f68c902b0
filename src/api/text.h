/* SPDX-License-Identifier: MIT */
/* How messages write sizes and element types. */
#ifndef ATTEND_TEXT_H
#define ATTEND_TEXT_H

#include "problem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct text {
  char s[128];
} text;

static inline text list(const int64_t *sizes, int count) {
  text t = {"["};
  size_t n = 1;
  for (int i = 0; i < count && n < sizeof t.s - 24; i++)
    n += (size_t)snprintf(t.s + n, sizeof t.s - n, i ? ",%" PRId64 : "%" PRId64, sizes[i]);
  snprintf(t.s + n, sizeof t.s - n, "]");
  return t;
}

static const attend_dtype dtype_of[] = {{0, 0, 0},  {2, 32, 1}, {2, 16, 1}, {4, 16, 1}, /* by attend_type */
                                        {2, 64, 1}, {6, 8, 1},  {0, 32, 1}, {0, 64, 1}};

static inline attend_type type_of(attend_dtype d) {
  for (attend_type type = TYPE_F32; type <= TYPE_I64; type++)
    if (!memcmp(&d, &dtype_of[type], sizeof d)) return type;
  return TYPE_NONE;
}

static const char *const type_names[] = {"no type", "f32", "f16", "bf16", "f64", "bool", "i32", "i64"};

static inline text dtype_name(attend_dtype d) {
  text t;
  attend_type type = type_of(d);
  if (type != TYPE_NONE)
    snprintf(t.s, sizeof t.s, "%s", type_names[type]);
  else
    snprintf(t.s, sizeof t.s, "DLPack type code %d, %d bits, %d lanes", d.code, d.bits, d.lanes);
  return t;
}

#endif
