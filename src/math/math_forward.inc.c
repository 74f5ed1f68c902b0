/* SPDX-License-Identifier: MIT */
/* Forward: scores, softmax, weighted sum of the values, one block of queries at a time. */

typedef struct forward {
  const attend_problem *p;
  const attend_operands *o;
  char *workspace;
} forward;

size_t ENTRY(math_forward_bytes)(const attend_problem *p) {
  int64_t rows = block_rows(p), reals = key_block_reals(p) + rows * (p->head_dim + p->v_dim + p->k_len);
  return ((size_t)reals * sizeof(real) + (size_t)(rows * p->k_len) + 256) / 256 * 256;
}

/* Outputs of size Nq x Nk, where i is beyond the sequence or j is not among the keys of the block. */
static void write_outside(const attend_problem *p, const attend_slice *s, int64_t i, int64_t first, int64_t last) {
  for (int64_t j = 0; j < p->k_len; j++) {
    if (j >= first && j < last) continue;
    if (s->scores.data)
      attend_store(s->scores.data, i * s->scores.row + j * s->scores.col, p->layout[OPERAND_SCORES].type, -INFINITY);
    if (s->probs.data)
      attend_store(s->probs.data, i * s->probs.row + j * s->probs.col, p->layout[OPERAND_PROBS].type, 0);
  }
}

/* Scores of one row to probabilities; returns lse. */
static double softmax_row(real *scores, const unsigned char *seen, int64_t n, double sink) {
  double largest = sink;
  for (int64_t x = 0; x < n; x++)
    if (scores[x] > largest) largest = scores[x];
  double shift = largest == -INFINITY ? 0 : largest, sum = exp(sink - shift);
  for (int64_t x = 0; x < n; x++) {
    scores[x] = seen[x] ? real_exp((real)(scores[x] - shift)) : 0;
    sum += scores[x];
  }
  real inverse = sum == 0 ? 0 : (real)(1 / sum);
  for (int64_t x = 0; x < n; x++) scores[x] *= inverse;
  return shift + log(sum);
}

static void forward_block(void *context, int worker, int64_t index) {
  const forward *f = context;
  const attend_problem *p = f->p;
  int64_t block_index = index % block_count(p), pair = index / block_count(p);
  attend_slice s;
  attend_slice_make(p, f->o, pair / p->heads, pair % p->heads, &s);

  int64_t limit = block_rows(p);
  query_block block = {.first = block_index * MATH_ROWS, .rows = limit};
  real *memory = (real *)(void *)(f->workspace + (size_t)worker * ENTRY(math_forward_bytes)(p));
  block.q = memory + key_block_reals(p);
  block.scores = block.q + limit * p->head_dim;
  real *out = block.scores + limit * p->k_len;
  block.seen = (unsigned char *)(out + limit * p->v_dim);
  if (block.rows > p->q_len - block.first) block.rows = p->q_len - block.first;
  for (int64_t r = 0; r < block.rows; r++)
    if (block.first + r >= s.q_len) write_outside(p, &s, block.first + r, 0, 0);
  if (block.rows > s.q_len - block.first) block.rows = s.q_len - block.first;
  if (block.rows <= 0) return;

  if (s.scores.data) /* the caller sees hidden pairs too */
    block.n = s.k_len;
  else
    visible_keys(p, &s, &block);
  int64_t n = block.n, last = block.keys_first + n;
  key_block keys = load_keys(p, &s, block.keys_first, last, memory);
  score_block(p, &s, &keys, &block, NULL);
  for (int64_t r = 0; r < block.rows; r++) {
    int64_t i = block.first + r;
    write_outside(p, &s, i, block.keys_first, last);
    double lse = softmax_row(block.scores + r * n, block.seen + r * n, n, s.sink);
    if (s.lse) attend_store(s.lse, i * s.lse_row, p->layout[OPERAND_LSE].type, lse);
    if (s.probs.data)
      for (int64_t x = 0; x < n; x++)
        attend_store(s.probs.data, i * s.probs.row + (block.keys_first + x) * s.probs.col,
                     p->layout[OPERAND_PROBS].type, (double)block.scores[r * n + x]);
  }
  drop_block(p, f->o, &s, &block, block.scores);
  memset(out, 0, (size_t)(block.rows * p->v_dim) * sizeof(real));
  product(block.rows, p->v_dim, n, (factor){block.scores, n, 1, keys.finite ? NULL : block.seen}, keys.v, p->v_dim, out,
          p->v_dim);
  for (int64_t r = 0; r < block.rows; r++)
    for (int64_t c = 0; c < p->v_dim; c++)
      attend_store(s.out.data, (block.first + r) * s.out.row + c * s.out.col, p->type, (double)out[r * p->v_dim + c]);
}

void ENTRY(math_forward)(const attend_problem *p, int threads, const attend_operands *o,
                         const attend_services *services, void *workspace) {
  forward f = {p, o, workspace};
  attend_for_each(services, threads, p->batch * p->heads * block_count(p), forward_block, &f);
}
