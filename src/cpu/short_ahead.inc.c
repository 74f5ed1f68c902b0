/* SPDX-License-Identifier: MIT */
/* Short sequences: rows of the next pairs, asked for a few at a time between the steps of this one. */

/* Several (sequence, head) pairs go through each step together, so that the latency at the end of a step (a tree of
 * additions, an exponential) is hidden by the next pair: at most so many, and as many as have so many scores. */
enum { SHORT_BATCH = 8, SHORT_SCORES = 512 };

typedef struct short_ahead {
  struct {
    const char *line; /* the next row's first */
    int64_t step;
    int lines, rows;
  } part[4 * SHORT_BATCH];
  int parts, now, rows;
  int pace;    /* rows asked for at a time */
  bool second; /* into the second-level cache */
} short_ahead;

enum { SHORT_AHEAD = 256 }; /* bytes of a row, at least, where rows follow each other */

/* Rows that do not all begin at the same byte of a line are taken to end a line later. */
static inline void short_ahead_add(short_ahead *a, const attend_matrix *m, int64_t rows, int64_t columns,
                                   attend_type type) {
  const int64_t size = (int64_t)attend_type_size(type);
  int64_t step = m->row * size, bytes = columns * size;
  if (!m->data || m->col != 1 || rows <= 0) return;
  if (step == bytes && bytes < SHORT_AHEAD) /* one after another: as longer ones */
    rows = (rows * bytes + SHORT_AHEAD - 1) / SHORT_AHEAD, step = bytes = SHORT_AHEAD;
  const int64_t before = (int64_t)((uintptr_t)m->data % 64), most = step % 64 ? 63 : before;
  a->part[a->parts].line = m->data - before;
  a->part[a->parts].step = step;
  a->part[a->parts].lines = (int)((most + bytes + 63) / 64);
  a->part[a->parts++].rows = (int)rows;
  a->rows += (int)rows;
}
WORD void short_ahead_lines(const char *line, int lines, bool second) {
#pragma GCC unroll 4
  for (int i = 0; i < lines; i++, line += 64)
    if (second)
      __builtin_prefetch(line, 0, 2);
    else
      __builtin_prefetch(line);
}
/* The lines in which rows end that are to be stored past the cache, where others begin in them: a store that misses the
 * cache holds up all behind it. 512 x 8 pairs of 5 tokens, backward: 4.8 ms without, 3.1 with; 2.6 where rows share
 * none. */
static inline void short_ahead_ends(short_ahead *a, attend_matrix m, int64_t rows, int64_t columns, attend_type type) {
  if ((uintptr_t)m.data % 64 == 0) return;
  m.data += (columns - 1) * (int64_t)attend_type_size(type);
  short_ahead_add(a, &m, rows, 1, type);
}
static void short_ahead_ask(short_ahead *a, int count) {
  while (count > 0 && a->now < a->parts) {
    const char *line = a->part[a->now].line;
    const int64_t step = a->part[a->now].step;
    const int lines = a->part[a->now].lines, rows = count < a->part[a->now].rows ? count : a->part[a->now].rows;
    const bool second = a->second;
    for (int r = 0; r < rows; r++, line += step)
      if (lines == 4)
        short_ahead_lines(line, 4, second);
      else
        short_ahead_lines(line, lines, second);
    a->part[a->now].line = line;
    if ((a->part[a->now].rows -= rows) == 0) a->now++;
    count -= rows;
  }
}
WORD void short_ahead_rows(short_ahead *a, int count) {
  if (a->now < a->parts) short_ahead_ask(a, count); /* a call's only pair has none to ask for */
}

/* So many pairs ahead rows are asked for; backward, one ahead took 4 to 10% more in [B,N,H,D] memory. */
enum { SHORT_LEAD = 2 };

/* Tiles of one pair, at each of which rows are asked for: `scores` and `values` products of either kind. */
static int short_tiles(const attend_problem *p, const attend_slice *s, int scores, int values) {
  int64_t sums = (s->q_len * s->k_len + LANES - 1) / LANES, wide = (p->v_dim + 4 * LANES - 1) / (4 * LANES);
  return (int)(scores * sums + values * ((s->q_len + 1) / 2) * wide);
}
