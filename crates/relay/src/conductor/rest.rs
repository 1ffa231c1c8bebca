//! A session that does nothing, in as little memory as it can be had.

use super::counting::Clock;
use super::{Conductor, Loan};
use crate::core;

/// A session without a connection, of which nothing is under way. [`Resting::wake`] makes of it what it was.
#[derive(Debug)]
pub struct Resting(core::Resting);

impl Conductor {
    /// True if nothing is lost when it rests.
    pub fn may_rest(&self) -> bool {
        let Self {
            core,
            lease: Loan::None,
            deferred: false,
            leaving: false,
            need: 0,
            lost_role: None,
            setups_failed: 0,
            permitted: false,
            overdue: None,
            // When it was answered was told already.
            clock: Clock { transaction: None, query: None, reset: None, answered: _, reported },
        } = self
        else {
            return false;
        };
        *reported == core.transactions() && core.may_rest()
    }

    /// What is kept of a session that [may rest](Self::may_rest).
    pub fn rest(self) -> Resting {
        Resting(self.core.rest())
    }
}

impl Resting {
    /// The session as it was.
    pub fn wake(self) -> Conductor {
        let core = self.0.wake();
        let clock = Clock { reported: core.transactions(), ..Clock::default() };
        Conductor { clock, ..Conductor::of(core) }
    }
}
