/* SPDX-License-Identifier: MIT */
/* A sequence's bits are its own: the same in a dense call, in a ragged batch of it alone, in a ragged batch with short
 * and long neighbours, in a batch with longer memory and kv_len, and in a paged cache. Every kernel of this machine
 * where it serves, and the library's own choice in each back-end. */
#include "api/element.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

enum { H = 4, BLOCK = 16, MOST_BLOCKS = 48, SPARE = 37 };

static int64_t key_heads = 2;

/* Short, decoding, long; edges of each; empty; few tokens, which some instruction sets have code of their own for. */
static const struct {
  int64_t q, k;
} lengths[] = {{5, 5}, {1, 40}, {16, 600}, {33, 33}, {32, 32}, {3, 700}, {0, 4},   {20, 7},  {70, 200},
               {1, 1}, {2, 0},  {8, 32},   {17, 40}, {2, 2},   {3, 3},   {4, 4},   {6, 6},   {7, 7},
               {8, 8}, {9, 9},  {10, 10},  {11, 11}, {12, 12}, {13, 13}, {14, 14}, {15, 15}, {16, 16}};
enum { SEQUENCES = sizeof lengths / sizeof lengths[0] };

static const struct {
  attend_dtype dtype;
  attend_type type;
} types[] = {{{2, 32, 1}, TYPE_F32}, {{2, 16, 1}, TYPE_F16}, {{4, 16, 1}, TYPE_BF16}, {{2, 64, 1}, TYPE_F64}};

/* The tensors of one call, each a view of rows of `memory`. */
enum { Q, K, V, OUT, LSE, D_OUT, D_Q, D_K, D_V, TENSORS };
typedef struct batch {
  char *memory[TENSORS];
  int64_t rows[TENSORS], row[TENSORS]; /* elements of a row: heads * dimension */
  int64_t q_offsets[SEQUENCES + 1], k_offsets[SEQUENCES + 1];
  size_t size;
  int type;
  int64_t d, dv;
} batch;

static bool is_keys(int id) { return id == K || id == V || id == D_K || id == D_V; }

static void make(batch *x, int type, int64_t d, int64_t dv) {
  const int64_t row[TENSORS] = {H * d,  key_heads * d, key_heads * dv, H * dv,        H,
                                H * dv, H * d,         key_heads * d,  key_heads * dv};
  uint64_t state = 1;
  *x = (batch){.size = attend_type_size(types[type].type), .type = type, .d = d, .dv = dv};
  for (int s = 0; s < SEQUENCES; s++) {
    x->q_offsets[s + 1] = x->q_offsets[s] + lengths[s].q;
    x->k_offsets[s + 1] = x->k_offsets[s] + lengths[s].k;
  }
  for (int id = 0; id < TENSORS; id++) {
    x->row[id] = row[id];
    x->rows[id] = is_keys(id) ? x->k_offsets[SEQUENCES] : x->q_offsets[SEQUENCES];
    x->memory[id] = calloc((size_t)(x->rows[id] * row[id]) + 1, 8);
    for (int64_t i = 0; i < x->rows[id] * row[id] && (id <= V || id == D_OUT); i++) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      attend_store(x->memory[id], i, types[type].type, (double)(int64_t)(state >> 40) * 0x1p-22 - 2);
    }
  }
}
static void release(batch *x) {
  for (int id = 0; id < TENSORS; id++) free(x->memory[id]);
}

/* ---- Calls ------------------------------------------------------------------------------------------------------ */

typedef struct call {
  attend_tensor t[TENSORS], index[3];
  int64_t shape[TENSORS][4], strides[TENSORS][4], index_shape[3][2];
  attend_args args;
} call;

/* Shapes of sequences s …, rows given by offsets (ragged) or `sequences` times q_len, k_len (dense). The results' rows
 * begin at those of `to`. */
static void describe(call *c, const batch *x, bool ragged, int64_t sequences, int64_t q_len, int64_t k_len,
                     char *const data[TENSORS]) {
  *c = (call){.args = {.dropout_seed = 7}};
  for (int id = 0; id < TENSORS; id++) {
    int64_t heads = is_keys(id) ? key_heads : H, length = is_keys(id) ? k_len : q_len, width = x->row[id] / heads,
            n = 0;
    int64_t *shape = c->shape[id], *strides = c->strides[id];
    if (id == LSE) {
      if (!ragged) shape[n] = sequences, strides[n++] = length * H;
      shape[n] = H, strides[n++] = 1;
      shape[n] = length, strides[n++] = H;
    } else if (ragged) {
      shape[n] = length, strides[n++] = x->row[id];
      shape[n] = heads, strides[n++] = width;
      shape[n] = width, strides[n++] = 1;
    } else {
      shape[n] = sequences, strides[n++] = length * x->row[id];
      shape[n] = heads, strides[n++] = width;
      shape[n] = length, strides[n++] = x->row[id];
      shape[n] = width, strides[n++] = 1;
    }
    attend_dtype dtype = id == LSE && types[x->type].type != TYPE_F64 ? ATTEND_F32 : types[x->type].dtype;
    c->t[id] = attend_tensor_strided(data[id], dtype, (int32_t)n, shape, strides);
  }
  c->args.q = &c->t[Q], c->args.k = &c->t[K], c->args.v = &c->t[V], c->args.out = &c->t[OUT], c->args.lse = &c->t[LSE];
}

static const attend_tensor *indices(call *c, int slot, int64_t *values, int64_t count) {
  c->index_shape[slot][0] = count;
  c->index[slot] = attend_tensor_of(values, ATTEND_I64, 1, c->index_shape[slot]);
  return &c->index[slot];
}

/* Forward, then backward if wanted; false if this kernel or back-end does not serve the call. */
static bool run(call *c, attend_direction direction, const attend_options *options) {
  c->args.d_out = direction ? &c->t[D_OUT] : NULL;
  c->args.d_q = direction ? &c->t[D_Q] : NULL;
  c->args.d_k = direction ? &c->t[D_K] : NULL;
  c->args.d_v = direction ? &c->t[D_V] : NULL;
  attend_status s = (direction ? attend_backward_once : attend_forward_once)(&c->args, options);
  if (s && s != ATTEND_ERROR_NO_BACKEND) fail_msg("%s", attend_error_message());
  return s == ATTEND_OK;
}

static size_t row_bytes(const batch *x, int id) {
  return (size_t)x->row[id] * (id == LSE && x->size < 4 ? 4 : x->size);
}
static char *row_of(const batch *x, int id, int64_t row) { return x->memory[id] + row * (int64_t)row_bytes(x, id); }
static int64_t first_of(const batch *x, int id, int s) { return is_keys(id) ? x->k_offsets[s] : x->q_offsets[s]; }
static int64_t rows_of(int id, int s) { return is_keys(id) ? lengths[s].k : lengths[s].q; }

/* Results of sequence s in `found` (from row `first` of each kind on) against those in x. */
static int compare(const batch *x, int s, attend_direction direction, char *const found[TENSORS], const char *form,
                   const attend_options *options) {
  static const char *const names[TENSORS] = {[OUT] = "out", [LSE] = "lse", [D_Q] = "d_q", [D_K] = "d_k", [D_V] = "d_v"};
  for (int id = 0; id < TENSORS; id++) {
    size_t bytes = row_bytes(x, id) * (size_t)rows_of(id, s);
    if (!names[id] || (id > LSE) != (direction == ATTEND_BACKWARD)) continue;
    if (!memcmp(found[id], row_of(x, id, first_of(x, id, s)), bytes)) continue;
    print_message(
        "%s: %s of %d queries and %d keys differs from a dense call (D %d, Dv %d, type %d, %s, set %u, flags %x)\n",
        form, names[id], (int)lengths[s].q, (int)lengths[s].k, (int)x->d, (int)x->dv, types[x->type].type,
        options->kernel ? options->kernel : "own choice", options->backends, options->flags);
    return 1;
  }
  return 0;
}

static void copies_make(const batch *x, int64_t q_rows, int64_t k_rows, char *copies[TENSORS]) {
  for (int id = 0; id < TENSORS; id++)
    copies[id] = calloc((size_t)(is_keys(id) ? k_rows : q_rows) + 1, row_bytes(x, id));
}
static void copies_free(char *copies[TENSORS]) {
  for (int id = 0; id < TENSORS; id++) free(copies[id]);
}

/* ---- Forms ------------------------------------------------------------------------------------------------------ */

static int compared;

/* Ragged, of sequences first … last - 1. Backward reads the out and lse of x: those of dense calls. */
static int check_ragged(const batch *x, int first, int last, attend_direction direction,
                        const attend_options *options) {
  int failed = 0;
  char *data[TENSORS], *results[TENSORS];
  int64_t q_offsets[SEQUENCES + 1], k_offsets[SEQUENCES + 1];
  for (int s = first; s <= last; s++) {
    q_offsets[s - first] = x->q_offsets[s] - x->q_offsets[first];
    k_offsets[s - first] = x->k_offsets[s] - x->k_offsets[first];
  }
  int64_t q_rows = q_offsets[last - first], k_rows = k_offsets[last - first];
  copies_make(x, q_rows, k_rows, results);
  for (int id = 0; id < TENSORS; id++) {
    bool result = direction ? id >= D_Q : id == OUT || id == LSE;
    data[id] = result ? results[id] : row_of(x, id, first_of(x, id, first));
  }
  call c;
  describe(&c, x, true, 0, q_rows, k_rows, data);
  c.args.q_offsets = indices(&c, 0, q_offsets, last - first + 1);
  c.args.k_offsets = indices(&c, 1, k_offsets, last - first + 1);
  if (run(&c, direction, options)) {
    compared++;
    for (int s = first; s < last; s++) {
      char *found[TENSORS];
      for (int id = 0; id < TENSORS; id++)
        found[id] = data[id] + (first_of(x, id, s) - first_of(x, id, first)) * (int64_t)row_bytes(x, id);
      failed += compare(x, s, direction, found, last - first == 1 ? "ragged, alone" : "ragged, all", options);
    }
  }
  copies_free(results);
  return failed;
}

/* Dense, the second of two sequences whose memory has SPARE keys more than it; the first has all of them. */
static int check_kv_len(const batch *x, int s, attend_direction direction, const attend_options *options) {
  int failed = 0;
  int64_t q_len = lengths[s].q, k_len = lengths[s].k, room = k_len + SPARE, kv_len[2] = {room, k_len};
  char *data[TENSORS], *found[TENSORS];
  copies_make(x, 2 * q_len, 2 * room, data);
  for (int id = 0; id < TENSORS; id++) {
    size_t bytes = row_bytes(x, id) * (size_t)rows_of(id, s);
    found[id] = data[id] + (is_keys(id) ? room : q_len) * (int64_t)row_bytes(x, id);
    memcpy(found[id], row_of(x, id, first_of(x, id, s)), bytes);
    if (!direction && (id == OUT || id == LSE)) memset(found[id], 0, bytes);
    if (id >= D_Q) memset(found[id], 0xFF, row_bytes(x, id) * (size_t)(is_keys(id) ? room : q_len));
  }
  call c;
  describe(&c, x, false, 2, q_len, room, data);
  c.args.kv_len = indices(&c, 0, kv_len, 2);
  if (run(&c, direction, options)) {
    compared++;
    failed += compare(x, s, direction, found, "kv_len", options);
    for (int id = D_K; id <= D_V && direction; id++)
      for (size_t i = 0; i < row_bytes(x, id) * SPARE; i++)
        if (found[id][row_bytes(x, id) * (size_t)k_len + i]) fail_msg("a gradient of keys behind kv_len is not 0");
  }
  copies_free(data);
  return failed;
}

/* Queries ragged, keys in blocks that lie in descending order. */
static int check_paged(const batch *x, const attend_options *options) {
  int failed = 0;
  int64_t kv_len[SEQUENCES], table[SEQUENCES * MOST_BLOCKS], blocks = (int64_t)SEQUENCES * MOST_BLOCKS;
  int64_t q_offsets[SEQUENCES + 1];
  char *data[TENSORS];
  copies_make(x, x->rows[Q], blocks * BLOCK, data);
  memcpy(data[Q], x->memory[Q], row_bytes(x, Q) * (size_t)x->rows[Q]);
  memcpy(q_offsets, x->q_offsets, sizeof q_offsets);
  for (int s = 0; s < SEQUENCES; s++) {
    kv_len[s] = lengths[s].k;
    for (int64_t n = 0; n < MOST_BLOCKS; n++) table[s * MOST_BLOCKS + n] = blocks - 1 - (s * MOST_BLOCKS + n);
    for (int64_t j = 0; j < lengths[s].k; j++)
      for (int id = K; id <= V; id++)
        memcpy(data[id] + (table[s * MOST_BLOCKS + j / BLOCK] * BLOCK + j % BLOCK) * (int64_t)row_bytes(x, id),
               row_of(x, id, x->k_offsets[s] + j), row_bytes(x, id));
  }
  call c;
  describe(&c, x, true, 0, x->rows[Q], BLOCK, data);
  for (int id = K; id <= V; id++) {
    int64_t width = x->row[id] / key_heads, *shape = c.shape[id], *strides = c.strides[id];
    shape[0] = blocks, shape[1] = key_heads, shape[2] = BLOCK, shape[3] = width;
    strides[0] = BLOCK * x->row[id], strides[1] = width, strides[2] = x->row[id], strides[3] = 1;
    c.t[id].ndim = 4;
  }
  c.args.q_offsets = indices(&c, 0, q_offsets, SEQUENCES + 1);
  c.args.kv_len = indices(&c, 1, kv_len, SEQUENCES);
  c.index_shape[2][0] = SEQUENCES, c.index_shape[2][1] = MOST_BLOCKS;
  c.index[2] = attend_tensor_of(table, ATTEND_I64, 2, c.index_shape[2]);
  c.args.block_table = &c.index[2];
  if (run(&c, ATTEND_FORWARD, options)) {
    compared++;
    for (int s = 0; s < SEQUENCES; s++) {
      char *found[TENSORS];
      for (int id = 0; id < TENSORS; id++) found[id] = data[id] + x->q_offsets[s] * (int64_t)row_bytes(x, id);
      failed += compare(x, s, ATTEND_FORWARD, found, "paged", options);
    }
  }
  copies_free(data);
  return failed;
}

/* Every sequence by a dense call of its own, into x; false if one of them is not served. */
static bool run_dense(batch *x, attend_direction direction, const attend_options *options) {
  for (int s = 0; s < SEQUENCES; s++) {
    char *data[TENSORS];
    for (int id = 0; id < TENSORS; id++) data[id] = row_of(x, id, first_of(x, id, s));
    call c;
    describe(&c, x, false, 1, lengths[s].q, lengths[s].k, data);
    if (!run(&c, direction, options)) return false;
  }
  return true;
}

/* Kernels that serve only some lengths: each sequence that they do, alone. */
static int check_some(batch *x, attend_direction direction, const attend_options *options) {
  int failed = 0;
  for (int s = 0; s < SEQUENCES; s++) {
    char *data[TENSORS];
    for (int id = 0; id < TENSORS; id++) data[id] = row_of(x, id, first_of(x, id, s));
    call c;
    describe(&c, x, false, 1, lengths[s].q, lengths[s].k, data);
    if (!run(&c, direction, options)) continue;
    failed += check_ragged(x, s, s + 1, direction, options);
    failed += check_kv_len(x, s, direction, options);
  }
  return failed;
}

static int check(batch *x, attend_direction direction, const attend_options *options) {
  if (!run_dense(x, direction, options)) return options->kernel ? check_some(x, direction, options) : 0;
  int failed = check_ragged(x, 0, SEQUENCES, direction, options);
  for (int s = 0; s < SEQUENCES; s++) {
    failed += check_ragged(x, s, s + 1, direction, options);
    failed += check_kv_len(x, s, direction, options);
  }
  return direction ? failed : failed + check_paged(x, options);
}

static void same_bits_in_any_form(void **state) {
  (void)state;
  static const uint32_t sets[] = {0, ATTEND_BACKEND_FLASH, ATTEND_BACKEND_EFFICIENT, ATTEND_BACKEND_MATH};
  static const struct {
    int64_t d, dv, key_heads;
    attend_options options;
  } cases[] = {{64, 64, 2, {.flags = ATTEND_CAUSAL}},
               {64, 64, H, {.flags = ATTEND_CAUSAL}},
               {64, 64, H, {0}},
               {20, 36, 2, {.softcap = 5}}};
  int failed = 0;
  for (int type = 0; type < 4; type++)
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
      batch x;
      key_heads = cases[n].key_heads;
      make(&x, type, cases[n].d, cases[n].dv);
      for (attend_direction d = ATTEND_FORWARD; d <= ATTEND_BACKWARD; d++) {
        attend_options options = cases[n].options, reference = options;
        options.threads = 2;
        reference.backends = ATTEND_BACKEND_REFERENCE;
        if (d) assert_true(run_dense(&x, ATTEND_FORWARD, &reference)); /* what every backward reads */
        for (int i = 0; i < 4; i++) {
          options.backends = sets[i];
          failed += check(&x, d, &options);
        }
        options.backends = 0;
        attend_kernel k;
        for (int64_t i = 0; k.size = sizeof k, attend_kernel_at(i, &k) == ATTEND_OK; i++) {
          if (!k.usable || k.device != ATTEND_CPU || k.direction != (int32_t)d || k.dtype.bits == 0 ||
              memcmp(&k.dtype, &types[type].dtype, sizeof k.dtype) != 0)
            continue;
          options.kernel = k.name;
          failed += check(&x, d, &options);
        }
      }
      release(&x);
    }
  print_message("%d batches compared with dense calls\n", compared);
  assert_int_equal(failed, 0);
}

/* ---- Explain ---------------------------------------------------------------------------------------------------- */

static void explain_tells_which_lengths(void **state) {
  (void)state;
  batch x;
  make(&x, 0, 64, 64);
  call c;
  describe(&c, &x, true, 0, x.rows[Q], x.rows[K], x.memory);
  c.args.q_offsets = indices(&c, 0, x.q_offsets, SEQUENCES + 1);
  c.args.k_offsets = indices(&c, 1, x.k_offsets, SEQUENCES + 1);
  static const struct {
    int64_t q, k;
    const char *chosen, *others[2];
  } cases[] = {{32, 32, "short", {NULL}}, {16, 700, "decode", {"short"}}, {70, 700, "tiled", {"short", "decode"}}};
  for (int i = 0; i < 3; i++) {
    attend_options options = {.max_q_len = cases[i].q, .max_k_len = cases[i].k};
    attend_explanation e = {.size = sizeof e};
    assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &e), ATTEND_OK);
    assert_non_null(strstr(e.kernel, cases[i].chosen));
    int others = 0;
    for (int64_t n = 0; n < e.candidate_count; n++) {
      const attend_candidate *candidate = &e.candidates[n];
      if (!candidate->chosen) continue;
      if (!strcmp(candidate->kernel, e.kernel)) {
        assert_string_equal(candidate->reason, "");
        continue;
      }
      assert_non_null(strstr(candidate->kernel, cases[i].others[others++]));
      assert_non_null(strstr(candidate->reason, "only for sequences of up to"));
    }
    assert_int_equal(others, i);
    options.kernel = e.kernel; /* to name it is to ask it for all of them: only the last agrees */
    assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &e), ATTEND_OK);
    assert_int_equal(e.status, ATTEND_OK);
  }
  attend_options options = {.kernel = "forward_f32_short_scalar"};
  attend_plan *plan;
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c.args, &options, &plan), ATTEND_ERROR_NO_BACKEND);
  assert_non_null(strstr(attend_error_message(), "forward_f32_short_scalar: only for sequences of up to 32 queries"));
  release(&x);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits_in_any_form),
                                     cmocka_unit_test(explain_tells_which_lengths)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
