/* SPDX-License-Identifier: MIT */
/* Forward on short sequences in f32: one warp. */
#ifndef ATTEND_CUDA_SHORT_LANES_FORWARD_CUH
#define ATTEND_CUDA_SHORT_LANES_FORWARD_CUH

#include "short_lanes.cuh"

WORD void lanes_forward_pair(const attend_problem &p, const short_sequence &s, float *memory, const lanes_kind kind) {
  const int head_dim = (int)p.head_dim, v_dim = (int)p.v_dim, matrix = kind.rows * SHORT_LANES_STRIDE;
  const int chunks = kind.general ? (head_dim + 63) / 64 : 1, v_chunks = kind.general ? (v_dim + 63) / 64 : 1;
  float *q = memory, *k = memory + matrix, *v = memory + 2 * matrix, factor[8];
  lanes_scores x = {};
  for (int chunk = 0; chunk < chunks; chunk++) {
    if (chunk) word_sync_warp();
    lanes_ask(q, s.q, s.q_len, chunk, head_dim, kind);
    lanes_ask(k, s.k, s.k_len, chunk, head_dim, kind);
    if (!chunk) lanes_ask(v, s.v, s.k_len, 0, v_dim, kind);
    lanes_wait();
    int columns = head_dim - 64 * chunk;
    lanes_dots(x.w, q, k, columns < 64 ? columns : 64, kind);
  }
  lanes_softmax(x, p, s, kind);
  UNROLLED
  for (int r = 0; r < kind.rows / 4; r++) {
    int i = lanes_y() + 4 * r;
    factor[r] = x.total[r] == 0 ? 0 : 1 / x.total[r];
    if (lanes_x() == 0 && i < (int)s.q_len)
      short_store_lse(s, i, x.total[r] == 0 ? -INFINITY : x.top[r] + logf(x.total[r]));
    uint32_t kept = kind.general && p.dropout_threshold ? lanes_kept(p, s, r) : 15;
    if (kind.general) factor[r] *= (float)p.dropout_scale;
    UNROLLED
    for (int c = 0; c < kind.rows / 8; c++)
      x.w[r][c] = !lanes_seen(x, r, c) ? lanes_hidden() : kept >> c & 1 ? x.w[r][c] : 0;
  }
  lanes_put(q, x.w, false, kind);
  for (int chunk = 0; chunk < v_chunks; chunk++) {
    if (chunk) {
      word_sync_warp();
      lanes_ask(v, s.v, s.k_len, chunk, v_dim, kind);
      lanes_wait();
    }
    float sum[8][8] = {};
    lanes_fresh_values(sum, q, v, s.k_len, false, kind);
    lanes_store(s.out, sum, factor, s.q_len, chunk, v_dim, false, kind);
  }
}

WORD void lanes_forward(const cuda_call &call, float *memory, const lanes_kind kind) {
  const attend_problem &p = call.problem;
  const uint32_t warp = threadIdx.x >> 5, number = blockIdx.x * SHORT_LANES_WARPS(kind.rows) + warp;
  if (number >= (uint32_t)(p.batch * p.heads)) return;
  short_sequence s = short_slice(call, number, false, 0, kind.general);
  memory += warp * 3 * kind.rows * SHORT_LANES_STRIDE;
  const lanes_kind lower = {kind.rows, false, true};
  if (!kind.general && p.causal && s.off <= 0)
    lanes_forward_pair(p, s, memory, lower);
  else
    lanes_forward_pair(p, s, memory, kind);
}

#endif
