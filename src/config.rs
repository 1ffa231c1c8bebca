//! The checked settings: what the rest of the house may rely on.

pub mod read;

pub mod file;

mod check;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::files;
use crate::names::{AttributeName, ConnectionName, DatabaseName, EnvironmentName, GroupName, UserName};
use crate::secret::{Secret, Source};
use file::{
    AuthType, ChannelBinding, Console, Isolation, OnUnmatched, PoolMode, Role, SecretStore, SslMode,
    SslNegotiation, UpstreamMethod,
};
use read::Problems;

pub use check::{HASHED, MIN_TOKEN};
pub use file::{ClientTls, ListenAddress, LogFormat, LogLevel, OnMove, Server};

/// The database names that belong to the console.
pub const CONSOLE_DATABASES: [&str; 2] = ["pgusher", "pgbouncer"];

/// A whole configuration that was checked: every reference leads somewhere, every bound holds.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// Its text, which may hold secrets.
    pub source: SecretString,
    /// `[server]`
    pub server: Server,
    /// `[connections]`, bases and environments.
    pub connections: BTreeMap<ConnectionName, Arc<Connection>>,
    /// What a client may ask for (names and aliases of bases), and the base that it means.
    pub databases: BTreeMap<DatabaseName, ConnectionName>,
    /// The default values of `[attributes]` that have one.
    pub attribute_defaults: BTreeMap<AttributeName, Vec<String>>,
    /// `[groups]`
    pub groups: BTreeMap<GroupName, BTreeMap<AttributeName, Vec<String>>>,
    /// `[users]`
    pub users: BTreeMap<UserName, Arc<User>>,
    /// SHA-256 of the files of certificates and keys, as they were when this was read; by what they are for.
    pub certificates: BTreeMap<String, Vec<u8>>,
    /// `[management]`
    pub management: Management,
}

/// `[management]`
#[derive(Debug, Clone)]
pub struct Management {
    /// Where the API is, if it is on.
    pub listen: Option<SocketAddr>,
    /// Who may use it.
    pub tokens: Vec<Token>,
    /// Of one token.
    pub requests_per_minute: u32,
    /// Of one address.
    pub max_failed_requests: u32,
    /// Where passwords go.
    pub secrets: SecretStore,
    /// And in which folder.
    pub secrets_folder: PathBuf,
    /// The same, as it is written; without, it is named after the configuration's file.
    pub said_folder: Option<String>,
}

/// `[management.tokens.NAME]`
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is called.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// SHA-256 of the token.
    pub digest: [u8; 32],
}

impl Management {
    /// Each setting with its value; of tokens only their names and roles.
    pub fn shown(&self) -> Vec<(String, String)> {
        let listen = self.listen.map(|address| address.to_string());
        let tokens: Vec<_> = self.tokens.iter().map(|t| format!("{} ({})", t.name, t.role.word())).collect();
        let settings = [
            ("listen", listen.unwrap_or_default()),
            ("tokens", tokens.join(", ")),
            ("requests_per_minute", self.requests_per_minute.to_string()),
            ("max_failed_requests", self.max_failed_requests.to_string()),
            ("secrets", self.secrets.word().to_owned()),
            ("secrets_folder", self.said_folder.clone().unwrap_or_default()),
        ];
        settings.map(|(name, value)| (format!("management.{name}"), value)).to_vec()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.name)
    }
}

/// The longest configuration, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// What a check looks at beside the text of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Secrets, certificates, folders and permissions: all that a start needs.
    Read,
    /// Nothing: the machine that checks has none of them.
    Leave,
}

/// What a check may look at, and, if that is not its own business to decide, which commands it may run: nobody makes pgusher
/// run another by naming a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach<'a> {
    outside: Outside,
    commands: Option<&'a [Vec<String>]>,
}

impl Reach<'_> {
    fn reads_outside(self) -> bool {
        self.outside == Outside::Read
    }

    /// Whether this secret may be read.
    fn reads(self, source: &Source) -> bool {
        match source {
            Source::Plain(_) => true,
            Source::Command(words) => {
                self.reads_outside() && self.commands.is_none_or(|known| known.contains(words))
            }
            Source::File(_) | Source::Env(_) => self.reads_outside(),
        }
    }
}

/// The commands that a file names.
fn commands_of(file: &file::File) -> Vec<Vec<String>> {
    let of_connections = file.connections.0.iter().filter_map(|(_, c)| c.password.as_ref());
    let of_users = file.users.0.iter().filter_map(|(_, user)| user.password.as_ref());
    let of_tokens = file.management.tokens.0.iter().map(|(_, token)| &*token.token);
    let all = of_connections.chain(of_users).chain(of_tokens).map(|source| match source {
        Source::Command(words) => Some(words.clone()),
        _ => None,
    });
    all.flatten().collect()
}

/// A file that could be read as a whole; its routes are still to be reviewed (`route::review`).
#[derive(Debug)]
pub struct Draft {
    /// The settings; where there is an error, some are missing.
    pub config: Config,
    /// The file that they come from, which knows its lines.
    pub file: file::File,
    /// What was found until now.
    pub problems: Problems,
    /// What was looked at.
    pub outside: Outside,
}

/// A file that was read and found good, and what somebody should look at all the same.
#[derive(Debug)]
pub struct Checked {
    /// The settings.
    pub config: Config,
    /// As they are written.
    pub file: file::File,
    /// Only warnings.
    pub warnings: Problems,
    /// What was looked at.
    pub outside: Outside,
}

/// A file that was refused.
#[derive(Debug)]
pub struct Rejected(pub Box<Problems>);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Draft {
    /// Nothing else is to be looked at.
    ///
    /// # Errors
    /// Something was wrong.
    pub fn accept(self) -> Result<Checked, Rejected> {
        let Self { config, file, problems, outside } = self;
        match problems.refuse() {
            true => Err(Rejected(Box::new(problems))),
            false => Ok(Checked { config, file, warnings: problems, outside }),
        }
    }
}

/// Where an upstream is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name or an IP address.
    Name(String),
    /// The folder of a unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Socket(folder) => write!(f, "{}", folder.display()),
        }
    }
}

/// The database that a connection leads to. Two connections with an equal target are the same database; a
/// session is never moved from one target to another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The server.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// The database on it.
    pub database: String,
    /// Who logs in.
    pub username: String,
}

impl Target {
    /// The server, in one spelling of its name: upper case, a last dot and the ways to say loopback are no difference.
    pub fn server(&self) -> (String, u16) {
        let name = match &self.host {
            Host::Name(name) => one_spelling(name),
            Host::Socket(folder) => folder.components().collect::<PathBuf>().display().to_string(),
        };
        (name, self.port)
    }

    /// The server and the database on it, whoever logs in.
    pub fn place(&self) -> (String, u16, &str) {
        let (host, port) = self.server();
        (host, port, &self.database)
    }
}

/// The forms of an IPv4 address that `inet_aton` takes, and the resolver with it: fewer parts, octal and hexadecimal ones.
fn short_address(name: &str) -> Option<IpAddr> {
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Vec<u32> = name.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    let room = 32_u32.checked_sub(8 * u32::try_from(first.len()).ok()?).filter(|room| *room > 0)?;
    if first.iter().any(|part| *part > 255) || u64::from(*last) >= 1_u64 << room {
        return None;
    }
    let high = first.iter().enumerate().map(|(i, part)| part << (24 - 8 * i)).sum::<u32>();
    Some(std::net::Ipv4Addr::from(high | last).into())
}

fn one_spelling(name: &str) -> String {
    let name = name.trim_end_matches('.').to_lowercase();
    let address = name.parse().ok().or_else(|| short_address(&name));
    match address.map(|ip: IpAddr| ip.to_canonical()) {
        // Whoever connects to no address in particular reaches this machine.
        Some(ip) if ip.is_loopback() || ip.is_unspecified() => "localhost".into(),
        Some(ip) => ip.to_string(),
        None => name,
    }
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Whether.
    pub mode: SslMode,
    /// How it begins.
    pub negotiation: SslNegotiation,
    /// The authorities, a PEM file; the system's if none.
    pub root_cert: Option<PathBuf>,
    /// What they have revoked, a PEM file.
    pub revoked: Option<PathBuf>,
    /// Our own certificate and key, PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How we prove ourselves to an upstream, and what we ask of its proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamScram {
    /// Whether SCRAM must be bound to the TLS channel.
    pub channel_binding: ChannelBinding,
    /// The lowest iteration count that is accepted.
    pub min_iterations: u32,
}

/// `[connections.NAME]`, with the defaults of `[server]` filled in.
#[derive(Debug)]
pub struct Connection {
    /// Its name.
    pub name: ConnectionName,
    /// What the management API calls it.
    pub id: Uuid,
    /// The database.
    pub target: Target,
    /// The password, if it has one.
    pub password: Option<Arc<Secret>>,
    /// TLS.
    pub tls: UpstreamTls,
    /// SCRAM.
    pub scram: UpstreamScram,
    /// The proofs that the upstream may ask for.
    pub methods: Vec<UpstreamMethod>,
    /// The `search_path` of its sessions, quoted and ready, if `include_schemas` gives one.
    pub search_path: Option<String>,
    /// The longest a statement may run; zero is no limit.
    pub query_timeout: Duration,
    /// For opening a connection.
    pub connect_timeout: Duration,
    /// When connections go back.
    pub pool_mode: PoolMode,
    /// How different users share its connections.
    pub isolation: Isolation,
    /// The most upstream connections.
    pub pool_size: u32,
    /// The least, once used.
    pub min_pool_size: u32,
    /// How many more for those who waited.
    pub reserve_pool_size: u32,
    /// How many of them sessions may keep beyond a transaction; 0 is all but one, and at least one.
    pub max_pinned: u32,
    /// The most clients; 0 is no limit.
    pub max_client_connections: u32,
    /// Whether it is a production database.
    pub production: bool,
    /// Its users may get to a production database by falling back, or by another name.
    pub allow_production_fallback: bool,
    /// What it is called among the environments of its base: its own name if it is one.
    pub environment: EnvironmentName,
    /// Set if clients can ask for it.
    pub base: Option<Base>,
}

/// How a base connection picks an environment.
#[derive(Debug, PartialEq, Eq)]
pub struct Base {
    /// The attribute that picks; without one, the base is the route.
    pub attribute: Option<AttributeName>,
    /// Values that mean the base.
    pub default_values: Vec<String>,
    /// Its environments, in the order of the file.
    pub environments: Vec<Environment>,
    /// What happens to those who match nothing.
    pub on_unmatched: OnUnmatched,
}

/// One environment of a base.
#[derive(Debug, PartialEq, Eq)]
pub struct Environment {
    /// Where it goes.
    pub connection: ConnectionName,
    /// What it is called.
    pub name: EnvironmentName,
    /// The values that lead there.
    pub values: Vec<String>,
}

/// `[users.NAME]`
#[derive(Debug)]
pub struct User {
    /// Who.
    pub name: UserName,
    /// How they prove it.
    pub auth_type: AuthType,
    /// A verifier, or the password.
    pub password: Option<Secret>,
    /// In order.
    pub groups: Vec<GroupName>,
    /// Their own values.
    pub attributes: BTreeMap<AttributeName, Vec<String>>,
    /// Overrides the connection's.
    pub pool_mode: Option<PoolMode>,
    /// The most clients; 0 is no limit.
    pub max_client_connections: u32,
    /// What they may do on the console.
    pub console: Option<Console>,
    /// May not log in.
    pub disabled: bool,
}

impl UpstreamTls {
    /// Whether the upstream has to prove that it is the one, or one of its authority. With a file of authorities, `require`
    /// does as `verify-ca` does (libpq's `sslmode`).
    pub fn verifies(&self) -> bool {
        match self.mode {
            SslMode::VerifyCa | SslMode::VerifyFull => true,
            SslMode::Require => self.root_cert.is_some(),
            SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
        }
    }

    /// Whether nobody else can pass for the upstream: by its name, or by an authority of one's own. Of the system's
    /// authorities anybody has a certificate.
    pub fn is_certain(&self) -> bool {
        self.mode == SslMode::VerifyFull || self.verifies() && self.root_cert.is_some()
    }
}

impl Config {
    /// A path that the file holds: a relative one is meant from its folder.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Where the audit is, if there is one.
    pub fn audit_file(&self) -> Option<PathBuf> {
        self.server.audit_file.as_deref().map(|path| self.beside(path))
    }

    /// Where grants are kept: a relative path is meant from systemd's `StateDirectory`, if there is one.
    pub fn grants_file(&self) -> PathBuf {
        match std::env::var_os("STATE_DIRECTORY") {
            Some(folder) => Path::new(&folder).join(&**self.server.grants_file),
            None => self.beside(&self.server.grants_file),
        }
    }

    /// Where the key of logins is: by default `FILE.key`; a relative path is meant as that of the grants is.
    pub fn auth_key_file(&self) -> PathBuf {
        let name = self.server.auth_key_file.as_deref().map_or_else(
            || {
                let mut name = self.path.file_name().unwrap_or_default().to_owned();
                name.push(".key");
                PathBuf::from(name)
            },
            PathBuf::from,
        );
        match std::env::var_os("STATE_DIRECTORY") {
            Some(folder) => Path::new(&folder).join(name),
            None => self.path.parent().unwrap_or(Path::new("")).join(name),
        }
    }

    /// Reads a file and checks each of its parts.
    ///
    /// # Errors
    /// It cannot be read as a whole; what else is wrong is in the draft.
    pub fn load(path: &Path, outside: Outside) -> Result<Draft, Rejected> {
        Self::load_within(path, Reach { outside, commands: None })
    }

    /// The same for a file that somebody has named who may not run commands: of those it runs only what this configuration
    /// does already; other secrets of commands are left alone, with a warning.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_beside(&self, path: &Path) -> Result<Draft, Rejected> {
        let source = self.source.expose_secret();
        let commands = file::File::parse(source, &mut Problems::new(&self.path, source));
        let commands = commands.as_ref().map(commands_of).unwrap_or_default();
        Self::load_within(path, Reach { outside: Outside::Read, commands: Some(&commands) })
    }

    fn load_within(path: &Path, reach: Reach<'_>) -> Result<Draft, Rejected> {
        let bytes = match files::read(path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) => return Err(rejected(path, "", None, format!("cannot read the file: {error}"))),
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::draft_within(path, text, reach),
            Err(error) => {
                let at = error.valid_up_to();
                let text = String::from_utf8_lossy(&bytes);
                Err(rejected(path, &text, Some(at..at), "the file is not UTF-8".into()))
            }
        }
    }

    /// Checks a text as if it stood in this file, with all that is outside of it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Draft, Rejected> {
        Self::draft(path, text, Outside::Read)
    }

    /// Checks a text as if it stood in this file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn draft(path: &Path, text: &str, outside: Outside) -> Result<Draft, Rejected> {
        Self::draft_within(path, text, Reach { outside, commands: None })
    }

    fn draft_within(path: &Path, text: &str, reach: Reach<'_>) -> Result<Draft, Rejected> {
        let mut problems = Problems::new(path, text);
        if text.trim().is_empty() {
            // Half-written by an editor, most likely: taking it would end every session.
            problems.error(None, "the file is empty");
        }
        match file::File::parse(text, &mut problems) {
            Some(file) => {
                let mut config = check::check(path, &file, reach, &mut problems);
                config.source = text.to_owned().into();
                Ok(Draft { config, file, problems, outside: reach.outside })
            }
            None => Err(Rejected(Box::new(problems))),
        }
    }

    /// The base connection that a database name means.
    pub fn base(&self, database: &str) -> Option<(&Connection, &Base)> {
        let connection = self.connections.get(self.databases.get(database)?)?;
        Some((connection, connection.base.as_ref()?))
    }
}

fn rejected(path: &Path, text: &str, span: Option<std::ops::Range<usize>>, message: String) -> Rejected {
    let mut problems = Problems::new(path, text);
    problems.error(span, message);
    Rejected(Box::new(problems))
}

/// The longest value that is looked at for a slip.
const MAX_NEAR: usize = 255;

/// True if two values differ only by case, by surrounding spaces or by one edit: probably a slip. Of long ones nothing is
/// said. Each byte is looked at a few times.
pub fn near_miss(value: &str, known: &str) -> bool {
    value != known
        && value.len().max(known.len()) <= MAX_NEAR
        && (value.trim().to_lowercase() == known.trim().to_lowercase() || is_one_edit_apart(value, known))
}

/// One character more, less, or another, or two exchanged.
fn is_one_edit_apart(one: &str, other: &str) -> bool {
    let same = |(a, b): &(char, char)| a == b;
    let [one, other] = [one, other].map(|text| text.chars().collect::<Vec<_>>());
    let begin = one.iter().copied().zip(other.iter().copied()).take_while(same).count();
    let (one, other) = (&one[begin..], &other[begin..]);
    let end = one.iter().rev().copied().zip(other.iter().rev().copied()).take_while(same).count();
    match (&one[..one.len() - end], &other[..other.len() - end]) {
        ([_], []) | ([], [_]) | ([_], [_]) => true,
        ([a, b], [c, d]) => a == d && b == c,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_one_edit_another_case_or_a_space_and_long_values_are_none() {
        for (value, known, expected) in [
            ("prod", "prod", false),
            ("Prod", "prod", true),
            (" prod", "prod", true),
            ("prd", "prod", true),
            ("prood", "prod", true),
            ("pord", "prod", true),
            ("prad", "prod", true),
            ("", "x", true),
            ("porrd", "prod", false),
            ("dorp", "prod", false),
            ("stage", "prod", false),
            ("aab", "aba", true),
        ] {
            assert_eq!(near_miss(value, known), expected, "{value:?} {known:?}");
            assert_eq!(near_miss(known, value), expected, "{known:?} {value:?}");
        }
        let long = "x".repeat(60_000);
        assert!(!near_miss(&long, &long[1..]));
    }

    #[test]
    fn a_server_is_the_same_in_every_spelling_of_its_address() {
        for name in [
            "localhost",
            "LOCALHOST.",
            "127.0.0.1",
            "127.1",
            "0",
            "0.0.0.0",
            "0x7f.1",
            "017700000001",
            "::1",
            "::",
        ] {
            assert_eq!(one_spelling(name), "localhost", "{name}");
        }
        for (name, expected) in [
            ("10.1", "10.0.0.1"),
            ("db.example", "db.example"),
            ("256.1", "256.1"),
            ("1.2.3.4.5", "1.2.3.4.5"),
        ] {
            assert_eq!(one_spelling(name), expected);
        }
    }
}
