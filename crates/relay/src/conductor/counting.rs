//! What is counted of a session, and how long things take.

use super::event::{Moment, World};
use super::{Conductor, Ended, Loan, Turn};

/// Since when things are under way.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pub(super) transaction: Option<Moment>,
    pub(super) query: Option<Moment>,
    pub(super) reset: Option<Moment>,
    /// The last answer was whole.
    pub(super) answered: Option<Moment>,
    /// How many transactions have been reported.
    pub(super) reported: u64,
}

impl Conductor {
    /// Something was asked, or answered: what that means for the pool's counters. The clock is read when a transaction
    /// begins and when it ends, and around each query within.
    pub(super) fn count<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) {
        // What ends without a connection (LISTEN: the pool's own one has the channels) has been asked with one.
        let is_over = matches!(self.lease, Loan::None | Loan::Returned) && self.clock.query.is_some();
        if self.lease != Loan::Held && !is_over {
            return;
        }
        if !self.core.is_clients_turn() {
            if self.clock.query.is_none() {
                let now = turn.world.now();
                self.clock.query = Some(now);
                self.clock.transaction.get_or_insert(now);
            }
            return;
        }
        let Some(asked) = self.clock.query.take() else { return };
        let now = turn.world.now();
        self.clock.answered = Some(now);
        turn.record(|all| all.query = Some(now.micros_since(asked)));
        if self.core.transactions() != self.clock.reported {
            let took = self.clock.transaction.take().map(|began| now.micros_since(began));
            turn.record(|all| all.ended = Some(self.ended(took)));
        }
        if self.core.is_idle() {
            self.clock.transaction = None;
        }
    }

    /// Since when the session has been doing what it does, where that is known, and its transaction.
    pub fn under_way(&self) -> (Option<Moment>, Option<Moment>) {
        (self.clock.query.or(self.clock.answered), self.clock.transaction)
    }

    /// What has ended since this was asked last.
    pub(super) fn ended(&mut self, took: Option<u64>) -> Ended {
        let transactions = self.core.transactions() - self.clock.reported;
        self.clock.reported = self.core.transactions();
        Ended { took, transactions, counts: self.core.take_counts(), prepared: self.core.prepared() }
    }
}
