//! What is told and counted of the process as a whole: the audit, refusals, and the counters of `/metrics`.

use std::sync::OnceLock;

use crate::audit::{Audit, Refusals, Refused};
use crate::stats::Counters;
use policy::config::LogLevel;
use wire::error::Refusal;

/// See the module.
pub(crate) struct Journal {
    /// What is told of it all.
    pub audit: Audit,
    /// What is counted for the process as a whole.
    pub counters: Counters,
    refusals: Refusals,
    log: OnceLock<SetLevel>,
}

/// Changes the least important lines that are logged.
pub(crate) type SetLevel = Box<dyn Fn(LogLevel) + Send + Sync>;

impl Journal {
    pub(super) fn new(audit: Audit) -> Self {
        Self { audit, counters: Counters::default(), refusals: Refusals::default(), log: OnceLock::new() }
    }

    /// By this the level of the log is changed from now on.
    pub(crate) fn log_is_set_by(&self, set: SetLevel) {
        let _ = self.log.set(set);
    }

    pub(super) fn set_log_level(&self, level: LogLevel) {
        self.log.get().inspect(|set| set(level));
    }

    /// Counts what somebody was refused who is in; whether that is told by itself, and not only how many there were.
    pub(crate) fn is_refusal_told(&self, peer: &str, refusal: &Refusal) -> bool {
        self.refusals.count(peer, refusal)
    }

    /// Somebody was not let in: counted, and told unless there are too many of them.
    pub(crate) fn refused(&self, refused: Refused<'_>) {
        self.counters.refused(refused.refusal);
        self.refusals.tell(&self.audit, refused);
    }

    /// Tells what of that was only counted.
    pub(crate) fn sum_up_refusals(&self) {
        self.refusals.sum_up(&self.audit);
    }

    pub(super) fn tend(&self) {
        self.refusals.tend(&self.audit);
    }
}
