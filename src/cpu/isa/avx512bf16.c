/* SPDX-License-Identifier: MIT */
/* The algorithms for AVX512-BF16: the lanes of AVX-512, the products of bf16 pairs. */
#define ISA avx512bf16
#define TILE_ROWS 8
#define TILE_VECTORS 2
#include "cpu/vec/avx512.h"
#include "cpu/vec/typed.h"
#include "cpu/tile/bf16dot.h"
#include "cpu/algorithms.inc.c"
