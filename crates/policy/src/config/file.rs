//! The TOML file as an operator writes it. The doc comments here are the manual (`docs/configuration.md`).

use std::net::SocketAddr;
use std::time::Duration;

use super::manual;
use super::options::options;
use super::problems::Problems;
use super::read::{FilePath, Named, Setting, Strings, TableReader};
pub use super::values::{HostName, ListenAddress, RequireAuth, Size, UpstreamMethod};
use super::words::{word_value, words};
use crate::secret::Source;
pub use relay::PoolMode;
pub use relay::ledger::Isolation;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const DAY: Duration = seconds(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);

words! {
    /// How a client proves who it is (as in PostgreSQL's `pg_hba.conf`).
    AuthType {
        /// SCRAM-SHA-256, and under TLS SCRAM-SHA-256-PLUS.
        ScramSha256 = "scram-sha-256",
        /// MD5 over the wire; needs the secret, or an `md5…` verifier.
        Md5 = "md5",
        /// The password in clear text (use it under TLS only).
        Password = "password",
        /// A TLS client certificate whose common name is the user's name.
        Cert = "cert",
        /// No proof at all.
        Trust = "trust",
    }
}

words! {
    /// How TLS is used (as libpq's `sslmode`).
    SslMode {
        /// Never.
        Disable = "disable",
        /// If the other side insists.
        Allow = "allow",
        /// If the other side can.
        Prefer = "prefer",
        /// Always, whoever the other side is.
        Require = "require",
        /// Always, and the certificate must come from a known authority.
        VerifyCa = "verify-ca",
        /// The same, and the certificate must be for the name.
        VerifyFull = "verify-full",
    }
}

words! {
    /// How TLS is begun (as libpq's `sslnegotiation`).
    SslNegotiation {
        /// By PostgreSQL's `SSLRequest`.
        Postgres = "postgres",
        /// At once (PostgreSQL 17 or later).
        Direct = "direct",
    }
}

words! {
    /// Whether SCRAM is bound to the TLS connection (as libpq's `channel_binding`).
    ChannelBinding {
        /// Never.
        Disable = "disable",
        /// If the upstream can.
        Prefer = "prefer",
        /// Always.
        Require = "require",
    }
}

word_value!(PoolMode, &[]);
word_value!(Isolation, &[]);

words! {
    /// How a relaying thread asks the system to read and write.
    Io {
        /// By io_uring where the system allows it, otherwise by epoll.
        Auto = "auto",
        /// By epoll(7).
        Epoll = "epoll",
        /// By io_uring(7); where it is not allowed, pgusher does not start.
        IoUring = "io_uring",
    }
}

words! {
    /// What happens to users whose value matches nothing.
    OnUnmatched {
        /// They are routed to the base connection.
        Base = "base",
        /// They are refused.
        Reject = "reject",
    }
}

words! {
    /// What happens to a live session whose route a reload changed.
    OnMove {
        /// It is ended at its next idle point, between transactions.
        Finish = "finish",
        /// It is ended now.
        Terminate = "terminate",
        /// It remains until it ends by itself.
        Keep = "keep",
    }
}

words! {
    /// What a user may do on the console.
    Console {
        /// Look at everything, and change things.
        Admin = "admin",
        /// Look at everything.
        Stats = "stats",
    }
}

words! {
    /// What happens while the audit cannot be written.
    AuditFailure {
        /// Nobody is refused; events wait, and beyond 65,536 of them, or 32 MiB, are lost, which is counted and written later.
        Continue = "continue",
        /// Logins and console commands are refused; a login is let in when its line is written.
        Refuse = "refuse",
    }
}

words! {
    /// What the bearer of a token may do.
    Role {
        /// Look at everything, and change things.
        Admin = "admin",
        /// Look at everything, and plan.
        Read = "read",
    }
}

words! {
    /// Where a password that comes by the API is kept.
    SecretStore {
        /// In a file of its own, which the configuration refers to.
        File = "file",
        /// In the configuration itself.
        Inline = "inline",
    }
}

words! {
    /// The form of the log.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// The least important lines that are logged.
    LogLevel {
        /// Bugs of pgusher.
        Error = "error",
        /// What the operator should act on.
        Warn = "warn",
        /// One line a session, reloads, starts and stops.
        Info = "info",
        /// More than that.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

options! {
    /// TLS towards clients.
    ClientTls as "[server.tls]" {
        /// As libpq's `sslmode`, seen from the server: `disable` refuses TLS; `allow` and `prefer` accept both;
        /// `require` refuses clients without it; `verify-ca` and `verify-full` also want a certificate of
        /// `client_ca` (`verify-full`: one whose common name is the user's name, whatever the user's `auth_type`). Over a unix
        /// socket there is no TLS, and `mode` does not apply.
        Reload mode: SslMode = SslMode::Prefer;
        /// The certificate chain, a PEM file.
        Reload certificate: String;
        /// Its private key, a PEM file.
        Reload key: String;
        /// The authorities that client certificates come from, a PEM file. Needed for `auth_type = "cert"`.
        Reload client_ca: Option<FilePath> = None;
        /// The certificates that these authorities have revoked, a PEM file of one list (CRL) or more. Then each authority needs
        /// a list that has not expired, as in PostgreSQL: without one, its certificates are refused.
        Reload client_crl: Option<FilePath> = None;
    }
}

options! {
    /// The process as a whole, and what applies to every connection that does not set it itself. A name that PgBouncer also
    /// has means what it means there; docs/operations.md, "Coming from PgBouncer", lists the differences. A time of `"0s"`
    /// switches that limit off, and so does a number of 0, where nothing else is said.
    Server as "[server]" {
        /// The addresses to listen on. The file of a unix socket is `.s.PGSQL.PORT`, with the port of the first TCP address, otherwise 6432.
        Restart listen: Vec<Setting<ListenAddress>> = vec![Setting::default_of(ListenAddress::Tcp(([127, 0, 0, 1], 6432).into()))];
        /// The address of `/metrics` (Prometheus), `/healthz` and `/readyz` over HTTP; by default there is none.
        Restart metrics_listen: Option<SocketAddr> = None;
        /// Lets another pgusher that also has it listen on the same TCP addresses (and take over the unix sockets): start the new
        /// process, then send `SIGUSR2` to the old one, which accepts no more clients and ends when its last client has left.
        Restart so_reuseport: bool = false;
        /// TLS towards clients; without it, clients are refused TLS.
        Reload tls: Option<ClientTls> = None;
        /// How many threads may relay; 0 is one for each core.
        Restart threads: u32 = 0, 0 => 1024;
        /// On io_uring: how busy a thread may be, in percent of its time, before one more is used; 0 uses all of them at once.
        Restart thread_full: u32 = 80, 0 => 100;
        /// How sockets are read and written. io_uring needs Linux 6.1 or later that allows it (`kernel.io_uring_disabled`, seccomp).
        Restart io: Io = Io::Auto;
        /// How clients prove who they are, where the user does not say otherwise.
        Login auth_type: AuthType = AuthType::ScramSha256;
        /// The file of the key that is behind the salts and iteration counts which users without a SCRAM verifier, and names
        /// that do not exist, are shown: so nobody can tell who exists, also not by a restart. By default `FILE.key` for a
        /// configuration `FILE`, in the folder of `STATE_DIRECTORY` (see `grants_file`), otherwise beside it. It is made if it is not
        /// there, readable by pgusher alone; instances behind one address need the same.
        Restart auth_key_file: Option<FilePath> = None;
        /// How many wrong passwords of one user may come from one address (of IPv6, from one /64) in a minute before the answers
        /// to that user from there come later: after 0.1 s, then twice that, up to 4 s. At most 50 of them wait at the same time, and
        /// the others wait for those. Nobody else waits.
        Login max_failed_logins: u32 = 5, 0 => 1000;
        /// The most clients at a time.
        Login max_client_conn: u32 = 10_000, 1 => 1_000_000;
        /// Logins kept free for operators: clients on the unix socket may begin a login, and users with `console = "admin"` may
        /// log in to the console, when all others are taken.
        Login reserved_connections: u32 = 3, 0 => 1000;
        /// The most clients of one user at a time.
        Login max_user_client_connections: u32 = 0, 0 => 1_000_000;
        /// The time from accepting a client until it is logged in.
        Login client_login_timeout: Duration = seconds(60), MILLISECOND => DAY;
        /// A client that is idle, outside a transaction, for this long is disconnected.
        Reload client_idle_timeout: Duration = seconds(0), seconds(0) => DAY * 365;
        /// A client that takes nothing of an answer for this long loses its connection.
        Reload client_write_timeout: Duration = seconds(300), seconds(0) => DAY;
        /// A client that is idle inside a transaction for this long is disconnected.
        Reload idle_transaction_timeout: Duration = seconds(0), seconds(0) => DAY * 365;
        /// The longest wait for an upstream connection.
        Reload query_wait_timeout: Duration = seconds(120), seconds(0) => DAY;
        /// A client that has waited for an upstream connection for this long gets a NOTICE.
        Reload query_wait_notify: Duration = seconds(5), seconds(0) => DAY;
        /// The longest a cancel request may take.
        Reload cancel_wait_timeout: Duration = seconds(10), MILLISECOND => DAY;
        /// When an upstream connection goes back to the pool.
        Login pool_mode: PoolMode = PoolMode::Transaction;
        /// The most upstream connections for one `[connections.NAME]`.
        Reload default_pool_size: u32 = 20, 1 => 100_000;
        /// How many upstream connections of a pool are kept open at least, once that pool was used.
        Reload min_pool_size: u32 = 0, 0 => 100_000;
        /// How many more may be opened for clients that waited for `reserve_pool_timeout`.
        Reload reserve_pool_size: u32 = 0, 0 => 100_000;
        /// How long a client waits before the reserve is used.
        Reload reserve_pool_timeout: Duration = seconds(5), seconds(0) => DAY;
        /// How many sessions may keep an upstream connection for longer than a transaction, because they have left on
        /// it what cannot be carried; 0 is one less than the pool has, but at least one.
        Reload max_pinned: u32 = 0, 0 => 100_000;
        /// The most upstream connections to one host and port, over all pools. Each pool without a connection has one reserved for
        /// it; if there are more pools than connections, only half of the limit is reserved, and a busy pool can make others wait.
        Reload max_host_connections: u32 = 0, 0 => 100_000;
        /// The time for opening an upstream connection: name look-up, TCP, TLS and login together.
        Reload server_connect_timeout: Duration = seconds(15), MILLISECOND => DAY;
        /// An upstream connection that was idle for this long is closed.
        Reload server_idle_timeout: Duration = seconds(600), seconds(0) => DAY * 365;
        /// An upstream connection older than this is closed when it is next idle. While it is in use, another is opened in
        /// its place up to a minute (at most a quarter of this) before.
        Reload server_lifetime: Duration = seconds(3600), seconds(0) => DAY * 365;
        /// The idle time of a TCP connection before keepalive probes are sent, on both sides.
        Login tcp_keepidle: Duration = seconds(60), seconds(0) => DAY;
        /// How long sent data may stay unacknowledged by an upstream before its connection counts as dead.
        Login tcp_user_timeout: Duration = seconds(30), seconds(0) => DAY;
        /// How often each pool asks its database which of its functions, triggers and views may leave something in a
        /// session, so that statements that use them are known in transaction mode. It also asks when something of the
        /// kind is defined through pgusher. `"0s"` never asks: then what a function leaves is not seen.
        Reload catalog_interval: Duration = seconds(60), seconds(0) => DAY;
        /// How many prepared statements are kept on each upstream connection.
        Reload max_prepared_statements: u32 = 200, 1 => 100_000;
        /// What happens to live sessions whose route a reload changed.
        Reload on_move: OnMove = OnMove::Finish;
        /// How long transactions may go on after `SIGTERM`.
        Reload shutdown_timeout: Duration = seconds(30), seconds(0) => DAY;
        /// Each client gets a NOTICE at login that names its environment.
        Login login_notice: bool = false;
        /// Adds `[user@environment]` to the `application_name` that the upstream sees.
        Login application_name_add_user: bool = false;
        /// The audit, a file of JSON lines (relative to the folder of the configuration file): logins, refusals, routes and their
        /// reasons, moves, commands, reloads, ends of sessions. `FILE.head` beside it says how far it goes. By default there is none.
        Restart audit_file: Option<FilePath> = None;
        /// When the audit's file is this long, the number of its first line is put behind its name, and another is begun.
        Restart audit_max_size: Size = Size::mib(100), Size(4096) => Size::mib(1 << 20);
        /// What happens while the audit cannot be written (a full disk): in any case the log, `SHOW AUDIT` and the metrics
        /// say so.
        Reload audit_failure: AuditFailure = AuditFailure::Continue;
        /// Where grants are kept. A relative path is relative to the folder in the environment variable `STATE_DIRECTORY` (systemd
        /// sets it for `StateDirectory=`), otherwise to the folder of the configuration file. pgusher must be able to write that folder.
        Restart grants_file: String = "pgusher-grants.json".to_owned();
        /// The form of the log (on standard error).
        Restart log_format: LogFormat = LogFormat::Text;
        /// The least important lines that are logged.
        Reload log_level: LogLevel = LogLevel::Info;
    }
}

/// A table all of whose settings have defaults.
macro_rules! by_default {
    ($($Name:ident),*) => {$(
        impl Default for $Name {
            fn default() -> Self {
                let mut problems = Problems::new(std::path::Path::new(""), "");
                let empty = toml::de::DeTable::new();
                Self::read_table(TableReader::document(&empty), &mut problems).expect("every setting has a default")
            }
        }
    )*};
}
by_default!(Server, Management);

options! {
    /// One environment of a base connection.
    Environment as "an item of environments" {
        /// The `[connections.NAME]` it goes to.
        Login connection: String;
        /// What it is called, for clients that request it and in what they are shown; by default the
        /// connection's name.
        Login name: Option<String> = None;
        /// The attribute's values that lead there.
        Login values: Vec<Setting<String>> = Vec::new();
    }
}

options! {
    /// A PostgreSQL database and how to log in to it. A connection that is nobody's environment is a base:
    /// clients ask for it by its name, as their database name.
    Connection as "[connections.NAME]" {
        /// The host name, the IP address, or the folder of the unix socket (a path).
        Reload host: HostName;
        /// The port.
        Reload port: u32 = 5432, 1 => 65_535;
        /// The database; by default the connection's name.
        Reload database: Option<String> = None;
        /// Who logs in to it.
        Reload username: String;
        /// The password. Read again when the upstream refuses it.
        Reload password: Option<Source> = None;
        /// Whether TLS is used, as libpq's `sslmode`. `prefer` goes on without TLS where its handshake fails, too.
        Reload sslmode: SslMode = SslMode::Prefer;
        /// How TLS is begun.
        Reload sslnegotiation: SslNegotiation = SslNegotiation::Postgres;
        /// The authorities of the upstream's certificate, a PEM file; by default the system's. With it, `sslmode = "require"` verifies
        /// as `verify-ca` does, as in libpq.
        Reload sslrootcert: Option<FilePath> = None;
        /// The certificates that these authorities have revoked, a PEM file of one list (CRL) or more, where the upstream's
        /// certificate is verified. Then each authority needs a list that has not expired, as in libpq.
        Reload sslcrl: Option<FilePath> = None;
        /// Our own certificate, a PEM file.
        Reload sslcert: Option<FilePath> = None;
        /// Its private key, a PEM file.
        Reload sslkey: Option<FilePath> = None;
        /// Whether SCRAM is bound to the TLS connection, as libpq's `channel_binding`.
        Reload channel_binding: ChannelBinding = ChannelBinding::Prefer;
        /// The lowest SCRAM iteration count that is accepted of the upstream: a lower one would let a false
        /// server guess the password cheaply. 1 accepts any.
        Reload scram_min_iterations: u32 = 4096, 1 => 100_000;
        /// The proofs that the upstream may ask for, as libpq's `require_auth`; another one is refused. By default
        /// `scram-sha-256` and `none`, and where nobody but the upstream can answer (`sslmode = "verify-full"`, or `verify-ca` with
        /// authorities of its own in `sslrootcert`, or a unix socket), `md5` and `password`, too: these give the password away.
        Reload require_auth: Option<RequireAuth> = None;
        /// Schemas that become the session's `search_path`, in order.
        Reload include_schemas: Vec<Setting<String>> = Vec::new();
        /// The longest a statement may run. pgusher sets the session's `statement_timeout`, and sends a cancel request of its own
        /// a second later, even if a client has turned that off.
        Reload query_timeout: Duration = seconds(0), seconds(0) => DAY;
        /// The time for opening an upstream connection; by default `[server] server_connect_timeout`.
        Reload connect_timeout: Option<Duration> = None, Some(MILLISECOND) => Some(DAY);
        /// When an upstream connection goes back to the pool; by default `[server] pool_mode`.
        Login pool_mode: Option<PoolMode> = None;
        /// How sessions of different users share upstream connections in their turn. `"user"`: before a connection serves
        /// another user than its last, the server resets it (`DISCARD ALL`). `"strict"`: it is closed in place of that, for
        /// what no command resets (see docs/security.md). `"shared"`: it is not reset, for users who trust each other.
        Reload isolation: Isolation = Isolation::User;
        /// The most upstream connections of this pool; by default `[server] default_pool_size`.
        Reload pool_size: Option<u32> = None, Some(1) => Some(100_000);
        /// By default `[server] min_pool_size`.
        Reload min_pool_size: Option<u32> = None, Some(0) => Some(100_000);
        /// By default `[server] reserve_pool_size`.
        Reload reserve_pool_size: Option<u32> = None, Some(0) => Some(100_000);
        /// By default `[server] max_pinned`.
        Reload max_pinned: Option<u32> = None, Some(0) => Some(100_000);
        /// The most clients at a time; 0 is no limit.
        Login max_client_connections: u32 = 0, 0 => 1_000_000;
        /// What the management API calls it, a UUID; by default one that is made of its name. The API writes it when it renames
        /// a connection.
        Reload id: Option<String> = None;
        /// Other names that clients may ask for.
        Login aliases: Vec<Setting<String>> = Vec::new();
        /// Which attribute of the user picks the environment.
        Login user_attribute: Option<String> = None;
        /// Values of it that mean this base connection itself.
        Login default_values: Vec<Setting<String>> = Vec::new();
        /// What the base itself is called among the environments; by default its first default value, else
        /// `base`.
        Login environment_name: Option<String> = None;
        /// The other connections that users may be sent to.
        Login environments: Vec<Setting<Environment>> = Vec::new();
        /// What happens to users whose value matches nothing, or who have none.
        Login on_unmatched: OnUnmatched = OnUnmatched::Base;
        /// Says that this is a production database: a base with it is refused at load if it has `on_unmatched = "base"`.
        Login production: bool = false;
        /// Allows the fallback all the same: users whose value matches nothing may reach this production database.
        Login allow_production_fallback: bool = false;
    }
}

options! {
    /// A fact about users that connections are picked by.
    Attribute as "[attributes.NAME]" {
        /// The value of users who have none, neither themselves nor by a group.
        Login default: Option<Strings> = None;
    }
}

options! {
    /// What several users have in common.
    Group as "[groups.NAME]" {
        /// Values for attributes: a string or a list of strings each.
        Login attributes: Named<Strings> = Named::default();
    }
}

options! {
    /// Who may log in.
    User as "[users.NAME]" {
        /// A verifier as PostgreSQL stores it (`SCRAM-SHA-256$…`, see `pgusher hash-password`; `md5…`), or the
        /// password itself in any form of secret.
        Login password: Option<Source> = None;
        /// By default `[server] auth_type`.
        Login auth_type: Option<AuthType> = None;
        /// The groups, the most important one first.
        Login groups: Vec<Setting<String>> = Vec::new();
        /// Values for attributes: a string or a list of strings each.
        Login attributes: Named<Strings> = Named::default();
        /// When an upstream connection goes back to the pool; by default what the connection says.
        Login pool_mode: Option<PoolMode> = None;
        /// The most clients of this user at a time; by default `[server] max_user_client_connections`.
        Login max_client_connections: Option<u32> = None, Some(0) => Some(1_000_000);
        /// What this user may do on the console (the databases `pgusher` and `pgbouncer`); by default nothing.
        Login console: Option<Console> = None;
        /// Refuses logins, and ends live sessions as `on_move` says, without losing the rest.
        Login disabled: bool = false;
    }
}

options! {
    /// Who may use the management API.
    Token as "[management.tokens.NAME]" {
        /// What is sent as `Authorization: Bearer …`, at least 16 characters: its hash (`sha256:…`; `pgusher hash-token` makes
        /// both), or the token itself in any form of secret.
        Reload token: Source;
        /// What its bearer may do.
        Reload role: Role = Role::Read;
    }
}

options! {
    /// The management API and its page, over HTTP. TLS is that of `[server.tls]`, whose `mode` also applies here.
    Management as "[management]" {
        /// The address; by default there is none, and the API is off. One that is not of this machine alone needs a token.
        Restart listen: Option<SocketAddr> = None;
        /// Who may use it.
        Reload tokens: Named<Token> = Named::default();
        /// How many requests a token has in a minute.
        Reload requests_per_minute: u32 = 60, 1 => 1_000_000;
        /// How many requests without a known token one address has in a minute; then each further one is only told to wait. A
        /// request with a known token is let in all the same.
        Reload max_failed_requests: u32 = 10, 1 => 1_000_000;
        /// Where passwords are kept that come by the API.
        Reload secrets: SecretStore = SecretStore::File;
        /// The folder for them (relative to the folder of the configuration file); by default the file's name with `.secrets` appended.
        Reload secrets_folder: Option<FilePath> = None;
    }
}

options! {
    /// The whole file.
    File as "the file" {
        /// See `[server]`.
        Reload server: Server = Server::default();
        /// See `[connections.NAME]`.
        Reload connections: Named<Connection> = Named::default();
        /// See `[attributes.NAME]`.
        Reload attributes: Named<Attribute> = Named::default();
        /// See `[groups.NAME]`.
        Reload groups: Named<Group> = Named::default();
        /// See `[users.NAME]`.
        Reload users: Named<User> = Named::default();
        /// See `[management]`.
        Reload management: Management = Management::default();
    }
}

impl File {
    /// Reads a text; `None` if there are problems that leave nothing to check further.
    pub fn parse(text: &str, problems: &mut Problems) -> Option<Self> {
        let (document, errors) = toml::de::DeTable::parse_recoverable(text);
        for error in &errors {
            problems.error(error.span(), format!("not TOML: {}", error.message()));
        }
        if !errors.is_empty() {
            return None;
        }
        Self::read_table(TableReader::document(document.get_ref()), problems)
    }
}

/// The manual of the configuration in Markdown.
pub fn manual() -> String {
    manual::markdown([
        Server::manual(),
        ClientTls::manual(),
        Connection::manual(),
        Environment::manual(),
        Attribute::manual(),
        Group::manual(),
        User::manual(),
        Management::manual(),
        Token::manual(),
    ])
}

/// The same for editors, which complete and check a file by it (JSON Schema 2020-12).
pub fn json_schema() -> String {
    manual::json_schema(File::manual())
}
