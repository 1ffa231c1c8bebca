//! A pool's ledger: who waits for a connection, which one is lent to whom, and how many may be open. It owns the idle
//! connections and says what is to be done; its owner dials, closes and passes connections on.
//!
//! Time is what it is told, since whenever the pool began.

pub mod host;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use terms::{
    Asker, Dial, Dialed, Disposition, Failure, Halt, Home, Isolation, Lendable, Limits, Occupancy, Queued,
    Want, Wanted,
};
use wire::UserName;

/// How many connections one pool opens at the same time.
const MAX_DIALING: usize = 8;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How long before its lifetime is over a connection that is in use is replaced, at most.
const SUCCESSION: Duration = Duration::from_secs(60);
/// For how long a connection may hold what its last user has left, while nobody uses it.
const MAX_IDLE_DIRTY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Ledger<C, W> {
    idle: Vec<C>,
    waiters: VecDeque<Queued<W>>,
    lent: usize,
    /// For whoever waits, and for those who get their own.
    dialing: usize,
    dialing_own: usize,
    /// One of those is to take the place of a connection that grows too old.
    succeeding: bool,
    /// How many have come whose predecessors are still there: so many more than `size` may be open.
    successors: usize,
    failures: u32,
    retry_at: Option<Duration>,
    limits: Limits,
    /// To the second: nobody asks the clock at a release.
    now: Duration,
    used: bool,
    /// No route leads here any more: nothing is kept.
    retired: bool,
    /// It was so while nothing was lent: nothing ever will be.
    stranded: bool,
    halted: Option<Halt>,
}

impl<C: Lendable, W> Ledger<C, W> {
    /// Nobody waits and nothing is open.
    pub fn new(limits: Limits) -> Self {
        Self {
            idle: Vec::new(),
            waiters: VecDeque::new(),
            lent: 0,
            dialing: 0,
            dialing_own: 0,
            succeeding: false,
            successors: 0,
            failures: 0,
            retry_at: None,
            limits,
            now: Duration::ZERO,
            used: false,
            retired: false,
            stranded: false,
            halted: None,
        }
    }

    /// Lends a connection at once, if there is one and nobody waits; to nobody who would rather have one than another.
    pub fn lend(&mut self, wanted: Want<'_>) -> Option<C> {
        self.lend_to(wanted, Asker::default())
    }

    /// The same, to a session.
    pub fn lend_to(&mut self, wanted: Want<'_>, asker: Asker) -> Option<C> {
        if !self.waiters.is_empty() || self.halted.is_some() {
            return None;
        }
        self.used = true;
        let at = self.choose(wanted, asker)?;
        Some(self.take(at))
    }

    /// Joins the queue: whoever came first is served first, whatever they want.
    pub fn wait(&mut self, waiter: Queued<W>) {
        self.used = true;
        self.waiters.push_back(waiter);
    }

    /// Comes back to the front of the queue: the connection that it was to get is none, and was closed.
    pub fn wait_first(&mut self, waiter: Queued<W>) {
        self.waiters.push_front(waiter);
    }

    /// Leaves the queue. Those who have waited longest give up first: they are found at once.
    pub fn cancel(&mut self, is: impl Fn(&W) -> bool) {
        let at = self.waiters.iter().position(|waiter| is(&waiter.who));
        at.and_then(|at| self.waiters.remove(at));
    }

    /// The idle connection for somebody: one that was opened for them, or that the session had last; else the one that their user
    /// had last; else the newest of their thread, else of all, which is the warmest, so that others can grow old.
    fn choose(&self, wanted: Want<'_>, asker: Asker) -> Option<usize> {
        let Asker { session, home } = asker;
        let fits = |connection: &C| self.fits(connection, wanted);
        let own = |connection: &C| match wanted {
            Want::Any(user) => fits(connection) && !connection.is_foreign_to(user),
            Want::Own(..) | Want::Clean => fits(connection),
        };
        let sessions = |connection: &C| session != 0 && connection.last_session() == session;
        let newest = self.idle.iter().rposition(own);
        let Some(at) = newest else { return self.idle.iter().rposition(fits) };
        if sessions(&self.idle[at]) {
            return newest;
        }
        let its_own = || self.idle.iter().rposition(|one| sessions(one) && own(one));
        its_own().or_else(|| {
            if self.idle[at].is_kept() {
                return self.least_kept(own);
            }
            if self.idle[at].home() == home {
                return newest;
            }
            let near = |one: &C| one.home() == home && !one.is_kept() && own(one);
            self.idle.iter().rposition(near).or(newest)
        })
    }

    /// Where sessions may come back for what they had: the newest that is kept for none, else the one that was kept for longest.
    #[cold]
    fn least_kept(&self, own: impl Fn(&C) -> bool) -> Option<usize> {
        let is_free = |connection: &C| own(connection) && !connection.is_kept();
        self.idle.iter().rposition(is_free).or_else(|| self.idle.iter().position(own))
    }

    /// Whether a connection is one of those that somebody wants.
    fn fits(&self, connection: &C, wanted: Want<'_>) -> bool {
        match wanted {
            Want::Any(user) => connection.startup().is_none() && self.may_serve(connection, user),
            Want::Own(user, own) => connection.startup() == Some(own) && self.may_serve(connection, user),
            Want::Clean => connection.startup().is_none() && connection.is_clean(),
        }
    }

    fn may_serve(&self, connection: &C, user: &UserName) -> bool {
        self.limits.isolation != Isolation::Strict || connection.last_user().is_none_or(|last| last == user)
    }

    fn take(&mut self, at: usize) -> C {
        self.lent += 1;
        self.idle.remove(at)
    }

    fn open(&self) -> usize {
        self.idle.len() + self.lent
    }

    /// All that are open or will be.
    fn taken(&self) -> usize {
        self.open() + self.dialing + self.dialing_own
    }

    /// A connection that was lent is not any more.
    fn comes_back(&mut self) {
        debug_assert!(self.lent > 0, "more come back than were lent");
        self.lent = self.lent.saturating_sub(1);
    }

    /// No more successors than places are taken beyond those of the pool.
    fn cap_successors(&mut self) {
        self.successors = self.successors.min(self.taken().saturating_sub(self.limits.size));
    }

    /// A connection that was lent has been closed.
    pub fn lost(&mut self) {
        self.comes_back();
        self.cap_successors();
    }

    /// A connection that was lent is free: what is done with it, and whether another should be opened before it must go.
    /// `share` is how many this pool may have while another of the same host has too few.
    pub fn returned(&mut self, mut connection: C, share: Option<usize>) -> (Disposition<C, W>, bool) {
        *connection.idle_since() = None;
        let open = self.open();
        self.comes_back();
        let ages = self.is_ageing(&connection);
        let succeeded = ages && self.successors > 0;
        self.successors -= usize::from(succeeded);
        let nobody_waits = self.waiters.is_empty();
        let size = self.limits.size + self.successors;
        let too_many = open > size && (nobody_waits || open > size + self.limits.reserve);
        let owed = share.is_some_and(|share| open > share);
        let ends = self.is_outworn(&connection)
            || connection.is_spoiled()
            || self.halted == Some(Halt::Paused)
            || self.retired && nobody_waits;
        if ends || owed || succeeded || too_many {
            self.cap_successors();
            return (Disposition::Close(connection), false);
        }
        if self.halted.is_some() || nobody_waits {
            self.idle.push(connection);
            return (Disposition::Idle, ages);
        }
        (self.give(connection), ages)
    }

    /// To the one who has waited longest. What is of no use to them makes way: they are the next all the same.
    fn give(&mut self, connection: C) -> Disposition<C, W> {
        let first = self.waiters.front();
        if !first.is_some_and(|first| self.fits(&connection, first.wanted.want())) {
            return match self.dial_own() {
                Some(dial) => Disposition::Replace(connection, dial),
                None => {
                    self.cap_successors();
                    Disposition::Close(connection)
                }
            };
        }
        match self.waiters.pop_front() {
            Some(first) => {
                self.lent += 1;
                Disposition::Grant(first, connection)
            }
            None => Disposition::Close(connection),
        }
    }

    /// If whoever has waited longest wants a connection of their own settings, it is to be opened.
    fn dial_own(&mut self) -> Option<Dial<W>> {
        let Some(Wanted::Own(_, startup)) = self.waiters.front().map(|first| &first.wanted) else {
            return None;
        };
        let startup = startup.clone();
        let first = self.waiters.pop_front()?;
        self.dialing_own += 1;
        Some(Dial::Own(first.who, startup))
    }

    /// An idle connection for the one who has waited longest; `None` if there is nothing to be done. Where nothing that is idle
    /// is for them and nothing more can be opened (`share` is as for [`Ledger::wants_one`], `has_room` is the host's word), one
    /// makes way.
    pub fn serve(&mut self, share: usize, has_room: impl FnOnce() -> bool) -> Option<Disposition<C, W>> {
        if self.halted.is_some() {
            return None;
        }
        if let Some(at) = self.choose(self.waiters.front()?.wanted.want(), Asker::default()) {
            let connection = self.take(at);
            let first = self.waiters.pop_front()?;
            return Some(Disposition::Grant(first, connection));
        }
        let is_own = matches!(self.waiters.front()?.wanted, Wanted::Own(..));
        let is_on_its_way = !is_own && self.dialing >= self.waiters.len();
        if is_on_its_way || self.taken() < self.limits.size.min(share) && has_room() {
            return None;
        }
        let unfit = self.idle.pop()?;
        Some(match self.dial_own() {
            Some(dial) => Disposition::Replace(unfit, dial),
            None => {
                self.cap_successors();
                Disposition::Close(unfit)
            }
        })
    }

    /// Whether a connection is to be opened, for those who wait or to have the least that there should be. `share` is how many
    /// this pool may have while another of the same host has too few.
    pub fn wants_one(&self, now: Duration, share: usize) -> bool {
        if self.halted.is_some() {
            return false;
        }
        let first = self.waiters.front();
        let waited = first.is_some_and(|first| now.saturating_sub(first.since) >= self.limits.reserve_after);
        let most = self.limits.size + if waited { self.limits.reserve } else { 0 };
        if self.taken() >= most.min(share) {
            return false;
        }
        if matches!(first, Some(Queued { wanted: Wanted::Own(..), .. })) {
            return true;
        }
        let least = if self.used && !self.retired { self.limits.min } else { 0 };
        let wanted = self.is_short() || self.taken() < least;
        wanted && self.dialing < MAX_DIALING && self.retry_at.is_none_or(|at| now >= at)
    }

    /// Whether somebody waits for whom no connection is on its way: for their sake another pool of the host is asked to spare one.
    pub fn is_short(&self) -> bool {
        let is_own = |first: &Queued<W>| matches!(first.wanted, Wanted::Own(..));
        self.waiters.front().is_some_and(is_own) || self.waiters.len() > self.dialing
    }

    /// Opens it: the host has a place for it.
    pub fn dial(&mut self, now: Duration, share: usize) -> Option<Dial<W>> {
        if !self.wants_one(now, share) {
            return None;
        }
        if let Some(dial) = self.dial_own() {
            return Some(dial);
        }
        self.dialing += 1;
        Some(Dial::Plain)
    }

    /// Opens one that will take the place of one that grows too old, if none is on its way and the host has a place.
    pub fn dial_successor(&mut self, now: Duration, reserve: impl FnOnce() -> bool) -> Option<Dial<W>> {
        let one_at_a_time = self.succeeding || self.successors > 0 || self.dialing >= MAX_DIALING;
        let waits = self.retry_at.is_some_and(|at| now < at) || self.halted.is_some();
        if one_at_a_time || waits || self.retired || !reserve() {
            return None;
        }
        self.dialing += 1;
        self.succeeding = true;
        Some(Dial::Succeeding)
    }

    fn no_more_dialing(&mut self, how: Dialed) {
        match how {
            Dialed::Own => self.dialing_own = self.dialing_own.saturating_sub(1),
            Dialed::Plain | Dialed::Succeeding => self.dialing = self.dialing.saturating_sub(1),
        }
        self.succeeding &= how != Dialed::Succeeding;
    }

    /// A connection was opened: it is lent to whoever has opened it, who gives it back or to the one who wanted it.
    pub fn dialed(&mut self, how: Dialed) {
        self.no_more_dialing(how);
        self.lent += 1;
        self.successors += usize::from(how == Dialed::Succeeding);
        if how != Dialed::Own {
            (self.failures, self.retry_at) = (0, None);
        }
    }

    /// It could not be. Those who wait are told at once, unless connections are open that they can still get; the next attempt
    /// waits, twice as long each time. What is wrong with the settings of one client is no business of the others.
    pub fn dial_failed(&mut self, how: Dialed, now: Duration) -> Failure<W> {
        self.no_more_dialing(how);
        if how == Dialed::Own {
            return Failure { again_after: Duration::ZERO, refused: Vec::new() };
        }
        let again_after = LAST_RETRY.min(FIRST_RETRY * 2u32.pow(self.failures.min(6)));
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + again_after);
        let is_hopeless = self.taken() == 0;
        let refused = if is_hopeless { std::mem::take(&mut self.waiters) } else { VecDeque::new() };
        Failure { again_after, refused: refused.into_iter().map(|waiter| waiter.who).collect() }
    }

    /// Takes out an idle connection whose successor is there: it is closed.
    pub fn take_predecessor(&mut self) -> Option<C> {
        let at = self.idle.iter().position(|connection| self.is_ageing(connection))?;
        self.successors = self.successors.checked_sub(1)?;
        Some(self.idle.remove(at))
    }

    /// Takes out an idle connection for the sake of another pool of the same host, if nobody here waits: the one that has been
    /// idle longest. It is closed.
    pub fn spare(&mut self) -> Option<C> {
        if !self.waiters.is_empty() || self.idle.is_empty() {
            return None;
        }
        let spared = self.idle.remove(0);
        self.cap_successors();
        Some(spared)
    }

    /// Looks at the clock, and at the idle connections: those that are too old, too long idle, or not `usable` any more are
    /// taken out, and are closed.
    pub fn tick(&mut self, now: Duration, mut usable: impl FnMut(&mut C) -> bool) -> Vec<C> {
        self.now = now;
        let mut spare = self.open().saturating_sub(self.limits.min);
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for mut connection in std::mem::take(&mut self.idle) {
            let idle = now.saturating_sub(*connection.idle_since().get_or_insert(now));
            let too_idle =
                !self.limits.idle_timeout.is_zero() && idle > self.limits.idle_timeout && spare > 0;
            if self.retired || too_idle || self.is_outworn(&connection) || !usable(&mut connection) {
                spare = spare.saturating_sub(1);
                gone.push(connection);
            } else {
                kept.push(connection);
            }
        }
        self.idle = kept;
        self.cap_successors();
        gone
    }

    /// Lends the idle connections that may hold something of their last users, and have for long enough: they are reset.
    pub fn lend_dirty(&mut self, now: Duration) -> Vec<C> {
        if self.limits.isolation == Isolation::Shared || self.halted.is_some() || !self.waiters.is_empty() {
            return Vec::new();
        }
        let is_dirty = |c: &mut C| {
            !c.is_clean() && c.idle_since().is_some_and(|since| now.saturating_sub(since) >= MAX_IDLE_DIRTY)
        };
        let dirty: Vec<C> = self.idle.extract_if(.., is_dirty).collect();
        self.lent += dirty.len();
        dirty
    }

    fn is_outworn(&self, connection: &C) -> bool {
        let too_old = !self.limits.lifetime.is_zero() && self.age(connection) > self.limits.lifetime;
        connection.epoch() != self.limits.epoch || too_old
    }

    /// Whether it will soon be, so that another should be opened before it must go.
    fn is_ageing(&self, connection: &C) -> bool {
        let early = SUCCESSION.min(self.limits.lifetime / 4);
        !self.limits.lifetime.is_zero() && self.age(connection) > self.limits.lifetime - early
    }

    fn age(&self, connection: &C) -> Duration {
        self.now.saturating_sub(connection.born())
    }

    /// Nothing is lent any more, until it goes on; the connections that are closed now.
    pub fn halt(&mut self, halt: Halt) -> Vec<C> {
        self.halted = Some(halt);
        let closed = if halt == Halt::Paused { std::mem::take(&mut self.idle) } else { Vec::new() };
        self.cap_successors();
        closed
    }

    /// Goes on; false if it did so already, or never will.
    pub fn resume(&mut self) -> bool {
        if self.stranded { false } else { self.halted.take().is_some() }
    }

    /// No route leads here any more: connections are closed as they come back. What is halted then stays so.
    pub fn retire(&mut self) {
        self.retired = true;
        self.stranded = self.halted.is_some();
    }

    /// Takes new limits.
    pub fn update(&mut self, limits: Limits) {
        self.limits = limits;
        self.cap_successors();
    }

    /// How much may be open.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The connections that can be lent.
    pub fn idle(&self) -> &[C] {
        &self.idle
    }

    /// Whether no route leads here any more.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether it will lend nothing, whoever resumes.
    pub fn is_stranded(&self) -> bool {
        self.stranded
    }

    /// Whether it lends nothing until it is resumed.
    pub fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    /// How it is now.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            idle: self.idle.len(),
            lent: self.lent,
            dialing: self.dialing + self.dialing_own,
            waiting: self.waiters.len(),
            first_since: self.waiters.front().map(|first| first.since),
            halted: self.halted,
            failing: self.failures > 0,
        }
    }
}
