//! What a configuration would change, before it does: whose route, which sessions, which pools. Pure: the command line
//! and the console ask the same.

use std::collections::BTreeSet;
use std::fmt;

use secrecy::ExposeSecret;

use crate::attribute;
use crate::config::manual::Applies;
use crate::config::{Config, Connection, OnMove, Target, file};
use crate::grant::Grant;
use crate::names::{ConnectionName, UserName};
use crate::route::{self, Reason};
use crate::secret::Secret;
use wire::error::SqlState;

/// How many changes of routes a plan keeps of each kind: there may be as many as users times databases.
const MAX_ROUTES: usize = 5000;
/// How many ordinary lines a summary has, how many there are in one event of the audit, and how long each is, in characters.
const MAX_SUMMARY: usize = 200;
const MAX_EVENT: usize = 200;
const MAX_LINE: usize = 500;

/// Where a user gets to by a database name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// There is no such user.
    NoUser,
    /// The user may not log in.
    Disabled,
    /// Refused, with this SQLSTATE.
    Refused(SqlState),
    /// To a connection.
    Goes {
        /// What it is called there.
        environment: String,
        /// Which.
        connection: ConnectionName,
        /// The database that this is.
        target: Target,
        /// It is a production database, by whatever name, before or after the change.
        production: bool,
        /// Only because nothing of the user's matched.
        falls_back: bool,
    },
}

impl Destination {
    fn of(config: &Config, production: &Places, user: &UserName, database: &str) -> Self {
        Self::with(config, production, user, database, None)
    }

    /// By asking for what is granted, if that is said.
    fn with(
        config: &Config,
        production: &Places,
        user: &UserName,
        database: &str,
        grant: Option<&Grant>,
    ) -> Self {
        match config.users.get(user) {
            None => return Self::NoUser,
            Some(user) if user.disabled => return Self::Disabled,
            Some(_) => {}
        }
        let granted = grant.cloned().into_iter().collect();
        let attributes = attribute::explain(config, user.as_str()).with(granted);
        let request = grant.map(|grant| grant.environment.as_str());
        let route = match route::resolve(config, &attributes, database, request) {
            Ok(route) => route,
            Err(refusal) => return Self::Refused(refusal.sqlstate),
        };
        let Some(connection) = config.connections.get(route.connection()) else {
            return Self::Refused(SqlState::INTERNAL);
        };
        Self::Goes {
            environment: route.environment().to_string(),
            connection: route.connection().clone(),
            target: connection.target.clone(),
            production: production.contains(&place(&connection.target)),
            falls_back: route.reasons().contains(&Reason::FallsBack),
        }
    }

    fn is_production(&self) -> bool {
        matches!(self, Self::Goes { production: true, .. })
    }

    fn place(&self) -> Option<Address> {
        match self {
            Self::Goes { target, .. } => Some(place(target)),
            _ => None,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser => f.write_str("no such user"),
            Self::Disabled => f.write_str("disabled"),
            Self::Refused(sqlstate) => write!(f, "refused ({sqlstate})"),
            Self::Goes { environment, connection, target, .. } => {
                write!(f, "{environment} ({connection}: {}:{}/{})", target.host, target.port, target.database)
            }
        }
    }
}

/// A user whose route by one database name changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Who.
    pub user: UserName,
    /// By which name.
    pub database: String,
    /// Until now.
    pub from: Destination,
    /// From then on.
    pub to: Destination,
}

impl Moved {
    /// Whether the user gets to a production database that they did not get to before.
    pub fn reaches_production(&self) -> bool {
        self.to.is_production() && self.from.place() != self.to.place()
    }

    fn kind(&self) -> Kind {
        match () {
            () if self.reaches_production() => Kind::Production,
            () if self.falls_back() => Kind::Fallback,
            () => Kind::Route,
        }
    }

    /// Whether the user loses an environment and falls back to the base.
    pub fn falls_back(&self) -> bool {
        let fell = matches!(self.from, Destination::Goes { falls_back: true, .. });
        !fell
            && matches!(self.from, Destination::Goes { .. })
            && matches!(self.to, Destination::Goes { falls_back: true, .. })
    }
}

/// What a change of a route is to be known for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Production,
    Fallback,
    Route,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Production, Self::Fallback, Self::Route];

    /// As the plan calls it, and what it says of it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Production => ("production", "newly reaches a production database"),
            Self::Fallback => (Plan::FALLBACK, "loses the environment, and falls back to the base"),
            Self::Route => ("route", ""),
        }
    }
}

/// A session that would be told to leave, or, with `on_move = "keep"`, not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Its number.
    pub session: u64,
    /// Whose.
    pub user: UserName,
    /// Why, as it would be told.
    pub why: String,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Users by database names: some thousands of each kind.
    pub routes: Vec<Moved>,
    /// How many there are of each kind.
    counts: [usize; 3],
    /// Sessions.
    pub sessions: Vec<Hit>,
    /// What becomes of those.
    pub on_move: OnMove,
    /// Connections whose pools begin.
    pub opened: Vec<ConnectionName>,
    /// Connections whose pools end.
    pub closed: Vec<ConnectionName>,
    /// Connections whose label `production` changes: to what.
    pub labels: Vec<(ConnectionName, bool)>,
    /// Connections that stay, and what changes about them.
    pub changed: Vec<(ConnectionName, Vec<&'static str>)>,
    /// Whose secrets change; never how.
    pub secrets: Vec<String>,
    /// Settings of the process.
    pub settings: Vec<(String, String, String)>,
    /// What users may do otherwise: whose, from, to.
    pub rights: Vec<(String, String, String)>,
}

impl Plan {
    /// What [`Plan::rows`] have.
    pub const COLUMNS: [&str; 5] = ["change", "subject", "from", "to", "note"];

    /// From one configuration to another; sessions are for the caller to add.
    pub fn between(old: &Config, new: &Config) -> Self {
        let production = production(old, new);
        let users: BTreeSet<_> = old.users.keys().chain(new.users.keys()).collect();
        let databases: BTreeSet<_> = old.databases.keys().chain(new.databases.keys()).collect();
        let same = |name: &ConnectionName, of: &Config, other: &Config| {
            let target = |config: &Config| config.connections.get(name).map(|c| c.target.clone());
            target(of) == target(other)
        };
        let only_in = |of: &Config, other: &Config| {
            let names = of.connections.keys().filter(|name| !same(name, of, other));
            names.cloned().collect::<Vec<_>>()
        };
        let changed = new.connections.values().filter(|c| same(&c.name, old, new)).filter_map(|connection| {
            let differences = differences(old.connections.get(&connection.name)?, connection);
            (!differences.is_empty()).then(|| (connection.name.clone(), differences))
        });
        // By the database, and not by the name that it had or gets.
        let (was, is) = (places_of(old), places_of(new));
        let known: Places = old.connections.values().map(|known| place(&known.target)).collect();
        let labels = new.connections.values().filter_map(|connection| {
            let place = place(&connection.target);
            let changes = was.contains(&place) != is.contains(&place);
            (changes && known.contains(&place)).then(|| (connection.name.clone(), is.contains(&place)))
        });
        let shown = |config: &Config| {
            let tls = config.server.tls.as_ref().map(file::ClientTls::shown).unwrap_or_default();
            let tls = |name: &str| tls.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
            let of_tls = ["mode", "certificate", "key", "client_ca", "client_crl"]
                .map(|name| tls(name).unwrap_or_default());
            let names = ["tls.mode", "tls.certificate", "tls.key", "tls.client_ca", "tls.client_crl"];
            let of_tls = names.into_iter().zip(of_tls).map(|(name, value)| (name.to_owned(), value));
            let server = config.server.shown().into_iter().map(|(name, value)| (name.to_owned(), value));
            server.chain(of_tls).chain(config.management.shown()).collect::<Vec<_>>()
        };
        let settings = shown(old).into_iter().zip(shown(new)).filter(|(old, new)| old != new);
        let mut plan = Self {
            routes: Vec::new(),
            counts: [0; 3],
            sessions: Vec::new(),
            on_move: *new.server.on_move,
            opened: only_in(new, old),
            closed: only_in(old, new),
            labels: labels.collect(),
            changed: changed.collect(),
            secrets: secrets(old, new),
            settings: settings.map(|((name, old), (_, new))| (name, old, new)).collect(),
            rights: rights(old, new),
        };
        for user in users {
            for database in &databases {
                let from = Destination::of(old, &production, user, database.as_str());
                let to = Destination::of(new, &production, user, database.as_str());
                plan.add(user, from, to, || database.to_string());
            }
        }
        plan
    }

    fn add(
        &mut self,
        user: &UserName,
        from: Destination,
        to: Destination,
        database: impl FnOnce() -> String,
    ) {
        if from == to {
            return;
        }
        let moved = Moved { user: user.clone(), database: database(), from, to };
        let count = &mut self.counts[moved.kind() as usize];
        *count += 1;
        if *count <= MAX_ROUTES {
            self.routes.push(moved);
        }
    }

    /// What those get who are granted an environment, by asking for it: a grant is of a name, and the name may come to stand
    /// for another database.
    pub fn add_granted(&mut self, old: &Config, new: &Config, grants: &[Grant]) {
        let production = production(old, new);
        for grant in grants {
            for database in old.databases.keys().chain(new.databases.keys()).collect::<BTreeSet<_>>() {
                let of = |config| {
                    Destination::with(config, &production, &grant.user, database.as_str(), Some(grant))
                };
                let (from, to) = (of(old), of(new));
                self.add(&grant.user, from, to, || format!("{database} (granted {})", grant.environment));
            }
        }
    }

    /// Its lines for the audit, for one event after the other, without those of sessions, which are told of themselves. Who
    /// reaches production and what users may do is told first, in 5,000 lines; of all else, 200.
    pub fn summary(&self) -> Vec<Vec<String>> {
        let (first, rest): (Vec<_>, Vec<_>) = self
            .rows()
            .into_iter()
            .filter(|row| row[0] != "session")
            .partition(|row| matches!(&*row[0], "production" | "user"));
        let line = |[change, subject, from, to, note]: &[String; 5]| {
            let way =
                if from.is_empty() && to.is_empty() { String::new() } else { format!(": {from} -> {to}") };
            let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
            format!("{change} {subject}{way}{note}").chars().take(MAX_LINE).collect::<String>()
        };
        let mut lines = Vec::new();
        for (rows, most) in [(first, MAX_ROUTES), (rest, MAX_SUMMARY)] {
            lines.extend(rows.iter().take(most).map(line));
            if let Some(more) = rows.len().checked_sub(most).filter(|more| *more > 0) {
                lines.push(format!("and {more} more"));
            }
        }
        lines.chunks(MAX_EVENT).map(<[_]>::to_vec).collect()
    }

    /// Passwords that are taken for others, whether they are or not.
    pub fn also_secrets(&mut self, rows: impl IntoIterator<Item = String>) {
        let more: Vec<_> = rows.into_iter().filter(|row| !self.secrets.contains(row)).collect();
        self.secrets.extend(more);
    }

    /// The kind of a change by which users lose their environment and fall back to the base: that must be wanted.
    pub const FALLBACK: &str = "fallback";

    /// As a table: what kind of change, of what, from, to, and what to know about it. What reaches production is first.
    pub fn rows(&self) -> Vec<[String; 5]> {
        let row = |kind: &str, subject: String, from: String, to: String, note: &str| {
            [kind.to_owned(), subject, from, to, note.to_owned()]
        };
        let mut rows = Vec::new();
        for moved in &self.routes {
            let subject = format!("{} on {}", moved.user, moved.database);
            let (kind, note) = moved.kind().words();
            rows.push(row(kind, subject, moved.from.to_string(), moved.to.to_string(), note));
        }
        for (kind, count) in Kind::ALL.into_iter().zip(self.counts) {
            if let Some(more) = count.checked_sub(MAX_ROUTES).filter(|more| *more > 0) {
                let (kind, note) = kind.words();
                rows.push(row(kind, format!("and {more} more"), String::new(), String::new(), note));
            }
        }
        for (name, is) in &self.labels {
            let label = |is: bool| format!("production: {is}");
            let note = match is {
                true => "is labelled a production database from then on",
                false => "is not labelled a production database any more",
            };
            rows.push(row("production", format!("connection {name}"), label(!is), label(*is), note));
        }
        rows.sort_by_key(|row| (row[0] != "production", row[0] != Self::FALLBACK));
        for hit in &self.sessions {
            let what = match self.on_move {
                OnMove::Finish => "ends at its next idle point",
                OnMove::Terminate => "ends at once",
                OnMove::Keep => "stays until it leaves",
            };
            rows.push(row(
                "session",
                format!("{} of {}", hit.session, hit.user),
                String::new(),
                what.into(),
                &hit.why,
            ));
        }
        for name in &self.closed {
            rows.push(row("pool", name.to_string(), "open".into(), "closed".into(), ""));
        }
        for name in &self.opened {
            rows.push(row("pool", name.to_string(), "none".into(), "open".into(), ""));
        }
        for (name, differences) in &self.changed {
            rows.push(row(
                "connection",
                name.to_string(),
                String::new(),
                String::new(),
                &differences.join(", "),
            ));
        }
        for secret in &self.secrets {
            rows.push(row("secret", secret.clone(), String::new(), String::new(), "changes"));
        }
        for (name, from, to) in &self.rights {
            rows.push(row("user", name.clone(), from.clone(), to.clone(), ""));
        }
        for (name, from, to) in &self.settings {
            let note = if waits_for_a_restart(name) { "in force after a restart" } else { "" };
            rows.push(row("setting", name.clone(), from.clone(), to.clone(), note));
        }
        rows
    }

    /// The settings that change in the file, and in the process only when it starts again.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.settings.iter().map(|(name, ..)| name.as_str()).filter(|name| waits_for_a_restart(name))
    }
}

fn waits_for_a_restart(setting: &str) -> bool {
    let (options, name) = match setting.strip_prefix("management.") {
        Some(name) => (file::Management::manual().2, name),
        None => (file::Server::manual().2, setting),
    };
    options.iter().any(|option| option.name == name && option.applies == Applies::Restart)
}

/// A database, whoever logs in to it.
type Address = (String, u16, String);
type Places = BTreeSet<Address>;

fn place(target: &Target) -> Address {
    let (host, port, database) = target.place();
    (host, port, database.to_owned())
}

/// The databases that a configuration labels `production`.
fn places_of(config: &Config) -> Places {
    let labelled = config.connections.values().filter(|connection| connection.production);
    labelled.map(|connection| place(&connection.target)).collect()
}

/// The databases that either configuration labels so: a label that is dropped in the same edit hides nothing.
fn production(old: &Config, new: &Config) -> Places {
    places_of(old).union(&places_of(new)).cloned().collect()
}

/// What users may do otherwise than before, beside where they go; of one that is new or gone, what it has or had.
fn rights(old: &Config, new: &Config) -> Vec<(String, String, String)> {
    let facts = |config: &Config, user: &UserName| {
        let user = config.users.get(user);
        let word = |word: Option<&'static str>| word.unwrap_or("none").to_owned();
        [
            ("console", word(user.and_then(|u| u.console).map(file::Console::word))),
            ("auth_type", word(user.map(|u| u.auth_type.word()))),
            ("pool_mode", word(user.and_then(|u| u.pool_mode).map(file::PoolMode::word))),
            ("max_client_connections", user.map_or(0, |u| u.max_client_connections).to_string()),
        ]
    };
    let mut all = Vec::new();
    for user in old.users.keys().chain(new.users.keys()).collect::<BTreeSet<_>>() {
        // Whoever comes or goes is seen by the routes; of the console there is no route.
        let is_in_both = old.users.contains_key(user) && new.users.contains_key(user);
        for ((name, from), (_, to)) in facts(old, user).into_iter().zip(facts(new, user)) {
            if from != to && (is_in_both || name == "console") {
                all.push((format!("{user} {name}"), from, to));
            }
        }
    }
    all
}

/// What is different about a connection that leads to the same database.
fn differences(old: &Connection, new: &Connection) -> Vec<&'static str> {
    let mut differences = Vec::new();
    let mut differs = |name, is: bool| {
        if is {
            differences.push(name);
        }
    };
    differs("allow_production_fallback", old.allow_production_fallback != new.allow_production_fallback);
    differs("tls", old.tls != new.tls);
    differs("scram", old.scram != new.scram);
    differs("require_auth", old.methods != new.methods);
    differs("include_schemas", old.search_path != new.search_path);
    differs("query_timeout", old.query_timeout != new.query_timeout);
    differs("connect_timeout", old.connect_timeout != new.connect_timeout);
    differs("pool_mode", old.pool_mode != new.pool_mode);
    differs("isolation", old.isolation != new.isolation);
    differs("pool_size", old.pool_size != new.pool_size);
    differs("min_pool_size", old.min_pool_size != new.min_pool_size);
    differs("reserve_pool_size", old.reserve_pool_size != new.reserve_pool_size);
    differs("max_pinned", old.max_pinned != new.max_pinned);
    differs("max_client_connections", old.max_client_connections != new.max_client_connections);
    differs("environment", old.environment != new.environment);
    differs("environments", old.base != new.base);
    differences
}

/// What a plan calls a password: of which kind of thing, and of which one.
pub fn password_of(kind: &str, name: &str) -> String {
    format!("password of {kind} {name}")
}

fn secrets(old: &Config, new: &Config) -> Vec<String> {
    let same = |one: Option<&Secret>, other: Option<&Secret>| match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.value().expose_secret() == other.value().expose_secret(),
        _ => false,
    };
    let mut changed = Vec::new();
    for (name, connection) in &new.connections {
        if let Some(before) = old.connections.get(name)
            && !same(before.password.as_deref(), connection.password.as_deref())
        {
            changed.push(password_of("connection", name.as_str()));
        }
    }
    for (name, user) in &new.users {
        if let Some(before) = old.users.get(name)
            && (!same(before.password.as_ref(), user.password.as_ref()) || before.auth_type != user.auth_type)
        {
            changed.push(password_of("user", name.as_str()));
        }
    }
    let digest_in = |config: &Config, name: &str| {
        config.management.tokens.iter().find(|token| token.name == name).map(|token| token.digest)
    };
    for token in &new.management.tokens {
        if digest_in(old, &token.name).is_some_and(|before| before != token.digest) {
            changed.push(format!("token {}", token.name));
        }
    }
    let both = old
        .certificates
        .iter()
        .filter_map(|(what, before)| Some((what, before, new.certificates.get(what)?)));
    changed.extend(both.filter(|(_, before, after)| before != after).map(|(what, _, _)| what.clone()));
    changed
}

#[cfg(test)]
mod tests;
