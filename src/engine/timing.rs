//! The clock of a session: one lazy timer, and no call to the system for a query that no limit holds for.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::Sleep;

use policy::config::Server;
use relay::conductor::{Overdue, Phase};

/// How long a client that is told why its session ends may take to read it.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);
/// How much longer than `query_timeout` pgusher waits before it cancels a statement itself, and then before it
/// gives the connection up.
const QUERY_GRACE: Duration = Duration::from_secs(1);

/// How long a connection may take to be reset before it is closed and another taken.
const MAX_RESET: Duration = Duration::from_secs(5);

/// How long a client that has closed its side is left alone before it is found out whether it is there: at first, as whoever is
/// gone answers that at once, and later.
const KNOCKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A client that sends nothing more and is owed answers.
#[derive(Default)]
pub(super) struct Farewell {
    timer: Timer,
    knocks: u8,
}

impl Farewell {
    /// True if it is to be sent something now; otherwise the task is woken when it is.
    pub(super) fn knocks(&mut self, clock: &Handle, cx: &mut Context<'_>) -> bool {
        let after = if self.knocks < 2 { KNOCKS.0 } else { KNOCKS.1 };
        let is_time = self.timer.is_over(Kind::Knocking, after, clock, cx);
        if is_time {
            self.timer.progress();
            self.knocks = self.knocks.saturating_add(1);
        }
        is_time
    }
}

/// What is timed: a phase begins anew when this changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client does not take what it is sent.
    Writing,
    /// The session waits for a connection.
    Waiting,
    /// It is found out whether the client is there.
    Knocking,
    /// It does something else.
    Phase(Phase),
}

impl From<Phase> for Kind {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Waiting { .. } => Self::Waiting,
            phase => Self::Phase(phase),
        }
    }
}

/// How long something may last (zero: for ever), and what is overdue then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// Since it began.
    pub after: Duration,
    /// What.
    pub what: Overdue,
}

/// The limits that an operator has set; zero is none. A reload changes them for every session at once.
#[derive(Debug, Default)]
pub(crate) struct Timeouts {
    client_idle: Limit,
    idle_transaction: Limit,
    query_wait: Limit,
    query_wait_notify: Limit,
    client_write: Limit,
}

/// Milliseconds.
#[derive(Debug, Default)]
struct Limit(AtomicU64);

impl Limit {
    /// Whether it was another before.
    fn set(&self, limit: Duration) -> bool {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.0.swap(limit, Ordering::Relaxed) != limit
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

impl Timeouts {
    /// Takes them from a configuration; whether any is another now. A session that does nothing looks at its own when it is woken.
    pub(crate) fn set(&self, server: &Server) -> bool {
        let changed = [
            self.client_idle.set(*server.client_idle_timeout),
            self.idle_transaction.set(*server.idle_transaction_timeout),
            self.query_wait.set(*server.query_wait_timeout),
            self.query_wait_notify.set(*server.query_wait_notify),
            self.client_write.set(*server.client_write_timeout),
        ];
        changed.contains(&true)
    }

    /// How long a client may take nothing of what it is sent.
    pub(crate) fn of_writing(&self) -> Duration {
        self.client_write.get()
    }

    /// How long a phase may last; a query, by what the connection was opened with.
    pub(crate) fn of(&self, phase: Phase, query_timeout: Duration) -> Due {
        let after = match phase {
            Phase::Idle => self.client_idle.get(),
            Phase::IdleInTransaction => self.idle_transaction.get(),
            Phase::Waiting { notified: false } if !self.until_notice().is_zero() => {
                return Due { after: self.until_notice(), what: Overdue::Notice };
            }
            Phase::Waiting { .. } => self.query_wait.get(),
            Phase::Querying(_) if query_timeout.is_zero() => Duration::ZERO,
            // The upstream should have ended it: it is cancelled from here, and then given up.
            Phase::Querying(_) => query_timeout + QUERY_GRACE,
            Phase::Cancelled(_) => 9 * QUERY_GRACE,
            Phase::Resetting { .. } => MAX_RESET,
        };
        Due { after, what: Overdue::Phase(phase) }
    }

    /// How long a client waits for a connection before it is told so; zero where that is not before it gives up.
    fn until_notice(&self) -> Duration {
        let (notify, timeout) = (self.query_wait_notify.get(), self.query_wait.get());
        if timeout.is_zero() || notify < timeout { notify } else { Duration::ZERO }
    }
}

/// Knows since when a phase lasts. The sleep is set when there is none earlier, and set again when it ends too
/// early: once per limit, not once per phase. It sleeps on the runtime that has a clock: the one that relays has
/// none, and so does not look at it whenever it waits.
#[derive(Default)]
pub(super) struct Timer {
    phase: Option<(Kind, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// True if this phase has lasted longer than its limit; otherwise the task is woken when it has. `clock` is a
    /// runtime that has one.
    pub(super) fn is_over(
        &mut self,
        phase: Kind,
        limit: Duration,
        clock: &Handle,
        cx: &mut Context<'_>,
    ) -> bool {
        if limit.is_zero() {
            self.phase = None;
            return false;
        }
        let since = match self.phase {
            Some((known, since)) if known == phase => since,
            _ => {
                let now = Instant::now();
                self.phase = Some((phase, now));
                now
            }
        };
        let deadline = since + limit;
        let sleep = match &mut self.sleep {
            Some(sleep) => sleep,
            none => {
                let _clock = clock.enter();
                none.insert(Box::pin(tokio::time::sleep_until(deadline.into())))
            }
        };
        if sleep.deadline() > deadline.into() {
            sleep.as_mut().reset(deadline.into());
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.sleep = None;
                return true;
            }
            sleep.as_mut().reset(deadline.into());
        }
        false
    }

    /// True if it is not as a new one.
    pub(super) fn is_set(&self) -> bool {
        self.phase.is_some() || self.sleep.is_some()
    }

    /// The phase began anew.
    pub(super) fn progress(&mut self) {
        self.phase = None;
    }
}
