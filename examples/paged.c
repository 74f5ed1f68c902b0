/* SPDX-License-Identifier: MIT */
/* Decoding from a paged cache: two sequences of 5 and 2 tokens whose keys and values lie in blocks of 2, in any order, of
 * one pool. One new query each; bottom-right causal lets it see its whole sequence. Compared with contiguous keys. */
#include <attend.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { B = 2, H = 4, HKV = 2, D = 8, BLOCK = 2, BLOCKS = 5, COLUMNS = 3, LONGEST = COLUMNS * BLOCK };

int main(void) {
  float q[B][H][1][D], k_pool[BLOCKS][HKV][BLOCK][D], v_pool[BLOCKS][HKV][BLOCK][D], out[B][H][1][D];
  for (int i = 0; i < B * H * D; i++) (&q[0][0][0][0])[i] = (float)(i % 9) / 4 - 1;
  for (int i = 0; i < BLOCKS * HKV * BLOCK * D; i++) {
    (&k_pool[0][0][0][0])[i] = (float)(i % 13) / 6 - 1;
    (&v_pool[0][0][0][0])[i] = (float)(i % 17) / 8 - 1;
  }
  int32_t table[B][COLUMNS] = {{4, 0, 2}, {1, -1, -1}}, lengths[B] = {5, 2}; /* beyond the length: never read */
  int64_t q_shape[] = {B, H, 1, D}, pool_shape[] = {BLOCKS, HKV, BLOCK, D}, table_shape[] = {B, COLUMNS}, b_shape[] = {B};
  attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 4, q_shape), O = attend_tensor_of(out, ATTEND_F32, 4, q_shape);
  attend_tensor K = attend_tensor_of(k_pool, ATTEND_F32, 4, pool_shape), V = attend_tensor_of(v_pool, ATTEND_F32, 4, pool_shape);
  attend_tensor T = attend_tensor_of(table, ATTEND_I32, 2, table_shape), L = attend_tensor_of(lengths, ATTEND_I32, 1, b_shape);
  attend_args args = {.q = &Q, .k = &K, .v = &V, .out = &O, .block_table = &T, .kv_len = &L};
  attend_options options = {.flags = ATTEND_CAUSAL};
  if (attend_forward_once(&args, &options) != ATTEND_OK) goto failed;

  static float k[B][HKV][LONGEST][D], v[B][HKV][LONGEST][D], expected[B][H][1][D];
  for (int b = 0; b < B; b++)
    for (int j = 0; j < lengths[b]; j++)
      for (int h = 0; h < HKV; h++) {
        memcpy(k[b][h][j], k_pool[table[b][j / BLOCK]][h][j % BLOCK], sizeof k[b][h][j]);
        memcpy(v[b][h][j], v_pool[table[b][j / BLOCK]][h][j % BLOCK], sizeof v[b][h][j]);
      }
  int64_t k_shape[] = {B, HKV, LONGEST, D};
  K = attend_tensor_of(k, ATTEND_F32, 4, k_shape), V = attend_tensor_of(v, ATTEND_F32, 4, k_shape);
  O = attend_tensor_of(expected, ATTEND_F32, 4, q_shape);
  args = (attend_args){.q = &Q, .k = &K, .v = &V, .out = &O, .kv_len = &L};
  if (attend_forward_once(&args, &options) != ATTEND_OK) goto failed;

  float worst = 0;
  for (int i = 0; i < B * H * D; i++) worst = fmaxf(worst, fabsf((&out[0][0][0][0])[i] - (&expected[0][0][0][0])[i]));
  printf("paged and contiguous differ by at most %g\n", (double)worst);
  return !(worst < 1e-6f);

failed:
  fprintf(stderr, "%s\n", attend_error_message());
  return 1;
}
