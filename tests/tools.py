#!/usr/bin/env python3
"""Tools made for PgBouncer, and clients of PostgreSQL, on pgusher's console: Debian's exporter for Prometheus, pgcli,
psycopg2, psycopg 3 and psql; and Prometheus itself, with our alerts and the queries of our dashboard. `make test-tools` installs what is missing."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
metrics_listen = "127.0.0.1:{metrics}"
audit_file = "audit.jsonl"
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


def psycopg3(port):
    """The extended protocol, with parameters of its own and a server-side prepared statement."""
    import psycopg
    with psycopg.connect(host="127.0.0.1", port=port, user="watcher", dbname="pgusher", autocommit=True) as connection:
        for _ in range(3):
            rows = connection.execute("SHOW ROUTES", prepare=True).fetchall()
            assert [(row[0], row[2]) for row in rows] == [("watcher", "prod")], rows
        version = connection.execute("SHOW VERSION", binary=False).fetchone()[0]
        assert version.startswith("pgusher "), version
        try:
            connection.execute("RELOAD")
        except psycopg.errors.InsufficientPrivilege:
            return "extended protocol, prepared"
    raise AssertionError("RELOAD was allowed to who may only look")


def prometheus(port):
    """It scrapes, our alerts load and are evaluated, and every query of our dashboard is answered."""
    at = free_port()
    with tempfile.TemporaryDirectory(prefix="pgusher-prometheus-") as folder:
        config = pathlib.Path(folder) / "prometheus.yml"
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(REPOSITORY / "docs/alerts.yml")],
            "scrape_configs": [{"job_name": "pgusher", "static_configs": [{"targets": [f"127.0.0.1:{METRICS[port]}"]}]}],
        }))
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
                   f"--web.listen-address=127.0.0.1:{at}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def ask(path, **arguments):
            url = f"http://127.0.0.1:{at}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]

        try:
            until("it scrapes", lambda: [s for s in ask("query", query='up{job="pgusher"}')["result"] if s["value"][1] == "1"])
            until("rates", lambda: ask("query", query="rate(pgusher_transactions_total[5s])")["result"])
            rules = until("the rules are evaluated", lambda: [
                r for g in ask("rules")["groups"] for r in g["rules"] if r["health"] != "unknown"])
            assert all(rule["health"] == "ok" for rule in rules), rules
            dashboard = json.loads((REPOSITORY / "docs/grafana.json").read_text())
            queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
            answered = 0
            for query in queries:
                for name, value in {"$__rate_interval": "5s", "$instance": ".*", "$environment": ".*"}.items():
                    query = query.replace(name, value)
                answered += bool(ask("query", query=query)["result"])
            # Without clients there are neither refusals nor pinned sessions to tell of.
            assert answered >= len(queries) - 2, f"{answered} of {len(queries)}"
            known = set(ask("label/__name__/values"))
            named = {name for query in queries for name in re.findall(r"pgusher_\w+", query)} - {"pgusher_refusals_total"}
            assert named <= known, named - known
        finally:
            process.terminate()
            process.wait()
    return f"{len(rules)} alerts, {answered} of {len(queries)} queries of the dashboard have answers"


def alerts(_):
    said = run(["promtool", "test", "rules", str(REPOSITORY / "tests/alerts_test.yml")])
    assert "SUCCESS" in said and "FAILED" not in said, said
    return "each is raised by what it is for"


def grafana(_):
    """Grafana's own published types of a dashboard, checked by TypeScript."""
    folder = REPOSITORY / "target/tools"
    folder.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "@grafana/schema@11", "typescript@5"]
    subprocess.run(install, check=True, timeout=300)
    dashboard = (REPOSITORY / "docs/grafana.json").read_text()
    types = "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen"
    source = folder / "dashboard.ts"
    source.write_text(f'import type {{ Dashboard }} from "{types}";\nconst dashboard: Dashboard = {dashboard};\nexport default dashboard;\n')
    said = run([str(folder / "node_modules/.bin/tsc"), "--noEmit", "--skipLibCheck", "--moduleResolution", "node",
                "--target", "es2020", str(source)])
    assert not said, said
    return f"{len(json.loads(dashboard)['panels'])} panels and rows are of Grafana's types"


METRICS = {}


def main():
    failed = 0
    tools = (exporter, pgcli, psql, psycopg2, psycopg3, prometheus, alerts, grafana)
    with tempfile.TemporaryDirectory(prefix="pgusher-tools-") as folder:
        port = free_port()
        config = pathlib.Path(folder) / "pgusher.toml"
        METRICS[port] = free_port()
        config.write_text(CONFIG.format(port=port, metrics=METRICS[port]))
        with open(pathlib.Path(folder) / "log", "w") as log:
            pgusher = subprocess.Popen([REPOSITORY / "target/release/pgusher", "serve", config], stderr=log)
        try:
            until("pgusher listens", lambda: socket.create_connection(("127.0.0.1", port)).close() or True)
            for tool in tools:
                try:
                    print(f"{tool.__name__:10} {tool(port)}")
                except Exception as error:  # noqa: BLE001
                    failed += 1
                    print(f"{tool.__name__:10} FAILED: {error}")
        finally:
            pgusher.terminate()
            pgusher.wait()
    print(f"{len(tools) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
