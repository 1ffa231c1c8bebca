//! The upstream connections of one route, who waits for them, and the lease of one of them to one session.

mod catalog;
mod host;
mod isolation;
mod lease;
mod notifications;
mod operate;
mod queue;
mod waiter;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::TaskTracker;

use crate::ring;
use crate::stats::Stats;
use crate::stream::Stream;
use crate::upstream::{CancelTarget, Dialer};
use catalog::KnownFunctions;
pub use host::HostCount;
use host::{HostPermit, PermitApart, Share};
use isolation::Resettable;
pub(crate) use isolation::prove as prove_resettable;
use lease::Usage;
pub(crate) use lease::{Lease, Pooled};
use notifications::Line;
pub(crate) use notifications::Subscription;
pub(crate) use operate::Admission;
use policy::config::Connection;
use policy::config::file::Isolation;
use policy::names::UserName;
pub(crate) use relay::ledger::Halt;
use relay::ledger::{self, Ledger, Limits};
use relay::{Parameters, UserMemory};
pub use waiter::WaitEnd;
pub use waiter::Waiter;
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;

const APPLICATION_NAME: &str = "application_name";
/// How long a database's defaults must have been others before connections with those are replaced for it.
const SETTLED: Duration = Duration::from_secs(1);
/// How many different sets of startup settings a pool remembers the outcome of.
const MAX_STARTUPS: usize = 256;
/// How long what a standby has said of itself is told to others.
const STANDBY_KNOWN: Duration = Duration::from_secs(1);

/// The two runtimes: one does what is slow, the other relays.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// Accepts, handshakes, dials.
    pub control: Handle,
    /// Relays.
    pub data: Data,
    /// Every task that drain waits for.
    pub tasks: TaskTracker,
}

/// The runtime that relays.
#[derive(Debug, Clone)]
pub enum Data {
    /// On epoll, of one thread or several.
    Tokio(Handle),
    /// On io_uring, of one thread or several.
    Ring(ring::Relays),
}

impl Data {
    /// What it reads and writes by, as `[server] io` has it.
    pub fn io(&self) -> &'static str {
        match self {
            Self::Tokio(_) => "epoll",
            Self::Ring(_) => "io_uring",
        }
    }

    /// How many threads may relay, and how many of them do.
    pub fn threads(&self) -> (usize, usize) {
        match self {
            Self::Tokio(handle) => (handle.metrics().num_workers(), handle.metrics().num_workers()),
            Self::Ring(relays) => relays.threads(),
        }
    }

    /// Has it run this to its end.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Tokio(handle) => drop(handle.spawn(future)),
            Self::Ring(relays) => relays.spawn(future),
        }
    }

    /// Ends when it has done something that it was given just now (each of its threads, on io_uring); false if it has ended.
    pub async fn answer(&self) -> bool {
        match self {
            Self::Tokio(handle) => handle.spawn(async {}).await.is_ok(),
            Self::Ring(relays) => relays.answer().await,
        }
    }

    /// Has sessions go from threads that have too much to do to others, for as long as it relays.
    pub async fn balance(self) {
        if let Self::Ring(relays) = self {
            relays.balance().await;
        }
    }

    /// A socket of the control runtime's is to be used here.
    ///
    /// # Errors
    /// The system's; the socket is then lost.
    fn receive(&self, stream: &mut Stream) -> io::Result<()> {
        match self {
            Self::Tokio(handle) => {
                let _data = handle.enter();
                stream.rehome()
            }
            // Its thread takes it to its ring when it is used there.
            Self::Ring(_) => stream.unregister(),
        }
    }
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
    /// What the upstream said of them (`NoticeResponse`s, whole).
    pub notices: Arc<[u8]>,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    settings: ArcSwap<(u64, PoolSettings)>,
    /// Held while settings and epoch change: what is dialled and what is outworn are told apart by the same number.
    changing: Mutex<()>,
    ledger: Mutex<Ledger<Box<Pooled>, Arc<Waiter>>>,
    born: Instant,
    runtimes: Runtimes,
    share: Share,
    /// What the last connection reported when it was opened: the database's defaults, and since when.
    defaults: Mutex<Option<(Arc<Parameters>, Instant)>>,
    startups: Mutex<HashMap<Settings, (Welcome, Instant)>>,
    /// When its connections were closed last because their database was needed.
    made_way: Mutex<operate::MadeWay>,
    /// How many sessions keep a connection beyond a transaction.
    pinned: AtomicUsize,
    /// The way to the connection that listens for everybody, while there is one.
    listener: Mutex<Option<Line>>,
    /// What the database's functions may do to a session.
    generation: u64,
    catalog: KnownFunctions,
    resettable: Resettable,
    stats: Stats,
    /// What the sessions of each user remember together: one for each user who was ever placed here.
    memories: Mutex<HashMap<UserName, Arc<UserMemory>>>,
    /// Every connection that was opened and may still be there, with its epoch.
    servers: Mutex<Vec<(u64, Weak<CancelTarget>)>>,
    /// Told when a connection has been closed, or has come back while nothing is lent.
    changed: Arc<Notify>,
    /// Whether anybody may log in to it ([`Admission`]).
    admission: AtomicU8,
}

/// A session keeps its connection beyond a transaction; counted until this is dropped.
#[derive(Debug)]
pub struct PinPermit(Arc<Pool>);

impl Drop for PinPermit {
    fn drop(&mut self) {
        self.0.pinned.fetch_sub(1, Ordering::AcqRel);
    }
}

impl ledger::Lendable for Box<Pooled> {
    fn last_user(&self) -> Option<&UserName> {
        self.state.last_user()
    }
    fn last_session(&self) -> u64 {
        self.state.last_session()
    }
    fn is_kept(&self) -> bool {
        self.state.is_kept()
    }
    fn is_clean(&self) -> bool {
        self.state.is_clean()
    }
    fn is_foreign_to(&self, user: &UserName) -> bool {
        self.state.is_foreign_to(user)
    }
    fn startup(&self) -> Option<&Arc<Settings>> {
        self.startup.as_ref()
    }
    fn epoch(&self) -> u64 {
        self.epoch
    }
    fn born(&self) -> Duration {
        self.born
    }
    fn is_spoiled(&self) -> bool {
        self.target.is_spoiled()
    }
    fn idle_since(&mut self) -> &mut Option<Duration> {
        &mut self.idle_since
    }
    fn home(&self) -> ledger::Home {
        self.stream.home()
    }
}

/// What the settings allow.
fn limits(epoch: u64, settings: &PoolSettings, isolation: Isolation) -> Limits {
    let connection = settings.connection();
    Limits {
        size: connection.pool_size as usize,
        reserve: connection.reserve_pool_size as usize,
        reserve_after: settings.reserve_pool_timeout,
        min: connection.min_pool_size as usize,
        idle_timeout: settings.idle_timeout,
        lifetime: settings.lifetime,
        epoch,
        isolation,
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
        let ledger = Ledger::new(limits(1, &settings, settings.connection().isolation));
        let pool = Arc::new(Self {
            settings: ArcSwap::from_pointee((1, settings)),
            changing: Mutex::default(),
            generation,
            ledger: Mutex::new(ledger),
            born: Instant::now(),
            runtimes,
            share: Share::of(host),
            defaults: Mutex::default(),
            startups: Mutex::default(),
            made_way: Mutex::default(),
            pinned: AtomicUsize::new(0),
            listener: Mutex::default(),
            catalog: KnownFunctions::default(),
            resettable: Resettable::default(),
            stats: Stats::default(),
            memories: Mutex::default(),
            servers: Mutex::default(),
            changed: Arc::default(),
            admission: AtomicU8::new(Admission::Open as u8),
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
    pub fn pin(self: &Arc<Self>) -> Option<PinPermit> {
        let most = match self.connection() {
            c if c.max_pinned > 0 => c.max_pinned as usize,
            c => (c.pool_size as usize).saturating_sub(1).max(1),
        };
        let free = |pinned| (pinned < most).then_some(pinned + 1);
        self.pinned.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(PinPermit(self.clone()))
    }

    /// A part of the listener for this session, whose task's waker this is. There is one listening connection for
    /// all of them, beside the pool's own; `None` if there may be none.
    pub fn subscribe(self: &Arc<Self>, session: u64, waker: Waker) -> Option<Subscription> {
        let mut listener = self.listener.lock();
        if let Some(line) = listener.as_ref().filter(|(commands, _)| !commands.is_closed()) {
            return Some(Subscription::new(session, waker, line.clone()));
        }
        if self.ledger.lock().is_retired() {
            return None;
        }
        let permit = PermitApart::reserve(self)?;
        let dialer = self.settings.load().1.dialer.clone();
        #[expect(clippy::disallowed_methods, reason = "at most one command of each session waits")]
        let (commands, receiver) = mpsc::unbounded_channel();
        let pool = self.clone();
        let listen = async move {
            notifications::run(dialer, receiver, || pool.share.is_starving()).await;
            drop(permit);
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
        self.ledger.lock().update(limits(epoch, &settings, isolation));
        self.settings.store(Arc::new((epoch, settings)));
        self.close_outworn();
        self.open_more();
    }

    /// No route leads here any more: connections are closed as they come back.
    pub fn retire(self: &Arc<Self>) {
        self.ledger.lock().retire();
        self.share.retire();
        *self.listener.lock() = None;
        self.close_outworn();
    }

    /// A connection that is this user's: nothing of anybody else's is on it. And whether the user has used it before.
    ///
    /// # Errors
    /// There is none.
    async fn acquire_fit(self: &Arc<Self>, user: &UserName) -> Result<(Lease, Usage), Refusal> {
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
        let known = |startup: &Settings| {
            let startups = self.startups.lock();
            let known = startups.get(startup).filter(|(welcome, since)| welcome.is_still_so(*since));
            known.map(|(welcome, _)| welcome.clone())
        };
        if let Some(known) = known(startup) {
            return Ok(known);
        }
        // A client that differs from a known one only by its plain name needs no connection either. How
        // PostgreSQL writes a name that is not plain ASCII differs between its versions: it is asked.
        let name = application_name(startup).unwrap_or_default();
        let plain = name.len() < 64 && name.bytes().all(|b| (0x20..0x7f).contains(&b));
        let unnamed = startup.without(APPLICATION_NAME);
        let epoch = self.settings.load().0;
        let now = Instant::now();
        let welcome = match known(&unnamed).filter(|_| plain) {
            Some(known) => known.named(name),
            None => {
                let (mut lease, usage) = self.acquire_fit(user).await?;
                let welcome = lease.welcome(startup, usage).await?;
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
        // The same allocation for every client with these: at a checkout, a comparison of pointers is enough.
        let mut put = |startup: Settings, welcome: Welcome| {
            let known = startups.entry(startup).or_insert_with(|| (welcome.clone(), now));
            if known.0.reported != welcome.reported {
                known.0 = welcome;
            }
            known.1 = now;
            known.0.clone()
        };
        if plain {
            put(unnamed, welcome.named(""));
        }
        Ok(put(startup.clone(), welcome))
    }
}

fn application_name(startup: &Settings) -> Option<&str> {
    startup.iter().rfind(|(n, _)| n.eq_ignore_ascii_case(APPLICATION_NAME)).map(|(_, v)| v)
}

impl Welcome {
    /// Whether what was asked then can still be told: a standby may have been promoted, of which nobody tells an idle connection, and
    /// clients that look for a primary never ask (`target_session_attrs`).
    fn is_still_so(&self, since: Instant) -> bool {
        self.reported.get(b"in_hot_standby") != Some(b"on") || since.elapsed() < STANDBY_KNOWN
    }

    fn named(&self, application_name: &str) -> Self {
        let (name, value) = (APPLICATION_NAME.as_bytes(), application_name.as_bytes());
        let reported = match self.reported.get(name) {
            Some(known) if known != value => Arc::new(self.reported.with(name, value)),
            _ => self.reported.clone(),
        };
        Self { reported, extra: self.extra.clone(), notices: self.notices.clone() }
    }
}

/// No connection became free for a client within its time.
pub(crate) fn waited_too_long(waited: Duration) -> Refusal {
    let message = "no upstream connection became free within query_wait_timeout";
    Refusal::new(Fault::Upstream, SqlState::TOO_MANY_CONNECTIONS, message)
        .detail(format!("Waited {}.", humantime::format_duration(waited)))
}
