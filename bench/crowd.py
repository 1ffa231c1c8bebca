#!/usr/bin/env python3
"""A crowd of PostgreSQL clients: log in, run a query each, then hold still until told to go.

Speaks the protocol itself, over plain sockets or TLS, with trust or SCRAM-SHA-256. bench.py holds such a crowd while
it weighs a proxy, and borrows `Client` for its COPY streams.
"""

import argparse
import base64
import collections
import functools
import hashlib
import hmac
import json
import os
import resource
import secrets
import select
import signal
import socket
import ssl
import struct
import sys
import time

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
PROTOCOL_3_0 = 196608
MANY_FAILURES = 100  # a process of the crowd that has seen so many stops trying


class ServerError(Exception):
    """The server refused, or said something that this client does not expect."""


@functools.lru_cache(maxsize=16)
def salted_password(password, salt, iterations):
    """PBKDF2, cached: a stored verifier keeps its salt, so a crowd pays for it once per process."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def hmac_sha256(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def scram_verifier(password, iterations=4096):
    """The verifier as PostgreSQL stores it in pg_authid (RFC 5803)."""
    salt = secrets.token_bytes(16)
    salted = salted_password(password, salt, iterations)
    stored_key = hashlib.sha256(hmac_sha256(salted, b"Client Key")).digest()
    parts = [salt, stored_key, hmac_sha256(salted, b"Server Key")]
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in parts)
    return f"SCRAM-SHA-256${iterations}:{salt64}${stored64}:{server64}"


def unverified_tls():
    """TLS that trusts any certificate: libpq's sslmode=require."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def message(tag, body):
    return tag + struct.pack("!i", len(body) + 4) + body


class Client:
    """One blocking client connection; logged in once constructed."""

    def __init__(self, host, port, user, password, database, tls=None, timeout=30, sock=None):
        self.sock = sock or socket.create_connection((host, port), timeout)
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self._start_tls(tls)
            self._log_in(user, password, database)
        except BaseException:
            self.sock.close()
            raise

    def close(self):
        """Say Terminate, then close. Errors do not matter any more."""
        try:
            self.sock.sendall(message(b"X", b""))
        except OSError:
            pass
        self.sock.close()

    def receive(self):
        """The next message that is not a notice or a parameter: (tag, body)."""
        while True:
            header = self._receive_exactly(5)
            body = self._receive_exactly(struct.unpack("!i", header[1:])[0] - 4)
            tag = header[:1]
            if tag == b"E":
                fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
                raise ServerError(f"{fields.get(b'C')}: {fields.get(b'M')}")
            if tag not in (b"N", b"S"):
                return tag, body

    def receive_until(self, wanted):
        """Skip messages up to the wanted one; its body, and the tag of the last CommandComplete on the way."""
        command = None
        while True:
            tag, body = self.receive()
            if tag == b"C":
                command = body.rstrip(b"\0").decode()
            if tag == wanted:
                return body, command

    def start_query(self, sql):
        self.sock.sendall(message(b"Q", sql.encode() + b"\0"))

    def query(self, sql):
        """Run a simple query, drop its rows; the command tag."""
        self.start_query(sql)
        return self.receive_until(b"Z")[1]

    def _start_tls(self, context):
        self.sock.sendall(SSL_REQUEST)
        answer = self._receive_exactly(1)
        if answer != b"S":
            raise ServerError(f"TLS refused with {answer!r}")
        self.sock = context.wrap_socket(self.sock)

    def _log_in(self, user, password, database):
        parameters = f"user\0{user}\0database\0{database}\0application_name\0crowd\0\0".encode()
        self.sock.sendall(struct.pack("!ii", len(parameters) + 8, PROTOCOL_3_0) + parameters)
        while True:
            tag, body = self.receive()
            if tag == b"Z":
                return
            if tag == b"R":
                self._authenticate(struct.unpack("!i", body[:4])[0], body[4:], password)
            elif tag != b"K":
                raise ServerError(f"unexpected message {tag!r} during login")

    def _authenticate(self, method, data, password):
        if method == 0:
            return
        if method != 10 or b"SCRAM-SHA-256" not in data.split(b"\0"):
            raise ServerError(f"authentication method {method} is not supported here")
        nonce = base64.b64encode(secrets.token_bytes(18)).decode()
        first_bare = f"n=,r={nonce}"
        first = f"n,,{first_bare}".encode()
        self.sock.sendall(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        server_first = self._scram_answer(11)
        fields = dict(part.split("=", 1) for part in server_first.split(","))
        if not fields["r"].startswith(nonce):
            raise ServerError("SCRAM: the server's nonce does not extend ours")
        salted = salted_password(password, base64.b64decode(fields["s"]), int(fields["i"]))
        client_key = hmac_sha256(salted, b"Client Key")
        final = f"c=biws,r={fields['r']}"
        signed = f"{first_bare},{server_first},{final}".encode()
        signature = hmac_sha256(hashlib.sha256(client_key).digest(), signed)
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature))).decode()
        self.sock.sendall(message(b"p", f"{final},p={proof}".encode()))
        expected = base64.b64encode(hmac_sha256(hmac_sha256(salted, b"Server Key"), signed)).decode()
        if self._scram_answer(12) != f"v={expected}":
            raise ServerError("SCRAM: the server's signature is wrong")

    def _scram_answer(self, step):
        tag, body = self.receive()
        if tag != b"R" or struct.unpack("!i", body[:4])[0] != step:
            raise ServerError(f"SCRAM: expected step {step}, got {tag!r}")
        return body[4:].decode()

    def _receive_exactly(self, count):
        data = self.sock.recv(count) if count else b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise ServerError("the server closed the connection")
            data += piece
        return data


def raise_file_limit():
    """As many sockets as this user may open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def attempt(failures, action):
    """The action's result; or None, with the failure counted by its words."""
    try:
        return action()
    except (OSError, ServerError) as error:
        failures[f"{type(error).__name__}: {error}"] += 1
        return None


def open_clients(arguments, count, hold):
    """Log all in first, then run a query on each; (clients, how many got an answer, failures)."""
    a, failures, clients = arguments, collections.Counter(), []
    tls = unverified_tls() if a.tls else None
    log_in = functools.partial(Client, a.host, a.port, a.user, a.password, a.database, tls)
    if a.at_once:
        sockets = [attempt(failures, lambda: socket.create_connection((a.host, a.port), 60)) for _ in range(count)]
        clients += filter(None, [attempt(failures, lambda: log_in(sock=sock)) for sock in sockets if sock])
        count = 0
    while len(clients) < count and failures.total() < MANY_FAILURES and not closed(hold):
        clients += filter(None, [attempt(failures, log_in)])
    answers = [attempt(failures, functools.partial(client.query, a.query)) for client in clients]
    return clients, sum(answer is not None for answer in answers), failures


def closed(pipe, patience=0):
    """Whether the other end is closed: nothing is ever written to it."""
    return bool(select.select([pipe], [], [], patience)[0])


def run_child(arguments, count, report, hold):
    """One process of the crowd: report, then hold until the other end of `hold` closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    clients, answered, failures = open_clients(arguments, count, hold)
    if closed(hold):
        return
    with os.fdopen(report, "w") as pipe:
        json.dump([answered, failures], pipe)
    closed(hold, patience=None)
    for client in clients:
        client.close()


def start_children(arguments):
    """Fork the crowd; (report pipes, child pids, the pipe whose closing ends them, even if we are killed)."""
    hold_read, hold_write = os.pipe()
    reports, pids = [], []
    for index in range(arguments.processes):
        share = (arguments.clients + index) // arguments.processes
        report_read, report_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(hold_write)
                os.close(report_read)
                run_child(arguments, share, report_write, hold_read)
            finally:
                os._exit(0)
        os.close(report_write)
        reports.append(report_read)
        pids.append(pid)
    os.close(hold_read)
    return reports, pids, hold_write


def hold_crowd(arguments):
    """Open the crowd, say how it went, hold; the exit status."""
    reports, pids, hold_write = start_children(arguments)
    answered, failures = 0, collections.Counter()
    try:
        for report in reports:
            with os.fdopen(report) as pipe:
                count, failed = json.loads(pipe.read() or '[0, {"a process of the crowd died": 1}]')
            answered += count
            failures.update(failed)
        for words, times in failures.items():
            print(f"failed: {times} x {words}")
        print(f"ready: {answered} of {arguments.clients} clients logged in and ran a query", flush=True)
        if answered:
            time.sleep(arguments.hold)
    except KeyboardInterrupt:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    finally:
        os.close(hold_write)
        for pid in pids:
            os.waitpid(pid, 0)
    return 0 if answered == arguments.clients else 1


def interrupt(_signal, _frame):
    raise KeyboardInterrupt


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6432)
    parser.add_argument("--user", default="bench")
    parser.add_argument("--password", default="bench")
    parser.add_argument("--database", default="bench")
    parser.add_argument("--query", default="SELECT 1")
    parser.add_argument("--tls", action="store_true", help="TLS by SSLRequest; any certificate will do")
    parser.add_argument("--at-once", action="store_true", help="all connect before the first logs in")
    parser.add_argument("--hold", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    raise_file_limit()
    sys.exit(hold_crowd(parse_arguments()))
