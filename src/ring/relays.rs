//! All the threads that relay on io_uring, and which of them has a session.

use std::fmt;
use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::balance::{Balance, Load};
use super::{Relay, Unavailable};

/// How often is looked whether a thread has too much to do.
const ROUND: Duration = Duration::from_millis(500);

/// See the module. The first of the threads has all sessions until it is full; then the next has its share of them.
#[derive(Clone)]
pub struct Relays(Arc<All>);

struct All {
    relays: Box<[Relay]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// So many of them have sessions; those behind have none, or such as are still to leave.
    open: AtomicUsize,
    /// How busy a thread may be before the next has its share, in percent.
    full: u32,
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relays").field("threads", &self.0.relays.len()).finish_non_exhaustive()
    }
}

impl Relays {
    /// Starts so many threads, each with a ring of its own; see [`Balance`] for `full`.
    ///
    /// # Errors
    /// There is no ring to be had here, or no thread.
    pub fn start(threads: usize, full: u32) -> Result<Self, Unavailable> {
        let balance = Balance::new(threads.max(1), full);
        let (mut relays, mut handles) = (Vec::new(), Vec::new());
        for number in 1..=u16::try_from(threads).unwrap_or(u16::MAX).max(1) {
            match Relay::start(number) {
                Ok((relay, thread)) => {
                    relays.push(relay);
                    handles.push(thread);
                }
                Err(unavailable) => {
                    relays.iter().for_each(Relay::stop);
                    handles.into_iter().for_each(|thread| drop(thread.join()));
                    return Err(unavailable);
                }
            }
        }
        let (relays, threads) = (relays.into_boxed_slice(), Mutex::new(handles));
        Ok(Self(Arc::new(All { relays, threads, open: AtomicUsize::new(balance.open()), full })))
    }

    /// How many there are, and how many of them have sessions.
    pub fn threads(&self) -> (usize, usize) {
        (self.0.relays.len(), self.0.open.load(Ordering::Relaxed))
    }

    /// Has one of the threads run this to its end: of those that have sessions, the one that has fewest.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let open = &self.0.relays[..self.0.open.load(Ordering::Relaxed).clamp(1, self.0.relays.len())];
        let fewest = open.iter().min_by_key(|relay| relay.0.census.sessions.load(Ordering::Relaxed));
        fewest.unwrap_or(&self.0.relays[0]).spawn(Box::pin(future));
    }

    /// Ends when each thread has had its turn; false if one has ended.
    pub async fn answer(&self) -> bool {
        let mut all = true;
        for relay in &self.0.relays {
            let (sender, answered) = oneshot::channel();
            relay.spawn(Box::pin(async {
                let _ = sender.send(());
            }));
            all &= answered.await.is_ok();
        }
        all
    }

    /// Looks how busy the threads are, again and again, and has sessions go from one to another.
    pub async fn balance(self) {
        let relays = &self.0.relays;
        if relays.len() == 1 {
            return;
        }
        let mut balance = Balance::new(relays.len(), self.0.full);
        // Not at once: in next to no time, the least work would look like all that a thread can do.
        let mut round = tokio::time::interval_at(tokio::time::Instant::now() + ROUND, ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut before, mut since) = (vec![Duration::ZERO; relays.len()], Instant::now());
        loop {
            round.tick().await;
            let took = since.elapsed().max(Duration::from_millis(1));
            since = Instant::now();
            let load = |(relay, before): (&Relay, &mut Duration)| relay.load(before, took);
            let loads: Vec<Load> = relays.iter().zip(&mut before).map(load).collect();
            let moves = balance.round(&loads);
            self.0.open.store(balance.open(), Ordering::Relaxed);
            for (at, relay) in relays.iter().enumerate() {
                let census = &relay.0.census;
                let moved = moves.iter().find(|moved| moved.from == at);
                if let Some(moved) = moved {
                    *census.to.lock() = Arc::downgrade(&relays[moved.to].0);
                }
                census.leaving.store(moved.map_or(0, |moved| moved.sessions), Ordering::Relaxed);
            }
        }
    }

    /// Ends all the threads, with all that they run.
    pub fn stop(&self) {
        self.0.relays.iter().for_each(Relay::stop);
        let threads = std::mem::take(&mut *self.0.threads.lock());
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Relay {
    /// What it has done since the last look, which was so long ago.
    fn load(&self, before: &mut Duration, took: Duration) -> Load {
        let census = &self.0.census;
        let spent = cpu_time(self.0.thread).unwrap_or(*before);
        let busy = spent.saturating_sub(*before).as_micros() * 100 / took.as_micros().max(1);
        *before = spent;
        let active = census.active.swap(0, Ordering::Relaxed);
        census.round.fetch_add(1, Ordering::Relaxed);
        Load { busy: u32::try_from(busy).unwrap_or(u32::MAX), active }
    }
}

/// The CPU time of a thread of this process (proc_pid_stat(5), `utime` and `stime`).
fn cpu_time(thread: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)))
}

/// A future of a session, as threads have it.
pub(super) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;
