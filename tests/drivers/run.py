#!/usr/bin/env python3
"""Runs every driver's conversation, all at the same time, through pgusher in transaction mode with three connections.

What a driver needs is installed below target/drivers (pip, npm) or by the system's package manager (make test-drivers
does that); one that cannot be had is named, and fails the run.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(REPOSITORY / "bench"))

import stage  # noqa: E402

ROUNDS = 20
TOOLS = REPOSITORY / "target" / "drivers"
PYTHON = TOOLS / "venv" / "bin" / "python"
GO = pathlib.Path("/usr/share/gocode")
JDBC = pathlib.Path("/usr/share/java/postgresql.jar")

# The command of each driver's conversation.
DRIVERS = {
    "psycopg (libpq)": [PYTHON, HERE / "psycopg_driver.py"],
    "psycopg2": [PYTHON, HERE / "psycopg2_driver.py"],
    "asyncpg": [PYTHON, HERE / "asyncpg_driver.py"],
    "pg8000": [PYTHON, HERE / "pg8000_driver.py"],
    "SQLAlchemy": [PYTHON, HERE / "sqlalchemy_driver.py"],
    "Django": [PYTHON, HERE / "django_driver.py"],
    "node-postgres": ["node", HERE / "node_postgres.mjs"],
    "postgres.js": ["node", HERE / "postgres_js.mjs"],
    "DBD::Pg": ["perl", HERE / "dbd_pg.pl"],
    "PDO": ["php", HERE / "pdo.php"],
    "ruby-pg": ["ruby", HERE / "ruby_pg.rb"],
    "psqlODBC": ["/usr/bin/python3", HERE / "odbc_driver.py"],
    "pgx, lib/pq": ["go", "run", HERE / "pgx.go"],
    "JDBC": ["java", "-cp", JDBC, HERE / "Jdbc.java"],
}


def converse(name, command, port, log):
    environment = {**os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": stage.USER,
                   "PGPASSWORD": stage.PASSWORD, "PGDATABASE": stage.DATABASE, "ROUNDS": str(ROUNDS),
                   "NODE_PATH": str(TOOLS / "node_modules"), "PGGSSENCMODE": "disable",
                   "GO111MODULE": "off", "GOPATH": str(GO), "GOCACHE": str(TOOLS / "go"), "GOFLAGS": ""}
    return subprocess.Popen([str(word) for word in command], env=environment, stdin=subprocess.DEVNULL, cwd=TOOLS,
                            stdout=log, stderr=subprocess.STDOUT)


def main():
    stage.POOL_SIZE = 3  # and so max_pinned is 2: one session each of SQLAlchemy and Django keeps its connection
    wanted = {name: command for name, command in DRIVERS.items() if not sys.argv[1:] or name in sys.argv[1:]}
    failed = []
    with tempfile.TemporaryDirectory(prefix="pgusher-drivers-") as folder:
        os.chmod(folder, 0o755)
        scene = stage.Stage(pathlib.Path(folder))
        process = None
        try:
            scene.start_postgres()
            scene.fill()
            options = type("Options", (), {"pgusher": REPOSITORY / "target/release/pgusher"})
            process, port = stage.Pgusher(options).start(scene, "scram-sha-256")
            logs = {name: open(pathlib.Path(folder) / f"{number}.log", "w+") for number, name in enumerate(wanted)}
            talks = {name: converse(name, command, port, logs[name]) for name, command in wanted.items()}
            end = time.monotonic() + 180
            for name, talk in talks.items():
                try:
                    code = talk.wait(max(1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    talk.kill()
                    talk.wait()
                    code = "too late"
                logs[name].seek(0)
                said = logs[name].read().strip()
                print(f"{name:16} {said.splitlines()[-1] if code == 0 and said else f'FAILED ({code})'}")
                if code != 0:
                    print(said)
                    failed.append(name)
            if not process.alive():
                failed.append("pgusher")
            if failed:
                print(process.last_words())
        finally:
            if process:
                process.stop()
            if scene.postgres:
                scene.postgres.stop()
    print(f"{len(wanted) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
