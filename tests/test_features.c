/* SPDX-License-Identifier: MIT */
/* CPU features: the cap of ATTEND_CPU, and the reasons given. The environment is read once, so each case is a child. */
#include "attend.h"
#include "cpu/features.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

static void check(bool condition, const char *what) {
  if (condition) return;
  fprintf(stderr, "failed: %s\n", what);
  failures++;
}

static void check_level(const char *level) {
  pid_t child = fork();
  if (!child) {
    setenv("ATTEND_CPU", level, 1);
    char reason[ATTEND_REASON_SIZE] = "";
    uint32_t cap = attend_cpu_cap(level), bits = attend_cpu_feature_bits();
    check((bits & ~cap) == 0, level);
    check(attend_cpu_has(bits, reason, sizeof reason) && !reason[0], "has what it has");
    for (uint32_t bit = 1; bit <= CPU_NEON; bit <<= 1) {
      reason[0] = 0;
      bool has = attend_cpu_has(bit, reason, sizeof reason);
      check(has == ((bits & bit) != 0), "one feature");
      check(has == (reason[0] == 0), "a reason exactly when it is missing");
      if (!(cap & bit)) check(strstr(reason, level) != NULL, "the cap is named");
    }
    exit(failures != 0);
  }
  int status = 1;
  check(child > 0 && waitpid(child, &status, 0) == child && status == 0, level);
}

int main(void) {
  const char *levels[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
  for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) check_level(levels[i]);
  check(attend_cpu_cap(NULL) == ~0u && attend_cpu_cap("unknown") == ~0u, "no cap");
  check(!strcmp(attend_cpu_features(), attend_cpu_features()), "one text");
  attend_cpu_caches caches = attend_cpu_cache_sizes();
  check(caches.first >= 8 << 10 && caches.second >= caches.first && caches.last >= caches.second, "cache sizes");
  printf("features: %s\n", attend_cpu_features());
  return failures != 0;
}
