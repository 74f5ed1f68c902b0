/* SPDX-License-Identifier: MIT */
/* CPU features by CPUID and, since the operating system must save what a kernel uses, by XCR0 and (for AMX) by asking
 * Linux. __builtin_cpu_supports was rejected: gcc 12 knows neither AMX nor AVX512-FP16 there. */
#include "cpu/features.h"

#include "attend.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

static uint64_t enabled_states(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* Since Linux 5.16 a process must ask before it touches tile data. */
static bool tiles_permitted(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

static uint32_t detect(uint32_t cap) {
  enum { AVX_STATE = 0x6, AVX512_STATE = 0xE6, TILE_STATE = 0x60000 };
  unsigned a, b, c, d, a1 = 0, b1, c1, d1 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  if (a >= 1) __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1);
  uint64_t states = enabled_states();
  uint32_t bits = 0;
  if ((states & AVX_STATE) == AVX_STATE && fma && f16c && (b & (1u << 5))) bits |= CPU_AVX2;
  uint32_t foundation = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  if ((bits & CPU_AVX2) && (states & AVX512_STATE) == AVX512_STATE && (b & foundation) == foundation) {
    bits |= CPU_AVX512;
    if (a1 & (1u << 5)) bits |= CPU_AVX512BF16;
    if (d & (1u << 23)) bits |= CPU_AVX512FP16;
    if ((states & TILE_STATE) == TILE_STATE && (d & (1u << 24)) && (cap & CPU_AMX_BF16) && tiles_permitted()) {
      if (d & (1u << 22)) bits |= CPU_AMX_BF16;
      if (d & (1u << 25)) bits |= CPU_AMX_INT8;
      if (a1 & (1u << 21)) bits |= CPU_AMX_FP16;
    }
  }
  return bits;
}
#elif defined(__aarch64__)
static uint32_t detect(uint32_t cap) {
  (void)cap;
  return CPU_NEON;
}
#else
static uint32_t detect(uint32_t cap) {
  (void)cap;
  return 0;
}
#endif

uint32_t attend_cpu_cap(const char *level) {
  static const struct {
    const char *name;
    uint32_t bits;
  } levels[] = {{"scalar", 0},
                {"neon", CPU_NEON},
                {"avx2", CPU_AVX2},
                {"avx512", CPU_AVX2 | CPU_AVX512},
                {"avx512bf16", CPU_AVX2 | CPU_AVX512 | CPU_AVX512BF16 | CPU_AVX512FP16}};
  for (size_t i = 0; level && i < sizeof levels / sizeof levels[0]; i++)
    if (!strcmp(level, levels[i].name)) return levels[i].bits;
  return ~0u; /* amx is the highest level */
}

static const struct {
  uint32_t bit;
  const char *names;
} features[] = {{CPU_AVX2, "avx2 fma f16c"},    {CPU_AVX512, "avx512f avx512dq avx512bw avx512vl"},
                {CPU_AVX512BF16, "avx512bf16"}, {CPU_AVX512FP16, "avx512fp16"},
                {CPU_AMX_BF16, "amx_bf16"},     {CPU_AMX_INT8, "amx_int8"},
                {CPU_AMX_FP16, "amx_fp16"},     {CPU_NEON, "neon"}};

static void list(uint32_t bits, char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (size_t i = 0; i < sizeof features / sizeof features[0]; i++)
    if ((bits & features[i].bit) && used < size)
      used += (size_t)snprintf(text + used, size - used, "%s%s", used ? " " : "", features[i].names);
}

static struct {
  uint32_t machine, allowed;
  char text[160], cap[24];
} found;

static void find(void) {
  const char *level = getenv("ATTEND_CPU");
  uint32_t cap = attend_cpu_cap(level);
  if (cap != ~0u) snprintf(found.cap, sizeof found.cap, "%s", level);
  found.machine = detect(cap);
  found.allowed = found.machine & cap;
  list(found.allowed, found.text, sizeof found.text);
}

static void find_once(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find);
}

uint32_t attend_cpu_feature_bits(void) {
  find_once();
  return found.allowed;
}

const char *attend_cpu_features(void) {
  find_once();
  return found.text;
}

bool attend_cpu_has(uint32_t needs, char *reason, size_t reason_size) {
  find_once();
  uint32_t missing = needs & ~found.allowed;
  if (!missing) return true;
  char names[160];
  if (missing & ~found.machine & attend_cpu_cap(found.cap)) {
    list(missing & ~found.machine & attend_cpu_cap(found.cap), names, sizeof names);
    snprintf(reason, reason_size, "this CPU or its operating system lacks %s", names);
  } else {
    list(missing, names, sizeof names);
    snprintf(reason, reason_size, "ATTEND_CPU=%s excludes %s", found.cap, names);
  }
  return false;
}

attend_cpu_caches attend_cpu_cache_sizes(void) {
  attend_cpu_caches c = {0};
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  c.first = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  c.second = sysconf(_SC_LEVEL2_CACHE_SIZE);
  c.last = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  if (c.first <= 0) c.first = 32 << 10;
  if (c.second <= 0) c.second = 512 << 10;
  if (c.last < c.second) c.last = c.second;
  return c;
}
