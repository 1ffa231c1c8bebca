//! The cancel keys that pgusher gave out, and what each stands for right now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
enum Doing {
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
    doing: Mutex<Doing>,
    /// Held by the cancel request that is under way.
    turn: Turn<()>,
    /// One waits for it. Whatever comes then wants what that one will do.
    waits: AtomicBool,
}

impl Slot {
    /// The session waits.
    pub(crate) fn waits(&self, waiter: Arc<Waiter>) {
        *self.doing.lock() = Doing::Waiting(waiter);
    }

    /// The session is lent a connection.
    pub(crate) fn is_lent(&self, target: Arc<CancelTarget>) {
        *self.doing.lock() = Doing::Lent(target);
    }

    /// The connection that the session is lent now, if any; and whether it waits for one.
    pub(crate) fn now(&self) -> (Option<Arc<CancelTarget>>, Option<Instant>) {
        match &*self.doing.lock() {
            Doing::Nothing => (None, None),
            Doing::Waiting(waiter) => (None, Some(waiter.since)),
            Doing::Lent(target) => (Some(target.clone()), None),
        }
    }

    /// The session has nothing. After this, no cancel begins for what it had; one that had begun has raised the
    /// connection's fence.
    pub(crate) fn has_nothing(&self) {
        *self.doing.lock() = Doing::Nothing;
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

/// All keys. Written at login and logout only.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    slots: DashMap<CancelKey, Arc<Slot>>,
    /// The sessions that have a number of ours in place of a process's.
    sessions: DashMap<u32, u64>,
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
            let pid = match pid {
                Some(pid) => pid,
                None => match self.sessions.entry(in_range(u32::from_be_bytes(*for_pid))) {
                    dashmap::Entry::Occupied(_) => continue,
                    dashmap::Entry::Vacant(entry) => *entry.insert(id).key(),
                },
            };
            let length = if minor >= 2 { LONG_SECRET } else { SHORT_SECRET };
            let key = CancelKey { pid, secret: secret[..length].into() };
            if let dashmap::Entry::Vacant(entry) = self.slots.entry(key.clone()) {
                entry.insert(slot.clone());
                return Ok(key);
            }
        }
    }

    /// The session of this number is over. (In session mode the process ID is what an upstream says, and may be anybody's number.)
    pub(crate) fn withdraw(&self, key: &CancelKey, id: u64) {
        self.slots.remove(key);
        self.sessions.remove_if(&key.pid, |_, session| *session == id);
    }

    /// The session that has this number in place of a process's.
    pub(crate) fn session(&self, pid: u32) -> Option<u64> {
        self.sessions.get(&pid).map(|id| *id)
    }

    /// Does what a `CancelRequest` asks for. An unknown key does nothing, and says nothing.
    pub(crate) async fn cancel(&self, key: &CancelKey) {
        if let Some(slot) = self.slots.get(key).map(|entry| entry.value().clone()) {
            slot.cancel().await;
        }
    }
}

impl Slot {
    /// Cancels what the session does. Of several at one time, one is under way and one waits for it; more would do what that one does.
    pub(crate) async fn cancel(&self) {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) if self.waits.swap(true, Ordering::AcqRel) => return,
            Err(_) => {
                // Also if it is given up.
                let _waits = Waits(&self.waits);
                self.turn.lock().await
            }
        };
        let (target, _fence) = match &*self.doing.lock() {
            Doing::Nothing => return,
            Doing::Waiting(waiter) => {
                let message = "canceling statement due to user request";
                return waiter.refuse(Refusal::new(Fault::Client, SqlState::QUERY_CANCELED, message));
            }
            // Fenced while the session is known to have it: it is lent to nobody else until we are through.
            Doing::Lent(target) => (target.clone(), target.fence()),
        };
        if let Err(error) = target.cancel().await {
            debug!(%error, "a cancel request did not reach the upstream");
        }
    }
}
