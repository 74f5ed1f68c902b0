/* SPDX-License-Identifier: MIT */
/* The coroutines behind emulate.h: every thread of a block has a stack of its own, and gives way where it waits. */
#include "emulate.h"

#include "../../src/api/element.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <vector>

emulate_builtin emulate_now;

namespace {

struct barrier {
  int members = 0, arrived = 0;
  unsigned generation = 0;
};

struct warp {
  barrier meeting;
  unsigned parity = 0;
  alignas(64) char deposits[2][32 * 64]; /* two sets, so that one barrier an exchange is enough */
};

struct lane {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  emulate_builtin builtin;
  bool done = false;
};

const size_t STACK = 256 * 1024;
ucontext_t scheduler;
std::vector<lane> lanes;
std::vector<warp> warps;
barrier block_meeting, team_meetings[15];
size_t running;
bool progress;
const std::function<void()> *body;

void give_way() {
  lanes[running].builtin = emulate_now;
  swapcontext(&lanes[running].context, &scheduler);
}

void arrive(barrier &b) {
  unsigned generation = b.generation;
  progress = true;
  if (++b.arrived == b.members) {
    b.arrived = 0;
    b.generation++;
    return;
  }
  while (b.generation == generation) give_way();
}

void leave(barrier &b) {
  if (--b.members > 0 && b.arrived == b.members) {
    b.arrived = 0;
    b.generation++;
  }
}

void trampoline() {
  (*body)();
  lanes[running].done = true;
  progress = true;
  leave(warps[running / 32].meeting);
  leave(block_meeting);
}

void run_block(dim3 grid, dim3 block, dim3 index) {
  size_t threads = (size_t)block.x * block.y * block.z;
  if (lanes.size() < threads) lanes.resize(threads);
  warps.assign((threads + 31) / 32, warp());
  block_meeting = barrier();
  block_meeting.members = (int)threads;
  for (size_t i = 0; i < threads; i++) {
    lane &l = lanes[i];
    if (!l.stack) l.stack.reset(new char[STACK]);
    l.done = false;
    l.builtin.grid = grid, l.builtin.block_size = block, l.builtin.block = index;
    l.builtin.thread.x = (unsigned)i % block.x;
    l.builtin.thread.y = (unsigned)i / block.x % block.y;
    l.builtin.thread.z = (unsigned)i / block.x / block.y;
    warps[i / 32].meeting.members++;
    getcontext(&l.context);
    l.context.uc_stack.ss_sp = l.stack.get();
    l.context.uc_stack.ss_size = STACK;
    l.context.uc_link = &scheduler;
    makecontext(&l.context, trampoline, 0);
  }
  for (size_t left = threads; left;) {
    progress = false;
    left = 0;
    for (running = 0; running < threads; running++) {
      if (lanes[running].done) continue;
      emulate_now = lanes[running].builtin;
      swapcontext(&scheduler, &lanes[running].context);
      left += !lanes[running].done;
    }
    if (left && !progress) {
      fprintf(stderr, "emulate: %zu lanes of block %u wait for a collective that the others do not reach\n", left,
              index.x);
      abort();
    }
  }
}

} // namespace

void emulate(dim3 grid, dim3 block, const std::function<void()> &lane_body) {
  body = &lane_body;
  dim3 index;
  for (index.z = 0; index.z < grid.z; index.z++)
    for (index.y = 0; index.y < grid.y; index.y++)
      for (index.x = 0; index.x < grid.x; index.x++) run_block(grid, block, index);
}

const void *emulate_exchange(const void *mine, size_t size) {
  warp &w = warps[running / 32];
  char *deposits = w.deposits[w.meeting.generation & 1];
  memcpy(deposits + 64 * (running % 32), mine, size);
  arrive(w.meeting);
  return deposits;
}

void emulate_block_barrier(void) { arrive(block_meeting); }
void emulate_team_barrier(int team, int threads) {
  team_meetings[team].members = threads;
  arrive(team_meetings[team]);
}

/* Of the 64 bits: those who still have to arrive, how many there are, and the parity of the phase. */
void emulate_phase_init(uint64_t *barrier, uint32_t count) { *barrier = count | (uint64_t)count << 16; }
void emulate_phase_arrive(uint64_t *barrier) {
  progress = true;
  if (--*barrier & 0xFFFF) return;
  uint64_t count = *barrier >> 16 & 0xFFFF, parity = *barrier >> 32 ^ 1;
  *barrier = count | count << 16 | parity << 32;
}
void emulate_phase_wait(uint64_t *barrier, uint32_t parity) {
  while (*barrier >> 32 == parity) give_way();
}

/* map: address, sizes [4], strides [3], rows of a box, as fake/cuda_driver.cpp writes them. */
void emulate_copy_box(char *shared, const uint64_t *map, int column, int row, int head, int sequence) {
  for (int r = 0; r < (int)map[8]; r++)
    for (int word = 0; word < 8; word++)
      for (int e = 0; e < 8; e++) {
        uint64_t at[4] = {(uint64_t)(column + 8 * word + e), (uint64_t)(row + r), (uint64_t)head, (uint64_t)sequence};
        char *to = shared + 128 * r + 16 * (word ^ (r & 7)) + 2 * e;
        bool inside = true;
        for (int d = 0; d < 4; d++) inside = inside && at[d] < map[1 + d];
        const char *from = (const char *)(uintptr_t)map[0] + 2 * at[0];
        for (int d = 1; d < 4; d++) from += at[d] * map[4 + d];
        if (inside)
          memcpy(to, from, 2);
        else
          memset(to, 0, 2);
      }
}

bool emulate_block_any(bool x) {
  static bool flags[2];
  bool &any = flags[block_meeting.generation >> 1 & 1]; /* another than that of a call right before or after */
  any |= x;
  arrive(block_meeting);
  bool result = any;
  arrive(block_meeting);
  any = false;
  return result;
}

float emulate_f16_to_f32(uint32_t low_half) { return attend_f32_from_f16((uint16_t)low_half); }
uint32_t emulate_f32_to_f16(float x) { return attend_f16_from_f32(x); }
uint32_t emulate_f32_to_bf16(float x) { return attend_bf16_from_f32(x); }

void emulate_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, bool bf16) {
  struct operands {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const void *deposits = emulate_exchange(&mine, sizeof mine);
  int g = emulate_lane() / 4, t = emulate_lane() % 4;
  for (int e = 0; e < 4; e++) {
    int row = g + 8 * (e / 2), column = 2 * t + e % 2;
    float sum = c[e];
    for (int k = 0; k < 16; k++) {
      uint32_t x =
          emulate_from<operands>(deposits, 4 * (row % 8) + k % 8 / 2).a[row / 8 + 2 * (k / 8)] >> (16 * (k % 2));
      uint32_t y = emulate_from<operands>(deposits, 4 * column + k % 8 / 2).b[k / 8] >> (16 * (k % 2));
      x &= 0xFFFF, y &= 0xFFFF;
      sum += bf16 ? attend_f32_from_bf16((uint16_t)x) * attend_f32_from_bf16((uint16_t)y)
                  : attend_f32_from_f16((uint16_t)x) * attend_f32_from_f16((uint16_t)y);
    }
    c[e] = sum;
  }
}

/* Sums are cut off, not rounded, as tensor cores do. */
void emulate_mma_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  struct operands {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const void *deposits = emulate_exchange(&mine, sizeof mine);
  int g = emulate_lane() / 4, t = emulate_lane() % 4;
  for (int e = 0; e < 4; e++) {
    int row = g + 8 * (e / 2), column = 2 * t + e % 2;
    double sum = c[e];
    for (int k = 0; k < 8; k++) {
      uint32_t x = emulate_from<operands>(deposits, 4 * (row % 8) + k % 4).a[row / 8 + 2 * (k / 4)] & 0xFFFFE000;
      uint32_t y = emulate_from<operands>(deposits, 4 * column + k % 4).b[k / 4] & 0xFFFFE000;
      sum += (double)word_f32_from_bits(x) * word_f32_from_bits(y);
    }
    float rounded = (float)sum;
    c[e] = fabs(rounded) > fabs(sum) ? nextafterf(rounded, 0) : rounded;
  }
}

void emulate_load_matrices(uint32_t r[4], const void *shared_row, bool transposed) {
  const void *deposits = emulate_exchange(&shared_row, sizeof shared_row);
  int g = emulate_lane() / 4, t = emulate_lane() % 4;
  for (int m = 0; m < 4; m++) {
    uint16_t half[2];
    for (int e = 0; e < 2; e++) {
      int row = transposed ? 2 * t + e : g, column = transposed ? g : 2 * t + e;
      const uint16_t *from = emulate_from<const uint16_t *>(deposits, 8 * m + row);
      half[e] = from[column];
    }
    r[m] = half[0] | (uint32_t)half[1] << 16;
  }
}

/* Element (row, column) of a tile: the hardware swizzles addresses, not rows. */
static float tile_element(const word_tile &tile, int row, int column, bool bf16) {
  uintptr_t at =
      (uintptr_t)tile.data + (size_t)(column / 64) * tile.panel + (size_t)row * 128 + (size_t)(column % 64) * 2;
  at ^= (at >> 7 & 7) << 4;
  uint16_t x = *(const uint16_t *)at;
  return bf16 ? attend_f32_from_bf16(x) : attend_f32_from_f16(x);
}

void emulate_dots(float (*c)[4], int columns, word_tile a, word_tile b, bool add, bool bf16) {
  int g = emulate_lane() / 4, t = emulate_lane() % 4, warp = (int)(threadIdx.x / 32 % 4);
  for (int n = 0; n < columns / 8; n++)
    for (int e = 0; e < 4; e++) {
      float sum = add ? c[n][e] : 0;
      for (int k = 0; k < 16; k++)
        sum += tile_element(a, 16 * warp + g + 8 * (e / 2), k, bf16) * tile_element(b, 8 * n + 2 * t + e % 2, k, bf16);
      c[n][e] = sum;
    }
  (void)emulate_exchange("", 1);
}

void emulate_values(float (*c)[4], int columns, const uint32_t a[4], word_tile b, bool bf16) {
  struct operand {
    uint32_t a[4];
  } mine = {{a[0], a[1], a[2], a[3]}};
  const void *deposits = emulate_exchange(&mine, sizeof mine);
  int g = emulate_lane() / 4, t = emulate_lane() % 4;
  for (int n = 0; n < columns / 8; n++)
    for (int e = 0; e < 4; e++)
      for (int k = 0; k < 16; k++) {
        uint32_t x =
            emulate_from<operand>(deposits, 4 * g + k % 8 / 2).a[e / 2 + 2 * (k / 8)] >> (16 * (k % 2)) & 0xFFFF;
        c[n][e] += (bf16 ? attend_f32_from_bf16((uint16_t)x) : attend_f32_from_f16((uint16_t)x)) *
                   tile_element(b, k, 8 * n + 2 * t + e % 2, bf16);
      }
}
