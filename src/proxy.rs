//! Everything assembled: the generation in force, its pools, the sessions that live, reload, drain.

mod attempt;
mod hosts;
mod permits;
mod registry;
mod sessions;
mod signals;
mod snapshot;
mod standing;
mod write;

pub(crate) use attempt::LoginAttempt;
use signals::terminated;
pub(crate) use snapshot::Snapshot;
pub(crate) use write::{Change, Intent, WriteError, Written};

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tracing::{error, info, warn};

use crate::aside::Aside;
use crate::audit::{Audit, Event, Refusals, Refused};
use crate::auth::{Authenticator, Identity, Logins, Terms};
use crate::cancel::{Keys, Slot, ToldPid};
use crate::engine::{Order, OrderedBy, Orders, Timeouts, When};
use crate::grants::Grants;
use crate::lifetime::{Lifetime, Shutdown};
use crate::pool::{Pool, Runtimes};
use crate::prepare::{self, Prepared};
use crate::stats::Counters;
use crate::strangers::Strangers;
use crate::stream::Tls;
use crate::tls::ServerTls;
use hosts::Hosts;
pub(crate) use permits::{ConnectionPermit, Permits};
use policy::attribute;
use policy::config::file::{self, PoolMode};
use policy::config::read::Severity;
use policy::config::{Config, Connection, OnMove, Outside, Rejected, Target};
use policy::grant::{Grant, Which};
use policy::names::{ConnectionName, UserName};
use policy::plan::{Hit, Plan};
use policy::route::{self, Route};
pub(crate) use registry::Registry;
use relay::{Facts, Interner};
use standing::Standing;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// How many configurations can be gone back to.
const EARLIER: usize = 10;
/// How many tables of the console are made at once.
const MAX_TABLES: usize = 2;
/// What answers of the console may hold in all, in KiB.
const MAX_ANSWERS: usize = 256 << 10;
/// How many configurations are remembered.
const HISTORY: usize = 50;
/// How long sessions that are ended at once have to tell their clients.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often idle connections are looked after.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

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
    places: DashMap<(UserName, Asked), Arc<SessionTarget>>,
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
    pub target: Target,
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

    /// Why a session must leave, if it must.
    pub(crate) fn moved(&self, session: &LiveSession) -> Option<String> {
        moved(&self.config, &self.grants, self.number, session)
    }

    /// Decides where a user goes; those who ask the same share the answer.
    ///
    /// # Errors
    /// As [`route::resolve`].
    pub(crate) fn place(&self, identity: &Identity, asked: Asked) -> Result<Arc<SessionTarget>, Refusal> {
        let attributes =
            attribute::of(&self.config, identity.clone()).with(self.grants.of(identity.user().as_str()));
        let route = route::resolve(&self.config, &attributes, &asked.database, asked.environment.as_deref())?;
        for warning in route.warnings() {
            warn!(user = %identity.user(), database = %asked.database, "{warning}");
        }
        let key = (identity.user().clone(), asked.clone());
        // A grant may have changed it since.
        self.places.remove_if(&key, |_, known| known.route != route);
        let entry = self.places.entry(key);
        let place = || {
            let missing = || Refusal::new(Fault::Ours, SqlState::INTERNAL, "a route without its connection");
            let connection = self.config.connections.get(route.connection()).ok_or_else(missing)?;
            let facts = Facts {
                environment: route.environment().to_string(),
                connection: route.connection().to_string(),
                user: identity.user().clone(),
                route: format!("{route}; generation {}", self.number),
                memory: self.pools.get(route.connection()).ok_or_else(missing)?.memory_of(identity.user()),
            };
            let target = connection.target.clone();
            let (facts, generation) = (Arc::new(facts), self.number);
            Ok(Arc::new(SessionTarget { asked, target, generation, facts, route }))
        };
        Ok(entry.or_try_insert_with(place)?.clone())
    }
}

/// What is remembered of a configuration.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// Its number, also if it was refused and another has it now.
    pub number: u64,
    /// When that was.
    pub at: SystemTime,
    /// `in force`, `replaced` or `refused`
    pub state: &'static str,
    /// How many connections and users it has.
    pub connections: usize,
    /// See `connections`.
    pub users: usize,
    /// Why it was refused.
    pub error: Option<String>,
    /// Who or what has brought it.
    pub by: String,
}

impl Known {
    fn in_force(generation: &Generation, by: String) -> Self {
        Self {
            number: generation.number,
            at: SystemTime::now(),
            state: "in force",
            connections: generation.config.connections.len(),
            users: generation.config.users.len(),
            error: None,
            by,
        }
    }

    fn refused(number: u64, error: String) -> Self {
        let (at, error, by) = (SystemTime::now(), Some(error), "reload".to_owned());
        Self { number, at, state: "refused", connections: 0, users: 0, error, by }
    }
}

/// Why a configuration did not take effect.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    /// The file is wrong, or what it names outside of it.
    #[error("{0}")]
    Rejected(Rejected),
    /// No configuration was in force before.
    #[error("there is no earlier configuration")]
    NothingEarlier,
    /// The system gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// A session that lives, as the proxy knows it.
#[derive(Debug)]
pub(crate) struct LiveSession {
    /// Its number.
    pub id: u64,
    /// Who.
    pub identity: Identity,
    /// Where it is.
    pub place: Arc<SessionTarget>,
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

/// See the module.
pub(crate) struct Proxy {
    path: PathBuf,
    generation: ArcSwap<Generation>,
    /// Where sessions read their limits.
    pub timeouts: Arc<Timeouts>,
    /// The two runtimes.
    pub runtimes: Runtimes,
    /// Who may log in.
    pub authenticator: Authenticator,
    /// Cancel keys.
    pub keys: Keys,
    /// Prepared statements.
    pub interner: Arc<Interner>,
    /// The sessions that live.
    pub sessions: Registry,
    hosts: Hosts,
    /// How many clients there are, of whom and where.
    pub permits: Permits,
    /// What was found to be unsettled last, and when that was begun.
    settling: tokio::sync::Mutex<(Option<Instant>, Arc<Vec<u64>>)>,
    /// Whether clients are accepted, and how the process ends.
    pub life: Lifetime,
    /// What is counted for the process as a whole.
    pub counters: Counters,
    /// What is told of it all.
    pub audit: Audit,
    refusals: Refusals,
    /// Clients that have not proved yet who they are.
    pub strangers: Arc<Strangers>,
    /// Who may go where for a while.
    pub grants: Arc<Grants>,
    reloading: Mutex<()>,
    password_guesses: write::PasswordGuesses,
    /// Who asks for a plan reads files and runs commands: one at a time, so that they fill up no threads.
    pub planning: Semaphore,
    /// Where the console's tables are made.
    pub tables: Aside,
    /// What the answers of the console may hold in all, in KiB.
    pub answers: Arc<Semaphore>,
    history: Mutex<VecDeque<Known>>,
    /// The texts of the configurations that were in force before, and their numbers; the last one last.
    earlier: Mutex<Vec<(u64, SecretString)>>,
    standing: Mutex<Standing>,
    /// The number of the generation in force, for those who wait for another.
    changes: watch::Sender<u64>,
    /// Logins that are decided already, and by which generation.
    arriving: DashMap<u64, u64>,
}

impl Proxy {
    /// With the configuration that was loaded as generation 1.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn new(prepared: Prepared, runtimes: Runtimes, audit: Audit) -> Result<Arc<Self>, LoadError> {
        let hosts = Hosts::new(runtimes.clone());
        let config = prepared.checked().config();
        let path = config.path.clone();
        let timeouts = Timeouts::default();
        timeouts.set(&config.server);
        let grants = Arc::new(Grants::load(config.grants_file()));
        let authenticator = Authenticator::new(&config.auth_key_file())?;
        let logins = authenticator.prepare(config, None);
        let generation = build(prepared, logins, None, &hosts, &grants);
        let history = Mutex::new([Known::in_force(&generation, "start".into())].into());
        Ok(Arc::new(Self {
            path,
            generation: ArcSwap::from_pointee(generation),
            timeouts: Arc::new(timeouts),
            runtimes,
            authenticator,
            keys: Keys::default(),
            interner: Arc::new(Interner::new(getrandom::u64()?)),
            sessions: Registry::default(),
            hosts,
            permits: Permits::default(),
            settling: tokio::sync::Mutex::default(),
            life: Lifetime::default(),
            counters: Counters::default(),
            audit,
            refusals: Refusals::default(),
            strangers: Arc::default(),
            grants,
            reloading: Mutex::default(),
            password_guesses: write::PasswordGuesses::default(),
            planning: Semaphore::new(1),
            tables: Aside::new(MAX_TABLES),
            answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
            history,
            earlier: Mutex::default(),
            standing: Mutex::default(),
            changes: watch::Sender::new(1),
            arriving: DashMap::new(),
        }))
    }

    /// The generation in force.
    pub(crate) fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    /// Reads the file again: the whole of it takes effect, or nothing does. Blocks while it reads.
    ///
    /// # Errors
    /// What is wrong with it; the generation in force stays.
    pub(crate) fn reload(&self) -> Result<Arc<Generation>, LoadError> {
        self.reload_planned().map(|(generation, _)| generation)
    }

    /// The same, with what it changes.
    fn reload_planned(&self) -> Result<(Arc<Generation>, Plan), LoadError> {
        let _one_at_a_time = self.reloading.lock();
        let loaded = prepare::load(&self.path, Outside::Read).map_err(LoadError::Rejected);
        let applied = loaded.map(|prepared| {
            let plan = self.plan_of(prepared.checked().config());
            (self.apply(prepared, "reload", &plan), plan)
        });
        match &applied {
            Ok(_) => self.counters.reloads.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.counters.refused_reloads.fetch_add(1, Ordering::Relaxed),
        };
        if let Err(error) = &applied {
            let reason = match error {
                LoadError::Rejected(rejected) => rejected.0.reason(),
                _ => None,
            };
            let first_line = || error.to_string().lines().next().unwrap_or_default().to_owned();
            let error = reason.unwrap_or_else(first_line);
            self.audit.record(|| {
                Event::new("reload_refused")
                    .number("generation", self.generation().number)
                    .text("error", &error)
            });
            self.remember(Known::refused(self.generation().number + 1, error));
        }
        applied
    }

    /// What a file would change if it took effect now; another file than the configuration's runs no commands of its own.
    /// Blocks while it reads.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn plan(&self, path: Option<&Path>) -> Result<Plan, LoadError> {
        let new = match path.filter(|path| *path != self.path) {
            None => prepare::load(&self.path, Outside::Read),
            Some(path) => prepare::load_beside(&self.generation().config, path),
        };
        let new = new.map_err(LoadError::Rejected)?;
        Ok(self.plan_of(new.checked().config()))
    }

    /// What a configuration would change if it took effect now.
    fn plan_of(&self, new: &Config) -> Plan {
        let generation = self.generation();
        let mut plan = Plan::between(&generation.config, new);
        plan.add_granted(&generation.config, new, &self.grants.all());
        for session in self.live_sessions() {
            if let Some(why) = moved(new, &self.grants, generation.number + 1, &session) {
                let (id, user) = (session.id, session.identity.user().clone());
                plan.sessions.push(Hit { session: id, user, why });
            }
        }
        plan.sessions.sort_by_key(|hit| hit.session);
        plan
    }

    /// The configuration that was in force before takes effect again, as a new generation. The file stays as it is. Blocks
    /// while secrets are read.
    ///
    /// # Errors
    /// There is none, or it cannot be used any more.
    pub(crate) fn roll_back(&self) -> Result<Arc<Generation>, LoadError> {
        let _one_at_a_time = self.reloading.lock();
        let Some((_, source)) = self.earlier.lock().last().cloned() else {
            return Err(LoadError::NothingEarlier);
        };
        let mut prepared = self.prepare(source.expose_secret())?;
        prepared.keep_tokens_of(&self.generation().config);
        let plan = self.plan_of(prepared.checked().config());
        let applied = self.apply(prepared, "rollback", &plan);
        // What was in force until now is no earlier one of it.
        let mut earlier = self.earlier.lock();
        earlier.pop();
        earlier.pop();
        Ok(applied)
    }

    /// A text, as if it stood in the configuration's file. Blocks while secrets are read.
    fn prepare(&self, source: &str) -> Result<Prepared, LoadError> {
        prepare::parse(&self.path, source).map_err(LoadError::Rejected)
    }

    /// A configuration takes effect.
    fn apply(&self, prepared: Prepared, by: &str, plan: &Plan) -> Arc<Generation> {
        let old = self.generation();
        let warnings = prepared.checked().warnings();
        warnings.iter().for_each(|w| warn!("{}", warnings.line(w)));
        let logins =
            self.authenticator.prepare(prepared.checked().config(), Some((&old.config, &old.logins)));
        let new = {
            // No order may fall between what is built and what is in force.
            let mut standing = self.standing.lock();
            let new = Arc::new(build(prepared, logins, Some(&old), &self.hosts, &self.grants));
            standing.apply(&old, &new);
            self.generation.store(new.clone());
            new
        };
        {
            let mut earlier = self.earlier.lock();
            earlier.push((old.number, old.config.source.clone()));
            if earlier.len() > EARLIER {
                earlier.remove(0);
            }
        }
        if self.timeouts.set(&new.config.server) {
            self.sessions.look_again();
        }
        let (connections, users) = (new.config.connections.len(), new.config.users.len());
        for setting in plan.waiting() {
            warn!(setting, "the new value is in force after a restart");
        }
        let mut summary = plan.summary().into_iter();
        self.audit.record(|| {
            let event = Event::new("reload").number("generation", new.number).text("by", by);
            let event = event.number("connections", connections as u64).number("users", users as u64);
            event.texts("changes", summary.next().unwrap_or_default())
        });
        for changes in summary {
            let event =
                || Event::new("reload_more").number("generation", new.number).texts("changes", changes);
            self.audit.record(event);
        }
        for (name, pool) in &old.pools {
            let kept = new.pools.get(name).is_some_and(|p| Arc::ptr_eq(p, pool));
            if !kept {
                pool.retire();
            }
        }
        self.settle();
        self.changes.send_replace(new.number);
        self.remember(Known::in_force(&new, by.to_owned()));
        info!(generation = new.number, "configuration reloaded");
        new
    }

    /// Reloads, and says in the log how that went.
    ///
    /// # Errors
    /// As [`Proxy::reload`].
    pub(crate) fn reload_and_log(&self) -> Result<Arc<Generation>, LoadError> {
        self.log_reload(self.reload())
    }

    /// The same, with what it has changed.
    ///
    /// # Errors
    /// As [`Proxy::reload`].
    pub(crate) fn reload_as_planned(&self) -> Result<(Arc<Generation>, Plan), LoadError> {
        self.log_reload(self.reload_planned())
    }

    fn log_reload<T>(&self, reloaded: Result<T, LoadError>) -> Result<T, LoadError> {
        match &reloaded {
            Ok(_) => {}
            Err(LoadError::Rejected(rejected)) => {
                for problem in rejected.0.iter() {
                    let line = rejected.0.line(problem);
                    match problem.severity {
                        Severity::Error => error!("{line}"),
                        Severity::Warning => warn!("{line}"),
                    }
                }
                error!(
                    generation = self.generation().number,
                    "reload refused: the old configuration stays in force"
                );
            }
            Err(error) => {
                error!(%error, generation = self.generation().number, "reload refused: the old configuration stays in force");
            }
        }
        reloaded
    }

    /// The base connection that is meant by a name; a name that is none stays as it is.
    pub(crate) fn base_named(&self, database: &str) -> ConnectionName {
        let generation = self.generation();
        let base = generation.config.base(database).map(|(connection, _)| connection.name.clone());
        base.unwrap_or_else(|| database.into())
    }

    /// Whether there are such a user, such a database and such an environment of it.
    ///
    /// # Errors
    /// Which of them there is not.
    pub(crate) fn check_grant(&self, grant: &Grant) -> Result<(), Refusal> {
        let config = &self.generation().config;
        let unknown = |what: &str, name: &str| {
            Refusal::new(
                Fault::Client,
                SqlState::UNDEFINED_OBJECT,
                format!("there is no {what} \"{}\"", Shown::name(name)),
            )
        };
        if !config.users.contains_key(&grant.user) {
            return Err(unknown("user", grant.user.as_str()));
        }
        if let Some(database) = &grant.database {
            if config.base(database.as_str()).is_none() {
                return Err(unknown("database", database.as_str()).hint("SHOW ROUTES lists them."));
            }
            if route::opened_by(config, grant).is_empty() {
                let name = &grant.environment;
                let message = format!("database \"{database}\" has no environment \"{name}\" to be granted");
                let refusal = Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message);
                return Err(refusal.hint("SHOW ENVIRONMENTS lists them."));
            }
        }
        if !config.connections.values().any(|connection| connection.environment == grant.environment) {
            let refusal = unknown("environment", grant.environment.as_str());
            return Err(refusal.hint("SHOW ENVIRONMENTS lists them."));
        }
        Ok(())
    }

    /// Lets a user into an environment until a time. Blocks while it is written.
    ///
    /// # Errors
    /// There is no such user or environment, or the grant cannot be kept.
    pub(crate) fn grant(&self, grant: &Grant) -> Result<(), Refusal> {
        self.check_grant(grant)?;
        self.grants.add(grant.clone()).map_err(|error| self.not_kept(&error))?;
        let database = grant.database.as_ref().map(tracing::field::display);
        info!(user = %grant.user, environment = %grant.environment, database, by = %grant.by, "environment granted");
        self.audit.record(|| of_grant("grant", grant).text("by", &grant.by));
        self.settle();
        Ok(())
    }

    /// Ends that before its time.
    ///
    /// # Errors
    /// There is none, or that cannot be kept.
    pub(crate) fn revoke(
        &self,
        user: &str,
        environment: &str,
        which: &Which,
        by: &UserName,
    ) -> Result<(), Refusal> {
        let removed = self.grants.remove(user, environment, which);
        let revoked = removed.map_err(|error| self.not_kept(&error))?;
        if revoked.is_empty() {
            let of = match which {
                Which::Of(Some(database)) => format!(" of database \"{database}\""),
                Which::All | Which::Of(None) => String::new(),
            };
            let message = format!("environment \"{environment}\"{of} is not granted to user \"{user}\"");
            let refusal = Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message);
            return Err(refusal.hint("SHOW GRANTS lists them: one for all databases is ended without ON."));
        }
        revoked.iter().for_each(|grant| self.grant_ended(grant, "revoke", Some(by)));
        self.settle();
        Ok(())
    }

    /// Ends those whose time is over, and settles whoever came by them, or by one that another process has changed.
    fn tend_grants(&self) {
        let over = self.grants.expire();
        over.iter().for_each(|grant| self.grant_ended(grant, "grant_ended", None));
        self.settle();
    }

    fn grant_ended(&self, grant: &Grant, event: &'static str, by: Option<&UserName>) {
        let database = grant.database.as_ref().map(tracing::field::display);
        info!(user = %grant.user, environment = %grant.environment, database, "environment granted no longer");
        self.audit.record(|| of_grant(event, grant).maybe("by", by));
    }

    fn not_kept(&self, error: &std::io::Error) -> Refusal {
        let message = format!("the grants cannot be written to {}: {error}", self.grants.path().display());
        Refusal::new(Fault::Operator, SqlState::NOT_IN_PREREQUISITE_STATE, message)
            .hint("Set [server] grants_file to a file that pgusher may write.")
    }

    /// Tells the sessions whose route is not theirs any more.
    fn settle(&self) {
        for session in self.live_sessions() {
            self.settle_one(&session);
        }
    }

    /// Whoever decides last decides by what holds last: one at a time for each session, by what holds then.
    fn settle_one(&self, session: &LiveSession) {
        let mut told = session.told.lock();
        let generation = self.generation();
        let on_move = *generation.config.server.on_move;
        match generation.moved(session) {
            // Who waits for a database that was paused and is another now would wait for ever, or write to the old one.
            Some(detail) if on_move != OnMove::Keep || session.pool.is_stranded() => {
                let message = "terminating connection because its route changed";
                if !std::mem::replace(&mut *told, true) {
                    self.audit.record(|| self.event("move", session).text("why", &detail));
                }
                let refusal = Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, message).detail(detail);
                let when = if on_move == OnMove::Terminate { When::Now } else { When::Idle };
                session.orders.give(Order { by: OrderedBy::Route, when, refusal });
            }
            Some(_) => {}
            // An earlier reload may have moved it away, and this one back.
            None if *told && !self.life.is_draining() => {
                *told = false;
                self.audit.record(|| self.event("stay", session).number("by_generation", generation.number));
                session.orders.take_back();
            }
            None => {}
        }
    }

    /// An event of a session: who it is, and where it stands.
    pub(crate) fn event(&self, name: &'static str, session: &LiveSession) -> Event {
        let place = &session.place;
        Event::new(name)
            .text("session", self.audit.session(session.id))
            .text("user", session.identity.user())
            .text("database", &place.asked.database)
            .text("environment", place.route.environment())
            .text("connection", place.route.connection())
            .text("peer", &session.peer)
            .number("generation", place.generation)
    }

    /// Counts what somebody was refused who is in; whether that is told by itself, and not only how many there were.
    pub(crate) fn is_refusal_told(&self, peer: &str, refusal: &Refusal) -> bool {
        self.refusals.count(peer, refusal)
    }

    /// Somebody was not let in: counted, and told unless there are too many of them.
    pub(crate) fn refused(&self, refused: Refused<'_>) {
        self.counters.refused(refused.refusal);
        self.refusals.tell(&self.audit, refused);
    }

    /// Tells what of that was only counted.
    pub(crate) fn sum_up_refusals(&self) {
        self.refusals.sum_up(&self.audit);
    }

    /// A session enters, if it may under what is in force now; what decided it may be older. `proved` is the configuration
    /// that its user's proof was good for. False if it must be decided anew.
    ///
    /// # Errors
    /// The user is gone, may not log in any more, or has another password.
    pub(crate) fn enter(&self, session: &Arc<LiveSession>, proved: &Config) -> Result<bool, Refusal> {
        // Known first, and looked at then: whatever is put in force from here on, settles it.
        self.sessions.insert(session.clone());
        let entered = self.may_enter(session, proved);
        if !matches!(entered, Ok(true)) {
            self.sessions.remove(session.id);
        } else if self.life.is_draining() {
            session.orders.give(Order {
                by: OrderedBy::Operator,
                when: When::Idle,
                refusal: sessions::shutdown(),
            });
        }
        entered
    }

    fn may_enter(&self, session: &LiveSession, proved: &Config) -> Result<bool, Refusal> {
        let generation = self.generation();
        session.identity.is_still(proved, &generation.config)?;
        let is_in_force = generation
            .pools
            .get(session.place.route.connection())
            .is_some_and(|pool| Arc::ptr_eq(pool, &session.pool) && !pool.is_disabled());
        Ok(is_in_force && generation.moved(session).is_none())
    }

    /// For those who wait until another generation is in force; its number.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A login is decided by this generation, and has not entered; until the answer is dropped.
    pub(crate) fn arrives(&self, id: u64, generation: u64) -> Arriving<'_> {
        self.arriving.insert(id, generation);
        Arriving { proxy: self, id }
    }

    /// A session is over.
    pub(crate) fn leave(&self, id: u64) {
        self.sessions.remove(id);
    }

    /// Accepts nobody any more, lets transactions end, up to `shutdown_timeout`, then ends everything.
    pub(crate) async fn drain(&self) {
        let timeout = *self.generation().config.server.shutdown_timeout;
        self.drain_within(timeout).await;
    }

    async fn drain_within(&self, timeout: Duration) {
        self.life.drains();
        info!(sessions = self.sessions.len(), timeout = %humantime::format_duration(timeout), "draining");
        self.order_all(When::Idle);
        if tokio::time::timeout(timeout, self.sessions.emptied()).await.is_err() {
            let sessions = self.sessions.len();
            warn!(sessions, "shutdown_timeout is over: ending the sessions that are left");
            self.order_all(When::Now);
            let _ = tokio::time::timeout(LAST_WORDS, self.sessions.emptied()).await;
        }
        for pool in self.generation().pools.values() {
            pool.retire();
        }
    }

    /// The configurations there have been, the oldest first.
    pub(crate) fn history(&self) -> Vec<Known> {
        self.history.lock().iter().cloned().collect()
    }

    fn remember(&self, known: Known) {
        let mut history = self.history.lock();
        if known.error.is_none() {
            history.iter_mut().filter(|k| k.state == "in force").for_each(|k| k.state = "replaced");
        }
        history.push_back(known);
        if history.len() > HISTORY {
            history.pop_front();
        }
    }

    /// The sessions that live.
    pub(crate) fn live_sessions(&self) -> Vec<Arc<LiveSession>> {
        self.sessions.list()
    }

    /// The sessions that are [unsettled](Snapshot::unsettled), as of this instant or later. It is found out by one blocking task at a time, whose result is shared by all who
    /// wait; `None` if that task has failed.
    pub(crate) async fn unsettled_since(self: &Arc<Self>, instant: Instant) -> Option<Arc<Vec<u64>>> {
        let mut known = self.settling.lock().await;
        if known.0.is_none_or(|at| at < instant) {
            let (proxy, at) = (self.clone(), Instant::now());
            let found = tokio::task::spawn_blocking(move || proxy.snapshot().unsettled()).await;
            *known = (Some(at), Arc::new(found.ok()?));
        }
        Some(known.1.clone())
    }

    /// Waits until somebody asks that, and ends all sessions as was asked.
    pub(crate) async fn end_when_asked(&self) {
        let how = self.life.asked_to_end().await;
        info!(?how, "asked to end");
        match how {
            Shutdown::Immediate => self.drain_within(Duration::ZERO).await,
            Shutdown::WaitForServers => self.drain_within(Duration::from_secs(86_400)).await,
            Shutdown::WaitForClients => {
                self.life.close();
                // The door first: whoever comes in is a session before it leaves the door.
                self.life.door_is_empty().await;
                self.sessions.emptied().await;
                self.drain_within(Duration::ZERO).await;
            }
        }
    }

    /// Looks after the pools until the process ends.
    pub(crate) async fn tend(self: Arc<Self>) {
        let mut interval = tokio::time::interval(TEND_INTERVAL);
        loop {
            interval.tick().await;
            self.refusals.tend(&self.audit);
            self.hosts.living().iter().for_each(Pool::tend);
            self.tend_sessions();
            if self.grants.are_due() {
                let proxy = self.clone();
                let _ = tokio::task::spawn_blocking(move || proxy.tend_grants()).await;
            }
        }
    }
}

/// A login on its way in.
pub(crate) struct Arriving<'a> {
    proxy: &'a Proxy,
    id: u64,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.proxy.arriving.remove(&self.id);
    }
}

fn of_grant(event: &'static str, grant: &Grant) -> Event {
    Event::new(event)
        .text("user", &grant.user)
        .text("environment", &grant.environment)
        .maybe("database", grant.database.as_ref())
        .time("until", grant.until)
        .text("reason", &grant.reason)
}

/// Why a session must leave: from where to where, and by which generation.
fn moved(config: &Config, grants: &Grants, number: u64, session: &LiveSession) -> Option<String> {
    let place = &session.place;
    let from = place.route.environment();
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
    match route::resolve(config, &attributes, &place.asked.database, place.asked.environment.as_deref()) {
        Err(refusal) => {
            Some(format!("From environment \"{from}\" to none, by generation {number}: {refusal}."))
        }
        Ok(route) => {
            let connection: &Connection = config.connections.get(route.connection())?;
            let same = route.connection() == place.route.connection() && connection.target == place.target;
            (!same).then(|| {
                format!(
                    "From environment \"{from}\" (connection \"{}\") to \"{}\" (connection \"{}\"), by generation {number}.",
                    place.route.connection(),
                    route.environment(),
                    route.connection()
                )
            })
        }
    }
}

/// Builds the generation after the old one, or the first.
fn build(
    prepared: Prepared,
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
        places: DashMap::new(),
        grants: grants.clone(),
    }
}
