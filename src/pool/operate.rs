//! What an operator sees of a pool, and what he can do to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::debug;

use super::Pool;
use crate::stats::Stats;
use crate::upstream::CancelTarget;
use relay::ledger::{Halt, Limits};

/// For how long a pool opens nothing that nobody waits for, once its database was needed, and how often in a second that may
/// close its idle connections.
const WAY: Duration = Duration::from_secs(6);
const MOST_WAYS: u32 = 20;

/// When a pool made way last, and how often within a second.
#[derive(Debug, Default)]
pub(super) struct MadeWay {
    last: Option<Instant>,
    second: Option<Instant>,
    count: u32,
}

impl MadeWay {
    /// Whether it may once more: whoever runs such statements without end opens and closes no more than this.
    fn again(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|second| now - second > Duration::from_secs(1)) {
            (self.second, self.count) = (Some(now), 0);
        }
        self.count += 1;
        let may = self.count <= MOST_WAYS;
        if may {
            self.last = Some(now);
        }
        may
    }
}

/// Whether users may log in to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Whoever has a route to it.
    Open,
    /// Nobody: an operator has disabled it (`DISABLE`).
    Disabled,
    /// Nobody: an operator has drained its environment (`DRAIN ENVIRONMENT`).
    Drained,
}

impl Admission {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Disabled => "disabled",
            Self::Drained => "drained",
        }
    }
}

/// A pool at one moment.
#[derive(Debug)]
pub struct View {
    /// Connections that wait to be lent.
    pub idle: usize,
    /// Connections that are lent, or kept.
    pub active: usize,
    /// Connections that are being opened.
    pub dialing: usize,
    /// Sessions that wait, and for how long the first of them.
    pub waiting: usize,
    /// Zero if none waits.
    pub longest_wait: Duration,
    /// Sessions that keep a connection.
    pub pinned: usize,
    /// Why it lends nothing.
    pub halted: Option<Halt>,
    /// Whether anybody may log in to it.
    pub admission: Admission,
    /// The upstream could not be reached at the last attempt.
    pub failing: bool,
}

impl View {
    /// In a word.
    pub fn health(&self) -> &'static str {
        match () {
            () if self.admission != Admission::Open => self.admission.word(),
            () if self.halted.is_some() => "paused",
            () if self.failing => "failing",
            () if self.active + self.idle == 0 => "unused",
            () => "up",
        }
    }
}

impl Pool {
    /// What is counted of it.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What the sessions of a user remember together.
    pub fn memory_of(&self, user: &policy::names::UserName) -> Arc<relay::UserMemory> {
        self.memories.lock().entry(user.clone()).or_default().clone()
    }

    /// How it is now.
    pub fn view(&self) -> View {
        let counts = self.ledger.lock().occupancy();
        View {
            idle: counts.idle,
            active: counts.lent,
            dialing: counts.dialing,
            waiting: counts.waiting,
            longest_wait: counts.first_since.map_or(Duration::ZERO, |since| self.now().saturating_sub(since)),
            pinned: self.pinned.load(Ordering::Relaxed),
            halted: counts.halted,
            admission: self.admission(),
            failing: counts.failing,
        }
    }

    /// Its connections, and whether each is idle.
    pub fn servers(&self) -> Vec<(Arc<CancelTarget>, bool)> {
        let idle: Vec<u32> = self.ledger.lock().idle().iter().map(|pooled| pooled.target.pid()).collect();
        let all = self.servers.lock();
        let living = all.iter().filter_map(|(_, server)| server.upgrade());
        living.map(|target| (target.clone(), idle.contains(&target.pid()))).collect()
    }

    /// Waits for something that a connection can bring about which is closed, or comes back while nothing is lent.
    pub async fn until(&self, is_done: impl Fn(&Self) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before the look: what happens behind it is heard.
            changed.as_mut().enable();
            if is_done(self) {
                return;
            }
            changed.await;
        }
    }

    /// Lends nothing any more, until [`Pool::resume`].
    pub fn halt(self: &Arc<Self>, halt: Halt) {
        let idle = self.ledger.lock().halt(halt);
        idle.into_iter().for_each(|pooled| self.evict(pooled));
    }

    /// Whether its route went elsewhere while it was halted: it lends nothing any more, whoever resumes.
    pub fn is_stranded(&self) -> bool {
        self.ledger.lock().is_stranded()
    }

    /// Lends again; false if it did so already, or never will.
    pub fn resume(self: &Arc<Self>) -> bool {
        let was_halted = self.ledger.lock().resume();
        // Whoever waits for it to lend nothing waits no longer.
        self.changed.notify_waiters();
        self.serve_waiters();
        self.open_more();
        was_halted
    }

    /// Every connection there is, is replaced when it comes back.
    pub fn reconnect(self: &Arc<Self>) {
        {
            let _one_at_a_time = self.changing.lock();
            let epoch = self.settings.load().0 + 1;
            self.settings.rcu(|settings| (epoch, settings.1.clone()));
            self.startups.lock().clear();
            let mut ledger = self.ledger.lock();
            let limits = Limits { epoch, ..ledger.limits().clone() };
            ledger.update(limits);
        }
        self.close_outworn();
        self.open_more();
    }

    /// A session of this pool runs a statement that needs a database to itself: idle connections to that are closed, if they are
    /// on its own route (the same server, environment and login, and production or not), and for a while none is opened that nobody waits for.
    pub fn free(self: &Arc<Self>, database: &str) {
        let own = self.connection();
        for pool in self.share.pools() {
            let other = pool.connection();
            if other.target.database == database
                && other.target.username == own.target.username
                && other.environment == own.environment
                && other.production == own.production
            {
                pool.make_way();
            }
        }
    }

    fn make_way(self: &Arc<Self>) {
        if !self.made_way.lock().again(Instant::now()) {
            return;
        }
        debug!(connection = %self.connection().name, "a statement needs its database: idle connections are closed");
        *self.listener.lock() = None;
        self.reconnect();
    }

    /// True for a while after connections were closed because their database is needed.
    pub(super) fn makes_way(&self) -> bool {
        self.made_way.lock().last.is_some_and(|last| last.elapsed() < WAY)
    }

    /// Whether connections are left that were opened before the last [`Pool::reconnect`] or change of settings.
    pub fn has_outworn(&self) -> bool {
        let epoch = self.ledger.lock().limits().epoch;
        let all = self.servers.lock();
        all.iter().any(|(opened, server)| *opened < epoch && server.strong_count() > 0)
    }

    /// Says whether anybody may log in to it.
    pub fn admit(&self, admission: Admission) {
        self.admission.store(admission as u8, Ordering::Relaxed);
    }

    /// Whether anybody may.
    pub fn admission(&self) -> Admission {
        match self.admission.load(Ordering::Relaxed) {
            closed if closed == Admission::Disabled as u8 => Admission::Disabled,
            closed if closed == Admission::Drained as u8 => Admission::Drained,
            _ => Admission::Open,
        }
    }
}
