/* SPDX-License-Identifier: MIT */
/* What the functions around the computation promise: explain, the list of kernels, struct versions, index checks,
 * scores and probabilities. test_bad_input.c has the calls that fail, test_api_threads.c those from several threads. */
#include "attend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { B = 2, H = 4, HKV = 2, NQ = 40, NK = 50, D = 16, COUNT = B * H * NK * D };

typedef struct call {
  attend_args args;
  attend_tensor q, k, v, out;
  float q_data[COUNT], k_data[COUNT], v_data[COUNT], out_data[COUNT];
} call;

static const int64_t q_shape[] = {B, H, NQ, D}, k_shape[] = {B, HKV, NK, D};

static void make_call(call *c) {
  memset(c, 0, sizeof *c);
  for (int i = 0; i < COUNT; i++) {
    c->q_data[i] = (float)((i * 7919) % 1000) / 500 - 1;
    c->k_data[i] = (float)((i * 10473LL) % 991) / 500 - 1;
    c->v_data[i] = (float)((i * 1299LL) % 997) / 500 - 1;
  }
  c->q = attend_tensor_of(c->q_data, ATTEND_F32, 4, q_shape);
  c->k = attend_tensor_of(c->k_data, ATTEND_F32, 4, k_shape);
  c->v = attend_tensor_of(c->v_data, ATTEND_F32, 4, k_shape);
  c->out = attend_tensor_of(c->out_data, ATTEND_F32, 4, q_shape);
  c->args = (attend_args){.q = &c->q, .k = &c->k, .v = &c->v, .out = &c->out};
}

/* ---- Explain and the list --------------------------------------------------------------------------------------- */

static void explain_tells_what_a_plan_does(void **state) {
  (void)state;
  static call c;
  make_call(&c);
  static const uint32_t sets[] = {0, ATTEND_BACKEND_EFFICIENT, ATTEND_BACKEND_MATH, ATTEND_BACKEND_REFERENCE,
                                  ATTEND_BACKEND_MATH | ATTEND_BACKEND_EFFICIENT};
  for (int i = 0; i < 5; i++) {
    attend_options options = {.backends = sets[i], .threads = 2};
    attend_explanation e = {.size = sizeof e};
    assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &e), ATTEND_OK);
    assert_int_equal(e.status, ATTEND_OK);
    attend_plan *plan;
    assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c.args, &options, &plan), ATTEND_OK);
    assert_int_equal(attend_plan_workspace_bytes(plan), e.workspace_bytes);
    attend_plan_destroy(plan);
    int chosen = 0;
    for (int64_t n = 0; n < e.candidate_count; n++) {
      chosen += e.candidates[n].chosen;
      assert_int_equal(e.candidates[n].reason[0] == 0, e.candidates[n].chosen);
      if (e.candidates[n].chosen) assert_string_equal(e.candidates[n].kernel, e.kernel);
      if (e.candidates[n].chosen) assert_int_equal(e.candidates[n].backend, e.backend);
    }
    assert_int_equal(chosen, 1);
    assert_true(e.backend & (sets[i] ? sets[i] : ATTEND_BACKEND_ALL));
    assert_true(e.tile_q >= 1 && e.tile_k >= 1 && e.splits >= 1 && e.threads >= 1 && e.alignment >= 1);
    options.kernel = e.kernel; /* naming the chosen one changes nothing */
    attend_explanation named = {.size = sizeof named};
    assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &named), ATTEND_OK);
    assert_string_equal(named.kernel, e.kernel);
    assert_int_equal(named.workspace_bytes, e.workspace_bytes);
  }
}

static void explain_tells_why_nothing_serves(void **state) {
  (void)state;
  static call c;
  make_call(&c);
  static float scores[B * H * NQ * NK];
  const int64_t full[] = {B, H, NQ, NK};
  attend_tensor s = attend_tensor_of(scores, ATTEND_F32, 4, full);
  c.args.scores = &s;
  attend_options options = {.backends = ATTEND_BACKEND_EFFICIENT};
  attend_explanation e = {.size = sizeof e};
  assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &e), ATTEND_OK);
  assert_int_equal(e.status, ATTEND_ERROR_NO_BACKEND);
  assert_int_equal(e.backend, 0);
  assert_string_equal(e.kernel, "");
  assert_true(e.candidate_count > 1);
  for (int64_t n = 0; n < e.candidate_count; n++) assert_true(e.candidates[n].reason[0] && !e.candidates[n].chosen);
  attend_plan *plan = (attend_plan *)&e;
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c.args, &options, &plan), ATTEND_ERROR_NO_BACKEND);
  assert_null(plan);
  assert_non_null(strstr(attend_error_message(), "_tiled_scalar: does not materialise"));

  attend_explanation untouched;
  memset(&untouched, 0x5A, sizeof untouched);
  untouched.size = sizeof untouched;
  attend_explanation before = untouched;
  c.args.k = NULL;
  assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &untouched), ATTEND_ERROR_NULL);
  assert_memory_equal(&untouched, &before, sizeof before);
  assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, NULL), ATTEND_ERROR_NULL);
  untouched.size = 8;
  assert_int_equal(attend_explain(ATTEND_FORWARD, &c.args, &options, &untouched), ATTEND_ERROR_OPTION);
}

static void kernels_are_listed(void **state) {
  (void)state;
  char names[256][ATTEND_NAME_SIZE];
  int64_t count = 0, reference = 0;
  attend_kernel kernel = {.size = sizeof kernel};
  for (; attend_kernel_at(count, &kernel) == ATTEND_OK; count++) {
    assert_true(count < 256);
    memcpy(names[count], kernel.name, sizeof kernel.name);
    for (int64_t i = 0; i < count; i++) assert_string_not_equal(names[i], kernel.name);
    assert_int_equal(kernel.reason[0] == 0, kernel.usable);
    reference += kernel.backend == ATTEND_BACKEND_REFERENCE;
  }
  assert_int_equal(reference, 2);
  assert_int_equal(attend_kernel_at(count, &kernel), ATTEND_ERROR_INDEX);
  assert_int_equal(attend_kernel_at(-1, &kernel), ATTEND_ERROR_INDEX);
  assert_int_equal(attend_kernel_at(0, NULL), ATTEND_ERROR_NULL);
}

/* ---- Versions --------------------------------------------------------------------------------------------------- */

static void versions_and_names(void **state) {
  (void)state;
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", ATTEND_VERSION_MAJOR, ATTEND_VERSION_MINOR, ATTEND_VERSION_PATCH);
  assert_string_equal(attend_version(), version);
  for (int a = ATTEND_OK; a <= ATTEND_ERROR_CUDA; a++) {
    assert_int_equal(strncmp(attend_status_name((attend_status)a), "ATTEND_", 7), 0);
    for (int b = ATTEND_OK; b < a; b++)
      assert_string_not_equal(attend_status_name((attend_status)a), attend_status_name((attend_status)b));
  }
  assert_non_null(attend_status_name((attend_status)1000));
  assert_non_null(attend_cpu_features());
  assert_true(attend_cpu_threads() >= 1);
}

/* A caller compiled against an older header has shorter structs, one against a newer header longer ones. */
static void structs_of_other_versions(void **state) {
  (void)state;
  static call c;
  make_call(&c);
  static float want[COUNT];
  attend_options options = {.flags = ATTEND_CAUSAL};
  assert_int_equal(attend_forward_once(&c.args, &options), ATTEND_OK);
  memcpy(want, c.out_data, sizeof want);

  options.backends = 1u << 20; /* beyond an older caller's struct: not read */
  options.size = offsetof(attend_options, backends);
  c.args.size = offsetof(attend_args, mask);
  c.args.mask = (const attend_tensor *)(uintptr_t)8;
  memset(c.out_data, 0, sizeof c.out_data);
  assert_int_equal(attend_forward_once(&c.args, &options), ATTEND_OK);
  assert_memory_equal(c.out_data, want, sizeof want);

  struct {
    attend_options known;
    uint64_t more[4];
  } newer = {.known = {.size = sizeof newer, .flags = ATTEND_CAUSAL}};
  c.args.size = 0;
  c.args.mask = NULL;
  memset(c.out_data, 0, sizeof c.out_data);
  assert_int_equal(attend_forward_once(&c.args, &newer.known), ATTEND_OK);
  assert_memory_equal(c.out_data, want, sizeof want);
  newer.more[2] = 1; /* an option that this library does not know */
  memset(c.out_data, 0, sizeof c.out_data);
  assert_int_equal(attend_forward_once(&c.args, &newer.known), ATTEND_ERROR_OPTION);
  assert_non_null(strstr(attend_error_message(), "attend_options"));
  for (int i = 0; i < COUNT; i++) assert_true(c.out_data[i] == 0);
}

/* ---- Execution -------------------------------------------------------------------------------------------------- */

static void one_shot_and_plan_agree(void **state) {
  (void)state;
  static call c;
  make_call(&c);
  static float want[COUNT];
  assert_int_equal(attend(&c.q, &c.k, &c.v, NULL, &c.out), ATTEND_OK);
  memcpy(want, c.out_data, sizeof want);
  attend_plan *plan;
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan), ATTEND_OK);
  size_t bytes = attend_plan_workspace_bytes(plan);
  void *workspace =
      aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, (bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT);
  for (int fill = 0; fill < 256; fill += 85) { /* what the workspace holds does not matter */
    memset(workspace, fill, bytes);
    memset(c.out_data, 0, sizeof c.out_data);
    assert_int_equal(attend_forward(plan, &c.args, workspace, bytes, NULL), ATTEND_OK);
    assert_memory_equal(c.out_data, want, sizeof want);
  }
  free(workspace);
  attend_plan_destroy(plan);
}

static void indices_are_checked_on_request(void **state) {
  (void)state;
  static call c;
  make_call(&c);
  int32_t lengths[B] = {NK, 3};
  const int64_t shape[] = {B};
  attend_tensor kv_len = attend_tensor_of(lengths, ATTEND_I32, 1, shape);
  c.args.kv_len = &kv_len;
  attend_plan *plan;
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c.args, NULL, &plan), ATTEND_OK);
  assert_int_equal(attend_check_indices(plan, &c.args, NULL), ATTEND_OK);
  lengths[1] = NK + 1;
  assert_int_equal(attend_check_indices(plan, &c.args, NULL), ATTEND_ERROR_INDEX);
  assert_non_null(strstr(attend_error_message(), "kv_len[1]"));
  assert_int_equal(attend_check_indices(NULL, &c.args, NULL), ATTEND_ERROR_NULL);
  attend_plan_destroy(plan);
}

/* One query, three keys, by hand: <q,k> = 2, 1, -1; scale 0.5; softcap 2; bias 0, 1, 0; the last key is masked. */
static void scores_and_probabilities(void **state) {
  (void)state;
  float q[] = {1, 0}, k[] = {2, 0, 1, 0, -1, 0}, v[] = {1, 10, 100}, bias[] = {0, 1, 0}, out[1], scores[3], probs[3],
        lse[1];
  uint8_t mask[] = {1, 1, 0};
  const int64_t qs[] = {1, 1, 1, 2}, ks[] = {1, 1, 3, 2}, vs[] = {1, 1, 3, 1}, os[] = {1, 1, 1, 1}, ss[] = {1, 1, 1, 3};
  attend_tensor Q = attend_tensor_of(q, ATTEND_F32, 4, qs), K = attend_tensor_of(k, ATTEND_F32, 4, ks);
  attend_tensor V = attend_tensor_of(v, ATTEND_F32, 4, vs), O = attend_tensor_of(out, ATTEND_F32, 4, os);
  attend_tensor S = attend_tensor_of(scores, ATTEND_F32, 4, ss), P = attend_tensor_of(probs, ATTEND_F32, 4, ss);
  attend_tensor M = attend_tensor_of(mask, ATTEND_BOOL, 4, ss), A = attend_tensor_of(bias, ATTEND_F32, 4, ss);
  attend_tensor L = attend_tensor_of(lse, ATTEND_F32, 3, os);
  attend_args args = {
      .q = &Q, .k = &K, .v = &V, .out = &O, .scores = &S, .probs = &P, .mask = &M, .bias = &A, .lse = &L};
  attend_options options = {.flags = ATTEND_SCALE, .scale = 0.5, .softcap = 2};
  const double raw[] = {1, 0.5, -0.5};
  double capped[3], sum = 0;
  for (int j = 0; j < 3; j++) capped[j] = 2 * tanh(raw[j] / 2);
  const double seen[] = {capped[0], capped[1] + 1, -INFINITY};
  for (int j = 0; j < 2; j++) sum += exp(seen[j]);
  for (int backend = 0; backend < 2; backend++)
    for (int stage = 0; stage < 3; stage++) {
      options.backends = backend ? ATTEND_BACKEND_REFERENCE : 0;
      options.scores_stage = (attend_stage)stage;
      assert_int_equal(attend_forward_once(&args, &options), ATTEND_OK);
      for (int j = 0; j < 3; j++) {
        double want = stage == 0 ? raw[j] : stage == 1 ? capped[j] : seen[j];
        if (isinf(want))
          assert_true((double)scores[j] == want);
        else
          assert_true(fabs((double)scores[j] - want) < 1e-6);
        assert_true(fabs((double)probs[j] - exp(seen[j]) / sum) < 1e-6);
      }
      assert_true(fabs((double)lse[0] - log(sum)) < 1e-6);
      assert_true(fabs((double)out[0] - (exp(seen[0]) + 10 * exp(seen[1])) / sum) < 1e-5);
    }
}

/* ---- Hooks ------------------------------------------------------------------------------------------------------ */

typedef struct account {
  size_t blocks, bytes;
  int logged;
} account;
static void *counted(void *user, size_t bytes, size_t alignment) {
  account *a = user;
  assert_true(alignment && (alignment & (alignment - 1)) == 0);
  a->blocks++;
  a->bytes += bytes;
  return aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
}
static void returned(void *user, void *memory, size_t bytes) {
  account *a = user;
  a->blocks--;
  a->bytes -= bytes;
  free(memory);
}
static void logged(void *user, attend_log_level level, const char *message) {
  (void)level;
  ((account *)user)->logged += message[0] != 0;
}

static void hooks_serve_all_memory(void **state) {
  (void)state;
  static call c;
  make_call(&c);
  account a = {0};
  attend_hooks hooks = {.user = &a, .allocate = counted, .release = returned, .log = logged};
  attend_options options = {.hooks = &hooks, .threads = 3};
  attend_plan *plan;
  assert_int_equal(attend_plan_create(ATTEND_FORWARD, &c.args, &options, &plan), ATTEND_OK);
  assert_int_equal(a.blocks, 1);
  attend_plan_destroy(plan);
  assert_int_equal(attend_forward_once(&c.args, &options), ATTEND_OK);
  assert_int_equal(a.blocks, 0);
  assert_int_equal(a.bytes, 0);
  assert_int_equal(a.logged, 0); /* the CPU has nothing to notice */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(explain_tells_what_a_plan_does),
      cmocka_unit_test(explain_tells_why_nothing_serves),
      cmocka_unit_test(kernels_are_listed),
      cmocka_unit_test(versions_and_names),
      cmocka_unit_test(structs_of_other_versions),
      cmocka_unit_test(one_shot_and_plan_agree),
      cmocka_unit_test(indices_are_checked_on_request),
      cmocka_unit_test(scores_and_probabilities),
      cmocka_unit_test(hooks_serve_all_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
