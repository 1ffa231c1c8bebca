//! What a client meets on its way in and while it is served. Nothing in it changes a configuration, a grant or an operator's order.

use std::sync::Arc;

use crate::auth::Authenticator;
use crate::cancel::Keys;
use crate::engine::Signals;
use crate::lifetime::Lifetime;
use crate::login_permits::LoginPermits;
use crate::pool::Runtimes;
use crate::proxy::{Current, Journal, Permits, Proxy, Sessions};
use crate::siblings::Siblings;
use relay::Interner;

/// See the module.
pub(crate) struct Entrance {
    /// By what logins are decided.
    pub current: Arc<Current>,
    /// Where they lead.
    pub sessions: Arc<Sessions>,
    /// What is told and counted of them.
    pub journal: Arc<Journal>,
    /// Whether clients are accepted.
    pub life: Arc<Lifetime>,
    /// How many there may be.
    pub permits: Arc<Permits>,
    /// Those that have not proved yet who they are.
    pub login_permits: Arc<LoginPermits>,
    /// Who may log in.
    pub authenticator: Arc<Authenticator>,
    /// Cancel keys.
    pub keys: Arc<Keys>,
    /// Who may have the key of a cancel request that nobody has here; none if this process has its addresses alone.
    pub siblings: Option<Siblings>,
    /// `pg_cancel_backend` and the like.
    pub signals: Arc<dyn Signals>,
    /// Prepared statements.
    pub interner: Arc<Interner>,
    /// The two runtimes.
    pub runtimes: Runtimes,
}

impl Entrance {
    /// That of a proxy.
    pub(crate) fn of(proxy: &Proxy, siblings: Option<Siblings>) -> Self {
        Self {
            current: proxy.current.clone(),
            sessions: proxy.sessions.clone(),
            journal: proxy.journal.clone(),
            life: proxy.life.clone(),
            permits: proxy.permits.clone(),
            login_permits: proxy.login_permits.clone(),
            authenticator: proxy.authenticator.clone(),
            keys: proxy.keys.clone(),
            siblings,
            signals: proxy.signals.clone(),
            interner: proxy.interner.clone(),
            runtimes: proxy.runtimes.clone(),
        }
    }
}
