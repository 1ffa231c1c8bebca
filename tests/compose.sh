#!/usr/bin/env bash
# Proves docker-compose.yml: builds it, starts it, and sees from the host that every user lands in the right database
# and that `docker stop` lets a transaction end. Takes the containers and volumes down again, whatever happens.
#
#   DOCKER_STANDINS  a command that brings an engine to a machine without one (called with `start`; it stays up)
#   PGUSHER_PORT     the port on the host, if 6432 is taken
#   CARGO_BUILD_JOBS how many jobs cargo runs in the build, by default one for each core
set -euo pipefail
cd "$(dirname "$0")/.."
export PGUSHER_PORT=${PGUSHER_PORT:-6432}
patience=120

fail() { echo "compose: $*" >&2; exit 1; }
step() { echo "== $*"; }

if [ -n "${DOCKER_STANDINS:-}" ]; then
  "$DOCKER_STANDINS" start >/dev/null || fail "$DOCKER_STANDINS start brought no engine."
  # BuildKit would ask a registry for the images that the script made here.
  export DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0}
fi
if ! docker info >/dev/null 2>&1; then
  fail "no container engine answers: install and start Docker, or set DOCKER_STANDINS to a script that brings one."
fi
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  fail "there is no Docker Compose: install it (docker-compose-plugin, or docker-compose from the distribution)."
fi
compose+=(--project-name pgusher-test)
command -v psql >/dev/null || fail "there is no psql: install PostgreSQL's client (postgresql-client)."

# psql as this user, whose password is the name: the same host, port and database for everybody.
psql_as() {
  local user=$1
  shift
  PGPASSWORD=${password:-$user} PGCONNECT_TIMEOUT=15 psql -XAtq -v ON_ERROR_STOP=1 \
    -h 127.0.0.1 -p "$PGUSHER_PORT" -U "$user" -d warehouse "$@"
}

# Until the command succeeds.
eventually() {
  local what=$1 deadline=$((SECONDS + patience))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$what did not come within $patience s"
    sleep 0.2
  done
}

state() { docker inspect --format "{{.State.$1}}" "$container"; }
is_healthy() { [ "$(state Health.Status)" = healthy ]; }
is_draining() { docker logs "$container" 2>&1 | grep draining >/dev/null; }

clean_up() {
  local code=$?
  trap - EXIT
  if [ "$code" != 0 ] && [ -n "$("${compose[@]}" ps --quiet 2>/dev/null)" ]; then
    "${compose[@]}" logs --no-color --tail 50 >&2 || true
  fi
  "${compose[@]}" down --volumes --remove-orphans >"$log" 2>&1 || cat "$log" >&2
  rm -f "$log"
  exit "$code"
}
log=$(mktemp)
trap clean_up EXIT
trap 'exit 130' INT TERM

# Silent unless it fails.
quietly() {
  "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; fail "failed: $*"; }
}

step "build"
quietly "${compose[@]}" down --volumes --remove-orphans
quietly "${compose[@]}" build

step "up"
quietly "${compose[@]}" up --detach
container=$("${compose[@]}" ps --quiet pgusher)
eventually "pgusher's health" is_healthy
uid=$("${compose[@]}" exec -T pgusher id -u)
[ "$uid" != 0 ] || fail "pgusher runs as root"
echo "pgusher is healthy, and runs as user $uid"

step "who goes where"
"${compose[@]}" exec -T pgusher pgusher check /etc/pgusher/compose.toml
lands_in() {
  local user=$1 expected=$2 name route environment
  name=$(psql_as "$user" -c 'SELECT name FROM whoami')
  route=$(psql_as "$user" -c 'SHOW pgusher.route')
  environment=$(psql_as "$user" -c 'SHOW pgusher.environment')
  echo "$user reached $name: $route"
  [ "$name" = "$expected" ] || fail "$user should have reached $expected"
  [ "$environment" = "$expected" ] || fail "$user is told to be in $environment"
  case "$route" in *"$3"*) ;; *) fail "the reason should say '$3'" ;; esac
}
lands_in dana dev 'environment = "dev"'
lands_in pete prod 'environment = "prod"'
lands_in nora dev 'no value for environment'

step "a wrong password is refused"
if refusal=$(password=wrong psql_as pete -c 'SELECT name FROM whoami' 2>&1); then fail "pete came in: $refusal"; fi
echo "$refusal"
case "$refusal" in *'password authentication failed for user "pete"'*) ;; *) fail "that is not PostgreSQL's answer" ;; esac

step "docker stop waits for a transaction"
# Her connection ends right after her transaction, which psql may tell on standard error.
coproc client { psql_as dana 2>/dev/null; }
# bash forgets them when the coprocess ends.
from_client=${client[0]} to_client=${client[1]}
next_line() { IFS= read -r -t "$patience" line <&"$from_client" || fail "the transaction was cut off"; echo "$line"; }
printf '%s\n' 'BEGIN;' 'SELECT name FROM whoami;' >&"$to_client"
[ "$(next_line)" = dev ] || fail "no transaction was begun"
docker stop "$container" >/dev/null &
stop=$!
eventually "the drain" is_draining
[ "$(state Running)" = true ] || fail "pgusher did not wait for the transaction"
printf '%s\n' "SELECT name || ', to the end' FROM whoami;" 'COMMIT;' '\echo committed' '\q' >&"$to_client"
next_line
next_line
wait "$stop"
[ "$(state ExitCode)" = 0 ] || fail "pgusher ended with status $(state ExitCode)"
docker logs "$container" 2>&1 | tail -n 3
echo "pgusher ended with status 0"
echo "compose: all is well"
