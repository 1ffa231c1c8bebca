#!/usr/bin/env bash
# Two throwaway PostgreSQL servers, dev and prod, with pgusher in front of them: who is routed where, and why. Everything is in
# demo/run, which is deleted at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD/demo/run
port=${PORT:-6432}
program=${PGUSHER:-target/debug/pgusher}
bin=${PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)}
bin=${bin:-$(dirname "$(command -v initdb)")}

# PostgreSQL does not run as root; if this is not run as root, PostgreSQL runs as the same user.
user=()
if [ "$(id -u)" = 0 ]; then
  user=(setpriv "--reuid=$(id -u postgres)" "--regid=$(id -g postgres)" --clear-groups)
fi

stop() {
  trap - EXIT INT TERM
  [ -z "${pgusher:-}" ] || { kill -INT "$pgusher" 2>/dev/null && wait "$pgusher" 2>/dev/null; } || true
  for name in dev prod; do
    "${user[@]}" "$bin/pg_ctl" -s -D "$data/$name" -m immediate stop 2>/dev/null || true
  done
  rm -rf "$run" "$data"
}
trap stop EXIT
trap 'exit 130' INT TERM

free_port() {
  local try
  for try in $(seq "$1" $(("$1" + 200))); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$try") 2>/dev/null; then
      echo "$try"
      return
    fi
  done
  echo "no free port near $1" >&2
  return 1
}

rm -rf "$run"
mkdir -p "$run"
data=$run/data
mkdir "$data"
if [ "$(id -u)" = 0 ]; then
  chown postgres "$data"
  # If that user cannot reach this folder, its files are in a temporary one.
  "${user[@]}" test -w "$data" || { data=$(mktemp -d) && chown postgres "$data"; }
fi

start() { # name port
  "${user[@]}" "$bin/initdb" -U pgusher -A trust -E UTF8 --no-locale --no-sync -D "$data/$1" >"$run/$1.initdb"
  "${user[@]}" "$bin/pg_ctl" -s -w -D "$data/$1" -l "$data/$1.log" \
    -o "-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off" start
  # Both databases have the name that clients use: tools that qualify names need this.
  psql -Xqh 127.0.0.1 -p "$2" -U pgusher -d postgres -c "CREATE DATABASE warehouse"
  psql -Xqh 127.0.0.1 -p "$2" -U pgusher -d warehouse -c "CREATE TABLE whoami AS SELECT 'the $1 database'::text AS name"
}

port=$(free_port "$port")
dev_port=$(free_port 15432)
start dev "$dev_port"
prod_port=$(free_port $((dev_port + 1)))
start prod "$prod_port"

page_port=$(free_port 6433)
token=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
(umask 077 && sed "s/@PORT@/$port/; s/@DEV_PORT@/$dev_port/; s/@PROD_PORT@/$prod_port/; s/@PAGE_PORT@/$page_port/; s/@TOKEN@/$token/" \
  config/demo.toml >"$run/pgusher.toml")
"$program" check "$run/pgusher.toml"
"$program" serve "$run/pgusher.toml" 2>"$run/pgusher.log" &
pgusher=$!
for _ in $(seq 100); do
  "$program" health "127.0.0.1:$port" 2>/dev/null && break
  kill -0 "$pgusher" 2>/dev/null || { cat "$run/pgusher.log" >&2; exit 1; }
  sleep 0.05
done

echo
echo "The same host, the same port, the same database name:"
right=0
for expected in dana:dev pete:prod nora:dev; do
  name=${expected%:*}
  line="psql 'host=127.0.0.1 port=$port dbname=warehouse user=$name password=$name'"
  echo
  echo "\$ $line"
  answer=$(PGPASSWORD=$name psql -XAtqh 127.0.0.1 -p "$port" -U "$name" -d warehouse -c 'SELECT name FROM whoami' -c 'SHOW pgusher.route')
  echo "  answered by: ${answer%%$'\n'*}"
  echo "  because:     ${answer#*$'\n'}"
  [ "${answer%%$'\n'*}" = "the ${expected#*:} database" ] && right=$((right + 1))
done
echo
if [ "$right" != 3 ]; then
  echo "$((3 - right)) of 3 users reached the wrong database" >&2
  exit 1
fi
echo "All three users reached the right database."
[ "${ONCE:-}" = 1 ] && exit 0

cat <<TRY

pgusher runs until you press Ctrl-C. In another terminal, try:
  psql 'host=127.0.0.1 port=$port dbname=warehouse user=pete password=pete' -c 'SELECT * FROM whoami'
  psql 'host=127.0.0.1 port=$port dbname=warehouse user=dana password=dana options=-cpgusher.environment=prod'   # not permitted
  psql 'host=127.0.0.1 port=$port dbname=pgusher user=operator password=operator' -c 'SHOW ROUTES'     # the console
  PGPASSWORD=operator $program grant prod --to dana --for 1h --reason demo --console 'host=127.0.0.1 port=$port user=operator'
  http://127.0.0.1:$page_port/      # the page; its token is $token
  $program audit who demo/run/audit.jsonl --environment prod
  $program resolve demo/run/pgusher.toml --user nora --database warehouse
  \$EDITOR demo/run/pgusher.toml && kill -HUP $pgusher      # change routes while it runs
TRY
wait "$pgusher"
