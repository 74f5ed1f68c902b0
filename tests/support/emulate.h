/* SPDX-License-Identifier: MIT */
/* CUDA kernels on the CPU, for machines without a GPU: the words of src/cuda/ptx.h and CUDA's built-in names, for a
 * thread block whose lanes are coroutines. A kernel's source is included by a C++ test after this header; emulate()
 * then runs it block by block. Lanes meet in every collective word, so a collective that not all lanes of a warp reach
 * is found as a deadlock and reported. What it cannot show: races (lanes switch only at collectives), alignment faults,
 * speed. */
#ifndef ATTEND_EMULATE_H
#define ATTEND_EMULATE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

struct uint4 {
  uint32_t x, y, z, w;
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct emulate_builtin {
  dim3 thread, block, block_size, grid;
};
extern emulate_builtin emulate_now; /* of the lane that runs */

#define threadIdx emulate_now.thread
#define blockIdx emulate_now.block
#define blockDim emulate_now.block_size
#define gridDim emulate_now.grid
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __constant__
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)
#define WORD static inline
#define OUTLINED static
#define KERNEL
#define UNROLLED
#define UNROLLED_BY_4
#define UNROLLED_BY_2
#define UNROLLED_BY_1
#define DYNAMIC_SHARED(name) alignas(128) static char name[227 * 1024]
#define DYNAMIC_SHARED_TILES(name) alignas(1024) static char name[227 * 1024]

/* Run `lane` once for every thread of every block. Aborts with a message on a deadlock. */
void emulate(dim3 grid, dim3 block, const std::function<void()> &lane);

/* The lane's operands are deposited, all lanes of its warp (or block) arrive, and every lane may read all deposits. */
const void *emulate_exchange(const void *mine, size_t size); /* returns [32] deposits, each at a multiple of 64 bytes */
void emulate_block_barrier(void);
void emulate_team_barrier(int team, int threads);
bool emulate_block_any(bool x);

template <class T> static inline T emulate_from(const void *deposits, int lane) {
  T x;
  memcpy(&x, (const char *)deposits + 64 * (lane & 31), sizeof x);
  return x;
}
static inline int emulate_lane(void) { return (int)(threadIdx.x & 31); }

float emulate_f16_to_f32(uint32_t low_half);
uint32_t emulate_f32_to_f16(float x);
uint32_t emulate_f32_to_bf16(float x);

WORD float word_f32_from_bits(uint32_t x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
WORD uint32_t word_bits_from_f32(float f) {
  uint32_t x;
  memcpy(&x, &f, 4);
  return x;
}
WORD float word_exp2(float x) { return exp2f(x); }
WORD float word_max(float a, float b) { return fmaxf(a, b); }
WORD float word_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
WORD float word_log2(float x) { return log2f(x); }
WORD float word_reciprocal(float x) { return 1 / x; }
WORD uint32_t word_shuffle(uint32_t x, int lane) { return emulate_from<uint32_t>(emulate_exchange(&x, 4), lane); }
WORD int word_uniform(int x) { return (int)word_shuffle((uint32_t)x, 0); }
WORD uint32_t word_shuffle_xor(uint32_t x, int lanes) { return word_shuffle(x, emulate_lane() ^ lanes); }
WORD float word_shuffle_xor_f32(float x, int lanes) {
  return word_f32_from_bits(word_shuffle_xor(word_bits_from_f32(x), lanes));
}
WORD uint32_t word_ballot(bool x) {
  uint32_t mine = x, all = 0;
  const void *deposits = emulate_exchange(&mine, 4);
  for (int lane = 0; lane < 32; lane++) all |= emulate_from<uint32_t>(deposits, lane) << lane;
  return all;
}
WORD bool word_any(bool x) { return word_ballot(x) != 0; }
WORD void word_wait_before(void) {} /* kernels run one after another */
WORD void word_let_next(void) {}
WORD void word_sync_warp(void) { (void)word_ballot(true); }
WORD void word_sync_block(void) { emulate_block_barrier(); }
WORD void word_sync_team(int team, int threads) { emulate_team_barrier(team, threads); }
WORD bool word_sync_block_any(bool x) { return emulate_block_any(x); }
WORD void __syncthreads(void) { emulate_block_barrier(); }

WORD uint32_t word_permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) r |= (uint32_t)((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 255) << (8 * i);
  return r;
}
WORD uint32_t word_pack_bf16(float lo, float hi) { return emulate_f32_to_bf16(lo) | emulate_f32_to_bf16(hi) << 16; }
WORD uint32_t word_pack_f16(float lo, float hi) { return emulate_f32_to_f16(lo) | emulate_f32_to_f16(hi) << 16; }
WORD float word_f32_from_f16(uint32_t low_half) { return emulate_f16_to_f32(low_half); }

void emulate_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, bool bf16);
WORD void word_mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) { emulate_mma(c, a, b0, b1, true); }
WORD void word_mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) { emulate_mma(c, a, b0, b1, false); }
void emulate_mma_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
WORD void word_mma_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) { emulate_mma_tf32(c, a, b0, b1); }
WORD uint32_t word_transpose(uint32_t x) {
  const void *rows = emulate_exchange(&x, 4); /* element (r, c) is half c % 2 of lane 4 r + c / 2 */
  int g = emulate_lane() / 4, t = emulate_lane() % 4;
  uint32_t lo = emulate_from<uint32_t>(rows, 4 * (2 * t) + g / 2),
           hi = emulate_from<uint32_t>(rows, 4 * (2 * t + 1) + g / 2);
  int shift = 16 * (g % 2);
  return ((lo >> shift) & 0xFFFF) | ((hi >> shift) & 0xFFFF) << 16;
}
void emulate_load_matrices(uint32_t r[4], const void *shared_row, bool transposed);
WORD void word_load_matrices(uint32_t r[4], const void *row) { emulate_load_matrices(r, row, false); }
WORD void word_load_matrices_transposed(uint32_t r[4], const void *row) { emulate_load_matrices(r, row, true); }

void emulate_phase_init(uint64_t *barrier, uint32_t count);
void emulate_phase_arrive(uint64_t *barrier);
void emulate_phase_wait(uint64_t *barrier, uint32_t parity);
WORD void word_phase_init(uint64_t *barrier, uint32_t count) { emulate_phase_init(barrier, count); }
WORD void word_phase_arrive(uint64_t *barrier) { emulate_phase_arrive(barrier); }
WORD void word_phase_wait(uint64_t *barrier, uint32_t parity) { emulate_phase_wait(barrier, parity); }
WORD void word_phase_expect(uint64_t *barrier, uint32_t) { emulate_phase_arrive(barrier); } /* boxes come at once */
void emulate_copy_box(char *shared, const uint64_t *map, int column, int row, int head, int sequence);
WORD void word_copy_box(void *shared, const void *map, int column, int row, int head, int sequence, uint64_t *) {
  emulate_copy_box((char *)shared, (const uint64_t *)map, column, row, head, sequence);
}
#define word_registers_give(kept) ((void)(kept))
#define word_registers_take(kept) ((void)(kept))

struct word_tile {
  const char *data;
  uint32_t panel;
};
WORD word_tile word_tile_at(const void *shared, uint32_t panel) { return {(const char *)shared, panel}; }
WORD word_tile word_tile_step(word_tile x, uint32_t bytes) { return {x.data + bytes, x.panel}; }
void emulate_dots(float (*c)[4], int columns, word_tile a, word_tile b, bool add, bool bf16);
void emulate_values(float (*c)[4], int columns, const uint32_t a[4], word_tile b, bool bf16);
#define PRODUCTS(type, columns)                                                                                        \
  WORD void word_dots_##type##_##columns(float c[][4], word_tile a, word_tile b, bool add) {                           \
    emulate_dots(c, columns, a, b, add, #type[0] == 'b');                                                              \
  }                                                                                                                    \
  WORD void word_values_##type##_##columns(float c[][4], const uint32_t a[4], word_tile b) {                           \
    emulate_values(c, columns, a, b, #type[0] == 'b');                                                                 \
  }
PRODUCTS(bf16, 64)
PRODUCTS(bf16, 128)
PRODUCTS(f16, 64)
PRODUCTS(f16, 128)
#undef PRODUCTS
WORD void word_products_begin(void) {}
WORD void word_products_commit(void) {}
#define word_products_wait(groups) ((void)(groups))
WORD void word_products_done(float[4]) {}
WORD void word_show_shared(void) {}

WORD void word_copy_async(void *shared, const void *global, bool valid) {
  if (valid)
    memcpy(shared, global, 16);
  else
    memset(shared, 0, 16);
}
WORD void word_copy_async_once(void *shared, const void *global, bool valid) { word_copy_async(shared, global, valid); }
WORD void word_copy_commit(void) {}
#define word_copy_wait(groups) ((void)(groups))
WORD uint4 word_load(const void *p) {
  uint4 r;
  memcpy(&r, p, 16);
  return r;
}
WORD int64_t word_load_index_if(const void *p, bool wide, bool valid) {
  return !valid ? 0 : wide ? *(const int64_t *)p : *(const int32_t *)p;
}
WORD uint4 word_load_once(const void *p) { return word_load(p); }
WORD uint4 word_load_if(const void *p, bool valid) { return valid ? word_load(p) : uint4{0, 0, 0, 0}; }
WORD uint4 word_load_once_if(const void *p, bool valid) { return valid ? word_load(p) : uint4{0, 0, 0, 0}; }
WORD void word_store_once_f32(float *p, float x) { *p = x; }
WORD void word_store_kept(void *p, uint4 x) { memcpy(p, &x, 16); }
WORD void word_prefetch(const void *) {}
WORD void word_store_once(void *p, uint4 x) { memcpy(p, &x, 16); }

#endif
