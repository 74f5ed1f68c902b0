/* SPDX-License-Identifier: MIT */
/* Statuses, and the message of the thread's last failure. */
#include "problem.h"

#include <stdarg.h>
#include <stdio.h>

#define STRING_(x) #x
#define STRING(x) STRING_(x)

static _Thread_local char message[4096];

attend_status attend_fail(attend_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

const char *attend_error_message(void) { return message; }

const char *attend_version(void) {
  return STRING(ATTEND_VERSION_MAJOR) "." STRING(ATTEND_VERSION_MINOR) "." STRING(ATTEND_VERSION_PATCH);
}

const char *attend_status_name(attend_status status) {
  switch (status) {
  case ATTEND_OK:
    return "ATTEND_OK";
  case ATTEND_ERROR_NULL:
    return "ATTEND_ERROR_NULL";
  case ATTEND_ERROR_SHAPE:
    return "ATTEND_ERROR_SHAPE";
  case ATTEND_ERROR_TYPE:
    return "ATTEND_ERROR_TYPE";
  case ATTEND_ERROR_DEVICE:
    return "ATTEND_ERROR_DEVICE";
  case ATTEND_ERROR_OPTION:
    return "ATTEND_ERROR_OPTION";
  case ATTEND_ERROR_OVERLAP:
    return "ATTEND_ERROR_OVERLAP";
  case ATTEND_ERROR_INDEX:
    return "ATTEND_ERROR_INDEX";
  case ATTEND_ERROR_ALIGNMENT:
    return "ATTEND_ERROR_ALIGNMENT";
  case ATTEND_ERROR_WORKSPACE:
    return "ATTEND_ERROR_WORKSPACE";
  case ATTEND_ERROR_NO_BACKEND:
    return "ATTEND_ERROR_NO_BACKEND";
  case ATTEND_ERROR_OUT_OF_MEMORY:
    return "ATTEND_ERROR_OUT_OF_MEMORY";
  case ATTEND_ERROR_CUDA:
    return "ATTEND_ERROR_CUDA";
  }
  return "not an attend_status";
}
