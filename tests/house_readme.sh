#!/bin/sh
# SPDX-License-Identifier: MIT
# house_readme.sh SOURCE BUILD CC: the first C block of README.md, at most 25 lines of it, compiles without a warning
# against the built library and runs.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
awk '/^```c$/ {inside = 1; next} /^```$/ {if (inside) exit} inside' "$1/README.md" >"$scratch/readme.c"
lines=$(wc -l <"$scratch/readme.c")
[ "$lines" -gt 5 ] && [ "$lines" -le 25 ] || { echo "the README's program has $lines lines" >&2; exit 1; }
"$3" -std=c11 -Wall -Wextra -Wpedantic -Werror -I"$1/include" "$scratch/readme.c" -o "$scratch/readme" -L"$2" -lattend
LD_LIBRARY_PATH=$2 "$scratch/readme" | tee "$scratch/output"
[ -s "$scratch/output" ]
