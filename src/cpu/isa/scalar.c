/* SPDX-License-Identifier: MIT */
/* The tiled algorithms for any machine, in f32. */
#define ISA scalar
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "cpu/vec/scalar.h"
#include "cpu/vec/typed.h"
#include "cpu/tile/fma.h"
#include "cpu/algorithms.inc.c"
