// SPDX-License-Identifier: MIT
// A layer for training in C++: forward and backward of one ragged batch share dropout, buffers and lifetime. Its
// gradient of q is compared with a difference quotient.
#include <attend.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

static void check(attend_status status) {
  if (status != ATTEND_OK) throw std::runtime_error(attend_error_message());
}

class attention {
public:
  attention(std::vector<int64_t> row_offsets, int64_t heads, int64_t dim, double dropout)
      : offsets(std::move(row_offsets)), shape{offsets.back(), heads, dim}, rows{heads, offsets.back()},
        count{static_cast<int64_t>(offsets.size())}, lse(static_cast<size_t>(heads * offsets.back())) {
    options.flags = ATTEND_CAUSAL;
    options.dropout = dropout;
    for (size_t b = 1; b < offsets.size(); b++)
      options.max_q_len = options.max_k_len = std::max(options.max_q_len, offsets[b] - offsets[b - 1]);
    for (attend_tensor *t : {&q, &k, &v, &out, &d_out, &d_q, &d_k, &d_v})
      *t = attend_tensor_of(nullptr, ATTEND_F32, 3, shape);
    l = attend_tensor_of(lse.data(), ATTEND_F32, 2, rows);
    o = attend_tensor_of(offsets.data(), ATTEND_I64, 1, count);
    args.q = &q, args.k = &k, args.v = &v, args.out = &out, args.lse = &l, args.q_offsets = args.k_offsets = &o;
    forward_plan = make(ATTEND_FORWARD);
    args.d_out = &d_out, args.d_q = &d_q, args.d_k = &d_k, args.d_v = &d_v;
    backward_plan = make(ATTEND_BACKWARD);
    bytes = std::max(attend_plan_workspace_bytes(forward_plan.get()), attend_plan_workspace_bytes(backward_plan.get()));
    memory.resize(bytes + ATTEND_WORKSPACE_ALIGNMENT);
    size_t room = memory.size();
    workspace = memory.data();
    std::align(ATTEND_WORKSPACE_ALIGNMENT, bytes, workspace, room);
  }
  attention(const attention &) = delete; // tensors point into it
  attention &operator=(const attention &) = delete;

  // All of [T,H,D]; forward keeps the pointers for backward.
  void forward(float *q_data, float *k_data, float *v_data, float *out_data, uint64_t seed) {
    q.data = q_data, k.data = k_data, v.data = v_data, out.data = out_data;
    args.dropout_seed = seed;
    check(attend_forward(forward_plan.get(), &args, workspace, bytes, nullptr));
  }
  void backward(float *d_out_data, float *d_q_data, float *d_k_data, float *d_v_data) {
    d_out.data = d_out_data, d_q.data = d_q_data, d_k.data = d_k_data, d_v.data = d_v_data;
    check(attend_backward(backward_plan.get(), &args, workspace, bytes, nullptr));
  }

private:
  struct deleter {
    void operator()(attend_plan *plan) const { attend_plan_destroy(plan); }
  };
  using plan_pointer = std::unique_ptr<attend_plan, deleter>;
  plan_pointer make(attend_direction direction) {
    attend_plan *plan = nullptr;
    check(attend_plan_create(direction, &args, &options, &plan));
    return plan_pointer(plan);
  }

  std::vector<int64_t> offsets;
  int64_t shape[3], rows[2], count[1];
  std::vector<float> lse;
  attend_tensor q, k, v, out, d_out, d_q, d_k, d_v, l, o;
  attend_args args{};
  attend_options options{};
  plan_pointer forward_plan, backward_plan;
  size_t bytes;
  std::vector<char> memory;
  void *workspace;
};

int main() try {
  const std::vector<int64_t> sentences = {0, 3, 3, 8, 20}; // 3, 0, 5 and 12 tokens
  const int64_t heads = 2, dim = 8;
  const size_t size = static_cast<size_t>(sentences.back() * heads * dim), chosen = 77;
  std::vector<float> q(size), k(size), v(size), out(size), ones(size, 1), d_q(size), d_k(size), d_v(size);
  for (size_t i = 0; i < size; i++)
    q[i] = std::sin(0.7f * float(i)), k[i] = std::cos(1.3f * float(i)), v[i] = std::sin(2.1f * float(i));
  attention layer(sentences, heads, dim, 0.2);
  auto loss = [&] { // the sum of the outputs
    layer.forward(q.data(), k.data(), v.data(), out.data(), 42);
    return std::accumulate(out.begin(), out.end(), 0.0);
  };
  loss();
  layer.backward(ones.data(), d_q.data(), d_k.data(), d_v.data());
  const float before = q[chosen], step = 1e-2f;
  q[chosen] = before + step;
  const double above = loss();
  q[chosen] = before - step;
  const double below = loss(), quotient = (above - below) / (2 * double(step));
  std::printf("d_q[%zu] %.5f, difference quotient %.5f\n", chosen, double(d_q[chosen]), quotient);
  return std::abs(double(d_q[chosen]) - quotient) < 1e-3 ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
