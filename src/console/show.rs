//! `SHOW …`: PgBouncer's tables, with its columns first and ours behind them, and then our own.

mod process;
mod sessions;
mod sockets;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::table::Kind::{Int, Long, Numeric, Text};
use super::table::{Column, Table, Value};
use crate::pool::Pool;
use crate::proxy::{LiveSession, Proxy, Snapshot};
use crate::stats::{COUNTERS, Counter, Totals, sum};
use crate::upstream::CancelTarget;
use policy::attribute;
use policy::config::Host;
use policy::names::ConnectionName;
use policy::route;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// Every `SHOW` there is, as `SHOW HELP` says it.
pub const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW PEERS|PEER_POOLS\n\
    \tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\
    \tSHOW DNS_HOSTS|DNS_ZONES\n\
    \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW ROUTES|ENVIRONMENTS|SESSIONS|GENERATIONS|TIMES|AUDIT|GRANTS\n\
    \tEXPLAIN ROUTE FOR <user> ON <db> [AS <environment>]\n\
    \tSET key = arg\n\
    \tPLAN ['<file>']\n\
    \tGRANT ENVIRONMENT <name> [ON <db>] TO <user> FOR '<time>' REASON '<why>'\n\
    \tREVOKE ENVIRONMENT <name> [ON <db>] FROM <user>\n\
    \tRELOAD\n\
    \tROLLBACK CONFIG\n\
    \tDRAIN ENVIRONMENT <name>\n\
    \tRESUME ENVIRONMENT <name>\n\
    \tPAUSE [<db>]\n\
    \tRESUME [<db>]\n\
    \tDISABLE <db>\n\
    \tENABLE <db>\n\
    \tRECONNECT [<db>]\n\
    \tKILL [<db>]\n\
    \tKILL_CLIENT <client_id>\n\
    \tSUSPEND\n\
    \tSHUTDOWN\n\
    \tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n\
    \tWAIT_CLOSE [<db>]\n\
    \tWAIT SETTLED ['<time>']";

/// What PostgreSQL's drivers ask of any server at login.
const PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
];

/// How many rows `SHOW ROUTES` has at the most.
const MAX_ROUTES: usize = 250_000;

/// Whether a setting is one that the console has for drivers' sake.
pub(crate) fn is_parameter(name: &str) -> bool {
    PARAMETERS.iter().any(|(known, _)| *known == name)
        || ["application_name", "extra_float_digits"].contains(&name)
}

/// The table of `SHOW what`.
///
/// # Errors
/// `42601`: there is no such table.
pub(crate) fn show(proxy: &Proxy, what: &str) -> Result<Table, Refusal> {
    // Only where it is needed: drivers ask for some of these at each login.
    let view = || Overview { proxy, now: proxy.snapshot() };
    Ok(match what {
        "version" => one("version", &format!("pgusher {}", env!("CARGO_PKG_VERSION"))),
        "state" => process::state(proxy),
        "stats" => view().stats(),
        "stats_totals" => view().stats_totals(),
        "stats_averages" => view().stats_averages(),
        "totals" => view().totals(),
        "pools" => view().pools(),
        "databases" => view().databases(),
        "clients" => view().clients(),
        "servers" => view().servers(),
        "sockets" => view().sockets(),
        "active_sockets" => view().sockets().only(|row| row[4] == Value::from("active")),
        "lists" => view().lists(),
        "users" => view().users(),
        "config" => process::config(proxy),
        "mem" => view().mem(),
        "dns_hosts" => view().dns_hosts(),
        "dns_zones" => Table::new(&[("zonename", Text), ("serial", Long), ("count", Int)]),
        "fds" => Table::new(&FDS),
        "peers" => Table::new(&[("peer_id", Int), ("host", Text), ("port", Int), ("pool_size", Int)]),
        "peer_pools" => Table::new(&[
            ("peer_id", Int),
            ("cl_active_cancel_req", Int),
            ("cl_waiting_cancel_req", Int),
            ("sv_active_cancel", Int),
            ("sv_login", Int),
        ]),
        "routes" => view().routes()?,
        "environments" => view().environments(),
        "sessions" => view().sessions(),
        "generations" => view().generations(),
        "times" => view().times(),
        "audit" => audit(proxy),
        "grants" => grants(proxy),
        "transaction isolation level" => one("transaction_isolation", "read committed"),
        _ => match PARAMETERS.iter().find(|(name, _)| *name == what) {
            Some((name, value)) => one(name, value),
            None => {
                let message = format!("unsupported SHOW \"{}\"", Shown::name(what));
                let refusal = Refusal::new(Fault::Client, SqlState::SYNTAX_ERROR, message);
                return Err(refusal.hint("SHOW HELP lists the commands."));
            }
        },
    })
}

/// Without any: descriptors are handed over to nobody, and what PgBouncer shows beside them are passwords.
const FDS: [Column; 15] = [
    ("fd", Int),
    ("task", Text),
    ("user", Text),
    ("database", Text),
    ("addr", Text),
    ("port", Int),
    ("cancel", Long),
    ("link", Int),
    ("client_encoding", Text),
    ("std_strings", Text),
    ("datestyle", Text),
    ("timezone", Text),
    ("password", Text),
    ("scram_client_key", Text),
    ("scram_server_key", Text),
];

impl Table {
    fn only(mut self, wanted: impl Fn(&[Value]) -> bool) -> Self {
        self.rows.retain(|row| wanted(row));
        self
    }
}

fn one(column: &'static str, value: &str) -> Table {
    let mut table = Table::new(&[(column, Text)]);
    table.push(vec![value.into()]);
    table
}

/// Without an audit, no row.
fn audit(proxy: &Proxy) -> Table {
    let mut table = Table::new(&[
        ("file", Text),
        ("state", Text),
        ("lines", Long),
        ("failures", Long),
        ("lost", Long),
        ("tampered", Long),
        ("last_line", Long),
        ("sha256", Text),
    ]);
    if let (Some(seen), Some(file)) = (proxy.audit.seen(), proxy.generation().config.audit_file()) {
        let state = if seen.failing { "failing" } else { "writing" };
        table.push(vec![
            file.display().to_string().into(),
            state.into(),
            seen.written.into(),
            seen.failures.into(),
            seen.lost.into(),
            seen.tampered.into(),
            seen.head.seq.into(),
            seen.head.hash.into(),
        ]);
    }
    table
}

fn grants(proxy: &Proxy) -> Table {
    let mut table = Table::new(&[
        ("user", Text),
        ("environment", Text),
        ("database", Text),
        ("opens", Text),
        ("since", Text),
        ("until", Text),
        ("by", Text),
        ("reason", Text),
    ]);
    let generation = proxy.generation();
    for grant in proxy.grants.all().iter() {
        let opened = route::opened_by(&generation.config, grant);
        table.push(vec![
            grant.user.as_str().into(),
            grant.environment.as_str().into(),
            grant.database.as_ref().map(ConnectionName::as_str).into(),
            opened.into_iter().map(ConnectionName::as_str).collect::<Vec<_>>().join(", ").into(),
            time(grant.since).into(),
            time(grant.until).into(),
            grant.by.as_str().into(),
            grant.reason.as_str().into(),
        ]);
    }
    table
}

/// `2026-11-25 10:00:00 UTC`, as PgBouncer writes it.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
}

/// Whole seconds and the microseconds beyond them.
fn split(time: Duration) -> (u64, u32) {
    (time.as_secs(), time.subsec_micros())
}

/// All that is shown is of one moment.
struct Overview<'a> {
    proxy: &'a Proxy,
    now: Snapshot,
}

impl Deref for Overview<'_> {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.now
    }
}

impl Overview<'_> {
    fn figures(&self, prefixes: &[&str], each: impl Fn(&Pool) -> Vec<Totals>) -> Table {
        let mut columns = vec![("database", Text)];
        for prefix in prefixes {
            columns.extend(names(prefix).map(|name| (name, Numeric)));
        }
        let mut table = Table::new(&columns);
        for pool in &self.pools {
            let mut row = vec![Value::from(pool.connection().name.as_str())];
            row.extend(each(pool).into_iter().flatten().map(Value::from));
            table.push(row);
        }
        table
    }

    /// Behind PgBouncer's columns, what it called the queries up to 1.7: exporters of that age still ask for it.
    fn stats(&self) -> Table {
        let mut table =
            self.figures(&["total", "avg"], |pool| vec![pool.stats().totals(), pool.stats().averages()]);
        table.columns.push(("total_requests", Numeric));
        for row in &mut table.rows {
            let queries = row[1 + Counter::Queries as usize].clone();
            row.push(queries);
        }
        table
    }

    fn stats_totals(&self) -> Table {
        self.figures(&[""], |pool| vec![pool.stats().totals()])
    }

    fn stats_averages(&self) -> Table {
        self.figures(&["averages"], |pool| vec![pool.stats().averages()])
    }

    fn totals(&self) -> Table {
        let mut table = Table::new(&[("name", Text), ("value", Numeric)]);
        let all = |each: fn(&Pool) -> Totals| {
            self.pools.iter().fold([0; COUNTERS], |all, pool| sum(&all, &each(pool)))
        };
        let (totals, averages) = (all(|pool| pool.stats().totals()), all(|pool| pool.stats().averages()));
        for (prefix, figures) in [("total", totals), ("avg", averages)] {
            for (name, value) in OF_TOTALS.iter().zip(figures) {
                table.push(vec![format!("{prefix}_{name}").into(), value.into()]);
            }
        }
        table
    }

    fn pools(&self) -> Table {
        let mut table = Table::new(&[
            ("database", Text),
            ("user", Text),
            ("cl_active", Int),
            ("cl_waiting", Int),
            ("cl_active_cancel_req", Int),
            ("cl_waiting_cancel_req", Int),
            ("sv_active", Int),
            ("sv_active_cancel", Int),
            ("sv_being_canceled", Int),
            ("sv_idle", Int),
            ("sv_used", Int),
            ("sv_tested", Int),
            ("sv_login", Int),
            ("maxwait", Int),
            ("maxwait_us", Int),
            ("pool_mode", Text),
            ("load_balance_hosts", Text),
            ("environment", Text),
            ("pinned", Int),
        ]);
        for pool in &self.pools {
            let (view, connection) = (pool.view(), pool.connection());
            let (seconds, micros) = split(view.longest_wait);
            let clients = self.sessions_of(pool).count();
            let canceled = pool.servers().iter().filter(|(server, _)| server.is_fenced()).count();
            table.push(vec![
                connection.name.as_str().into(),
                connection.target.username.as_str().into(),
                clients.saturating_sub(view.waiting).into(),
                view.waiting.into(),
                canceled.into(),
                0_u32.into(),
                view.active.into(),
                0_u32.into(),
                canceled.into(),
                view.idle.into(),
                0_u32.into(),
                0_u32.into(),
                view.dialing.into(),
                seconds.into(),
                micros.into(),
                connection.pool_mode.word().into(),
                Value::Null,
                connection.environment.as_str().into(),
                view.pinned.into(),
            ]);
        }
        table
    }

    fn databases(&self) -> Table {
        let mut table = Table::new(&[
            ("name", Text),
            ("host", Text),
            ("port", Int),
            ("database", Text),
            ("force_user", Text),
            ("pool_size", Int),
            ("min_pool_size", Int),
            ("reserve_pool_size", Int),
            ("server_lifetime", Int),
            ("pool_mode", Text),
            ("load_balance_hosts", Text),
            ("max_connections", Int),
            ("current_connections", Int),
            ("max_client_connections", Int),
            ("current_client_connections", Int),
            ("paused", Int),
            ("disabled", Int),
            ("environment", Text),
            ("production", Int),
            ("aliases", Text),
        ]);
        let generation = &self.generation;
        for pool in &self.pools {
            let (view, connection) = (pool.view(), pool.connection());
            let aliases = generation.config.databases.iter().filter(|(name, base)| {
                **base == connection.name && name.as_str() != connection.name.as_str()
            });
            let aliases: Vec<_> = aliases.map(|(name, _)| name.as_str()).collect();
            table.push(vec![
                connection.name.as_str().into(),
                connection.target.host.to_string().into(),
                connection.target.port.into(),
                connection.target.database.as_str().into(),
                connection.target.username.as_str().into(),
                connection.pool_size.into(),
                connection.min_pool_size.into(),
                connection.reserve_pool_size.into(),
                generation.config.server.server_lifetime.as_secs().into(),
                connection.pool_mode.word().into(),
                Value::Null,
                (connection.pool_size + connection.reserve_pool_size).into(),
                (view.active + view.idle).into(),
                connection.max_client_connections.into(),
                self.sessions_of(pool).count().into(),
                view.halted.is_some().into(),
                view.disabled.into(),
                connection.environment.as_str().into(),
                connection.production.into(),
                aliases.join(", ").into(),
            ]);
        }
        table
    }

    fn generations(&self) -> Table {
        let mut table = Table::new(&[
            ("generation", Long),
            ("since", Text),
            ("state", Text),
            ("sessions", Int),
            ("connections", Int),
            ("users", Int),
            ("error", Text),
            ("by", Text),
        ]);
        let sessions = self.by_generation();
        for known in self.proxy.history() {
            table.push(vec![
                known.number.into(),
                time(known.at).into(),
                known.state.into(),
                sessions.get(&known.number).copied().unwrap_or(0).into(),
                known.connections.into(),
                known.users.into(),
                known.error.clone().into(),
                known.by.as_str().into(),
            ]);
        }
        table
    }

    fn lists(&self) -> Table {
        let mut table = Table::new(&[("list", Text), ("items", Int)]);
        let generation = &self.generation;
        let servers: usize = self.pools.iter().map(|pool| pool.servers().len()).sum();
        for (name, items) in [
            ("databases", generation.config.connections.len()),
            ("users", generation.config.users.len()),
            ("peers", 0),
            ("pools", self.pools.len()),
            ("peer_pools", 0),
            ("free_clients", 0),
            ("used_clients", self.sessions.len()),
            ("login_clients", 0),
            ("free_servers", 0),
            ("used_servers", servers),
            ("dns_names", self.hosts().len()),
            ("dns_zones", 0),
            ("dns_queries", 0),
            ("dns_pending", 0),
        ] {
            table.push(vec![name.into(), items.into()]);
        }
        table
    }

    fn users(&self) -> Table {
        let mut table = Table::new(&[
            ("name", Text),
            ("pool_size", Text),
            ("reserve_pool_size", Text),
            ("pool_mode", Text),
            ("max_user_connections", Int),
            ("current_connections", Int),
            ("max_user_client_connections", Int),
            ("current_client_connections", Int),
            ("disabled", Int),
            ("console", Text),
        ]);
        for user in self.generation.config.users.values() {
            let own = || self.sessions.iter().filter(|session| *session.identity.user() == user.name);
            table.push(vec![
                user.name.as_str().into(),
                "".into(),
                "".into(),
                user.pool_mode.map(policy::config::file::PoolMode::word).into(),
                0_u32.into(),
                own().filter(|session| session.slot.now().0.is_some()).count().into(),
                user.max_client_connections.into(),
                own().count().into(),
                user.disabled.into(),
                user.console.map(policy::config::file::Console::word).into(),
            ]);
        }
        table
    }

    fn mem(&self) -> Table {
        let columns = [("name", Text), ("size", Int), ("used", Int), ("free", Int), ("memtotal", Int)];
        let mut table = Table::new(&columns);
        let servers: usize = self.pools.iter().map(|pool| pool.servers().len()).sum();
        for (name, size, used) in [
            ("client_cache", size_of::<crate::engine::Engine>(), self.sessions.len()),
            ("server_cache", size_of::<crate::pool::Pooled>(), servers),
        ] {
            table.push(vec![name.into(), size.into(), used.into(), 0_u32.into(), (size * used).into()]);
        }
        table
    }

    fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<_> = self
            .pools
            .iter()
            .filter_map(|pool| match &pool.connection().target.host {
                Host::Name(name) if name.parse::<std::net::IpAddr>().is_err() => Some(name.clone()),
                _ => None,
            })
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// Names are asked for at each dial and not kept: their time to live is over at once.
    fn dns_hosts(&self) -> Table {
        let mut table = Table::new(&[("hostname", Text), ("ttl", Long), ("addrs", Text)]);
        for host in self.hosts() {
            table.push(vec![host.into(), 0_u64.into(), "".into()]);
        }
        table
    }

    /// Users times databases.
    fn routes(&self) -> Result<Table, Refusal> {
        let mut table = Table::new(&[
            ("user", Text),
            ("database", Text),
            ("environment", Text),
            ("connection", Text),
            ("production", Int),
            ("sessions", Int),
            ("elsewhere", Int),
            ("reason", Text),
            ("refused", Text),
            ("granted", Text),
        ]);
        let config = &self.generation.config;
        let bases: Vec<_> =
            config.databases.iter().filter(|(name, base)| name.as_str() == base.as_str()).collect();
        if config.users.len().saturating_mul(bases.len()) > MAX_ROUTES {
            let message =
                format!("{} users times {} databases are too many rows", config.users.len(), bases.len());
            return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message)
                .hint("pgusher resolve says where one user gets to."));
        }
        let mut sessions: HashMap<_, Vec<_>> = HashMap::new();
        for session in &self.sessions {
            let key = (session.identity.user(), session.place.route.base());
            sessions.entry(key).or_default().push(session.place.route.connection());
        }
        for user in config.users.values() {
            let attributes =
                attribute::explain(config, user.name.as_str()).with(self.proxy.grants.of(user.name.as_str()));
            for (database, base) in &bases {
                let granted: Vec<_> = attributes
                    .granted()
                    .iter()
                    .filter(|grant| grant.is_on(base))
                    .map(|grant| {
                        format!("{} until {} ({})", grant.environment, time(grant.until), grant.reason)
                    })
                    .collect();
                let route = route::resolve(config, &attributes, database.as_str(), None);
                let own = sessions.get(&(&user.name, *base)).map_or(&[][..], Vec::as_slice);
                let (is, reason, refused) = match &route {
                    _ if user.disabled => (None, Value::Null, "the user is disabled".to_owned()),
                    Ok(route) => {
                        let reasons: Vec<_> = route.reasons().iter().map(ToString::to_string).collect();
                        (Some(route), Value::from(reasons.join("; ")), String::new())
                    }
                    Err(refusal) => (None, Value::Null, refusal.to_string()),
                };
                let there = own.iter().filter(|at| is.is_some_and(|is| **at == is.connection())).count();
                let production =
                    is.and_then(|is| config.connections.get(is.connection())).is_some_and(|c| c.production);
                table.push(vec![
                    user.name.as_str().into(),
                    database.as_str().into(),
                    is.map(|is| is.environment().as_str()).into(),
                    is.map(|is| is.connection().as_str()).into(),
                    production.into(),
                    there.into(),
                    (own.len() - there).into(),
                    reason,
                    Some(refused).filter(|refused| !refused.is_empty()).into(),
                    Some(granted.join(", ")).filter(|granted| !granted.is_empty()).into(),
                ]);
            }
        }
        Ok(table)
    }

    fn environments(&self) -> Table {
        let mut table = Table::new(&[
            ("base", Text),
            ("environment", Text),
            ("connection", Text),
            ("production", Int),
            ("health", Text),
            ("host", Text),
            ("port", Int),
            ("database", Text),
            ("sessions", Int),
            ("waiting", Int),
            ("active", Int),
            ("idle", Int),
            ("pinned", Int),
            ("pool_size", Int),
            ("values", Text),
            ("generation", Long),
            ("isolation", Text),
            ("isolation_reason", Text),
        ]);
        let generation = &self.generation;
        for connection in generation.config.connections.values() {
            let Some(base) = &connection.base else { continue };
            let own = (&connection.name, &connection.environment, &base.default_values);
            let others = base.environments.iter().map(|e| (&e.connection, &e.name, &e.values));
            for (name, environment, values) in std::iter::once(own).chain(others) {
                let Some(pool) = generation.pools.get(name) else { continue };
                let (view, to) = (pool.view(), pool.connection());
                let (isolation, reason) = pool.isolation();
                let here = |s: &&Arc<LiveSession>| s.place.route.base() == &connection.name;
                table.push(vec![
                    connection.name.as_str().into(),
                    environment.as_str().into(),
                    name.as_str().into(),
                    to.production.into(),
                    view.health().into(),
                    to.target.host.to_string().into(),
                    to.target.port.into(),
                    to.target.database.as_str().into(),
                    self.sessions_of(pool).filter(here).count().into(),
                    view.waiting.into(),
                    view.active.into(),
                    view.idle.into(),
                    view.pinned.into(),
                    to.pool_size.into(),
                    values.join(", ").into(),
                    pool.generation().into(),
                    isolation.word().into(),
                    reason.unwrap_or_default().into(),
                ]);
            }
        }
        table
    }

    /// Where the time goes, for each connection: all in all, and for each transaction.
    fn times(&self) -> Table {
        let mut table = Table::new(&[
            ("connection", Text),
            ("environment", Text),
            ("transactions", Long),
            ("queries", Long),
            ("wait_us", Long),
            ("transaction_us", Long),
            ("query_us", Long),
            ("client_us", Long),
            ("wait_us_each", Long),
            ("transaction_us_each", Long),
            ("query_us_each", Long),
        ]);
        for pool in &self.pools {
            let connection = pool.connection();
            let totals = pool.stats().totals();
            let of = |counter: Counter| totals[counter as usize];
            let each = |time: Counter, count: Counter| of(time).checked_div(of(count)).unwrap_or(0);
            table.push(vec![
                connection.name.as_str().into(),
                connection.environment.as_str().into(),
                of(Counter::Transactions).into(),
                of(Counter::Queries).into(),
                of(Counter::WaitTime).into(),
                of(Counter::TransactionTime).into(),
                of(Counter::QueryTime).into(),
                of(Counter::TransactionTime).saturating_sub(of(Counter::QueryTime)).into(),
                each(Counter::WaitTime, Counter::Assignments).into(),
                each(Counter::TransactionTime, Counter::Transactions).into(),
                each(Counter::QueryTime, Counter::Queries).into(),
            ]);
        }
        table
    }
}

/// What PgBouncer calls the figures, in their order.
fn names(prefix: &str) -> [&'static str; COUNTERS] {
    match prefix {
        "total" => [
            "total_server_assignment_count",
            "total_xact_count",
            "total_query_count",
            "total_received",
            "total_sent",
            "total_xact_time",
            "total_query_time",
            "total_wait_time",
            "total_client_parse_count",
            "total_server_parse_count",
            "total_bind_count",
            "total_client_login_count",
        ],
        "avg" => [
            "avg_server_assignment_count",
            "avg_xact_count",
            "avg_query_count",
            "avg_recv",
            "avg_sent",
            "avg_xact_time",
            "avg_query_time",
            "avg_wait_time",
            "avg_client_parse_count",
            "avg_server_parse_count",
            "avg_bind_count",
            "avg_client_login_count",
        ],
        "averages" => [
            "server_assignment_count",
            "xact_count",
            "query_count",
            "bytes_received",
            "bytes_sent",
            "xact_time",
            "query_time",
            "wait_time",
            "avg_client_parse_count",
            "avg_server_parse_count",
            "avg_bind_count",
            "avg_client_login_count",
        ],
        _ => [
            "server_assignment_count",
            "xact_count",
            "query_count",
            "bytes_received",
            "bytes_sent",
            "xact_time",
            "query_time",
            "wait_time",
            "client_parse_count",
            "server_parse_count",
            "bind_count",
            "client_login_count",
        ],
    }
}

/// What `SHOW TOTALS` calls them.
const OF_TOTALS: [&str; COUNTERS] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
    "client_login_count",
];

/// What a session does, by the connection that it is lent, and since when it waits for one.
pub(crate) fn state_of(lent: Option<&Arc<CancelTarget>>, waits: Option<Instant>) -> &'static str {
    match (lent, waits) {
        (_, Some(_)) => "waiting",
        (Some(_), None) => "active",
        (None, None) => "idle",
    }
}

/// `EXPLAIN ROUTE`: the steps of the decision, one a line, as PostgreSQL shows a plan.
///
/// # Errors
/// The refusal that a login would get.
pub(crate) fn explain_route(
    proxy: &Proxy,
    user: &str,
    database: &str,
    environment: Option<&str>,
) -> Result<Table, Refusal> {
    let generation = proxy.generation();
    let config = &generation.config;
    let Some(known) = config.users.get(user) else {
        let message = format!("there is no user \"{}\"", Shown::name(user));
        return Err(Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message));
    };
    let route = route::resolve(
        config,
        &attribute::explain(config, user).with(proxy.grants.of(user)),
        database,
        environment,
    )?;
    let mut table = Table::new(&[("ROUTE", Text)]);
    let mut line = |text: String| table.push(vec![text.into()]);
    line(format!("Environment {} (connection {})", route.environment(), route.connection()));
    route.reasons().iter().for_each(|reason| line(format!("  ->  {reason}")));
    route.warnings().iter().for_each(|warning| line(format!("  Warning: {warning}")));
    if known.disabled {
        line("  Warning: the user is disabled, and may not log in".into());
    }
    if let Some(connection) = config.connections.get(route.connection()) {
        let target = &connection.target;
        line(format!(
            "  To: {}:{}, database {}, as {}{}",
            target.host,
            target.port,
            target.database,
            target.username,
            if connection.production { " (production)" } else { "" }
        ));
    }
    line(format!("  Generation: {}", generation.number));
    Ok(table)
}
