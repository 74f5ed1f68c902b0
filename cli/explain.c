/* SPDX-License-Identifier: MIT */
/* attend explain: the plan for given shapes, before anything runs. */
#include "cli.h"

#include <string.h>

static const char usage[] =
    "usage: attend explain (--shape B,H[/HKV],NQ[/NK],D[/DV] | --q F --k F --v F | --tensors F [--prefix P]) "
    "[OPTION...]\n\n"
    "The kernel that a call of this shape would get, its tiles and workspace, and why each other was passed\n"
    "over. Needs no data; operands may come from files, for their shapes.\n";

int cli_explain(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("explain", usage, argc, argv, &r);
  if (code >= 0) return code;
  r.no_data = true;
  cli_call c = {.args = {.size = 0}};
  io_error error;
  attend_explanation e = {.size = sizeof e};
  code = EXIT_BAD_INPUT;
  if (!cli_call_make(&r, 1, &c, &error) || (r.backward && !cli_call_add_gradients(&r, &c, &error)))
    cli_error("%s", error.text);
  else {
    const attend_tensor *const *all = &c.args.q; /* the tensors of attend_args lie side by side */
    for (const attend_tensor *const *t = all; t <= &c.args.d_sink; t++)
      if (*t) ((attend_tensor *)(uintptr_t)*t)->device = r.device;
    if (attend_explain(r.backward ? ATTEND_BACKWARD : ATTEND_FORWARD, &c.args, &r.options, &e))
      cli_error("%s", attend_error_message());
    else
      code = EXIT_GOOD;
  }
  cli_call_free(&c);
  if (code) return code;
  if (r.json) {
    cJSON *json = cJSON_CreateObject(), *candidates;
    cJSON_AddStringToObject(json, "status", attend_status_name(e.status));
    cJSON_AddStringToObject(json, "backend", cli_backend_name(e.backend));
    cJSON_AddStringToObject(json, "kernel", e.kernel);
    cJSON_AddNumberToObject(json, "tile_q", (double)e.tile_q);
    cJSON_AddNumberToObject(json, "tile_k", (double)e.tile_k);
    cJSON_AddNumberToObject(json, "splits", (double)e.splits);
    cJSON_AddNumberToObject(json, "threads", (double)e.threads);
    cJSON_AddNumberToObject(json, "workspace_bytes", (double)e.workspace_bytes);
    cJSON_AddNumberToObject(json, "alignment", (double)e.alignment);
    candidates = cJSON_AddArrayToObject(json, "candidates");
    for (int64_t i = 0; i < e.candidate_count; i++) {
      cJSON *row = cJSON_CreateObject();
      cJSON_AddStringToObject(row, "kernel", e.candidates[i].kernel);
      cJSON_AddBoolToObject(row, "chosen", e.candidates[i].chosen);
      cJSON_AddStringToObject(row, "reason", e.candidates[i].reason);
      cJSON_AddItemToArray(candidates, row);
    }
    cli_print_json(json);
  } else {
    if (e.status)
      printf("nothing can serve this call\n");
    else
      printf("kernel     %s (%s)\ntiles      %lld queries x %lld keys, %lld splits\nthreads    %lld\nworkspace  %llu "
             "bytes\nalignment  %llu bytes\n",
             e.kernel, cli_backend_name(e.backend), (long long)e.tile_q, (long long)e.tile_k, (long long)e.splits,
             (long long)e.threads, (unsigned long long)e.workspace_bytes, (unsigned long long)e.alignment);
    for (int64_t i = 0; i < e.candidate_count; i++)
      if (strcmp(e.candidates[i].kernel, e.kernel))
        printf("  %s %-34s %s\n", e.candidates[i].chosen ? "and" : "not", e.candidates[i].kernel,
               e.candidates[i].reason);
  }
  return e.status ? EXIT_BAD_INPUT : EXIT_GOOD;
}
