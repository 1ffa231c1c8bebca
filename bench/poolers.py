"""What else pgusher is compared with: PgBouncer as two processes, and poolers that a path in the environment leads to."""

import os
import signal

import stage
from stage import DATABASE, MAX_CLIENTS, UPSTREAM_USER, USER, Process, Unavailable


class Processes:
    """Several that serve one port, weighed and stopped as one."""

    def __init__(self, all_of_them):
        self.all = all_of_them
        self.child = all_of_them[0].child

    def alive(self):
        return all(process.alive() for process in self.all)

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.all)

    def resident_bytes(self):
        return sum(process.resident_bytes() for process in self.all)

    def stop(self):
        for process in self.all:
            process.stop()

    def last_words(self):
        return "; ".join(process.last_words() for process in self.all)


class PgbouncerTwice(stage.Pgbouncer):
    """Two processes with `so_reuseport`, each with half of the connections."""

    name = "pgbouncer-2"

    def _launch(self, theater, folder, port, auth, upstream):
        halves = []
        for number in (1, 2):
            half = folder / str(number)
            half.mkdir()
            theater.own(half)
            config = theater.write(f"{folder.name}/{number}/pgbouncer.ini", self._config(theater, half, port, auth, upstream)
                                   + f"so_reuseport = 1\ndefault_pool_size = {stage.POOL_SIZE // 2}\n")
            halves.append(Process([self.binary, "-q", config], half / "log", theater.account, signal.SIGQUIT))
        return Processes(halves)


class Elsewhere(stage.Target):
    """A pooler of which the environment has the path."""

    def __init__(self, _arguments):
        path = os.environ.get(self.variable)
        if not path:
            raise Unavailable(f"{self.title} was not measured: {self.variable}=path takes its binary.")
        self.binary = os.path.abspath(path)
        self.version = stage.version_of([self.binary, "--version"])


class PgDoorman(Elsewhere):
    name, title, variable = "pg_doorman", "pg_doorman", "PG_DOORMAN"

    def _launch(self, theater, folder, port, auth, upstream):
        method = "trust" if auth == "trust" else "scram-sha-256"
        config = theater.write(f"{folder.name}/pg_doorman.toml", f"""\
[general]
host = "127.0.0.1"
port = {port}
admin_username = "admin"
admin_password = "admin"
worker_threads = 1
max_connections = {MAX_CLIENTS}
log_client_connections = false
log_client_disconnections = false
tls_certificate = "{theater.folder}/server.crt"
tls_private_key = "{theater.folder}/server.key"
pg_hba = \"\"\"
host all all 127.0.0.1/32 {method}
\"\"\"

[pools.{DATABASE}]
server_host = "{upstream}"
server_port = {theater.port}
pool_mode = "transaction"

[pools.{DATABASE}.users.0]
username = "{USER}"
password = "{theater.verifier}"
server_username = "{UPSTREAM_USER}"
server_password = ""
pool_size = {stage.POOL_SIZE}
""")
        return Process([self.binary, config], folder / "log", theater.account, signal.SIGTERM)


class Odyssey(Elsewhere):
    name, title, variable = "odyssey", "Odyssey", "ODYSSEY"

    def _launch(self, theater, folder, port, auth, upstream):
        if upstream.startswith("/"):
            raise Unavailable("Odyssey takes no folder of a unix socket as the host of its storage.")
        proof = 'authentication "none"' if auth == "trust" else f'authentication "scram-sha-256"\n        password "{stage.PASSWORD}"'
        config = theater.write(f"{folder.name}/odyssey.conf", f"""\
daemonize no
log_to_stdout yes
log_format "%p %t %l %m\\n"
log_session no
log_query no
log_stats no
workers 1
resolvers 1
locks_dir "{folder}"
client_max {MAX_CLIENTS}
listen {{
    host "127.0.0.1"
    port {port}
    tls "allow"
    tls_cert_file "{theater.folder}/server.crt"
    tls_key_file "{theater.folder}/server.key"
}}
storage "postgres" {{
    type "remote"
    host "{upstream}"
    port {theater.port}
}}
database "{DATABASE}" {{
    user "{USER}" {{
        {proof}
        storage "postgres"
        storage_user "{UPSTREAM_USER}"
        pool "transaction"
        pool_size {stage.POOL_SIZE}
        pool_discard no
        pool_reserve_prepared_statement yes
        client_fwd_error yes
    }}
}}
""")
        return Process([self.binary, config], folder / "log", theater.account, signal.SIGTERM)


TARGETS = stage.TARGETS | {kind.name: kind for kind in (PgbouncerTwice, PgDoorman, Odyssey)}
