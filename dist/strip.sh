#!/usr/bin/env bash
# Takes the symbols out of a program: they go to PROGRAM.debug beside it, where debuggers find them by the link that is left.
set -euo pipefail
program=$1
cd "$(dirname "$program")"
name=$(basename "$program")
# A program that is stripped already keeps the symbols that it has beside it.
if readelf -S --wide "$name" | grep -q '\.symtab'; then
  objcopy --only-keep-debug "$name" "$name.debug"
  objcopy --strip-all --add-gnu-debuglink="$name.debug" "$name"
fi
ls -l "$name" "$name.debug"
