#!/usr/bin/env python3
"""Many more clients than connections: how long they wait, and whether any waits longer than the others. `SELECT 1` from 2,000 clients
on 20 connections and from 10,000 on 40, of pgusher and of PgBouncer in turn. Asserts nothing about time; errors are told.

The clients are our own: each asks again as soon as it is answered, in the order in which the answers come. (pgbench goes through all its
clients whenever any of them is answered, in the order of their numbers: of a proxy that answers many at once it measures that.)"""

import array
import select
import statistics
import sys
import time

import bench
import crowd
import stage
from stage import Unavailable

CASES = ((2_000, 20), (10_000, 40))
TARGETS = ("pgusher", "epoll", "pgbouncer")
QUERY = crowd.message(b"Q", b"SELECT 1\0")
AT_REST = b"Z\0\0\0\5I"
EVENTS = 64  # how many answers are taken at once


class Asking:
    """Clients that ask all the time."""

    def __init__(self, port, clients):
        self.latencies = [array.array("d") for _ in range(clients)]
        self.ready, self.clients, self.asked = select.epoll(), {}, {}
        for number in range(clients):
            client = crowd.Client("127.0.0.1", port, stage.USER, stage.PASSWORD, stage.DATABASE)
            client.sock.setblocking(False)
            self.clients[client.sock.fileno()] = number, client.sock
            self.ready.register(client.sock.fileno(), select.EPOLLIN)

    def ask(self, descriptor):
        self.asked[descriptor] = time.monotonic()
        self.clients[descriptor][1].send(QUERY)

    def run(self, seconds, warm_up):
        """What was asked after the warm-up is remembered, in milliseconds."""
        began = time.monotonic()
        for descriptor in self.clients:
            self.ask(descriptor)
        while (now := time.monotonic()) < began + seconds:
            for descriptor, _ in self.ready.poll(1, EVENTS):
                number, sock = self.clients[descriptor]
                answer = sock.recv(4096)
                if not answer.endswith(AT_REST) or answer.startswith(b"E"):
                    raise Unavailable(f"client {number} was answered {answer!r}")
                if self.asked[descriptor] > began + warm_up:
                    self.latencies[number].append((time.monotonic() - self.asked[descriptor]) * 1000)
                self.ask(descriptor)

    def close(self):
        for _, sock in self.clients.values():
            sock.close()


def measure(setting, clients):
    """One run; the cells of its row."""
    asking = Asking(setting.port, clients)
    try:
        with bench.CpuMeter(setting.process) as cpu:
            asking.run(setting.seconds, setting.seconds / 6)
    finally:
        asking.close()
    if silent := sum(not latencies for latencies in asking.latencies):
        raise Unavailable(f"{silent} clients of {clients} were never served")
    p50, p99 = bench.percentiles(latency for latencies in asking.latencies for latency in latencies)
    means = sorted(map(statistics.fmean, asking.latencies))
    answers = sum(map(len, asking.latencies))
    rate, cost = answers / (setting.seconds * 5 / 6), cpu.per(answers * 6 / 5 / 1e6)
    return [f"{rate:,.0f}", f"{cost:.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{p99 / p50:.2f}", f"{means[-1] / means[len(means) // 2]:.2f}"]


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
    about = (f"`make bench-overload ARGS='--rounds {options.rounds} --seconds {options.seconds}'`: clients of our own, each of which asks `SELECT 1` again as soon as it is answered. "
             "The last column is the mean wait of the slowest client to that of the median one. Must: p99 / p50 at most 1.5 and the last "
             "column at most 1.3 for 2,000 clients on 20 connections; for 10,000 on 40, a p99 of no more than PgBouncer's.")
    titles = ["clients on connections", "", "round", "transactions/s", "CPU s for a million", "p50 ms", "p99 ms", "p99 / p50", "slowest"]
    bench.show(options, "Overload", about, titles, rows)


if __name__ == "__main__":
    main()
