/* SPDX-License-Identifier: MIT */
/* Attention over equal keys is the mean of the values. */
#include <attend.h>

#include <math.h>
#include <stdio.h>

int main(void) {
  float q[4] = {1, 2, 3, 4}, k[8] = {0}, v[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[4] = {0};
  int64_t one[] = {1, 1, 1, 4}, two[] = {1, 1, 2, 4};
  attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 4, one), K = attend_tensor_of(k, ATTEND_F32, 4, two);
  attend_tensor V = attend_tensor_of(v, ATTEND_F32, 4, two), O = attend_tensor_of(out, ATTEND_F32, 4, one);
  if (attend(&Q, &K, &V, NULL, &O) != ATTEND_OK) {
    fprintf(stderr, "%s\n", attend_error_message());
    return 1;
  }
  for (int d = 0; d < 4; d++)
    if (fabsf(out[d] - (v[d] + v[4 + d]) / 2) > 1e-6f) return 1;
  printf("attend %s works\n", attend_version());
  return 0;
}
