/* SPDX-License-Identifier: MIT */
/* attend run: attention on tensors from files. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: attend run (--q F --k F --v F | --tensors F [--prefix P] | --shape B,H[/HKV],NQ[/NK],D[/DV]) "
    "[OPTION...]\n\n"
    "Compute attention. Inputs are .npy files, or the tensors q, k, v, mask, bias, alibi, sink, kv_len, d_out of one\n"
    ".safetensors file (their names behind --prefix), or random. Prints the kernel, the time and the rate.\n\n"
    "  --out F --lse F --probs F   write results to .npy files; --probs runs a back-end that has them\n"
    "  --out F.safetensors         all results in one file\n"
    "  --backward --gradients F    also the gradients (.safetensors), from --d-out F or a random one\n"
    "  --check                     compare with the f64 reference; exit status 1 if the error is beyond rounding\n";

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

/* The largest error of out against the reference, and what rounding alone may make of it: see house rule "accuracy". */
static bool check(const cli_request *r, cli_call *c, double *error_found, double *allowed, io_error *error) {
  io_array exact;
  if (!io_array_new(&exact, c->out.tensor.dtype, 4, c->out.shape, error)) return false;
  attend_args args = c->args;
  attend_options options = r->options;
  args.out = &exact.tensor;
  args.lse = args.probs = args.scores = NULL;
  options.backends = ATTEND_BACKEND_REFERENCE;
  options.kernel = NULL;
  bool good = attend_forward_once(&args, &options) == ATTEND_OK || io_fail(error, "%s", attend_error_message());
  double largest = 0;
  if (good) *error_found = cli_largest_difference(&c->out.tensor, &exact.tensor, &largest);
  const attend_dtype d = c->out.tensor.dtype;
  double unit = d.bits == 64 ? 0x1p-52 : d.bits == 32 ? 0x1p-23 : d.code == 4 ? 0x1p-7 : 0x1p-10;
  *allowed = 8 * unit * (largest > 0 ? largest : 1);
  io_array_free(&exact);
  return good;
}

int cli_run(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("run", help, argc, argv, &r);
  if (code >= 0) return code;
  if (r.device.type != ATTEND_CPU) return cli_error("run: --device cuda: tensors of files are computed on the CPU");
  if (r.gradients && !r.backward) return cli_error("run: --gradients needs --backward");
  cli_call c;
  io_error error;
  code = EXIT_BAD_INPUT;
  attend_plan *forward = NULL, *backward = NULL;
  void *workspace = NULL;
  if (!cli_call_make(&r, 1, &c, &error) || (r.probs && !cli_call_add_probs(&c, &error)) ||
      (r.backward && !cli_call_add_gradients(&r, &c, &error))) {
    cli_error("%s", error.text);
    goto done;
  }
  attend_explanation e = {.size = sizeof e};
  double seconds[2] = {0, 0}, max_error = -1, allowed = 0;
  size_t bytes = 0;
  if (attend_plan_create(ATTEND_FORWARD, &c.args, &r.options, &forward) ||
      (r.backward && attend_plan_create(ATTEND_BACKWARD, &c.args, &r.options, &backward)) ||
      attend_explain(r.backward ? ATTEND_BACKWARD : ATTEND_FORWARD, &c.args, &r.options, &e)) {
    cli_error("%s", attend_error_message());
    goto done;
  }
  const attend_plan *plans[2] = {forward, backward};
  for (int i = 0; i < 2; i++)
    if (plans[i] && attend_plan_workspace_bytes(plans[i]) > bytes) bytes = attend_plan_workspace_bytes(plans[i]);
  workspace =
      aligned_alloc(ATTEND_WORKSPACE_ALIGNMENT, (bytes / ATTEND_WORKSPACE_ALIGNMENT + 1) * ATTEND_WORKSPACE_ALIGNMENT);
  if (!workspace) {
    cli_error("out of memory: a workspace of %zu bytes", bytes);
    goto done;
  }
  for (int i = 0; i < 2 && plans[i]; i++) {
    double start = cli_seconds();
    if (i ? attend_backward(plans[i], &c.args, workspace, bytes, NULL)
          : attend_forward(plans[i], &c.args, workspace, bytes, NULL)) {
      cli_error("%s", attend_error_message());
      goto done;
    }
    seconds[i] = cli_seconds() - start;
  }
  if (r.check && !check(&r, &c, &max_error, &allowed, &error)) {
    cli_error("%s", error.text);
    goto done;
  }
  double gflops = cli_call_flops(&r, &c, r.backward) / seconds[r.backward] * 1e-9;
  if (!write_results(&r, &c, &error)) {
    cli_error("%s", error.text);
    goto done;
  }
  if (r.json) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kernel", e.kernel);
    cJSON_AddStringToObject(json, "backend", cli_backend_name(e.backend));
    cJSON_AddNumberToObject(json, "seconds", seconds[r.backward]);
    cJSON_AddNumberToObject(json, "gflops", gflops);
    if (r.check)
      cJSON_AddNumberToObject(json, "max_error", max_error);
    else
      cJSON_AddNullToObject(json, "max_error");
    cJSON_AddNumberToObject(json, "workspace_bytes", (double)bytes);
    cli_print_json(json);
  } else {
    printf("%s: %.3g s, %.3g GFLOP/s, workspace %zu bytes", e.kernel, seconds[r.backward], gflops, bytes);
    if (r.check)
      printf(", error %.2g (%s: at most %.2g is rounding)", max_error, max_error <= allowed ? "good" : "BAD", allowed);
    printf("\n");
  }
  code = r.check && !(max_error <= allowed) ? EXIT_CHECK_FAILED : EXIT_GOOD;
done:
  free(workspace);
  attend_plan_destroy(forward);
  attend_plan_destroy(backward);
  cli_call_free(&c);
  return code;
}
