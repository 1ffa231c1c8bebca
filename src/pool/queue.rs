//! Performs what the ledger says: lends connections, passes them to waiting clients, opens and closes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{HostPermit, Lease, Pool, PoolSettings, Pooled, SETTLED, WaitEnd, Waiter};
use crate::ring;
use crate::upstream::{Backend, UpstreamError};
use policy::config::file::Isolation;
use policy::names::UserName;
use relay::ledger::host::Purpose;
use relay::ledger::{Asker, Dial, Dialed, Disposition, Ledger, Queued, Want, Wanted};
use relay::{BackendState, Parameters};
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;

/// Where in the queue somebody waits.
type Join = fn(&mut Ledger<Box<Pooled>, Arc<Waiter>>, Queued<Arc<Waiter>>);

impl Pool {
    /// The time, as the ledger and the sessions are told it: since the pool was made.
    pub fn now(&self) -> Duration {
        self.born.elapsed()
    }

    /// Lends a connection if one is idle and nobody waits: if it can be, the one that this session had last, or that its user
    /// had. A connection that has died meanwhile is not lent; it costs no system call to know.
    pub fn try_lend(self: &Arc<Self>, user: &UserName, session: u64) -> Option<Lease> {
        self.lend_at_once(Want::Any(user), Asker { session, home: ring::home() })
    }

    /// The same, to the house itself: only a clean one.
    pub(super) fn try_lend_clean(self: &Arc<Self>) -> Option<Lease> {
        self.lend_at_once(Want::Clean, Asker::default())
    }

    fn lend_at_once(self: &Arc<Self>, want: Want<'_>, asker: Asker) -> Option<Lease> {
        loop {
            let (pooled, isolation) = {
                let mut ledger = self.ledger.lock();
                (ledger.lend_to(want, asker)?, ledger.limits().isolation)
            };
            if let Some(lease) = self.lend(pooled, isolation) {
                return Some(lease);
            }
        }
    }

    fn lend(self: &Arc<Self>, mut pooled: Box<Pooled>, isolation: Isolation) -> Option<Lease> {
        if pooled.is_usable() {
            pooled.isolation = isolation;
            return Some(Lease::of(self, pooled));
        }
        drop(pooled.terminate());
        self.lost();
        None
    }

    /// Joins the queue. The waiter answers when its turn has come, or when there is no connection to be had.
    pub fn wait(self: &Arc<Self>, user: &UserName) -> Arc<Waiter> {
        self.queue(Wanted::Any(user.clone()), Ledger::wait)
    }

    /// The same, before all others: what was lent has turned out to be of no use.
    pub fn wait_first(self: &Arc<Self>, user: &UserName) -> Arc<Waiter> {
        self.queue(Wanted::Any(user.clone()), Ledger::wait_first)
    }

    fn queue(self: &Arc<Self>, wanted: Wanted, join: Join) -> Arc<Waiter> {
        let waiter = Waiter::new();
        let (full, idle) = {
            let since = self.now();
            let mut ledger = self.ledger.lock();
            join(&mut ledger, Queued { who: waiter.clone(), wanted, since });
            let counts = ledger.occupancy();
            (counts.idle + counts.lent + counts.dialing >= ledger.limits().size, counts.idle > 0)
        };
        if !full {
            self.open_more();
        }
        if idle {
            // It came back between the look and the queueing, or is of other settings.
            self.serve_waiters();
        }
        waiter
    }

    /// Leaves the queue; what was granted meanwhile goes back.
    pub fn abandon(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        let counts = {
            let mut ledger = self.ledger.lock();
            ledger.cancel(|who| Arc::ptr_eq(who, waiter));
            ledger.occupancy()
        };
        if counts.idle > 0 && counts.waiting > 0 {
            // What was of no use to the one who has left may be for the next.
            self.serve_waiters();
        }
        if let Some(lease) = waiter.abandon() {
            lease.release();
        }
    }

    /// A connection, waited for.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn acquire(self: &Arc<Self>, user: &UserName) -> Result<Lease, Refusal> {
        self.acquire_for(Wanted::Any(user.clone())).await
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
        for _ in 0..self.most_resets() {
            let lease = self.acquire_for(Wanted::Own(user.clone(), startup.clone())).await?;
            if let Some((lease, _)) = lease.make_fit_for(user).await {
                return Ok(lease);
            }
        }
        Err(relay::conductor::not_reset())
    }

    async fn acquire_for(self: &Arc<Self>, wanted: Wanted) -> Result<Lease, Refusal> {
        if let Some(lease) = self.lend_at_once(wanted.want(), Asker::default()) {
            return Ok(lease);
        }
        let guard = Waiting { pool: self, waiter: self.queue(wanted, Ledger::wait) };
        std::future::poll_fn(|cx| match guard.waiter.poll(cx) {
            Poll::Ready(WaitEnd::Granted(lease)) => Poll::Ready(Ok(lease)),
            Poll::Ready(WaitEnd::Refused(refusal)) => Poll::Ready(Err(*refusal)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// A connection is free: what becomes of it, the ledger says. Who gives up at this very moment gives it back: then it is
    /// the next one's.
    pub(super) fn put(self: &Arc<Self>, pooled: Box<Pooled>) {
        self.put_by(pooled, None);
    }

    /// The same, of one that was dialled just now: between its coming and its going to whoever waits, nobody may believe that
    /// another is needed for them.
    fn put_by(self: &Arc<Self>, mut pooled: Box<Pooled>, mut dialed: Option<Dialed>) {
        loop {
            let share = self.share.fair_share();
            let (place, ages, isolation, halted) = {
                let mut ledger = self.ledger.lock();
                if let Some(how) = dialed.take() {
                    ledger.dialed(how);
                }
                let (place, ages) = ledger.returned(pooled, share);
                (place, ages, ledger.limits().isolation, ledger.is_halted())
            };
            if ages {
                self.open_successor();
            }
            match place {
                Disposition::Grant(waiter, mut next) => {
                    next.isolation = isolation;
                    let given_back = waiter.who.grant(Lease::of(self, next));
                    match given_back.and_then(Lease::into_pooled) {
                        Some(again) => pooled = again,
                        None => return,
                    }
                }
                Disposition::Replace(unfit, dial) => {
                    self.start(dial, unfit.terminate());
                    return self.serve_waiters();
                }
                Disposition::Close(pooled) => return self.evict(pooled),
                Disposition::Idle => {
                    if halted {
                        self.changed.notify_waiters();
                    }
                    if share.is_some() {
                        self.share.next_turn(self);
                    }
                    return;
                }
            }
        }
    }

    /// Hands idle connections to those who wait, the oldest first.
    pub(super) fn serve_waiters(self: &Arc<Self>) {
        loop {
            let share = self.share.fair_share().unwrap_or(usize::MAX);
            let (place, isolation) = {
                let mut ledger = self.ledger.lock();
                let Some(place) = ledger.serve(share, || self.share.has_room()) else { return };
                (place, ledger.limits().isolation)
            };
            match place {
                Disposition::Grant(waiter, pooled) => match self.lend(pooled, isolation) {
                    Some(lease) => {
                        if let Some(lease) = waiter.who.grant(lease) {
                            lease.release();
                        }
                    }
                    None if waiter.who.waits() => self.ledger.lock().wait_first(waiter),
                    None => {}
                },
                Disposition::Replace(unfit, dial) => self.start(dial, unfit.terminate()),
                Disposition::Close(unfit) => self.evict(unfit),
                Disposition::Idle => return,
            }
        }
    }

    /// Opens connections for those who wait, as far as limits and back-off allow.
    pub(super) fn open_more(self: &Arc<Self>) {
        let now = self.now();
        let share = self.share.fair_share().unwrap_or(usize::MAX);
        loop {
            // Not under the lock: another pool may have to be asked.
            let (wants_one, is_short) = {
                let ledger = self.ledger.lock();
                (ledger.wants_one(now, share), ledger.is_short())
            };
            if !wants_one || !is_short && self.makes_way() {
                return;
            }
            let mut permit = self.share.reserve(Purpose::Pooled);
            if permit.is_none() && is_short {
                permit = self.share.reserve_from_others();
            }
            let Some(permit) = permit else { return };
            let dial = self.ledger.lock().dial(now, share);
            let Some(dial) = dial else { return };
            self.start(dial, permit);
        }
    }

    /// Opens a connection that will take the place of one that grows too old, if none is on its way.
    fn open_successor(self: &Arc<Self>) {
        let now = self.now();
        let mut permit = None;
        let dial = self.ledger.lock().dial_successor(now, || {
            permit = self.share.reserve(Purpose::Pooled);
            permit.is_some()
        });
        if let (Some(dial), Some(permit)) = (dial, permit) {
            self.start(dial, permit);
        }
    }

    fn start(self: &Arc<Self>, dial: Dial<Arc<Waiter>>, permit: HostPermit) {
        let pool = self.clone();
        let work = async move {
            let (how, waiter) = match &dial {
                Dial::Plain => (Dialed::Plain, None),
                Dial::Succeeding => (Dialed::Succeeding, None),
                Dial::Own(waiter, _) => (Dialed::Own, Some(waiter.clone())),
            };
            let counted = Arc::new(AtomicBool::new(false));
            let (inner, counts) = (pool.clone(), counted.clone());
            let dialing = tokio::spawn(async move {
                match dial {
                    Dial::Own(waiter, startup) => inner.dial_own(&waiter, startup, permit, &counts).await,
                    Dial::Plain | Dial::Succeeding => inner.dial(how, permit, &counts).await,
                }
            });
            if dialing.await.is_ok() || counted.load(Ordering::Acquire) {
                return;
            }
            // It has panicked, and its permit has been given back: whoever waits is told, and the pool is no connection short.
            let settings = pool.settings.load_full();
            match waiter {
                Some(waiter) => {
                    pool.dial_own_failed(&waiter, UpstreamError::Panicked.refusal(settings.1.connection()));
                }
                None => pool.dial_failed(how, &settings.1, &UpstreamError::Panicked),
            }
        };
        self.runtimes.tasks.spawn_on(work, &self.runtimes.control);
    }

    /// `counted` says that the ledger was told how it has ended, or is about to be.
    async fn dial(self: Arc<Self>, how: Dialed, permit: HostPermit, counted: &AtomicBool) {
        let settings = self.settings.load_full();
        match self.open(&settings.1).await.and_then(|backend| self.rehome(backend)) {
            Ok(backend) => {
                self.note_defaults(&backend);
                // Of the present epoch, if it is made with what is in force.
                let now = self.settings.load_full();
                let same = Arc::ptr_eq(&now.1.dialer.connection, &settings.1.dialer.connection);
                let pooled = self.pooled(backend, if same { &now } else { &settings }, None, permit);
                debug!(connection = %self.connection().name, pid = pooled.target.pid(), "upstream connection opened");
                counted.store(true, Ordering::Release);
                self.put_by(pooled, Some(how));
                let predecessor = self.ledger.lock().take_predecessor();
                predecessor.into_iter().for_each(|old| self.evict(old));
                self.open_more();
            }
            Err(error) => {
                drop(permit);
                counted.store(true, Ordering::Release);
                self.dial_failed(how, &settings.1, &error);
            }
        }
    }

    /// A connection for anybody, of which it is known what it starts with.
    async fn open(&self, settings: &PoolSettings) -> Result<Backend, UpstreamError> {
        let begun = Instant::now();
        let mut backend = settings.dialer.dial(&Settings::default()).await?;
        self.stats.connects.observe(begun.elapsed());
        self.prove_resettable(&mut backend).await?;
        self.ask_first(backend, &Settings::default(), settings).await
    }

    /// For a client in session mode. It has its permit as long as it is dialled, also for a client that has left.
    async fn dial_own(
        self: Arc<Self>,
        waiter: &Waiter,
        startup: Arc<Settings>,
        permit: HostPermit,
        counted: &AtomicBool,
    ) {
        let settings = self.settings.load_full();
        let dial = async {
            if !self.is_proved() {
                // On one that no client has made slow or strange by its settings; it is done before the other begins.
                let mut plain = settings.1.dialer.dial(&Settings::default()).await?;
                self.prove_resettable(&mut plain).await?;
            }
            let backend = settings.1.dialer.dial(&startup).await?;
            self.rehome(self.ask_first(backend, &startup, &settings.1).await?)
        };
        match dial.await {
            Ok(backend) => {
                let pooled = self.pooled(backend, &settings, Some(startup), permit);
                counted.store(true, Ordering::Release);
                self.ledger.lock().dialed(Dialed::Own);
                let lease = Lease::of(&self, pooled);
                if let Some(lease) = waiter.grant(lease) {
                    lease.release();
                }
            }
            Err(error) => {
                drop(permit);
                let connection = settings.1.connection();
                let refusal = own_words(&error).unwrap_or_else(|| error.refusal(connection));
                counted.store(true, Ordering::Release);
                self.dial_own_failed(waiter, refusal);
            }
        }
    }

    fn dial_own_failed(self: &Arc<Self>, waiter: &Waiter, refusal: Refusal) {
        let now = self.now();
        drop(self.ledger.lock().dial_failed(Dialed::Own, now));
        waiter.refuse(refusal);
        self.share.next_turn(self);
    }

    fn rehome(&self, mut backend: Backend) -> Result<Backend, UpstreamError> {
        self.runtimes.data.receive(&mut backend.stream)?;
        Ok(backend)
    }

    fn pooled(
        &self,
        backend: Backend,
        settings: &(u64, PoolSettings),
        startup: Option<Arc<Settings>>,
        permit: HostPermit,
    ) -> Box<Pooled> {
        let reported = Arc::new(Parameters::new(backend.parameters));
        let pid = Some(backend.target.pid()).filter(|_| self.is_resettable());
        backend.target.tell_when_gone(self.changed.clone());
        self.servers.lock().push((settings.0, Arc::downgrade(&backend.target)));
        Box::new(Pooled {
            stream: backend.stream,
            state: BackendState::new(reported, settings.1.max_prepared_statements as usize, pid),
            target: backend.target,
            born: self.now(),
            idle_since: None,
            epoch: settings.0,
            query_timeout: settings.1.connection().query_timeout,
            isolation: settings.1.connection().isolation,
            // In session mode it is the client's own login.
            notices: startup.as_ref().map_or(Box::default(), |_| backend.notices.into()),
            startup,
            permit,
        })
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
    fn dial_failed(self: &Arc<Self>, how: Dialed, settings: &PoolSettings, error: &UpstreamError) {
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        let connection = settings.connection();
        warn!(connection = %connection.name, environment = %connection.environment, %error, "cannot connect upstream");
        let now = self.now();
        let failure = self.ledger.lock().dial_failed(how, now);
        let refusal = error.refusal(connection);
        failure.refused.into_iter().for_each(|waiter| waiter.refuse(refusal.clone()));
        // What it could not use may be of use to another pool of the host.
        self.share.next_turn(self);
        let pool = self.clone();
        let again = async move {
            tokio::time::sleep(failure.again_after).await;
            pool.open_more();
        };
        self.runtimes.tasks.spawn_on(again, &self.runtimes.control);
    }

    /// Closes one that is counted no longer.
    pub(super) fn evict(self: &Arc<Self>, pooled: Box<Pooled>) {
        drop(pooled.terminate());
        self.changed.notify_waiters();
        self.share.next_turn(self);
    }

    /// One that was lent has been closed.
    pub(super) fn lost(self: &Arc<Self>) {
        self.ledger.lock().lost();
        self.changed.notify_waiters();
        self.share.next_turn(self);
    }

    /// Closes an idle connection for the sake of another pool of the same host, if nobody here waits.
    pub(super) fn spare_one(&self) -> bool {
        let spared = self.ledger.lock().spare();
        let Some(spared) = spared else { return false };
        drop(spared.terminate());
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

    pub(super) fn close_outworn(self: &Arc<Self>) {
        let now = self.now();
        let gone = self.ledger.lock().tick(now, |pooled| pooled.is_usable());
        gone.into_iter().for_each(|pooled| self.evict(pooled));
    }
}

/// In session mode the client's own settings are sent with the login: what is wrong with them, it is told.
fn own_words(error: &UpstreamError) -> Option<Refusal> {
    let UpstreamError::Refused { sqlstate, message } = error else { return None };
    let state = SqlState::parse(sqlstate.as_bytes()).filter(|state| state.is_of_statement())?;
    Some(Refusal::new(Fault::Client, state, message.clone()))
}

/// Leaves the queue if the wait is dropped.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    waiter: Arc<Waiter>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.abandon(&self.waiter);
    }
}
