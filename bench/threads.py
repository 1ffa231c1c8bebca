#!/usr/bin/env python3
"""What more threads on io_uring cost and bring: pgbench's rate and the CPU for each transaction, on 1, 2, 4, ... threads that are all
used at once, and on as many as there are cores of which each is filled before the next is used; beside them, how often a
transaction waits for a lock (futex(2), counted by strace in a pass of its own). Asserts nothing about time."""

import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

import bench
import stage
from stage import Unavailable

MODES = ("simple", "prepared")


def pgusher(threads, full):
    """A target of so many threads, all used at once (`full` 0), or each when those before it are that full, in percent."""

    class Threads(stage.Pgusher):
        name = f"threads-{threads}-{full}"
        engine = f'io = "io_uring"\nthreads = {threads}\nthread_full = {full}'

    return Threads


def counts(cores):
    """1, 2, 4, ... up to the number of cores."""
    found = [1]
    while found[-1] * 2 <= cores:
        found.append(found[-1] * 2)
    return found if found[-1] == cores else [*found, cores]


def futex_calls(process, setting, mode, clients):
    """How many calls of futex(2) there are for each transaction; None without strace."""
    strace = shutil.which("strace")
    if not strace:
        return None
    with tempfile.TemporaryDirectory() as folder:
        summary = pathlib.Path(folder) / "summary"
        tracer = subprocess.Popen([strace, "-f", "-c", "-e", "trace=futex", "-o", summary, "-p", str(process.child.pid)],
                                  stderr=subprocess.DEVNULL)
        try:
            text = bench.run_pgbench(setting, folder, "-M", mode, "-c", clients, "-j", 2, "-T", setting.seconds)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(30)
        row = re.search(r"^\s*\S+\s+\S+\s+\S+\s+(\d+).*\bfutex$", summary.read_text(), re.M)
        return (int(row.group(1)) if row else 0) / bench.transactions_in(text)


def measure(options):
    """Rows of (threads, mode, median rate, median CPU seconds for a million transactions, that as a ratio to one thread's, futex)."""
    cores = os.cpu_count() or 1
    kinds = [(threads, 0) for threads in counts(cores)] + [(cores, 80)]
    running, found = {}, {}
    with bench.filled_stage() as theater:
        try:
            for kind in kinds:
                process, port = pgusher(*kind)(options).start(theater, "trust")
                running[kind] = process, bench.Setting(theater, process, port, options.seconds, 0)
            for _ in range(options.rounds):
                for mode in MODES:
                    for kind, (_, setting) in running.items():
                        sample = bench.transactions(mode, options.clients)(setting)
                        found.setdefault((kind, mode), []).append(sample)
                        bench.progress(f"{kind[0]} threads, full at {kind[1]} %, {mode}: {sample.rate:,.0f}/s, {sample.cost:.2f} s")
            return [
                row(kind, mode, found, futex_calls(*running[kind], mode, options.clients)) for mode in MODES for kind in kinds
            ]
        finally:
            for process, _ in running.values():
                process.stop()


def row(kind, mode, found, futex):
    """A line of the table."""
    samples, alone = found[kind, mode], found[(1, 0), mode]
    rate = statistics.median(sample.rate for sample in samples)
    cost = statistics.median(sample.cost for sample in samples)
    ratio = statistics.median(sample.cost / one.cost for sample, one in zip(samples, alone))
    how = "all at once" if kind[1] == 0 else f"each when those before are {kind[1]} % full"
    waits = "not counted" if futex is None else f"{futex:.4f}"
    return [mode, f"{kind[0]}, {how}", f"{rate:,.0f}", f"{cost:.2f}", f"{ratio:.2f}", waits]


def main():
    options = bench.small_options(__doc__, rounds=5, seconds=4, clients=100)
    try:
        rows = measure(options)
    except Unavailable as error:
        sys.exit(str(error))
    about = (f"`make bench-threads ARGS='--rounds {options.rounds} --seconds {options.seconds}'`: `pgbench -S` from {options.clients} clients, medians. Two "
             "threads on the two cores that PostgreSQL and pgbench use as well say nothing of four and more: that was not measured where this "
             "table has no such rows.")
    titles = ["pgbench -S", "threads", "transactions/s", "CPU s for a million", "ratio to one thread", "futex calls for each"]
    bench.show(options, "Threads", about, titles, rows)


if __name__ == "__main__":
    main()
