//! `SHOW …`: PgBouncer's tables, with its columns first and ours behind them, and then our own.

mod process;
mod routes;
mod sessions;
mod sockets;

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Console;
use super::command::Fact;
use super::table::Kind::{Int, Long, Numeric, Text};
use super::table::{Column, Table, Value, table};
use crate::engine::State;
use crate::pool::{Admission, Pool};
use crate::proxy::Snapshot;
use crate::stats::{COUNTERS, Counter, Totals, sum};
use crate::upstream::CancelTarget;
use policy::config::Host;
use policy::names::ConnectionName;
use policy::route;
pub(crate) use routes::explain_route;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// Every `SHOW` there is, as `SHOW HELP` says it.
pub const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW PEERS|PEER_POOLS\n\
    \tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\
    \tSHOW DNS_HOSTS|DNS_ZONES\n\
    \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW ROUTES|ENVIRONMENTS|SESSIONS|GENERATIONS|TIMES|AUDIT|GRANTS|CONSOLE\n\
    \tEXPLAIN ROUTE FOR <user> ON <db> [AS <environment>]\n\
    \tSET key = arg\n\
    \tPLAN ['<file>']\n\
    \tGRANT ENVIRONMENT <name> [ON <db>] TO <user> FOR '<time>' REASON '<why>'\n\
    \tREVOKE ENVIRONMENT <name> [ON <db>] FROM <user>\n\
    \tRELOAD\n\
    \tROLLBACK CONFIG [TO generation]\n\
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

/// Whether a setting is one that the console has for drivers' sake.
pub(crate) fn is_parameter(name: &str) -> bool {
    PARAMETERS.iter().any(|(known, _)| *known == name)
        || ["application_name", "extra_float_digits"].contains(&name)
}

/// The table of `SHOW what`.
///
/// # Errors
/// `42601`: there is no such table.
pub(crate) fn show(console: &Console, what: &str) -> Result<Table, Refusal> {
    // Only where it is needed: drivers ask for some of these at each login.
    let view = || Overview { console, now: console.sessions.snapshot() };
    Ok(match what {
        "version" => one("version", &format!("pgusher {}", env!("CARGO_PKG_VERSION"))),
        "state" => process::state(console),
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
        "config" => process::config(console),
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
        "audit" => audit(console),
        "grants" => grants(console),
        "console" => table!(one in console.presence.list(), {}, {
            "id": Long = one.id,
            "user": Text = one.user,
            "right": Text = one.right,
            "proof": Text = one.proof,
            "client": Text = one.peer,
            "connected": Text = time(one.since),
        }),
        "transaction isolation level" | "transaction_isolation" => {
            one("transaction_isolation", "read committed")
        }
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

/// Without any: descriptors are passed to no other process, and what PgBouncer shows beside them are passwords.
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

/// What drivers and frameworks ask for when they connect.
pub(crate) fn fact(fact: Fact) -> Table {
    one(
        fact.word(),
        match fact {
            Fact::Version => concat!("PostgreSQL 17.0 (pgusher ", env!("CARGO_PKG_VERSION"), ")"),
            Fact::Schema => "public",
            Fact::Database => "pgusher",
        },
    )
}

fn one(column: &'static str, value: &str) -> Table {
    let mut table = Table::new(&[(column, Text)]);
    table.push(vec![value.into()]);
    table
}

/// Without an audit, no row.
fn audit(console: &Console) -> Table {
    let file = console.current.generation().config.audit_file();
    table!((seen, file) in console.journal.audit.seen().zip(file).into_iter(), {}, {
        "file": Text = file.display().to_string(),
        "state": Text = if seen.failing { "failing" } else { "writing" },
        "lines": Long = seen.written,
        "failures": Long = seen.failures,
        "lost": Long = seen.lost,
        "tampered": Long = seen.tampered,
        "last_line": Long = seen.head.seq,
        "sha256": Text = seen.head.hash,
    })
}

fn grants(console: &Console) -> Table {
    let generation = console.current.generation();
    table!(grant in console.access.all().iter(), {
        let opened = route::opened_by(&generation.config, grant);
    }, {
        "user": Text = grant.user.as_str(),
        "environment": Text = grant.environment.as_str(),
        "database": Text = grant.database.as_ref().map(ConnectionName::as_str),
        "opens": Text = opened.into_iter().map(ConnectionName::as_str).collect::<Vec<_>>().join(", "),
        "since": Text = time(grant.since),
        "until": Text = time(grant.until),
        "by": Text = grant.by.as_str(),
        "reason": Text = grant.reason.as_str(),
    })
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
    console: &'a Console,
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
        table!(pool in &self.pools, {
            let (view, connection) = (pool.view(), pool.connection());
            let (seconds, micros) = split(view.longest_wait);
            let clients = self.sessions_of(pool).count();
            let canceled = pool.servers().iter().filter(|(server, _)| server.is_fenced()).count();
        }, {
            "database": Text = connection.name.as_str(),
            "user": Text = connection.target.username.as_str(),
            "cl_active": Int = clients.saturating_sub(view.waiting),
            "cl_waiting": Int = view.waiting,
            "cl_active_cancel_req": Int = canceled,
            "cl_waiting_cancel_req": Int = 0_u32,
            "sv_active": Int = view.active,
            "sv_active_cancel": Int = 0_u32,
            "sv_being_canceled": Int = canceled,
            "sv_idle": Int = view.idle,
            "sv_used": Int = 0_u32,
            "sv_tested": Int = 0_u32,
            "sv_login": Int = view.dialing,
            "maxwait": Int = seconds,
            "maxwait_us": Int = micros,
            "pool_mode": Text = connection.pool_mode.word(),
            "load_balance_hosts": Text = Value::Null,
            "environment": Text = connection.environment.as_str(),
            "pinned": Int = view.pinned,
        })
    }

    fn databases(&self) -> Table {
        let generation = &self.generation;
        table!(pool in &self.pools, {
            let (view, connection) = (pool.view(), pool.connection());
            let aliases = generation.config.databases.iter().filter(|(name, base)| {
                **base == connection.name && name.as_str() != connection.name.as_str()
            });
            let aliases: Vec<_> = aliases.map(|(name, _)| name.as_str()).collect();
        }, {
            "name": Text = connection.name.as_str(),
            "host": Text = connection.target.host.to_string(),
            "port": Int = connection.target.port,
            "database": Text = connection.target.database.as_str(),
            "force_user": Text = connection.target.username.as_str(),
            "pool_size": Int = connection.pool_size,
            "min_pool_size": Int = connection.min_pool_size,
            "reserve_pool_size": Int = connection.reserve_pool_size,
            "server_lifetime": Int = generation.config.server.server_lifetime.as_secs(),
            "pool_mode": Text = connection.pool_mode.word(),
            "load_balance_hosts": Text = Value::Null,
            "max_connections": Int = connection.pool_size + connection.reserve_pool_size,
            "current_connections": Int = view.active + view.idle,
            "max_client_connections": Int = connection.max_client_connections,
            "current_client_connections": Int = self.sessions_of(pool).count(),
            "paused": Int = view.halted.is_some(),
            "disabled": Int = view.admission != Admission::Open,
            "environment": Text = connection.environment.as_str(),
            "production": Int = connection.production,
            "aliases": Text = aliases.join(", "),
        })
    }

    fn generations(&self) -> Table {
        let sessions = self.by_generation();
        table!(known in self.console.configuration.history(), {}, {
            "generation": Long = known.number,
            "since": Text = time(known.at),
            "state": Text = known.state,
            "sessions": Int = sessions.get(&known.number).copied().unwrap_or(0),
            "connections": Int = known.connections,
            "users": Int = known.users,
            "error": Text = known.error.clone(),
            "by": Text = known.by.as_str(),
        })
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
        table!(user in self.generation.config.users.values(), {
            let own = || self.sessions.iter().filter(|session| *session.identity.user() == user.name);
        }, {
            "name": Text = user.name.as_str(),
            "pool_size": Text = "",
            "reserve_pool_size": Text = "",
            "pool_mode": Text = user.pool_mode.map(policy::config::file::PoolMode::word),
            "max_user_connections": Int = 0_u32,
            "current_connections": Int = own().filter(|session| session.slot.now().0.is_some()).count(),
            "max_user_client_connections": Int = user.max_client_connections,
            "current_client_connections": Int = own().count(),
            "disabled": Int = user.disabled,
            "console": Text = user.console.map(policy::config::file::Console::word),
        })
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
        table!(host in self.hosts(), {}, {
            "hostname": Text = host,
            "ttl": Long = 0_u64,
            "addrs": Text = "",
        })
    }

    /// Where the time goes, for each connection: all in all, and for each transaction.
    fn times(&self) -> Table {
        table!(pool in &self.pools, {
            let connection = pool.connection();
            let totals = pool.stats().totals();
            let of = |counter: Counter| totals[counter as usize];
            let each = |time: Counter, count: Counter| of(time).checked_div(of(count)).unwrap_or(0);
            let seen: Vec<_> = self.sessions_of(pool).map(|session| session.seen()).collect();
            let idle = seen.iter().filter(|seen| seen.state == State::IdleInTransaction).count();
            let transactions = seen.iter().filter_map(|seen| seen.transaction);
        }, {
            "connection": Text = connection.name.as_str(),
            "environment": Text = connection.environment.as_str(),
            "transactions": Long = of(Counter::Transactions),
            "queries": Long = of(Counter::Queries),
            "wait_us": Long = of(Counter::WaitTime),
            "transaction_us": Long = of(Counter::TransactionTime),
            "query_us": Long = of(Counter::QueryTime),
            "client_us": Long = of(Counter::TransactionTime).saturating_sub(of(Counter::QueryTime)),
            "wait_us_each": Long = each(Counter::WaitTime, Counter::Assignments),
            "transaction_us_each": Long = each(Counter::TransactionTime, Counter::Transactions),
            "query_us_each": Long = each(Counter::QueryTime, Counter::Queries),
            "under_way": Int = transactions.clone().count(),
            "idle_in_transaction": Int = idle,
            "longest_transaction_us": Long = transactions.max().map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        })
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
