/* SPDX-License-Identifier: MIT */
/* Which kernel: the first of the tables, fastest first, that the caller allows, the machine has and the problem suits.
 * Where sequences have lengths of their own, the first of each that is for its lengths: some rows serve only short
 * ones, and rows behind them are added until one serves the longest. */
#include "api.h"

#include <stdio.h>
#include <string.h>

enum { TABLES = 4 };

static attend_kernel_table table(int i) {
  switch (i) {
  case 0:
    return attend_cuda_kernels();
  case 1:
    return attend_cpu_kernels();
  case 2:
    return attend_math_kernels();
  default:
    return attend_reference_kernels();
  }
}

static const char *backend_name(uint32_t backend) {
  switch (backend) {
  case ATTEND_BACKEND_FLASH:
    return "flash";
  case ATTEND_BACKEND_EFFICIENT:
    return "efficient";
  case ATTEND_BACKEND_MATH:
    return "math";
  default:
    return "reference";
  }
}

static bool name_exists(const char *name) {
  for (int t = 0; t < TABLES; t++) {
    attend_kernel_table rows = table(t);
    for (int i = 0; i < rows.count; i++)
      if (!strcmp(rows.rows[i].name, name)) return true;
  }
  return false;
}

/* Can the row serve the problem, or some sequences of it? Otherwise says why not. */
static bool serves(const attend_kernel_row *row, const attend_problem *p, const attend_options *options,
                   uint32_t allowed, attend_choice *choice, char reason[ATTEND_REASON_SIZE]) {
  if (!(row->backend & allowed)) {
    snprintf(reason, ATTEND_REASON_SIZE, "%s is not in options.backends", backend_name(row->backend));
    return false;
  }
  if (options->kernel && strcmp(options->kernel, row->name)) {
    snprintf(reason, ATTEND_REASON_SIZE, "options.kernel names another");
    return false;
  }
  if (!row->usable(row, reason)) return false;
  *choice =
      (attend_choice){.kernel = row, .tile_q = 1, .tile_k = 1, .splits = 1, .threads = p->threads, .alignment = 1};
  return row->plan(row, p, choice, reason);
}

/* Do all sequences that a kernel is for go to one before it? */
static bool is_left_nothing(const attend_plan *plan, attend_limit limit) {
  for (int i = 0; i < plan->choices; i++) {
    const attend_limit before = plan->choice[i].limit;
    const bool queries = !before.queries || (limit.queries && limit.queries <= before.queries);
    if (queries && (!before.keys || (limit.keys && limit.keys <= before.keys))) return true;
  }
  return false;
}

/* Add to the plan's kernels one that is behind them. */
static void add(attend_plan *plan, const attend_choice *choice) {
  attend_choice *c = &plan->choice[plan->choices];
  *c = *choice;
  c->before_count = plan->choices++;
  for (int i = 0; i < c->before_count; i++) c->before[i] = plan->choice[i].limit;
  if (c->workspace_bytes > plan->workspace_bytes) plan->workspace_bytes = c->workspace_bytes;
  if (c->alignment > plan->alignment) plan->alignment = c->alignment;
}

/* Which sequences a kernel is for that does not serve all. */
static void describe(attend_limit limit, char reason[ATTEND_REASON_SIZE]) {
  int length =
      snprintf(reason, ATTEND_REASON_SIZE, "only for sequences of up to %lld queries", (long long)limit.queries);
  if (limit.keys)
    snprintf(reason + length, (size_t)(ATTEND_REASON_SIZE - length), " and %lld keys", (long long)limit.keys);
}

attend_status attend_choose(attend_plan *plan, const attend_options *options, attend_explanation *e) {
  uint32_t allowed = options->backends ? options->backends : ATTEND_BACKEND_ALL;
  const attend_problem *p = &plan->problem;
  char reasons[3072] = "", reason[ATTEND_REASON_SIZE];
  size_t length = 0;
  bool all = false; /* is every sequence served? */
  plan->choices = 0, plan->workspace_bytes = 0, plan->alignment = 1;
  if (options->kernel && !name_exists(options->kernel))
    return attend_fail(ATTEND_ERROR_OPTION,
                       "options.kernel: expected the name of a kernel (attend_kernel_at lists them), got \"%.80s\"",
                       options->kernel);
  for (int t = 0; t < TABLES && (!all || e); t++) {
    attend_kernel_table rows = table(t);
    for (int i = 0; i < rows.count && (!all || e); i++) {
      const attend_kernel_row *row = &rows.rows[i];
      attend_choice choice;
      if (row->device != p->device.type || row->direction != p->direction ||
          (row->type != TYPE_NONE && row->type != p->type))
        continue;
      reason[0] = 0;
      bool can = serves(row, p, options, allowed, &choice, reason);
      bool take = can && !all && !is_left_nothing(plan, choice.limit);
      if (take) {
        add(plan, &choice);
        all = attend_within(choice.limit, p->q_len, p->k_len);
        if (!all) describe(choice.limit, reason);
      } else if (can)
        snprintf(reason, sizeof reason, "%s comes before it", plan->choice[plan->choices - 1].kernel->name);
      if ((!can || !all) && length < sizeof reasons)
        length += (size_t)snprintf(reasons + length, sizeof reasons - length, "%s%s: %s", length ? "; " : "", row->name,
                                   reason);
      if (e && e->candidate_count < ATTEND_MAX_CANDIDATES) {
        attend_candidate *candidate = &e->candidates[e->candidate_count++];
        *candidate = (attend_candidate){.backend = row->backend, .chosen = take};
        snprintf(candidate->kernel, sizeof candidate->kernel, "%s", row->name);
        snprintf(candidate->reason, sizeof candidate->reason, "%s", reason);
      }
    }
  }
  if (!all) {
    for (int64_t i = 0; e && i < e->candidate_count; i++) e->candidates[i].chosen = false;
    return attend_fail(ATTEND_ERROR_NO_BACKEND, "no kernel can serve this call: %s",
                       length ? reasons : "none is compiled in for this device, direction and type");
  }
  if (!e) return ATTEND_OK;
  const attend_choice *c = &plan->choice[plan->choices - 1];
  e->backend = c->kernel->backend;
  snprintf(e->kernel, sizeof e->kernel, "%s", c->kernel->name);
  e->tile_q = c->tile_q, e->tile_k = c->tile_k, e->splits = c->splits, e->threads = c->threads;
  e->workspace_bytes = plan->workspace_bytes, e->alignment = plan->alignment;
  return ATTEND_OK;
}

attend_status attend_kernel_at(int64_t index, attend_kernel *out) {
  static const attend_dtype dtypes[] = {{0, 0, 0}, {2, 32, 1}, {2, 16, 1}, {4, 16, 1}, {2, 64, 1}};
  if (!out) return attend_fail(ATTEND_ERROR_NULL, "kernel: expected a pointer to attend_kernel, got NULL");
  if (out->size && out->size < sizeof *out)
    return attend_fail(ATTEND_ERROR_OPTION, "attend_kernel.size: expected at least %zu, got %zu", sizeof *out,
                       out->size);
  int64_t at = index;
  for (int t = 0; t < TABLES && at >= 0; t++) {
    attend_kernel_table rows = table(t);
    if (at >= rows.count) {
      at -= rows.count;
      continue;
    }
    const attend_kernel_row *row = &rows.rows[at];
    attend_kernel k = {.size = out->size,
                       .backend = row->backend,
                       .device = row->device,
                       .direction = row->direction,
                       .dtype = dtypes[row->type]};
    snprintf(k.name, sizeof k.name, "%s", row->name);
    k.usable = row->usable(row, k.reason);
    if (k.usable) k.reason[0] = 0;
    *out = k;
    return ATTEND_OK;
  }
  return attend_fail(ATTEND_ERROR_INDEX, "index: expected a kernel's number, got %lld, which is past the last",
                     (long long)index);
}
