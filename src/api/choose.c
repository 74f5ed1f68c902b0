/* SPDX-License-Identifier: MIT */
/* Which kernel: the first of the tables, fastest first, that the caller allows, the machine has and the problem suits.
 */
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

/* Can the row serve the plan's problem? Otherwise says why not. */
static bool serves(const attend_kernel_row *row, attend_plan *plan, const attend_options *options, uint32_t allowed,
                   char reason[ATTEND_REASON_SIZE]) {
  const attend_problem *p = &plan->problem;
  if (!(row->backend & allowed)) {
    snprintf(reason, ATTEND_REASON_SIZE, "%s is not in options.backends", backend_name(row->backend));
    return false;
  }
  if (options->kernel && strcmp(options->kernel, row->name)) {
    snprintf(reason, ATTEND_REASON_SIZE, "options.kernel names another");
    return false;
  }
  if (!row->usable(row, reason)) return false;
  plan->choice =
      (attend_choice){.kernel = row, .tile_q = 1, .tile_k = 1, .splits = 1, .threads = p->threads, .alignment = 1};
  return row->plan(row, p, &plan->choice, reason);
}

attend_status attend_choose(attend_plan *plan, const attend_options *options, attend_explanation *e) {
  uint32_t allowed = options->backends ? options->backends : ATTEND_BACKEND_ALL;
  const attend_problem *p = &plan->problem;
  const attend_kernel_row *chosen = NULL;
  attend_choice choice = {0};
  char reasons[3072] = "", reason[ATTEND_REASON_SIZE];
  size_t length = 0;
  if (options->kernel && !name_exists(options->kernel))
    return attend_fail(ATTEND_ERROR_OPTION,
                       "options.kernel: expected the name of a kernel (attend_kernel_at lists them), got \"%.80s\"",
                       options->kernel);
  for (int t = 0; t < TABLES && (!chosen || e); t++) {
    attend_kernel_table rows = table(t);
    for (int i = 0; i < rows.count && (!chosen || e); i++) {
      const attend_kernel_row *row = &rows.rows[i];
      if (row->device != p->device.type || row->direction != p->direction ||
          (row->type != TYPE_NONE && row->type != p->type))
        continue;
      reason[0] = 0;
      bool can = serves(row, plan, options, allowed, reason);
      bool take = can && !chosen;
      if (take) {
        chosen = row;
        choice = plan->choice;
      } else if (can)
        snprintf(reason, sizeof reason, "%s comes before it", chosen->name);
      if (!can && length < sizeof reasons)
        length += (size_t)snprintf(reasons + length, sizeof reasons - length, "%s%s: %s", length ? "; " : "", row->name,
                                   reason);
      if (e && e->candidate_count < ATTEND_MAX_CANDIDATES) {
        attend_candidate *candidate = &e->candidates[e->candidate_count++];
        *candidate = (attend_candidate){.backend = row->backend, .chosen = take};
        snprintf(candidate->kernel, sizeof candidate->kernel, "%s", row->name);
        snprintf(candidate->reason, sizeof candidate->reason, "%s", take ? "" : reason);
      }
    }
  }
  plan->choice = choice;
  if (!chosen)
    return attend_fail(ATTEND_ERROR_NO_BACKEND, "no kernel can serve this call: %s",
                       length ? reasons : "none is compiled in for this device, direction and type");
  if (!e) return ATTEND_OK;
  e->backend = chosen->backend;
  snprintf(e->kernel, sizeof e->kernel, "%s", chosen->name);
  e->tile_q = choice.tile_q, e->tile_k = choice.tile_k, e->splits = choice.splits, e->threads = choice.threads;
  e->workspace_bytes = choice.workspace_bytes, e->alignment = choice.alignment;
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
