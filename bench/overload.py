#!/usr/bin/env python3
"""Many more clients than connections: how long they wait, and whether any waits longer than the others. pgbench -S with 2,000 clients
on 20 connections and 10,000 on 40, of pgusher and of PgBouncer in turn. Asserts nothing about time; errors are told."""

import collections
import statistics
import sys
import tempfile

import bench
import stage
from stage import Unavailable

CASES = ((2_000, 20), (10_000, 40))
TARGETS = ("pgusher", "epoll", "pgbouncer")


def fairness(folder, warm_up):
    """(p50, p99, median client's mean, slowest client's mean), in milliseconds, of what ended after so many seconds."""
    first, latencies, by_client = None, [], collections.defaultdict(list)
    for path, client, end, latency in sorted(bench.logged(folder), key=lambda line: line[2]):
        first = end if first is None else first
        if end - first < warm_up:
            continue
        latencies.append(latency)
        by_client[path, client].append(latency)
    means = sorted(statistics.fmean(found) for found in by_client.values())
    if not means:
        raise Unavailable("nothing was logged")
    p50, p99 = bench.percentiles(latencies)
    return p50, p99, means[len(means) // 2], means[-1], len(means)


def measure(setting, clients):
    """One run; the cells of its row."""
    with tempfile.TemporaryDirectory() as folder:
        with bench.CpuMeter(setting.process) as cpu:
            text = bench.run_pgbench(setting, folder, "-c", clients, "-j", 2, "-T", setting.seconds)
        p50, p99, median, slowest, heard = fairness(folder, setting.seconds / 6)
        if heard < clients:
            raise Unavailable(f"{clients - heard} clients of {clients} were never served")
    rate, cost = bench.rate_in(text), cpu.per(bench.transactions_in(text) / 1e6)
    return [f"{rate:,.0f}", f"{cost:.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{p99 / p50:.2f}", f"{slowest / median:.2f}"]


def run(options):
    """The rows of every case, round and target."""
    rows = []
    with bench.filled_stage() as theater:
        targets = [stage.TARGETS[name](options) for name in TARGETS]
        for clients, connections in CASES:
            stage.POOL_SIZE = connections
            for number in range(options.rounds):
                for target in targets:
                    process, port = target.start(theater, "trust")
                    try:
                        cells = measure(bench.Setting(theater, process, port, options.seconds, 0), clients)
                    except Unavailable as error:
                        cells = [f"failed: {error}"]
                    finally:
                        process.stop()
                    rows.append([f"{clients:,} on {connections}", target.name, str(number + 1), *cells])
                    bench.progress(" ".join(rows[-1]))
    return rows


def main():
    options = bench.small_options(__doc__, rounds=3, seconds=60)
    try:
        rows = run(options)
    except Unavailable as error:
        sys.exit(str(error))
    print("| clients on connections | | round | transactions/s | CPU s for a million | p50 ms | p99 ms | p99 / p50 | slowest client / median |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
