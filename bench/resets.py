#!/usr/bin/env python3
"""Two ways to reset a connection between two users who send the same statements: `DISCARD ALL`, after which the next user's statements
are prepared again; and a finer one that leaves statements prepared, whose plans PostgreSQL makes anew. What the server process spends on
one hand-over with so many statements behind it: microseconds of its CPU, medians of interleaved rounds."""

import argparse
import pathlib
import statistics
import struct
import tempfile

import crowd
from stage import DATABASE, UPSTREAM_USER, Stage

FINER = ("RESET SESSION AUTHORIZATION;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD TEMP;"
         "DISCARD SEQUENCES;DISCARD PLANS")
SEED = "SELECT set_config('seed','0.5',false)"
# One that is planned in no time, and one whose planning is most of it.
TEXTS = {
    "select by a key": "SELECT abalance FROM pgbench_accounts WHERE aid = {n}",
    "join of six tables": "SELECT a.abalance FROM pgbench_accounts a JOIN pgbench_branches b USING (bid) JOIN pgbench_tellers t USING (bid) "
                          "JOIN pgbench_accounts c ON c.aid = t.tid JOIN pgbench_tellers u ON u.tid = c.bid "
                          "JOIN pgbench_branches d ON d.bid = u.bid WHERE a.aid = {n} AND t.tid = {n}",
}


class Session:
    def __init__(self, stage):
        self.client = crowd.Client("127.0.0.1", stage.port, UPSTREAM_USER, "", DATABASE)
        self.client.start_query("SELECT pg_backend_pid()")
        body, _ = self.client.receive_until(b"D")
        self.pid = int(body[6:])
        self.client.receive_until(b"Z")

    def send(self, kind, body):
        self.client.sock.sendall(kind + struct.pack("!I", len(body) + 4) + body)

    def run(self, number, text=None):
        """Binds and executes a statement, prepared before if it has a text."""
        name = f"s{number}\0".encode()
        if text:
            self.send(b"P", name + text.encode() + b"\0\0\0")
        self.send(b"B", b"\0" + name + bytes(6))
        self.send(b"E", bytes(5))
        self.send(b"S", b"")
        self.client.receive_until(b"Z")

    def cpu(self):
        return int(pathlib.Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1000


def hand_over(session, way, texts):
    session.client.query("DISCARD ALL" if way == "DISCARD ALL" else FINER)
    session.client.query(SEED)
    for number, text in enumerate(texts):
        session.run(number, text if way == "DISCARD ALL" else None)


def measure(stage, way, texts, count):
    session = Session(stage)
    for number, text in enumerate(texts):
        session.run(number, text)
    for _ in range(20):
        hand_over(session, way, texts)
    before = session.cpu()
    for _ in range(count):
        hand_over(session, way, texts)
    spent = (session.cpu() - before) / count
    session.client.close()
    return spent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgusher-bench-") as name:
        stage = Stage(pathlib.Path(name))
        try:
            stage.start_postgres()
            stage.fill()
            print("| statements behind a hand-over | DISCARD ALL | finer |\n|---|---|---|")
            for kind, text in TEXTS.items():
                for many in (1, 3, 10):
                    texts = [text.format(n=n + 1) for n in range(many)]
                    samples = {"DISCARD ALL": [], "finer": []}
                    for _ in range(arguments.rounds):
                        for way, known in samples.items():
                            known.append(measure(stage, way, texts, arguments.count))
                    medians = [statistics.median(known) for known in samples.values()]
                    print(f"| {many} × {kind} | {medians[0]:.0f} | {medians[1]:.0f} |", flush=True)
        finally:
            if stage.postgres:
                stage.postgres.stop()


if __name__ == "__main__":
    main()
