/* SPDX-License-Identifier: MIT */
/* What this machine allows: the ceilings that `attend bench` divides by. */
#ifndef ATTEND_CEILING_H
#define ATTEND_CEILING_H

typedef struct ceilings {
  double f32_gflops, bf16_gflops; /* fused multiply-adds; bf16: dot products where they are faster */
  double read_gbytes;             /* reading memory */
  double stream_gbytes;           /* three reads to one streaming write, bytes of all four */
} ceilings;

/* The clock of the CPU's cases and ceilings alike. One thread: its processor time, which other work on the machine does
 * not stretch. Several: the wall clock, since no thread's own time says how long it waited for the others. */
double work_seconds(int threads);

/* Of the CPU, measured now. 0 where it cannot be: no memory, or no threads. */
ceilings measure_ceilings(int threads);
/* Of a GPU: `stream_gbytes` is that of copying, measured now, the others follow from its clocks and units. 0 where the
 * driver does not tell. */
ceilings gpu_ceilings(int ordinal);

#endif
