//! One upstream: whether it is reached and logged in to, what it is, and whether it holds our pools.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Comparison, KnownUpstreams, Report};
use crate::pool::prove_resettable;
use crate::stream::Stream;
use crate::upstream::{Allowance, Dialer, UpstreamError, rows};
use policy::config::file::{SslNegotiation, UpstreamMethod};
use policy::config::{Config, Connection, Host, Server};
use wire::startup::Settings;

/// The longest answer to one question, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// The first version in which the catalog says what functions do (`pg_proc.prokind`).
const OLDEST: u32 = 11;
/// How long it may take to answer what it is.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it is.
const ABOUT: &str = "SELECT pg_catalog.current_setting('server_version'), \
    pg_catalog.current_setting('server_version_num')::int / 10000, pg_catalog.pg_encoding_to_char(d.encoding), \
    d.datcollate, pg_catalog.current_setting('TimeZone'), pg_catalog.pg_is_in_recovery(), \
    pg_catalog.current_setting('max_connections')::int - \
    pg_catalog.current_setting('superuser_reserved_connections')::int - \
    coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int, \
    d.datconnlimit, r.rolconnlimit, r.rolsuper, \
    (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid IS NOT NULL AND a.usename <> current_user), \
    pg_catalog.pg_postmaster_start_time(), r.rolreplication \
    FROM pg_catalog.pg_database d, pg_catalog.pg_roles r \
    WHERE d.datname = pg_catalog.current_database() AND r.rolname = current_user";
const IDENTIFIER: &str = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
const EXTENSIONS: &str = "SELECT extname, extversion FROM pg_catalog.pg_extension";
const SCHEMAS: &str = "SELECT nspname, '' FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'";
/// Of the search path that the session was begun with.
const MISSING: &str = "SELECT name FROM pg_catalog.regexp_split_to_table(pg_catalog.current_setting('search_path'), ', *') name \
    WHERE name <> '\"$user\"' AND pg_catalog.to_regnamespace(name) IS NULL";
const RELATIONS: &str = "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), \
    pg_catalog.string_agg(a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attname) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
    WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
    GROUP BY 1";

/// Names, each with what belongs to it.
pub(super) type Names = BTreeMap<String, String>;

/// What was learned of an upstream.
#[derive(Debug)]
pub(super) struct UpstreamFacts {
    pub version: String,
    pub major: u32,
    pub encoding: String,
    pub collation: String,
    pub time_zone: String,
    pub is_standby: bool,
    /// For those who are no superusers.
    max_connections: i64,
    database_limit: i64,
    role_limit: i64,
    others: i64,
    /// Of the cluster: two databases with the same one are in one server, or in copies of it.
    pub identifier: Option<String>,
    /// Of this very server.
    pub started: String,
    pub database: String,
    pub extensions: Names,
    pub schemas: Names,
    rights: Rights,
    /// Of `include_schemas`.
    missing_schemas: Vec<String>,
    /// With their columns; only if they were asked for.
    pub relations: Option<Names>,
}

/// What the role may that breaks out of what is promised to users.
#[derive(Debug, Clone, Copy)]
struct Rights {
    superuser: bool,
    replication: bool,
}

impl UpstreamFacts {
    /// Whether it is one server with another, by whatever names.
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        self.identifier.is_some() && self.identifier == other.identifier && self.started == other.started
    }
}

/// Logs in, and asks; `None` if that was not possible.
pub(super) async fn examine(
    server: &Server,
    connection: &Arc<Connection>,
    comparison: Comparison,
    report: &mut Report,
    subject: &str,
) -> Option<UpstreamFacts> {
    security(connection, report, subject);
    if let Some(list) = &connection.tls.revoked {
        report.revocations(subject, list);
    }
    let began = Instant::now();
    // Where it cannot be made, `prepare` has said why.
    let dialer = Dialer::of(server, connection).ok()?;
    let mut backend = match dialer.dial(&Settings::default()).await {
        Ok(backend) => backend,
        Err(error) => {
            report.wrong(subject, error.to_string(), hint(&error, connection).as_ref());
            return None;
        }
    };
    let took = began.elapsed().as_millis();
    let encryption = backend.stream.tls().map_or("no TLS", |tls| tls.word());
    report.expiry(subject, backend.stream.peer_certificates());
    let asked = timeout(PATIENCE, ask(&mut backend.stream, connection, comparison)).await;
    match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(facts) => {
            let (target, standby) = (&connection.target, if facts.is_standby { ", a standby" } else { "" });
            report.ok(
                subject,
                format!(
                    "{}:{}: PostgreSQL {}{standby}, logged in as {} in {took} ms, {encryption}",
                    target.host, target.port, facts.version, target.username
                ),
            );
            if facts.major < OLDEST {
                report.warn(
                    subject,
                    format!(
                        "PostgreSQL {} is not supported: what functions leave behind is not found",
                        facts.major
                    ),
                    "Use PostgreSQL 11 or later.",
                );
            }
            rights(facts.rights, &target.username, report, subject);
            if let Ok(Err(error)) = timeout(PATIENCE, prove_resettable(&mut backend)).await {
                report.warn(
                    subject,
                    format!("its connections cannot be reset between users: {error}"),
                    "Each serves one user until it is closed (isolation \"strict\"). Connect to the server itself.",
                );
            }
            for schema in &facts.missing_schemas {
                report.wrong(
                    subject,
                    format!("include_schemas names the schema {schema}, which is not there"),
                    "PostgreSQL passes over it: clients would find other relations, or none.",
                );
            }
            Some(facts)
        }
        Err(error) => {
            report.wrong(subject, format!("what it is cannot be asked: {error}"), "See the server's log.");
            None
        }
    }
}

fn rights(rights: Rights, role: &str, report: &mut Report, subject: &str) {
    if rights.superuser {
        let text = format!(
            "connects as superuser \"{role}\": every client has superuser rights, and users are not isolated"
        );
        report.warn(subject, text, "Log in as a role that may do what clients may do (docs/security.md).");
    } else if rights.replication {
        let text = format!("{role} has REPLICATION: clients may make and drop replication slots");
        report.warn(
            subject,
            text,
            "ALTER ROLE … NOREPLICATION, or log in as another role (docs/security.md).",
        );
    }
}

fn security(connection: &Connection, report: &mut Report, subject: &str) {
    let Host::Name(host) = &connection.target.host else { return };
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let mode = connection.tls.mode;
    if !is_here && !connection.tls.verifies() {
        report.warn(
            subject,
            format!("sslmode = \"{}\" does not find out whether {host} is who it says it is", mode.word()),
            "Set sslmode = \"verify-full\", and sslrootcert where its authority is not the system's.",
        );
    }
    let gives = |method| connection.methods.contains(&method);
    if !is_here
        && !connection.tls.verifies()
        && (gives(UpstreamMethod::Md5) || gives(UpstreamMethod::Password))
    {
        report.warn(
            subject,
            format!("require_auth lets whoever answers at {host} have the password"),
            "Let the server ask for scram-sha-256 and leave require_auth out, or set sslmode = \"verify-full\".",
        );
    }
}

fn hint(error: &UpstreamError, connection: &Connection) -> Cow<'static, str> {
    let direct = connection.tls.negotiation == SslNegotiation::Direct;
    let hint = match error {
        UpstreamError::Method { hint, .. } => return format!("To mend that, {hint}.").into(),
        UpstreamError::Resolve(..) => "Check `host`, and the name server of this machine.",
        UpstreamError::Connect(..) | UpstreamError::Timeout(_) => {
            "Check `host` and `port`, whether the server runs and listens there, and firewalls."
        }
        UpstreamError::NoTls(_) => "Switch `ssl` on in the server, or set a weaker sslmode.",
        UpstreamError::Tls(..) if direct => {
            "Check sslrootcert and the name in the certificate. Direct TLS (sslnegotiation) needs PostgreSQL 17 or later."
        }
        UpstreamError::Tls(..) | UpstreamError::Certificate(_) => {
            "Check sslrootcert, and the name in the certificate."
        }
        UpstreamError::Refused { .. } => {
            "Check `username`, `password`, `database`, and pg_hba.conf of the server."
        }
        UpstreamError::Auth(_) => {
            "Check `password`, and whether the server offers what channel_binding asks for."
        }
        UpstreamError::Panicked => "This is a fault of pgusher: its log has more.",
        UpstreamError::Protocol(_) | UpstreamError::Io(_) => "Is that a PostgreSQL server? See its log.",
    };
    hint.into()
}

async fn ask(
    stream: &mut Stream,
    connection: &Connection,
    comparison: Comparison,
) -> io::Result<UpstreamFacts> {
    let about = first(stream, ABOUT).await?;
    let about = about.ok_or_else(|| io::Error::other("no row about the database"))?;
    let number = |i: usize| about[i].parse().unwrap_or(0);
    Ok(UpstreamFacts {
        version: about[0].clone(),
        major: about[1].parse().unwrap_or(0),
        encoding: about[2].clone(),
        collation: about[3].clone(),
        time_zone: about[4].clone(),
        is_standby: about[5] == "t",
        max_connections: number(6),
        database_limit: number(7),
        role_limit: number(8),
        others: number(10),
        started: about[11].clone(),
        // A role may not be allowed to ask.
        identifier: first(stream, IDENTIFIER).await.ok().flatten().map(|row| row[0].clone()),
        database: connection.target.database.clone(),
        extensions: names(stream, EXTENSIONS).await?,
        schemas: names(stream, SCHEMAS).await?,
        missing_schemas: match connection.search_path {
            Some(_) => all(stream, MISSING).await?.into_iter().flatten().collect(),
            None => Vec::new(),
        },
        relations: match comparison {
            Comparison::Schemas => None,
            Comparison::Relations => Some(names(stream, RELATIONS).await?),
        },
        rights: Rights { superuser: about[9] == "t", replication: about[12] == "t" },
    })
}

async fn all(stream: &mut Stream, sql: &str) -> io::Result<Vec<Vec<String>>> {
    let mut found = Vec::new();
    let text = |column: &Option<&[u8]>| String::from_utf8_lossy(column.unwrap_or_default()).into_owned();
    rows(stream, sql, &mut Allowance::bytes(MAX_ANSWER), |row| {
        found.push(row.iter().map(text).collect());
        Some(())
    })
    .await?;
    Ok(found)
}

async fn first(stream: &mut Stream, sql: &str) -> io::Result<Option<Vec<String>>> {
    Ok(all(stream, sql).await?.into_iter().next())
}

async fn names(stream: &mut Stream, sql: &str) -> io::Result<Names> {
    let pair = |mut row: Vec<String>| {
        let second = row.pop()?;
        Some((row.pop()?, second))
    };
    Ok(all(stream, sql).await?.into_iter().filter_map(pair).collect())
}

/// Whether servers, databases and roles allow as many connections as the pools may open.
pub(super) fn limits(config: &Config, known: &KnownUpstreams, report: &mut Report) {
    let mut servers: BTreeMap<(String, u16), Vec<(&Connection, &UpstreamFacts)>> = BTreeMap::new();
    for (name, facts) in known {
        let Some(connection) = config.connections.get(name) else { continue };
        let place = (connection.target.host.to_string(), connection.target.port);
        servers.entry(place).or_default().push((connection, facts));
        let pool = i64::from(connection.pool_size + connection.reserve_pool_size);
        for (limit, what) in [(facts.database_limit, "database"), (facts.role_limit, "role")] {
            if (0..pool).contains(&limit) {
                report.wrong(
                    &format!("connection {name}"),
                    format!("its {what} allows {limit} connections, and its pool may open {pool}"),
                    "Lower pool_size, or raise CONNECTION LIMIT: otherwise clients will be told 53300.",
                );
            }
        }
    }
    let most = i64::from(*config.server.max_host_connections);
    for ((host, port), connections) in servers {
        let sum: i64 = connections.iter().map(|(c, _)| i64::from(c.pool_size + c.reserve_pool_size)).sum();
        let need = if most > 0 { sum.min(most) } else { sum };
        let allowed = connections.iter().map(|(_, facts)| facts.max_connections).min().unwrap_or(0);
        let others = connections.iter().map(|(_, facts)| facts.others).max().unwrap_or(0);
        let subject = format!("server {host}:{port}");
        let text = format!(
            "it allows {allowed} connections, our pools may open {need}, and others have {others} open now"
        );
        let hint = "Lower pool_size or max_host_connections, or raise max_connections: otherwise clients will be told 53300.";
        match () {
            () if need > allowed => report.wrong(&subject, text, hint),
            () if need + others > allowed => report.warn(&subject, text, hint),
            () => report.ok(&subject, text),
        }
    }
}
