/* SPDX-License-Identifier: MIT */
/* Pictures through libpng. */
#include "io.h"

#include <png.h>
#include <stdlib.h>

bool io_png_write(const char *path, const unsigned char *rgb, int width, int height, io_error *error) {
  io_output o;
  if (!io_output_open(&o, path, error)) return false;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png ? png_create_info_struct(png) : NULL;
  if (!info || setjmp(png_jmpbuf(png))) {
    png_destroy_write_struct(&png, &info);
    io_output_abandon(&o);
    return io_fail(error, "%s: libpng could not write it", path);
  }
  png_init_io(png, o.file);
  png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  for (int y = 0; y < height; y++) png_write_row(png, rgb + (size_t)y * 3 * (size_t)width);
  png_write_end(png, NULL);
  png_destroy_write_struct(&png, &info);
  return io_output_commit(&o, error);
}
