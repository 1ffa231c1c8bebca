#!/usr/bin/env python3
"""Compares pgusher with PgBouncer, HAProxy and no proxy at all, on one machine, in interleaved rounds.

Starts a throwaway PostgreSQL and every target that can be found, measures A B C A B C ..., and writes the tables to
docs/benchmarks.md. Needs nothing but Python and PostgreSQL's own programs. Asserts nothing about time.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing

import crowd
import graphs
import report
from poolers import TARGETS
from stage import DATABASE, PASSWORD, USER, DidNotStart, Stage, Unavailable

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LATENCY_SAMPLE = 0.1  # share of the transactions that pgbench logs
IDLE_SETTLE = 1.0  # seconds between a crowd's last query and the weighing
COPY_ROW = b"x" * 99 + b"\n"
COPY_BATCH_ROWS = 10_000  # a batch of 1 MB
COPY_IN_BATCHES = 32


@dataclasses.dataclass
class Sample:
    """One measurement. What `rate` and `cost` count depends on the work's kind (report.KINDS)."""

    rate: float | None = None
    cost: float | None = None  # None for `direct`: there is no proxy to charge
    p50: float | None = None  # milliseconds
    p99: float | None = None


@dataclasses.dataclass
class Setting:
    """Where and for how long to measure."""

    stage: Stage
    process: typing.Any  # None for `direct`
    port: int
    seconds: float
    idle_clients: int


@dataclasses.dataclass
class Work:
    name: str
    kind: str
    measure: typing.Callable[[Setting], Sample]
    auth: str = "trust"  # no logins in what is charged to transactions
    fresh: bool = False  # on a process that has done nothing before
    prepared: bool = False
    pooled: bool = False  # only for targets with a pool
    by_unix_socket: bool = False  # between the proxy and PostgreSQL


class CpuMeter:
    """CPU seconds of the proxy between entering and leaving; None without a proxy."""

    def __init__(self, process):
        self.process = process
        self.seconds = None

    def __enter__(self):
        self.before = self.process and self.process.cpu_seconds()
        return self

    def __exit__(self, *_):
        if self.process:
            self.seconds = self.process.cpu_seconds() - self.before

    def per(self, count):
        return None if self.seconds is None else self.seconds / count


# ── pgbench ──


def client_environment(tls):
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "PGPASSWORD": PASSWORD, "PGGSSENCMODE": "disable",
            "PGSSLMODE": "require" if tls else "disable", "HOME": "/nonexistent"}


def run_pgbench(setting, folder, *options, tls=False):
    """Its report, with the transaction logs left in the folder."""
    command = [setting.stage.binaries / "pgbench", "-S", "-n", "-h", "127.0.0.1", "-p", setting.port, "-U", USER,
               "--log", f"--log-prefix={folder}/log", *options, DATABASE]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=client_environment(tls), timeout=setting.seconds + 120)
    errors = [line for line in done.stderr.splitlines() if "error" in line or "abort" in line]
    if done.returncode != 0 or errors:
        raise Unavailable(f"pgbench failed: {(errors or done.stderr.strip().splitlines() or ['no word'])[0]}")
    return done.stdout


def logged(folder):
    """(log file, client, when it ended in seconds, latency in milliseconds) of every logged transaction."""
    for path in pathlib.Path(folder).glob("log.*"):
        with open(path) as lines:
            for line in lines:
                fields = line.split()
                yield path, fields[0], int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]) / 1000


def percentiles(values):
    """p50 and p99, or nothing to say."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return None, None
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def transactions_in(text):
    return int(re.search(r"transactions actually processed: (\d+)", text).group(1))


def rate_in(text):
    return float(re.findall(r"^tps = ([\d.]+)", text, re.M)[-1])


def transactions(protocol, clients, tls=False):
    """pgbench -S: CPU seconds per million transactions."""

    def measure(setting):
        with tempfile.TemporaryDirectory() as folder:
            with CpuMeter(setting.process) as cpu:
                text = run_pgbench(setting, folder, "-M", protocol, "-c", clients, "-j", 2, "-T", setting.seconds,
                                   f"--sampling-rate={LATENCY_SAMPLE}", tls=tls)
            p50, p99 = percentiles(latency for *_, latency in logged(folder))
        return Sample(rate_in(text), cpu.per(transactions_in(text) / 1e6), p50, p99)

    return measure


def login(setting):
    """pgbench -S -C: CPU milliseconds per connect, SCRAM, one SELECT, disconnect.

    pgbench's own latency leaves the connecting out, so the time from one end to the next stands for it: one client a
    thread, because pgbench connects synchronously.
    """
    with tempfile.TemporaryDirectory() as folder:
        with CpuMeter(setting.process) as cpu:
            text = run_pgbench(setting, folder, "-C", "-c", 2, "-j", 2, "-T", setting.seconds)
        ends = collections.defaultdict(list)
        for path, client, end, _ in logged(folder):
            ends[path, client].append(end)
        p50, p99 = percentiles((b - a) * 1000 for times in ends.values() for a, b in zip(times, times[1:]))
    return Sample(rate_in(text), cpu.per(transactions_in(text) / 1000), p50, p99)


# ── COPY ──


def repeat_for(seconds, action):
    """Do it until the time is up: (bytes, seconds taken)."""
    start, moved = time.monotonic(), 0
    while moved == 0 or time.monotonic() - start < seconds:
        moved += action()
    return moved, time.monotonic() - start


def copy_work(action):
    """A client that copies over and over: CPU seconds per GB."""

    def measure(setting):
        client = crowd.Client("127.0.0.1", setting.port, USER, PASSWORD, DATABASE, timeout=60)
        with contextlib.closing(client), CpuMeter(setting.process) as cpu:
            moved, took = repeat_for(setting.seconds, lambda: action(client))
        return Sample(moved / took / 1e6, cpu.per(moved / 1e9))

    return measure


def copy_out(table):
    """Reads as fast as Python can: whole pieces, never rows."""
    buffer = bytearray(256 * 1024)

    def action(client):
        client.start_query(f"COPY {table} TO STDOUT")
        moved, tail = 0, b""
        while not tail.endswith(b"Z\0\0\0\5I"):
            count = client.sock.recv_into(buffer)
            if count == 0:
                raise Unavailable("the connection was closed in the middle of COPY")
            moved += count
            tail = (tail + buffer[max(0, count - 64) : count])[-64:]
        if b"COPY " not in tail:
            raise Unavailable("COPY ended without CommandComplete")
        return moved

    return action


def copy_in(rows_in_frame):
    """Into a table that keeps nothing, so that PostgreSQL's share is small."""
    frame = crowd.message(b"d", COPY_ROW * rows_in_frame)
    batch = frame * (COPY_BATCH_ROWS // rows_in_frame)

    def action(client):
        client.start_query("COPY sink FROM STDIN WHERE false")
        client.receive_until(b"G")
        for _ in range(COPY_IN_BATCHES):
            client.sock.sendall(batch)
        client.sock.sendall(crowd.message(b"c", b""))
        if client.receive_until(b"Z")[1] != "COPY 0":
            raise Unavailable("COPY FROM ended without CommandComplete")
        return COPY_IN_BATCHES * len(batch)

    return action


# ── idle clients ──


@contextlib.contextmanager
def held_crowd(setting, clients, tls):
    """A crowd that has logged in and run a query each, and now holds still."""
    command = [sys.executable, crowd.__file__, "--clients", clients, "--port", setting.port, "--user", USER,
               "--password", PASSWORD, "--database", DATABASE, "--hold", 60] + (["--tls"] if tls else [])
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True,
                             stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        said = []
        for line in child.stdout:
            said.append(line.strip())
            if line.startswith("ready:"):
                break
        if not said or not said[-1].startswith(f"ready: {clients} of"):
            raise Unavailable(f"the crowd of {clients} did not get in: {'; '.join(said)}")
        yield
    finally:
        child.terminate()
        child.stdout.close()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def idle(tls=False):
    """Bytes per idle client that has logged in and run a query."""

    def measure(setting):
        with held_crowd(setting, 20, tls):
            pass  # what the first few clients set up for all is not the cost of a client
        time.sleep(IDLE_SETTLE)
        before = setting.process.resident_bytes()
        with held_crowd(setting, setting.idle_clients, tls):
            time.sleep(IDLE_SETTLE)
            after = setting.process.resident_bytes()
        return Sample(cost=(after - before) / setting.idle_clients)

    return measure


# ── the order of it all ──


WORKS = [
    *(
        Work(f"{protocol}-{clients}", "transactions", transactions(protocol, clients), prepared=protocol == "prepared")
        for protocol in ("simple", "extended", "prepared")
        for clients in (1, 16, 100)
    ),
    Work("tls-16", "transactions", transactions("simple", 16, tls=True)),
    Work("unix-16", "transactions", transactions("simple", 16), by_unix_socket=True),
    Work("copy-out-short", "copy", copy_work(copy_out("pgbench_accounts"))),
    Work("copy-out-wide", "copy", copy_work(copy_out("wide"))),
    Work("copy-in", "copy", copy_work(copy_in(rows_in_frame=80))),
    Work("copy-in-rows", "copy", copy_work(copy_in(rows_in_frame=1))),
    Work("login", "login", login, auth="scram-sha-256"),
    Work("idle", "idle", idle(), auth="scram-sha-256", fresh=True, pooled=True),
    Work("idle-tls", "idle", idle(tls=True), auth="scram-sha-256", fresh=True, pooled=True),
]
QUICK = ["simple-16", "prepared-16", "copy-in", "login", "idle"]


class Cast:
    """The targets' processes: started when first needed, warmed up, replaced when they died, all stopped at the end."""

    def __init__(self, stage):
        self.stage = stage
        self.running = {}
        self.hopeless = {}

    @contextlib.contextmanager
    def playing(self, target, work):
        """A (process, port) of the target for this work."""
        if work.fresh:
            process, port = self._start(target, work)
            try:
                yield process, port
            finally:
                process.stop()
            return
        key = target.name, work.auth, work.by_unix_socket
        if key in self.running and self.running[key][0] and not self.running[key][0].alive():
            del self.running[key]
        if key not in self.running:
            self.running[key] = self._start(target, work)
            self._warm_up(*self.running[key])
        yield self.running[key]

    def _start(self, target, work):
        """Start it, unless it would not come up before: then the same words again."""
        key = target.name, work.auth, work.by_unix_socket
        if error := self.hopeless.get(key):
            raise error
        try:
            return target.start(self.stage, work.auth, str(self.stage.folder) if work.by_unix_socket else "127.0.0.1")
        except DidNotStart as error:
            self.hopeless[key] = error
            raise

    def _warm_up(self, process, port):
        """Fill the pool, and PostgreSQL's caches."""
        with tempfile.TemporaryDirectory() as folder:
            run_pgbench(Setting(self.stage, process, port, 5, 0), folder, "-c", 40, "-j", 2, "-t", 50)

    def stop(self):
        for process, _ in self.running.values():
            if process:
                process.stop()


def why_not(target, work):
    """A sentence when this target cannot do this work; else nothing."""
    if work.prepared and not target.knows_prepared:
        return f"{target.name} {target.version} has no prepared statements in transaction pooling."
    if work.pooled and not target.pools:
        return f"{target.name} has no pool: each client costs a PostgreSQL process instead."
    return None


def measure_once(cast, target, work, options, idle_clients):
    with cast.playing(target, work) as (process, port):
        sample = work.measure(Setting(cast.stage, process, port, options.seconds, idle_clients))
        if process and not process.alive():
            raise Unavailable(f"the process died; {process.last_words()}")
        return sample


def measure_all(cast, targets, works, options, idle_clients):
    """Every round, every work, every target; (samples by work and target, in rounds; sentences about what is missing)."""
    samples = collections.defaultdict(lambda: [None] * options.rounds)
    notes = []
    for number in range(options.rounds):
        for work in works:
            for target in targets:
                reason = why_not(target, work)
                try:
                    if reason:
                        raise Unavailable(reason)
                    sample = measure_once(cast, target, work, options, idle_clients)
                    samples[work.name, target.name][number] = sample
                    progress(f"round {number + 1}/{options.rounds}  {work.name:15} {target.name:10} "
                             f"{report.brief(work.kind, sample)}")
                except (Unavailable, crowd.ServerError, OSError, subprocess.SubprocessError) as error:
                    known = reason or isinstance(error, DidNotStart)
                    note = str(error) if known else f"{work.name}, {target.name}, round {number + 1}: {error}"
                    if note not in notes:
                        notes.append(note)
                        progress(note)
    return samples, notes


def progress(line):
    print(line, file=sys.stderr, flush=True)


def chosen(names, wanted, what):
    """The names that are wanted, by their beginning; all without a wish."""
    if not wanted:
        return list(names)
    for wish in wanted:
        if not any(name.startswith(wish) for name in names):
            sys.exit(f"There is no {what} {wish!r}; there are: {', '.join(names)}.")
    return [name for name in names if any(name.startswith(wish) for wish in wanted)]


def find_targets(options):
    """The targets that are here; and a sentence for each that is not."""
    targets, notes = [], []
    for name in chosen(TARGETS, options.targets, "target"):
        try:
            targets.append(TARGETS[name](options))
        except Unavailable as error:
            notes.append(str(error))
            progress(str(error))
    return targets, notes


def run(options):
    """The whole benchmark; the report's text, and its graphs."""
    targets, missing = find_targets(options)
    names = chosen([work.name for work in WORKS], options.only or (QUICK if options.quick else []), "work")
    works = [work for work in WORKS if work.name in names]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pgusher-bench-"))
    stage = cast = None
    try:
        stage = Stage(folder)
        stage.start_postgres()
        progress("PostgreSQL is up; filling it")
        stage.fill()
        cast = Cast(stage)
        samples, notes = measure_all(cast, targets, works, options, options.clients)
        machine = report.machine(stage)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave servers behind
        if cast:
            cast.stop()
        if stage and stage.postgres:
            stage.postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)
    drawn = list(graphs.draw(samples, works))
    return report.render(machine, options, targets, works, samples, missing + notes, drawn), drawn


@contextlib.contextmanager
def filled_stage():
    """A stage with PostgreSQL up and filled, until the end."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pgusher-bench-"))
    stage = None
    try:
        stage = Stage(folder)
        stage.start_postgres()
        stage.fill()
        yield stage
    finally:
        if stage and stage.postgres:
            stage.postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


def small_options(description, **defaults):
    """The command line of a benchmark beside this one: numbers with these defaults, and the binary. Ready to measure."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--pgusher", default=REPOSITORY / "target/release/pgusher", metavar="PATH")
    parser.add_argument("--out", type=pathlib.Path, metavar="PATH", help="docs/benchmarks.md, a section of which it is to be")
    signal.signal(signal.SIGTERM, interrupt)
    crowd.raise_file_limit()
    return parser.parse_args()


def show(options, title, about, titles, rows):
    """Prints a table, and makes it the section of this title if a file is given."""
    text = report.table(titles, rows)
    print(text)
    if options.out:
        report.write_section(options.out, title, f"{about} ({datetime.date.today()}; {os.cpu_count()} cores)\n\n{text}")


def interrupt(_signal, _frame):
    raise KeyboardInterrupt


def parse_options():
    def names(text):
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="for each measurement")
    parser.add_argument("--clients", type=int, help="idle clients (5000)")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 second, a few works, 500 idle clients")
    parser.add_argument("--only", type=names, metavar="WORK[,WORK]", help="works by name or its beginning")
    parser.add_argument("--targets", type=names, metavar="NAME[,NAME]", help=", ".join(TARGETS))
    parser.add_argument("--pgusher", default=REPOSITORY / "target/release/pgusher", metavar="PATH")
    parser.add_argument("--out", default=REPOSITORY / "docs/benchmarks.md", metavar="PATH", help="- for standard output")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 5)
    options.clients = options.clients or (500 if options.quick else 5000)
    return options


def main():
    options = parse_options()
    signal.signal(signal.SIGTERM, interrupt)
    crowd.raise_file_limit()
    try:
        text, drawn = run(options)
    except Unavailable as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; everything that was started is stopped")
    if str(options.out) == "-":
        print(text)
    else:
        report.write(pathlib.Path(options.out), text)
        for file, _, picture in drawn:
            pathlib.Path(options.out).with_name(file).write_text(picture)
        progress(f"wrote {options.out}")


if __name__ == "__main__":
    main()
