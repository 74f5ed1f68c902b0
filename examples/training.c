/* SPDX-License-Identifier: MIT */
/* Training by gradient descent: find q, k, v and a bias whose causal attention, with dropout, comes close to a target.
 * Plans are made once; a step executes forward and backward with the same dropout seed, and allocates nothing. */
#include <attend.h>

#include <stdio.h>
#include <stdlib.h>

enum { H = 2, N = 12, D = 8, SIZE = H * N * D, BIASES = H * N * N, STEPS = 200 };

static void descend(float *x, const float *gradient, int count) {
  for (int i = 0; i < count; i++) x[i] -= 0.2f * gradient[i];
}

int main(void) {
  static float q[SIZE], k[SIZE], v[SIZE], bias[BIASES], out[SIZE], lse[H * N], target[SIZE];
  static float d_out[SIZE], d_q[SIZE], d_k[SIZE], d_v[SIZE], d_bias[BIASES];
  for (int i = 0; i < SIZE; i++) {
    q[i] = (float)((i * 37) % 101) / 50 - 1;
    k[i] = (float)((i * 53) % 103) / 51 - 1;
    v[i] = (float)((i * 71) % 107) / 53 - 1;
    target[i] = (float)((i * 29) % 97) / 48 - 1;
  }
  int64_t shape[] = {1, H, N, D}, bias_shape[] = {1, H, N, N}, lse_shape[] = {1, H, N};
  attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 4, shape), DQ = attend_tensor_of(d_q, ATTEND_F32, 4, shape);
  attend_tensor K = attend_tensor_of(k, ATTEND_F32, 4, shape), DK = attend_tensor_of(d_k, ATTEND_F32, 4, shape);
  attend_tensor V = attend_tensor_of(v, ATTEND_F32, 4, shape), DV = attend_tensor_of(d_v, ATTEND_F32, 4, shape);
  attend_tensor O = attend_tensor_of(out, ATTEND_F32, 4, shape), DO = attend_tensor_of(d_out, ATTEND_F32, 4, shape);
  attend_tensor A = attend_tensor_of(bias, ATTEND_F32, 4, bias_shape);
  attend_tensor DA = attend_tensor_of(d_bias, ATTEND_F32, 4, bias_shape);
  attend_tensor L = attend_tensor_of(lse, ATTEND_F32, 3, lse_shape);
  attend_args args = {.q = &Q, .k = &K, .v = &V, .out = &O, .bias = &A, .lse = &L};
  attend_args gradients = args;
  gradients.d_out = &DO, gradients.d_q = &DQ, gradients.d_k = &DK, gradients.d_v = &DV, gradients.d_bias = &DA;
  attend_options options = {.flags = ATTEND_CAUSAL, .dropout = 0.05};

  int result = 1;
  void *workspace = NULL;
  attend_plan *forward = NULL, *backward = NULL;
  if (attend_plan_create(ATTEND_FORWARD, &args, &options, &forward) != ATTEND_OK) goto failed;
  if (attend_plan_create(ATTEND_BACKWARD, &gradients, &options, &backward) != ATTEND_OK) goto failed;
  size_t bytes = attend_plan_workspace_bytes(forward);
  if (attend_plan_workspace_bytes(backward) > bytes) bytes = attend_plan_workspace_bytes(backward);
  bytes = (bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT;
  workspace = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, bytes);
  if (!workspace) goto done;

  double first = 0, loss = 0;
  for (int step = 0; step < STEPS; step++) {
    args.dropout_seed = gradients.dropout_seed = 1;
    args.dropout_offset = gradients.dropout_offset = (uint64_t)step;
    if (attend_forward(forward, &args, workspace, bytes, NULL) != ATTEND_OK) goto failed;
    loss = 0;
    for (int i = 0; i < SIZE; i++) {
      d_out[i] = out[i] - target[i];
      loss += 0.5 * (double)d_out[i] * (double)d_out[i];
    }
    if (step == 0) first = loss;
    if (step % 50 == 0) printf("step %3d: loss %.3f\n", step, loss);
    if (attend_backward(backward, &gradients, workspace, bytes, NULL) != ATTEND_OK) goto failed;
    descend(q, d_q, SIZE), descend(k, d_k, SIZE), descend(v, d_v, SIZE), descend(bias, d_bias, BIASES);
  }
  printf("after %d: loss %.3f\n", STEPS, loss);
  result = !(loss < first / 3);
  goto done;

failed:
  fprintf(stderr, "%s\n", attend_error_message());
done:
  attend_plan_destroy(forward);
  attend_plan_destroy(backward);
  free(workspace);
  return result;
}
