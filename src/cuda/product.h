/* SPDX-License-Identifier: MIT */
/* What host and kernels of the math back-end share where cuBLASLt computes the products. */
#ifndef ATTEND_CUDA_PRODUCT_H
#define ATTEND_CUDA_PRODUCT_H

#include "call.h"

enum {
  PRODUCT_THREADS = 128, /* four neighbouring columns each */
  PRODUCT_ROWS = 8,      /* of scores of a block, one after another: to know a sequence takes longer than a row */
  PRODUCT_PACKED = 32,   /* rows of a block that packs or finishes */
  PRODUCT_KEPT = 4,      /* times 4 threads: columns of a row that stay in registers, 2048; others go through memory */
  PRODUCT_ALIGNED = 8    /* columns are a multiple, and so are rows: the fast products read 16 bytes at a time */
};

#endif
