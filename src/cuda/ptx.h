/* SPDX-License-Identifier: MIT */
/* PTX words, sm_75 to sm_90: one instruction per function, and no policy. Kernels reach the hardware only through these
 * words and CUDA's built-in variables; so, compiled by a host compiler, they run on tests/support/emulate.h, which
 * defines the same words for 32 lanes that take turns.
 *
 * Fragments of mma m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), with g = lane / 4, t = lane % 4; each
 * register holds two neighbouring 16-bit elements:
 *     A [16,16]  a0 = (g, 2t)  a1 = (g+8, 2t)  a2 = (g, 2t+8)  a3 = (g+8, 2t+8)
 *     B [16,8]   b0 = (2t, g)  b1 = (2t+8, g)                                     (row k, column n)
 *     C [16,8]   c0, c1 = (g, 2t), (g, 2t+1)   c2, c3 = (g+8, 2t), (g+8, 2t+1)    (f32) */
#ifndef ATTEND_PTX_H
#define ATTEND_PTX_H

#ifdef __CUDACC__

#include <stdint.h>

#define WORD static __device__ __forceinline__
#define OUTLINED static __device__ __noinline__
#define KERNEL extern "C" __global__
#define UNROLLED _Pragma("unroll")
#define UNROLLED_BY_4 _Pragma("unroll 4")
#define UNROLLED_BY_2 _Pragma("unroll 2")
#define UNROLLED_BY_1 _Pragma("unroll 1")
/* The shared memory whose size the launch says. */
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) char name[]
#define DYNAMIC_SHARED_TILES(name) extern __shared__ __align__(1024) char name[] /* for word_tile_at */

/* 2^x, relative error 2^-22; flushes subnormal results. */
WORD float word_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* log2 x, absolute error 2^-22 near 1; 1/x, within an ulp. Subnormals count as 0. */
WORD float word_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
WORD float word_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* The greater; a NaN loses. */
WORD float word_max(float a, float b) { return fmaxf(a, b); }

WORD uint32_t word_shuffle(uint32_t x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
WORD uint32_t word_shuffle_xor(uint32_t x, int lanes) { return __shfl_xor_sync(0xFFFFFFFFu, x, lanes); }
WORD float word_shuffle_xor_f32(float x, int lanes) { return __shfl_xor_sync(0xFFFFFFFFu, x, lanes); }
/* What is the same in all lanes, as a number that the compiler knows to be the same. */
WORD int word_uniform(int x) { return __shfl_sync(0xFFFFFFFFu, x, 0); }
WORD bool word_any(bool x) { return __any_sync(0xFFFFFFFFu, x); }
WORD uint32_t word_ballot(bool x) { return __ballot_sync(0xFFFFFFFFu, x); }
/* Wait until the kernel before this one in the stream is done and what it wrote can be seen; let the next one's blocks
 * come where there is room. For cuda_launch_early. */
WORD void word_wait_before(void) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
WORD void word_let_next(void) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
WORD void word_sync_warp(void) { __syncwarp(); }
WORD void word_sync_block(void) { __syncthreads(); }
/* Of a block's teams, below 15, the threads of team `team`. */
WORD void word_sync_team(int team, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(threads) : "memory");
}
WORD bool word_sync_block_any(bool x) { return __syncthreads_or(x) != 0; }

/* max, of a NaN and a number the number; a b + c, rounded once. */
WORD float word_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

/* Bytes 4..7 of the selector's digits are those of b, 0..3 of a. */
WORD uint32_t word_permute_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

/* Two f32 rounded to nearest even, lo in the low half. */
WORD uint32_t word_pack_bf16(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
#else /* sm_75 has no bf16 conversion: round by integer arithmetic */
  uint32_t bits[2] = {__float_as_uint(lo), __float_as_uint(hi)};
  for (int i = 0; i < 2; i++)
    bits[i] = (bits[i] & 0x7FFFFFFFu) > 0x7F800000u ? bits[i] | 0x400000u : bits[i] + 0x7FFFu + ((bits[i] >> 16) & 1u);
  return __byte_perm(bits[0], bits[1], 0x7632);
#endif
}
WORD uint32_t word_pack_f16(float lo, float hi) {
  uint32_t r;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  uint16_t a, b;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a) : "f"(lo));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(hi));
  r = a | (uint32_t)b << 16;
#endif
  return r;
}
WORD float word_f32_from_bits(uint32_t x) { return __uint_as_float(x); }
WORD uint32_t word_bits_from_f32(float x) { return __float_as_uint(x); }
WORD float word_f32_from_f16(uint32_t low_half) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((uint16_t)low_half));
  return y;
}

/* C += A B, f32 accumulation. Exist from sm_80 on (f16 from sm_75 in a smaller shape only). */
WORD void word_mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
WORD void word_mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* The same for TF32, k = 8: f32 without the last 13 bits, which are ignored. a0 = (g, t), a1 = (g+8, t), a2 = (g, t+4),
 * a3 = (g+8, t+4); b0 = (t, g), b1 = (t+4, g). */
WORD void word_mma_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* Transpose an 8x8 matrix of 16-bit elements held one register a lane: lane holds row lane / 4, columns 2t, 2t+1. */
WORD uint32_t word_transpose(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/* Four 8x8 matrices from shared memory: lanes 8m .. 8m+7 name the rows (16 bytes each) of matrix m; r[m] as above. */
WORD void word_load_matrices(uint32_t r[4], const void *shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((uint32_t)__cvta_generic_to_shared(shared_row))
               : "memory");
}
WORD void word_load_matrices_transposed(uint32_t r[4], const void *shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((uint32_t)__cvta_generic_to_shared(shared_row))
               : "memory");
}

/* Copy 16 bytes from global to shared memory asynchronously; where !valid, write zeros and read nothing (sm_80). */
WORD void word_copy_async(void *shared, const void *global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#endif
}
/* Data that is first, or last, to leave L2; the compiler makes each once. */
WORD uint64_t word_policy_first(void) {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
WORD uint64_t word_policy_last(void) {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
/* The same for data that is read once. */
WORD void word_copy_async_once(void *shared, const void *global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(
                   (uint32_t)__cvta_generic_to_shared(shared)),
               "l"(global), "r"(valid ? 16 : 0), "l"(word_policy_first())
               : "memory");
#endif
}
WORD void word_copy_commit(void) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define word_copy_wait(groups) asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory")
#else
#define word_copy_wait(groups) ((void)(groups))
#endif

/* ---- sm_90a: products of a group of four warps, asynchronous ----------------------------------------------------- */

/* Before the first product, and after registers of a product were written; the end of a group of products; and waiting
 * until at most `groups` groups run. Shared memory that was written by copies is shown to products by word_show_shared,
 * before a barrier. */
WORD void word_products_begin(void) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
WORD void word_products_commit(void) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define word_products_wait(groups) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory")
#else
#define word_products_wait(groups) ((void)(groups))
#endif
/* After the wait, of each four numbers of a product: what reads them stays behind it. */
WORD void word_products_done(float c[4]) {
  asm volatile("" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])::"memory");
}
WORD void word_show_shared(void) {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Barriers in shared memory: a phase ends when `count` threads arrived; waits for the end of the phase of that parity,
 * where the phase before the first counts as ended. What was written before an arrival is seen after the wait. */
WORD void word_phase_init(uint64_t *barrier, uint32_t count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(barrier)), "r"(count)
               : "memory");
#endif
}
WORD void word_phase_arrive(uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"((uint32_t)__cvta_generic_to_shared(barrier))
               : "memory");
#endif
}
WORD void word_phase_wait(uint64_t *barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n .reg .pred p;\nagain:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n @p bra done;\n"
               " bra again;\ndone:\n}" ::"r"((uint32_t)__cvta_generic_to_shared(barrier)),
               "r"(parity)
               : "memory");
#endif
}

/* Arrive, and let the phase last until so many bytes were copied as well. */
WORD void word_phase_expect(uint64_t *barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(barrier)),
      "r"(bytes)
      : "memory");
#endif
}
/* Start copying a box of a mapped tensor (cuda_map_tensor) to shared memory; zeros where the tensor ends. */
WORD void word_copy_box(void *shared, const void *map, int column, int row, int head, int sequence, uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
               "%5, %6}], [%2];" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
               "l"(map), "r"((uint32_t)__cvta_generic_to_shared(barrier)), "r"(column), "r"(row), "r"(head),
               "r"(sequence)
               : "memory");
#endif
}

/* How many registers each thread of four warps keeps; what some give back, others may take. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define word_registers_give(kept) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)(kept)))
#define word_registers_take(kept) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)(kept)))
#else
#define word_registers_give(kept) ((void)(kept))
#define word_registers_take(kept) ((void)(kept))
#endif

/* A matrix in shared memory: panels of 64 columns, rows of 128 bytes, whose words of 16 bytes lie where their number
 * XOR the last three bits of the row says. `panel`: bytes from panel to panel. The address may lie a multiple of 32
 * bytes after a multiple of 1024. */
typedef uint64_t word_tile;
WORD word_tile word_tile_at(const void *shared, uint32_t panel) {
  return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(panel >> 4) << 16 |
         ((uint32_t)__cvta_generic_to_shared(shared) >> 4 & 0x3FFF);
}

/* The matrix that begins so many bytes after: no sum leaves the field, since shared memory ends before. */
WORD word_tile word_tile_step(word_tile x, uint32_t bytes) { return x + (bytes >> 4); }

/* C[64,N] (+)= A[64,16] B, of which each warp has 16 rows of C as for mma m16n8k16. dots: A's rows x B's rows, from
 * shared memory; C is overwritten where !add. values: A from registers, arranged as for mma; B[16,N] row by row. */
#if __CUDA_ARCH_FEAT_SM90_ALL
#define PRODUCTS_C4(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define PRODUCTS_C64                                                                                                   \
  PRODUCTS_C4(0), PRODUCTS_C4(1), PRODUCTS_C4(2), PRODUCTS_C4(3), PRODUCTS_C4(4), PRODUCTS_C4(5), PRODUCTS_C4(6),      \
      PRODUCTS_C4(7)
#define PRODUCTS_C128                                                                                                  \
  PRODUCTS_C64, PRODUCTS_C4(8), PRODUCTS_C4(9), PRODUCTS_C4(10), PRODUCTS_C4(11), PRODUCTS_C4(12), PRODUCTS_C4(13),    \
      PRODUCTS_C4(14), PRODUCTS_C4(15)
#define PRODUCTS_R64                                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                             \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PRODUCTS_64(type)                                                                                              \
  WORD void word_dots_##type##_64(float c[][4], word_tile a, word_tile b, bool add) {                                  \
    asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %34, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." #type "." #type " {" PRODUCTS_R64                       \
                 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                                                      \
                 : PRODUCTS_C64                                                                                        \
                 : "l"(a), "l"(b), "r"((uint32_t)add)                                                                  \
                 : "memory");                                                                                          \
  }                                                                                                                    \
  WORD void word_values_##type##_64(float c[][4], const uint32_t a[4], word_tile b) {                                  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." #type "." #type " {" PRODUCTS_R64                       \
                 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"                                                              \
                 : PRODUCTS_C64                                                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                                  \
                 : "memory");                                                                                          \
  }
#define PRODUCTS_R128                                                                                                  \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                             \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                                   \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                                   \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define PRODUCTS_128(type)                                                                                             \
  WORD void word_dots_##type##_128(float c[][4], word_tile a, word_tile b, bool add) {                                 \
    asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %66, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." #type "." #type " {" PRODUCTS_R128                     \
                 "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                                      \
                 : PRODUCTS_C128                                                                                       \
                 : "l"(a), "l"(b), "r"((uint32_t)add)                                                                  \
                 : "memory");                                                                                          \
  }                                                                                                                    \
  WORD void word_values_##type##_128(float c[][4], const uint32_t a[4], word_tile b) {                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." #type "." #type " {" PRODUCTS_R128                     \
                 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"                                                              \
                 : PRODUCTS_C128                                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                                  \
                 : "memory");                                                                                          \
  }
#else
#define PRODUCTS_64(type)                                                                                              \
  WORD void word_dots_##type##_64(float c[][4], word_tile a, word_tile b, bool add) {}                                 \
  WORD void word_values_##type##_64(float c[][4], const uint32_t a[4], word_tile b) {}
#define PRODUCTS_128(type)                                                                                             \
  WORD void word_dots_##type##_128(float c[][4], word_tile a, word_tile b, bool add) {}                                \
  WORD void word_values_##type##_128(float c[][4], const uint32_t a[4], word_tile b) {}
#endif
PRODUCTS_64(bf16)
PRODUCTS_64(f16)
PRODUCTS_128(bf16)
PRODUCTS_128(f16)

/* 16 bytes of global memory that this kernel only reads (or writes) once: kept out of L1, first to leave L2. */
WORD uint4 word_load_once(const void *p) {
  uint4 r;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
/* The same where `valid`; else zeros, and nothing is read. Volatile: loads stay where they are written, early. */
#define LOAD_IF(instruction)                                                                                           \
  uint4 r;                                                                                                             \
  asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %5, 0;\n mov.u32 %0, 0;\n mov.u32 %1, 0;\n mov.u32 %2, 0;\n"        \
               " mov.u32 %3, 0;\n @p " instruction " {%0,%1,%2,%3}, [%4];\n}"                                          \
               : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w)                                                        \
               : "l"(p), "r"((uint32_t)valid));                                                                        \
  return r
WORD uint4 word_load_once_if(const void *p, bool valid) { LOAD_IF("ld.global.nc.L1::no_allocate.v4.u32"); }
WORD uint4 word_load_if(const void *p, bool valid) { LOAD_IF("ld.global.nc.v4.u32"); }
#undef LOAD_IF
/* A signed integer of 4 or (wide) 8 bytes where `valid`, else 0; without a branch, so that several are under way. */
WORD int64_t word_load_index_if(const void *p, bool wide, bool valid) {
  int64_t x;
  asm volatile("{\n .reg .pred n, w;\n setp.ne.u32 n, %2, 0;\n setp.ne.u32 w, %3, 0;\n mov.b64 %0, 0;\n"
               " @n ld.global.nc.s32 %0, [%1];\n @w ld.global.nc.s64 %0, [%1];\n}"
               : "=&l"(x)
               : "l"(p), "r"((uint32_t)(valid && !wide)), "r"((uint32_t)(valid && wide)));
  return x;
}
/* The same for data that is read again soon. */
WORD uint4 word_load(const void *p) {
  uint4 r;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
WORD void word_store_once_f32(float *p, float x) {
  asm volatile("st.global.cs.f32 [%0], %1;" ::"l"(p), "f"(x) : "memory");
}
WORD void word_store_once(void *p, uint4 x) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
/* What a later kernel reads. */
WORD void word_store_kept(void *p, uint4 x) {
#if __CUDA_ARCH__ >= 800
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w), "l"(word_policy_last())
               : "memory");
#else
  *(uint4 *)p = x;
#endif
}
/* Set a line of 128 bytes on its way to L2, and no further. */
WORD void word_prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

#else
#include "emulate.h"
#endif
#endif
