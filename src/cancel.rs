//! The cancel keys that pgusher gave out, and what each stands for right now.

use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;
use tracing::debug;

use crate::pool::Waiter;
use crate::upstream::CancelTarget;
use relay::MAX_PROCESS;
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::CancelKey;

/// The length of the secret in protocol 3.0, and the one given out in 3.2.
const SHORT_SECRET: usize = 4;
const LONG_SECRET: usize = 32;

/// What a session does now, as far as a cancel is concerned.
#[derive(Debug, Default)]
enum CancelState {
    /// Nothing that could be cancelled.
    #[default]
    Nothing,
    /// It waits for a connection.
    Waiting(Arc<Waiter>),
    /// It has been lent this one.
    Lent(Arc<CancelTarget>),
}

/// A session's part: changed at each checkout.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    doing: Mutex<CancelState>,
    /// What its client was given to cancel with.
    secret: OnceLock<Box<[u8]>>,
    /// Most sessions are never cancelled.
    cancels: OnceLock<Box<Cancels>>,
}

/// The requests to cancel that are under way.
#[derive(Debug, Default)]
struct Cancels {
    /// Held by the one that is done.
    turn: Turn<()>,
    /// One waits for it. Whatever comes then wants what that one will do.
    waits: AtomicBool,
}

impl Slot {
    /// The session waits.
    pub(crate) fn waits(&self, waiter: Arc<Waiter>) {
        *self.doing.lock() = CancelState::Waiting(waiter);
    }

    /// The session is lent a connection.
    pub(crate) fn is_lent(&self, target: Arc<CancelTarget>) {
        *self.doing.lock() = CancelState::Lent(target);
    }

    /// The connection that the session is lent now, if any; and whether it waits for one.
    pub(crate) fn now(&self) -> (Option<Arc<CancelTarget>>, Option<Instant>) {
        match &*self.doing.lock() {
            CancelState::Nothing => (None, None),
            CancelState::Waiting(waiter) => (None, Some(waiter.since)),
            CancelState::Lent(target) => (Some(target.clone()), None),
        }
    }

    /// The session has nothing. After this, no cancel begins for what it had; one that had begun has raised the
    /// connection's fence.
    pub(crate) fn has_nothing(&self) {
        *self.doing.lock() = CancelState::Nothing;
    }
}

/// The process ID that a client was told, once it was told one.
#[derive(Debug)]
pub(crate) struct ToldPid(AtomicU32);

/// No process has this number.
const NONE: u32 = u32::MAX;

impl Default for ToldPid {
    fn default() -> Self {
        Self(AtomicU32::new(NONE))
    }
}

impl ToldPid {
    /// It is told this one.
    pub(crate) fn set(&self, pid: u32) {
        self.0.store(pid, Ordering::Relaxed);
    }

    /// What it was told.
    pub(crate) fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|pid| *pid != NONE)
    }
}

struct Waits<'a>(&'a AtomicBool);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A number above those of all processes, that is a positive Int32; each as probable as any other, nearly.
fn in_range(random: u32) -> u32 {
    let first = MAX_PROCESS + 1;
    first + random % (i32::MAX as u32 - first + 1)
}

/// True if there was none of this key, and now there is this one.
fn enters<K: Eq + Hash, V>(entry: dashmap::Entry<'_, K, V>, value: V) -> bool {
    match entry {
        dashmap::Entry::Occupied(_) => false,
        dashmap::Entry::Vacant(entry) => {
            entry.insert(value);
            true
        }
    }
}

/// All keys. Written at login and logout only.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The sessions that have a number of ours in place of a process's.
    ours: DashMap<u32, Session>,
    /// Those that have a process's.
    others: DashMap<CancelKey, Arc<Slot>>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    slot: Arc<Slot>,
}

impl Keys {
    /// Makes a key for a session, of random bytes. Where the process ID is not to be the upstream's, which is `pid` then, it is a
    /// number of ours: above those of all processes, and of no other session.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn issue(
        &self,
        minor: u16,
        pid: Option<u32>,
        (id, slot): (u64, &Arc<Slot>),
    ) -> Result<CancelKey, getrandom::Error> {
        loop {
            let mut random = [0; size_of::<u32>() + LONG_SECRET];
            getrandom::fill(&mut random)?;
            let (for_pid, secret) = random.split_first_chunk().unwrap_or((&[0; 4], &[]));
            let length = if minor >= 2 { LONG_SECRET } else { SHORT_SECRET };
            let ours = in_range(u32::from_be_bytes(*for_pid));
            let key = CancelKey { pid: pid.unwrap_or(ours), secret: secret[..length].into() };
            let has_entered = match pid {
                None => enters(self.ours.entry(ours), Session { id, slot: slot.clone() }),
                Some(_) => enters(self.others.entry(key.clone()), slot.clone()),
            };
            if has_entered {
                // Nobody has the key yet.
                slot.secret.get_or_init(|| key.secret.clone());
                return Ok(key);
            }
        }
    }

    /// The session of this number is over, which was given this process ID. (In session mode that is what an upstream says, and may be
    /// anybody's number.)
    pub(crate) fn withdraw(&self, told: &ToldPid, (id, slot): (u64, &Slot)) {
        let pid = told.0.load(Ordering::Relaxed);
        let is_ours = self.ours.remove_if(&pid, |_, session| session.id == id).is_some();
        if !is_ours && let Some(secret) = slot.secret.get() {
            self.others.remove(&CancelKey { pid, secret: secret.clone() });
        }
    }

    /// The session that has this number in place of a process's.
    pub(crate) fn session(&self, pid: u32) -> Option<u64> {
        self.ours.get(&pid).map(|session| session.id)
    }

    /// Does what a `CancelRequest` asks for; false if nobody has this key here. The client is told nothing of that.
    pub(crate) async fn cancel(&self, key: &CancelKey) -> bool {
        let ours = self.ours.get(&key.pid).map(|session| session.slot.clone());
        let ours = ours.filter(|slot| slot.has_secret(&key.secret));
        let slot = ours.or_else(|| self.others.get(key).map(|slot| slot.value().clone()));
        let Some(slot) = slot else { return false };
        slot.cancel().await;
        true
    }
}

impl Slot {
    /// Takes as long whatever the other is, if it is as long.
    fn has_secret(&self, other: &[u8]) -> bool {
        let is_same =
            |secret: &[u8]| aws_lc_rs::constant_time::verify_slices_are_equal(secret, other).is_ok();
        self.secret.get().is_some_and(|secret| is_same(secret))
    }

    /// Cancels what the session does. Of several at one time, one is under way and one waits for it; more would do what that one does.
    pub(crate) async fn cancel(&self) {
        let cancels = self.cancels.get_or_init(Box::default);
        let _turn = match cancels.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) if cancels.waits.swap(true, Ordering::AcqRel) => return,
            Err(_) => {
                // Also if it is given up.
                let _waits = Waits(&cancels.waits);
                cancels.turn.lock().await
            }
        };
        let (target, _fence) = match &*self.doing.lock() {
            CancelState::Nothing => return,
            CancelState::Waiting(waiter) => {
                let message = "canceling statement due to user request";
                return waiter.refuse(Refusal::new(Fault::Client, SqlState::QUERY_CANCELED, message));
            }
            // Fenced while the session is known to have it: it is lent to nobody else until we are through.
            CancelState::Lent(target) => (target.clone(), target.fence()),
        };
        if let Err(error) = target.cancel().await {
            debug!(%error, "a cancel request did not reach the upstream");
        }
    }
}
