/* SPDX-License-Identifier: MIT */
/* attend view: attention maps of chosen heads as one labelled picture. */
#include "device_tensors.h"

#include "api/element.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: attend view (--q F --k F --v F | --tensors F [--prefix P] | --shape S) --out F.png [OPTION...]\n\n"
    "The probabilities of attention, one map a head (default: all), query down and key across, as a PNG. Where the\n"
    ".safetensors metadata has \"tokens\" (a JSON list of lists of strings, one a sequence), rows carry their "
    "tokens.\n";

static const char *const font[] = {
#include "font.inc"
};

enum { CHAR_W = 6, CHAR_H = 9, GAP = 14, BAR_W = 12 };

/* Drawn in dots of `zoom` pixels squared, so that letters of nine dots can be read on today's screens. */
typedef struct picture {
  unsigned char *rgb;
  int width, height, zoom; /* width and height in dots */
} picture;

static void dot(picture *p, int x, int y, int r, int g, int b) {
  if (x < 0 || y < 0 || x >= p->width || y >= p->height) return;
  for (int row = y * p->zoom; row < (y + 1) * p->zoom; row++)
    for (int column = x * p->zoom; column < (x + 1) * p->zoom; column++) {
      unsigned char *at = p->rgb + 3 * ((size_t)row * (size_t)(p->width * p->zoom) + (size_t)column);
      at[0] = (unsigned char)r, at[1] = (unsigned char)g, at[2] = (unsigned char)b;
    }
}

/* From left to right, or upwards from (x, y). */
static void text(picture *p, int x, int y, const char *s, bool upwards) {
  for (int at = 0; *s; s++, at += CHAR_W) {
    int c = *s < 32 || *s > 126 ? '?' : *s;
    for (int row = 0; row < CHAR_H; row++)
      for (int column = 0; column < CHAR_W; column++)
        if (font[(c - 32) / 16 * 9 + row][(c % 16) * CHAR_W + column] == '#') {
          if (upwards)
            dot(p, x + row, y - at - column, 30, 30, 40);
          else
            dot(p, x + at + column, y + row, 30, 30, 40);
        }
  }
}

/* Five stops of the viridis map: lightness grows along it, so that grey prints keep the order. */
static void colour(double p, int *r, int *g, int *b) {
  static const double stops[5][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}};
  if (!(p >= 0)) {
    *r = 220, *g = 40, *b = 40; /* NaN */
    return;
  }
  double at = fmin(p, 1) * 4;
  int i = at >= 4 ? 3 : (int)at;
  double f = at - i;
  *r = (int)lround(stops[i][0] + f * (stops[i + 1][0] - stops[i][0]));
  *g = (int)lround(stops[i][1] + f * (stops[i + 1][1] - stops[i][1]));
  *b = (int)lround(stops[i][2] + f * (stops[i + 1][2] - stops[i][2]));
}

/* The least of 1, 2, 5, 10, 20, ... that is at least n: the distance of numbers along an axis. */
static int round_step(int n) {
  int step = 1;
  for (int i = 0; step < n; i++) step = i % 3 == 1 ? step / 2 * 5 : step * 2;
  return step;
}

static bool chosen_heads(const char *list, int64_t heads, bool *shown) {
  for (int64_t h = 0; h < heads; h++) shown[h] = !list;
  while (list && *list) {
    char *end;
    long long h = strtoll(list, &end, 10);
    if (end == list || h < 0 || h >= heads || (*end && *end != ',')) return false;
    shown[h] = true;
    list = *end ? end + 1 : end;
  }
  return true;
}

static bool draw(const cli_request *r, const cli_call *c, io_error *error) {
  int64_t heads = c->probs.shape[1], nq = c->probs.shape[2], nk = c->probs.shape[3];
  if (r->batch_shown >= c->probs.shape[0])
    return io_fail(error, "--batch: expected less than %lld, got %lld", (long long)c->probs.shape[0],
                   (long long)r->batch_shown);
  if (heads > 4096 || nq < 1 || nk < 1 || nq > 4096 || nk > 4096)
    return io_fail(error,
                   "a picture of %lld heads of %lld x %lld is too large or empty; choose --heads, or shorter sequences "
                   "(4096 at most)",
                   (long long)heads, (long long)nq, (long long)nk);
  bool *shown = calloc((size_t)heads + 1, sizeof *shown);
  if (!shown || !chosen_heads(r->heads_shown, heads, shown)) {
    free(shown);
    return io_fail(error, "--heads: expected numbers below %lld, separated by commas, got %s", (long long)heads,
                   r->heads_shown);
  }
  cJSON *metadata = c->file.metadata ? cJSON_Parse(c->file.metadata) : NULL, *lists = NULL;
  const char *tokens_text = cJSON_GetStringValue(cJSON_GetObjectItem(metadata, "tokens"));
  if (tokens_text) lists = cJSON_Parse(tokens_text);
  cJSON *tokens = cJSON_GetArrayItem(lists, (int)r->batch_shown);
  if (cJSON_GetArraySize(tokens) < nq) tokens = NULL;

  int64_t longest = nq > nk ? nq : nk;
  int cell = longest <= 32 ? 10 : longest <= 64 ? 6 : longest <= 160 ? 3 : longest <= 400 ? 2 : 1;
  if (tokens && cell < CHAR_H + 1 && nq <= 64) cell = CHAR_H + 1;
  bool tokens_below = cell > CHAR_H && cJSON_GetArraySize(tokens) >= nk;
  int label = tokens && cell > CHAR_H ? 11 * CHAR_W : 5 * CHAR_W, count = 0;
  for (int64_t h = 0; h < heads; h++) count += shown[h];
  int columns = (int)ceil(sqrt((double)count));
  if (columns < 1) columns = 1;
  char title[2][256];
  snprintf(title[0], sizeof title[0], "%.200s %.20s sequence %lld", r->tensors ? r->tensors : "attention", r->prefix,
           (long long)r->batch_shown);
  snprintf(title[1], sizeof title[1], "probabilities, query down, key across; colours by square root");
  int title_w = CHAR_W * (int)fmax((double)strlen(title[0]), (double)strlen(title[1])), title_h = 2 * (CHAR_H + 2);
  int rows = (count + columns - 1) / columns, map_w = label + (int)nk * cell + GAP,
      map_h = (int)nq * cell + CHAR_H + (tokens_below ? 11 * CHAR_W : CHAR_H) + GAP + 4;
  picture p = {.width = columns * map_w + 2 * GAP + BAR_W + 5 * CHAR_W, .height = rows * map_h + 3 * GAP + title_h};
  if (p.width < title_w + 2 * GAP) p.width = title_w + 2 * GAP;
  p.zoom = longest <= 160 ? 2 : 1;
  double pixels = (double)p.width * p.height * p.zoom * p.zoom;
  if (pixels > 1e9 || !(p.rgb = malloc((size_t)pixels * 3))) {
    free(shown);
    cJSON_Delete(metadata);
    cJSON_Delete(lists);
    return io_fail(error, "out of memory: a picture of %d x %d", p.width * p.zoom, p.height * p.zoom);
  }
  memset(p.rgb, 255, (size_t)pixels * 3);
  for (int i = 0; i < 2; i++) text(&p, GAP, GAP + i * (CHAR_H + 2), title[i], false);
  char line[64];
  int at = 0;
  for (int64_t h = 0; h < heads; h++) {
    if (!shown[h]) continue;
    int x0 = GAP + at % columns * map_w + label, y0 = 2 * GAP + title_h + at / columns * map_h;
    snprintf(line, sizeof line, "head %lld", (long long)h);
    text(&p, x0, y0, line, false);
    y0 += CHAR_H + 3;
    for (int64_t i = 0; i < nq; i++)
      for (int64_t j = 0; j < nk; j++) {
        int red, green, blue;
        int64_t index = ((r->batch_shown * heads + h) * nq + i) * nk + j;
        colour(sqrt(attend_load(c->probs.owned, index, c->probs.tensor.dtype.bits == 64 ? TYPE_F64 : TYPE_F32)), &red,
               &green, &blue);
        for (int y = 0; y < cell; y++)
          for (int x = 0; x < cell; x++) dot(&p, x0 + (int)j * cell + x, y0 + (int)i * cell + y, red, green, blue);
      }
    int every = cell > CHAR_H ? 1 : round_step((2 * CHAR_H + cell - 1) / cell);
    for (int64_t i = 0; i < nq; i += every) {
      const char *token = cell > CHAR_H ? cJSON_GetStringValue(cJSON_GetArrayItem(tokens, (int)i)) : NULL;
      if (token)
        snprintf(line, sizeof line, "%.10s", token);
      else
        snprintf(line, sizeof line, "%lld", (long long)i);
      text(&p, x0 - (int)strlen(line) * CHAR_W - 3, y0 + (int)i * cell + (cell > CHAR_H ? (cell - CHAR_H) / 2 : 0),
           line, false);
    }
    int below = y0 + (int)nq * cell + 3;
    for (int64_t j = 0; j < nk; j += tokens_below ? 1 : round_step((4 * CHAR_W + cell) / cell)) {
      const char *token = tokens_below ? cJSON_GetStringValue(cJSON_GetArrayItem(tokens, (int)j)) : NULL;
      if (token)
        snprintf(line, sizeof line, "%.10s", token);
      else
        snprintf(line, sizeof line, "%lld", (long long)j);
      int x = x0 + (int)j * cell;
      if (tokens_below)
        text(&p, x + (cell - CHAR_H) / 2, below + (int)strlen(line) * CHAR_W, line, true);
      else
        text(&p, x, below, line, false);
    }
    at++;
  }
  int bar_x = columns * map_w + GAP, bar_h = nq * cell < 100 ? 100 : (int)nq * cell,
      bar_y = 2 * GAP + title_h + CHAR_H + 3;
  if (bar_y + bar_h + CHAR_H > p.height) bar_h = p.height - bar_y - CHAR_H;
  for (int y = 0; y < bar_h; y++) {
    int red, green, blue;
    colour(1 - (double)y / (bar_h - 1), &red, &green, &blue);
    for (int x = 0; x < BAR_W; x++) dot(&p, bar_x + x, bar_y + y, red, green, blue);
  }
  const double ticks[] = {1, 0.5, 0.25, 0.1, 0};
  for (int i = 0; i < 5; i++) {
    snprintf(line, sizeof line, "%g", ticks[i]);
    text(&p, bar_x + BAR_W + 4, bar_y + (int)((1 - sqrt(ticks[i])) * (bar_h - 1)) - CHAR_H / 2, line, false);
  }
  bool good = io_png_write(r->out, p.rgb, p.width * p.zoom, p.height * p.zoom, error);
  free(p.rgb);
  free(shown);
  cJSON_Delete(metadata);
  cJSON_Delete(lists);
  return good;
}

int cli_view(int argc, char **argv) {
  cli_request r;
  int code = cli_parse("view", usage, argc, argv, &r);
  if (code >= 0) return code;
  if (!r.out || !cli_may_hold(r.out, ".png"))
    return cli_error("view: expected --out FILE.png, got %s", r.out ? r.out : "none");
  cli_call c = {.args = {.size = 0}};
  io_error error;
  cli_progress(&r, "attention");
  bool good = device_usable(r.device, &error) && cli_call_make(&r, 1, &c, &error) && cli_call_add_probs(&c, &error) &&
              device_take(r.device, &c, &error);
  if (good && attend_forward_once(&c.args, &r.options)) good = io_fail(&error, "%s", attend_error_message());
  io_error second;
  good = device_return(r.device, &c, good ? &error : &second) && good;
  cli_progress(&r, "drawing");
  if (good) good = draw(&r, &c, &error);
  cli_progress(&r, NULL);
  if (!good) cli_error("%s", error.text);
  cli_call_free(&c);
  return good ? EXIT_GOOD : EXIT_BAD_INPUT;
}
