// SPDX-License-Identifier: MIT
// Generating in C++: a paged cache of keys and values grows token by token, and the library runs on threads of the
// program's own, through the parallel_for hook. The last token's output is compared with one call over all tokens.
#include <attend.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

static void check(attend_status status) {
  if (status != ATTEND_OK) throw std::runtime_error(attend_error_message());
}

// A few threads that wait for work. The caller of run() works too.
class workers {
public:
  explicit workers(int size) {
    for (int i = 0; i < size; i++) threads.emplace_back([this] { serve(); });
  }
  ~workers() {
    {
      std::lock_guard<std::mutex> hold(lock);
      stopped = true;
    }
    changed.notify_all();
    for (std::thread &t : threads) t.join();
  }
  void run(int tasks, std::function<void(int)> work) {
    std::unique_lock<std::mutex> hold(lock);
    task = std::move(work), next = 0, count = tasks;
    changed.notify_all();
    take(hold);
    finished.wait(hold, [this] { return busy == 0; });
  }
  int regions = 0;

private:
  void take(std::unique_lock<std::mutex> &hold) {
    busy++;
    while (next < count) {
      const int index = next++;
      hold.unlock();
      task(index);
      hold.lock();
    }
    if (--busy == 0) finished.notify_all();
  }
  void serve() {
    std::unique_lock<std::mutex> hold(lock);
    for (;;) {
      changed.wait(hold, [this] { return stopped || next < count; });
      if (stopped) return;
      take(hold);
    }
  }
  std::mutex lock;
  std::condition_variable changed, finished;
  std::function<void(int)> task;
  int next = 0, count = 0, busy = 0;
  bool stopped = false;
  std::vector<std::thread> threads;
};

static void parallel_for(void *user, int count, void (*task)(void *, int), void *context) {
  workers *pool = static_cast<workers *>(user);
  pool->regions++;
  pool->run(count, [=](int index) { task(context, index); });
}

int main() try {
  const int64_t heads = 8, kv_heads = 2, dim = 32, block = 16, tokens = 500, blocks = (tokens + block - 1) / block;
  std::vector<float> k_pool(static_cast<size_t>(blocks * kv_heads * block * dim)), v_pool(k_pool.size());
  std::vector<float> q(static_cast<size_t>(heads * dim)), out(q.size()), expected(q.size());
  std::vector<float> k(static_cast<size_t>(kv_heads * tokens * dim)), v(k.size());
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  for (size_t i = 0; i < table.size(); i++) table[i] = static_cast<int32_t>(table.size() - 1 - i); // any order
  int64_t length = 0;

  workers pool(3);
  attend_hooks hooks = {};
  hooks.user = &pool, hooks.parallel_for = parallel_for;
  attend_options options = {};
  options.flags = ATTEND_CAUSAL, options.threads = 4, options.hooks = &hooks;

  const int64_t q_shape[] = {1, heads, 1, dim}, pool_shape[] = {blocks, kv_heads, block, dim},
                table_shape[] = {1, blocks};
  const int64_t one[] = {1}, k_shape[] = {1, kv_heads, tokens, dim};
  attend_tensor Q = attend_tensor_of(q.data(), ATTEND_F32, 4, q_shape),
                O = attend_tensor_of(out.data(), ATTEND_F32, 4, q_shape);
  attend_tensor K = attend_tensor_of(k_pool.data(), ATTEND_F32, 4, pool_shape);
  attend_tensor V = attend_tensor_of(v_pool.data(), ATTEND_F32, 4, pool_shape);
  attend_tensor T = attend_tensor_of(table.data(), ATTEND_I32, 2, table_shape);
  attend_tensor L = attend_tensor_of(&length, ATTEND_I64, 1, one);
  attend_args args = {};
  args.q = &Q, args.k = &K, args.v = &V, args.out = &O, args.block_table = &T, args.kv_len = &L;

  for (int64_t t = 0; t < tokens; t++) { // a model would project the token to q, k and v
    for (size_t i = 0; i < q.size(); i++) q[i] = std::sin(0.1f * float(t) + float(i));
    for (int64_t h = 0; h < kv_heads; h++)
      for (int64_t c = 0; c < dim; c++) {
        const float key = std::cos(0.3f * float(t + c) + float(h)), value = std::sin(0.2f * float(t * c) - float(h));
        const size_t at =
            static_cast<size_t>(((table[size_t(t / block)] * kv_heads + h) * block + t % block) * dim + c);
        k_pool[at] = key, v_pool[at] = value;
        k[static_cast<size_t>((h * tokens + t) * dim + c)] = key,
                                                       v[static_cast<size_t>((h * tokens + t) * dim + c)] = value;
      }
    length = t + 1;
    check(attend_forward_once(&args, &options));
  }

  attend_tensor all_k = attend_tensor_of(k.data(), ATTEND_F32, 4, k_shape),
                all_v = attend_tensor_of(v.data(), ATTEND_F32, 4, k_shape);
  attend_tensor all_out = attend_tensor_of(expected.data(), ATTEND_F32, 4, q_shape);
  check(attend(&Q, &all_k, &all_v, nullptr, &all_out));
  float worst = 0;
  for (size_t i = 0; i < out.size(); i++) worst = std::max(worst, std::abs(out[i] - expected[i]));
  std::printf("%d tokens, %d parallel regions on own threads; last token differs by %g\n", int(tokens), pool.regions,
              double(worst));
  return worst < 1e-5f && pool.regions > 0 ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
