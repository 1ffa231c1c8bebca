//! What all sessions are told.

use super::{Proxy, terminated};
use crate::engine::{Order, OrderedBy, When};
use wire::error::Refusal;

/// How many sessions are woken each time, to rest or because a limit is another: the threads that relay have others to serve.
const MOST_TO_REST: usize = 2_000;
const MOST_TO_LOOK: usize = 5_000;

impl Proxy {
    /// Has those rest that do nothing, and those look that do not know of a limit.
    pub(super) fn tend_sessions(&self) {
        let sessions = self.sessions.iter();
        let _ = sessions.filter(|session| session.orders.tend()).take(MOST_TO_REST).count();
        self.sessions.wake_some(MOST_TO_LOOK);
    }

    /// The process ends, and they do.
    pub(super) fn order_all(&self, when: When) {
        for session in self.sessions.iter() {
            session.orders.give(Order { by: OrderedBy::Operator, when, refusal: shutdown() });
        }
    }
}

/// What they are told then.
pub(super) fn shutdown() -> Refusal {
    terminated().detail("pgusher is shutting down.")
}
