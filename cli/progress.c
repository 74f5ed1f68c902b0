/* SPDX-License-Identifier: MIT */
/* A line on the terminal that says what is being done and for how long, once that has taken two seconds. A thread of
 * its own writes it: one attention may take minutes, and nothing of it returns in between. */
#include "cli.h"

#include <pthread.h>
#include <stdarg.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char doing[128]; /* "": nothing is to be shown */
static double began;
static bool started, shown;

/* With the lock held. */
static void clear_line(void) {
  if (shown) fprintf(stderr, "\r\033[K");
  fflush(stderr);
  shown = false;
}

static void *show(void *unused) {
  (void)unused;
  for (;;) {
    nanosleep(&(struct timespec){.tv_nsec = 250000000}, NULL);
    pthread_mutex_lock(&lock);
    if (doing[0] && cli_seconds() - began >= 2) {
      fprintf(stderr, "\r\033[K%s (%.0f s)", doing, cli_seconds() - began);
      fflush(stderr);
      shown = true;
    }
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

void cli_progress(const cli_request *request, const char *format, ...) {
  if (request->no_progress || !isatty(STDERR_FILENO)) return;
  pthread_mutex_lock(&lock);
  if (!started) {
    pthread_t thread;
    began = cli_seconds();
    started = true;
    if (!pthread_create(&thread, NULL, show, NULL)) pthread_detach(thread); /* without a thread, without progress */
  }
  doing[0] = 0;
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(doing, sizeof doing, format, arguments);
    va_end(arguments);
  } else
    clear_line();
  pthread_mutex_unlock(&lock);
}
