//! What the console reaches: all that operators look at and change, and nothing of a client's traffic.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::present::Presence;
use crate::aside::Aside;
use crate::auth::Authenticator;
use crate::lifetime::Lifetime;
use crate::pool::Runtimes;
use crate::proxy::{Access, Configuration, Current, Journal, Permits, Proxy, Sessions, Standing};

/// How many tables are made at once.
const MAX_TABLES: usize = 2;
/// What answers may hold in all, in KiB.
const MAX_ANSWERS: usize = 256 << 10;

/// See the module.
pub(crate) struct Console {
    /// The generation in force.
    pub current: Arc<Current>,
    /// The sessions that live.
    pub sessions: Arc<Sessions>,
    /// Pauses, drains and the like.
    pub standing: Arc<Standing>,
    /// Grants.
    pub access: Arc<Access>,
    /// Reload, plan, roll back.
    pub configuration: Arc<Configuration>,
    /// What is told and counted.
    pub journal: Arc<Journal>,
    /// How the process ends.
    pub life: Arc<Lifetime>,
    /// How many sessions of the console there may be.
    pub permits: Arc<Permits>,
    /// Who may log in to it.
    pub authenticator: Arc<Authenticator>,
    /// What there is to be told of threads.
    pub runtimes: Runtimes,
    /// Who is on it.
    pub presence: Presence,
    /// Where tables are made.
    pub tables: Aside,
    /// What answers may hold in all, in KiB.
    pub answers: Arc<Semaphore>,
}

impl Console {
    /// That of a proxy.
    pub(crate) fn of(proxy: &Proxy) -> Self {
        Self {
            current: proxy.current.clone(),
            sessions: proxy.sessions.clone(),
            standing: proxy.standing.clone(),
            access: proxy.access.clone(),
            configuration: proxy.configuration.clone(),
            journal: proxy.journal.clone(),
            life: proxy.life.clone(),
            permits: proxy.permits.clone(),
            authenticator: proxy.authenticator.clone(),
            runtimes: proxy.runtimes.clone(),
            presence: Presence::default(),
            tables: Aside::new(MAX_TABLES),
            answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
        }
    }
}
