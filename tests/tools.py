#!/usr/bin/env python3
"""Tools made for PgBouncer, and clients of PostgreSQL, on pgusher's console: Debian's exporter for Prometheus, pgcli,
psycopg2 and psql. `make test-tools` installs what is missing."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
[connections.warehouse]
host = "127.0.0.1"
port = 1
username = "app"
user_attribute = "environment"
environments = [{{ connection = "warehouse_prod", name = "prod", values = ["prod"] }}]
[connections.warehouse_prod]
host = "127.0.0.1"
port = 1
username = "app"
production = true
[users.watcher]
auth_type = "trust"
console = "stats"
attributes = {{ environment = "prod" }}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, check, patience=20):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if found := check():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"never: {what}")


def exporter(port):
    """Debian's prometheus-pgbouncer-exporter reads STATS, POOLS, LISTS and DATABASES."""
    at = free_port()
    command = ["prometheus-pgbouncer-exporter", "--host", "127.0.0.1", "--port", str(at), "--pgbouncer-host", "127.0.0.1",
               "--pgbouncer-port", str(port), "--pgbouncer-user", "watcher"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        text = until("the exporter answers", lambda: urllib.request.urlopen(f"http://127.0.0.1:{at}/metrics").read().decode())
    finally:
        process.terminate()
        process.wait()
    lines = [line for line in text.splitlines() if line.startswith("pgbouncer_")]
    for expected in ("pgbouncer_requests_total{database=\"warehouse\"}", "pgbouncer_pool_size{database=\"warehouse_prod\"} 20.0",
                     "pgbouncer_active_clients{database=\"warehouse\",user=\"app\"} 0.0", "pgbouncer_users 1.0",
                     "pgbouncer_received_bytes_total{database=\"warehouse_prod\"}"):
        assert any(line.startswith(expected) for line in lines), (expected, text)
    return f"{len(lines)} metrics"


def run(command, text=None):
    environment = {**os.environ, "PAGER": "cat", "HOME": tempfile.gettempdir()}
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, env=environment)
    return done.stdout + done.stderr


def pgcli(port):
    for database in ("pgusher", "pgbouncer"):
        said = run(["pgcli", "-h", "127.0.0.1", "-p", str(port), "-U", "watcher", "-d", database],
                   "SHOW POOLS;\nEXPLAIN ROUTE FOR watcher ON warehouse;\n")
        assert "warehouse_prod" in said and "Environment prod" in said, said
    return "both databases"


def psql(port):
    said = run(["psql", "-XAt", f"host=127.0.0.1 port={port} user=watcher dbname=pgbouncer"],
               "SHOW VERSION;\nSHOW HELP;\nSHOW ROUTES;\nKILL;\n\\gdesc\n")
    assert "pgusher " in said and "Console usage" in said and "admin access needed" in said, said
    assert "watcher|warehouse|prod|warehouse_prod|1|" in said, said
    return "ok"


def psycopg2(port):
    import psycopg2
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="watcher", dbname="pgusher")
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW DATABASES")
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row)) for row in cursor.fetchall()]
    assert {row["name"]: row["pool_size"] for row in rows} == {"warehouse": 20, "warehouse_prod": 20}, rows
    connection.close()
    return "inside a transaction"


def main():
    failed = 0
    with tempfile.TemporaryDirectory(prefix="pgusher-tools-") as folder:
        port = free_port()
        config = pathlib.Path(folder) / "pgusher.toml"
        config.write_text(CONFIG.format(port=port))
        with open(pathlib.Path(folder) / "log", "w") as log:
            pgusher = subprocess.Popen([REPOSITORY / "target/release/pgusher", "serve", config], stderr=log)
        try:
            until("pgusher listens", lambda: socket.create_connection(("127.0.0.1", port)).close() or True)
            for tool in (exporter, pgcli, psql, psycopg2):
                try:
                    print(f"{tool.__name__:10} {tool(port)}")
                except Exception as error:  # noqa: BLE001
                    failed += 1
                    print(f"{tool.__name__:10} FAILED: {error}")
        finally:
            pgusher.terminate()
            pgusher.wait()
    print(f"{4 - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
