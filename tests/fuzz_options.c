/* SPDX-License-Identifier: MIT */
/* libFuzzer target: any shapes, strides, types and options. Planning and explaining never look at data, so they are
 * given everything; a call that is planned is executed if it is small and its tensors are compact, in memory of exactly
 * their size. Only a status may come of it. */
#include "attend.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { TENSORS = 21, LARGEST = 1 << 14 };

typedef struct input {
  const uint8_t *data;
  size_t size;
} input;

static uint8_t take(input *in) {
  if (!in->size) return 0;
  in->size--;
  return *in->data++;
}

static int64_t take_size(input *in) { /* mostly small, at times the extremes */
  static const int64_t extremes[] = {-1, INT64_MAX, INT64_MIN, (int64_t)1 << 31, (int64_t)1 << 32, (int64_t)1 << 62,
                                     65, 1000};
  uint8_t x = take(in);
  return x < 240 ? x % 12 : extremes[x % 8];
}

static double take_number(input *in) {
  static const double numbers[] = {0, 0.5, 1, -1, 30, 1e300, 1e-300, 0.0 / 0.0, 1.0 / 0.0, 0.999999, 0.1};
  return numbers[take(in) % (sizeof numbers / sizeof numbers[0])];
}

/* Bytes of a compact tensor; -1 if that is too many to execute, or strides are given. */
static int64_t compact_bytes(const attend_tensor *t) {
  if (t->strides || t->ndim < 0 || t->ndim > 4 || t->byte_offset) return -1;
  int64_t bytes = t->dtype.bits / 8;
  for (int d = 0; d < t->ndim; d++) {
    if (t->shape[d] < 0 || t->shape[d] > LARGEST) return -1;
    bytes *= t->shape[d];
    if (bytes > LARGEST) return -1;
  }
  return bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = {data, size};
  static const attend_dtype types[] = {{2, 32, 1}, {2, 16, 1}, {4, 16, 1}, {2, 64, 1},
                                       {6, 8, 1},  {0, 32, 1}, {0, 64, 1}, {9, 3, 2}};
  attend_tensor tensors[TENSORS];
  int64_t shapes[TENSORS][6], strides[TENSORS][6];
  void *memory[TENSORS] = {NULL};
  attend_args args;
  memset(&args, 0, sizeof args);
  attend_direction direction = take(&in) & 1 ? ATTEND_BACKWARD : ATTEND_FORWARD;
  int64_t usual[6] = {1 + take(&in) % 3, 1 + take(&in) % 4, take(&in) % 9, 1 + take(&in) % 9, 0, 0};
  uint8_t usual_type = take(&in) % 4;
  const attend_tensor **slots[TENSORS] = {
      &args.q,      &args.k,      &args.v,         &args.out,       &args.mask,        &args.bias, &args.alibi_slopes,
      &args.sink,   &args.kv_len, &args.q_offsets, &args.k_offsets, &args.block_table, &args.lse,  &args.probs,
      &args.scores, &args.d_out,  &args.d_lse,     &args.d_q,       &args.d_k,         &args.d_v,  &args.d_bias};
  bool executable = true;
  for (int n = 0; n < TENSORS; n++) {
    uint8_t how = take(&in);
    bool present = n < 4 || (how & 3) == 3 || (direction == ATTEND_BACKWARD && (n == 12 || n == 15 || n == 17));
    if (!present) continue;
    attend_tensor *t = &tensors[n];
    memset(t, 0, sizeof *t);
    bool strange = (how & 0x30) == 0x30;
    t->device.type = ATTEND_CPU;
    t->ndim = n == 12 || n == 16 ? 3 : 4;
    t->dtype = types[usual_type];
    if (n == 12 || n == 16) t->dtype = types[usual_type == 3 ? 3 : 0];
    if (n == 4) t->dtype = types[4];
    if (n >= 8 && n <= 11) t->dtype = types[5], t->ndim = n == 11 ? 2 : 1;
    if (n == 6) t->dtype = types[0], t->ndim = 1;
    if (n == 7) t->ndim = 1;
    for (int d = 0; d < 6; d++) shapes[n][d] = strange ? take_size(&in) : usual[d];
    if (!strange && (n == 4 || n == 5 || n == 13 || n == 14 || n == 20)) shapes[n][3] = usual[2];
    if (!strange && (n == 6 || n == 7)) shapes[n][0] = usual[1];
    if (strange) {
      uint8_t more = take(&in);
      if (more & 1) t->dtype = types[take(&in) % 8];
      if (more & 2) t->ndim = take(&in) % 8 - 1 < 6 ? take(&in) % 6 : 5;
      if (more & 4) t->device.type = take(&in);
      if (more & 8) t->byte_offset = (uint64_t)take_size(&in);
      if (more & 16) {
        for (int d = 0; d < 6; d++) strides[n][d] = take_size(&in);
        t->strides = strides[n];
      }
    }
    t->shape = shapes[n];
    int64_t bytes = compact_bytes(t);
    if (bytes < 0) executable = false;
    memory[n] = malloc(bytes > 0 ? (size_t)bytes : 1);
    if (!memory[n]) abort();
    for (int64_t i = 0; i < bytes; i++) ((uint8_t *)memory[n])[i] = take(&in);
    t->data = memory[n];
    *slots[n] = t;
  }
  attend_options options;
  memset(&options, 0, sizeof options);
  options.flags = take(&in);
  options.backends = take(&in) & 15;
  if (options.flags & ATTEND_SCALE) options.scale = take_number(&in);
  if (take(&in) & 1) options.softcap = take_number(&in), options.dropout = take_number(&in);
  options.window_left = take_size(&in);
  options.window_right = take_size(&in);
  options.max_q_len = take_size(&in);
  options.max_k_len = take_size(&in);
  options.scores_stage = (attend_stage)(take(&in) % 4);
  options.threads = 1;

  attend_explanation explanation;
  memset(&explanation, 0, sizeof explanation);
  explanation.size = sizeof explanation;
  attend_status explained = attend_explain(direction, &args, &options, &explanation);
  attend_plan *plan = NULL;
  attend_status status = attend_plan_create(direction, &args, &options, &plan);
  if ((status == ATTEND_OK) != (plan != NULL)) abort();
  if (status != ATTEND_OK && !attend_error_message()[0]) abort();
  if (explained == ATTEND_OK && explanation.status != status) abort();
  if (plan && executable && attend_plan_workspace_bytes(plan) < ((size_t)1 << 26)) {
    size_t bytes =
        (attend_plan_workspace_bytes(plan) + ATTEND_WORKSPACE_ALIGNMENT) & ~(size_t)(ATTEND_WORKSPACE_ALIGNMENT - 1);
    void *workspace = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, bytes);
    if (!workspace) abort();
    if (direction == ATTEND_FORWARD)
      (void)attend_forward(plan, &args, workspace, bytes, NULL);
    else
      (void)attend_backward(plan, &args, workspace, bytes, NULL);
    free(workspace);
  }
  attend_plan_destroy(plan);
  for (int n = 0; n < TENSORS; n++) free(memory[n]);
  return 0;
}
