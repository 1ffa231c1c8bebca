#!/usr/bin/env python3
"""What those notice who are in while something else goes on: 5,000 SCRAM logins under TLS that come at once, `/metrics` scraped ten
times a second, a reload every second, `PLAN` and the page. pgbench -S at a steady rate, its p99 beside that of the run before without
the disturbance. The storm's clients run only where nothing else wants to (SCHED_IDLE), so that it is the pooler that disturbs, and not they. Asserts nothing
about time; logins that fail are told."""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import bench
import crowd
import stage
from stage import Unavailable

CLIENTS = 16
TOKEN = "a-token-of-the-benchmark"


class Watched(stage.Pgusher):
    """With everything that an operator looks at."""

    def _launch(self, theater, folder, port, auth, upstream):
        self.metrics, self.page = stage.free_port(), stage.free_port()
        self.engine = f'io = "auto"\nmetrics_listen = "127.0.0.1:{self.metrics}"'
        self.more = f"""console = "admin"

[management]
listen = "127.0.0.1:{self.page}"
requests_per_minute = 100000

[management.tokens.bench]
token = "{TOKEN}"
"""
        return super()._launch(theater, folder, port, auth, upstream)


@contextlib.contextmanager
def again_and_again(pause, action):
    """The action, with so many seconds between two, until the end; what went wrong is raised there."""
    over, failures = threading.Event(), []

    def run():
        try:
            while not over.wait(pause):
                action()
        except (OSError, crowd.ServerError) as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise Unavailable(f"the disturbance failed: {failures[0]}")


def nothing(_target, _setting):
    return contextlib.nullcontext()


def metrics(target, _setting):
    def scrape():
        with urllib.request.urlopen(f"http://127.0.0.1:{target.metrics}/metrics", timeout=10) as answer:
            answer.read()

    return again_and_again(0.1, scrape)


def reloads(_target, setting):
    return again_and_again(1, lambda: setting.process.child.send_signal(signal.SIGHUP))


def looks(target, setting):
    """`PLAN` on the console, and what the page asks for, each once a second."""
    console = crowd.Client("127.0.0.1", setting.port, stage.USER, stage.PASSWORD, "pgusher")
    paths = ("/", "/api/v1/overview", "/api/v1/sessions?limit=2000")

    def look():
        console.query("PLAN")
        for path in paths:
            request = urllib.request.Request(f"http://127.0.0.1:{target.page}{path}")
            request.add_header("Authorization", f"Bearer {TOKEN}")
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()

    return again_and_again(1, look)


@contextlib.contextmanager
def storm(_target, setting):
    """All come when the load runs already, and hold until the end of it."""
    command = [sys.executable, crowd.__file__, "--clients", "5000", "--port", str(setting.port), "--user", stage.USER,
               "--password", stage.PASSWORD, "--database", stage.DATABASE, "--tls", "--at-once", "--hold", "60"]
    child = subprocess.Popen(["chrt", "--idle", "0", *command], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
                             start_new_session=True)
    began = time.monotonic()
    try:
        yield
        said = []
        for line in child.stdout:
            said.append(line.strip())
            if line.startswith("ready:"):
                break
        if not said or not said[-1].startswith("ready: 5000 of"):
            raise Unavailable(f"not all got in: {'; '.join(said)}")
        bench.progress(f"5,000 logins: {time.monotonic() - began:.1f} s")
    finally:
        child.stdout.close()
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(60)


WORKS = {"metrics 10/s": metrics, "reload 1/s": reloads, "PLAN and the page": looks, "5,000 TLS logins": storm}


def p99(target, setting, rate, disturbance):
    """Milliseconds, of a run during which that goes on."""
    with tempfile.TemporaryDirectory() as folder:
        with disturbance(target, setting):
            bench.run_pgbench(setting, folder, "-c", CLIENTS, "-j", 1, "-R", rate, "-T", setting.seconds)
        latencies = [latency for _, _, _, latency in bench.logged(folder)]
    return bench.percentiles(latencies)[1]


def run(options):
    """Lines of the table."""
    rows = []
    with bench.filled_stage() as theater:
        for target in (Watched(options), stage.Pgbouncer(options)):
            works = WORKS if isinstance(target, Watched) else {"5,000 TLS logins": storm}
            process, port = target.start(theater, "scram-sha-256")
            setting = bench.Setting(theater, process, port, options.seconds, 0)
            try:
                for name, disturbance in works.items():
                    rows.append(measure(target, setting, options, (name, disturbance)))
            finally:
                process.stop()
    return rows


def measure(target, setting, options, work):
    name, disturbance = work
    pairs = []
    try:
        for _ in range(options.rounds):
            pairs.append([p99(target, setting, options.rate, what) for what in (nothing, disturbance)])
            bench.progress(f"{target.name}, {name}: p99 {pairs[-1][0]:.2f} ms without, {pairs[-1][1]:.2f} with")
    except Unavailable as error:
        return [target.name, name, f"failed: {error}", "", ""]
    without, with_it = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(disturbed / alone for alone, disturbed in pairs)
    return [target.name, name, f"{without:.2f}", f"{with_it:.2f}", f"{ratio:.2f}"]


def main():
    options = bench.small_options(__doc__, rounds=5, seconds=10, rate=4000)
    try:
        rows = run(options)
    except Unavailable as error:
        sys.exit(str(error))
    about = (f"`make bench-disturbed ARGS='--rounds {options.rounds} --seconds {options.seconds}'`: `pgbench -S` from {CLIENTS} clients, "
             f"{options.rate:,} transactions/s, pairs of runs, medians; the ratio is taken within a pair. The 5,000 clients that log in at once by SCRAM under TLS have only the "
             "time that nothing else wants. Must: 1.05, and 2.0 for the logins.")
    bench.show(options, "Undisturbed", about, ["", "while", "p99 without, ms", "p99 with, ms", "ratio"], rows)


if __name__ == "__main__":
    main()
