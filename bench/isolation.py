#!/usr/bin/env python3
"""What it costs that a connection goes from one user to another, and that it does not for one user.

Two pgbench clients on a pool of one connection: both of one user, or of two (each transaction then goes behind a reset of the
connection by the server). Rounds are interleaved. CPU seconds are pgusher's and the server processes' own, from /proc; latencies
from pgbench's log. Prints a Markdown table, and writes it to docs/benchmarks.md with `--out`; asserts nothing about time. `PGUSHER=path` takes
another binary; one that does not know `isolation` is measured without it, for comparison.
"""

import argparse
import datetime
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import crowd
import report
from stage import DATABASE, UPSTREAM_USER, USER, Process, Stage, Unavailable, free_port, wait_until_it_answers

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
WORKS = {
    "prepared select": ("\\set n random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :n;", "prepared"),
    "insert with a foreign key": ("\\set n random(1, 100)\nINSERT INTO child VALUES (:n);", "prepared"),
    "PL/pgSQL": ("\\set n random(1, 100)\nSELECT work(:n);", "prepared"),
}
ABOUT = """Two pgbench clients on a pool of one connection, of one user or of two: then each transaction goes behind a reset of the
connection by the server, and the session's statements are prepared again. `make bench-isolation ARGS='--rounds {rounds} --seconds {seconds}'`,
{date}; medians of interleaved rounds; CPU of one transaction."""
TABLES = [
    "CREATE UNLOGGED TABLE parent (id int PRIMARY KEY)",
    "INSERT INTO parent SELECT generate_series(1, 100)",
    "CREATE UNLOGGED TABLE child (parent int REFERENCES parent)",
    "CREATE FUNCTION work(n int) RETURNS int LANGUAGE plpgsql AS "
    "$$ DECLARE found int; BEGIN SELECT count(*) INTO found FROM parent WHERE id <= n; RETURN found; END $$",
]


def configuration(stage, port, isolation):
    option = f'isolation = "{isolation}"\n' if isolation else ""
    return (f'[server]\nlisten = ["127.0.0.1:{port}"]\nthreads = 1\nauth_type = "trust"\n'
            f'[connections.{DATABASE}]\nhost = "127.0.0.1"\nport = {stage.port}\nusername = "{UPSTREAM_USER}"\npool_size = 1\n{option}'
            f'[users.{USER}]\nauth_type = "trust"\n[users.ann]\nauth_type = "trust"\n[users.ben]\nauth_type = "trust"\n')


def server_cpu(stage):
    """Seconds of the server's processes that live now; those of the pool stay for all of a measurement."""
    total = 0
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == stage.postgres.child.pid:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(stage, process, port, users, work, seconds):
    script, mode = WORKS[work]
    file = stage.write("script.sql", script + "\n")
    before = process.cpu_seconds(), server_cpu(stage)
    clients = []
    for at, user in enumerate(users):
        command = [stage.binaries / "pgbench", "-n", "-h", "127.0.0.1", "-p", port, "-U", user, "-M", mode, "-f", file,
                   "-T", seconds, "-l", f"--log-prefix={stage.folder}/log{at}", DATABASE]
        clients.append(subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for client in clients:
        _, error = client.communicate()
        if client.returncode:
            raise SystemExit(f"pgbench failed: {error.decode()}")
    cpu = process.cpu_seconds() - before[0], server_cpu(stage) - before[1]
    times = []
    for log in stage.folder.glob("log[0-9]*"):
        times += [int(line.split()[2]) / 1000 for line in log.read_text().splitlines()]
        log.unlink()
    times.sort()
    count = len(times)
    return [1e6 * cpu[0] / count, 1e6 * cpu[1] / count, times[count // 2], times[count * 99 // 100], count / seconds]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, metavar="PATH", help="docs/benchmarks.md, a section of which it is to be")
    arguments = parser.parse_args()
    binary = os.environ.get("PGUSHER", REPOSITORY / "target/release/pgusher")
    with tempfile.TemporaryDirectory(prefix="pgusher-bench-") as name:
        stage = Stage(pathlib.Path(name))
        running = []
        try:
            stage.start_postgres()
            running.append(stage.postgres)
            stage.fill()
            owner = crowd.Client("127.0.0.1", stage.port, UPSTREAM_USER, "", DATABASE)
            for statement in TABLES:
                owner.query(statement)
            owner.close()
            targets = {}
            for isolation in ("user", "shared"):
                port = free_port()
                file = stage.write(f"{isolation}.toml", configuration(stage, port, isolation))
                process = Process([binary, "serve", file], stage.folder / f"{isolation}.log", stage.account)
                try:
                    wait_until_it_answers("pgusher", process, port, USER)
                except Unavailable:
                    process.stop()
                    if isolation == "shared":
                        continue
                    file = stage.write(f"{isolation}.toml", configuration(stage, port, None))
                    process = Process([binary, "serve", file], stage.folder / f"{isolation}.log", stage.account)
                    wait_until_it_answers("pgusher", process, port, USER)
                running.append(process)
                targets[isolation] = (process, port)
            cases = {
                "one user": ("user", ("ann", "ann")),
                "two users, `isolation = \"user\"`": ("user", ("ann", "ben")),
                "two users, `isolation = \"shared\"`": ("shared", ("ann", "ben")),
            }
            samples = {}
            for _ in range(arguments.rounds):
                for work in WORKS:
                    for case, (isolation, users) in cases.items():
                        if isolation in targets:
                            process, port = targets[isolation]
                            sample = measure(stage, process, port, users, work, arguments.seconds)
                            samples.setdefault((work, case), []).append(sample)
            lines = [
                "| work | on one connection | pgusher µs CPU | server µs CPU | p50 ms | p99 ms | transactions/s |",
                "|---|---|---|---|---|---|---|",
            ]
            for (work, case), rounds in samples.items():
                m = [statistics.median(column) for column in zip(*rounds)]
                lines.append(f"| {work} | {case} | {m[0]:.1f} | {m[1]:.1f} | {m[2]:.2f} | {m[3]:.2f} | {m[4]:,.0f} |")
            table = "\n".join(lines)
            print(table)
            if arguments.out:
                about = ABOUT.format(date=datetime.date.today(), rounds=arguments.rounds, seconds=arguments.seconds)
                report.write_section(arguments.out, "Hand-overs between users", about + "\n\n" + table)
        finally:
            for process in reversed(running):
                process.stop()


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(str(error))
