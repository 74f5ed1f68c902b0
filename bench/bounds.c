/* SPDX-License-Identifier: MIT */
/* What bounds the kernels where docs/performance/cpu.md says that they fall short: loops over such memory with such
 * arithmetic and nothing else. One thread, its processor time, the best of several passes, taken by turns; prints
 * tables in Markdown.
 *
 *   make -C bench bounds                           # all of them
 *   make -C bench bounds CASES="pipes decoding"    # or requests, short */
#include <stdio.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define WORD static inline __attribute__((always_inline, target("avx512f")))
#define LOOP static __attribute__((noinline, target("avx512f")))

typedef __m512 lanes;

enum { LINE = 64, PASSES = 15 };

static const size_t TENSOR = 128 << 20; /* bytes */
static char *memory;                    /* two of these, zeros, in huge pages */
static volatile float sink;

static double nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}
/* Of loops number 0 … count - 1. */
static void measure(void (*loop)(int), int count, double *best) {
  for (int pass = 0; pass < PASSES; pass++)
    for (int i = 0; i < count; i++) {
      double begin = nanoseconds();
      loop(i);
      double time = nanoseconds() - begin;
      if (pass == 0 || time < best[i]) best[i] = time;
    }
}

/* A load that the compiler leaves in its place, by two halves, as the kernels have it: prefetchers follow sooner. */
WORD lanes load_next(const char *p) {
  lanes x;
  __asm__ volatile("vmovups %1, %t0\n\tvinsertf64x4 $1, %2, %0, %0"
                   : "=&v"(x)
                   : "m"(*(const __m256_u *)(const void *)p), "m"(*(const __m256_u *)(const void *)(p + LINE / 2)));
  return x;
}
WORD void clear(lanes *x, int count) {
#pragma GCC unroll 32
  for (int i = 0; i < count; i++) x[i] = _mm512_setzero_ps();
}
WORD void keep(const lanes *x, int count) {
  lanes sum = x[0];
#pragma GCC unroll 32
  for (int i = 1; i < count; i++) sum = _mm512_add_ps(sum, x[i]);
  sink = _mm512_cvtss_f32(sum);
}
/* So many multiply-adds, a constant, in 8 sums; they stay where they are among loads and requests. */
WORD void multiply(lanes x[8], int count, lanes y) {
#pragma GCC unroll 32
  for (int i = 0; i < count; i++) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(x[i % 8]) : "v"(y));
}

/* ---- Requests: which of them arrive ------------------------------------------------------------------------------ */

/* The core has few buffers for lines that miss its first-level cache, and a request by software that finds none is
 * dropped. Asked for are lines of three tensors in turns, into the second-level cache; then all are read, each when the
 * one before has come, in an order that no prefetcher follows: that tells how many were there. */
enum { ASKED = 3 * 1536, ASKERS = 6 };

static size_t order[ASKED]; /* bytes from the beginning of a region */

WORD void ask(const char *line, int between) { /* a constant: multiply-adds from each line to the next */
  lanes x[3 * 8];
  clear(x, 3 * 8);
  for (int i = 0; i < ASKED / 3; i++, line += LINE)
#pragma GCC unroll 32
    for (size_t tensor = 0; tensor < 3; tensor++) {
      __builtin_prefetch(line + tensor * (TENSOR / 2), 0, 2);
      multiply(x + tensor * 8, between, _mm512_setzero_ps());
    }
  keep(x, 3 * 8);
}
LOOP void ask_0(const char *region) { ask(region, 0); }
LOOP void ask_2(const char *region) { ask(region, 2); }
LOOP void ask_4(const char *region) { ask(region, 4); }
LOOP void ask_5(const char *region) { ask(region, 5); }
LOOP void ask_6(const char *region) { ask(region, 6); }
LOOP void ask_8(const char *region) { ask(region, 8); }

static double read_in_disorder(const char *region) {
  size_t x = 0; /* as the memory holds, which compilers do not know */
  double begin = nanoseconds();
  for (int i = 0; i < ASKED; i++) x = *(const volatile size_t *)(const void *)(region + order[i] + x);
  return nanoseconds() - begin;
}
static void show_requests(void) {
  static void (*const askers[ASKERS])(const char *) = {ask_0, ask_2, ask_4, ask_5, ask_6, ask_8};
  const char *region = memory;
  uint32_t random = 1;
  for (size_t i = 0; i < ASKED; i++) { /* a shuffle */
    size_t at = (random = random * 1664525 + 1013904223) % (i + 1);
    order[i] = order[at], order[at] = i % 3 * (TENSOR / 2) + i / 3 * LINE;
  }
  double asked[ASKERS], read[ASKERS + 2]; /* the last two: nothing is there, all is */
  for (int pass = 0; pass < PASSES; pass++)
    for (int i = 0; i < ASKERS + 2; i++) {
      if (i <= ASKERS) region += ASKED / 3 * LINE;
      double begin = nanoseconds();
      if (i < ASKERS) askers[i](region);
      double end = nanoseconds();
      while (nanoseconds() < end + 5000) {
      } /* what is under way arrives */
      double time = read_in_disorder(region);
      if (i < ASKERS && (pass == 0 || end - begin < asked[i])) asked[i] = end - begin;
      if (pass == 0 || time < read[i]) read[i] = time;
    }
  printf("| a line asked for every ... ns | arrived |\n|---|---|\n");
  for (int i = 0; i < ASKERS; i++)
    printf("| %.2f | %.0f%% |\n", asked[i] / ASKED, 100 * (read[ASKERS] - read[i]) / (read[ASKERS] - read[ASKERS + 1]));
}

/* ---- Pipes: what goes beside multiply-adds, and what backward therefore takes ------------------------------------ */

enum { ROUNDS = 1 << 17 };

typedef struct mix {
  int stores, within, across, broadcasts, compares; /* beside 16 multiply-adds, constants: at most 4, else 16 */
} mix;

WORD void mixed(mix m) {
  float *row = (float *)(void *)memory;
  lanes x[16], y[8], z = _mm512_setzero_ps();
  clear(x, 16);
  clear(y, 8);
  for (int round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      x[i] = _mm512_fmadd_ps(z, z, x[i]);
      if (i % 4 == 3 && i / 4 < m.stores) _mm512_store_ps(row + i * 16, x[i]);
      if (i < m.within) y[i % 8] = _mm512_unpacklo_ps(y[i % 8], y[i % 8]);
      if (i < m.across) y[i % 8] = _mm512_shuffle_f32x4(y[i % 8], y[i % 8], 0x4E);
      if (i < m.broadcasts) y[i % 8] = _mm512_set1_ps(row[i]);
      if (i < m.compares) __asm__ volatile("vcmpeqps %0, %0, %%k1" : : "v"(z) : "k1");
      __asm__ volatile("" : "+v"(x[i]), "+v"(y[i % 8]) : : "memory");
    }
  }
  keep(x, 16);
  keep(y, 8);
}
LOOP void fmas(void) { mixed((mix){0}); }
LOOP void fmas_stores(void) { mixed((mix){.stores = 4}); }
LOOP void fmas_within(void) { mixed((mix){.within = 16}); }
LOOP void fmas_across(void) { mixed((mix){.across = 16}); }
LOOP void fmas_broadcasts(void) { mixed((mix){.broadcasts = 16}); }
LOOP void fmas_compares(void) { mixed((mix){.compares = 16}); }
LOOP void three_cycles(void) {
  uint64_t x = 3;
  for (int i = 0; i < ROUNDS; i++) __asm__ volatile("imul %0, %0" : "+r"(x));
}

static const struct {
  const char *name;
  void (*loop)(void);
} pipes[] = {{"", three_cycles},
             {"16 multiply-adds", fmas},
             {"and 4 stores", fmas_stores},
             {"and 16 shuffles within 128 bits", fmas_within},
             {"and 16 shuffles across 128 bits", fmas_across},
             {"and 16 broadcasts from memory", fmas_broadcasts},
             {"and 16 comparisons", fmas_compares}};
static void pipe(int i) { pipes[i].loop(); }

static void show_pipes(void) {
  enum { COUNT = sizeof pipes / sizeof *pipes };
  double best[COUNT];
  measure(pipe, COUNT, best);
  printf("| vectors of 16 floats, at %.2f GHz | cycles |\n|---|---|\n", 3 * ROUNDS / best[0]);
  for (int i = 1; i < COUNT; i++) printf("| %s | %.1f |\n", pipes[i].name, 3 * best[i] / best[0]);
  printf("\n| backward, causal pair, D = 64, f32 | multiply-adds | ns |\n|---|---|---|\n");
  for (int n = 5; n <= 16; n += n == 5 ? 3 : 8) {
    const int products = 5 * 4 * n * (n + 1) / 2;
    printf("| N = %d | %d | %.0f |\n", n, products, products * best[1] / ROUNDS / 16);
  }
}

/* ---- Short sequences: what 16 tokens of 64 floats take forward --------------------------------------------------- */

/* A causal pair has 64 lines of each of Q, K, V and O, and 1088 vectors of multiply-adds, half of them for scores. Four
 * rows at a time, with all before them, it has more to multiply from block to block: 5, 13, 21, 29 for as many new
 * lines. */
enum { PAIRS = 8192, PAIR = 64 * LINE, EVEN = 17 };

/* Asks for lines that follow each other, and again for those of two pairs before; if `apart`, the next address is known
 * an addition and two multiplications, seven cycles, after that of a line. */
WORD const char *ask_lines(const char *line, int count, bool apart, uintptr_t one) {
#pragma GCC unroll 4
  for (int i = 0; i < count; i++) {
    __builtin_prefetch(line, 0, 2);
    __builtin_prefetch(line - 2 * PAIR, 0, 2);
    uintptr_t next = (uintptr_t)line + LINE;
    if (apart) {
      next *= one;
      __asm__("" : "+r"(next));
      next *= one;
    }
    line = (const char *)next;
  }
  return line;
}
typedef struct forward_case {
  bool bytes;      /* from memory, and O is stored */
  bool multiplies; /* and has what a pair has of multiply-adds */
  bool tiles;      /* in blocks of four rows, whose lines are read side by side */
  bool feed;       /* one stream of requests, in the order of memory, four pairs ahead */
  bool apart;      /* not at once */
} forward_case;    /* constants */

WORD void forward(forward_case f) {
  uintptr_t one = 1;
  __asm__("" : "+r"(one)); /* compilers are not to know it */
  lanes x[8];
  clear(x, 8);
  for (size_t pair = 0; pair < PAIRS; pair++) {
    const char *q = memory + (f.bytes ? pair * PAIR : 0), *k = q + TENSOR / 2, *v = k + TENSOR / 2,
               *ahead = q + 4 * PAIR;
    char *o = memory + 3 * (TENSOR / 2) + pair * PAIR;
#pragma GCC unroll 4
    for (int block = 0; block < 4; block++, q += 16 * LINE, k += 16 * LINE) {
      if (block == 2) ahead += TENSOR / 2 - PAIR;
      for (int i = 0; i < 8; i++) { /* two lines of each */
        const int at = LINE * (f.tiles ? i / 2 + i % 2 * 8 : 2 * i), next = at + LINE * (f.tiles ? 4 : 1);
        if (f.feed) ahead = ask_lines(ahead, 4, f.apart, one);
        lanes y = _mm512_max_ps(load_next(q + at), load_next(q + next));
        y = _mm512_max_ps(_mm512_max_ps(load_next(k + at), load_next(k + next)), y);
        if (f.multiplies) multiply(x, f.tiles ? 5 + 8 * block : EVEN, y);
      }
    }
    ahead += TENSOR / 2 - PAIR;
#pragma GCC unroll 4
    for (int block = 0; block < 4; block++)
      for (int i = 0; i < 8; i++, v += 2 * LINE, o += 2 * LINE) {
        if (f.feed) ahead = ask_lines(ahead, 2, f.apart, one);
        lanes y = load_next(v), z = load_next(v + LINE);
        if (f.multiplies) multiply(x, f.tiles ? 5 + 8 * block : EVEN, _mm512_max_ps(y, z));
        if (f.bytes) _mm512_stream_ps((float *)(void *)o, y), _mm512_stream_ps((float *)(void *)(o + LINE), z);
      }
  }
  _mm_sfence();
  keep(x, 8);
}
LOOP void forward_fmas(void) { forward((forward_case){.multiplies = true, .tiles = true}); }
LOOP void forward_bytes(void) { forward((forward_case){.bytes = true}); }
LOOP void forward_even(void) { forward((forward_case){.bytes = true, .multiplies = true}); }
LOOP void forward_tiles(void) { forward((forward_case){.bytes = true, .multiplies = true, .tiles = true}); }
LOOP void forward_fed(void) { forward((forward_case){.bytes = true, .multiplies = true, .tiles = true, .feed = true}); }
LOOP void forward_apart(void) {
  forward((forward_case){.bytes = true, .multiplies = true, .tiles = true, .feed = true, .apart = true});
}

static const struct {
  const char *name;
  void (*loop)(void);
} forwards[] = {{"multiply-adds alone", forward_fmas},
                {"reads and streamed stores alone", forward_bytes},
                {"both, evenly, row by row", forward_even},
                {"both, in tiles of four rows", forward_tiles},
                {"the same, asked for in the order of memory", forward_fed},
                {"the same, each line seven cycles after the last", forward_apart}};
static void short_forward(int i) { forwards[i].loop(); }

static void show_short(void) {
  enum { COUNT = sizeof forwards / sizeof *forwards };
  double best[COUNT];
  measure(short_forward, COUNT, best);
  printf("| forward, causal pair, N = 16, D = 64, f32 | ns |\n|---|---|\n");
  for (int i = 0; i < COUNT; i++) printf("| %s | %.0f |\n", forwards[i].name, best[i] / PAIRS);
}

/* ---- Decoding: K and V by themselves, and in turns --------------------------------------------------------------- */

enum { HEADS = 8, KEYS = 32768, GROUP = 4, D = 128, VECTORS = D / 16, ROW = 4 * D }; /* GROUP rows of Q a head */

static float query[HEADS * GROUP * D] __attribute__((aligned(LINE))), weight[GROUP];
static float out[HEADS * GROUP * D] __attribute__((aligned(LINE)));

/* Rows of K or V, one after the other in memory, of one head or of 8 in turns ([B,N,H,D] memory). */
typedef void work(const char *row, int rows, int heads);

LOOP void read_rows(const char *row, int rows, int heads) {
  lanes sum = _mm512_setzero_ps();
  (void)heads;
  for (int i = 0; i < rows * VECTORS; i++, row += LINE) sum = _mm512_max_ps(load_next(row), sum);
  keep(&sum, 1);
}
/* Products of `side` keys, a constant, with 4 rows of Q, each left as a vector: adding that up is not of the memory. */
WORD void scores_of(const char *row, int rows, int heads, int side) {
#pragma GCC unroll 1
  for (int i = 0; i < rows; i += side, row += side * ROW) {
    const float *q = query + i % heads * (GROUP * D);
    lanes sum[GROUP * 4];
    clear(sum, GROUP * side);
#pragma GCC unroll 32
    for (int c = 0; c < VECTORS; c++)
#pragma GCC unroll 32
      for (int s = 0; s < side; s++) {
        lanes x = load_next(row + s * ROW + c * LINE);
#pragma GCC unroll 32
        for (int g = 0; g < GROUP; g++)
          sum[g * side + s] = _mm512_fmadd_ps(x, _mm512_load_ps(q + g * D + 16 * c), sum[g * side + s]);
      }
#pragma GCC unroll 32
    for (int j = 0; j < GROUP * side; j++) _mm512_store_ps(out + (i % 4 * GROUP + j) * 16, sum[j]);
  }
}
LOOP void scores(const char *row, int rows, int heads) { scores_of(row, rows, heads, 1); }
LOOP void scores_beside(const char *row, int rows, int heads) { scores_of(row, rows, heads, 4); }
/* O += P V, two rows of O in registers: hence two passes over 8 keys. */
LOOP void values(const char *row, int rows, int heads) {
  (void)heads;
  for (int i = 0; i < rows; i += 8, row += 8 * ROW)
#pragma GCC unroll 1
    for (int g = 0; g < GROUP; g += 2) {
      lanes sum[2 * VECTORS];
#pragma GCC unroll 32
      for (int j = 0; j < 2 * VECTORS; j++) sum[j] = _mm512_load_ps(out + g * D + 16 * j);
#pragma GCC unroll 1
      for (int k = 0; k < 8; k++)
#pragma GCC unroll 32
        for (int c = 0; c < VECTORS; c++) {
          lanes y = load_next(row + k * ROW + c * LINE);
          sum[c] = _mm512_fmadd_ps(_mm512_set1_ps(weight[g]), y, sum[c]);
          sum[VECTORS + c] = _mm512_fmadd_ps(_mm512_set1_ps(weight[g + 1]), y, sum[VECTORS + c]);
        }
#pragma GCC unroll 32
      for (int j = 0; j < 2 * VECTORS; j++) _mm512_store_ps(out + g * D + 16 * j, sum[j]);
    }
}
/* O += P V, O of all heads in the first-level cache. */
LOOP void values_by_key(const char *row, int rows, int heads) {
#pragma GCC unroll 1
  for (int i = 0; i < rows; i++, row += ROW) {
    float *o = out + i % heads * (GROUP * D);
#pragma GCC unroll 32
    for (int c = 0; c < VECTORS; c++) {
      lanes y = load_next(row + c * LINE);
#pragma GCC unroll 32
      for (int g = 0; g < GROUP; g++) {
        float *at = o + g * D + 16 * c;
        _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_set1_ps(weight[g]), y, _mm512_load_ps(at)));
      }
    }
  }
}

static const struct {
  const char *name;
  work *k, *v;
  int heads, turn; /* rows of K, then of V */
} decodings[] = {{"K or V, read alone", read_rows, NULL, 1, KEYS},
                 {"K, key by key", scores, NULL, 1, KEYS},
                 {"K, 4 keys side by side", scores_beside, NULL, 1, KEYS},
                 {"V, two rows of P by 8 keys", NULL, values, 1, KEYS},
                 {"K, key by key, [B,N,H,D]", scores, NULL, HEADS, KEYS},
                 {"V, key by key, [B,N,H,D]", NULL, values_by_key, HEADS, KEYS},
                 {"K and V, all keys of a head in turns", scores, values, 1, KEYS},
                 {"4096 keys in turns", scores, values, 1, 4096},
                 {"1024 keys in turns", scores, values, 1, 1024},
                 {"256 keys in turns", scores, values, 1, 256}};
enum { DECODINGS = sizeof decodings / sizeof *decodings };

/* Number i; past the last the same again, but 16 rows over and over, which the first-level cache holds. */
static void decode(int i) {
  const bool cached = i >= DECODINGS;
  i %= DECODINGS;
  const int turn = cached ? 16 : decodings[i].turn;
  for (int j = 0; j < HEADS * KEYS; j += turn) {
    const char *row = memory + (cached ? 0 : (size_t)j * ROW);
    if (decodings[i].k) decodings[i].k(row, turn, decodings[i].heads);
    if (decodings[i].v) decodings[i].v(row + TENSOR, turn, decodings[i].heads);
  }
}
static void show_decoding(void) {
  double best[2 * DECODINGS];
  measure(decode, 2 * DECODINGS, best);
  printf("| decoding, 32 heads on 8, 32768 keys, D = 128, f32 | ms | GB/s | in the cache, ms |\n|---|---|---|---|\n");
  for (int i = 0; i < DECODINGS; i++)
    printf("| %s | %.2f | %.1f | %.2f |\n", decodings[i].name, 1e-6 * best[i],
           (double)TENSOR * (decodings[i].k && decodings[i].v ? 2 : 1) / best[i], 1e-6 * best[i + DECODINGS]);
}

/* ------------------------------------------------------------------------------------------------------------------ */

static const struct {
  const char *name;
  void (*show)(void);
} cases[] = {{"requests", show_requests}, {"pipes", show_pipes}, {"short", show_short}, {"decoding", show_decoding}};
enum { CASES = sizeof cases / sizeof *cases };

int main(int count, char **names) {
  bool chosen[CASES] = {false};
  for (int i = 1; i < count; i++) {
    int at = 0;
    while (at < CASES && strcmp(names[i], cases[at].name) != 0) at++;
    if (at == CASES) {
      const bool help = !strcmp(names[i], "--help");
      fprintf(help ? stdout : stderr, "usage: bounds [requests] [pipes] [short] [decoding]\n\nWithout a name: all.\n");
      return help ? 0 : 2;
    }
    chosen[at] = true;
  }
  if (!__builtin_cpu_supports("avx512f")) {
    printf("nothing to measure: the loops need AVX-512\n");
    return 0;
  }
  const size_t huge = 2 << 20, bytes = 2 * TENSOR + huge;
  if (!(memory = aligned_alloc(huge, bytes))) return 1;
  madvise(memory, bytes, MADV_HUGEPAGE);
  memset(memory, 0, bytes);
  memcpy(query, memory, sizeof query); /* zeros too, which compilers must not know */
  memcpy(weight, memory, sizeof weight);
  for (int i = 0; i < CASES; i++) {
    if (count > 1 && !chosen[i]) continue;
    cases[i].show();
    printf("\n");
    fflush(stdout);
  }
  free(memory);
  return 0;
}
#else
int main(void) {
  printf("nothing to measure: the loops need AVX-512\n");
  return 0;
}
#endif
