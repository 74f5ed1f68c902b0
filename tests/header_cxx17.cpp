// SPDX-License-Identifier: MIT
// The public header alone, first, in strict C++17: its inline functions compile and its structs start out as defaults.
#include <attend.h>

int main() {
  int64_t shape[4] = {1, 1, 1, 1};
  float x = 1.0f;
  attend_tensor t = attend_tensor_strided(&x, ATTEND_F32, 4, shape, shape);
  attend_options options = {};
  attend_args args = {};
  args.q = &t;
  return !(args.q->data == &x && options.dropout == 0 && attend_dropout_keep(1, 2, 0.0, 0, 0, 3, 4));
}
