/* SPDX-License-Identifier: MIT */
/* The dropout draw: Philox against the answers its authors publish, and the test vectors of docs/semantics.md, read from
 * that page, so that what is published is what is computed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "attend.h"

/* Random123's kat_vectors, philox4x32 with 10 rounds. */
static void philox_known_answers(void **state) {
  (void)state;
  static const struct {
    uint32_t counter[4], key[2], out[4];
  } known[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t n = 0; n < sizeof known / sizeof known[0]; n++) {
    uint32_t out[4];
    attend_philox(known[n].counter, known[n].key, out);
    for (int w = 0; w < 4; w++) assert_int_equal(out[w], known[n].out[w]);
  }
}

static void published_vectors(void **state) {
  (void)state;
  FILE *page = fopen(ATTEND_SOURCE_DIR "/docs/semantics.md", "r");
  assert_non_null(page);
  char line[256];
  int count = 0;
  while (fgets(line, sizeof line, page)) {
    unsigned long long seed, offset, i, j;
    unsigned b, h, draw;
    if (sscanf(line, "| %llu | %llu | %u | %u | %llu | %llu | %u |", &seed, &offset, &b, &h, &i, &j, &draw) != 7) continue;
    count++;
    assert_int_equal(attend_dropout_draw(seed, offset, b, h, i, j), draw);
  }
  fclose(page);
  assert_true(count >= 8);
}

static void thresholds(void **state) {
  (void)state;
  assert_int_equal(attend_dropout_threshold(0.0), 0);
  assert_int_equal(attend_dropout_threshold(0.1), 6554);
  assert_int_equal(attend_dropout_threshold(0.5), 32768);
  /* Over many elements the share kept is what was asked for: 5 standard deviations of 65536 draws. */
  int kept = 0;
  for (uint64_t i = 0; i < 256; i++)
    for (uint64_t j = 0; j < 256; j++) kept += attend_dropout_keep(7, 0, 0.1, 1, 2, i, j);
  assert_in_range(kept, 58982 - 384, 58982 + 384);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(philox_known_answers),
    cmocka_unit_test(published_vectors),
    cmocka_unit_test(thresholds),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
