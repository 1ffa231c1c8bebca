//! What can be seen of a session from outside, and what its pool counts of it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::{Counter, Stats};
use relay::Pin;
use relay::conductor::{Ended, Resets, Statistics};

/// What can be seen of a session from outside, while it lives.
#[derive(Debug, Default)]
pub(crate) struct SessionStatistics {
    transactions: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Microseconds that it has waited for connections, all in all.
    waited: AtomicU64,
    prepared: AtomicU32,
    /// Why it keeps its connection: the place in [`Pin::ALL`](Pin::ALL), from 1.
    pin: AtomicU8,
}

/// [`SessionStatistics`] at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionFigures {
    /// How many have ended.
    pub transactions: u64,
    /// Bytes from the client and to it, as of the last of them.
    pub bytes: (u64, u64),
    /// How long it has waited for connections.
    pub waited: Duration,
    /// Its named prepared statements.
    pub prepared: u32,
    /// Why it keeps its connection.
    pub pin: Option<Pin>,
}

impl SessionStatistics {
    /// What can be seen now.
    pub(crate) fn see(&self) -> SessionFigures {
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let pin = usize::from(self.pin.load(Ordering::Relaxed));
        SessionFigures {
            transactions: get(&self.transactions),
            bytes: (get(&self.received), get(&self.sent)),
            waited: Duration::from_micros(get(&self.waited)),
            prepared: self.prepared.load(Ordering::Relaxed),
            pin: pin.checked_sub(1).and_then(|at| Pin::ALL.get(at)).copied(),
        }
    }

    /// Whether an even number of transactions have ended.
    pub(super) fn is_even(&self) -> bool {
        self.transactions.load(Ordering::Relaxed).is_multiple_of(2)
    }

    pub(super) fn pin_is(&self, pin: Option<Pin>) {
        let at = pin.and_then(|pin| Pin::ALL.iter().position(|known| *known == pin));
        let at = at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0);
        self.pin.store(at, Ordering::Relaxed);
    }

    /// It has waited so long for a connection.
    pub(super) fn waited(&self, micros: u64) {
        self.waited.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted goes to the pool, and to whoever looks: who looked last knows which bytes were counted already.
    pub(super) fn count(&self, statistics: &Statistics, bytes: (u64, u64), stats: &Stats) {
        if let Some(micros) = statistics.query {
            stats.observe(Counter::QueryTime, micros);
        }
        if let Some(ended) = &statistics.ended {
            self.count_ended(ended, bytes, stats);
        }
        match statistics.reset {
            None => {}
            Some(Resets::Begun) => drop(stats.isolated.hand_overs.fetch_add(1, Ordering::Relaxed)),
            Some(Resets::Done(took)) => stats.isolated.reset(took),
            Some(Resets::Failed) => stats.isolated.failed(),
        }
    }

    fn count_ended(&self, ended: &Ended, bytes: (u64, u64), stats: &Stats) {
        if let Some(micros) = ended.took {
            stats.observe(Counter::TransactionTime, micros);
        }
        let grown = |figure: &AtomicU64, now: u64| {
            let before = figure.load(Ordering::Relaxed);
            figure.store(now, Ordering::Relaxed);
            now - before
        };
        let transactions = self.transactions.load(Ordering::Relaxed) + ended.transactions;
        self.transactions.store(transactions, Ordering::Relaxed);
        stats.add(Counter::Transactions, ended.transactions);
        stats.add(Counter::Received, grown(&self.received, bytes.0));
        stats.add(Counter::Sent, grown(&self.sent, bytes.1));
        stats.add(Counter::Queries, ended.counts.queries.into());
        stats.add(Counter::ClientParses, ended.counts.client_parses.into());
        stats.add(Counter::ServerParses, ended.counts.server_parses.into());
        stats.add(Counter::Binds, ended.counts.binds.into());
        self.prepared.store(u32::try_from(ended.prepared).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}
