/* SPDX-License-Identifier: MIT */
/* attend run: attention on tensors from files. */
#include "device_tensors.h"

#include <math.h>
#include <string.h>

static const char usage[] =
    "usage: attend run (--q F --k F --v F | --tensors F [--prefix P] | --shape B,H[/HKV],NQ[/NK],D[/DV]) "
    "[OPTION...]\n\n"
    "Compute attention. Inputs are .npy files, or the tensors q, k, v, mask, bias, alibi, sink, kv_len, d_out of one\n"
    ".safetensors file (their names behind --prefix), or random. Prints the kernel, the time and the rate. With "
    "--check\n"
    "the exit status is 1 if any error is beyond what rounding explains.\n";

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && !strcmp(text + n - m, end);
}

typedef struct results {
  const char *names[8];
  const attend_tensor *tensors[8];
  int count;
} results;

static void add(results *s, const char *name, const attend_tensor *t) {
  if (!t) return;
  s->names[s->count] = name;
  s->tensors[s->count++] = t;
}

/* Back to the memory's own order, so that a file has the layout the inputs had. */
static void in_file_layout(const cli_request *r, io_array *a) {
  if (!r->bnhd || a->tensor.ndim != 4) return;
  int64_t n = a->shape[1], s = a->strides[1];
  a->shape[1] = a->shape[2], a->strides[1] = a->strides[2];
  a->shape[2] = n, a->strides[2] = s;
}

static bool write_results(const cli_request *r, cli_call *c, io_error *error) {
  io_array *laid_out[] = {&c->out, &c->d_q, &c->d_k, &c->d_v};
  for (int i = 0; i < 4; i++) in_file_layout(r, laid_out[i]);
  results all = {.count = 0}, gradients = {.count = 0};
  add(&gradients, "d_q", c->args.d_q);
  add(&gradients, "d_k", c->args.d_k);
  add(&gradients, "d_v", c->args.d_v);
  add(&gradients, "d_bias", c->args.d_bias);
  add(&gradients, "d_sink", c->args.d_sink);
  add(&all, "out", c->args.out);
  add(&all, "lse", c->args.lse);
  add(&all, "probs", c->args.probs);
  if (r->out && ends_with(r->out, ".safetensors")) {
    for (int i = 0; i < gradients.count; i++) add(&all, gradients.names[i], gradients.tensors[i]);
    if (!io_safetensors_write(r->out, all.names, all.tensors, all.count, error)) return false;
  } else if (r->out && !io_npy_write(r->out, &c->out.tensor, error))
    return false;
  if (r->lse && !io_npy_write(r->lse, &c->lse.tensor, error)) return false;
  if (r->probs && !io_npy_write(r->probs, &c->probs.tensor, error)) return false;
  return !r->gradients ||
         io_safetensors_write(r->gradients, gradients.names, gradients.tensors, gradients.count, error);
}

/* ---- Against the reference -------------------------------------------------------------------------------------- */

typedef struct judgement {
  double error;     /* the largest of all results */
  double over_gate; /* the largest of error / what rounding alone may make of it; at most 1 is good */
} judgement;

/* Eight units in the last place of the largest element; gradients are sums of rounded products on top of that. */
static void judge(const cli_call *c, const io_array *found, const io_array *exact, bool gradient, judgement *j) {
  const attend_dtype d = found->tensor.dtype;
  double largest, e = cli_largest_difference(&found->tensor, &exact->tensor, &largest);
  double unit = d.bits == 64 ? 0x1p-52 : d.bits == 32 ? 0x1p-23 : d.code == 4 ? 0x1p-7 : 0x1p-10;
  double longest = fmax((double)c->q.shape[2], (double)c->k.shape[c->k.tensor.ndim - 2]);
  double allowed = unit * (largest > 0 ? largest : 1) * (8 + (gradient ? sqrt(longest) : 0));
  if (e > j->error) j->error = e;
  if (e / allowed > j->over_gate) j->over_gate = e / allowed;
}

static bool check(const cli_request *r, cli_call *c, judgement *j, io_error *error) {
  io_array *const found[] = {&c->out, &c->d_q, &c->d_k, &c->d_v, &c->d_bias, &c->d_sink};
  enum { COUNT = sizeof found / sizeof *found };
  io_array exact[COUNT], lse = {.name = ""};
  memset(exact, 0, sizeof exact);
  bool good = io_array_new(&lse, c->lse.tensor.dtype, 3, c->lse.shape, error);
  for (int i = 0; good && i < COUNT; i++)
    if (found[i]->tensor.data)
      good = io_array_new(&exact[i], found[i]->tensor.dtype, found[i]->tensor.ndim, found[i]->shape, error);
  attend_options options = r->options;
  options.backends = ATTEND_BACKEND_REFERENCE;
  options.kernel = NULL;
  attend_args args = c->args;
  args.out = &exact[0].tensor, args.lse = &lse.tensor, args.probs = NULL;
  if (args.d_q) args.d_q = &exact[1].tensor, args.d_k = &exact[2].tensor, args.d_v = &exact[3].tensor;
  if (args.d_bias) args.d_bias = &exact[4].tensor;
  if (args.d_sink) args.d_sink = &exact[5].tensor;
  cli_progress(r, "the f64 reference");
  if (good && (attend_forward_once(&args, &options) || (r->backward && attend_backward_once(&args, &options))))
    good = io_fail(error, "%s", attend_error_message());
  *j = (judgement){0, 0};
  for (int i = 0; good && i < COUNT; i++)
    if (found[i]->tensor.data) judge(c, found[i], &exact[i], i > 0, j);
  for (int i = 0; i < COUNT; i++) io_array_free(&exact[i]);
  io_array_free(&lse);
  return good;
}

/* ---- Running ---------------------------------------------------------------------------------------------------- */

typedef struct outcome {
  attend_explanation explanation; /* of backward, if it was asked for */
  double seconds;                 /* likewise */
  size_t workspace_bytes;         /* that of the direction which needs more */
} outcome;

static bool refused(io_error *error) { return io_fail(error, "%s", attend_error_message()); }

static bool execute(const cli_request *r, cli_call *c, outcome *o, io_error *error) {
  const attend_direction last = r->backward ? ATTEND_BACKWARD : ATTEND_FORWARD;
  attend_plan *plans[2] = {NULL, NULL};
  void *workspace = NULL;
  bool good = device_take(r->device, c, error);
  memset(o, 0, sizeof *o);
  o->explanation.size = sizeof o->explanation;
  for (int i = 0; good && i <= (int)last; i++) {
    good = !attend_plan_create((attend_direction)i, &c->args, &r->options, &plans[i]) || refused(error);
    if (good && attend_plan_workspace_bytes(plans[i]) > o->workspace_bytes)
      o->workspace_bytes = attend_plan_workspace_bytes(plans[i]);
  }
  if (good) good = !attend_explain(last, &c->args, &r->options, &o->explanation) || refused(error);
  if (good) good = !attend_check_indices(plans[0], &c->args, NULL) || refused(error);
  if (good) good = (workspace = device_workspace(r->device, o->workspace_bytes, error)) != NULL;
  for (int i = 0; good && i <= (int)last; i++) {
    cli_progress(r, i ? "backward" : "forward");
    double start = cli_seconds();
    attend_status status = i ? attend_backward(plans[i], &c->args, workspace, o->workspace_bytes, NULL)
                             : attend_forward(plans[i], &c->args, workspace, o->workspace_bytes, NULL);
    good = status ? refused(error) : device_wait(r->device, error);
    o->seconds = cli_seconds() - start;
  }
  device_workspace_free(r->device, workspace);
  attend_plan_destroy(plans[0]);
  attend_plan_destroy(plans[1]);
  io_error second;
  return device_return(r->device, c, good ? error : &second) && good;
}

static void report(const cli_request *r, const cli_call *c, const outcome *o, const judgement *j) {
  const attend_explanation *e = &o->explanation;
  double gflops = cli_call_flops(r, c, r->backward) / o->seconds * 1e-9;
  if (!r->json) {
    printf("%s: %.3g s, %.3g GFLOP/s, workspace %zu bytes", e->kernel, o->seconds, gflops, o->workspace_bytes);
    if (r->check)
      printf(", largest error %.2g (%s: %.2g of what rounding may do)", j->error, j->over_gate <= 1 ? "good" : "BAD",
             j->over_gate);
    printf("\n");
    return;
  }
  cJSON *json = cJSON_CreateObject();
  cJSON_AddStringToObject(json, "kernel", e->kernel);
  cJSON_AddStringToObject(json, "backend", cli_backend_name(e->backend));
  cJSON_AddNumberToObject(json, "seconds", o->seconds);
  cJSON_AddNumberToObject(json, "gflops", gflops);
  if (r->check)
    cJSON_AddNumberToObject(json, "max_error", j->error);
  else
    cJSON_AddNullToObject(json, "max_error");
  cJSON_AddNumberToObject(json, "workspace_bytes", (double)o->workspace_bytes);
  cli_print_json(json);
}

/* Has each result a file of its own, whose name does not promise another format? -1, or the exit status. */
static int check_names(const cli_request *r) {
  const char *const flags[] = {"out", "lse", "probs", "gradients"};
  const char *const names[] = {r->out, r->lse, r->probs, r->gradients};
  const char *const formats[] = {".npy or .safetensors", ".npy", ".npy", ".safetensors"};
  for (int i = 0; i < 4; i++) {
    if (names[i] && !cli_may_hold(names[i], formats[i]))
      return cli_error("run: --%s: expected a name that ends in %s, got %s", flags[i], formats[i], names[i]);
    for (int k = 0; k < i; k++)
      if (names[i] && names[k] && !strcmp(names[i], names[k]))
        return cli_error("run: --%s: expected a file of its own, got %s, which --%s names too", flags[k], names[k],
                         flags[i]);
  }
  return -1;
}

int cli_run(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("run", usage, argc, argv, &r);
  if (code >= 0) return code;
  if (r.gradients && !r.backward) return cli_error("run: --gradients needs --backward");
  cli_call c = {.args = {.size = 0}};
  io_error error;
  outcome o;
  judgement j = {0, 0};
  if ((code = check_names(&r)) >= 0) return code;
  cli_progress(&r, "making the tensors");
  bool good = device_usable(r.device, &error) && cli_call_make(&r, 1, &c, &error) &&
              (!r.probs || cli_call_add_probs(&c, &error)) && (!r.backward || cli_call_add_gradients(&r, &c, &error)) &&
              execute(&r, &c, &o, &error) && (!r.check || check(&r, &c, &j, &error)) && write_results(&r, &c, &error);
  cli_progress(&r, NULL);
  if (good)
    report(&r, &c, &o, &j);
  else
    cli_error("%s", error.text);
  cli_call_free(&c);
  return !good ? EXIT_BAD_INPUT : j.over_gate <= 1 ? EXIT_GOOD : EXIT_CHECK_FAILED;
}
