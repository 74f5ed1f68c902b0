/* SPDX-License-Identifier: MIT */
/* One problem put before every kernel that this machine can run. */
#ifndef TEST_JUDGE_H
#define TEST_JUDGE_H

#include "support/gate.h"

/* Make the problem, let `change` (may be NULL) spoil its inputs, and judge every usable kernel's answer by the gate.
 * Prints what failed; returns how many kernels failed, and adds those judged to *checks. */
int judge_kernels(const problem_spec *spec, attend_direction direction, void (*change)(test_problem *p),
                  int64_t *checks);

#endif
