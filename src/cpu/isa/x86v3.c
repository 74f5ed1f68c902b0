/* SPDX-License-Identifier: MIT */
/* The tiled algorithms in the words of any machine, which the compiler turns into AVX2 and FMA, in f32. */
#define ISA x86v3
#define VECTOR_BYTES 32
#define TILE_ROWS 4
#define TILE_VECTORS 3
#include "cpu/vec/scalar.h"
#include "cpu/vec/typed.h"
#include "cpu/tile/fma.h"
#include "cpu/algorithms.inc.c"
