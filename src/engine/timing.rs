//! The clock of a session: one lazy timer, and no call to the system for a query that no limit holds for.

use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::Sleep;

use policy::config::Server;

/// How long a client that is told why its session ends may take to read it.
pub const LAST_WORDS: Duration = Duration::from_secs(5);
/// How much longer than `query_timeout` pgusher waits before it cancels a statement itself, and then before it
/// gives the connection up.
const QUERY_GRACE: Duration = Duration::from_secs(1);

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing, outside a transaction.
    Idle,
    /// Nothing, inside one.
    IdleInTransaction,
    /// It waits for a connection.
    Waiting,
    /// The upstream works; the number tells one transaction from the next.
    Querying(u64),
    /// The client does not take what it is sent.
    Writing,
}

/// The limits that an operator has set; zero is none. A reload changes them for every session at once.
#[derive(Debug, Default)]
pub struct Timeouts {
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
    fn set(&self, limit: Duration) {
        self.0.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

impl Timeouts {
    /// Takes them from a configuration.
    pub fn set(&self, server: &Server) {
        self.client_idle.set(*server.client_idle_timeout);
        self.idle_transaction.set(*server.idle_transaction_timeout);
        self.query_wait.set(*server.query_wait_timeout);
        self.query_wait_notify.set(*server.query_wait_notify);
        self.client_write.set(*server.client_write_timeout);
    }

    /// The limit of a phase other than `Querying`.
    pub fn of(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Idle => self.client_idle.get(),
            Phase::IdleInTransaction => self.idle_transaction.get(),
            Phase::Waiting => self.query_wait.get(),
            Phase::Writing => self.client_write.get(),
            Phase::Querying(_) => Duration::ZERO,
        }
    }
}

impl Timeouts {
    /// How long a client waits for a connection before it is told so; zero where that is not before it gives up.
    pub fn until_notice(&self) -> Duration {
        let (notify, timeout) = (self.query_wait_notify.get(), self.query_wait.get());
        if timeout.is_zero() || notify < timeout { notify } else { Duration::ZERO }
    }
}

/// When a query that should have timed out upstream is cancelled from here, and then given up.
pub fn of_query(query_timeout: Duration, strikes: u32) -> Duration {
    if query_timeout.is_zero() { query_timeout } else { query_timeout + QUERY_GRACE * (1 + 9 * strikes) }
}

/// Knows since when a phase lasts. The sleep is set when there is none earlier, and set again when it ends too
/// early: once per limit, not once per phase. It sleeps on the runtime that has a clock: the one that relays has
/// none, and so does not look at it whenever it waits.
#[derive(Default)]
pub struct Timer {
    phase: Option<(Phase, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
    strikes: u32,
}

impl Timer {
    /// True if this phase has lasted longer than its limit; otherwise the task is woken when it has. `clock` is a
    /// runtime that has one.
    pub fn is_over(&mut self, phase: Phase, limit: Duration, clock: &Handle, cx: &mut Context<'_>) -> bool {
        if limit.is_zero() {
            self.phase = None;
            return false;
        }
        let since = match self.phase {
            Some((known, since)) if known == phase => since,
            _ => {
                let now = Instant::now();
                self.phase = Some((phase, now));
                self.strikes = 0;
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

    /// The phase began anew.
    pub fn progress(&mut self) {
        self.phase = None;
    }

    /// How often this phase was overdue.
    pub fn strikes(&self, phase: Phase) -> u32 {
        if self.phase.is_some_and(|(known, _)| known == phase) { self.strikes } else { 0 }
    }

    /// Once more; answers how often it was.
    pub fn strike(&mut self) -> u32 {
        self.strikes += 1;
        self.strikes
    }
}

/// A moment in half the size of an [`Instant`]: nanoseconds since the first one that was asked for, and one.
#[derive(Debug, Clone, Copy)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let nanos = FIRST.get_or_init(Instant::now).elapsed().as_nanos();
        Self(NonZeroU64::MIN.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How many microseconds have passed since another.
    pub fn micros_since(self, earlier: Self) -> u64 {
        self.0.get().saturating_sub(earlier.0.get()) / 1000
    }
}
