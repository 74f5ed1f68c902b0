/* SPDX-License-Identifier: MIT */
/* Ceilings by loops that do nothing else. Each kernel has its instruction set by a target attribute and runs only where
 * attend_cpu_features() has it. */
#include "ceiling.h"

#include "cli.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { ROUNDS = 1 << 20, CHAINS = 12 };

typedef double (*flops_loop)(int64_t rounds, float *sink); /* returns FLOPs done */

typedef float vec4 __attribute__((vector_size(16)));

static double fma_scalar(int64_t rounds, float *sink) {
  vec4 c[CHAINS], a = {1, 1, 1, 1}, b = {1e-9f, 1e-9f, 1e-9f, 1e-9f};
  for (int i = 0; i < CHAINS; i++) c[i] = b;
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) c[i] = c[i] * a + b;
    __asm__ volatile("" : "+x"(a), "+x"(b));
  }
  for (int i = 1; i < CHAINS; i++) c[0] += c[i];
  *sink += c[0][0];
  return (double)rounds * CHAINS * 8;
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static double fma_avx2(int64_t rounds, float *sink) {
  __m256 c[CHAINS], a = _mm256_set1_ps(1), b = _mm256_set1_ps(1e-9f);
  for (int i = 0; i < CHAINS; i++) c[i] = b;
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) c[i] = _mm256_fmadd_ps(c[i], a, b);
    __asm__ volatile("" : "+x"(a), "+x"(b));
  }
  for (int i = 1; i < CHAINS; i++) c[0] = _mm256_add_ps(c[0], c[i]);
  *sink += _mm256_cvtss_f32(c[0]);
  return (double)rounds * CHAINS * 16;
}

__attribute__((target("avx512f"))) static double fma_avx512(int64_t rounds, float *sink) {
  __m512 c[CHAINS], a = _mm512_set1_ps(1), b = _mm512_set1_ps(1e-9f);
  for (int i = 0; i < CHAINS; i++) c[i] = b;
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) c[i] = _mm512_fmadd_ps(c[i], a, b);
    __asm__ volatile("" : "+v"(a), "+v"(b));
  }
  for (int i = 1; i < CHAINS; i++) c[0] = _mm512_add_ps(c[0], c[i]);
  *sink += _mm512_cvtss_f32(c[0]);
  return (double)rounds * CHAINS * 32;
}

__attribute__((target("avx512f,avx512bf16"))) static double dot_avx512(int64_t rounds, float *sink) {
  __m512 c[CHAINS];
  __m512i a = _mm512_set1_epi32(0x3F803F80), b = _mm512_set1_epi32(0x00010001);
  for (int i = 0; i < CHAINS; i++) c[i] = _mm512_setzero_ps();
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) c[i] = _mm512_dpbf16_ps(c[i], (__m512bh)a, (__m512bh)b);
    __asm__ volatile("" : "+v"(a), "+v"(b));
  }
  for (int i = 1; i < CHAINS; i++) c[0] = _mm512_add_ps(c[0], c[i]);
  *sink += _mm512_cvtss_f32(c[0]);
  return (double)rounds * CHAINS * 64;
}
#endif

static bool has(const char *feature) {
  const char *all = attend_cpu_features(), *at = all;
  size_t n = strlen(feature);
  for (; (at = strstr(at, feature)); at += n)
    if ((at == all || at[-1] == ' ') && (at[n] == 0 || at[n] == ' ')) return true;
  return false;
}

enum { PASSES = 16 }; /* the first warms up */
enum { MEASURE_FLOPS, MEASURE_READ, MEASURE_STREAM };
enum { BYTES = 256 << 20 }; /* a thread: several times what of the last cache is one core's */

typedef struct worker {
  pthread_t thread;
  pthread_mutex_t *gate; /* held until the barrier is there: only then is it known how many meet */
  pthread_barrier_t *meet;
  int what;
  flops_loop loop;
  char *memory;
  double amount; /* FLOPs or bytes of one pass */
  double began[PASSES], ended[PASSES];
  int threads;
  float sink;
} worker;

/* Whole lines and in two ways, since which is faster differs: left to the hardware's prefetcher, and asking for what
 * lies AHEAD bytes further. Single words and no prefetch were measured at half of this. */
enum { AHEAD = 2048, LINE = 64 };

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void read_avx2(worker *w, bool ask) {
  const char *m = w->memory;
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t i = 0; i < BYTES; i += 2 * LINE) {
    if (ask && i + AHEAD + LINE < BYTES) {
      _mm_prefetch(m + i + AHEAD, _MM_HINT_T0);
      _mm_prefetch(m + i + AHEAD + LINE, _MM_HINT_T0);
    }
    for (size_t j = 0; j < 4; j++)
      sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256((const __m256i *)(const void *)(m + i + 32 * j)));
  }
  __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  int words[8]; /* all of them count, or the compiler would not load them */
  _mm256_storeu_si256((__m256i *)(void *)words, all);
  for (int j = 0; j < 8; j++) w->sink += (float)words[j];
}
__attribute__((target("avx2"))) static void stream_avx2(worker *w, bool ask) {
  char *m = w->memory;
  const size_t quarter = BYTES / 4;
  for (size_t i = 0; i < quarter; i += LINE) {
    for (size_t k = 0; ask && k < 3 && i + AHEAD < quarter; k++) _mm_prefetch(m + k * quarter + i + AHEAD, _MM_HINT_T0);
    for (size_t j = i; j < i + LINE; j += 32) {
      __m256i x = _mm256_load_si256((const __m256i *)(const void *)(m + j));
      x = _mm256_xor_si256(x, _mm256_load_si256((const __m256i *)(const void *)(m + quarter + j)));
      x = _mm256_xor_si256(x, _mm256_load_si256((const __m256i *)(const void *)(m + 2 * quarter + j)));
      _mm256_stream_si256((__m256i *)(void *)(m + 3 * quarter + j), x);
    }
  }
  _mm_sfence();
}
#endif

static void pass_over_memory(worker *w, bool ask) {
  w->amount = BYTES;
#if defined(__x86_64__)
  if (has("avx2")) {
    if (w->what == MEASURE_READ)
      read_avx2(w, ask);
    else
      stream_avx2(w, ask);
    return;
  }
#endif
  typedef long long line __attribute__((vector_size(LINE), aligned(LINE)));
  line *m = (line *)(void *)w->memory, sum = {0};
  size_t quarter = BYTES / 4 / sizeof *m;
  if (w->what == MEASURE_STREAM)
    for (size_t i = 0; i < quarter; i++) m[3 * quarter + i] = m[i] ^ m[quarter + i] ^ m[2 * quarter + i];
  else {
    for (size_t i = 0; i < 4 * quarter; i++) {
      if (ask) __builtin_prefetch((const char *)&m[i] + AHEAD);
      sum ^= m[i];
    }
    for (int j = 0; j < 8; j++) w->sink += (float)sum[j];
  }
}

double work_seconds(int threads) {
  struct timespec t;
  clock_gettime(threads > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *work(void *context) {
  worker *w = context;
  pthread_mutex_lock(w->gate);
  pthread_mutex_unlock(w->gate);
  if (!w->meet) return NULL;
  for (int i = 0; i < PASSES; i++) {
    pthread_barrier_wait(w->meet);
    w->began[i] = work_seconds(w->threads);
    if (w->what == MEASURE_FLOPS)
      w->amount = w->loop(ROUNDS, &w->sink);
    else
      pass_over_memory(w, i & 1);
    w->ended[i] = work_seconds(w->threads);
  }
  return NULL;
}

/* The best pass of all threads together, from when the first of them begins until the last has finished. */
static double best_rate(const worker *w, int threads) {
  double best = 0;
  for (int i = 1; i < PASSES; i++) {
    double amount = 0, began = w->began[i], ended = w->ended[i];
    for (int t = 0; t < threads; t++) {
      amount += w[t].amount;
      if (w[t].began[i] < began) began = w[t].began[i];
      if (w[t].ended[i] > ended) ended = w[t].ended[i];
    }
    if (amount / (ended - began) > best) best = amount / (ended - began);
  }
  return best;
}

/* In 1e9 a second; 0 if there are not as many threads, or not the memory. */
static double measure(int threads, int what, flops_loop loop) {
  worker *w = calloc((size_t)threads, sizeof *w);
  pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
  pthread_barrier_t meet;
  double rate = 0;
  int made = 1; /* the caller is the first */
  bool good = w != NULL;
  for (int i = 0; good && i < threads; i++) {
    w[i] = (worker){.what = what, .loop = loop, .meet = &meet, .gate = &gate, .threads = threads};
    if (what == MEASURE_FLOPS) continue;
    good = (w[i].memory = io_memory_new(BYTES)) != NULL; /* as the cases' tensors are */
    if (good) memset(w[i].memory, i + 1, BYTES);
  }
  pthread_mutex_lock(&gate);
  while (good && made < threads && !pthread_create(&w[made].thread, NULL, work, &w[made])) made++;
  bool meeting = good && !pthread_barrier_init(&meet, NULL, (unsigned)made);
  for (int i = 0; good && !meeting && i < made; i++) w[i].meet = NULL;
  pthread_mutex_unlock(&gate);
  if (meeting) work(&w[0]);
  for (int i = 1; good && i < made; i++) pthread_join(w[i].thread, NULL);
  if (meeting && made == threads) rate = best_rate(w, threads) * 1e-9;
  for (int i = 0; w && i < threads; i++) free(w[i].memory);
  if (meeting) pthread_barrier_destroy(&meet);
  free(w);
  return rate;
}

ceilings measure_ceilings(int threads) {
  ceilings c;
  flops_loop fma = fma_scalar, dot = NULL;
#if defined(__x86_64__)
  if (has("avx2")) fma = fma_avx2;
  if (has("avx512f") || has("avx512")) fma = fma_avx512;
  if (has("avx512bf16")) dot = dot_avx512;
#endif
  c.f32_gflops = measure(threads, MEASURE_FLOPS, fma);
  c.bf16_gflops = c.f32_gflops; /* by widening: some cores do their dot products at half the rate of multiply-adds */
  double dots = dot ? measure(threads, MEASURE_FLOPS, dot) : 0;
  if (dots > c.bf16_gflops) c.bf16_gflops = dots;
  c.read_gbytes = measure(threads, MEASURE_READ, NULL);
  c.stream_gbytes = measure(threads, MEASURE_STREAM, NULL);
  return c;
}
