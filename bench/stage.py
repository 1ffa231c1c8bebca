"""The stage of a benchmark: a throwaway PostgreSQL, and before it the targets to be compared."""

import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time

import crowd

POOL_SIZE = 20
MAX_CLIENTS = 12000
USER, PASSWORD, DATABASE = "bench", "bench", "bench"
UPSTREAM_USER = "pool"  # as whom the proxies log in upstream, by trust


class Unavailable(Exception):
    """A target or a work that cannot be had here; the words say why."""


class DidNotStart(Unavailable):
    """A server that does not come up; there is no use in trying again."""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def find_program(name, *folders):
    """The program's path, from PATH or where distributions hide servers; None when it is not installed."""
    folders = [os.environ.get("PATH", ""), *folders, "/usr/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(map(str, folders)))


def server_folder():
    """Where initdb and postgres are: what pg_config says, or the newest of Debian's versions."""
    candidates = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if pg_config := find_program("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True)
        candidates.append(pathlib.Path(answer.stdout.strip()))
    for folder in reversed(candidates):
        if (folder / "postgres").exists() and (folder / "pgbench").exists():
            return folder
    raise Unavailable("No PostgreSQL server with pgbench was found: install the packages postgresql and postgresql-contrib.")


def unprivileged_user():
    """The user for servers that refuse to be root: ourselves, unless we are root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("As root, the benchmark needs a user postgres or nobody to run PostgreSQL as.")


def version_of(command):
    """The first version number that the command prints."""
    answer = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"\d+\.\d+[\w.+-]*", answer.stdout + answer.stderr)
    return found.group() if found else "of unknown version"


class Process:
    """A server that we started; weighed through /proc, stopped by its pid."""

    def __init__(self, command, log, user=None, stop_signal=signal.SIGINT):
        self.stop_signal = stop_signal
        self.log = log
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user and os.geteuid() == 0 else {}
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd=log.parent, **account)

    def alive(self):
        return self.child.poll() is None

    def cpu_seconds(self):
        """User and system time of all its threads so far."""
        fields = pathlib.Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        """Proportional set size: shared pages are divided among those who map them."""
        rollup = pathlib.Path(f"/proc/{self.child.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.M).group(1)) * 1024

    def stop(self):
        for stop_signal, patience in ((self.stop_signal, 10), (signal.SIGKILL, 10)):
            if self.alive():
                self.child.send_signal(stop_signal)
                try:
                    self.child.wait(patience)
                except subprocess.TimeoutExpired:
                    continue

    def last_words(self):
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"its last words: {lines[-1]}" if lines else "it said nothing"


def wait_until_it_answers(name, process, port, user, deadline=20):
    """Log in and run a query, again and again, until it works."""
    end = time.monotonic() + deadline
    while True:
        try:
            client = crowd.Client("127.0.0.1", port, user, PASSWORD, DATABASE if user == USER else "postgres", timeout=5)
            client.query("SELECT 1")
            return client.close()
        except (OSError, crowd.ServerError) as error:
            if time.monotonic() > end or not process.alive():
                raise DidNotStart(f"{name} did not come up ({error}): {process.last_words()}") from error
            time.sleep(0.05)


class Stage:
    """What every target shares: the folder, the account, the certificate, the verifier, and PostgreSQL."""

    def __init__(self, folder):
        self.folder = folder
        self.account = unprivileged_user()
        self.binaries = server_folder()
        self.verifier = crowd.scram_verifier(PASSWORD)
        self.port = free_port()
        self.postgres = None
        self.own(folder)
        self._make_certificate()

    def own(self, path):
        """Hand a path to the account that the servers run as."""
        os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        self.own(path)
        return path

    def start_postgres(self):
        data = self.folder / "data"
        self._as_account(self.binaries / "initdb", "-D", data, "-U", UPSTREAM_USER, "-A", "trust", "-E", "UTF8",
                         "--locale=C", "--no-sync")
        (data / "pg_hba.conf").write_text(f"local all {UPSTREAM_USER} trust\nhost all {UPSTREAM_USER} 127.0.0.1/32 trust\n"
                                          "host all all 127.0.0.1/32 scram-sha-256\n")
        settings = {
            "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "max_connections": "1000",
            "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off",
            "shared_buffers": "512MB", "max_wal_size": "4GB", "ssl": "on",
            "ssl_cert_file": self.folder / "server.crt", "ssl_key_file": self.folder / "server.key",
        }
        command = [self.binaries / "postgres", "-D", data, "-p", self.port]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self.postgres = Process(command, self.folder / "postgres.log", self.account)
        wait_until_it_answers("PostgreSQL", self.postgres, self.port, UPSTREAM_USER)

    def fill(self):
        """The benchmark's role, database and tables."""
        administrator = crowd.Client("127.0.0.1", self.port, UPSTREAM_USER, "", "postgres")
        administrator.query(f"CREATE ROLE {USER} LOGIN SUPERUSER PASSWORD '{self.verifier}'")
        administrator.query(f"CREATE DATABASE {DATABASE} OWNER {USER}")
        administrator.close()
        self._as_account(self.binaries / "pgbench", "-i", "-q", "-s", "10", "-h", "127.0.0.1", "-p", self.port,
                         "-U", UPSTREAM_USER, DATABASE)
        owner = crowd.Client("127.0.0.1", self.port, UPSTREAM_USER, "", DATABASE, timeout=120)
        for statement in (
            "CREATE UNLOGGED TABLE wide (body text)",
            "ALTER TABLE wide ALTER body SET STORAGE EXTERNAL",
            "INSERT INTO wide SELECT repeat(md5(n::text), 32768) FROM generate_series(1, 64) AS n",
            "CREATE UNLOGGED TABLE sink (body text)",
            "CHECKPOINT",
        ):
            owner.query(statement)
        owner.close()

    def _as_account(self, *command):
        account = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=self.folder,
                              **(account if os.geteuid() == 0 else {}))
        if done.returncode != 0:
            raise Unavailable(f"{pathlib.Path(command[0]).name} failed: {done.stderr.strip()}")

    def _make_certificate(self):
        """A throwaway self-signed certificate, P-256, in server.crt and server.key."""
        openssl = find_program("openssl")
        if not openssl:
            raise Unavailable("openssl is needed for a throwaway certificate: install the package openssl.")
        subprocess.run([openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-days", "2", "-subj", "/CN=localhost", "-keyout", self.folder / "server.key",
                        "-out", self.folder / "server.crt"], check=True, capture_output=True)
        for name in ("server.key", "server.crt"):
            (self.folder / name).chmod(0o600)
            self.own(self.folder / name)


class Target:
    """What is compared. `start` gives the process and the port for an authentication method."""

    name = ""
    pools = True  # shares POOL_SIZE upstream connections among its clients
    knows_prepared = True  # named prepared statements survive transaction pooling

    def start(self, stage, auth, upstream="127.0.0.1"):
        """Of the authentication method for clients; `upstream` is PostgreSQL's address, or the folder of its unix socket."""
        port = free_port()
        folder = stage.folder / f"{self.name}-{auth}-{port}"
        folder.mkdir()
        stage.own(folder)
        try:
            process = self._launch(stage, folder, port, auth, upstream)
        except PermissionError as error:
            raise DidNotStart(f"{self.name} may not be run by the user {stage.account.pw_name}: {error.strerror}") from error
        try:
            wait_until_it_answers(self.name, process, port, USER)
        except BaseException:
            process.stop()
            raise
        return process, port

    def _launch(self, stage, folder, port, auth, upstream):
        raise NotImplementedError


class Direct(Target):
    """No proxy: PostgreSQL itself, for the order of magnitude."""

    name = "direct"
    pools = False

    def __init__(self, _arguments):
        self.version = "no proxy"

    def start(self, stage, auth, upstream="127.0.0.1"):
        if upstream != "127.0.0.1":
            raise Unavailable("pgbench's own connection to PostgreSQL is by TCP: there is no row of a unix socket without a proxy.")
        return None, stage.port


class Pgusher(Target):
    """As it comes: as many threads as it takes, on io_uring where there is one."""

    name = "pgusher"
    engine = 'io = "auto"'
    more = ""

    def __init__(self, arguments):
        self.binary = pathlib.Path(arguments.pgusher).resolve()
        if not self.binary.exists():
            raise Unavailable("pgusher is not built: cargo build --release, or give its path by --pgusher.")
        self.version = version_of([self.binary, "--version"])

    def _launch(self, stage, folder, port, auth, upstream):
        config = stage.write(f"{folder.name}/pgusher.toml", f"""\
[server]
listen = ["127.0.0.1:{port}"]
{self.engine}
auth_type = "{auth}"
max_client_conn = {MAX_CLIENTS}
log_level = "warn"
tls = {{ mode = "allow", certificate = "../server.crt", key = "../server.key" }}

[connections.{DATABASE}]
host = "{upstream}"
port = {stage.port}
database = "{DATABASE}"
username = "{UPSTREAM_USER}"
sslmode = "disable"
pool_mode = "transaction"
pool_size = {POOL_SIZE}

[users.{USER}]
password = "{stage.verifier}"
{self.more}""")
        return Process([self.binary, "serve", config], folder / "log")


class PgusherOnEpoll(Pgusher):
    """One thread on epoll, like the others."""

    name = "epoll"
    engine = 'io = "epoll"\nthreads = 1'


class Pgbouncer(Target):
    name = "pgbouncer"

    def __init__(self, _arguments):
        self.binary = find_program(os.environ.get("PGBOUNCER", "pgbouncer"))
        if not self.binary:
            raise Unavailable("PgBouncer was not found: install the package pgbouncer, or give a path by PGBOUNCER=path.")
        self.binary = os.path.abspath(self.binary)
        self.version = version_of([self.binary, "--version"])
        self.knows_prepared = tuple(map(int, re.findall(r"\d+", self.version)[:2])) >= (1, 21)

    def _config(self, stage, folder, port, auth, upstream):
        users = folder / "users.txt"
        users.write_text(f'"{USER}" "{stage.verifier}"\n')
        stage.own(users)
        prepared = "max_prepared_statements = 200" if self.knows_prepared else ""
        return f"""\
[databases]
{DATABASE} = host={upstream} port={stage.port} dbname={DATABASE} user={UPSTREAM_USER}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = {auth}
auth_file = {users}
pool_mode = transaction
default_pool_size = {POOL_SIZE}
max_client_conn = {MAX_CLIENTS}
{prepared}
client_tls_sslmode = allow
client_tls_cert_file = {stage.folder}/server.crt
client_tls_key_file = {stage.folder}/server.key
server_tls_sslmode = disable
log_connections = 0
log_disconnections = 0
log_stats = 0
"""

    def _launch(self, stage, folder, port, auth, upstream):
        config = stage.write(f"{folder.name}/pgbouncer.ini", self._config(stage, folder, port, auth, upstream))
        # SIGQUIT: stop at once in every version; since 1.23 the gentler signals wait for clients.
        return Process([self.binary, "-q", config], folder / "log", stage.account, signal.SIGQUIT)


class Haproxy(Target):
    name = "haproxy"
    pools = False

    def __init__(self, _arguments):
        self.binary = find_program("haproxy")
        if not self.binary:
            raise Unavailable("HAProxy was not found: install the package haproxy.")
        self.version = version_of([self.binary, "-v"])

    def _launch(self, stage, folder, port, auth, upstream):
        is_unix = upstream.startswith("/")
        server = f"unix@{upstream}/.s.PGSQL.{stage.port}" if is_unix else f"{upstream}:{stage.port}"
        config = stage.write(f"{folder.name}/haproxy.cfg", f"""\
global
    nbthread 1
    maxconn 1000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen bench
    bind 127.0.0.1:{port}
    server postgres {server}
""")
        return Process([self.binary, "-db", "-f", config], folder / "log", stage.account, signal.SIGTERM)


TARGETS = {kind.name: kind for kind in (Pgusher, PgusherOnEpoll, Pgbouncer, Haproxy, Direct)}
