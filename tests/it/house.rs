//! What the tests stand on: throwaway PostgreSQL servers and pgusher processes, each gone when its test is.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) use super::random::Random;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The size of a proof: the usual one, or, under `make soak`, the full one.
pub(crate) fn size(usual: usize, soak: usize) -> usize {
    if std::env::var_os("PGUSHER_SOAK").is_some() { soak } else { usual }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

pub(crate) fn temporary_folder(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("pgusher-test-{}-{number}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes a file that only its owner may read: a private key must be one.
pub(crate) fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// Waits for something to become true.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn binaries() -> PathBuf {
    if let Some(folder) = std::env::var_os("PG_BIN") {
        return folder.into();
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|e| e.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|folder| folder.join("initdb").exists());
    found.sort();
    found.pop().expect("no PostgreSQL server found: install the package `postgresql`, or set PG_BIN")
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.starts_with(b"0\n")
}

/// PostgreSQL does not run as root.
fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The program itself: what Debian has on the path is a script that looks for it.
pub(crate) fn psql() -> Command {
    let program = binaries().join("psql");
    Command::new(if program.exists() { program } else { "psql".into() })
}

/// A PostgreSQL server of its own. It ends when this is dropped, or when the process of the tests ends, however.
pub(crate) struct Postgres {
    pub port: u16,
    pub folder: PathBuf,
    watchdog: Child,
}

impl Postgres {
    /// With a database of this name, in which the table `whoami` says it, and the superuser `app`.
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    pub(crate) fn start_with(name: &str, options: &[&str]) -> Self {
        let folder = temporary_folder(name);
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder));
        }
        let bin = binaries();
        let data = folder.join("data");
        run(unprivileged(&bin.join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-D"])
            .arg(&data));
        let port = free_port();
        // Ends the server when its standard input does: with us.
        let stop = format!(
            "trap '' INT TERM HUP; cat >/dev/null; kill -QUIT $(head -1 {data}/postmaster.pid) 2>/dev/null; sleep 0.2; rm -rf {folder}",
            data = data.display(),
            folder = folder.display()
        );
        let watchdog = unprivileged(Path::new("/bin/sh"))
            .args(["-c", &stop])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { port, folder, watchdog };
        server.ctl("start", options);
        server.sql("postgres", "CREATE ROLE app LOGIN SUPERUSER; CREATE ROLE plain LOGIN");
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(
            name,
            &format!(
                "CREATE TABLE whoami AS SELECT '{name}'::text AS name; GRANT SELECT ON whoami TO public"
            ),
        );
        server
    }

    /// `pg_ctl start`, `stop`, `restart`
    pub(crate) fn ctl(&self, what: &str, options: &[&str]) {
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300 {}",
            self.port,
            self.folder.display(),
            options.join(" ")
        );
        let mut command = unprivileged(&binaries().join("pg_ctl"));
        command.args([what, "-w", "-s", "-m", "immediate", "-D"]).arg(self.folder.join("data"));
        command.arg("-l").arg(self.folder.join("log"));
        if what != "stop" {
            command.args(["-o", &options]);
        }
        // Not `output`: the server would hold the pipes.
        let status =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}");
    }

    /// Runs SQL on the server itself, as its superuser.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let port = self.port.to_string();
        let output = run(psql()
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
            .args(["-d", database, "-c", sql]));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// The two servers that most tests share.
pub(crate) struct Pair {
    pub dev: Postgres,
    pub prod: Postgres,
}

pub(crate) fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| Pair { dev: Postgres::start("dev"), prod: Postgres::start("prod") })
}

/// A pgusher process of its own.
pub(crate) struct Pgusher {
    pub port: u16,
    pub folder: PathBuf,
    pub child: Child,
}

/// The configuration that most tests begin with: dana is sent to dev, pete to prod, nora has no attribute; raw is
/// trusted, for tests that speak the protocol themselves. `@…@` are replaced when it is written.
pub(crate) const WAREHOUSE: &str = r#"
[server]
listen = ["127.0.0.1:@PORT@"]
threads = 2
log_level = "debug"
@SERVER@

[connections.warehouse]
host = "127.0.0.1"
port = @DEV@
database = "dev"
username = "app"
user_attribute = "environment"
default_values = ["dev"]
environments = [{ connection = "warehouse_prod", name = "prod", values = ["prod"] }]
@BASE@

[connections.warehouse_prod]
host = "127.0.0.1"
port = @PROD@
database = "prod"
username = "app"
production = true
@ENVIRONMENT@

[users.dana]
password = "dana"
attributes = { environment = "dev" }

[users.pete]
password = "pete"
attributes = { environment = "prod" }

[users.nora]
password = "nora"

[users.raw]
auth_type = "trust"

[users.rawprod]
auth_type = "trust"
attributes = { environment = "prod" }
@USERS@
"#;

/// [`WAREHOUSE`] with these lines in `[server]`, `[connections.warehouse]` and `[connections.warehouse_prod]`.
pub(crate) fn warehouse(server: &str, base: &str, environment: &str) -> String {
    let pair = pair();
    WAREHOUSE
        .replace("@SERVER@", server)
        .replace("@BASE@", base)
        .replace("@ENVIRONMENT@", environment)
        .replace("@USERS@", "")
        .replace("@DEV@", &pair.dev.port.to_string())
        .replace("@PROD@", &pair.prod.port.to_string())
}

fn serve(folder: &Path, port: u16, config: &str, by: &[&str]) -> Child {
    let file = folder.join("pgusher.toml");
    let mut config = config.replace("@PORT@", &port.to_string());
    // All tests are of both ways to read and write: this says which.
    if let Ok(io) = std::env::var("PGUSHER_IO")
        && !config.contains("\nio = ")
    {
        config = config.replacen("[server]\n", &format!("[server]\nio = \"{io}\"\n"), 1);
    }
    // And of sessions on several threads.
    if !config.contains("\nthread_full = ") {
        config = config.replacen("[server]\n", "[server]\nthread_full = 0\n", 1);
    }
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let program = env!("CARGO_BIN_EXE_pgusher");
    let mut command = Command::new(by.first().unwrap_or(&program));
    if !by.is_empty() {
        command.args(&by[1..]).arg(program);
    }
    command.arg("serve").arg(file).current_dir(folder).stdin(Stdio::null()).stderr(log).spawn().unwrap()
}

impl Pgusher {
    pub(crate) fn start(config: &str) -> Self {
        Self::start_in(temporary_folder("pgusher"), config)
    }

    pub(crate) fn start_in(folder: PathBuf, config: &str) -> Self {
        Self::launch(folder, config, &[])
    }

    /// By another command, which ends by `exec "$0" "$@"`.
    pub(crate) fn start_by(config: &str, command: &[&str]) -> Self {
        Self::launch(temporary_folder("pgusher"), config, command)
    }

    /// The same, and nobody waits until it listens.
    pub(crate) fn spawn_by(config: &str, command: &[&str]) -> Self {
        let (folder, port) = (temporary_folder("pgusher"), free_port());
        let child = serve(&folder, port, config, command);
        Self { port, folder, child }
    }

    /// On the port of another one.
    pub(crate) fn start_beside(config: &str, port: u16) -> Self {
        let folder = temporary_folder("pgusher");
        let child = serve(&folder, port, config, &[]);
        let pgusher = Self { port, folder, child };
        eventually("it listens", || pgusher.log().contains("listening"));
        pgusher
    }

    fn launch(folder: PathBuf, config: &str, by: &[&str]) -> Self {
        let port = free_port();
        let child = serve(&folder, port, config, by);
        let mut pgusher = Self { port, folder, child };
        pgusher.answers();
        pgusher
    }

    /// Another process in the place of one that has ended.
    pub(crate) fn start_again(&mut self, config: &str) {
        assert!(self.child.try_wait().unwrap().is_some());
        self.child = serve(&self.folder, self.port, config, &[]);
        self.answers();
    }

    /// Waits until it accepts clients.
    pub(crate) fn answers(&mut self) {
        let pgusher = self;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(pgusher.address()).is_err() {
            let ended = pgusher.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "pgusher does not run: {}", pgusher.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What it has logged. A thread of its own writes that: what was said just now may need a moment.
    pub(crate) fn log(&self) -> String {
        let read = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let mut text = read();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            let more = read();
            if more == text {
                break;
            }
            text = more;
        }
        text
    }

    pub(crate) fn signal(&self, signal: &str) {
        run(Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]));
    }

    /// Writes a new configuration and waits until it is in force, or refused.
    pub(crate) fn reload(&self, config: &str) {
        let done =
            |log: &str| log.matches("configuration reloaded").count() + log.matches("reload refused").count();
        let before = done(&self.log());
        std::fs::write(self.folder.join("pgusher.toml"), config.replace("@PORT@", &self.port.to_string()))
            .unwrap();
        self.signal("HUP");
        eventually("a reload", || done(&self.log()) > before);
    }

    /// psql as this user (whose password is the name), in the database `warehouse`; what it printed.
    pub(crate) fn psql(&self, user: &str, sql: &str) -> Result<String, String> {
        self.psql_with(user, user, &[], &[sql])
    }

    pub(crate) fn psql_with(
        &self,
        user: &str,
        password: &str,
        environment: &[(&str, &str)],
        commands: &[&str],
    ) -> Result<String, String> {
        let mut psql = psql();
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]);
        let target =
            format!("host=127.0.0.1 port={} user={user} dbname=warehouse connect_timeout=15", self.port);
        psql.args(["-d", &target]).env("PGPASSWORD", password).envs(environment.iter().copied());
        commands.iter().for_each(|sql| {
            psql.args(["-c", sql]);
        });
        let output = psql.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A tokio-postgres client.
    pub(crate) async fn client(&self, user: &str) -> tokio_postgres::Client {
        let target =
            format!("host=127.0.0.1 port={} user={user} password={user} dbname=warehouse", self.port);
        let (client, connection) = tokio_postgres::connect(&target, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The process's memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it ever was.
    pub(crate) fn most_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Pgusher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- pgusher's log ---\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
