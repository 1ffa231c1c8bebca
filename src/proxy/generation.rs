//! One accepted version of the configuration, the sessions it has sent somewhere, and whether they still belong there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use parking_lot::Mutex;
use tracing::warn;

use super::hosts::Hosts;
use crate::audit::{Audit, Event};
use crate::auth::{Identity, Logins, Terms};
use crate::cancel::{Slot, ToldPid};
use crate::engine::{Orders, State};
use crate::grants::Grants;
use crate::pool::Pool;
use crate::prepare::PreparedConfig;
use crate::stream::Tls;
use crate::tls::ServerTls;
use policy::attribute;
use policy::config::file::{self, PoolMode};
use policy::config::{Config, Connection, Target};
use policy::names::{ConnectionName, UserName};
use policy::route::{self, Route};
use relay::Facts;
use wire::error::{Fault, Refusal, SqlState};

/// One accepted version of the configuration, with what was built from it.
#[derive(Debug)]
pub(crate) struct Generation {
    /// From 1.
    pub number: u64,
    /// The settings.
    pub config: Config,
    /// As they are written.
    pub file: file::File,
    /// TLS towards clients.
    pub tls: Option<Arc<ServerTls>>,
    /// What passwords are checked against.
    pub logins: Logins,
    /// A pool for each connection.
    pub pools: BTreeMap<ConnectionName, Arc<Pool>>,
    /// Where sessions have gone: one allocation for all that asked the same.
    targets: DashMap<(UserName, Asked), Arc<SessionTarget>>,
    grants: Arc<Grants>,
}

/// What a client asked for: the database, and the environment that it requested.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    /// The database name of the startup packet.
    pub database: Box<str>,
    /// `pgusher.environment`
    pub environment: Option<Box<str>>,
}

/// Where a session is.
#[derive(Debug)]
pub(crate) struct SessionTarget {
    /// What it asked for.
    pub asked: Asked,
    /// What it was given, and why.
    pub route: Route<Identity>,
    /// The database that this is.
    pub database: Target,
    /// The generation that decided.
    pub generation: u64,
    /// What the client is shown of it.
    pub facts: Arc<Facts>,
}

impl Generation {
    /// What logins are decided by.
    pub(crate) fn terms(&self) -> Terms<'_> {
        Terms { config: &self.config, logins: &self.logins, tls: self.tls.as_deref() }
    }

    /// Why a session would have to leave, if that configuration were the next one.
    pub(super) fn moved_by(&self, next: &Config, session: &LiveSession) -> Option<String> {
        moved(next, &self.grants, self.number + 1, session)
    }

    /// Why a session must leave, if it must.
    pub(crate) fn moved(&self, session: &LiveSession) -> Option<String> {
        moved(&self.config, &self.grants, self.number, session)
    }

    /// Decides where a user goes; those who ask the same share the answer.
    ///
    /// # Errors
    /// As [`route::resolve`].
    pub(crate) fn target_for(
        &self,
        identity: &Identity,
        asked: Asked,
    ) -> Result<Arc<SessionTarget>, Refusal> {
        let attributes =
            attribute::of(&self.config, identity.clone()).with(self.grants.of(identity.user().as_str()));
        let route = route::resolve(&self.config, &attributes, &asked.database, asked.environment.as_deref())?;
        for warning in route.warnings() {
            warn!(user = %identity.user(), database = %asked.database, "{warning}");
        }
        let key = (identity.user().clone(), asked.clone());
        // A grant may have changed it since.
        self.targets.remove_if(&key, |_, known| known.route != route);
        let entry = self.targets.entry(key);
        let target = || {
            let missing = || Refusal::new(Fault::Ours, SqlState::INTERNAL, "a route without its connection");
            let connection = self.config.connections.get(route.connection()).ok_or_else(missing)?;
            let facts = Facts {
                environment: route.environment().to_string(),
                connection: route.connection().to_string(),
                user: identity.user().clone(),
                route: format!("{route}; generation {}", self.number),
                memory: self.pools.get(route.connection()).ok_or_else(missing)?.memory_of(identity.user()),
            };
            let database = connection.target.clone();
            let (facts, generation) = (Arc::new(facts), self.number);
            Ok(Arc::new(SessionTarget { asked, database, generation, facts, route }))
        };
        Ok(entry.or_try_insert_with(target)?.clone())
    }
}

/// A session that lives, as the proxy knows it.
#[derive(Debug)]
pub(crate) struct LiveSession {
    /// Its number.
    pub id: u64,
    /// Who.
    pub identity: Identity,
    /// Where it is.
    pub target: Arc<SessionTarget>,
    /// For telling it to end, and for looking at it.
    pub orders: Arc<Orders>,
    /// What it does now.
    pub slot: Arc<Slot>,
    /// The number that its client was told as that of its process.
    pub pid: ToldPid,
    /// Where its connections come from.
    pub pool: Arc<Pool>,
    /// For how long it has each.
    pub mode: PoolMode,
    /// Its other end.
    pub peer: Box<str>,
    /// When it was accepted.
    pub since: SystemTime,
    /// How it called itself at login.
    pub application_name: Box<str>,
    /// Its TLS, if it has any.
    pub tls: Option<Tls>,
    /// It was told to leave, because it stands where its user does not go any more.
    pub told: Mutex<bool>,
}

/// What a session does, and for how long it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionActivity {
    /// What.
    pub state: State,
    /// For how long.
    pub lasts: Duration,
    /// For how long its transaction has lasted, if it is in one.
    pub transaction: Option<Duration>,
}

impl LiveSession {
    /// What it does now.
    pub(crate) fn seen(&self) -> SessionActivity {
        let activity = self.orders.statistics.see().activity;
        let now = self.pool.now();
        let age = |since: Duration| now.saturating_sub(since);
        if let (_, Some(since)) = self.slot.now() {
            return SessionActivity { state: State::Waiting, lasts: since.elapsed(), transaction: None };
        }
        let lasts = activity.since.map_or_else(|| self.since.elapsed().unwrap_or_default(), age);
        SessionActivity { state: activity.state, lasts, transaction: activity.transaction.map(age) }
    }

    /// An event of it: who it is, and where it stands.
    pub(crate) fn event(&self, name: &'static str, audit: &Audit) -> Event {
        let target = &self.target;
        Event::new(name)
            .text("session", audit.session(self.id))
            .text("user", self.identity.user())
            .text("database", &target.asked.database)
            .text("environment", target.route.environment())
            .text("connection", target.route.connection())
            .text("peer", &self.peer)
            .number("generation", target.generation)
    }
}

/// Why a session must leave: from where to where, and by which generation.
fn moved(config: &Config, grants: &Grants, number: u64, session: &LiveSession) -> Option<String> {
    let target = &session.target;
    let from = target.route.environment();
    match config.users.get(session.identity.user()) {
        None => {
            return Some(format!("User \"{}\" is gone since generation {number}.", session.identity.user()));
        }
        Some(user) if user.disabled => {
            return Some(format!(
                "User \"{}\" is disabled since generation {number}.",
                session.identity.user()
            ));
        }
        Some(_) => {}
    }
    let attributes =
        attribute::of(config, session.identity.clone()).with(grants.of(session.identity.user().as_str()));
    match route::resolve(config, &attributes, &target.asked.database, target.asked.environment.as_deref()) {
        Err(refusal) => {
            Some(format!("From environment \"{from}\" to none, by generation {number}: {refusal}."))
        }
        Ok(route) => {
            let connection: &Connection = config.connections.get(route.connection())?;
            let same =
                route.connection() == target.route.connection() && connection.target == target.database;
            (!same).then(|| {
                format!(
                    "From environment \"{from}\" (connection \"{}\") to \"{}\" (connection \"{}\"), by generation {number}.",
                    target.route.connection(),
                    route.environment(),
                    route.connection()
                )
            })
        }
    }
}

/// Builds the generation after the old one, or the first.
pub(super) fn build(
    prepared: PreparedConfig,
    logins: Logins,
    old: Option<&Generation>,
    hosts: &Hosts,
    grants: &Arc<Grants>,
) -> Generation {
    let number = old.map_or(1, |old| old.number + 1);
    let (checked, tls, dialers) = prepared.into_parts();
    let (config, file) = checked.into_parts();
    let pools = hosts.pools(&config.server, dialers, old, number);
    Generation {
        number,
        config,
        file,
        tls: tls.map(Arc::new),
        logins,
        pools,
        targets: DashMap::new(),
        grants: grants.clone(),
    }
}
