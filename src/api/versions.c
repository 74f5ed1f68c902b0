/* SPDX-License-Identifier: MIT */
/* Structs of callers compiled against an older or newer header. Fields are only appended and zero means the default, so
 * an older caller's missing fields read as zero, and a newer caller's unknown ones must be zero. */
#include "api.h"

#include <string.h>

static attend_status read_struct(const char *name, const void *caller, size_t size, void *mine, size_t my_size) {
  memset(mine, 0, my_size);
  if (size == 0) size = my_size; /* version 1 is the current version */
  if (size < sizeof(size_t) || size > 65536)
    return attend_fail(ATTEND_ERROR_OPTION, "%s.size: expected 0 or sizeof(%s) = %zu, got %zu", name, name, my_size,
                       size);
  memcpy(mine, caller, size < my_size ? size : my_size);
  for (size_t i = my_size; i < size; i++)
    if (((const unsigned char *)caller)[i])
      return attend_fail(ATTEND_ERROR_OPTION, "%s: byte %zu is set, but this library (%s) knows only %zu bytes of it",
                         name, i, attend_version(), my_size);
  return ATTEND_OK;
}

attend_status attend_copy_args(const attend_args *caller, attend_args *copy) {
  if (!caller) return attend_fail(ATTEND_ERROR_NULL, "args: expected a pointer to attend_args, got NULL");
  return read_struct("attend_args", caller, caller->size, copy, sizeof *copy);
}

attend_status attend_read_options(const attend_options *caller, attend_options *options) {
  memset(options, 0, sizeof *options);
  if (!caller) return ATTEND_OK;
  return read_struct("attend_options", caller, caller->size, options, sizeof *options);
}

const char *const attend_operand_names[OPERAND_COUNT] = {
    "q",      "k",         "v",         "out",         "mask",   "bias",  "alibi_slopes", "sink",
    "kv_len", "q_offsets", "k_offsets", "block_table", "lse",    "probs", "scores",       "d_out",
    "d_lse",  "d_q",       "d_k",       "d_v",         "d_bias", "d_sink"};
