//! What can be seen of a session from outside, and what its pool counts of it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::{Counter, Stats};
use relay::Pin;
use relay::conductor::{Ended, Moment, Phase, Resets, Statistics};

/// What can be seen of a session from outside, while it lives.
#[derive(Debug, Default)]
pub(crate) struct SessionStatistics {
    transactions: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Microseconds that it has waited for connections, all in all.
    waited: AtomicU64,
    prepared: AtomicU32,
    /// What it does, and since when ([`Activity`]).
    activity: AtomicU64,
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
    /// What it does.
    pub activity: Activity,
}

/// What a session does, in PostgreSQL's words (`pg_stat_activity.state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Idle,
    /// It is in a transaction, and the client has to say what comes next.
    IdleInTransaction,
    /// A statement runs.
    Active,
    /// It waits for a connection.
    Waiting,
}

impl State {
    /// As it is shown.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::IdleInTransaction => "idle in transaction",
            Self::Active => "active",
            Self::Waiting => "waiting",
        }
    }
}

/// What a session does, and since when; times are those of its pool ([`Pool::now`](crate::pool::Pool::now)), to a tenth of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Activity {
    /// What.
    pub state: State,
    /// Since when, if it has ever done anything.
    pub since: Option<Duration>,
    /// Since when its transaction lasts, if it is in one.
    pub transaction: Option<Duration>,
}

/// The bits of a time: tenths of a second, and one; 0 is none.
const TIME: u32 = 31;

impl Activity {
    /// As one number: the state in two bits, and the times in 31 each (almost seven years).
    fn packed(phase: Phase, (since, transaction): (Option<Moment>, Option<Moment>)) -> u64 {
        let time = |at: Option<Moment>| at.map_or(0, |at| (at.tenths() + 1).min((1 << TIME) - 1));
        let state = match phase {
            Phase::Idle => 0,
            Phase::IdleInTransaction => 1,
            Phase::Querying(_) | Phase::Cancelled(_) | Phase::Resetting { .. } => 2,
            Phase::Waiting { .. } => 3,
        };
        state << (2 * TIME) | time(transaction) << TIME | time(since)
    }

    fn unpacked(packed: u64) -> Self {
        let time =
            |bits: u64| (bits & ((1 << TIME) - 1)).checked_sub(1).map(|n| Duration::from_millis(100 * n));
        let state = match packed >> (2 * TIME) {
            0 => State::Idle,
            1 => State::IdleInTransaction,
            2 => State::Active,
            _ => State::Waiting,
        };
        Self { state, since: time(packed), transaction: time(packed >> TIME) }
    }
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
            activity: Activity::unpacked(get(&self.activity)),
            pin: pin.checked_sub(1).and_then(|at| Pin::ALL.get(at)).copied(),
        }
    }

    /// Whether an even number of transactions have ended.
    pub(super) fn is_even(&self) -> bool {
        self.transactions.load(Ordering::Relaxed).is_multiple_of(2)
    }

    /// It does something else from now on.
    pub(super) fn does(&self, phase: Phase, since: (Option<Moment>, Option<Moment>)) {
        self.activity.store(Activity::packed(phase, since), Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_does_is_seen_as_it_was_said() {
        let at = |seconds: u64| Some(Moment::after(seconds * 1_000_000_000));
        let seconds = |n: u64| Some(Duration::from_secs(n));
        for (phase, said, state, since, transaction) in [
            (Phase::Idle, (None, None), State::Idle, None, None),
            (Phase::Idle, (at(0), None), State::Idle, seconds(0), None),
            (Phase::IdleInTransaction, (at(7), at(5)), State::IdleInTransaction, seconds(7), seconds(5)),
            (Phase::Querying(3), (at(100_000_000), at(1)), State::Active, seconds(100_000_000), seconds(1)),
            (Phase::Waiting { notified: true }, (None, None), State::Waiting, None, None),
        ] {
            let seen = Activity::unpacked(Activity::packed(phase, said));
            assert_eq!(seen, Activity { state, since, transaction });
        }
    }
}
