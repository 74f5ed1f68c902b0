/* SPDX-License-Identifier: MIT */
/* The public header alone, first, in strict C11, and its static data used. */
#include <attend.h>

int main(void) {
  int64_t shape[4] = {1, 1, 1, 1};
  float x = 1.0f;
  attend_tensor t = attend_tensor_of(&x, ATTEND_F32, 4, shape);
  attend_options options = {.flags = ATTEND_CAUSAL};
  attend_args args = {.q = &t, .k = &t, .v = &t};
  return !(args.q->data == &x && options.dropout == 0 && attend_dropout_keep(1, 2, 0.0, 0, 0, 3, 4));
}
