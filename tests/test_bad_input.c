/* SPDX-License-Identifier: MIT */
/* Calls that must fail: each with its status, a message that names the argument, what was expected and what came, and
 * nothing written. A case changes one thing in a call that works. */
#include "attend.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { B = 2, H = 4, HKV = 2, NQ = 5, NK = 7, D = 8, DV = 6, MOST = B * H * NQ * NK * 16 };

/* A call with every operand, whose parts a case may change. */
typedef struct call {
  attend_direction direction;
  attend_args args;
  attend_options options;
  attend_hooks hooks;
  attend_tensor t[22];
  int64_t shape[22][5], strides[22][5];
  int used;
  bool no_options;
  float memory[22][MOST];
} call;

static attend_tensor *add(call *c, attend_dtype dtype, int rank, const int64_t *shape) {
  int n = c->used++;
  memcpy(c->shape[n], shape, (size_t)rank * sizeof *shape);
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; i--) c->strides[n][i] = stride, stride *= shape[i];
  c->t[n] = attend_tensor_strided(c->memory[n], dtype, rank, c->shape[n], c->strides[n]);
  for (int i = 0; i < MOST; i++) c->memory[n][i] = 0.25f;
  return &c->t[n];
}
#define ADD(dtype, ...)                                                                                                \
  add(c, dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})

static attend_tensor *mutable(const attend_tensor *t) { return (attend_tensor *)(uintptr_t)t; }

static void dense(call *c) {
  memset(c, 0, sizeof *c);
  attend_args *a = &c->args;
  a->q = ADD(ATTEND_F32, B, H, NQ, D);
  a->k = ADD(ATTEND_F32, B, HKV, NK, D);
  a->v = ADD(ATTEND_F32, B, HKV, NK, DV);
  a->out = ADD(ATTEND_F32, B, H, NQ, DV);
  a->lse = ADD(ATTEND_F32, B, H, NQ);
  a->mask = ADD(ATTEND_BOOL, B, 1, NQ, NK);
  a->bias = ADD(ATTEND_F32, 1, H, NQ, NK);
  a->alibi_slopes = ADD(ATTEND_F32, H);
  a->sink = ADD(ATTEND_F32, H);
  a->kv_len = ADD(ATTEND_I32, B);
  for (int b = 0; b < B; b++) ((int32_t *)a->kv_len->data)[b] = NK;
}

static void backward(call *c) {
  dense(c);
  c->direction = ATTEND_BACKWARD;
  attend_args *a = &c->args;
  a->d_out = ADD(ATTEND_F32, B, H, NQ, DV);
  a->d_lse = ADD(ATTEND_F32, B, H, NQ);
  a->d_q = ADD(ATTEND_F32, B, H, NQ, D);
  a->d_k = ADD(ATTEND_F32, B, HKV, NK, D);
  a->d_v = ADD(ATTEND_F32, B, HKV, NK, DV);
  a->d_bias = ADD(ATTEND_F32, 1, H, NQ, NK);
  a->d_sink = ADD(ATTEND_F32, H);
}

static void ragged(call *c) {
  memset(c, 0, sizeof *c);
  attend_args *a = &c->args;
  a->q = ADD(ATTEND_F32, 9, H, D);
  a->k = ADD(ATTEND_F32, 11, HKV, D);
  a->v = ADD(ATTEND_F32, 11, HKV, DV);
  a->out = ADD(ATTEND_F32, 9, H, DV);
  a->lse = ADD(ATTEND_F32, H, 9);
  a->q_offsets = ADD(ATTEND_I32, 3);
  a->k_offsets = ADD(ATTEND_I64, 3);
  memcpy(a->q_offsets->data, (int32_t[]){0, 4, 9}, 12);
  memcpy(a->k_offsets->data, (int64_t[]){0, 5, 11}, 24);
}

static void paged(call *c) {
  memset(c, 0, sizeof *c);
  attend_args *a = &c->args;
  a->q = ADD(ATTEND_F32, B, H, NQ, D);
  a->k = ADD(ATTEND_F32, 6, HKV, 4, D);
  a->v = ADD(ATTEND_F32, 6, HKV, 4, DV);
  a->out = ADD(ATTEND_F32, B, H, NQ, DV);
  a->block_table = ADD(ATTEND_I32, B, 3);
  a->kv_len = ADD(ATTEND_I32, B);
  memcpy(a->block_table->data, (int32_t[]){0, 2, 4, 1, 3, 5}, 24);
  memcpy(a->kv_len->data, (int32_t[]){12, 9}, 8);
}

typedef struct bad {
  const char *what;
  void (*start)(call *c);
  void (*spoil)(call *c);
  attend_status status;
  const char *says; /* words the message must contain, in this order, separated by | */
} bad;

#define SHAPE(operand, i) c->args.operand->shape[i]
#define SPOIL(name, ...)                                                                                               \
  static void name(call *c) { __VA_ARGS__; }

SPOIL(no_q, c->args.q = NULL)
SPOIL(no_k, c->args.k = NULL)
SPOIL(no_v, c->args.v = NULL)
SPOIL(no_out, c->args.out = NULL)
SPOIL(no_lse, c->args.lse = NULL)
SPOIL(no_d_out, c->args.d_out = NULL)
SPOIL(no_gradients, c->args.d_q = c->args.d_k = c->args.d_v = c->args.d_bias = c->args.d_sink = NULL)
SPOIL(no_bias_for_d_bias, c->args.bias = NULL)
SPOIL(no_sink_for_d_sink, c->args.sink = NULL)
SPOIL(q_data_null, mutable(c->args.q)->data = NULL)
SPOIL(out_data_null, mutable(c->args.out)->data = NULL)
SPOIL(q_shape_null, mutable(c->args.q)->shape = NULL)
SPOIL(q_rank_3, mutable(c->args.q)->ndim = 3)
SPOIL(q_rank_5, mutable(c->args.q)->ndim = 5)
SPOIL(q_rank_negative, mutable(c->args.q)->ndim = -1)
SPOIL(k_rank_2, mutable(c->args.k)->ndim = 2)
SPOIL(v_rank_2, mutable(c->args.v)->ndim = 2)
SPOIL(q_negative_size, SHAPE(q, 2) = -5)
SPOIL(k_batch, SHAPE(k, 0) = 1)
SPOIL(k_heads_zero, SHAPE(k, 1) = SHAPE(v, 1) = 0)
SPOIL(k_heads_3, SHAPE(k, 1) = SHAPE(v, 1) = 3)
SPOIL(k_head_dim, SHAPE(k, 3) = 4)
SPOIL(v_length, SHAPE(v, 2) = 6)
SPOIL(v_heads, SHAPE(v, 1) = 1)
SPOIL(v_batch, SHAPE(v, 0) = 1)
SPOIL(out_q_len, SHAPE(out, 2) = 4)
SPOIL(out_v_dim, SHAPE(out, 3) = D)
SPOIL(out_rank, mutable(c->args.out)->ndim = 3)
SPOIL(lse_shape, SHAPE(lse, 2) = 4)
SPOIL(lse_rank, mutable(c->args.lse)->ndim = 2)
SPOIL(lse_f16, mutable(c->args.lse)->dtype = ATTEND_F16)
SPOIL(q_bool, mutable(c->args.q)->dtype = ATTEND_BOOL)
SPOIL(q_i32, mutable(c->args.q)->dtype = ATTEND_I32)
SPOIL(q_unknown_type, mutable(c->args.q)->dtype = ((attend_dtype){2, 8, 1}))
SPOIL(q_lanes, mutable(c->args.q)->dtype.lanes = 4)
SPOIL(q_complex, mutable(c->args.q)->dtype.code = 5)
SPOIL(k_f16, mutable(c->args.k)->dtype = ATTEND_F16)
SPOIL(v_bf16, mutable(c->args.v)->dtype = ATTEND_BF16)
SPOIL(out_f64, mutable(c->args.out)->dtype = ATTEND_F64)
SPOIL(mask_f32, mutable(c->args.mask)->dtype = ATTEND_F32)
SPOIL(mask_rank_3, mutable(c->args.mask)->ndim = 3)
SPOIL(mask_rank_1, mutable(c->args.mask)->ndim = 1)
SPOIL(mask_no_broadcast, SHAPE(mask, 1) = 3)
SPOIL(mask_padding_shape, mutable(c->args.mask)->ndim = 2; SHAPE(mask, 0) = B; SHAPE(mask, 1) = NQ)
SPOIL(bias_f16, mutable(c->args.bias)->dtype = ATTEND_F16)
SPOIL(bias_rank_2, mutable(c->args.bias)->ndim = 2)
SPOIL(bias_no_broadcast, SHAPE(bias, 3) = 2)
SPOIL(alibi_f64, mutable(c->args.alibi_slopes)->dtype = ATTEND_F64)
SPOIL(alibi_heads, SHAPE(alibi_slopes, 0) = 3)
SPOIL(sink_type, mutable(c->args.sink)->dtype = ATTEND_BF16)
SPOIL(sink_heads, SHAPE(sink, 0) = 1)
SPOIL(kv_len_f32, mutable(c->args.kv_len)->dtype = ATTEND_F32)
SPOIL(kv_len_batch, SHAPE(kv_len, 0) = 1)
SPOIL(kv_len_negative, ((int32_t *)c->args.kv_len->data)[1] = -1)
SPOIL(kv_len_long, ((int32_t *)c->args.kv_len->data)[0] = NK + 1)
SPOIL(device_unknown, mutable(c->args.q)->device.type = 77)
SPOIL(device_mixed, mutable(c->args.k)->device.type = ATTEND_CUDA)
SPOIL(stride_overflow, mutable(c->args.q)->strides[0] = INT64_MAX / 2)
SPOIL(size_overflow, SHAPE(q, 0) = INT64_MAX / 4; mutable(c->args.q)->strides = NULL)
SPOIL(unaligned, mutable(c->args.q)->byte_offset = 2)
SPOIL(out_broadcast, mutable(c->args.out)->strides[2] = 0)
SPOIL(out_repeats, mutable(c->args.out)->strides[2] = 3)
SPOIL(out_is_q, mutable(c->args.out)->data = c->args.q->data)
SPOIL(out_in_v, mutable(c->args.out)->data = (char *)c->args.v->data + 4)
SPOIL(lse_is_out, mutable(c->args.lse)->data = c->args.out->data)
SPOIL(lse_in_mask, mutable(c->args.lse)->data = c->args.mask->data)
SPOIL(d_k_is_d_v, mutable(c->args.d_k)->data = c->args.d_v->data)
SPOIL(d_q_is_out, mutable(c->args.d_q)->data = c->args.out->data)
SPOIL(d_q_shape, SHAPE(d_q, 3) = 4)
SPOIL(d_k_type, mutable(c->args.d_k)->dtype = ATTEND_F16)
SPOIL(d_v_shape, SHAPE(d_v, 2) = 3)
SPOIL(d_out_shape, SHAPE(d_out, 3) = D)
SPOIL(d_lse_shape, SHAPE(d_lse, 1) = 2)
SPOIL(d_bias_shape, SHAPE(d_bias, 0) = B)
SPOIL(d_sink_shape, SHAPE(d_sink, 0) = 2)
SPOIL(scale_nan, c->options.flags = ATTEND_SCALE; c->options.scale = NAN)
SPOIL(scale_infinite, c->options.flags = ATTEND_SCALE; c->options.scale = INFINITY)
SPOIL(scale_without_flag, c->options.scale = 0.5)
SPOIL(softcap_negative, c->options.softcap = -1)
SPOIL(softcap_nan, c->options.softcap = NAN)
SPOIL(softcap_infinite, c->options.softcap = INFINITY)
SPOIL(dropout_one, c->options.dropout = 1)
SPOIL(dropout_negative, c->options.dropout = -0.1)
SPOIL(dropout_nan, c->options.dropout = NAN)
SPOIL(window_left, c->options.flags = ATTEND_WINDOW; c->options.window_left = -2)
SPOIL(window_right, c->options.flags = ATTEND_WINDOW; c->options.window_right = INT64_MIN)
SPOIL(window_without_flag, c->options.window_left = 3)
SPOIL(flags_unknown, c->options.flags = 1u << 30)
SPOIL(backends_unknown, c->options.backends = 64)
SPOIL(threads_negative, c->options.threads = -1)
SPOIL(kernel_unknown, c->options.kernel = "forward_f32_magic")
SPOIL(kernel_other_direction, c->options.kernel = "backward_any_reference";
      c->options.backends = ATTEND_BACKEND_REFERENCE)
SPOIL(stage_unknown, c->options.scores_stage = (attend_stage)9)
SPOIL(options_size, c->options.size = 3)
SPOIL(args_size, c->args.size = 5)
SPOIL(max_q_negative, c->options.max_q_len = -1)
SPOIL(max_k_negative, c->options.max_k_len = -7)
static void *some_memory(void *user, size_t bytes, size_t alignment) {
  (void)user, (void)alignment;
  return malloc(bytes);
}
SPOIL(half_hooks, c->hooks.allocate = some_memory; c->options.hooks = &c->hooks)
SPOIL(scores_flash, c->args.scores = ADD(ATTEND_F32, B, H, NQ, NK); c->options.backends = ATTEND_BACKEND_FLASH)
SPOIL(probs_shape, c->args.probs = ADD(ATTEND_F32, B, H, NK, NQ))
SPOIL(one_offset, c->args.k_offsets = NULL)
SPOIL(offsets_first, ((int32_t *)c->args.q_offsets->data)[0] = 1)
SPOIL(offsets_descend, ((int32_t *)c->args.q_offsets->data)[1] = 10)
SPOIL(offsets_negative, ((int64_t *)c->args.k_offsets->data)[1] = -3)
SPOIL(offsets_last, ((int64_t *)c->args.k_offsets->data)[2] = 10)
SPOIL(offsets_huge, ((int64_t *)c->args.k_offsets->data)[2] = INT64_MAX)
SPOIL(offsets_too_long, c->options.max_q_len = 3)
SPOIL(offsets_count, SHAPE(k_offsets, 0) = 2)
SPOIL(offsets_empty, SHAPE(q_offsets, 0) = 0)
SPOIL(offsets_f32, mutable(c->args.q_offsets)->dtype = ATTEND_F32)
SPOIL(ragged_q_rank, mutable(c->args.q)->ndim = 4; SHAPE(q, 3) = D)
SPOIL(table_entry, ((int32_t *)c->args.block_table->data)[1] = 6)
SPOIL(table_negative, ((int32_t *)c->args.block_table->data)[3] = -1)
SPOIL(table_type, mutable(c->args.block_table)->dtype = ATTEND_BOOL)
SPOIL(table_batch, SHAPE(block_table, 0) = 1)
SPOIL(table_no_lengths, c->args.kv_len = NULL)
SPOIL(table_long, ((int32_t *)c->args.kv_len->data)[0] = 13)
SPOIL(table_and_offsets, c->args.k_offsets = ADD(ATTEND_I32, B + 1))
SPOIL(table_block_size, SHAPE(k, 2) = SHAPE(v, 2) = 0)
SPOIL(paged_backward, c->direction = ATTEND_BACKWARD; c->args.lse = ADD(ATTEND_F32, B, H, NQ);
      c->args.d_out = ADD(ATTEND_F32, B, H, NQ, DV); c->args.d_q = ADD(ATTEND_F32, B, H, NQ, D))

static const bad cases[] = {
    {"q NULL", dense, no_q, ATTEND_ERROR_NULL, "q|expected|NULL"},
    {"k NULL", dense, no_k, ATTEND_ERROR_NULL, "k|expected|NULL"},
    {"v NULL", dense, no_v, ATTEND_ERROR_NULL, "v|expected|NULL"},
    {"out NULL", dense, no_out, ATTEND_ERROR_NULL, "out|expected|NULL"},
    {"lse NULL in backward", backward, no_lse, ATTEND_ERROR_NULL, "lse|NULL"},
    {"d_out NULL in backward", backward, no_d_out, ATTEND_ERROR_NULL, "d_out|NULL"},
    {"no gradient", backward, no_gradients, ATTEND_ERROR_NULL, "d_q|at least one|none"},
    {"d_bias without bias", backward, no_bias_for_d_bias, ATTEND_ERROR_NULL, "d_bias|bias|NULL"},
    {"d_sink without sink", backward, no_sink_for_d_sink, ATTEND_ERROR_NULL, "d_sink|sink|NULL"},
    {"q data NULL", dense, q_data_null, ATTEND_ERROR_NULL, "q|data|NULL"},
    {"out data NULL", dense, out_data_null, ATTEND_ERROR_NULL, "out|data|NULL"},
    {"q shape NULL", dense, q_shape_null, ATTEND_ERROR_NULL, "q|shape|NULL"},
    {"q rank 3", dense, q_rank_3, ATTEND_ERROR_SHAPE, "q|[B,H,Nq,D]|[2,4,5]"},
    {"q rank 5", dense, q_rank_5, ATTEND_ERROR_SHAPE, "q|4 dimensions|5"},
    {"q rank -1", dense, q_rank_negative, ATTEND_ERROR_SHAPE, "q|4 dimensions|-1"},
    {"k rank 2", dense, k_rank_2, ATTEND_ERROR_SHAPE, "k|[B,Hkv,Nk,D]|[2,2]"},
    {"v rank 2", dense, v_rank_2, ATTEND_ERROR_SHAPE, "v|[B,Hkv,Nk,D]|[2,2]"},
    {"q negative size", dense, q_negative_size, ATTEND_ERROR_SHAPE, "q|-5|negative"},
    {"k batch", dense, k_batch, ATTEND_ERROR_SHAPE, "k"},
    {"k without heads", dense, k_heads_zero, ATTEND_ERROR_SHAPE, "k|0 heads|4"},
    {"k 3 heads", dense, k_heads_3, ATTEND_ERROR_SHAPE, "k|3 heads|4"},
    {"k head_dim", dense, k_head_dim, ATTEND_ERROR_SHAPE, "k|8|[2,2,7,4]"},
    {"v length", dense, v_length, ATTEND_ERROR_SHAPE, "v|[2,2,7,8]|[2,2,6,6]"},
    {"v heads", dense, v_heads, ATTEND_ERROR_SHAPE, "v|[2,2,7,8]|[2,1,7,6]"},
    {"v batch", dense, v_batch, ATTEND_ERROR_SHAPE, "v|[2,2,7,8]|[1,2,7,6]"},
    {"out length", dense, out_q_len, ATTEND_ERROR_SHAPE, "out|[2,4,5,6]|[2,4,4,6]"},
    {"out v_dim", dense, out_v_dim, ATTEND_ERROR_SHAPE, "out|[2,4,5,6]|[2,4,5,8]"},
    {"out rank", dense, out_rank, ATTEND_ERROR_SHAPE, "out|[2,4,5,6]|[2,4,5]"},
    {"lse shape", dense, lse_shape, ATTEND_ERROR_SHAPE, "lse|[2,4,5]|[2,4,4]"},
    {"lse rank", dense, lse_rank, ATTEND_ERROR_SHAPE, "lse|[2,4,5]|[2,4]"},
    {"lse f16", dense, lse_f16, ATTEND_ERROR_TYPE, "lse|f32|f16"},
    {"q bool", dense, q_bool, ATTEND_ERROR_TYPE, "q|f32, f16, bf16 or f64|bool"},
    {"q i32", dense, q_i32, ATTEND_ERROR_TYPE, "q|f32, f16, bf16 or f64|i32"},
    {"q f8", dense, q_unknown_type, ATTEND_ERROR_TYPE, "q|f32|8 bits"},
    {"q lanes", dense, q_lanes, ATTEND_ERROR_TYPE, "q|f32|4 lanes"},
    {"q complex", dense, q_complex, ATTEND_ERROR_TYPE, "q|f32|code 5"},
    {"k f16", dense, k_f16, ATTEND_ERROR_TYPE, "k|f32|f16"},
    {"v bf16", dense, v_bf16, ATTEND_ERROR_TYPE, "v|f32|bf16"},
    {"out f64", dense, out_f64, ATTEND_ERROR_TYPE, "out|f32|f64"},
    {"mask f32", dense, mask_f32, ATTEND_ERROR_TYPE, "mask|bool|f32"},
    {"mask rank 3", dense, mask_rank_3, ATTEND_ERROR_SHAPE, "mask|[B,Nk] or rank 4|[2,1,5]"},
    {"mask rank 1", dense, mask_rank_1, ATTEND_ERROR_SHAPE, "mask|[B,Nk] or rank 4|[2]"},
    {"mask does not broadcast", dense, mask_no_broadcast, ATTEND_ERROR_SHAPE, "mask|[2,4,5,7]|[2,3,5,7]"},
    {"mask padding shape", dense, mask_padding_shape, ATTEND_ERROR_SHAPE, "mask|[2,7]|[2,5]"},
    {"bias f16 with q f32", dense, bias_f16, ATTEND_ERROR_TYPE, "bias|f32|f16"},
    {"bias rank 2", dense, bias_rank_2, ATTEND_ERROR_SHAPE, "bias|rank 4|[1,4]"},
    {"bias does not broadcast", dense, bias_no_broadcast, ATTEND_ERROR_SHAPE, "bias|[2,4,5,7]|[1,4,5,2]"},
    {"alibi f64", dense, alibi_f64, ATTEND_ERROR_TYPE, "alibi_slopes|f32|f64"},
    {"alibi heads", dense, alibi_heads, ATTEND_ERROR_SHAPE, "alibi_slopes|[H]|[3]"},
    {"sink type", dense, sink_type, ATTEND_ERROR_TYPE, "sink|f32|bf16"},
    {"sink heads", dense, sink_heads, ATTEND_ERROR_SHAPE, "sink|[4]|[1]"},
    {"kv_len f32", dense, kv_len_f32, ATTEND_ERROR_TYPE, "kv_len|i32 or i64|f32"},
    {"kv_len batch", dense, kv_len_batch, ATTEND_ERROR_SHAPE, "kv_len|[2]|[1]"},
    {"kv_len negative", dense, kv_len_negative, ATTEND_ERROR_INDEX, "kv_len[1]|0 to 7|-1"},
    {"kv_len too long", dense, kv_len_long, ATTEND_ERROR_INDEX, "kv_len[0]|0 to 7|8"},
    {"device unknown", dense, device_unknown, ATTEND_ERROR_DEVICE, "q|CPU|77"},
    {"devices mixed", dense, device_mixed, ATTEND_ERROR_DEVICE, "k|type 1|type 2"},
    {"stride overflow", dense, stride_overflow, ATTEND_ERROR_SHAPE, "q|strides|2^60"},
    {"size overflow", dense, size_overflow, ATTEND_ERROR_SHAPE, "q|2^60"},
    {"pointer not aligned to its element", dense, unaligned, ATTEND_ERROR_ALIGNMENT, "q|aligned to 4"},
    {"out broadcasts", dense, out_broadcast, ATTEND_ERROR_OVERLAP, "out|distinct|repeat"},
    {"out rows overlap", dense, out_repeats, ATTEND_ERROR_OVERLAP, "out|distinct|repeat"},
    {"out is q", dense, out_is_q, ATTEND_ERROR_OVERLAP, "out|shares no element|q"},
    {"out overlaps v", dense, out_in_v, ATTEND_ERROR_OVERLAP, "out|shares no element|v"},
    {"lse is out", dense, lse_is_out, ATTEND_ERROR_OVERLAP, "out|shares no element|lse"},
    {"lse in mask", dense, lse_in_mask, ATTEND_ERROR_OVERLAP, "lse|shares no element|mask"},
    {"d_k is d_v", backward, d_k_is_d_v, ATTEND_ERROR_OVERLAP, "d_k|shares no element|d_v"},
    {"d_q is out", backward, d_q_is_out, ATTEND_ERROR_OVERLAP, "d_q|shares no element|out"},
    {"d_q shape", backward, d_q_shape, ATTEND_ERROR_SHAPE, "d_q|[2,4,5,8]|[2,4,5,4]"},
    {"d_k type", backward, d_k_type, ATTEND_ERROR_TYPE, "d_k|f32|f16"},
    {"d_v shape", backward, d_v_shape, ATTEND_ERROR_SHAPE, "d_v|[2,2,7,6]|[2,2,3,6]"},
    {"d_out shape", backward, d_out_shape, ATTEND_ERROR_SHAPE, "d_out|[2,4,5,6]|[2,4,5,8]"},
    {"d_lse shape", backward, d_lse_shape, ATTEND_ERROR_SHAPE, "d_lse|[2,4,5]|[2,2,5]"},
    {"d_bias shape", backward, d_bias_shape, ATTEND_ERROR_SHAPE, "d_bias|[1,4,5,7]|[2,4,5,7]"},
    {"d_sink shape", backward, d_sink_shape, ATTEND_ERROR_SHAPE, "d_sink|[4]|[2]"},
    {"scale NaN", dense, scale_nan, ATTEND_ERROR_OPTION, "scale|finite|nan"},
    {"scale infinite", dense, scale_infinite, ATTEND_ERROR_OPTION, "scale|finite|inf"},
    {"scale without its flag", dense, scale_without_flag, ATTEND_ERROR_OPTION, "scale|0.5|ATTEND_SCALE"},
    {"softcap negative", dense, softcap_negative, ATTEND_ERROR_OPTION, "softcap|finite|-1"},
    {"softcap NaN", dense, softcap_nan, ATTEND_ERROR_OPTION, "softcap|finite|nan"},
    {"softcap infinite", dense, softcap_infinite, ATTEND_ERROR_OPTION, "softcap|finite|inf"},
    {"dropout 1", dense, dropout_one, ATTEND_ERROR_OPTION, "dropout|[0,1)|1"},
    {"dropout negative", dense, dropout_negative, ATTEND_ERROR_OPTION, "dropout|[0,1)|-0.1"},
    {"dropout NaN", dense, dropout_nan, ATTEND_ERROR_OPTION, "dropout|[0,1)|nan"},
    {"window left -2", dense, window_left, ATTEND_ERROR_OPTION, "window_left|-1|-2"},
    {"window right below -1", dense, window_right, ATTEND_ERROR_OPTION, "window_right|-1|-9"},
    {"window without its flag", dense, window_without_flag, ATTEND_ERROR_OPTION, "window_left|ATTEND_WINDOW"},
    {"flags unknown", dense, flags_unknown, ATTEND_ERROR_OPTION, "flags|0x1f|0x40000000"},
    {"backends unknown", dense, backends_unknown, ATTEND_ERROR_OPTION, "backends|0xf|0x40"},
    {"threads negative", dense, threads_negative, ATTEND_ERROR_OPTION, "threads|0|-1"},
    {"kernel unknown", dense, kernel_unknown, ATTEND_ERROR_OPTION, "kernel|attend_kernel_at|magic"},
    {"kernel of the other direction", dense, kernel_other_direction, ATTEND_ERROR_NO_BACKEND, "no kernel"},
    {"stage unknown", dense, stage_unknown, ATTEND_ERROR_OPTION, "scores_stage|9"},
    {"options.size", dense, options_size, ATTEND_ERROR_OPTION, "attend_options.size|expected|3"},
    {"args.size", dense, args_size, ATTEND_ERROR_OPTION, "attend_args.size|expected|5"},
    {"max_q_len negative", ragged, max_q_negative, ATTEND_ERROR_OPTION, "max_q_len|0|-1"},
    {"max_k_len negative", ragged, max_k_negative, ATTEND_ERROR_OPTION, "max_k_len|0|-7"},
    {"half of the memory hooks", dense, half_hooks, ATTEND_ERROR_OPTION, "hooks|allocate and release|only allocate"},
    {"scores from flash", dense, scores_flash, ATTEND_ERROR_NO_BACKEND, "no kernel|scores"},
    {"probs shape", dense, probs_shape, ATTEND_ERROR_SHAPE, "probs|[2,4,5,7]|[2,4,7,5]"},
    {"one offset", ragged, one_offset, ATTEND_ERROR_NULL, "k_offsets|both|only q_offsets"},
    {"offsets do not begin at 0", ragged, offsets_first, ATTEND_ERROR_INDEX, "q_offsets[0]|0|1"},
    {"offsets descend", ragged, offsets_descend, ATTEND_ERROR_INDEX, "q_offsets|ascending|10"},
    {"offsets negative", ragged, offsets_negative, ATTEND_ERROR_INDEX, "k_offsets[1]|ascending|-3"},
    {"offsets do not end at the total", ragged, offsets_last, ATTEND_ERROR_INDEX, "k_offsets[2]|11|10"},
    {"offsets beyond the tensor", ragged, offsets_huge, ATTEND_ERROR_INDEX, "k_offsets[2]|11|9223372036854775807"},
    {"sequence longer than max_q_len", ragged, offsets_too_long, ATTEND_ERROR_INDEX, "q_offsets|4 rows|3"},
    {"number of offsets", ragged, offsets_count, ATTEND_ERROR_SHAPE, "k_offsets|[3]|[2]"},
    {"no offsets", ragged, offsets_empty, ATTEND_ERROR_SHAPE, "q_offsets|[B+1]|[0]"},
    {"offsets f32", ragged, offsets_f32, ATTEND_ERROR_TYPE, "q_offsets|i32 or i64|f32"},
    {"ragged q of rank 4", ragged, ragged_q_rank, ATTEND_ERROR_SHAPE, "q|[Tq,H,D]|[9,4,8,8]"},
    {"block table beyond the blocks", paged, table_entry, ATTEND_ERROR_INDEX, "block_table[0,1]|0 to 5|6"},
    {"block table negative", paged, table_negative, ATTEND_ERROR_INDEX, "block_table[1,0]|0 to 5|-1"},
    {"block table bool", paged, table_type, ATTEND_ERROR_TYPE, "block_table|i32 or i64|bool"},
    {"block table batch", paged, table_batch, ATTEND_ERROR_SHAPE, "block_table|[B,columns]|[1,3]"},
    {"paged without kv_len", paged, table_no_lengths, ATTEND_ERROR_NULL, "kv_len|block_table|NULL"},
    {"kv_len beyond the table", paged, table_long, ATTEND_ERROR_INDEX, "kv_len[0]|0 to 12|13"},
    {"paged with k_offsets", paged, table_and_offsets, ATTEND_ERROR_OPTION, "k_offsets|block_table"},
    {"blocks of 0 keys", paged, table_block_size, ATTEND_ERROR_SHAPE, "k|block_size|[6,2,0,8]"},
    {"paged backward", paged, paged_backward, ATTEND_ERROR_OPTION, "block_table|forward|backward"},
};

static void assert_says(const char *what, const char *words) {
  char copy[256];
  const char *at = attend_error_message();
  snprintf(copy, sizeof copy, "%s", words);
  for (char *state, *word = strtok_r(copy, "|", &state); word; word = strtok_r(NULL, "|", &state)) {
    const char *found = strstr(at, word);
    if (!found) fail_msg("%s: the message \"%s\" lacks \"%s\"", what, attend_error_message(), word);
    at = found + strlen(word);
  }
}

static void the_calls_themselves_work(void **state) {
  (void)state;
  void (*const starts[])(call *) = {dense, backward, ragged, paged};
  call *c = malloc(sizeof *c);
  for (int i = 0; i < 4; i++) {
    starts[i](c);
    attend_status s =
        c->direction ? attend_backward_once(&c->args, &c->options) : attend_forward_once(&c->args, &c->options);
    if (s) fail_msg("call %d: %s: %s", i, attend_status_name(s), attend_error_message());
  }
  free(c);
}

static void each_bad_call_fails_and_writes_nothing(void **state) {
  (void)state;
  call *c = malloc(sizeof *c), *before = malloc(sizeof *before);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const bad *b = &cases[i];
    b->start(c);
    b->spoil(c);
    memcpy(before, c, sizeof *c);
    attend_status s =
        c->direction ? attend_backward_once(&c->args, &c->options) : attend_forward_once(&c->args, &c->options);
    if (s != b->status)
      fail_msg("%s: expected %s, got %s: %s", b->what, attend_status_name(b->status), attend_status_name(s),
               attend_error_message());
    assert_says(b->what, b->says);
    if (memcmp(before->memory, c->memory, sizeof c->memory)) fail_msg("%s: something was written", b->what);
  }
  print_message("%zu bad calls\n", sizeof cases / sizeof *cases);
  assert_true(sizeof cases / sizeof *cases >= 80);
  free(c);
  free(before);
}

/* A plan is for one shape: executing it with anything else fails the same way. */
static void a_plan_refuses_other_tensors(void **state) {
  (void)state;
  call *c = malloc(sizeof *c);
  dense(c);
  attend_plan *plan;
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c->args, NULL, &plan), ATTEND_OK);
  size_t bytes = attend_plan_workspace_bytes(plan);
  void *workspace = aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, (bytes + 2 * ATTEND_WORKSPACE_ALIGNMENT) / 256 * 256);
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_OK);
  assert_int_equal(attend_backward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_OPTION);
  assert_says("direction", "plan|backward|forward");
  assert_int_equal(attend_forward(NULL, &c->args, workspace, bytes, NULL), ATTEND_ERROR_NULL);
  assert_int_equal(attend_forward(plan, NULL, workspace, bytes, NULL), ATTEND_ERROR_NULL);
  if (bytes) {
    assert_int_equal(attend_forward(plan, &c->args, NULL, bytes, NULL), ATTEND_ERROR_WORKSPACE);
    assert_int_equal(attend_forward(plan, &c->args, workspace, bytes - 1, NULL), ATTEND_ERROR_WORKSPACE);
    assert_int_equal(attend_forward(plan, &c->args, (char *)workspace + 8, bytes, NULL), ATTEND_ERROR_WORKSPACE);
  }
  SHAPE(q, 2)--;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_SHAPE);
  assert_says("shape", "q|plan's shape");
  SHAPE(q, 2)++;
  mutable(c->args.k)->strides[1]++;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_SHAPE);
  assert_says("strides", "k|plan's strides");
  mutable(c->args.k)->strides[1]--;
  const attend_tensor *mask = c->args.mask;
  c->args.mask = NULL;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_NULL);
  c->args.mask = mask;
  c->args.probs = ADD(ATTEND_F32, B, H, NQ, NK);
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_SHAPE);
  assert_says("new operand", "probs|without it");
  c->args.probs = NULL;
  const attend_tensor *out = c->args.out;
  attend_tensor other = *out; /* in other memory, then with other data */
  c->args.out = &other;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_OK);
  c->args.out = out;
  mutable(out)->shape = NULL;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_NULL);
  *mutable(out) = other;
  mutable(out)->data = (char *)other.data + 1;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_ALIGNMENT);
  assert_says("data", "out|aligned to 4 bytes");
  mutable(out)->data = NULL;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_NULL);
  mutable(out)->data = other.data;
  mutable(out)->byte_offset = (uint64_t)((char *)c->args.v->data - (char *)other.data);
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_OVERLAP);
  assert_says("data", "out|v");
  mutable(out)->byte_offset = 8;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_OK);
  mutable(out)->byte_offset = 0;
  mutable(out)->dtype = ATTEND_F16;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_ERROR_SHAPE);
  assert_says("type", "out|f32|f16");
  *mutable(out) = other;
  assert_int_equal(attend_forward(plan, &c->args, workspace, bytes, NULL), ATTEND_OK);
  attend_plan_destroy(plan);
  attend_plan_destroy(NULL);
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c->args, NULL, NULL), ATTEND_ERROR_NULL);
  assert_int_equal(attend_plan_create((attend_direction)7, &c->args, NULL, &plan), ATTEND_ERROR_OPTION);
  assert_null(plan);
  free(workspace);
  free(c);
}

/* Interleaved memory is legal as long as no element is shared: Q, K, V and out in one [B,N,4,H,D] array. */
static void packed_operands_are_legal(void **state) {
  (void)state;
  enum { N = 6 };
  static float packed[B * N * 4 * H * D];
  int64_t shape[4] = {B, H, N, D}, strides[4] = {N * 4 * H * D, D, 4 * H * D, 1};
  attend_tensor t[4];
  for (int i = 0; i < 4; i++) t[i] = attend_tensor_strided(packed + i * H * D, ATTEND_F32, 4, shape, strides);
  for (int i = 0; i < B * N * 4 * H * D; i++) packed[i] = (float)(i % 7);
  assert_int_equal(attend(&t[0], &t[1], &t[2], NULL, &t[3]), ATTEND_OK);
  t[3].data = packed + 3 * H * D - 1; /* one element of v */
  assert_int_equal(attend(&t[0], &t[1], &t[2], NULL, &t[3]), ATTEND_ERROR_OVERLAP);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_calls_themselves_work),
      cmocka_unit_test(each_bad_call_fails_and_writes_nothing),
      cmocka_unit_test(a_plan_refuses_other_tensors),
      cmocka_unit_test(packed_operands_are_legal),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
