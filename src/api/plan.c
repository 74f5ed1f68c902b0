/* SPDX-License-Identifier: MIT */
/* Plans, and the calls that make one for a single execution. */
#include "api.h"
#include "element.h"

#include "../cuda/device.h"

#include <string.h>

static attend_status make(attend_direction direction, const attend_args *args, const attend_options *options,
                          attend_plan *plan, attend_explanation *explanation) {
  attend_status s = attend_check(direction, args, options, plan);
  if (!s) s = attend_choose(plan, options, explanation);
  if (!s) attend_expect(plan, args);
  if (!s && !explanation && plan->problem.device.type == ATTEND_CUDA && options->hooks && options->hooks->log)
    cuda_notice(plan->problem.device.id, plan->choice[0].kernel->name, &plan->services);
  return s;
}

attend_status attend_plan_create(attend_direction direction, const attend_args *caller_args,
                                 const attend_options *caller_options, attend_plan **out) {
  if (!out) return attend_fail(ATTEND_ERROR_NULL, "plan: expected a pointer to the plan's pointer, got NULL");
  *out = NULL;
  attend_args copy;
  const attend_args *args;
  attend_options options;
  attend_plan plan;
  attend_status s;
  if ((s = attend_read_args(caller_args, &copy, &args)) || (s = attend_read_options(caller_options, &options)) ||
      (s = make(direction, args, &options, &plan, NULL)))
    return s;
  attend_plan *kept = plan.services.allocate(plan.services.user, sizeof *kept, ATTEND_WORKSPACE_ALIGNMENT);
  if (!kept)
    return attend_fail(ATTEND_ERROR_OUT_OF_MEMORY, "plan: expected %zu bytes from the allocator, got none",
                       sizeof *kept);
  attend_remember_distinct(&plan, args);
  *kept = plan;
  *out = kept;
  return ATTEND_OK;
}

void attend_plan_destroy(attend_plan *plan) {
  if (!plan) return;
  attend_services services = plan->services;
  services.release(services.user, plan, sizeof *plan);
}

size_t attend_plan_workspace_bytes(const attend_plan *plan) { return plan ? plan->workspace_bytes : 0; }

static inline attend_status bind_checked(const attend_plan *plan, const attend_args *caller_args, attend_operands *own,
                                         const attend_operands **operands) {
  attend_args copy;
  const attend_args *args;
  attend_status s;
  bool moved;
  if ((s = attend_read_args(caller_args, &copy, &args)) || (s = attend_bind(plan, args, own, operands, &moved)))
    return s;
  if (attend_lengths_vary(&plan->problem) && plan->problem.device.type == ATTEND_CPU &&
      (s = attend_check_host_indices(&plan->problem, *operands)))
    return s;
  return moved ? attend_check_overlap(plan, *operands) : ATTEND_OK;
}

/* Is there a sequence for this kernel? */
static bool has_work(const attend_plan *plan, const attend_choice *choice, const attend_operands *operands) {
  bool found = false;
  for (int64_t b = 0; b < plan->problem.batch && !found; b++) {
    int64_t q_len, k_len;
    attend_sequence_lengths(&plan->problem, operands, b, &q_len, &k_len);
    found = attend_serves(choice, q_len, k_len);
  }
  return found;
}

static inline attend_status run(const attend_plan *plan, const attend_operands *operands, void *workspace,
                                void *stream) {
  attend_status s = ATTEND_OK;
  const attend_choice *c = plan->choice;
  if (plan->choices == 1) return c->kernel->run(&plan->problem, c, operands, &plan->services, workspace, stream);
  for (; c < plan->choice + plan->choices && !s; c++)
    if (has_work(plan, c, operands))
      s = c->kernel->run(&plan->problem, c, operands, &plan->services, workspace, stream);
  return s;
}

static inline attend_status execute(attend_direction direction, const attend_plan *plan, const attend_args *args,
                                    void *workspace, size_t workspace_bytes, void *stream) {
  attend_operands own;
  const attend_operands *operands;
  attend_status s;
  if (!plan) return attend_fail(ATTEND_ERROR_NULL, "plan: expected a plan, got NULL");
  if (plan->problem.direction != direction)
    return attend_fail(ATTEND_ERROR_OPTION, "plan: expected one made for %s, got one for %s",
                       direction ? "backward" : "forward", direction ? "forward" : "backward");
  size_t needed = plan->workspace_bytes;
  if (needed && !workspace)
    return attend_fail(ATTEND_ERROR_WORKSPACE, "workspace: expected %zu bytes, got NULL", needed);
  if (workspace_bytes < needed)
    return attend_fail(ATTEND_ERROR_WORKSPACE, "workspace_bytes: expected at least %zu, got %zu", needed,
                       workspace_bytes);
  if (needed && (uintptr_t)workspace % ATTEND_WORKSPACE_ALIGNMENT)
    return attend_fail(ATTEND_ERROR_WORKSPACE, "workspace: expected a multiple of %d, got %p",
                       ATTEND_WORKSPACE_ALIGNMENT, workspace);
  if ((s = bind_checked(plan, args, &own, &operands))) return s;
  if (plan->problem.heads == 0 && attend_run_without_heads(plan, operands)) return ATTEND_OK;
  return run(plan, operands, workspace, stream);
}

attend_status attend_forward(const attend_plan *plan, const attend_args *args, void *workspace, size_t bytes,
                             void *stream) {
  return execute(ATTEND_FORWARD, plan, args, workspace, bytes, stream);
}

attend_status attend_backward(const attend_plan *plan, const attend_args *args, void *workspace, size_t bytes,
                              void *stream) {
  return execute(ATTEND_BACKWARD, plan, args, workspace, bytes, stream);
}

/* A host copy of operand `id`, which lies on a GPU; operands then point into it. */
static attend_status copy_to_host(const attend_plan *plan, operand_id id, attend_operands *operands, void **copy,
                                  size_t *bytes) {
  const attend_services *services = &plan->services;
  int64_t size = (int64_t)attend_type_size(plan->problem.layout[id].type), first = 0, last = 0;
  for (int i = 0; i < plan->ndim[id]; i++) {
    int64_t reach = (plan->shape[id][i] - 1) * plan->strides[id][i];
    *(reach < 0 ? &first : &last) += reach;
  }
  *bytes = (size_t)((last - first + 1) * size);
  *copy = services->allocate(services->user, *bytes, ATTEND_WORKSPACE_ALIGNMENT);
  if (!*copy)
    return attend_fail(ATTEND_ERROR_OUT_OF_MEMORY, "%s: expected %zu bytes from the allocator, got none",
                       attend_operand_names[id], *bytes);
  attend_status s =
      cuda_copy_out(plan->problem.device.id, *copy, (const char *)operands->data[id] + first * size, *bytes);
  operands->data[id] = (char *)*copy - first * size;
  return s;
}

attend_status attend_check_indices(const attend_plan *plan, const attend_args *caller_args, void *stream) {
  static const operand_id ids[] = {OPERAND_Q_OFFSETS, OPERAND_K_OFFSETS, OPERAND_KV_LEN, OPERAND_BLOCK_TABLE};
  attend_args copy;
  const attend_args *args;
  attend_operands operands;
  const attend_operands *bound;
  attend_status s;
  void *copies[4] = {NULL};
  size_t bytes[4];
  bool moved;
  if (!plan) return attend_fail(ATTEND_ERROR_NULL, "plan: expected a plan, got NULL");
  if ((s = attend_read_args(caller_args, &copy, &args)) || (s = attend_bind(plan, args, &operands, &bound, &moved)))
    return s;
  if (bound != &operands) operands = *bound;
  if (plan->problem.device.type == ATTEND_CUDA) {
    s = cuda_wait(plan->problem.device.id, stream);
    for (int i = 0; i < 4 && !s; i++)
      if (operands.data[ids[i]]) s = copy_to_host(plan, ids[i], &operands, &copies[i], &bytes[i]);
  }
  if (!s) s = attend_check_host_indices(&plan->problem, &operands);
  for (int i = 0; i < 4; i++)
    if (copies[i]) plan->services.release(plan->services.user, copies[i], bytes[i]);
  return s;
}

attend_status attend_explain(attend_direction direction, const attend_args *caller_args,
                             const attend_options *caller_options, attend_explanation *out) {
  attend_args copy;
  const attend_args *args;
  attend_options options;
  attend_plan plan;
  attend_status s;
  if (!out) return attend_fail(ATTEND_ERROR_NULL, "explanation: expected a pointer to attend_explanation, got NULL");
  if (out->size && out->size < sizeof *out)
    return attend_fail(ATTEND_ERROR_OPTION, "attend_explanation.size: expected at least %zu, got %zu", sizeof *out,
                       out->size);
  attend_explanation e = {.size = out->size};
  if ((s = attend_read_args(caller_args, &copy, &args)) || (s = attend_read_options(caller_options, &options)))
    return s;
  s = make(direction, args, &options, &plan, &e);
  if (s && s != ATTEND_ERROR_NO_BACKEND) return s;
  e.status = s;
  *out = e;
  return ATTEND_OK;
}

/* ---- One execution --------------------------------------------------------------------------------------------- */

/* The longest sequence of host offsets, for a bound that the caller left open. Anything odd is left to validation. */
static int64_t longest(const attend_tensor *offsets) {
  bool i64 = offsets->dtype.bits == 64;
  if (offsets->dtype.code != 0 || (!i64 && offsets->dtype.bits != 32) || offsets->ndim != 1 || !offsets->shape ||
      !offsets->data)
    return 0;
  int64_t stride = offsets->strides ? offsets->strides[0] : 1, most = 0;
  const void *data = attend_first_element(offsets);
  for (int64_t b = 0; b + 1 < offsets->shape[0]; b++) {
    attend_type type = i64 ? TYPE_I64 : TYPE_I32;
    int64_t first = attend_load_index(data, b * stride, type), last = attend_load_index(data, (b + 1) * stride, type);
    if (first >= 0 && last > first && last - first > most) most = last - first;
  }
  return most ? most : 1;
}

static attend_status once_on_cpu(const attend_plan *plan, const attend_operands *operands) {
  const attend_services *services = &plan->services;
  size_t bytes = plan->workspace_bytes;
  void *workspace = NULL;
  if (bytes && !(workspace = services->allocate(services->user, bytes, ATTEND_WORKSPACE_ALIGNMENT)))
    return attend_fail(ATTEND_ERROR_OUT_OF_MEMORY, "workspace: expected %zu bytes from the allocator, got none", bytes);
  attend_status s = run(plan, operands, workspace, NULL);
  if (workspace) services->release(services->user, workspace, bytes);
  return s;
}

/* GPU memory is the driver's, whatever the hooks say; the default stream is waited for. */
static attend_status once_on_gpu(const attend_plan *plan, const attend_operands *operands) {
  void *workspace = NULL;
  int gpu = plan->problem.device.id;
  attend_status s = cuda_allocate(gpu, plan->workspace_bytes, &workspace);
  if (s) return s;
  s = run(plan, operands, workspace, NULL);
  attend_status waited = cuda_wait(gpu, NULL);
  cuda_release(gpu, workspace);
  return s ? s : waited;
}

static attend_status once(attend_direction direction, const attend_args *caller_args,
                          const attend_options *caller_options) {
  attend_args copy;
  const attend_args *args;
  attend_options options;
  attend_plan plan;
  attend_operands own;
  const attend_operands *operands;
  attend_status s;
  if ((s = attend_read_args(caller_args, &copy, &args)) || (s = attend_read_options(caller_options, &options)))
    return s;
  if (args->q_offsets && !options.max_q_len && args->q_offsets->device.type == ATTEND_CPU)
    options.max_q_len = longest(args->q_offsets);
  if (args->k_offsets && !options.max_k_len && args->k_offsets->device.type == ATTEND_CPU)
    options.max_k_len = longest(args->k_offsets);
  if ((s = make(direction, args, &options, &plan, NULL)) || (s = bind_checked(&plan, args, &own, &operands))) return s;
  if (attend_run_without_heads(&plan, operands)) return ATTEND_OK;
  return plan.problem.device.type == ATTEND_CUDA ? once_on_gpu(&plan, operands) : once_on_cpu(&plan, operands);
}

attend_status attend_forward_once(const attend_args *args, const attend_options *options) {
  return once(ATTEND_FORWARD, args, options);
}
attend_status attend_backward_once(const attend_args *args, const attend_options *options) {
  return once(ATTEND_BACKWARD, args, options);
}

attend_status attend(const attend_tensor *q, const attend_tensor *k, const attend_tensor *v,
                     const attend_options *options, const attend_tensor *out) {
  attend_args args = {.q = q, .k = k, .v = v, .out = out};
  return once(ATTEND_FORWARD, &args, options);
}
