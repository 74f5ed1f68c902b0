/* SPDX-License-Identifier: MIT */
/* The tiled algorithms for AVX2, FMA and F16C. */
#define ISA avx2
#define TILE_ROWS 4
#define TILE_VECTORS 3
#include "cpu/vec/avx2.h"
#include "cpu/vec/typed.h"
#include "cpu/tile/fma.h"
#include "cpu/algorithms.inc.c"
