/* SPDX-License-Identifier: MIT */
/* attend info: what this machine has. */
#include "cli.h"

#include <string.h>

static const char usage[] =
    "usage: attend info [--json]\n\nCPU features, GPUs, and every kernel compiled in: usable, or why not.\n";

int cli_info(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("info", usage, argc, argv, &r);
  if (code >= 0) return code;
  cJSON *json = cJSON_CreateObject(), *backends = cJSON_AddArrayToObject(json, "backends");
  cJSON_AddStringToObject(json, "cpu", attend_cpu_features());
  cJSON *isa = cJSON_AddArrayToObject(json, "isa");
  cJSON *cuda = cJSON_AddObjectToObject(json, "cuda"), *devices = cJSON_AddArrayToObject(cuda, "devices");
  cJSON *images = cJSON_AddArrayToObject(cuda, "images");
  cJSON_AddNumberToObject(json, "threads", attend_cpu_threads());
  char features[512];
  snprintf(features, sizeof features, "%s", attend_cpu_features());
  for (char *at = features, *end; *at; at = end) {
    while (*at == ' ') at++;
    for (end = at; *end && *end != ' ';) end++;
    bool last = !*end;
    *end = 0;
    if (*at) cJSON_AddItemToArray(isa, cJSON_CreateString(at));
    if (!last) end++;
  }
  if (!r.json)
    printf("attend   %s\ncpu      %s\nthreads  %d\n", attend_version(), attend_cpu_features(), attend_cpu_threads());
  attend_gpu gpu = {.size = sizeof gpu};
  int64_t gpus = 0;
  for (; attend_gpu_at(gpus, &gpu) == ATTEND_OK; gpus++) {
    if (!r.json)
      printf("cuda:%lld   %s, sm_%d%d, %d multiprocessors, %.0f GiB, %s%s\n", (long long)gpus, gpu.name, (int)gpu.major,
             (int)gpu.minor, (int)gpu.multiprocessors, (double)gpu.memory_bytes / 1073741824.0,
             gpu.reason[0] ? "not usable: " : "image ", gpu.reason[0] ? gpu.reason : gpu.image);
    cJSON *device = cJSON_CreateObject();
    cJSON_AddStringToObject(device, "name", gpu.name);
    cJSON_AddNumberToObject(device, "major", gpu.major);
    cJSON_AddNumberToObject(device, "minor", gpu.minor);
    cJSON_AddNumberToObject(device, "multiprocessors", gpu.multiprocessors);
    cJSON_AddNumberToObject(device, "memory_bytes", (double)gpu.memory_bytes);
    cJSON_AddStringToObject(device, "reason", gpu.reason);
    cJSON_AddItemToArray(devices, device);
    if (gpu.image[0]) cJSON_AddItemToArray(images, cJSON_CreateString(gpu.image));
  }
  if (!gpus) {
    const char *why = strstr(attend_error_message(), "got 0: "); /* behind what says that 0 is no index */
    why = why ? why + 7 : attend_error_message();
    if (!r.json) printf("cuda     none: %s\n", why);
    cJSON_AddStringToObject(cuda, "reason", why);
  }
  if (!r.json) printf("\n%-9s %-9s %-5s %-40s %s\n", "device", "back-end", "type", "kernel", "usable");
  attend_kernel k = {.size = sizeof k};
  for (int64_t i = 0; attend_kernel_at(i, &k) == ATTEND_OK; i++) {
    if (!r.json)
      printf("%-9s %-9s %-5s %-40s %s%s\n", k.device == ATTEND_CUDA ? "cuda" : "cpu", cli_backend_name(k.backend),
             cli_dtype_name(k.dtype), k.name, k.usable ? "yes" : "no: ", k.reason);
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "backend", cli_backend_name(k.backend));
    cJSON_AddStringToObject(row, "kernel", k.name);
    cJSON_AddStringToObject(row, "device", k.device == ATTEND_CUDA ? "cuda" : "cpu");
    cJSON_AddStringToObject(row, "direction", k.direction == ATTEND_BACKWARD ? "backward" : "forward");
    cJSON_AddStringToObject(row, "dtype", cli_dtype_name(k.dtype));
    cJSON_AddBoolToObject(row, "usable", k.usable);
    cJSON_AddStringToObject(row, "reason", k.reason);
    cJSON_AddItemToArray(backends, row);
  }
  if (r.json)
    cli_print_json(json);
  else
    cJSON_Delete(json);
  return EXIT_GOOD;
}
