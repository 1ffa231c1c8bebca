//! Examines what a running system needs, before users do: names, logins, certificates, limits, and whether environments
//! are what they are taken for.

mod compare;
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use utoipa::ToSchema;

use crate::prepare;
use crate::ring::{self, Relays};
use crate::tls;
use policy::config::file::Io;
use policy::config::problems::{Problems, Severity};
use policy::config::{Config, Server, ValidatedConfig};
use policy::verifier::Verifier;
use server::UpstreamFacts;

/// How long before its end a certificate is worth a warning.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// Descriptors that are neither clients nor upstream connections.
const OWN_FILES: u64 = 100;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grade {
    /// As it should be.
    Ok,
    /// It will hurt somebody, or may.
    Warning,
    /// It does not work, or not as it is meant.
    Error,
}

impl Grade {
    /// As it is printed.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Finding {
    /// How bad.
    pub grade: Grade,
    /// Of what.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(&mut self, grade: Grade, subject: &str, text: impl Into<String>) -> &mut Finding {
        self.0.push(Finding { grade, subject: subject.to_owned(), text: text.into(), hint: None });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn ok(&mut self, subject: &str, text: impl Into<String>) {
        self.add(Grade::Ok, subject, text);
    }

    fn warn(&mut self, subject: &str, text: impl Into<String>, hint: &str) {
        self.add(Grade::Warning, subject, text).hint = Some(hint.to_owned());
    }

    fn wrong(&mut self, subject: &str, text: impl Into<String>, hint: &str) {
        self.add(Grade::Error, subject, text).hint = Some(hint.to_owned());
    }

    /// What a check has found, each with its place.
    fn problems(&mut self, problems: &Problems) {
        for problem in problems.iter() {
            let grade = match problem.severity {
                Severity::Error => Grade::Error,
                Severity::Warning => Grade::Warning,
            };
            let help = problem.help.as_deref().unwrap_or("Correct it: pgusher check shows the line.");
            self.add(grade, "configuration", problems.line_without_help(problem)).hint =
                Some(help.to_owned());
        }
    }

    /// Whether the revocation lists of a file are still in force; that they cannot be read is said elsewhere.
    fn revocations(&mut self, subject: &str, path: &Path) {
        let Some(end) = tls::revocation_lists(path)
            .ok()
            .and_then(|lists| lists.iter().filter_map(tls::list_expiry).min())
        else {
            return;
        };
        let text = format!("revocation list, in force until {}", humantime::format_rfc3339_seconds(end));
        match end < SystemTime::now() {
            true => self.wrong(
                subject,
                format!("{}: {text}", path.display()),
                "It has expired: certificates of its authority are refused until there is a new one.",
            ),
            false => self.ok(subject, text),
        }
    }

    /// Until when a chain of certificates holds: as long as the first of them to end.
    fn expiry(&mut self, subject: &str, chain: &[CertificateDer<'_>]) {
        let Some(end) = chain.iter().filter_map(tls::expiry).min() else { return };
        let day = humantime::format_rfc3339_seconds(end);
        match end.duration_since(SystemTime::now()) {
            Err(_) => self.wrong(subject, format!("its certificate has expired at {day}"), "Renew it."),
            Ok(left) if left < SOON => {
                self.warn(
                    subject,
                    format!("its certificate expires at {day}"),
                    "Renew it; RELOAD takes it up.",
                );
            }
            Ok(_) => self.ok(subject, format!("its certificate holds until {day}")),
        }
    }
}

/// What of an environment is compared with its base, beside what the two are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Extensions and schemas.
    Schemas,
    /// Relations and their columns, too (`--parity`).
    Relations,
}

/// Looks at everything.
pub(crate) async fn examine(checked: &ValidatedConfig, comparison: Comparison) -> Vec<Finding> {
    let config = checked.config();
    let mut report = Report::default();
    let path = config.path.display();
    report.ok(
        "configuration",
        format!("{path}: {} connections, {} users", config.connections.len(), config.users.len()),
    );
    report.problems(checked.warnings());
    report.problems(&prepare::problems(checked));
    own(config, &mut report);
    let mut facts = BTreeMap::new();
    for connection in config.connections.values() {
        let subject = format!("connection {}", connection.name);
        if let Some(found) =
            server::examine(&config.server, connection, comparison, &mut report, &subject).await
        {
            facts.insert(connection.name.clone(), found);
        }
    }
    server::limits(config, &facts, &mut report);
    labels(config, &facts, &mut report);
    for base in config.connections.values() {
        let environments = base.base.iter().flat_map(|b| &b.environments);
        for environment in environments {
            if let (Some(one), Some(other)) = (facts.get(&base.name), facts.get(&environment.connection)) {
                let subject = format!("environment {} of {}", environment.name, base.name);
                compare::compare(&subject, one, other, &mut report);
            }
        }
    }
    report.0
}

/// Of the process itself: descriptors, files, certificates.
fn own(config: &Config, report: &mut Report) {
    let server = &config.server;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let pools: u64 = config.connections.values().map(|c| u64::from(c.pool_size + c.reserve_pool_size)).sum();
    let needed = u64::from(*server.max_client_conn) + pools + OWN_FILES;
    match limit {
        Some(limit) if limit < needed => report.wrong(
            "open files",
            format!("{limit} are allowed here; max_client_conn and the pools need {needed}"),
            "Raise the limit (LimitNOFILE in a unit, ulimit -n), or lower max_client_conn.",
        ),
        _ => report.ok("open files", format!("enough for {needed}")),
    }
    io(server, report);
    for (subject, file) in [("audit_file", config.audit_file()), ("grants_file", Some(config.grants_file()))]
    {
        let Some(file) = file else { continue };
        match can_write_beside(&file) {
            Ok(()) => report.ok(subject, file.display().to_string()),
            Err(error) => report.wrong(
                subject,
                format!("{}: {error}", file.display()),
                "Its folder must be there, and pgusher's user must be able to write to it.",
            ),
        }
    }
    for user in config.users.values() {
        let verifier = user.password.as_ref().map(|password| Verifier::parse(&password.value()));
        if let Some(Ok(verifier)) = verifier
            && verifier.is_of_empty(user.name.as_str())
        {
            report.wrong(
                &format!("user {}", user.name),
                "its verifier is that of the empty password",
                "Whoever sends no password gets in: make another (pgusher hash-password).",
            );
        }
    }
    if let Some(tls) = &*server.tls {
        if let Some(list) = &*tls.client_crl {
            report.revocations("[server.tls]", &config.beside(list));
        }
        if let Ok(chain) = tls::certificates(&config.beside(&tls.certificate)) {
            report.expiry("[server.tls]", &chain);
        }
    }
}

/// By what sockets will be read and written, tried as a start does.
fn io(server: &Server, report: &mut Report) {
    if !ring::is_wanted(server) {
        return report.ok("io", format!("epoll, threads = {}", ring::threads(server)));
    }
    let threads = ring::threads(server);
    match Relays::start(threads, *server.thread_full) {
        Ok(relays) => {
            relays.stop();
            report.ok("io", format!("io_uring, threads = {threads}"));
        }
        Err(reason) if *server.io == Io::IoUring => {
            report.wrong(
                "io",
                format!("no io_uring: {reason}"),
                "io = \"auto\" takes epoll where there is none.",
            );
        }
        Err(reason) => report.ok("io", format!("epoll, as there is no io_uring: {reason}")),
    }
}

fn can_write_beside(file: &Path) -> std::io::Result<()> {
    let probe = file.with_extension(format!("doctor-{}", std::process::id()));
    std::fs::File::create_new(&probe)?;
    std::fs::remove_file(&probe)?;
    match std::fs::metadata(file) {
        Ok(_) => std::fs::OpenOptions::new().append(true).open(file).map(drop),
        Err(_) => Ok(()),
    }
}

/// Whether a production database is reached by a connection that does not say so, by whatever name of the server.
fn labels(config: &Config, known: &KnownUpstreams, report: &mut Report) {
    let all = || known.iter().filter_map(|(name, facts)| Some((config.connections.get(name)?, facts)));
    for (connection, facts) in all().filter(|(connection, _)| !connection.production) {
        let subject = format!("connection {}", connection.name);
        for (production, there) in all().filter(|(connection, _)| connection.production) {
            if !facts.is_same_server(there) {
                continue;
            }
            let one_role = connection.target.username == production.target.username;
            if connection.target.database == production.target.database {
                report.wrong(
                    &subject,
                    format!("it is the production database of {} under another name", production.name),
                    "Set production = true here too, or correct host, port or database.",
                );
            } else if one_role {
                report.warn(
                    &subject,
                    format!(
                        "it is in one server with the production database of {}, and logs in as the same role",
                        production.name
                    ),
                    "Its users can see production's statements, end its sessions and change settings of its role: \
                     see docs/security.md.",
                );
            }
        }
    }
}

type KnownUpstreams = BTreeMap<policy::names::ConnectionName, UpstreamFacts>;
