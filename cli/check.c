/* SPDX-License-Identifier: MIT */
/* attend check: every kernel this machine has, on fresh random inputs, against the f64 reference.
 *
 * The gate is FlashAttention's: the largest error is at most twice that of the naive computation in the same element
 * type (three times for gradients), plus two units in the last place of the largest element. The naive computation here
 * is the reference with its scores and probabilities rounded to the type. For f64 it is made in f32 and its error
 * scaled down, and the gate is twice as wide: there the reference errs as much as what it judges. */
#include "device_tensors.h"

#include "api/element.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] =
    "usage: attend check [OPTION...]\n\n"
    "Run every usable kernel, of the CPU and of a GPU (by default the first) or of --device alone, over a grid of\n"
    "shapes and options on random inputs, and compare with the f64 reference. Exit status 1 if any kernel is beyond\n"
    "rounding.\n";

typedef struct variant {
  const char *says;
  int64_t shape[7]; /* B, H, Hkv, Nq, Nk, D, Dv */
  uint32_t flags;
  double softcap, dropout;
  int64_t left, right;
  bool mask, bias, bnhd;
} variant;

static const variant variants[] = {
    {"plain", {2, 3, 3, 33, 47, 64, 64}, 0, 0, 0, 0, 0, 0, 0, 0},
    {"causal", {1, 4, 2, 129, 200, 64, 64}, ATTEND_CAUSAL, 0, 0, 0, 0, 0, 0, 0},
    {"top-left causal, one K/V head", {2, 4, 1, 70, 40, 32, 48}, ATTEND_CAUSAL | ATTEND_TOP_LEFT, 0, 0, 0, 0, 0, 0, 1},
    {"window", {1, 2, 2, 100, 100, 80, 80}, ATTEND_WINDOW, 0, 0, 9, 5, 0, 0, 0},
    {"softcap, bias", {2, 2, 2, 40, 65, 24, 24}, 0, 3, 0, 0, 0, 0, 1, 0},
    {"mask, bias, causal", {2, 2, 1, 50, 50, 64, 64}, ATTEND_CAUSAL, 0, 0, 0, 0, 1, 1, 0},
    {"dropout", {1, 2, 2, 70, 90, 64, 64}, 0, 0, 0.2, 0, 0, 0, 0, 0},
    {"short", {64, 4, 4, 5, 5, 64, 64}, ATTEND_CAUSAL, 0, 0, 0, 0, 0, 0, 0},
    {"short, bnhd", {32, 4, 2, 16, 16, 64, 64}, ATTEND_CAUSAL, 0, 0, 0, 0, 0, 0, 1},
    {"decode", {2, 8, 2, 1, 1000, 128, 128}, ATTEND_CAUSAL, 0, 0, 0, 0, 0, 0, 0},
    {"odd sizes", {1, 1, 1, 17, 3, 7, 5}, 0, 0, 0, 0, 0, 0, 0, 0},
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static double unit_of(attend_dtype d) {
  return d.bits == 64 ? 0x1p-52 : d.bits == 32 ? 0x1p-23 : d.code == 4 ? 0x1p-7 : 0x1p-10;
}

static attend_type type_of(attend_dtype d) {
  return d.bits == 64 ? TYPE_F64 : d.bits == 32 ? TYPE_F32 : d.code == 4 ? TYPE_BF16 : TYPE_F16;
}

static double rounded(double x, attend_type type) {
  double cell = 0;
  attend_store(&cell, 0, type, x);
  return attend_load(&cell, 0, type);
}

static double at4(const io_array *a, int64_t b, int64_t h, int64_t i, int64_t j) {
  return attend_load(a->owned, b * a->strides[0] + h * a->strides[1] + i * a->strides[2] + j * a->strides[3],
                     type_of(a->tensor.dtype));
}

/* How far a loop of f32 multiply-adds falls from the exact <q_i, k_j>. */
static double dot_error(const cli_call *c, int64_t b, int64_t h, int64_t kv_head, int64_t i, int64_t j) {
  double exact = 0;
  float sum = 0;
  for (int64_t d = 0; d < c->q.shape[3]; d++) {
    double x = at4(&c->q, b, h, i, d), y = at4(&c->k, b, kv_head, j, d);
    exact += x * y;
    sum += (float)x * (float)y;
  }
  return (double)sum - exact;
}

/* Largest error of the naive forward: softmax of rounded scores, rounded, times V, rounded; sums in f32. */
static double naive_error(const cli_call *c, const io_array *scores, const io_array *exact, const attend_options *o) {
  const int64_t *s = scores->shape;
  int64_t v_dim = c->v.shape[3], group = c->v.shape[1] ? s[1] / c->v.shape[1] : 1;
  bool wide = c->q.tensor.dtype.bits == 64;
  attend_type type = wide ? TYPE_F32 : type_of(c->q.tensor.dtype);
  double *p = malloc((size_t)(s[3] + 1) * sizeof *p), worst = 0;
  uint32_t threshold = attend_dropout_threshold(o->dropout);
  double scale = o->flags & ATTEND_SCALE ? o->scale : 1 / sqrt((double)c->q.shape[3]);
  for (int64_t b = 0; p && b < s[0]; b++)
    for (int64_t h = 0; h < s[1]; h++)
      for (int64_t i = 0; i < s[2]; i++) {
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < s[3]; j++) {
          double score = at4(scores, b, h, i, j);
          if (isfinite(score)) score += scale * dot_error(c, b, h, h / group, i, j);
          most = fmax(most, p[j] = rounded(score, type));
        }
        for (int64_t j = 0; j < s[3]; j++) {
          p[j] = most == -INFINITY ? 0 : exp(p[j] - most);
          sum = (float)(sum + p[j]);
        }
        for (int64_t j = 0; j < s[3]; j++) {
          p[j] = sum > 0 ? rounded(p[j] / sum, type) : 0;
          if (threshold && !attend_dropout_keep(c->args.dropout_seed, c->args.dropout_offset, o->dropout, (uint32_t)b,
                                                (uint32_t)h, (uint64_t)i, (uint64_t)j))
            p[j] = 0;
        }
        for (int64_t d = 0; d < v_dim; d++) {
          double out = 0;
          for (int64_t j = 0; j < s[3]; j++) out = (float)(out + p[j] * at4(&c->v, b, h / group, j, d));
          out = rounded(out * (threshold ? 65536.0 / (65536.0 - threshold) : 1), type);
          worst = fmax(worst, fabs(out - at4(exact, b, h, i, d)));
        }
      }
  free(p);
  return wide ? 2 * ldexp(worst, 24 - 53) : worst;
}

enum { LSE_UNITS = 8 };

typedef struct outcome {
  double error, allowed;
  bool served;
} outcome;

/* The results of a call, exact and from the kernel. */
static bool compare(const cli_request *r, const variant *v, const attend_kernel *k, cli_call *c, outcome *result,
                    io_error *error) {
  cli_request q = *r;
  attend_options reference = q.options;
  bool backward = k->direction == ATTEND_BACKWARD;
  memset(result, 0, sizeof *result);
  reference.backends = ATTEND_BACKEND_REFERENCE;
  reference.kernel = NULL;
  if (attend_forward_once(&c->args, &reference)) return io_fail(error, "%s: %s", v->says, attend_error_message());
  io_array exact[4] = {{.name = ""}}, *const gradients[4] = {&c->d_q, &c->d_k, &c->d_v, &c->d_bias};
  io_array *const results[2] = {&c->out, &c->lse}, *const *found = backward ? gradients : results;
  int count = !backward ? 2 : c->args.d_bias ? 4 : 3;
  bool good = !backward || !attend_backward_once(&c->args, &reference) ||
              io_fail(error, "%s: %s", v->says, attend_error_message());
  for (int i = 0; good && i < count; i++) {
    io_array *f = found[i];
    /* The copy has f's shape and strides; both are permutations of compact memory. */
    int64_t n = 1;
    for (int d = 0; d < f->tensor.ndim; d++) n *= f->shape[d];
    good = io_array_new(&exact[i], f->tensor.dtype, f->tensor.ndim, f->shape, error);
    if (good) {
      size_t bytes = (size_t)n * io_element_size(f->tensor.dtype);
      memcpy(exact[i].strides, f->strides, sizeof f->strides);
      memcpy(exact[i].owned, f->owned, bytes);
      memset(f->owned, 0xff, bytes); /* NaN in every type: what the kernel leaves unwritten does not pass */
    }
  }
  double naive = 0;
  if (good && !backward) {
    io_array scores;
    int64_t shape[4] = {c->q.shape[0], c->q.shape[1], c->q.shape[2], c->k.shape[2]};
    good = io_array_new(&scores, c->lse.tensor.dtype, 4, shape, error);
    attend_args args = c->args;
    args.scores = &scores.tensor;
    reference.scores_stage = ATTEND_SCORES_MASKED;
    if (good && attend_forward_once(&args, &reference)) good = io_fail(error, "%s", attend_error_message());
    if (good) naive = naive_error(c, &scores, &exact[0], &q.options);
    io_array_free(&scores);
  }
  q.options.backends = k->backend;
  q.options.kernel = k->name;
  const attend_device device = {k->device, k->device == ATTEND_CUDA ? r->device.id : 0};
  if (good) good = device_take(device, c, error);
  attend_status s = !good      ? ATTEND_OK
                    : backward ? attend_backward_once(&c->args, &q.options)
                               : attend_forward_once(&c->args, &q.options);
  if (good && s && s != ATTEND_ERROR_NO_BACKEND) good = io_fail(error, "%s: %s", v->says, attend_error_message());
  io_error second;
  good = device_return(device, c, good ? error : &second) && good;
  result->served = good && !s;
  for (int i = 0; good && !s && i < count; i++) {
    double largest, e = cli_largest_difference(&found[i]->tensor, &exact[i].tensor, &largest);
    double unit = unit_of(found[i]->tensor.dtype);
    /* lse is never rounded to the element type; its sums are as long as the rows.
     * Gradients pass through three rounded products; sums of n terms of rounded probabilities grow like sqrt(n). */
    double allowed =
        backward ? 3 * unit * largest *
                           (2 + sqrt((double)(c->q.shape[2] > c->k.shape[2] ? c->q.shape[2] : c->k.shape[2])) / 4) +
                       2 * unit * largest
        : i == 1 ? LSE_UNITS * unit * fmax(largest, 1)
                 : 2 * naive + 2 * unit * largest;
    if (i == 0 || e * result->allowed > result->error * allowed) result->error = e, result->allowed = allowed;
  }
  for (int i = 0; i < count; i++) io_array_free(&exact[i]);
  return good;
}

static bool run_variant(const cli_request *base, const variant *v, const attend_kernel *k, attend_dtype dtype,
                        uint64_t seed, outcome *result, io_error *error) {
  cli_request r = *base;
  r.has_shape = true;
  r.dtype = dtype;
  r.batch = v->shape[0], r.heads = v->shape[1], r.kv_heads = v->shape[2], r.q_len = v->shape[3], r.k_len = v->shape[4],
  r.head_dim = v->shape[5], r.v_dim = v->shape[6];
  r.options.flags = v->flags, r.options.softcap = v->softcap, r.options.dropout = v->dropout;
  r.options.window_left = v->left, r.options.window_right = v->right;
  r.options.kernel = NULL, r.options.backends = 0;
  r.bnhd = v->bnhd;
  r.seed = seed;
  cli_call c;
  bool good = cli_call_make(&r, seed, &c, error);
  if (good && v->mask) {
    int64_t shape[4] = {r.batch, 1, r.q_len, r.k_len};
    good = io_array_new(&c.mask, ATTEND_BOOL, 4, shape, error);
    for (int64_t i = 0; good && i < r.batch * r.q_len * r.k_len; i++)
      ((unsigned char *)c.mask.owned)[i] = attend_dropout_draw(seed, 1, 0, 0, 0, (uint64_t)i) > 20000;
    c.args.mask = &c.mask.tensor;
  }
  if (good && v->bias) {
    int64_t shape[4] = {1, r.heads, r.q_len, r.k_len};
    good = io_array_new(&c.bias, dtype.bits == 64 ? ATTEND_F64 : ATTEND_F32, 4, shape, error);
    uint64_t state = seed + 1;
    if (good) cli_fill_random(&c.bias, &state);
    c.args.bias = &c.bias.tensor;
  }
  good = good && (k->direction == ATTEND_FORWARD || cli_call_add_gradients(&r, &c, error)) &&
         compare(&r, v, k, &c, result, error);
  cli_call_free(&c);
  return good;
}

int cli_check(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("check", usage, argc, argv, &r);
  if (code >= 0) return code;
  io_error missing;
  if (!device_usable(r.device, &missing)) return cli_error("%s", missing.text);
  const attend_dtype dtypes[] = {ATTEND_F32, ATTEND_F16, ATTEND_BF16, ATTEND_F64};
  uint64_t seed = r.has_seed ? r.seed : (uint64_t)time(NULL);
  int failed = 0, passed = 0, skipped = 0, known = 0;
  cJSON *json = cJSON_CreateArray();
  attend_kernel k = {.size = sizeof k};
  for (int64_t i = 0; attend_kernel_at(i, &k) == ATTEND_OK; i++) {
    if (k.backend == ATTEND_BACKEND_REFERENCE || (r.options.backends && !(k.backend & r.options.backends)) ||
        (r.options.kernel && strcmp(r.options.kernel, k.name)) || (r.has_device && r.device.type != k.device))
      continue;
    if (known++ == 0 && !r.json)
      printf("seed %llu\n%-36s %-5s %7s %12s\n", (unsigned long long)seed, "kernel", "type", "cases", "worst/gate");
    if (!k.usable) {
      skipped++;
      if (!r.json) printf("%-36s %-5s skipped: %s\n", k.name, cli_dtype_name(k.dtype), k.reason);
      continue;
    }
    for (int d = 0; d < 4; d++) {
      if (k.dtype.bits && (k.dtype.bits != dtypes[d].bits || k.dtype.code != dtypes[d].code)) continue;
      double worst = 0;
      int served = 0;
      const char *worst_case = "";
      for (int v = 0; v < VARIANTS; v++) {
        outcome result;
        io_error error;
        cli_progress(&r, "%s %s: %s", k.name, cli_dtype_name(dtypes[d]), variants[v].says);
        if (!run_variant(&r, &variants[v], &k, dtypes[d], seed + (uint64_t)v, &result, &error)) {
          cli_progress(&r, NULL);
          cJSON_Delete(json);
          return cli_error("%s", error.text);
        }
        served += result.served;
        double ratio = result.served ? result.error / result.allowed : 0;
        if (ratio > worst || isnan(ratio)) worst = isnan(ratio) ? 0 : ratio, worst_case = variants[v].says;
      }
      bool good = worst <= 1;
      passed += good && served, failed += !good;
      cli_progress(&r, NULL);
      if (!r.json)
        printf("%-36s %-5s %7d %12.2f  %s%s\n", k.name, cli_dtype_name(dtypes[d]), served, worst,
               good ? "" : "FAILED: ", good ? "" : worst_case);
      cJSON *row = cJSON_CreateObject();
      cJSON_AddStringToObject(row, "kernel", k.name);
      cJSON_AddStringToObject(row, "dtype", cli_dtype_name(dtypes[d]));
      cJSON_AddNumberToObject(row, "cases", served);
      cJSON_AddNumberToObject(row, "worst_over_gate", worst);
      cJSON_AddBoolToObject(row, "passed", good);
      cJSON_AddItemToArray(json, row);
    }
  }
  if (!known) {
    cJSON_Delete(json);
    return cli_error("check: no kernel is of --kernel, --backend and --device; attend info lists all");
  }
  if (r.json)
    cli_print_json(json);
  else {
    cJSON_Delete(json);
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  }
  return failed ? EXIT_CHECK_FAILED : EXIT_GOOD;
}
