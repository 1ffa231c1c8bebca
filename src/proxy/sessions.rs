//! The sessions that live: how they come in, are moved and told, and leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use tokio::sync::futures::Notified;
use tracing::{info, warn};

use super::registry::Registry;
use super::signals::{killed, terminated};
use super::{Current, Journal, LiveSession};
use crate::engine::{Order, OrderedBy, Timeouts, When};
use crate::lifetime::{Lifetime, Shutdown};
use crate::pool::{Admission, Pool};
use policy::config::{Config, OnMove, Server};
use wire::error::{Fault, Refusal, SqlState};

/// How many sessions are woken each time, to rest or because a limit is another: the threads that relay have others to serve.
const MOST_TO_REST: usize = 2_000;
const MOST_TO_LOOK: usize = 5_000;
/// How long sessions that are ended at once have to tell their clients.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Sessions {
    pub(super) current: Arc<Current>,
    journal: Arc<Journal>,
    life: Arc<Lifetime>,
    /// Where sessions read their limits.
    pub timeouts: Arc<Timeouts>,
    all: Registry,
    /// What was found to be unsettled last, and when that was begun.
    settling: tokio::sync::Mutex<(Option<Instant>, Arc<Vec<u64>>)>,
    /// Logins that are decided already, and by which generation.
    pub(super) arriving: DashMap<u64, u64>,
}

impl Sessions {
    pub(super) fn new(
        current: Arc<Current>,
        journal: Arc<Journal>,
        life: Arc<Lifetime>,
        timeouts: Timeouts,
    ) -> Self {
        let timeouts = Arc::new(timeouts);
        let (all, settling, arriving) = Default::default();
        Self { current, journal, life, timeouts, all, settling, arriving }
    }

    /// A number for a new session.
    pub(crate) fn next(&self) -> u64 {
        self.all.next()
    }

    /// The session of this number.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<LiveSession>> {
        self.all.get(id)
    }

    /// All of them, in any order.
    pub(crate) fn list(&self) -> Vec<Arc<LiveSession>> {
        self.all.list()
    }

    /// Whoever waits for sessions looks again.
    pub(super) fn stir(&self) {
        self.all.stir();
    }

    /// The next time that something has happened by which a session may be settled: one has left, a login has come in or failed,
    /// or something else is in force.
    pub(crate) fn stirred(&self) -> Notified<'_> {
        self.all.stirred()
    }

    /// Waits until these pools have none, or until that is not wanted any more.
    pub(crate) async fn have_left(&self, pools: &[Arc<Pool>], is_given_up: impl Fn() -> bool) {
        let is_of_them = |session: &LiveSession| pools.iter().any(|pool| Arc::ptr_eq(pool, &session.pool));
        self.all.until(|all| is_given_up() || !all.iter().any(|session| is_of_them(&session))).await;
    }

    /// Goes through them; none may be inserted or removed by whoever does.
    pub(super) fn iter(&self) -> impl Iterator<Item = impl std::ops::Deref<Target = Arc<LiveSession>> + '_> {
        self.all.iter()
    }

    /// A session enters, if it may under what is in force now; what decided it may be older. `proved` is the configuration
    /// that its user's proof was good for. False if it must be decided anew.
    ///
    /// # Errors
    /// The user is gone, may not log in any more, or has another password.
    pub(crate) fn enter(&self, session: &Arc<LiveSession>, proved: &Config) -> Result<bool, Refusal> {
        // Known first, and looked at then: whatever is put in force from here on, settles it.
        self.all.insert(session.clone());
        let entered = self.may_enter(session, proved);
        if !matches!(entered, Ok(true)) {
            self.all.remove(session.id);
        } else if self.life.is_draining() {
            session.orders.give(Order { by: OrderedBy::Operator, when: When::Idle, refusal: shutdown() });
        }
        entered
    }

    fn may_enter(&self, session: &LiveSession, proved: &Config) -> Result<bool, Refusal> {
        let generation = self.current.generation();
        session.identity.is_still(proved, &generation.config)?;
        let is_in_force = generation
            .pools
            .get(session.target.route.connection())
            .is_some_and(|pool| Arc::ptr_eq(pool, &session.pool) && pool.admission() == Admission::Open);
        Ok(is_in_force && generation.moved(session).is_none())
    }

    /// A login is decided by this generation, and has not entered; until the answer is dropped.
    pub(crate) fn arrives(&self, id: u64, generation: u64) -> Arriving<'_> {
        self.arriving.insert(id, generation);
        Arriving { sessions: self, id }
    }

    /// A session is over.
    pub(crate) fn leave(&self, id: u64) {
        self.all.remove(id);
    }

    /// Tells the sessions whose route is not theirs any more.
    pub(super) fn settle(&self) {
        for session in self.list() {
            self.settle_one(&session);
        }
        self.all.stir();
    }

    /// Whoever decides last decides by what holds last: one at a time for each session, by what holds then.
    fn settle_one(&self, session: &LiveSession) {
        let mut told = session.told.lock();
        let generation = self.current.generation();
        let on_move = *generation.config.server.on_move;
        match generation.moved(session) {
            // Who waits for a database that was paused and is another now would wait for ever, or write to the old one.
            Some(detail) if on_move != OnMove::Keep || session.pool.is_stranded() => {
                let message = "terminating connection because its route changed";
                if !std::mem::replace(&mut *told, true) {
                    self.journal
                        .audit
                        .record(|| session.event("move", &self.journal.audit).text("why", &detail));
                }
                let refusal = Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, message).detail(detail);
                let when = if on_move == OnMove::Terminate { When::Now } else { When::Idle };
                session.orders.give(Order { by: OrderedBy::Route, when, refusal });
            }
            Some(_) => {}
            // An earlier reload may have moved it away, and this one back.
            None if *told && !self.life.is_draining() => {
                *told = false;
                self.journal.audit.record(|| {
                    session.event("stay", &self.journal.audit).number("by_generation", generation.number)
                });
                session.orders.take_back();
            }
            None => {}
        }
    }

    /// What limits them is another now, or may be.
    pub(super) fn set_limits(&self, server: &Server) {
        if self.timeouts.set(server) {
            self.all.look_again();
        }
    }

    /// Has those rest that do nothing, and those look that do not know of a limit.
    pub(super) fn tend(&self) {
        let sessions = self.all.iter();
        let _ = sessions.filter(|session| session.orders.tend()).take(MOST_TO_REST).count();
        self.all.wake_some(MOST_TO_LOOK);
    }

    /// Ends one session; false if there is none of this number.
    pub(crate) fn kill(&self, id: u64) -> bool {
        let Some(session) = self.all.get(id) else { return false };
        session.orders.give(Order { by: OrderedBy::Operator, when: When::Now, refusal: killed() });
        true
    }

    /// Ends those of a pool.
    pub(super) fn end_those_of(&self, pool: &Arc<Pool>, when: When, refusal: &Refusal) {
        for session in self.list().iter().filter(|session| Arc::ptr_eq(&session.pool, pool)) {
            session.orders.give(Order { by: OrderedBy::Operator, when, refusal: refusal.clone() });
        }
    }

    /// The process ends, and they do.
    fn order_all(&self, when: When) {
        for session in self.all.iter() {
            session.orders.give(Order { by: OrderedBy::Operator, when, refusal: shutdown() });
        }
    }

    /// The sessions that are [unsettled](super::Snapshot::unsettled), as of this instant or later. It is found out by one blocking
    /// task at a time, whose result is shared by all who wait; `None` if that task has failed.
    pub(crate) async fn unsettled_since(self: &Arc<Self>, instant: Instant) -> Option<Arc<Vec<u64>>> {
        let mut known = self.settling.lock().await;
        if known.0.is_none_or(|at| at < instant) {
            let (sessions, at) = (self.clone(), Instant::now());
            let found = tokio::task::spawn_blocking(move || sessions.snapshot().unsettled()).await;
            *known = (Some(at), Arc::new(found.ok()?));
        }
        Some(known.1.clone())
    }

    /// Accepts nobody any more, lets transactions end, up to `shutdown_timeout`, then ends everything.
    pub(crate) async fn drain(&self) {
        let timeout = *self.current.generation().config.server.shutdown_timeout;
        self.drain_within(timeout).await;
    }

    async fn drain_within(&self, timeout: Duration) {
        self.life.drains();
        info!(sessions = self.all.len(), timeout = %humantime::format_duration(timeout), "draining");
        self.order_all(When::Idle);
        if tokio::time::timeout(timeout, self.all.emptied()).await.is_err() {
            let sessions = self.all.len();
            warn!(sessions, "shutdown_timeout is over: ending the sessions that are left");
            self.order_all(When::Now);
            let _ = tokio::time::timeout(LAST_WORDS, self.all.emptied()).await;
        }
        for pool in self.current.generation().pools.values() {
            pool.retire();
        }
    }

    /// Waits until somebody asks that, and ends all sessions as was asked.
    pub(crate) async fn end_when_asked(&self) {
        let how = self.life.asked_to_end().await;
        info!(?how, "asked to end");
        match how {
            Shutdown::Immediate => self.drain_within(Duration::ZERO).await,
            Shutdown::WaitForServers => self.drain_within(Duration::from_secs(86_400)).await,
            Shutdown::WaitForClients => {
                self.life.close();
                // The door first: whoever comes in is a session before it leaves the door.
                self.life.door_is_empty().await;
                self.all.emptied().await;
                self.drain_within(Duration::ZERO).await;
            }
        }
    }
}

/// What they are told when the process ends.
fn shutdown() -> Refusal {
    terminated().detail("pgusher is shutting down.")
}

/// A login on its way in.
pub(crate) struct Arriving<'a> {
    sessions: &'a Sessions,
    id: u64,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.sessions.arriving.remove(&self.id);
        self.sessions.all.stir();
    }
}
