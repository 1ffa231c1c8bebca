//! All that can fail before sockets are opened, in one place: what `check` and `plan` accept, `serve` and a reload accept.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::ExposeSecret;

use crate::files;
use crate::machine::ThisMachine;
use crate::stream::ReusePort;
use crate::tls::{self, ServerTls, TlsError};
use crate::upstream::Dialer;
use policy::config::file::{self, SslMode};
use policy::config::problems::Problems;
use policy::config::read::{FilePath, Setting};
use policy::config::{
    Config, Connection, Draft, Host, ListenAddress, Machine, Outside, Rejected, Surroundings, ValidatedConfig,
};
use policy::route;

/// A configuration of which all has been made that can fail. Made only by this module.
#[derive(Debug)]
pub(crate) struct PreparedConfig {
    checked: ValidatedConfig,
    tls: Option<ServerTls>,
    dialers: Dialers,
}

/// How each connection is dialled; none where the outside was left alone.
pub(crate) type Dialers = Vec<(Arc<Connection>, Dialer)>;

impl PreparedConfig {
    /// The settings, and what somebody should look at.
    pub(crate) fn checked(&self) -> &ValidatedConfig {
        &self.checked
    }

    /// As the text of another configuration, of which it differs only for a while.
    pub(crate) fn keep_source_of(&mut self, other: &Config) {
        self.checked.keep_source_of(other);
    }

    /// With the tokens of another configuration: those that were taken away stay away.
    pub(crate) fn keep_tokens_of(&mut self, other: &Config) {
        self.checked.keep_tokens_of(other);
    }

    /// The settings, TLS towards clients, and how each connection is dialled: all of it takes effect.
    pub(crate) fn into_parts(self) -> (ValidatedConfig, Option<ServerTls>, Dialers) {
        (self.checked, self.tls, self.dialers)
    }
}

type Span = Option<Range<usize>>;

/// The longest configuration, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Reads a file and checks each of its parts; not yet its routes.
///
/// # Errors
/// It cannot be read as a whole; what else is wrong is in the draft.
pub(crate) fn draft(path: &Path, outside: Outside) -> Result<Draft, Rejected> {
    read(path, outside, None)
}

/// The same of a text, as if it stood in this file.
///
/// # Errors
/// As `draft`.
pub fn draft_of(path: &Path, text: &str) -> Result<Draft, Rejected> {
    within(path, text, Outside::Read, None)
}

/// Reads and checks a file, and reviews what its routes would be: enough to say who goes where. What a start needs beside
/// that is made by [`load`].
///
/// # Errors
/// All that is wrong with it, with line and column.
pub(crate) fn reviewed(path: &Path) -> Result<ValidatedConfig, Rejected> {
    route::review(draft(path, Outside::Read)?)
}

/// The same of a text, as if it stood in this file, by what it says alone: no secret, certificate or folder is looked at.
///
/// # Errors
/// As [`reviewed`].
pub(crate) fn reviewed_text(path: &Path, text: &str) -> Result<ValidatedConfig, Rejected> {
    route::review(within(path, text, Outside::Leave, None)?)
}

fn read(path: &Path, outside: Outside, commands: Option<&[Vec<String>]>) -> Result<Draft, Rejected> {
    let bytes = files::read(path, MAX_FILE)
        .map_err(|error| Rejected::unreadable(path, "", None, &format!("cannot read the file: {error}")))?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => within(path, text, outside, commands),
        Err(error) => {
            let at = error.valid_up_to();
            let text = String::from_utf8_lossy(&bytes);
            Err(Rejected::unreadable(path, &text, Some(at..at), "the file is not UTF-8"))
        }
    }
}

fn within(
    path: &Path,
    text: &str,
    outside: Outside,
    commands: Option<&[Vec<String>]>,
) -> Result<Draft, Rejected> {
    let machine = (outside == Outside::Read).then_some(&ThisMachine as &dyn Machine);
    let state = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    Config::draft(path, text, Surroundings { machine, commands, state_directory: state.as_deref() })
}

/// Reads a file, checks it, and makes what it needs. Changes nothing. Blocks while secrets are read.
///
/// # Errors
/// All that is wrong, with line and column.
pub(crate) fn load(path: &Path, outside: Outside) -> Result<PreparedConfig, Rejected> {
    of(draft(path, outside)?)
}

/// The same for a file that somebody has named, beside what is in force: it runs only commands
/// for secrets that the configuration in force runs already, and leaves others alone with a warning.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_beside(in_force: &Config, path: &Path) -> Result<PreparedConfig, Rejected> {
    of(read(path, Outside::Read, Some(&in_force.commands()))?)
}

/// The same with a text, as if it stood in this file.
///
/// # Errors
/// As [`load`].
pub(crate) fn parse(path: &Path, text: &str) -> Result<PreparedConfig, Rejected> {
    of(draft_of(path, text)?)
}

fn of(draft: Draft) -> Result<PreparedConfig, Rejected> {
    let mut draft = route::reviewed(draft);
    let (tls, dialers) = make(&draft.config, &draft.file, draft.outside, &mut draft.problems);
    Ok(PreparedConfig { checked: draft.accept()?, tls, dialers })
}

/// Checks a text, as if it stood in this file, and looks at nothing outside of it.
///
/// # Errors
/// All that is wrong, with line and column.
pub(crate) fn review_text(path: &Path, text: &str) -> Result<(), Rejected> {
    of(within(path, text, Outside::Leave, None)?).map(drop)
}

/// What a start would be refused for, of a configuration that is right in itself.
pub(crate) fn problems(checked: &ValidatedConfig) -> Problems {
    let config = checked.config();
    let mut problems = Problems::new(&config.path, config.source.expose_secret());
    make(config, checked.file(), checked.outside(), &mut problems);
    problems
}

fn make(
    config: &Config,
    file: &file::File,
    outside: Outside,
    problems: &mut Problems,
) -> (Option<ServerTls>, Dialers) {
    addresses(file, problems);
    if outside == Outside::Leave {
        config.connections.values().for_each(|connection| check_name(connection, file, problems));
        return (None, Vec::new());
    }
    one_file_each(config, file, problems);
    folders(config, file, problems);
    let tls = file.server.tls.as_ref().and_then(|tls| server_tls(config, tls, problems));
    let dialer = |connection: &Arc<Connection>| {
        check_name(connection, file, problems);
        let dialer = dialer(config, connection, file, problems)?;
        Some((connection.clone(), dialer))
    };
    let dialers = config.connections.values().filter_map(dialer).collect();
    (tls, dialers)
}

/// Each address is listened on once.
fn addresses(file: &file::File, problems: &mut Problems) {
    let server = &file.server;
    let reuse = ReusePort::of(server);
    let mut known: Vec<(SocketAddr, &str)> = Vec::new();
    let mut sockets: BTreeSet<PathBuf> = BTreeSet::new();
    let mut tcp = |address: SocketAddr, what: &'static str, span: Span, problems: &mut Problems| {
        let taken = known.iter().find(|(other, _)| collide(*other, address, reuse));
        if let Some((other, by)) = taken {
            let message = match *other == address {
                true => format!("{address} is listened on already ({by})"),
                false => format!("{address} is a part of {other}, which is listened on already ({by})"),
            };
            problems.error(span, message).help("give each its own address or port");
        }
        known.push((address, what));
    };
    for address in server.listen.iter() {
        match &**address {
            ListenAddress::Tcp(tcp_address) => tcp(*tcp_address, "listen", address.span(), problems),
            ListenAddress::Unix(folder) if !sockets.insert(real(folder)) => {
                let message = format!("unix:{} is listened on already (listen)", folder.display());
                problems.error(address.span(), message).help("leave one of them out");
            }
            ListenAddress::Unix(folder) => {
                // The longest name that it has while it is made: with the port and a process's number.
                let path = folder.join(".s.PGSQL.65535.4194304");
                if std::os::unix::net::SocketAddr::from_pathname(&path).is_err() {
                    let message =
                        format!("the path of unix:{} is too long for a socket in it", folder.display());
                    problems.error(address.span(), message).help("at most 85 bytes");
                }
            }
        }
    }
    if let Some(address) = *server.metrics_listen {
        tcp(address, "metrics_listen", server.metrics_listen.span(), problems);
    }
    if let Some(address) = *file.management.listen {
        tcp(address, "[management] listen", file.management.listen.span(), problems);
    }
}

/// Whether the second of two addresses could not be listened on. A part of a shared address can be, but the same one
/// twice is a slip.
fn collide(one: SocketAddr, other: SocketAddr, reuse: ReusePort) -> bool {
    if one.port() != other.port() || one.port() == 0 {
        return false;
    }
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    // `[::]` takes IPv4 in, too.
    let covers = |wide: IpAddr, narrow: IpAddr| {
        wide.is_unspecified() && (wide.is_ipv6() || wide.is_ipv4() == narrow.is_ipv4())
    };
    a == b || reuse == ReusePort::Exclusive && (covers(a, b) || covers(b, a))
}

/// One spelling of a path, also of a file that is not there yet.
fn real(path: &Path) -> PathBuf {
    let aside = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(aside).unwrap_or_else(|| path.to_owned())
}

/// Each file that pgusher writes is for one purpose alone.
fn one_file_each(config: &Config, file: &file::File, problems: &mut Problems) {
    let server = &file.server;
    let written = [
        ("grants_file", Some(config.grants_file()), server.grants_file.span()),
        ("audit_file", config.audit_file(), server.audit_file.span()),
        ("auth_key_file", Some(config.auth_key_file()), server.auth_key_file.span()),
    ];
    let mut known = BTreeMap::from([(real(&config.path), "this file itself")]);
    for (name, path, span) in written {
        let Some(path) = path else { continue };
        match known.entry(real(&path)) {
            Entry::Occupied(other) => {
                problems
                    .error(span, format!("`{name}` is {}", other.get()))
                    .help("give it a file of its own");
            }
            Entry::Vacant(free) => drop(free.insert(name)),
        }
    }
}

/// Folders that something is to be made in.
fn folders(config: &Config, file: &file::File, problems: &mut Problems) {
    for address in file.server.listen.iter() {
        if let ListenAddress::Unix(folder) = &**address
            && !folder.is_dir()
        {
            let message = format!("there is no folder {} for the unix socket", folder.display());
            problems
                .error(address.span(), message)
                .help("make it (systemd: RuntimeDirectory); --no-secrets checks without it");
        }
    }
    let Some(audit) = config.audit_file() else { return };
    let span = file.server.audit_file.span();
    match audit.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            let message = format!("cannot write the audit: there is no folder {}", folder.display());
            problems
                .error(span, message)
                .help("make it (systemd: LogsDirectory); --no-secrets checks without it");
        }
        _ if std::fs::metadata(&audit).is_ok_and(|about| !about.is_file()) => {
            problems
                .error(span, format!("cannot write the audit: {} is not a regular file", audit.display()));
        }
        _ => {
            if let Err(error) = crate::audit::expect_audit(&audit) {
                problems.error(span, format!("cannot write the audit {}: {error}", audit.display()));
            }
        }
    }
}

/// A file that TLS needs.
enum Part {
    Chain,
    Key,
    Authorities,
    Revoked,
}

/// Each file of its own, so that all that is wrong is said at once; false if something is.
fn parts<'p>(parts: impl IntoIterator<Item = (Part, &'p Path, Span)>, problems: &mut Problems) -> bool {
    let mut good = true;
    for (part, path, span) in parts {
        let read = match part {
            Part::Chain => tls::certificates(path).map(drop),
            Part::Key => tls::private_key(path).map(drop),
            Part::Authorities => tls::roots(path).map(drop),
            Part::Revoked => tls::revocation_lists(path).map(drop),
        };
        match read {
            Err(error) => {
                good = false;
                problems.error(span, error.to_string());
            }
            // As PostgreSQL and libpq do.
            Ok(()) if matches!(part, Part::Key) && !files::is_private(path) => {
                good = false;
                let message = format!("others than its owner may read the private key {}", path.display());
                problems
                    .error(span, message)
                    .help("chmod 600; if root owns it, its group may read it, too (640)");
            }
            Ok(()) => {}
        }
    }
    good
}

fn server_tls(config: &Config, written: &file::ClientTls, problems: &mut Problems) -> Option<ServerTls> {
    let certificate = config.beside(&written.certificate);
    let key = config.beside(&written.key);
    let authorities = written.client_ca.as_ref().map(|path| config.beside(path));
    let revoked = written.client_crl.as_ref().map(|path| config.beside(path));
    let known = [
        Some((Part::Chain, certificate.as_path(), written.certificate.span())),
        Some((Part::Key, key.as_path(), written.key.span())),
        authorities.as_deref().map(|path| (Part::Authorities, path, written.client_ca.span())),
        revoked.as_deref().map(|path| (Part::Revoked, path, written.client_crl.span())),
    ];
    if !parts(known.into_iter().flatten(), problems) {
        return None;
    }
    match tls::server(written, &config.beside("")) {
        Ok(tls) => {
            if let Some(warning) = &tls.warning {
                problems.warning(written.certificate.span(), warning);
            }
            Some(tls)
        }
        Err(error) => {
            let is_of = |file: Option<&Path>| file.is_some() && file == error.path();
            let of_key = is_of(Some(&key));
            let at = match () {
                () if of_key => written.key.span(),
                () if is_of(revoked.as_deref()) => written.client_crl.span(),
                () if is_of(authorities.as_deref()) => written.client_ca.span(),
                () => written.certificate.span(),
            };
            let problem = problems.error(at, error.to_string());
            if of_key {
                problem.help("does the key belong to the certificate?");
            }
            None
        }
    }
}

/// Whether TLS can be used with the name of the host, where it may be.
fn check_name(connection: &Connection, file: &file::File, problems: &mut Problems) {
    let Host::Name(name) = &connection.target.host else { return };
    if connection.tls.mode == SslMode::Disable || tls::is_name(name) {
        return;
    }
    let span = file.connections.find(connection.name.as_str()).and_then(|c| c.host.span());
    // What stands there may be a URL with a password.
    problems
        .error(span, format!("`host` of connection `{}` is not a name or address that TLS can verify", connection.name))
        .help("a port, a zone (%), brackets and other letters than ASCII do not belong there; or sslmode = \"disable\"");
}

fn dialer(
    config: &Config,
    connection: &Arc<Connection>,
    file: &file::File,
    problems: &mut Problems,
) -> Option<Dialer> {
    let (written, wanted) = (file.connections.find(connection.name.as_str())?, &connection.tls);
    let Host::Name(name) = &connection.target.host else {
        return Dialer::of(&config.server, connection).ok();
    };
    let uses_tls = wanted.mode != SslMode::Disable;
    if uses_tls && !tls::is_name(name) {
        return None;
    }
    let verifies = wanted.verifies();
    let path = |path: &'_ Setting<Option<FilePath>>| path.span();
    let authorities = wanted.root_cert.as_deref().filter(|_| verifies);
    let revoked = wanted.revoked.as_deref().filter(|_| verifies);
    let identity = wanted.identity.as_ref().filter(|_| uses_tls);
    let known = [
        authorities.map(|file| (Part::Authorities, file, path(&written.sslrootcert))),
        revoked.map(|file| (Part::Revoked, file, path(&written.sslcrl))),
        identity.map(|(certificate, _)| (Part::Chain, certificate.as_path(), path(&written.sslcert))),
        identity.map(|(_, key)| (Part::Key, key.as_path(), path(&written.sslkey))),
    ];
    if !parts(known.into_iter().flatten(), problems) {
        return None;
    }
    match Dialer::of(&config.server, connection) {
        Ok(dialer) => Some(dialer),
        Err(error) => {
            let at = match &error {
                TlsError::NoSystemRoots => written.sslmode.span(),
                _ if revoked.is_some() && error.path() == revoked => path(&written.sslcrl),
                _ => path(&written.sslkey).or(path(&written.sslrootcert)).or(written.host.span()),
            };
            problems.error(at, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_collide_where_the_system_says_so() {
        for (one, other, alone, shared) in [
            ("127.0.0.1:1", "127.0.0.1:1", true, true),
            ("127.0.0.1:1", "127.0.0.1:2", false, false),
            ("127.0.0.1:0", "127.0.0.1:0", false, false),
            ("0.0.0.0:1", "127.0.0.1:1", true, false),
            ("127.0.0.1:1", "[::]:1", true, false),
            ("[::]:1", "0.0.0.0:1", true, false),
            ("[::1]:1", "0.0.0.0:1", false, false),
            ("[::1]:1", "127.0.0.1:1", false, false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true, true),
        ] {
            let (one, other): (SocketAddr, SocketAddr) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(collide(one, other, ReusePort::Exclusive), alone, "{one} {other}");
            assert_eq!(collide(one, other, ReusePort::Shared), shared, "{one} {other}");
        }
    }
}
