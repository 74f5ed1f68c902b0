/* SPDX-License-Identifier: MIT */
/* What math_f32.c and math_f64.c compile: textbook attention on blocks of at most MATH_ROWS queries of one (sequence,
 * head), whose scores are materialised. `real` is the type computed in. */
#include "math/math.h"

#include "api/element.h"

#include <math.h>
#include <string.h>

#include "math/math_blocks.inc.c"
#include "math/math_forward.inc.c"
#include "math/math_backward.inc.c"
