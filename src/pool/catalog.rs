//! Asks a database what its own functions are and what runs them.

mod questions;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tracing::{debug, warn};

use super::{PermitApart, Pool, PoolSettings};
use crate::stream::Stream;
use crate::upstream::{Allowance, Backend, UpstreamError, rows};
use relay::{Catalog, Does, Effects, Function, Object, Relations};
use wire::startup::Settings;

/// The longest that it may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after it failed it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// What all questions of one reading may be answered, in bytes: a database with more is not seen through.
const MAX_CATALOG: usize = 16 << 20;

/// What a pool knows of its database's functions.
#[derive(Debug, Default)]
pub(super) struct KnownFunctions {
    now: Newest,
    state: Mutex<AskedFunctions>,
    /// Held by the one who asks.
    turn: tokio::sync::Mutex<()>,
}

/// A catalog, and where it is: who has it need not ask for it again, which happens in each transaction.
#[derive(Debug)]
struct Newest {
    catalog: Mutex<Arc<Catalog>>,
    address: AtomicPtr<Catalog>,
}

impl Default for Newest {
    fn default() -> Self {
        let catalog = Arc::<Catalog>::default();
        Self { address: AtomicPtr::new(Arc::as_ptr(&catalog).cast_mut()), catalog: Mutex::new(catalog) }
    }
}

impl Newest {
    fn get(&self) -> Arc<Catalog> {
        self.catalog.lock().clone()
    }

    fn put(&self, catalog: Catalog) {
        let catalog = Arc::new(catalog);
        let mut now = self.catalog.lock();
        // The old one lives until the address is another: nobody else's catalog can have it.
        let old = std::mem::replace(&mut *now, catalog);
        self.address.store(Arc::as_ptr(&now).cast_mut(), Ordering::Release);
        drop(now);
        drop(old);
    }

    /// It, if it is another than this: no other can have the address of one that somebody holds.
    fn other_than(&self, known: &Arc<Catalog>) -> Option<Arc<Catalog>> {
        let is_known = std::ptr::eq(self.address.load(Ordering::Acquire), Arc::as_ptr(known));
        if is_known { None } else { Some(self.get()) }
    }
}

#[derive(Debug, Default)]
struct AskedFunctions {
    /// When it was asked last, with success or without.
    at: Option<Instant>,
    /// Something has been defined since.
    outdated: bool,
    /// What that may do.
    defined: Option<Box<Effects>>,
    asking: bool,
    failed: bool,
}

impl Pool {
    /// What is known of the database's functions now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.now.get()
    }

    /// The same, if it is something else than this.
    pub fn catalog_other_than(&self, known: &Arc<Catalog>) -> Option<Arc<Catalog>> {
        self.catalog.now.other_than(known)
    }

    /// Something was defined that may do this: until the database has been asked again, anything may.
    pub fn outdate_catalog(self: &Arc<Self>, defined: &Effects) {
        if self.settings.load().1.catalog_interval.is_zero() {
            return;
        }
        {
            let mut asked = self.catalog.state.lock();
            asked.outdated = true;
            asked.defined.get_or_insert_default().add(defined);
            let doubted = self.catalog.now.get().doubted(defined).without_pin();
            self.catalog.now.put(doubted);
        }
        self.refresh_catalog();
    }

    /// The first connection asks before it serves anybody. If it could not, another takes its place.
    pub(super) async fn ask_first(
        &self,
        mut backend: Backend,
        startup: &Settings,
        settings: &PoolSettings,
    ) -> Result<Backend, UpstreamError> {
        if settings.catalog_interval.is_zero() || self.catalog.state.lock().at.is_some() {
            return Ok(backend);
        }
        let _turn = self.catalog.turn.lock().await;
        if self.catalog.state.lock().at.is_some() || self.ask(&mut backend.stream).await {
            return Ok(backend);
        }
        settings.dialer.dial(startup).await
    }

    /// Asks again if it is time to, through an idle connection or one of its own.
    pub(super) fn refresh_catalog(self: &Arc<Self>) {
        let interval = self.settings.load().1.catalog_interval;
        let is_used = {
            let ledger = self.ledger.lock();
            let counts = ledger.occupancy();
            counts.idle + counts.lent > 0 && !ledger.is_retired()
        };
        {
            let mut asked = self.catalog.state.lock();
            let wait = match (asked.outdated, asked.failed) {
                (true, false) => Duration::ZERO,
                (_, true) => AGAIN.min(interval),
                (false, false) => interval,
            };
            let due = asked.at.is_none_or(|at| at.elapsed() > wait);
            if interval.is_zero() || asked.asking || !due || !is_used {
                return;
            }
            asked.asking = true;
        }
        let pool = self.clone();
        let ask = async move {
            let _turn = pool.catalog.turn.lock().await;
            pool.ask_somehow().await;
            pool.catalog.state.lock().asking = false;
        };
        self.runtimes.tasks.spawn_on(ask, &self.runtimes.control);
    }

    async fn ask_somehow(self: &Arc<Self>) {
        if let Some(mut lease) = self.try_lend_clean() {
            lease.state.forget_unnamed();
            if lease.stream.come_here().await.is_ok() && self.ask(&mut lease.stream).await {
                lease.release();
            }
            return;
        }
        let Some(_permit) = PermitApart::reserve(self) else { return };
        let settings = self.settings.load_full();
        if let Ok(mut backend) = settings.1.dialer.dial(&Settings::default()).await {
            self.ask(&mut backend.stream).await;
            let _ = backend.stream.write_all(&[b'X', 0, 0, 0, 4]).await;
        }
    }

    /// Asks; false if the connection cannot be used any further.
    async fn ask(&self, stream: &mut Stream) -> bool {
        let (was_outdated, defined) = {
            let mut asked = self.catalog.state.lock();
            (std::mem::take(&mut asked.outdated), asked.defined.take())
        };
        let answer = ask(stream).await;
        let mut asked = self.catalog.state.lock();
        (asked.at, asked.failed) = (Some(Instant::now()), answer.is_err());
        match answer {
            Ok(catalog) => {
                let connection = self.connection();
                debug!(connection = %connection.name, names = catalog.count(), "functions of the database known");
                // What was defined meanwhile may be missing.
                let catalog = match &asked.defined {
                    Some(defined) => catalog.doubted(defined).without_pin(),
                    None => catalog,
                };
                self.catalog.now.put(catalog);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
                let connection = self.connection();
                warn!(
                    connection = %connection.name,
                    "the database has more functions, relations or source than is looked through: each transaction on it is \
                     asked what it has left (catalog_interval = \"0s\" switches that off)"
                );
                asked.failed = false;
                self.catalog.now.put(Catalog::unseen());
                false
            }
            Err(error) => {
                asked.outdated |= was_outdated;
                asked.defined = asked.defined.take().or(defined);
                let connection = self.connection();
                warn!(connection = %connection.name, %error, "cannot ask the database for its functions");
                false
            }
        }
    }
}

/// Asks through a connection that nobody else uses meanwhile, and leaves it as it was.
///
/// # Errors
/// The connection was lost, or the database did not answer; then the connection cannot be used any further.
async fn ask(stream: &mut Stream) -> io::Result<Catalog> {
    tokio::time::timeout(PATIENCE, ask_all(stream)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// Of a function: its number, its name, its language, its source, its settings, whether it is of an event trigger, and whether it is
/// immutable.
type Source = (u32, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>, (bool, bool));

async fn ask_all(stream: &mut Stream) -> io::Result<Catalog> {
    let allowed = &mut Allowance::bytes(MAX_CATALOG);
    let mut sources = Vec::new();
    let mut relations = Relations::default();
    rows(stream, questions::BEGIN, allowed, |_| Some(())).await?;
    rows(stream, questions::FUNCTIONS, allowed, |row| {
        let [name, language, source] = [1, 2, 3].map(|column| text(row, column).unwrap_or_default().to_vec());
        let (is_of_event, is_immutable) = (text(row, 4)? == b"t", text(row, 5)? == b"t");
        let settings = text(row, 6).unwrap_or_default().to_vec();
        sources.push((number(row, 0)?, name, language, source, settings, (is_of_event, is_immutable)));
        Some(())
    })
    .await?;
    rows(stream, &questions::direct(), allowed, |row| {
        let does = match text(row, 2)? {
            b"objects" => Does::Objects,
            b"settings" => Does::Settings,
            _ => Does::Texts,
        };
        relations.direct.push((object(row, 0)?, does));
        Some(())
    })
    .await?;
    // Somebody else's texts are read where nobody waits for it.
    let functions = apart(move || {
        let function = |(oid, name, language, source, settings, (is_of_event, is_immutable)): &Source| {
            let function = Function::new(*oid, name, language, source).configured(settings);
            let function = if *is_of_event { function.of_event() } else { function };
            if *is_immutable { function.immutable() } else { function }
        };
        sources.iter().map(function).collect::<Vec<_>>()
    })
    .await?;
    // Mostly, nothing leaves anything: then what runs it does not matter.
    if functions.iter().any(Function::matters) || !relations.direct.is_empty() {
        rows(stream, questions::USES, allowed, |row| {
            relations.uses.push((object(row, 0)?, object(row, 2)?));
            Some(())
        })
        .await?;
        rows(stream, questions::NAMES, allowed, |row| {
            relations.names.push((object(row, 0)?, text(row, 2)?.to_vec()));
            Some(())
        })
        .await?;
    }
    rows(stream, "COMMIT", allowed, |_| Some(())).await?;
    apart(move || Catalog::new(&functions, &relations)).await
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

fn text<'a>(row: &[Option<&'a [u8]>], column: usize) -> Option<&'a [u8]> {
    *row.get(column)?
}

fn number(row: &[Option<&[u8]>], column: usize) -> Option<u32> {
    str::from_utf8(text(row, column)?).ok()?.parse().ok()
}

/// From two columns.
fn object(row: &[Option<&[u8]>], column: usize) -> Option<Object> {
    Some(Object { class: number(row, column)?, oid: number(row, column + 1)? })
}
