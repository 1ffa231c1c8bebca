//! The upstream connections of one route, who waits for them, and the lease of one of them to one session.

mod catalog;
mod host;
mod isolation;
mod lease;
mod listener;
mod operate;
mod ticket;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::stats::Stats;
use crate::upstream::{Backend, CancelTarget, Dialer, UpstreamError};
use catalog::Known;
pub use host::HostCount;
use host::{HostPlace, Share};
use isolation::Resettable;
pub(crate) use isolation::prove as prove_resettable;
pub(crate) use lease::{Lease, Pooled};
use listener::Line;
pub(crate) use listener::Subscription;
pub(crate) use operate::Halt;
use policy::config::Connection;
use policy::config::file::Isolation;
use policy::names::UserName;
use relay::{BackendState, Parameters};
pub use ticket::Outcome;
pub(crate) use ticket::Ticket;
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;

/// How many connections one pool opens at the same time.
const MAX_DIALING: usize = 8;
const APPLICATION_NAME: &str = "application_name";
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How long before its `server_lifetime` is over a connection that is in use is replaced, at most.
const SUCCESSION: Duration = Duration::from_secs(60);
/// How long a database's defaults must have been others before connections with those are replaced for it.
const SETTLED: Duration = Duration::from_secs(1);
/// How many different sets of startup settings a pool remembers the outcome of.
const MAX_STARTUPS: usize = 256;

/// The two runtimes: one does what is slow, the other relays.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// Accepts, handshakes, dials.
    pub control: Handle,
    /// Relays.
    pub data: Handle,
    /// Every task that drain waits for.
    pub tasks: TaskTracker,
}

/// What an operator can change about a pool while it lives.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// How connections are made.
    pub dialer: Dialer,
    /// Of `[server]`.
    pub reserve_pool_timeout: Duration,
    /// Zero keeps them.
    pub idle_timeout: Duration,
    /// Zero keeps them.
    pub lifetime: Duration,
    /// On each connection.
    pub max_prepared_statements: u32,
    /// How often the database is asked for its functions; zero never.
    pub catalog_interval: Duration,
}

impl PoolSettings {
    fn connection(&self) -> &Connection {
        &self.dialer.connection
    }
}

/// What clients are told at login, known from the first connection or from one with their settings.
#[derive(Debug, Clone)]
pub struct Welcome {
    /// Reported settings.
    pub reported: Arc<Parameters>,
    /// Those of the client's that are not reported.
    pub extra: Arc<Parameters>,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    settings: ArcSwap<(u64, PoolSettings)>,
    /// Held while settings and epoch change: what is dialled and what is outworn are told apart by the same number.
    changing: Mutex<()>,
    state: Mutex<State>,
    runtimes: Runtimes,
    share: Share,
    /// What the last connection reported when it was opened: the database's defaults, and since when.
    defaults: Mutex<Option<(Arc<Parameters>, Instant)>>,
    startups: Mutex<HashMap<Settings, Welcome>>,
    /// How many sessions keep a connection beyond a transaction.
    pinned: AtomicUsize,
    /// The way to the connection that listens for everybody, while there is one.
    listener: Mutex<Option<Line>>,
    /// What the database's functions may do to a session.
    generation: u64,
    catalog: Known,
    resettable: Resettable,
    stats: Stats,
    /// Every connection that was opened and may still be there, with its epoch.
    servers: Mutex<Vec<(u64, Weak<CancelTarget>)>>,
    /// `DISABLE`: nobody logs in to it.
    disabled: AtomicBool,
}

/// A session keeps its connection beyond a transaction; counted until this is dropped.
#[derive(Debug)]
pub struct Pinned(Arc<Pool>);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.pinned.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
struct State {
    /// Boxed, because a connection is handed on often and is large.
    #[expect(clippy::vec_box)]
    idle: Vec<Box<Pooled>>,
    waiters: VecDeque<Arc<Ticket>>,
    /// Idle and lent together.
    open: usize,
    /// The most of them, and how many more for those who waited long: of the settings, at hand under the lock.
    size: usize,
    reserve: usize,
    isolation: Isolation,
    lifetime: Duration,
    epoch: u64,
    /// To the second: nobody asks the clock at a release.
    now: Option<Instant>,
    dialing: usize,
    /// One of them is to take the place of a connection that grows too old.
    succeeding: bool,
    /// How many have come whose predecessors are still there: so many more than `size` may be open.
    successors: usize,
    failures: u32,
    retry_at: Option<Instant>,
    used: bool,
    /// No route leads here any more: nothing is kept.
    retired: bool,
    /// It was so while nothing was lent: nothing ever will be.
    stranded: bool,
    /// Nothing is lent.
    halted: Option<Halt>,
}

impl State {
    fn sized(settings: &PoolSettings) -> Self {
        let mut state = Self::default();
        state.take(1, settings, settings.connection().isolation);
        state
    }

    fn take(&mut self, epoch: u64, settings: &PoolSettings, isolation: Isolation) {
        self.isolation = isolation;
        self.size = settings.connection().pool_size as usize;
        self.reserve = settings.connection().reserve_pool_size as usize;
        (self.epoch, self.lifetime) = (epoch, settings.lifetime);
    }

    /// Whether a connection is older than it may be, or was opened with settings that have changed.
    fn is_outworn(&self, pooled: &Pooled) -> bool {
        pooled.epoch != self.epoch || (!self.lifetime.is_zero() && self.age(pooled) > self.lifetime)
    }

    /// Whether it will soon be, so that another should be opened before it must go.
    fn is_ageing(&self, pooled: &Pooled) -> bool {
        let early = SUCCESSION.min(self.lifetime / 4);
        !self.lifetime.is_zero() && self.age(pooled) > self.lifetime - early
    }

    fn age(&self, pooled: &Pooled) -> Duration {
        self.now.map_or(Duration::ZERO, |now| now.saturating_duration_since(pooled.born))
    }

    /// The most connections there may be now.
    fn limit(&self, reserve_timeout: Duration) -> usize {
        let waited = |t: &Arc<Ticket>| t.since.elapsed() >= reserve_timeout;
        let reserve = self.reserve > 0 && self.waiters.front().is_some_and(waited);
        self.size + if reserve { self.reserve } else { 0 }
    }

    /// Whether a connection that comes back is one too many.
    fn has_too_many(&self) -> bool {
        let size = self.size + self.successors;
        self.open > size && (self.waiters.is_empty() || self.open > size + self.reserve)
    }

    /// Whoever was refused, or has left, is not in the queue any more.
    fn forget_those_who_left(&mut self) {
        while self.waiters.front().is_some_and(|ticket| !ticket.waits()) {
            self.waiters.pop_front();
        }
    }

    fn one_less(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.successors = self.successors.min(self.open.saturating_sub(self.size));
    }

    /// Takes out an idle connection whose successor is there.
    fn take_predecessor(&mut self) -> Option<Box<Pooled>> {
        let at = self.idle.iter().position(|pooled| self.is_ageing(pooled))?;
        self.successors = self.successors.checked_sub(1)?;
        self.one_less();
        Some(self.idle.remove(at))
    }
}

impl Pool {
    /// Empty; connections are opened when they are asked for.
    pub fn new(
        settings: PoolSettings,
        generation: u64,
        runtimes: Runtimes,
        host: &Arc<HostCount>,
    ) -> Arc<Self> {
        let state = State::sized(&settings);
        let pool = Arc::new(Self {
            settings: ArcSwap::from_pointee((1, settings)),
            changing: Mutex::default(),
            generation,
            state: Mutex::new(state),
            runtimes,
            share: Share::of(host),
            defaults: Mutex::default(),
            startups: Mutex::default(),
            pinned: AtomicUsize::new(0),
            listener: Mutex::default(),
            catalog: Known::default(),
            resettable: Resettable::default(),
            stats: Stats::default(),
            servers: Mutex::default(),
            disabled: AtomicBool::new(false),
        });
        pool.share.join(&pool);
        pool
    }

    /// The configuration that has opened it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The connection it is for.
    pub fn connection(&self) -> Arc<Connection> {
        self.settings.load().1.dialer.connection.clone()
    }

    /// Counts a session that keeps its connection; `None` if there are as many as may be (`max_pinned`).
    pub fn pin(self: &Arc<Self>) -> Option<Pinned> {
        let most = match self.connection() {
            c if c.max_pinned > 0 => c.max_pinned as usize,
            c => (c.pool_size as usize).saturating_sub(1).max(1),
        };
        let free = |pinned| (pinned < most).then_some(pinned + 1);
        self.pinned.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(Pinned(self.clone()))
    }

    /// A part of the listener for this session, whose task's waker this is. There is one listening connection for
    /// all of them, beside the pool's own; `None` if there may be none.
    pub fn subscribe(self: &Arc<Self>, session: u64, waker: Waker) -> Option<Subscription> {
        let mut listener = self.listener.lock();
        if let Some(line) = listener.as_ref().filter(|(commands, _)| !commands.is_closed()) {
            return Some(Subscription::new(session, waker, line.clone()));
        }
        if self.state.lock().retired {
            return None;
        }
        let place = HostPlace::take(self)?;
        let dialer = self.settings.load().1.dialer.clone();
        let (commands, receiver) = mpsc::unbounded_channel();
        let listen = async move {
            listener::run(dialer, receiver).await;
            drop(place);
        };
        self.runtimes.tasks.spawn_on(listen, &self.runtimes.control);
        let line: Line = (commands, Arc::default());
        *listener = Some(line.clone());
        Some(Subscription::new(session, waker, line))
    }

    /// Does something on the control runtime that drain waits for.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtimes.tasks.spawn_on(work, &self.runtimes.control);
    }

    /// The runtime that does what is slow, and has a clock.
    pub fn control(&self) -> &Handle {
        &self.runtimes.control
    }

    /// Takes new settings. Where they change what a session sees (`search_path`, `statement_timeout`) or how
    /// safe the way is (TLS), the connections there are will be replaced as they come back.
    pub fn update(self: &Arc<Self>, settings: PoolSettings) {
        let _one_at_a_time = self.changing.lock();
        let old = self.settings.load_full();
        let (before, after) = (old.1.connection(), settings.connection());
        let same = before.search_path == after.search_path
            && before.query_timeout == after.query_timeout
            && before.isolation == after.isolation
            && before.tls == after.tls;
        let epoch = if same { old.0 } else { old.0 + 1 };
        // What clients are told at login is asked again: the database's defaults may be others than they were.
        self.startups.lock().clear();
        let isolation = self.isolation_of(after.isolation);
        self.state.lock().take(epoch, &settings, isolation);
        self.settings.store(Arc::new((epoch, settings)));
        self.close_outworn();
        self.open_more();
    }

    /// No route leads here any more: connections are closed as they come back.
    pub fn retire(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            state.retired = true;
            state.stranded = state.halted.is_some();
        }
        self.share.retire();
        *self.listener.lock() = None;
        self.close_outworn();
    }

    /// Lends a connection if one is idle and nobody waits: if there is one, the connection that this user had last; to the
    /// house itself (`None`) only a clean one. A connection that has died meanwhile is not lent; it
    /// costs no system call to know.
    pub fn try_lend(self: &Arc<Self>, user: Option<&UserName>) -> Option<Lease> {
        loop {
            let (pooled, isolation) = {
                let mut state = self.state.lock();
                if !state.waiters.is_empty() || state.halted.is_some() {
                    return None;
                }
                state.used = true;
                (state.take_idle(user)?, state.isolation)
            };
            if let Some(lease) = self.lend(pooled, isolation) {
                return Some(lease);
            }
        }
    }

    fn lend(self: &Arc<Self>, mut pooled: Box<Pooled>, isolation: Isolation) -> Option<Lease> {
        if pooled.is_usable() {
            pooled.isolation = isolation;
            return Some(Lease { pooled: Some(pooled), pool: self.clone() });
        }
        self.close(pooled);
        None
    }

    /// Joins the queue. The ticket answers when its turn has come, or when there is no connection to be had.
    pub fn wait(self: &Arc<Self>, user: &UserName) -> Arc<Ticket> {
        let ticket = Ticket::new(user.clone());
        let (full, idle) = {
            let mut state = self.state.lock();
            state.waiters.push_back(ticket.clone());
            (state.open + state.dialing >= state.size, !state.idle.is_empty())
        };
        if !full {
            self.open_more();
        }
        if idle {
            // It came back between the look and the queueing.
            self.serve_waiters();
        }
        ticket
    }

    /// Leaves the queue; what was granted meanwhile goes back.
    pub fn abandon(self: &Arc<Self>, ticket: &Arc<Ticket>) {
        {
            // Those who have waited longest give up first: it is found at once.
            let waiters = &mut self.state.lock().waiters;
            let at = waiters.iter().position(|waiter| Arc::ptr_eq(waiter, ticket));
            at.and_then(|at| waiters.remove(at));
        }
        if let Some(lease) = ticket.abandon() {
            lease.release();
        }
    }

    /// A connection, waited for.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn acquire(self: &Arc<Self>, user: &UserName) -> Result<Lease, Refusal> {
        if let Some(lease) = self.try_lend(Some(user)) {
            return Ok(lease);
        }
        let guard = Waiting { pool: self, ticket: self.wait(user) };
        std::future::poll_fn(|cx| match guard.ticket.poll(cx) {
            Poll::Ready(Outcome::Granted(lease)) => Poll::Ready(Ok(lease)),
            Poll::Ready(Outcome::Refused(refusal)) => Poll::Ready(Err(*refusal)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// A connection that is this user's: nothing of anybody else's is on it. And whether the user has used it before.
    ///
    /// # Errors
    /// There is none.
    async fn acquire_fit(self: &Arc<Self>, user: &UserName) -> Result<(Lease, bool), Refusal> {
        for _ in 0..self.most_resets() {
            if let Some(fit) = self.acquire(user).await?.make_fit_for(user).await {
                return Ok(fit);
            }
        }
        Err(relay::conductor::not_reset())
    }

    /// How many connections in a row may fail to be reset before a client is told: somebody may have seen to it that all
    /// there are do, and each that does is closed.
    pub fn most_resets(&self) -> u32 {
        self.connection().pool_size.saturating_add(3)
    }

    /// What a client with these startup settings is told at login. Known without a connection if another
    /// client had the same.
    ///
    /// # Errors
    /// There is no connection, or the upstream refuses a setting: then with its own words.
    pub async fn welcome(self: &Arc<Self>, startup: &Settings, user: &UserName) -> Result<Welcome, Refusal> {
        if let Some(known) = self.startups.lock().get(startup) {
            return Ok(known.clone());
        }
        // A client that differs from a known one only by its plain name needs no connection either. How
        // PostgreSQL writes a name that is not plain ASCII differs between its versions: it is asked.
        let name = application_name(startup).unwrap_or_default();
        let plain = name.len() < 64 && name.bytes().all(|b| (0x20..0x7f).contains(&b));
        let unnamed = startup.without(APPLICATION_NAME);
        let epoch = self.settings.load().0;
        let known = self.startups.lock().get(&unnamed).filter(|_| plain).cloned();
        let welcome = match known {
            Some(known) => known.named(name),
            None => {
                let (mut lease, was_used) = self.acquire_fit(user).await?;
                let welcome = lease.welcome(startup, was_used).await?;
                // A setting that the server refuses has changed nothing there.
                lease.release();
                welcome?
            }
        };
        let mut startups = self.startups.lock();
        if epoch != self.settings.load().0 {
            // A reload has changed what sessions see, meanwhile.
            return Ok(welcome);
        }
        if startups.len() >= MAX_STARTUPS {
            startups.clear();
        }
        if plain {
            startups.entry(unnamed).or_insert_with(|| welcome.named(""));
        }
        // The same allocation for every client with these: at a checkout, a comparison of pointers is enough.
        Ok(startups.entry(startup.clone()).or_insert(welcome).clone())
    }

    /// A connection of its own for a client in session mode, opened with its startup settings (or left clean by
    /// a client with the same ones).
    ///
    /// # Errors
    /// Why there is none.
    pub async fn acquire_session(
        self: &Arc<Self>,
        startup: &Arc<Settings>,
        user: &UserName,
    ) -> Result<Lease, Refusal> {
        while let Some(lease) = self.lend_kept(startup, user) {
            if let Some((lease, _)) = lease.make_fit_for(user).await {
                return Ok(lease);
            }
        }
        let slot = self.acquire_slot(user).await?;
        let settings = self.settings.load_full();
        let task = {
            let (pool, settings, startup) = (self.clone(), settings.clone(), startup.clone());
            let dial = async move {
                if !pool.is_proved() {
                    // On one that no client has made slow or strange by its settings; it is done before the other begins.
                    let mut plain = settings.1.dialer.dial(&Settings::default()).await?;
                    pool.prove_resettable(&mut plain).await?;
                }
                let backend = settings.1.dialer.dial(&startup).await?;
                pool.ask_first(backend, &startup, &settings.1).await
            };
            // The place is taken as long as it is dialled, also for a client that has left.
            let dial = async move { (dial.await, slot) };
            self.runtimes.tasks.spawn_on(dial, &self.runtimes.control)
        };
        let (backend, slot) =
            task.await.map_err(|_| Refusal::new(Fault::Ours, SqlState::INTERNAL, "dial failed"))?;
        let connection = settings.1.connection();
        let backend = backend.map_err(|e| own_words(&e).unwrap_or_else(|| e.refusal(connection)))?;
        let mut lease = slot.fill(self.pooled(backend, &settings, Some(startup.clone())))?;
        lease.serve(user);
        Ok(lease)
    }

    /// An idle connection that was opened with these settings. Whoever waits in the queue comes first.
    fn lend_kept(self: &Arc<Self>, startup: &Arc<Settings>, user: &UserName) -> Option<Lease> {
        loop {
            let (pooled, isolation) = {
                let mut state = self.state.lock();
                if state.halted.is_some() || state.retired || !state.waiters.is_empty() {
                    return None;
                }
                let isolation = state.isolation;
                let fits =
                    |p: &Pooled| p.startup.as_ref() == Some(startup) && p.may_serve(Some(user), isolation);
                let at = state.idle.iter().rposition(|p| fits(p))?;
                (state.idle.remove(at), isolation)
            };
            if let Some(lease) = self.lend(pooled, isolation) {
                return Some(lease);
            }
        }
    }

    /// The right to one more connection: a free place, or that of an idle one, or one that is waited for. Where nothing is
    /// lent, that is waited for, too.
    async fn acquire_slot(self: &Arc<Self>, user: &UserName) -> Result<Slot, Refusal> {
        let placed = {
            let mut state = self.state.lock();
            state.used = true;
            let may = state.halted.is_none() && state.waiters.is_empty();
            let free = may && state.open + state.dialing < state.size && self.share.take();
            state.open += usize::from(free);
            free
        };
        if placed {
            return Ok(Slot(self.clone()));
        }
        let mut lease = self.acquire_any(user).await?;
        // Its place stays taken; the connection itself was opened with other settings.
        if let Some(pooled) = lease.pooled.take() {
            pooled.goodbye();
        }
        Ok(Slot(self.clone()))
    }

    async fn acquire_any(self: &Arc<Self>, user: &UserName) -> Result<Lease, Refusal> {
        let idle = {
            let mut state = self.state.lock();
            if state.waiters.is_empty() && state.halted.is_none() { state.idle.pop() } else { None }
        };
        match idle {
            Some(pooled) => Ok(Lease { pooled: Some(pooled), pool: self.clone() }),
            None => self.acquire(user).await,
        }
    }

    fn pooled(
        &self,
        backend: Backend,
        settings: &(u64, PoolSettings),
        startup: Option<Arc<Settings>>,
    ) -> Box<Pooled> {
        let now = Instant::now();
        let reported = Arc::new(Parameters::new(backend.parameters));
        let pid = Some(backend.target.pid()).filter(|_| self.is_resettable());
        self.servers.lock().push((settings.0, Arc::downgrade(&backend.target)));
        Box::new(Pooled {
            stream: backend.stream,
            state: BackendState::new(reported, settings.1.max_prepared_statements as usize, pid),
            target: backend.target,
            born: now,
            idle_since: None,
            epoch: settings.0,
            query_timeout: settings.1.connection().query_timeout,
            isolation: settings.1.connection().isolation,
            startup,
        })
    }

    /// Opens connections for those who wait, as far as limits and back-off allow.
    fn open_more(self: &Arc<Self>) {
        let now = Instant::now();
        let (min, patience) = {
            let settings = self.settings.load();
            (settings.1.connection().min_pool_size as usize, settings.1.reserve_pool_timeout)
        };
        let share = self.share.fair_share().unwrap_or(usize::MAX);
        let wants_one = |state: &State| {
            let keep = if state.used && !state.retired { min } else { 0 };
            let wanted = state.halted.is_none()
                && (state.waiters.len() > state.dialing || state.open + state.dialing < keep);
            let most = state.limit(patience).min(share);
            let free = state.open + state.dialing < most && state.dialing < MAX_DIALING;
            wanted && free && state.retry_at.is_none_or(|at| now >= at)
        };
        loop {
            // Not under the lock: another pool may have to be asked.
            if !wants_one(&self.state.lock()) || !(self.share.take() || self.share.take_from_another(self)) {
                return;
            }
            let mut state = self.state.lock();
            if !wants_one(&state) {
                drop(state);
                return self.share.give_back();
            }
            state.dialing += 1;
            drop(state);
            let pool = self.clone();
            self.runtimes.tasks.spawn_on(async move { pool.dial(false).await }, &self.runtimes.control);
        }
    }

    /// Opens a connection that will take the place of one that grows too old, if none is on its way.
    fn open_successor(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            let one_at_a_time = state.succeeding || state.successors > 0 || state.dialing >= MAX_DIALING;
            let waits = state.retry_at.is_some_and(|at| Instant::now() < at) || state.halted.is_some();
            if one_at_a_time || waits || state.retired || !self.share.take() {
                return;
            }
            state.dialing += 1;
            state.succeeding = true;
        }
        let pool = self.clone();
        self.runtimes.tasks.spawn_on(async move { pool.dial(true).await }, &self.runtimes.control);
    }

    async fn dial(self: Arc<Self>, succeeds: bool) {
        let settings = self.settings.load_full();
        let begun = Instant::now();
        let dialed = settings.1.dialer.dial(&Settings::default()).await;
        if dialed.is_ok() {
            self.stats.connects.observe(begun.elapsed());
        }
        let dialed = match dialed {
            Ok(mut backend) => match self.prove_resettable(&mut backend).await {
                Ok(()) => self.ask_first(backend, &Settings::default(), &settings.1).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let moved = dialed.and_then(|mut backend| {
            let _data = self.runtimes.data.enter();
            backend.stream.rehome()?;
            Ok(backend)
        });
        match moved {
            Ok(backend) => {
                self.note_defaults(&backend);
                // Of the present epoch, if it is made with what is in force.
                let now = self.settings.load_full();
                let same = Arc::ptr_eq(&now.1.dialer.connection, &settings.1.dialer.connection);
                let pooled = self.pooled(backend, if same { &now } else { &settings }, None);
                {
                    let mut state = self.state.lock();
                    state.dialing -= 1;
                    state.open += 1;
                    (state.failures, state.retry_at) = (0, None);
                    state.succeeding &= !succeeds;
                    state.successors += usize::from(succeeds);
                }
                debug!(connection = %self.connection().name, pid = pooled.target.pid(), "upstream connection opened");
                self.put(pooled);
                let predecessor = self.state.lock().take_predecessor();
                predecessor.into_iter().for_each(|old| self.see_off(old));
                self.open_more();
            }
            Err(error) => {
                self.state.lock().succeeding &= !succeeds;
                self.dial_failed(&settings.1, &error);
            }
        }
    }

    /// What a new connection reports are the database's defaults. If they are others than before, what clients are told at
    /// login is asked again, and the connections that have the old ones are replaced as they come back: but not again and
    /// again, should two servers answer in turn.
    fn note_defaults(self: &Arc<Self>, backend: &Backend) {
        let now = Arc::new(Parameters::new(backend.parameters.iter().cloned()));
        let before = self.defaults.lock().replace((now.clone(), Instant::now()));
        let Some((_, since)) = before.filter(|(before, _)| *before != now) else { return };
        self.startups.lock().clear();
        if since.elapsed() > SETTLED {
            debug!(connection = %self.connection().name, "the database has other defaults: its connections are replaced");
            self.reconnect();
        }
    }

    /// Those who wait are told at once, unless connections are open that they can still get; the next attempt
    /// waits, twice as long each time.
    fn dial_failed(self: &Arc<Self>, settings: &PoolSettings, error: &UpstreamError) {
        self.share.give_back();
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        let connection = settings.connection();
        warn!(connection = %connection.name, environment = %connection.environment, %error, "cannot connect upstream");
        let (delay, hopeless) = {
            let mut state = self.state.lock();
            state.dialing -= 1;
            let delay = LAST_RETRY.min(FIRST_RETRY * 2u32.pow(state.failures.min(6)));
            state.failures += 1;
            state.retry_at = Some(Instant::now() + delay);
            let hopeless = state.open == 0 && state.dialing == 0;
            (delay, if hopeless { std::mem::take(&mut state.waiters) } else { VecDeque::new() })
        };
        let refusal = error.refusal(connection);
        hopeless.into_iter().for_each(|ticket| ticket.refuse(refusal.clone()));
        let pool = self.clone();
        let again = async move {
            tokio::time::sleep(delay).await;
            pool.open_more();
        };
        self.runtimes.tasks.spawn_on(again, &self.runtimes.control);
    }

    /// A connection is free: the oldest waiter gets it, else it is idle. Unless it is to be closed. Who gives up at this very
    /// moment gives it back: then it is the next one's.
    fn put(self: &Arc<Self>, mut pooled: Box<Pooled>) {
        while let Some((ticket, next)) = self.place(pooled) {
            let given_back = ticket.grant(Lease { pooled: Some(next), pool: self.clone() });
            match given_back.and_then(|mut lease| lease.pooled.take()) {
                Some(again) => pooled = again,
                None => return,
            }
        }
    }

    /// Who gets a connection that is free; nobody, if it is idle or closed now.
    fn place(self: &Arc<Self>, mut pooled: Box<Pooled>) -> Option<(Arc<Ticket>, Box<Pooled>)> {
        pooled.idle_since = None;
        let share = self.share.fair_share();
        let grows_old;
        let ticket = {
            let mut state = self.state.lock();
            state.forget_those_who_left();
            grows_old = state.is_ageing(&pooled);
            let succeeded = grows_old && state.successors > 0;
            state.successors -= usize::from(succeeded);
            let owed = share.is_some_and(|share| state.open > share);
            let nobody_waits = state.waiters.is_empty();
            // Opened with the settings of a client in session mode, or used for another user where it serves but one, it is
            // of no use to the one whose turn it is.
            let serves = |next: &Arc<Ticket>| pooled.may_serve(Some(&next.user), state.isolation);
            let unfit = state.waiters.front().is_some_and(|next| pooled.startup.is_some() || !serves(next));
            pooled.isolation = state.isolation;
            let paused = state.halted == Some(Halt::Paused);
            let outworn = state.is_outworn(&pooled) || pooled.target.is_spoiled() || paused;
            if outworn
                || unfit
                || owed
                || succeeded
                || state.has_too_many()
                || (state.retired && nobody_waits)
            {
                state.one_less();
                drop(state);
                self.see_off(pooled);
                return None;
            }
            let next = if state.halted.is_some() { None } else { state.waiters.pop_front() };
            match next {
                Some(ticket) => ticket,
                None => {
                    state.idle.push(pooled);
                    drop(state);
                    if share.is_some() {
                        self.share.next_turn(self);
                    }
                    if grows_old {
                        self.open_successor();
                    }
                    return None;
                }
            }
        };
        if grows_old {
            self.open_successor();
        }
        Some((ticket, pooled))
    }

    /// Hands idle connections to those who wait, the oldest first.
    fn serve_waiters(self: &Arc<Self>) {
        loop {
            let (ticket, pooled, isolation) = {
                let mut state = self.state.lock();
                state.forget_those_who_left();
                if state.waiters.is_empty() || state.halted.is_some() {
                    return;
                }
                let next = state.waiters.front().map(|ticket| ticket.user.clone());
                let Some(pooled) = state.take_idle(next.as_ref()) else {
                    // What is idle is not for the one whose turn it is; where no other can be opened, one must make way.
                    let full = state.open + state.dialing >= state.size || !self.share.has_room();
                    let unfit = if full { state.idle.pop() } else { None };
                    unfit.iter().for_each(|_| state.one_less());
                    drop(state);
                    return unfit.into_iter().for_each(|pooled| self.see_off(pooled));
                };
                (state.waiters.pop_front(), pooled, state.isolation)
            };
            let Some(ticket) = ticket else { return };
            match self.lend(pooled, isolation) {
                Some(lease) => {
                    if let Some(lease) = ticket.grant(lease) {
                        lease.release();
                    }
                }
                None => self.state.lock().waiters.push_front(ticket),
            }
        }
    }

    /// Closes a connection and makes room for another.
    fn close(self: &Arc<Self>, pooled: Box<Pooled>) {
        pooled.goodbye();
        self.lost();
    }

    /// Closes one that is counted no longer. Whatever decides on the count must not count what is about to be closed, so
    /// it is taken from it together with that decision.
    fn see_off(self: &Arc<Self>, pooled: Box<Pooled>) {
        pooled.goodbye();
        self.has_room();
    }

    fn lost(self: &Arc<Self>) {
        self.state.lock().one_less();
        self.has_room();
    }

    /// One of the host's places is free.
    fn has_room(self: &Arc<Self>) {
        self.share.give_back();
        self.share.next_turn(self);
    }

    /// Whether it has connections, or wants any.
    fn is_active(&self) -> bool {
        let state = self.state.lock();
        state.open + state.dialing + state.waiters.len() > 0
    }

    /// Closes an idle connection for the sake of another pool of the same host, if nobody here waits.
    fn spare_one(&self) -> bool {
        let spared = {
            let mut state = self.state.lock();
            if !state.waiters.is_empty() || state.idle.is_empty() {
                return false;
            }
            state.one_less();
            // The one that has been idle longest.
            state.idle.remove(0)
        };
        spared.goodbye();
        self.share.give_back();
        true
    }

    /// Once a second: closes what is dead, too old or too long idle; keeps `min_pool_size`; uses the reserve.
    pub fn tend(self: &Arc<Self>) {
        self.close_outworn();
        self.open_more();
        self.serve_waiters();
        self.reset_idle();
        self.refresh_catalog();
        self.stats.tick();
        self.servers.lock().retain(|(_, server)| server.strong_count() > 0);
    }

    fn close_outworn(self: &Arc<Self>) {
        for pooled in self.tend_idle() {
            self.see_off(pooled);
        }
    }

    /// Takes the idle connections that must go, as many as may.
    #[expect(clippy::vec_box)]
    fn tend_idle(&self) -> Vec<Box<Pooled>> {
        let now = Instant::now();
        let (idle_timeout, min) = {
            let settings = self.settings.load();
            (settings.1.idle_timeout, settings.1.connection().min_pool_size as usize)
        };
        let mut state = self.state.lock();
        state.now = Some(now);
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        let mut spare = state.open.saturating_sub(min);
        for mut pooled in std::mem::take(&mut state.idle) {
            let idle = now.duration_since(*pooled.idle_since.get_or_insert(now));
            let too_idle = !idle_timeout.is_zero() && idle > idle_timeout && spare > 0;
            if state.retired || too_idle || state.is_outworn(&pooled) || !pooled.is_usable() {
                spare = spare.saturating_sub(1);
                gone.push(pooled);
            } else {
                kept.push(pooled);
            }
        }
        state.idle = kept;
        gone.iter().for_each(|_| state.one_less());
        gone
    }
}

/// In session mode the client's own settings are sent with the login: what is wrong with them, it is told.
fn own_words(error: &UpstreamError) -> Option<Refusal> {
    let UpstreamError::Refused { sqlstate, message } = error else { return None };
    let state = SqlState::of_statement(sqlstate)?;
    Some(Refusal::new(Fault::Client, state, message.clone()))
}

fn application_name(startup: &Settings) -> Option<&str> {
    startup.iter().rfind(|(n, _)| n.eq_ignore_ascii_case(APPLICATION_NAME)).map(|(_, v)| v)
}

impl Welcome {
    fn named(&self, application_name: &str) -> Self {
        let (name, value) = (APPLICATION_NAME.as_bytes(), application_name.as_bytes());
        let reported = match self.reported.get(name) {
            Some(known) if known != value => Arc::new(self.reported.with(name, value)),
            _ => self.reported.clone(),
        };
        Self { reported, extra: self.extra.clone() }
    }
}

/// A place in a pool without a connection yet.
struct Slot(Arc<Pool>);

impl Slot {
    fn fill(self, mut pooled: Box<Pooled>) -> Result<Lease, Refusal> {
        let pool = self.0.clone();
        let _data = pool.runtimes.data.enter();
        let moved = pooled.stream.rehome();
        moved.map_err(|_| Refusal::new(Fault::Ours, SqlState::INTERNAL, "a socket was lost"))?;
        std::mem::forget(self);
        Ok(Lease { pooled: Some(pooled), pool: pool.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lost();
    }
}

/// Leaves the queue if the wait is dropped.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    ticket: Arc<Ticket>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.abandon(&self.ticket);
    }
}

/// No connection became free for a client within its time.
pub(crate) fn waited_too_long(waited: Duration) -> Refusal {
    let message = "no upstream connection became free within query_wait_timeout";
    Refusal::new(Fault::Upstream, SqlState::TOO_MANY_CONNECTIONS, message)
        .detail(format!("Waited {}.", humantime::format_duration(waited)))
}
