/* SPDX-License-Identifier: MIT */
/* The tensors of a call: from files, or random. */
#include "cli.h"

#include "api/element.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static attend_type type_of(attend_dtype d) {
  const attend_dtype known[] = {ATTEND_F32, ATTEND_F16, ATTEND_BF16, ATTEND_F64, ATTEND_BOOL, ATTEND_I32, ATTEND_I64};
  for (int i = 0; i < 7; i++)
    if (d.code == known[i].code && d.bits == known[i].bits) return (attend_type)(TYPE_F32 + i);
  return TYPE_NONE;
}

static int64_t count_of(const attend_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

/* Element number i in row-major order. */
static double element(const attend_tensor *t, int64_t i) {
  int64_t at = 0, compact = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    at += i % t->shape[d] * (t->strides ? t->strides[d] : compact);
    compact *= t->shape[d];
    i /= t->shape[d];
  }
  return attend_load((char *)t->data + t->byte_offset, at, type_of(t->dtype));
}

double cli_largest_difference(const attend_tensor *a, const attend_tensor *b, double *largest) {
  double most = 0;
  *largest = 0;
  for (int64_t i = 0, n = count_of(a); i < n; i++) {
    double x = element(a, i), y = element(b, i), d = fabs(x - y);
    if (x == y || (isnan(x) && isnan(y))) d = 0;
    if (!(d <= most)) most = isnan(d) ? INFINITY : d;
    if (isfinite(y) && fabs(y) > *largest) *largest = fabs(y);
  }
  return most;
}

/* splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). */
static uint64_t random_bits(uint64_t *state) {
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static inline __attribute__((always_inline)) void fill(void *data, int64_t n, attend_type type, uint64_t *state) {
  for (int64_t i = 0; i < n; i++) attend_store(data, i, type, (double)(int64_t)random_bits(state) * 0x1p-63);
}

/* One loop a type: hundreds of megabytes are filled for `bench`. */
void cli_fill_random(io_array *a, uint64_t *state) {
  int64_t n = count_of(&a->tensor);
  switch (type_of(a->tensor.dtype)) {
  case TYPE_F32:
    fill(a->owned, n, TYPE_F32, state);
    break;
  case TYPE_F16:
    fill(a->owned, n, TYPE_F16, state);
    break;
  case TYPE_BF16:
    fill(a->owned, n, TYPE_BF16, state);
    break;
  default:
    fill(a->owned, n, TYPE_F64, state);
    break;
  }
}

/* ---- Layout ---------------------------------------------------------------------------------------------------- */

/* A view of [B,N,H,D] memory as [B,H,N,D], or the reverse: it is its own inverse. */
static void swap_heads(io_array *a) {
  if (a->tensor.ndim != 4) return;
  int64_t n = a->shape[1], s = a->strides[1];
  a->shape[1] = a->shape[2], a->strides[1] = a->strides[2];
  a->shape[2] = n, a->strides[2] = s;
}

/* A compact zeroed array; of a request without data, one that has an address but no memory: addresses that do not
 * overlap are all that a plan looks at. */
static bool new_array(const cli_request *r, io_array *a, attend_dtype dtype, int ndim, const int64_t *shape,
                      io_error *error) {
  static uintptr_t next = 4096;
  if (!r->no_data) return io_array_new(a, dtype, ndim, shape, error);
  size_t bytes;
  if (!io_array_describe(a, dtype, ndim, shape, &bytes, error)) return false;
  if (bytes > SIZE_MAX / 2 - next) return io_fail(error, "an array of %zu bytes is beyond all addresses", bytes);
  a->tensor.data = (void *)next;
  next += (bytes + 4096) / 4096 * 4096;
  return true;
}

/* A new [B,H,N,D] tensor in the request's layout. */
static bool new_heads(const cli_request *r, int64_t b, int64_t h, int64_t n, int64_t d, attend_dtype dtype, io_array *a,
                      io_error *error) {
  int64_t shape[4] = {b, r->bnhd ? n : h, r->bnhd ? h : n, d};
  if (!new_array(r, a, dtype, 4, shape, error)) return false;
  if (r->bnhd) swap_heads(a);
  return true;
}

/* ---- Inputs ---------------------------------------------------------------------------------------------------- */

/* A converted copy if `dtype` differs, in compact order. */
static bool convert(io_array *a, attend_dtype dtype, io_error *error) {
  if (a->tensor.dtype.code == dtype.code && a->tensor.dtype.bits == dtype.bits) return true;
  io_array to;
  if (!io_array_new(&to, dtype, a->tensor.ndim, a->shape, error)) return false;
  for (int64_t i = 0, n = count_of(&a->tensor); i < n; i++)
    attend_store(to.owned, i, type_of(dtype), element(&a->tensor, i));
  io_array_free(a);
  *a = to;
  io_array_fix(a);
  return true;
}

/* The tensor `name` of --tensors, or NULL. Only q, k and v have to be there with the prefix: the others may be shared.
 */
static const io_array *in_file(const cli_request *r, const cli_call *c, const char *name) {
  char full[IO_NAME_SIZE];
  snprintf(full, sizeof full, "%s%s", r->prefix, name);
  const io_array *in = r->tensors ? io_safetensors_find(&c->file, full) : NULL;
  return in || !r->tensors || strlen(name) == 1 ? in : io_safetensors_find(&c->file, name);
}

/* The .npy file `path`, or the file's tensor `name`; *found says whether there is one. */
static bool load(const cli_request *r, cli_call *c, const char *path, const char *name, io_array *a, bool *found,
                 io_error *error) {
  *found = true;
  if (path) return io_npy_read(path, a, error);
  const io_array *in = in_file(r, c, name);
  *found = in != NULL;
  if (!in) return true;
  *a = *in;
  io_array_fix(a);
  return true;
}

static bool load_heads(const cli_request *r, cli_call *c, const char *path, const char *name, io_array *a,
                       io_error *error) {
  bool found;
  if (!load(r, c, path, name, a, &found, error)) return false;
  if (!found)
    return io_fail(error, "--%s FILE, or a tensor \"%s%s\" in --tensors, or --shape: none was given", name, r->prefix,
                   name);
  if (r->has_dtype && !convert(a, r->dtype, error)) return false;
  if (r->bnhd) swap_heads(a);
  return true;
}

bool cli_call_make(const cli_request *r, uint64_t state, cli_call *c, io_error *error) {
  memset(c, 0, sizeof *c);
  if (r->tensors && !io_safetensors_read(r->tensors, &c->file, error)) return false;
  attend_args *a = &c->args;
  if (r->has_shape) {
    if (!new_heads(r, r->batch, r->heads, r->q_len, r->head_dim, r->dtype, &c->q, error) ||
        !new_heads(r, r->batch, r->kv_heads, r->k_len, r->head_dim, r->dtype, &c->k, error) ||
        !new_heads(r, r->batch, r->kv_heads, r->k_len, r->v_dim, r->dtype, &c->v, error))
      return false;
    io_array *const random[] = {&c->q, &c->k, &c->v};
    for (int i = 0; !r->no_data && i < 3; i++) cli_fill_random(random[i], &state);
  } else if (!load_heads(r, c, r->q, "q", &c->q, error) || !load_heads(r, c, r->k, "k", &c->k, error) ||
             !load_heads(r, c, r->v, "v", &c->v, error))
    return false;
  if (c->q.tensor.ndim != 4)
    return io_fail(error, "q: expected rank 4, [B,H,N,D] (or [B,N,H,D] with --layout bnhd), got rank %d",
                   (int)c->q.tensor.ndim);
  a->q = &c->q.tensor, a->k = &c->k.tensor, a->v = &c->v.tensor;

  const struct {
    const char *path, *name;
    io_array *array;
    const attend_tensor **to;
  } optional[] = {{r->mask, "mask", &c->mask, &a->mask},
                  {r->bias, "bias", &c->bias, &a->bias},
                  {r->alibi, "alibi", &c->alibi, &a->alibi_slopes},
                  {r->sink, "sink", &c->sink, &a->sink},
                  {r->kv_len, "kv_len", &c->kv_len, &a->kv_len}};
  for (int i = 0; i < 5; i++) {
    bool found;
    if (!load(r, c, optional[i].path, optional[i].name, optional[i].array, &found, error)) return false;
    if (found) *optional[i].to = &optional[i].array->tensor;
  }
  int64_t v_dim = c->v.tensor.ndim ? c->v.shape[c->v.tensor.ndim - 1] : 0;
  int64_t rows[3] = {c->q.shape[0], c->q.shape[1], c->q.shape[2]};
  bool wide = c->q.tensor.dtype.code == 2 && c->q.tensor.dtype.bits == 64;
  if (!new_heads(r, c->q.shape[0], c->q.shape[1], c->q.shape[2], v_dim, c->q.tensor.dtype, &c->out, error) ||
      !new_array(r, &c->lse, wide ? ATTEND_F64 : ATTEND_F32, 3, rows, error))
    return false;
  a->out = &c->out.tensor, a->lse = &c->lse.tensor;
  a->dropout_seed = r->seed, a->dropout_offset = r->offset;
  return true;
}

bool cli_call_add_probs(cli_call *c, io_error *error) {
  int nd = c->k.tensor.ndim;
  int64_t shape[4] = {c->q.shape[0], c->q.shape[1], c->q.shape[2], nd >= 2 ? c->k.shape[nd - 2] : 0};
  if (!io_array_new(&c->probs, c->lse.tensor.dtype, 4, shape, error)) return false;
  c->args.probs = &c->probs.tensor;
  return true;
}

/* Same shape, type and layout as `of`. */
static bool new_like(const cli_request *r, const io_array *of, io_array *a, io_error *error) {
  const int64_t *s = of->shape;
  if (of->tensor.ndim == 4 && r->bnhd) return new_heads(r, s[0], s[1], s[2], s[3], of->tensor.dtype, a, error);
  return new_array(r, a, of->tensor.dtype, of->tensor.ndim, s, error);
}

bool cli_call_add_gradients(const cli_request *r, cli_call *c, io_error *error) {
  attend_args *a = &c->args;
  if (r->d_out || in_file(r, c, "d_out")) {
    if (!load_heads(r, c, r->d_out, "d_out", &c->d_out, error)) return false;
  } else {
    uint64_t state = 12345;
    if (!new_like(r, &c->out, &c->d_out, error)) return false;
    if (!r->no_data) cli_fill_random(&c->d_out, &state);
  }
  if (!new_like(r, &c->q, &c->d_q, error) || !new_like(r, &c->k, &c->d_k, error) || !new_like(r, &c->v, &c->d_v, error))
    return false;
  a->d_out = &c->d_out.tensor, a->d_q = &c->d_q.tensor, a->d_k = &c->d_k.tensor, a->d_v = &c->d_v.tensor;
  if (a->bias) {
    if (!new_array(r, &c->d_bias, c->bias.tensor.dtype, c->bias.tensor.ndim, c->bias.shape, error)) return false;
    a->d_bias = &c->d_bias.tensor;
  }
  if (a->sink) {
    if (!new_array(r, &c->d_sink, c->sink.tensor.dtype, c->sink.tensor.ndim, c->sink.shape, error)) return false;
    a->d_sink = &c->d_sink.tensor;
  }
  return true;
}

void cli_call_arrays(cli_call *c, io_array *arrays[CLI_ARRAYS]) {
  io_array *all[] = {&c->q,   &c->k,   &c->v,     &c->mask, &c->bias, &c->alibi, &c->sink,   &c->kv_len, &c->d_out,
                     &c->out, &c->lse, &c->probs, &c->d_q,  &c->d_k,  &c->d_v,   &c->d_bias, &c->d_sink};
  _Static_assert(sizeof all == CLI_ARRAYS * sizeof *all, "every array");
  memcpy(arrays, all, sizeof all);
}

void cli_call_free(cli_call *c) {
  io_array *all[CLI_ARRAYS];
  cli_call_arrays(c, all);
  for (int i = 0; i < CLI_ARRAYS; i++) io_array_free(all[i]);
  io_safetensors_free(&c->file);
}

double cli_call_flops(const cli_request *r, const cli_call *c, bool backward) {
  const int64_t *q = c->q.shape, *v = c->v.shape;
  int64_t nk = v[c->v.tensor.ndim - 2], nq = q[2];
  double pairs = (double)nq * (double)nk;
  const attend_options *o = &r->options;
  if (o->flags & (ATTEND_CAUSAL | ATTEND_WINDOW)) {
    bool left = o->flags & ATTEND_WINDOW && o->window_left >= 0,
         right = o->flags & ATTEND_WINDOW && o->window_right >= 0;
    double off = o->flags & ATTEND_TOP_LEFT ? 0 : (double)(nk - nq);
    pairs = 0;
    for (int64_t i = 0; i < nq; i++) {
      double first = 0, end = (double)nk, at = (double)i + off;
      if (left) first = fmax(first, at - (double)o->window_left);
      if (right) end = fmin(end, at + (double)o->window_right + 1);
      if (o->flags & ATTEND_CAUSAL) end = fmin(end, at + 1);
      pairs += fmax(0, end - first);
    }
  }
  double forward = 2.0 * (double)q[0] * (double)q[1] * pairs * (double)(q[3] + v[c->v.tensor.ndim - 1]);
  return backward ? 2.5 * forward : forward;
}

double cli_call_bytes(const cli_call *c, bool backward) {
  const attend_args *a = &c->args;
  const attend_tensor *forward_only[] = {a->out, a->lse};
  const attend_tensor *backward_only[] = {a->d_out, a->d_q, a->d_k, a->d_v, a->d_bias};
  const attend_tensor *moved[10] = {a->q, a->k, a->v, a->mask, a->bias};
  if (backward)
    memcpy(&moved[5], backward_only, sizeof backward_only);
  else
    memcpy(&moved[5], forward_only, sizeof forward_only);
  double bytes = 0;
  for (size_t i = 0; i < sizeof moved / sizeof *moved; i++)
    if (moved[i]) bytes += (double)count_of(moved[i]) * (double)io_element_size(moved[i]->dtype);
  return bytes;
}
