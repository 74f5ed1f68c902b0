/* SPDX-License-Identifier: MIT */
/* How messages write sizes and element types. */
#ifndef ATTEND_TEXT_H
#define ATTEND_TEXT_H

#include "problem.h"

#include <inttypes.h>
#include <stdio.h>

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

static inline attend_type type_of(attend_dtype d) {
  if (d.lanes != 1) return TYPE_NONE;
  switch (d.code << 8 | d.bits) {
  case 2 << 8 | 32:
    return TYPE_F32;
  case 2 << 8 | 16:
    return TYPE_F16;
  case 4 << 8 | 16:
    return TYPE_BF16;
  case 2 << 8 | 64:
    return TYPE_F64;
  case 6 << 8 | 8:
    return TYPE_BOOL;
  case 0 << 8 | 32:
    return TYPE_I32;
  case 0 << 8 | 64:
    return TYPE_I64;
  default:
    return TYPE_NONE;
  }
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
