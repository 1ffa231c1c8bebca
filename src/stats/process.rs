//! What is counted for the process as a whole.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use parking_lot::Mutex;
use tracing_appender::non_blocking::ErrorCounter;

use super::Histogram;
use wire::error::{Refusal, Shown, SqlState};

/// How many SQLSTATEs are counted apart, with their faults: upstreams may send any.
const MOST_STATES: usize = 200;

/// The refusals of one SQLSTATE and fault.
#[derive(Debug, Clone)]
pub(crate) struct RefusalCount {
    /// How many.
    pub count: u64,
    /// The last one: when, and what the client was told.
    pub last: (SystemTime, String),
}

/// By SQLSTATE (`None` for those for which there was no room) and fault.
type Refusals = BTreeMap<(Option<SqlState>, &'static str), RefusalCount>;

/// What is counted for the process as a whole.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By SQLSTATE and fault.
    refusals: Mutex<Refusals>,
    /// Of the log.
    dropped: OnceLock<ErrorCounter>,
    /// Cancel requests that came.
    pub cancels: AtomicU64,
    /// Configurations that took effect.
    pub reloads: AtomicU64,
    /// And those that were refused.
    pub refused_reloads: AtomicU64,
    /// From the accepted socket to the first `ReadyForQuery`.
    pub logins: Histogram,
    /// From who it is to where it goes.
    pub lookups: Histogram,
}

impl Counters {
    /// Where the lines are counted that the log has lost.
    pub(crate) fn log_lines_dropped(&self, counter: ErrorCounter) {
        let _ = self.dropped.set(counter);
    }

    /// How many those are.
    pub(crate) fn lines_dropped(&self) -> u64 {
        self.dropped.get().map_or(0, |counter| counter.dropped_lines() as u64)
    }

    /// How many refusals there were, by SQLSTATE and fault.
    pub(crate) fn refusals(&self) -> Refusals {
        self.refusals.lock().clone()
    }

    /// A client was refused, or its session ended so.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let fault = refusal.fault.word();
        let last = (SystemTime::now(), Shown::sentence(&refusal.message).to_string());
        let mut refusals = self.refusals.lock();
        let key = (Some(refusal.sqlstate), fault);
        let has_room = refusals.len() < MOST_STATES || refusals.contains_key(&key);
        let refused = refusals
            .entry(if has_room { key } else { (None, fault) })
            .or_insert_with(|| RefusalCount { count: 0, last: last.clone() });
        refused.count += 1;
        refused.last = last;
    }
}

#[cfg(test)]
mod tests {
    use wire::error::Fault;

    use super::*;

    #[test]
    fn however_many_sqlstates_an_upstream_sends_so_many_are_counted_apart() {
        let counters = Counters::default();
        for number in 0..1000 {
            let state = SqlState::parse(format!("P{number:04}").as_bytes()).unwrap();
            counters.refused(&Refusal::new(Fault::Upstream, state, "no"));
        }
        let refusals = counters.refusals();
        let all: u64 = refusals.values().map(|refused| refused.count).sum();
        assert_eq!((refusals.len(), all), (MOST_STATES + 1, 1000));
        assert_eq!(refusals[&(None, "upstream")].count, 800);
        assert!(refusals.values().all(|refused| refused.last.1 == "no"));
    }
}
