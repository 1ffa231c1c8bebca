#!/usr/bin/env python3
"""How much memory idle clients take as they become more, and how much a row of 128 MB and a COPY of 1 GB take over the idle process, of
pgusher by io_uring and by epoll and of PgBouncer. Asserts nothing."""

import pathlib
import re
import sys
import time

import bench
import crowd
import stage
from stage import Unavailable

TARGETS = ("pgusher", "epoll", "pgbouncer")
AT_REST = b"Z\0\0\0\5I"
MIB = 1 << 20
ROW = "SELECT repeat('x', 128 * 1024 * 1024)"
OUT = "COPY (SELECT repeat('x', 1023) FROM generate_series(1, 1024 * 1024)) TO STDOUT"
SETTLE = 4


class Peak:
    """The most memory that the process had between entering and now, over what it had then, in bytes (proc_pid_status(5), proc_pid_clear_refs(5))."""

    def __init__(self, process):
        self.folder = pathlib.Path(f"/proc/{process.child.pid}")
        (self.folder / "clear_refs").write_text("5")
        self.before = self._now("VmRSS")

    def _now(self, name):
        return int(re.search(rf"^{name}:\s+(\d+)", (self.folder / "status").read_text(), re.M).group(1)) * 1024

    def over(self):
        return self._now("VmHWM") - self.before


def read_all(client, sql):
    client.start_query(sql)
    buffer, tail = bytearray(256 << 10), b""
    while not tail.endswith(AT_REST):
        count = client.sock.recv_into(buffer)
        if count == 0:
            raise Unavailable("the connection was closed")
        tail = (tail + buffer[max(0, count - 64) : count])[-64:]


def write_all(client):
    client.start_query("COPY sink FROM STDIN WHERE false")
    client.receive_until(b"G")
    piece = crowd.message(b"d", b"x" * 1023 + b"\n") * 1024
    for _ in range(1024):
        client.sock.sendall(piece)
    client.sock.sendall(crowd.message(b"c", b""))
    client.receive_until(b"Z")


def bulk(target, theater):
    """MiB over the idle process: of a row, of COPY out, of COPY in."""
    process, port = target.start(theater, "trust")
    try:
        client = crowd.Client("127.0.0.1", port, stage.USER, stage.PASSWORD, stage.DATABASE, timeout=120)
        client.query("SELECT 1")
        time.sleep(1)
        found = []
        for action in (lambda: read_all(client, ROW), lambda: read_all(client, OUT), lambda: write_all(client)):
            peak = Peak(process)
            action()
            found.append(f"{peak.over() / MIB:.1f}")
        client.close()
        return found
    finally:
        process.stop()


def idle(target, theater, counts):
    """Bytes for each of so many clients, again and again."""
    process, port = target.start(theater, "scram-sha-256")
    try:
        setting = bench.Setting(theater, process, port, 60, 0)
        with bench.held_crowd(setting, 20, False):
            time.sleep(1)
        time.sleep(SETTLE)
        before, found = process.resident_bytes(), []
        for count in counts:
            with bench.held_crowd(setting, count, False):
                time.sleep(SETTLE)
                found.append(f"{(process.resident_bytes() - before) / count:,.0f}")
            time.sleep(1)
        return found
    finally:
        process.stop()


def main():
    options = bench.small_options(__doc__, most=10_000)
    counts = [options.most // 8, options.most // 4, options.most // 2, options.most]
    rows = []
    try:
        with bench.filled_stage() as theater:
            for name in TARGETS:
                target = stage.TARGETS[name](options)
                rows.append([name, *idle(target, theater, counts), *bulk(target, theater)])
                bench.progress(" ".join(rows[-1]))
    except Unavailable as error:
        sys.exit(str(error))
    about = ("`make bench-memory`: bytes for each idle client that has logged in by SCRAM and run a query, as there are more of them; and the "
             "most MiB over the idle process while a row of 128 MB is read, 1 GB by `COPY` out, and 1 GB by `COPY` in (must: 12).")
    titles = ["", *(f"{count:,} clients" for count in counts), "row of 128 MB", "COPY out", "COPY in"]
    bench.show(options, "Memory", about, titles, rows)


if __name__ == "__main__":
    main()
