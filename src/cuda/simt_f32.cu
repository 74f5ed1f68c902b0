/* SPDX-License-Identifier: MIT */
/* The entry points of the f32 kernels in tiles. */
#define SUFFIX f32
#include "simt_forward.cuh"
#include "entry.h"

ENTRY(simt_forward_narrow, SIMT_THREADS, 1) { simt_forward(call, 64); }
ENTRY(simt_forward_wide, SIMT_THREADS, 1) { simt_forward(call, 128); }
