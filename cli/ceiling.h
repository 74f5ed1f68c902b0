/* SPDX-License-Identifier: MIT */
/* What this machine allows, measured now: the ceilings that `attend bench` divides by. */
#ifndef ATTEND_CEILING_H
#define ATTEND_CEILING_H

typedef struct ceilings {
  double f32_gflops, bf16_gflops; /* fused multiply-adds; bf16: dot products where they are faster */
  double read_gbytes;             /* reading memory */
  double stream_gbytes;           /* three reads to one streaming write, bytes of all four */
} ceilings;

ceilings measure_ceilings(int threads);

#endif
