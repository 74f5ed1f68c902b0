/* SPDX-License-Identifier: MIT */
/* The entry points of the tiles on sm_90. */
#include "tile_sm90.cuh"
#include "entry.h"

ENTRY(tile_sm90, SM90_THREADS, SM90_BLOCKS) { sm90_forward(call, {1, SM90_KEYS}); }
