//! The sessions that live, by their numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::LiveSession;

/// See the module.
#[derive(Debug)]
pub(crate) struct Registry {
    all: DashMap<u64, Arc<LiveSession>>,
    next: AtomicU64,
    /// Told when one has left, or what holds for them has changed.
    left: Notify,
    /// Those that are to be woken, as a limit is another now.
    unaware: Mutex<Vec<u64>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { all: DashMap::new(), next: AtomicU64::new(1), left: Notify::new(), unaware: Mutex::default() }
    }
}

impl Registry {
    /// A number for a new session.
    pub(crate) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// It enters.
    pub(super) fn insert(&self, session: Arc<LiveSession>) {
        self.all.insert(session.id, session);
    }

    /// It is over.
    pub(super) fn remove(&self, id: u64) {
        if self.all.remove(&id).is_some() {
            self.stir();
        }
    }

    /// The session of this number.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<LiveSession>> {
        self.all.get(&id).map(|session| session.clone())
    }

    /// How many live.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Goes through them; none may be inserted or removed by whoever does.
    pub(super) fn iter(&self) -> impl Iterator<Item = impl std::ops::Deref<Target = Arc<LiveSession>> + '_> {
        self.all.iter()
    }

    /// All of them, in any order.
    pub(crate) fn list(&self) -> Vec<Arc<LiveSession>> {
        self.all.iter().map(|session| session.clone()).collect()
    }

    /// A limit is another now: all are woken, some at a time ([`Registry::wake_some`]).
    pub(super) fn look_again(&self) {
        *self.unaware.lock() = self.all.iter().map(|session| *session.key()).collect();
    }

    /// Wakes so many of those, at the most.
    pub(super) fn wake_some(&self, most: usize) {
        let mut unaware = self.unaware.lock();
        let left = unaware.len().saturating_sub(most);
        let some = unaware.split_off(left);
        drop(unaware);
        some.into_iter().filter_map(|id| self.get(id)).for_each(|session| session.orders.wake());
    }

    /// Something has happened that somebody may wait for.
    pub(super) fn stir(&self) {
        self.left.notify_waiters();
    }

    /// The next time that a session leaves, or [`Registry::stir`] is called.
    pub(super) fn stirred(&self) -> Notified<'_> {
        self.left.notified()
    }

    /// Waits until there is none.
    pub(super) async fn emptied(&self) {
        self.until(|registry| registry.all.is_empty()).await;
    }

    /// Waits for something that a session can bring about which leaves.
    pub(super) async fn until(&self, is_done: impl Fn(&Self) -> bool) {
        loop {
            let mut left = std::pin::pin!(self.stirred());
            // Before the look: whoever leaves behind it is heard.
            left.as_mut().enable();
            if is_done(self) {
                return;
            }
            left.await;
        }
    }
}
