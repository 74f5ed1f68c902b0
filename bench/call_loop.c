/* SPDX-License-Identifier: MIT */
/* overhead.py's base line: one prepared forward call, over and over, as a C program makes it. */
#include "attend.h"

attend_status call_loop(const attend_plan *plan, const attend_args *args, void *workspace, size_t bytes, int64_t count);

attend_status call_loop(const attend_plan *plan, const attend_args *args, void *workspace, size_t bytes, int64_t count) {
  attend_status status = ATTEND_OK;
  while (count-- > 0 && status == ATTEND_OK) status = attend_forward(plan, args, workspace, bytes, NULL);
  return status;
}
