#!/usr/bin/env bash
# Whether anything is known against what Cargo.lock names. The database of advisories is a git repository: at github.com, or a
# copy of it, whose path or address is ADVISORY_DB. Where neither can be had, nothing is looked at, and that is said.
set -euo pipefail
cd "$(dirname "$0")/.."

url=https://github.com/RustSec/advisory-db
if [ -n "${ADVISORY_DB:-}" ]; then
  copy=$ADVISORY_DB
  [ -d "$copy" ] && copy="file://$(realpath "$copy")"
  if ! GIT_TERMINAL_PROMPT=0 git ls-remote --exit-code "$copy" main >/dev/null; then
    echo "ADVISORY_DB=$ADVISORY_DB is not a git repository with the branch main: clone $url" >&2
    exit 1
  fi
  # What cargo-deny asks of github.com, it is given from there.
  export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.$copy.insteadOf" GIT_CONFIG_VALUE_0="$url"
elif ! GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --exit-code "$url" main >/dev/null 2>&1; then
  echo "advisories: SKIPPED: $url cannot be reached; set ADVISORY_DB to a clone of it"
  exit 0
fi
cargo deny --locked check advisories
shopt -s nullglob
for database in "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/advisory-db-*; do
  echo "advisories: looked at, as they were on $(git -C "$database" log -1 --format=%cs)"
done
