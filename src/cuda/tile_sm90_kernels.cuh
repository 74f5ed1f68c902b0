/* SPDX-License-Identifier: MIT */
/* The entry points of the tiles on sm_90. */
#include "tile_sm90.cuh"
#include "entry.h"

ENTRY(tile_sm90_narrow, 128 * (SM90_NARROW_GROUPS + 1), 1) {
  sm90_forward(call, {1, SM90_KEYS, SM90_NARROW_GROUPS, SM90_NARROW_Q_STAGES, SM90_NARROW_STAGES});
}
ENTRY(tile_sm90_wide, 128 * (SM90_WIDE_GROUPS + 1), 1) {
  sm90_forward(call, {2, SM90_KEYS, SM90_WIDE_GROUPS, SM90_WIDE_Q_STAGES, SM90_WIDE_STAGES});
}
