//! How a configuration comes into force: reload, roll back, plan; and what is remembered of those before.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

use super::generation::build;
use super::hosts::Hosts;
use super::overrides::{Overrides, SetError};
use super::write::{Intent, PasswordGuesses};
use super::{Current, Generation, Journal, Sessions, Standing};
use crate::audit::Event;
use crate::auth::Authenticator;
use crate::grants::Grants;
use crate::pool::Pool;
use crate::prepare::{self, PreparedConfig};
use policy::config::problems::Severity;
use policy::config::{Config, Outside, Rejected};
use policy::names::ConnectionName;
use policy::plan::{Hit, Plan};

/// How many configurations can be gone back to.
const EARLIER: usize = 10;
/// How many configurations are remembered.
const HISTORY: usize = 50;

/// What is remembered of a configuration.
#[derive(Debug, Clone)]
pub(crate) struct PastConfiguration {
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

impl PastConfiguration {
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
    /// The configuration of a generation is not remembered.
    #[error("the configuration of generation {0} is not remembered (SHOW GENERATIONS)")]
    Forgotten(u64),
}

/// See the module.
pub(crate) struct Configuration {
    pub(super) path: PathBuf,
    pub(super) current: Arc<Current>,
    sessions: Arc<Sessions>,
    standing: Arc<Standing>,
    journal: Arc<Journal>,
    authenticator: Arc<Authenticator>,
    grants: Arc<Grants>,
    hosts: Hosts,
    pub(super) reloading: Mutex<()>,
    pub(super) password_guesses: PasswordGuesses,
    /// Who asks for a plan reads files and runs commands: one at a time, so that they fill up no threads.
    pub planning: Semaphore,
    history: Mutex<VecDeque<PastConfiguration>>,
    /// What was set on the console since the file was read last (`SET`).
    pub(super) overrides: Mutex<Overrides>,
    /// The configurations that were in force before; the last one last.
    pub(super) earlier: Mutex<Vec<Earlier>>,
    /// The first of the generations that have the text in force: a `SET` changes no text.
    pub(super) first: AtomicU64,
}

/// A configuration that was in force.
#[derive(Debug, Clone)]
pub(super) struct Earlier {
    /// The generations that had this text.
    pub(super) numbers: RangeInclusive<u64>,
    /// Its text.
    pub(super) source: SecretString,
}

/// What a configuration has to do with.
pub(super) struct ConfigurationParts {
    pub(super) current: Arc<Current>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) standing: Arc<Standing>,
    pub(super) journal: Arc<Journal>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) grants: Arc<Grants>,
    pub(super) hosts: Hosts,
}

impl Configuration {
    /// With the one that was loaded as generation 1.
    pub(super) fn new(around: ConfigurationParts) -> Self {
        let ConfigurationParts { current, sessions, standing, journal, authenticator, grants, hosts } =
            around;
        let first = current.generation();
        Self {
            path: first.config.path.clone(),
            current,
            sessions,
            standing,
            journal,
            authenticator,
            grants,
            hosts,
            reloading: Mutex::default(),
            password_guesses: PasswordGuesses::default(),
            planning: Semaphore::new(1),
            history: Mutex::new([PastConfiguration::in_force(&first, "start".into())].into()),
            overrides: Mutex::default(),
            earlier: Mutex::default(),
            first: AtomicU64::new(first.number),
        }
    }

    /// Looks after the pools of all generations that are still there.
    pub(super) fn tend_pools(&self) {
        self.hosts.living().iter().for_each(Pool::tend);
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
            Ok(_) => self.journal.counters.reloads.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.journal.counters.refused_reloads.fetch_add(1, Ordering::Relaxed),
        };
        if let Err(error) = &applied {
            let reason = match error {
                LoadError::Rejected(rejected) => rejected.0.reason(),
                _ => None,
            };
            let first_line = || error.to_string().lines().next().unwrap_or_default().to_owned();
            let error = reason.unwrap_or_else(first_line);
            self.journal.audit.record(|| {
                Event::new("reload_refused")
                    .number("generation", self.current.generation().number)
                    .text("error", &error)
            });
            self.remember(PastConfiguration::refused(self.current.generation().number + 1, error));
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
            Some(path) => prepare::load_beside(&self.current.generation().config, path),
        };
        let new = new.map_err(LoadError::Rejected)?;
        Ok(self.plan_of(new.checked().config()))
    }

    /// What a configuration would change if it took effect now.
    pub(super) fn plan_of(&self, new: &Config) -> Plan {
        let generation = self.current.generation();
        self.plan_between(&generation, &generation.config, new)
    }

    /// What a text would change, by what it says alone: secrets are neither read nor compared.
    ///
    /// # Errors
    /// It is refused.
    pub(crate) fn plan_text(&self, text: &str) -> Result<(Plan, Vec<String>), LoadError> {
        let generation = self.current.generation();
        let of = |text: &str| prepare::reviewed_text(&self.path, text).map_err(LoadError::Rejected);
        let (old, new) = (of(generation.config.source.expose_secret())?, of(text)?);
        let mut plan = self.plan_between(&generation, old.config(), new.config());
        plan.secrets.clear();
        let warnings = new.warnings();
        Ok((plan, warnings.iter().map(|problem| problem.message.clone()).collect()))
    }

    fn plan_between(&self, generation: &Generation, old: &Config, new: &Config) -> Plan {
        let mut plan = Plan::between(old, new);
        plan.add_granted(old, new, &self.grants.all());
        for session in self.sessions.list() {
            if let Some(why) = generation.moved_by(new, &session) {
                let (id, user) = (session.id, session.identity.user().clone());
                plan.sessions.push(Hit { session: id, user, why });
            }
        }
        plan.sessions.sort_by_key(|hit| hit.session);
        plan
    }

    /// The configuration that was in force before, or the one of this number, takes effect again, as a new generation. The file
    /// stays as it is. Blocks while secrets are read.
    ///
    /// # Errors
    /// There is none, or it cannot be used any more.
    pub(crate) fn roll_back(&self, number: Option<u64>) -> Result<Arc<Generation>, LoadError> {
        let _one_at_a_time = self.reloading.lock();
        let earlier = self.earlier.lock().last().map(|earlier| earlier.source.clone());
        let goes_back = number.is_none() && earlier.is_some();
        let source = match number {
            // Where there is no earlier text, what was set is taken back.
            None => earlier.or_else(|| {
                let is_set = !self.overrides.lock().is_empty();
                is_set.then(|| self.current.generation().config.source.clone())
            }),
            Some(number) => self.source(number),
        };
        let source = source.ok_or(number.map_or(LoadError::NothingEarlier, LoadError::Forgotten))?;
        let mut prepared = self.prepare(source.expose_secret())?;
        prepared.keep_tokens_of(&self.current.generation().config);
        let plan = self.plan_of(prepared.checked().config());
        let applied = self.apply(prepared, "rollback", &plan);
        if goes_back {
            // What was in force until now is no earlier one of it: another ROLLBACK goes further back.
            let mut earlier = self.earlier.lock();
            earlier.pop();
            earlier.pop();
        }
        Ok(applied)
    }

    /// A setting of `[server]` has another value until a file is read, or the API writes one; or it is only said what it would be.
    /// The setting, as it would be written, and what is in force then. Blocks while secrets are read.
    ///
    /// # Errors
    /// There is no such setting, it cannot be set so, or the value is none.
    pub(crate) fn set(
        &self,
        key: &str,
        value: &str,
        intent: Intent,
    ) -> Result<(String, Arc<Generation>), SetError> {
        let key = &*key.to_ascii_lowercase();
        let _one_at_a_time = self.reloading.lock();
        let before = self.overrides.lock().clone();
        let mut overrides = before.clone();
        overrides.set(key, value)?;
        let old = self.current.generation();
        let source = old.config.source.expose_secret();
        let mut prepared = self.prepare(&overrides.over(source)).map_err(|error| {
            match self.prepare(&before.over(source)) {
                Ok(_) => SetError::value(key, value, &error),
                Err(error) => SetError::broken(&error),
            }
        })?;
        let shown = prepared.checked().config().server.shown().into_iter().find(|(name, _)| *name == key);
        let shown = shown.map_or_else(String::new, |(_, value)| value);
        if intent.is_dry() {
            return Ok((shown, old));
        }
        prepared.keep_source_of(&old.config);
        prepared.keep_tokens_of(&old.config);
        let plan = self.plan_of(prepared.checked().config());
        let applied = self.apply(prepared, &format!("SET {key}"), &plan);
        *self.overrides.lock() = overrides;
        Ok((shown, applied))
    }

    /// A text, as if it stood in the configuration's file. Blocks while secrets are read.
    pub(super) fn prepare(&self, source: &str) -> Result<PreparedConfig, LoadError> {
        prepare::parse(&self.path, source).map_err(LoadError::Rejected)
    }

    /// A configuration takes effect.
    pub(super) fn apply(&self, prepared: PreparedConfig, by: &str, plan: &Plan) -> Arc<Generation> {
        let old = self.current.generation();
        self.overrides.lock().clear();
        let warnings = prepared.checked().warnings();
        warnings.iter().for_each(|w| warn!("{}", warnings.line(w)));
        let logins =
            self.authenticator.prepare(prepared.checked().config(), Some((&old.config, &old.logins)));
        let new =
            self.standing.put_in_force(|old| build(prepared, logins, Some(old), &self.hosts, &self.grants));
        if old.config.source.expose_secret() != new.config.source.expose_secret() {
            let mut earlier = self.earlier.lock();
            let numbers = self.first.swap(new.number, Ordering::Relaxed)..=old.number;
            earlier.push(Earlier { numbers, source: old.config.source.clone() });
            if earlier.len() > EARLIER {
                earlier.remove(0);
            }
        }
        self.sessions.set_limits(&new.config.server);
        self.journal.set_log_level(*new.config.server.log_level);
        let (connections, users) = (new.config.connections.len(), new.config.users.len());
        for setting in plan.waiting() {
            warn!(setting, "the new value is in force after a restart");
        }
        let mut summary = plan.summary().into_iter();
        self.journal.audit.record(|| {
            let event = Event::new("reload").number("generation", new.number).text("by", by);
            let event = event.number("connections", connections as u64).number("users", users as u64);
            event.texts("changes", summary.next().unwrap_or_default())
        });
        for changes in summary {
            let event =
                || Event::new("reload_more").number("generation", new.number).texts("changes", changes);
            self.journal.audit.record(event);
        }
        for (name, pool) in &old.pools {
            let kept = new.pools.get(name).is_some_and(|p| Arc::ptr_eq(p, pool));
            if !kept {
                pool.retire();
            }
        }
        self.sessions.settle();
        self.current.announce(new.number);
        self.remember(PastConfiguration::in_force(&new, by.to_owned()));
        info!(generation = new.number, "configuration reloaded");
        new
    }

    /// Reloads, and says in the log how that went.
    ///
    /// # Errors
    /// As [`Configuration::reload`].
    pub(crate) fn reload_and_log(&self) -> Result<Arc<Generation>, LoadError> {
        self.log_reload(self.reload())
    }

    /// The same, with what it has changed.
    ///
    /// # Errors
    /// As [`Configuration::reload`].
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
                    generation = self.current.generation().number,
                    "reload refused: the old configuration stays in force"
                );
            }
            Err(error) => {
                error!(%error, generation = self.current.generation().number, "reload refused: the old configuration stays in force");
            }
        }
        reloaded
    }

    /// The base connection that is meant by a name; a name that is none stays as it is.
    pub(crate) fn base_named(&self, database: &str) -> ConnectionName {
        let generation = self.current.generation();
        let base = generation.config.base(database).map(|(connection, _)| connection.name.clone());
        base.unwrap_or_else(|| database.into())
    }

    /// The configurations there have been, the oldest first.
    pub(crate) fn history(&self) -> Vec<PastConfiguration> {
        self.history.lock().iter().cloned().collect()
    }

    fn remember(&self, known: PastConfiguration) {
        let mut history = self.history.lock();
        if known.error.is_none() {
            history.iter_mut().filter(|k| k.state == "in force").for_each(|k| k.state = "replaced");
        }
        history.push_back(known);
        if history.len() > HISTORY {
            history.pop_front();
        }
    }
}
