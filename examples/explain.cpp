// SPDX-License-Identifier: MIT
// From C++: a plan owned by a unique_ptr, errors as exceptions, and an explanation of which kernel serves and why.
#include <attend.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

static void check(attend_status status) {
  if (status != ATTEND_OK) throw std::runtime_error(attend_error_message());
}

struct plan_deleter {
  void operator()(attend_plan *plan) const { attend_plan_destroy(plan); }
};

int main() try {
  const int64_t shape[] = {2, 8, 128, 64}; // [B,H,N,D], in [B,N,H,D] memory
  const int64_t strides[] = {128 * 8 * 64, 64, 8 * 64, 1};
  std::vector<float> q(2 * 8 * 128 * 64, 0.5f), k(q), v(q), out(q.size());
  attend_tensor Q = attend_tensor_strided(q.data(), ATTEND_F32, 4, shape, strides);
  attend_tensor K = attend_tensor_strided(k.data(), ATTEND_F32, 4, shape, strides);
  attend_tensor V = attend_tensor_strided(v.data(), ATTEND_F32, 4, shape, strides);
  attend_tensor O = attend_tensor_strided(out.data(), ATTEND_F32, 4, shape, strides);
  attend_args args = {};
  args.q = &Q, args.k = &K, args.v = &V, args.out = &O;
  attend_options options = {};
  options.flags = ATTEND_CAUSAL | ATTEND_WINDOW;
  options.window_left = 32, options.window_right = 0;

  attend_explanation why = {};
  why.size = sizeof why;
  check(attend_explain(ATTEND_FORWARD, &args, &options, &why));
  for (int64_t i = 0; i < why.candidate_count && i < ATTEND_MAX_CANDIDATES; i++)
    std::printf("%-32s %s\n", why.candidates[i].kernel, why.candidates[i].chosen ? "chosen" : why.candidates[i].reason);

  attend_plan *made = nullptr;
  check(attend_plan_create(ATTEND_FORWARD, &args, &options, &made));
  std::unique_ptr<attend_plan, plan_deleter> plan(made);
  std::size_t bytes = attend_plan_workspace_bytes(plan.get());
  std::vector<char> memory(bytes + ATTEND_WORKSPACE_ALIGNMENT);
  void *workspace = memory.data();
  std::size_t room = memory.size();
  std::align(ATTEND_WORKSPACE_ALIGNMENT, bytes, workspace, room);
  check(attend_forward(plan.get(), &args, workspace, bytes, nullptr));
  return out[0] > 0.499f && out[0] < 0.501f ? 0 : 1; // the mean of equal values
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
