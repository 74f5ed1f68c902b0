/* SPDX-License-Identifier: MIT */
/* The tiled algorithms for AVX-512 F, DQ, BW and VL. */
#define ISA avx512
#define TILE_ROWS 8
#define TILE_VECTORS 2
#include "cpu/vec/avx512.h"
#include "cpu/vec/typed.h"
#include "cpu/tile/fma.h"
#include "cpu/algorithms.inc.c"
