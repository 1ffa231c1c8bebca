//! The checked settings: what the rest of the house may rely on.

pub mod problems;
mod foreign;
pub mod read;
pub mod manual;
mod options;
mod words;
mod values;
mod host;

pub mod file;

mod check;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::names::{AttributeName, ConnectionName, DatabaseName, EnvironmentName, GroupName, UserName};
use crate::secret::{Secret, SecretError, Source};
use file::{
    AuthType, ChannelBinding, Console, Isolation, OnUnmatched, PoolMode, Role, SecretStore, SslMode,
    SslNegotiation, UpstreamMethod,
};
use problems::Problems;

pub use check::{MIN_TOKEN, hash_of_token};
pub use file::{ClientTls, ListenAddress, LogFormat, LogLevel, OnMove, Server};
pub use host::Host;
use host::one_spelling;

/// The database names that belong to the console.
pub const CONSOLE_DATABASES: [&str; 2] = ["pgusher", "pgbouncer"];

/// A whole configuration that was checked: every reference leads somewhere, every bound holds.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// systemd's `StateDirectory`, where there is one.
    pub state_directory: Option<PathBuf>,
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

/// What a check looks at beside the text of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Secrets, certificates, folders and permissions: all that a start needs.
    Read,
    /// Nothing: the machine that checks has none of them.
    Leave,
}

/// What a check asks of the machine beside the text of a configuration. The check itself reads nothing.
pub trait Machine {
    /// The value of a secret, read now.
    ///
    /// # Errors
    /// It cannot be had.
    fn secret(&self, source: &Source) -> Result<SecretString, SecretError>;

    /// The bytes of a certificate, a key or a list, if it can be read.
    fn small_file(&self, path: &Path) -> Option<Zeroizing<Vec<u8>>>;

    /// Whether nobody but its owner may read a file.
    fn is_private(&self, path: &Path) -> bool;

    /// Whether others than its owner may write a file, or put files in a folder.
    fn is_open_to_others(&self, path: &Path) -> bool;

    /// Whether every user of the machine may read a file.
    fn is_readable_by_everybody(&self, path: &Path) -> bool;
}

/// What is around the text of a configuration, as far as a check may look at it.
#[derive(Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// The machine; `None` leaves all of it alone ([`Outside::Leave`]).
    pub machine: Option<&'a dyn Machine>,
    /// The commands that may be run for secrets, if not every one: nobody makes pgusher run another by naming a file.
    pub commands: Option<&'a [Vec<String>]>,
    /// systemd's `StateDirectory`, where there is one.
    pub state_directory: Option<&'a Path>,
}

/// What becomes of a secret that a configuration names.
enum Reading {
    Value(SecretString),
    /// It is left alone.
    Left,
    /// The same, because its command is not one of those that may be run.
    NotInForce,
}

impl Surroundings<'_> {
    fn outside(&self) -> Outside {
        if self.machine.is_some() { Outside::Read } else { Outside::Leave }
    }

    fn secret(&self, source: &Source) -> Result<Reading, SecretError> {
        match (source, self.machine) {
            (Source::Plain(value), _) => Ok(Reading::Value(value.clone())),
            (_, None) => Ok(Reading::Left),
            (Source::Command(words), _) if self.commands.is_some_and(|known| !known.contains(words)) => {
                Ok(Reading::NotInForce)
            }
            (_, Some(machine)) => machine.secret(source).map(Reading::Value),
        }
    }
}

/// The commands that a file names for its secrets.
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

/// A file that was read and found good, and what somebody should look at all the same. Made by [`Draft::accept`] alone.
#[derive(Debug)]
pub struct ValidatedConfig {
    config: Config,
    file: file::File,
    warnings: Problems,
    outside: Outside,
}

impl ValidatedConfig {
    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same as they are written.
    pub fn file(&self) -> &file::File {
        &self.file
    }

    /// What somebody should look at: only warnings.
    pub fn warnings(&self) -> &Problems {
        &self.warnings
    }

    /// What was looked at.
    pub fn outside(&self) -> Outside {
        self.outside
    }

    /// The settings, and the same as they are written: they take effect.
    pub fn into_parts(self) -> (Config, file::File) {
        (self.config, self.file)
    }

    /// As the text of another one, of which it differs only for a while.
    pub fn keep_source_of(&mut self, other: &Config) {
        self.config.source.clone_from(&other.source);
    }

    /// With the tokens of another one: those that were taken away stay away.
    pub fn keep_tokens_of(&mut self, other: &Config) {
        self.config.management.tokens.clone_from(&other.management.tokens);
    }
}

/// A file that was refused.
#[derive(Debug)]
pub struct Rejected(pub Box<Problems>);

impl Rejected {
    /// A file that cannot be read, or is no text: what is wrong with it, and where.
    pub fn unreadable(path: &Path, text: &str, span: Option<std::ops::Range<usize>>, message: &str) -> Self {
        let mut problems = Problems::new(path, text);
        problems.error(span, message);
        Self(Box::new(problems))
    }
}

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
    pub fn accept(self) -> Result<ValidatedConfig, Rejected> {
        let Self { config, file, problems, outside } = self;
        match problems.refuse() {
            true => Err(Rejected(Box::new(problems))),
            false => Ok(ValidatedConfig { config, file, warnings: problems, outside }),
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

    /// The proofs that the upstream may ask for where the file does not say: those that give the password away only where nobody
    /// but the upstream can be asking (`require_auth`).
    pub fn usual_methods(&self, host: &Host) -> Vec<UpstreamMethod> {
        let mut methods = vec![UpstreamMethod::ScramSha256, UpstreamMethod::None];
        if self.is_certain() || matches!(host, Host::Socket(_)) {
            methods.extend([UpstreamMethod::Md5, UpstreamMethod::Password]);
        }
        methods
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

    /// A path of something that the process keeps: a relative one is meant from systemd's `StateDirectory`, if there is one.
    fn in_state(&self, path: &Path) -> PathBuf {
        let beside = || self.path.parent().unwrap_or(Path::new(""));
        self.state_directory.as_deref().unwrap_or_else(beside).join(path)
    }

    /// Where grants are kept.
    pub fn grants_file(&self) -> PathBuf {
        self.in_state(Path::new(&**self.server.grants_file))
    }

    /// Where the key of logins is: by default `FILE.key`.
    pub fn auth_key_file(&self) -> PathBuf {
        let by_default = || {
            let mut name = self.path.file_name().unwrap_or_default().to_owned();
            name.push(".key");
            PathBuf::from(name)
        };
        self.in_state(&self.server.auth_key_file.as_deref().map_or_else(by_default, PathBuf::from))
    }

    /// The commands that it runs for secrets.
    pub fn commands(&self) -> Vec<Vec<String>> {
        let source = self.source.expose_secret();
        let file = file::File::parse(source, &mut Problems::new(&self.path, source));
        file.as_ref().map(commands_of).unwrap_or_default()
    }

    /// Checks each part of a text as if it stood in this file.
    ///
    /// # Errors
    /// It cannot be read as a whole; what else is wrong is in the draft.
    pub fn draft(path: &Path, text: &str, around: Surroundings<'_>) -> Result<Draft, Rejected> {
        let mut problems = Problems::new(path, text);
        if text.trim().is_empty() {
            // Half-written by an editor, most likely: taking it would end every session.
            problems.error(None, "the file is empty");
        }
        match file::File::parse(text, &mut problems) {
            Some(file) => {
                let mut config = check::check(path, &file, around, &mut problems);
                config.source = text.to_owned().into();
                Ok(Draft { config, file, problems, outside: around.outside() })
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
}
