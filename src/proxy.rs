//! Everything assembled, in rooms: whoever serves takes those it has to do with, and nobody has them all.

mod access;
mod attempt;
mod configuration;
mod current;
mod generation;
mod hosts;
mod journal;
mod overrides;
mod permits;
mod registry;
mod sessions;
mod signals;
mod snapshot;
mod standing;
mod write;

pub(crate) use access::Access;
pub(crate) use attempt::LoginAttempt;
pub(crate) use configuration::{Configuration, LoadError, PastConfiguration};
pub(crate) use current::Current;
pub(crate) use generation::{Asked, Generation, LiveSession, SessionTarget};
pub(crate) use journal::{Journal, SetLevel};
pub(crate) use overrides::SetError;
pub(crate) use permits::{ClientPermit, Permits};
pub(crate) use sessions::Sessions;
pub(crate) use snapshot::Snapshot;
pub(crate) use standing::Standing;
pub(crate) use write::{Change, Intent, WriteError, Written};

use std::sync::Arc;
use std::time::Duration;

use crate::audit::Audit;
use crate::auth::Authenticator;
use crate::cancel::Keys;
use crate::engine::{Signals, Timeouts};
use crate::grants::Grants;
use crate::lifetime::Lifetime;
use crate::login_permits::LoginPermits;
use crate::pool::Runtimes;
use crate::prepare::PreparedConfig;
use configuration::ConfigurationParts;
use generation::build;
use hosts::Hosts;
use relay::Interner;
use signals::BackendSignals;

/// How often idle connections are looked after.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

/// See the module. It is taken apart where the process starts, and shared by nobody.
pub(crate) struct Proxy {
    /// The generation in force.
    pub current: Arc<Current>,
    /// The sessions that live.
    pub sessions: Arc<Sessions>,
    /// What operators have ordered of databases.
    pub standing: Arc<Standing>,
    /// Access for a while.
    pub access: Arc<Access>,
    /// How a configuration comes into force.
    pub configuration: Arc<Configuration>,
    /// What is told and counted.
    pub journal: Arc<Journal>,
    /// Whether clients are accepted, and how the process ends.
    pub life: Arc<Lifetime>,
    /// How many clients there are, of whom and where.
    pub permits: Arc<Permits>,
    /// Clients that have not proved yet who they are.
    pub login_permits: Arc<LoginPermits>,
    /// Who may log in.
    pub authenticator: Arc<Authenticator>,
    /// Cancel keys.
    pub keys: Arc<Keys>,
    /// `pg_cancel_backend` and the like.
    pub signals: Arc<dyn Signals>,
    /// Prepared statements.
    pub interner: Arc<Interner>,
    /// The two runtimes.
    pub runtimes: Runtimes,
}

impl Proxy {
    /// With the configuration that was loaded as generation 1.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn new(
        prepared: PreparedConfig,
        runtimes: Runtimes,
        audit: Audit,
    ) -> Result<Self, getrandom::Error> {
        let config = prepared.checked().config();
        let timeouts = Timeouts::default();
        timeouts.set(&config.server);
        let grants = Arc::new(Grants::load(config.grants_file()));
        let authenticator = Arc::new(Authenticator::new(&config.auth_key_file())?);
        let logins = authenticator.prepare(config, None);
        let hosts = Hosts::new(runtimes.clone());
        let current = Arc::new(Current::new(build(prepared, logins, None, &hosts, &grants)));
        let (journal, life) = (Arc::new(Journal::new(audit)), Arc::<Lifetime>::default());
        let sessions = Arc::new(Sessions::new(current.clone(), journal.clone(), life.clone(), timeouts));
        let standing = Arc::new(Standing::new(current.clone(), sessions.clone()));
        let access =
            Arc::new(Access::new(current.clone(), sessions.clone(), journal.clone(), grants.clone()));
        let configuration = Arc::new(Configuration::new(ConfigurationParts {
            current: current.clone(),
            sessions: sessions.clone(),
            standing: standing.clone(),
            journal: journal.clone(),
            authenticator: authenticator.clone(),
            grants,
            hosts,
        }));
        let keys = Arc::<Keys>::default();
        let signals = Arc::new(BackendSignals { keys: keys.clone(), sessions: sessions.clone() });
        Ok(Self {
            current,
            sessions,
            standing,
            access,
            configuration,
            journal,
            life,
            permits: Arc::default(),
            login_permits: Arc::default(),
            authenticator,
            keys,
            signals,
            interner: Arc::new(Interner::new(getrandom::u64()?)),
            runtimes,
        })
    }

    /// Looks after the pools, the sessions and the grants until the process ends.
    pub(crate) fn tend(&self) -> impl Future<Output = ()> + Send + use<> {
        let (journal, configuration) = (self.journal.clone(), self.configuration.clone());
        let (sessions, access) = (self.sessions.clone(), self.access.clone());
        async move {
            let mut interval = tokio::time::interval(TEND_INTERVAL);
            loop {
                interval.tick().await;
                journal.tend();
                configuration.tend_pools();
                sessions.tend();
                if access.are_due() {
                    let access = access.clone();
                    let _ = tokio::task::spawn_blocking(move || access.tend()).await;
                }
            }
        }
    }
}
