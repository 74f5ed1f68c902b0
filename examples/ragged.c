/* SPDX-License-Identifier: MIT */
/* A ragged batch: three sentences of 3, 0 and 5 tokens, one after another in memory, without padding. Each result is
 * bit for bit that of the sentence alone. */
#include <attend.h>

#include <stdio.h>
#include <string.h>

enum { SENTENCES = 3, TOKENS = 8, H = 2, D = 4, ROW = H * D };

int main(void) {
  float q[TOKENS * ROW], k[TOKENS * ROW], v[TOKENS * ROW], out[TOKENS * ROW], alone[TOKENS * ROW];
  for (int i = 0; i < TOKENS * ROW; i++) {
    q[i] = (float)(i % 5) - 2;
    k[i] = (float)(i % 7) - 3;
    v[i] = (float)(i % 11);
  }
  int32_t offsets[SENTENCES + 1] = {0, 3, 3, 8};
  int64_t shape[] = {TOKENS, H, D}, offsets_shape[] = {SENTENCES + 1};
  attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 3, shape), K = attend_tensor_of(k, ATTEND_F32, 3, shape);
  attend_tensor V = attend_tensor_of(v, ATTEND_F32, 3, shape), O = attend_tensor_of(out, ATTEND_F32, 3, shape);
  attend_tensor begins = attend_tensor_of(offsets, ATTEND_I32, 1, offsets_shape);
  attend_args args = {.q = &Q, .k = &K, .v = &V, .out = &O, .q_offsets = &begins, .k_offsets = &begins};
  attend_options options = {.flags = ATTEND_CAUSAL};
  if (attend_forward_once(&args, &options) != ATTEND_OK) goto failed;

  for (int s = 0; s < SENTENCES; s++) {
    int first = offsets[s] * ROW, length = offsets[s + 1] - offsets[s];
    /* The same memory seen as a batch of one: [1,H,N,D] with the strides of [N,H,D]. */
    int64_t one[] = {1, H, length, D}, strides[] = {TOKENS * ROW, D, ROW, 1};
    Q = attend_tensor_strided(q + first, ATTEND_F32, 4, one, strides);
    K = attend_tensor_strided(k + first, ATTEND_F32, 4, one, strides);
    V = attend_tensor_strided(v + first, ATTEND_F32, 4, one, strides);
    O = attend_tensor_strided(alone + first, ATTEND_F32, 4, one, strides);
    if (attend(&Q, &K, &V, &options, &O) != ATTEND_OK) goto failed;
    printf("sentence %d: %d tokens\n", s, length);
  }
  int same = memcmp(out, alone, sizeof out) == 0;
  printf("batched and alone: bits %s\n", same ? "equal" : "DIFFER");
  return !same;

failed:
  fprintf(stderr, "%s\n", attend_error_message());
  return 1;
}
