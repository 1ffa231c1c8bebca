//! What ends a session from outside: an operator's `KILL_CLIENT`, and `pg_cancel_backend` and `pg_terminate_backend` of a session, by the number that stands for it.

use std::sync::Arc;

use super::Sessions;
use crate::cancel::Keys;
use crate::engine::{Order, OrderedBy, Signals, When};
use policy::config::file::Console;
use relay::sql::Signal;
use relay::{Act, Reached, Signalled};
use wire::error::{Fault, Refusal, SqlState};

/// PostgreSQL's words for who is ended from outside.
pub(super) fn terminated() -> Refusal {
    let message = "terminating connection due to administrator command";
    Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, message)
}

pub(super) fn killed() -> Refusal {
    terminated().detail("An operator has ended it.")
}

/// `pg_cancel_backend` and `pg_terminate_backend` of sessions.
pub(super) struct BackendSignals {
    pub(super) keys: Arc<Keys>,
    pub(super) sessions: Arc<Sessions>,
}

impl Signals for BackendSignals {
    /// PostgreSQL lets a role signal its own sessions, and a superuser all, of one server: so a user may signal his own on the same
    /// connection of the configuration, and an operator everybody's there. Never in another environment.
    fn signal(&self, caller: u64, signalled: Signalled) -> Reached {
        let session = |id: u64| self.sessions.get(id);
        let called = self.keys.session(signalled.pid).and_then(session);
        let (Some(called), Some(caller)) = (called, session(caller)) else { return Reached::Nobody };
        let user = caller.identity.user();
        let is_operator = || {
            let generation = self.sessions.current.generation();
            generation.config.users.get(user).is_some_and(|user| user.console == Some(Console::Admin))
        };
        let is_allowed = called.target.route.connection() == caller.target.route.connection()
            && (called.identity.user() == user || is_operator());
        if !is_allowed {
            return Reached::Nobody;
        }
        if signalled.act == Act::Look {
            return Reached::Session;
        }
        match signalled.signal {
            Signal::Cancel => {
                let slot = called.slot.clone();
                called.pool.spawn(async move { slot.cancel().await });
            }
            Signal::Terminate => {
                let order = Order { by: OrderedBy::Operator, when: When::Now, refusal: terminated() };
                called.orders.give(order);
            }
        }
        Reached::Session
    }
}
