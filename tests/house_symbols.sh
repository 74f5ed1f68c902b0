#!/bin/sh
# SPDX-License-Identifier: MIT
# house_symbols.sh SOURCE BUILD: the library exports exactly what src/attend.map lists, which is exactly what the header
# declares; it needs only libc, libm, pthread and dl.
set -eu
source=$1 library=$2/libattend.so
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
nm -D --defined-only "$library" | awk '$2 == "T" {sub("@.*", "", $3); print $3}' | sort >"$scratch/exported"
sed -n 's/^  \(attend[a-z0-9_]*\);$/\1/p' "$source/src/attend.map" | sort >"$scratch/listed"
tr '\n' ' ' <"$source/include/attend.h" | grep -o 'ATTEND_API [a-z][^;{]*' | grep -v '^ATTEND_API __' |
  sed 's/(.*//; s/.*[ *]//' | sort >"$scratch/declared"
diff -u "$scratch/listed" "$scratch/exported"
diff -u "$scratch/declared" "$scratch/listed"
if readelf -d "$library" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | grep -Ev '^(libc|libm|libpthread|libdl|ld-linux[-a-z0-9_]*)\.so'; then
  echo "libattend.so needs a library it should not" >&2
  exit 1
fi
readelf -d "$library" | grep -q 'SONAME.*\[libattend.so.0\]'
