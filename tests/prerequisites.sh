#!/usr/bin/env bash
# Installs what is missing for `make demo`, `make test`, `make bench`, `make bench-core`, `make fuzz`, `make test-tools` or `make test-drivers`
# on Debian and Ubuntu, and says what it does.
set -euo pipefail

missing=()
server() { command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || [ -x "${PG_BIN:-}/initdb" ]; }
server || missing+=(postgresql)
command -v psql >/dev/null || missing+=(postgresql-client)
command -v curl >/dev/null || missing+=(curl)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v setpriv >/dev/null || missing+=(util-linux)
command -v python3 >/dev/null || missing+=(python3)
command -v ps >/dev/null || missing+=(procps)
if [ "${1:-}" = test ]; then
  python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  command -v chromedriver >/dev/null || missing+=(chromium chromium-driver)
fi
if [ "${1:-}" = fuzz ]; then
  command -v c++ >/dev/null || missing+=(g++)
fi
if [ "${1:-}" = bench ]; then
  command -v haproxy >/dev/null || missing+=(haproxy)
  [ -n "${PGBOUNCER:-}" ] || command -v pgbouncer >/dev/null || missing+=(pgbouncer)
  command -v python3 >/dev/null || missing+=(python3)
  command -v openssl >/dev/null || missing+=(openssl)
fi
if [ "${1:-}" = bench-core ]; then
  command -v valgrind >/dev/null || missing+=(valgrind)
  command -v openssl >/dev/null || missing+=(openssl)
fi
if [ "${1:-}" = drivers ]; then
  command -v openssl >/dev/null || missing+=(openssl)
  python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
  command -v npm >/dev/null || missing+=(nodejs npm)
  command -v java >/dev/null || missing+=(default-jdk-headless)
  [ -e /usr/share/java/postgresql.jar ] || missing+=(libpostgresql-jdbc-java)
  perl -MDBD::Pg -e 1 2>/dev/null || missing+=(libdbd-pg-perl)
  php -r 'exit(extension_loaded("pdo_pgsql") ? 0 : 1);' 2>/dev/null || missing+=(php-cli php-pgsql)
  ruby -e 'require "pg"' 2>/dev/null || missing+=(ruby ruby-pg)
  command -v go >/dev/null || missing+=(golang-go)
  [ -d /usr/share/gocode/src/github.com/jackc/pgx/v4 ] || missing+=(golang-github-jackc-pgx-v4-dev)
  [ -d /usr/share/gocode/src/github.com/lib/pq ] || missing+=(golang-github-lib-pq-dev)
  compgen -G '/usr/lib/*/odbc/psqlodbcw.so' >/dev/null || missing+=(odbc-postgresql)
  /usr/bin/python3 -c 'import pyodbc' 2>/dev/null || missing+=(python3-pyodbc)
fi

if [ "${1:-}" = tools ]; then
  command -v prometheus-pgbouncer-exporter >/dev/null || missing+=(prometheus-pgbouncer-exporter)
  command -v pgcli >/dev/null || missing+=(pgcli)
  /usr/bin/python3 -c 'import psycopg2' 2>/dev/null || missing+=(python3-psycopg2)
  /usr/bin/python3 -c 'import psycopg' 2>/dev/null || missing+=(python3-psycopg)
  command -v promtool >/dev/null || missing+=(prometheus)
  command -v npm >/dev/null || missing+=(nodejs npm)
fi

if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "Please install these with your package manager, then run make again: ${missing[*]}" >&2
    exit 1
  fi
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Please run this as root, then run make again: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "Installing with apt-get: ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || { echo "Please install Rust (https://rustup.rs), then run make again." >&2; exit 1; }
if [ "${1:-}" = deny ] && ! cargo deny --version >/dev/null 2>&1; then
  echo "Installing cargo-deny with cargo (some minutes)"
  cargo install --quiet --locked cargo-deny
fi
if [ "${1:-}" = fuzz ] && ! cargo fuzz --version >/dev/null 2>&1; then
  echo "Installing cargo-fuzz with cargo (some minutes)"
  cargo install --quiet --locked cargo-fuzz
fi
if [ "${1:-}" = schemathesis ] && ! target/schemathesis/bin/st --version >/dev/null 2>&1; then
  echo "Installing schemathesis below target/schemathesis (pip)"
  mkdir -p target
  python3 -m venv target/schemathesis
  target/schemathesis/bin/pip install --quiet --disable-pip-version-check schemathesis==4.32.5
fi
if [ "${1:-}" = drivers ]; then
  python=target/drivers/venv/bin/python
  modules='asyncpg, django, greenlet, pg8000, psycopg, psycopg2, psycopg_pool, sqlalchemy'
  if ! [ -d target/drivers/node_modules/postgres ] || ! "$python" -c "import $modules" 2>/dev/null; then
    echo "Installing drivers below target/drivers (pip, npm)"
    mkdir -p target/drivers
    python3 -m venv target/drivers/venv
    "$python" -m pip install --quiet --disable-pip-version-check 'psycopg[binary,pool]' psycopg2-binary asyncpg pg8000 \
      'sqlalchemy[asyncio]>=2' 'django>=5.1'
    npm install --silent --no-fund --no-audit --prefix target/drivers pg pg-cursor pg-copy-streams postgres
  fi
fi
