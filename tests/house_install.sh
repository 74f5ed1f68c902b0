#!/bin/sh
# SPDX-License-Identifier: MIT
# house_install.sh SOURCE BUILD CC: install into a clean prefix (also through DESTDIR), and build and run a consumer of
# it by pkg-config and by find_package, shared and static.
set -eu
source=$1 build=$2 cc=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
DESTDIR=$scratch/staged cmake --install "$build" --prefix /usr >/dev/null
test -f "$scratch/staged/usr/include/attend.h"
cmake --install "$build" --prefix "$scratch/first" >/dev/null
mv "$scratch/first" "$scratch/prefix" # an installed tree can be moved
lib=$scratch/prefix/lib
for file in libattend.so libattend.so.0 libattend.a pkgconfig/attend.pc cmake/attend/attend-config.cmake; do
  test -e "$lib/$file" || { echo "not installed: $file" >&2; exit 1; }
done

export PKG_CONFIG_PATH=$lib/pkgconfig
program=$source/tests/install/consumer.c
"$cc" -std=c11 $(pkg-config --cflags attend) "$program" -o "$scratch/shared" $(pkg-config --libs attend) -lm
LD_LIBRARY_PATH=$lib "$scratch/shared"
"$cc" -std=c11 $(pkg-config --cflags attend) "$program" -o "$scratch/static" "$lib/libattend.a" \
  $(pkg-config --static --libs attend | sed 's/-lattend//')
env -u LD_LIBRARY_PATH "$scratch/static"
ldd "$scratch/static" | grep -q libattend && { echo "the static consumer needs libattend.so" >&2; exit 1; }

cmake -S "$source/tests/install" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$scratch/prefix" -DCMAKE_C_COMPILER="$cc" >/dev/null
cmake --build "$scratch/build" >/dev/null
"$scratch/build/consumer_shared"
"$scratch/build/consumer_static"
echo "installed, and consumed in four ways"
