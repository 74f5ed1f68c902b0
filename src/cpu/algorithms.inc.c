/* SPDX-License-Identifier: MIT */
/* What every stub of src/cpu/isa compiles, once it has defined ISA (the suffix of its entry points), TILE_ROWS and
 * TILE_VECTORS, and included a vocabulary and a tile word. Only the entry points are not static. */
#include "cpu/features.h"
#include "cpu/kernels.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define JOIN_(a, b) attend_##a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define ENTRY(name) JOIN(name, ISA)

#include "cpu/pack.inc.c"
#include "cpu/words.inc.c"
#include "cpu/scores.inc.c"
#include "cpu/forward.inc.c"
#include "cpu/gradients.inc.c"
#include "cpu/backward.inc.c"
#include "cpu/short_ahead.inc.c"
#include "cpu/short_feed.inc.c"
#include "cpu/short.inc.c"
#include "cpu/short_ones.inc.c"
#include "cpu/short_products.inc.c"
#include "cpu/short_block.inc.c"
#include "cpu/short_blocks.inc.c"
#include "cpu/short_forward_pairs.inc.c"
#include "cpu/short_plain.inc.c"
#include "cpu/short_lengths.inc.c"
#include "cpu/short_forward.inc.c"
#include "cpu/short_gradient.inc.c"
#include "cpu/short_gradient_blocks.inc.c"
#include "cpu/short_triangle.inc.c"
#include "cpu/short_backward.inc.c"
#include "cpu/decode_rows.inc.c"
#include "cpu/decode_keys.inc.c"
#include "cpu/decode.inc.c"
