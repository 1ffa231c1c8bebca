//! How many connections are open to one host and port, over all pools, and whose turn it is.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Pool;

/// See the module.
#[derive(Debug, Default)]
pub struct HostCount {
    /// 0 is no limit.
    limit: AtomicUsize,
    counts: Mutex<Counts>,
    pools: Mutex<Vec<Weak<Pool>>>,
    next: AtomicU64,
    /// Whose turn it is when a connection was closed.
    turn: AtomicUsize,
    /// A pool could not open a connection that somebody waits for, because of the limit.
    starved: AtomicBool,
}

/// How many each pool has, and all of them.
#[derive(Debug, Default)]
struct Counts {
    open: usize,
    of: HashMap<u64, usize>,
    /// Pools for which no place is kept when they have none.
    retired: HashSet<u64>,
}

impl Counts {
    /// Whether a pool may have one more. Each pool that has none is kept a place, or, where there are more pools than places,
    /// half of the places are: who holds many, perhaps idle within transactions, keeps nobody out.
    fn has_room_for(&self, pool: u64, limit: usize) -> bool {
        let own = self.of.get(&pool).copied().unwrap_or(0);
        let without = self.of.iter().filter(|(other, open)| **other != pool && **open == 0).count();
        let kept = match own {
            0 => 0,
            _ if self.of.len() <= limit => without,
            _ => without.min(limit / 2),
        };
        limit == 0 || self.open + kept < limit
    }
}

/// A pool's place among those of a host. Dropped, it leaves them.
#[derive(Debug)]
pub(super) struct Share {
    host: Arc<HostCount>,
    number: u64,
}

impl Share {
    pub(super) fn of(host: &Arc<HostCount>) -> Self {
        let number = host.next.fetch_add(1, Ordering::Relaxed);
        host.counts.lock().of.insert(number, 0);
        Self { host: host.clone(), number }
    }

    /// One more connection, if there may be one.
    pub(super) fn take(&self) -> bool {
        let limit = self.host.limit.load(Ordering::Relaxed);
        let mut counts = self.host.counts.lock();
        let may = counts.has_room_for(self.number, limit);
        if may {
            counts.open += 1;
            *counts.of.entry(self.number).or_default() += 1;
        }
        may
    }

    /// Whether there may be one more.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.host.limit.load(Ordering::Relaxed);
        self.host.counts.lock().has_room_for(self.number, limit)
    }

    pub(super) fn give_back(&self) {
        let mut counts = self.host.counts.lock();
        counts.open = counts.open.saturating_sub(1);
        let own = counts.of.entry(self.number).or_default();
        *own = own.saturating_sub(1);
        if *own == 0 && counts.retired.contains(&self.number) {
            counts.of.remove(&self.number);
        }
    }

    pub(super) fn join(&self, pool: &Arc<Pool>) {
        let mut pools = self.host.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    /// No place is kept for it any more.
    pub(super) fn retire(&self) {
        let mut counts = self.host.counts.lock();
        counts.retired.insert(self.number);
        if counts.of.get(&self.number) == Some(&0) {
            counts.of.remove(&self.number);
        }
    }

    /// How many connections each pool that wants any may have while one is starved; `None` while none is.
    pub(super) fn fair_share(&self) -> Option<usize> {
        if !self.host.starved.load(Ordering::Relaxed) {
            return None;
        }
        let active = self.host.pools().iter().filter(|pool| pool.is_active()).count();
        Some((self.host.limit.load(Ordering::Relaxed) / active.max(1)).max(1))
    }

    /// As [`Share::take`], after another pool has closed a connection that nobody there waits for.
    pub(super) fn take_from_another(&self, pool: &Arc<Pool>) -> bool {
        let spared = |other: Arc<Pool>| !Arc::ptr_eq(&other, pool) && other.spare_one();
        let taken = self.host.pools().into_iter().any(spared) && self.take();
        if !taken {
            self.host.starved.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// A connection was closed: the pools that wait for one try in turn.
    pub(super) fn next_turn(&self, pool: &Arc<Pool>) {
        if self.host.limit.load(Ordering::Relaxed) == 0 {
            return pool.open_more();
        }
        self.host.starved.store(false, Ordering::Relaxed);
        self.host.pools().iter().for_each(Pool::open_more);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.host.counts.lock();
        counts.retired.remove(&self.number);
        let own = counts.of.remove(&self.number).unwrap_or(0);
        counts.open = counts.open.saturating_sub(own);
    }
}

impl HostCount {
    /// Sets the most that may be open.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit as usize, Ordering::Relaxed);
    }

    /// The pools, beginning with another one at each call.
    fn pools(&self) -> Vec<Arc<Pool>> {
        let mut pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if !pools.is_empty() {
            let first = turn % pools.len();
            pools.rotate_left(first);
        }
        pools
    }
}

/// A place among the connections to a host, for one that is lent to nobody: it listens, or asks for functions.
pub(super) struct HostPlace(Arc<Pool>);

impl HostPlace {
    /// One of this pool's, if there may be one.
    pub(super) fn take(pool: &Arc<Pool>) -> Option<Self> {
        pool.share.take().then(|| Self(pool.clone()))
    }
}

impl Drop for HostPlace {
    fn drop(&mut self) {
        self.0.share.give_back();
        if self.0.share.host.limit.load(Ordering::Relaxed) > 0 {
            self.0.share.host.pools().iter().for_each(Pool::open_more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_has_retired_is_kept_no_place() {
        let host = Arc::new(HostCount::default());
        host.set_limit(3);
        let [dev, idle, busy] = [0; 3].map(|_| Share::of(&host));
        assert!(busy.take());
        assert_eq!((0..9).filter(|_| dev.take()).count(), 1, "one is kept for the idle one");
        idle.retire();
        busy.retire();
        assert_eq!((0..9).filter(|_| dev.take()).count(), 1);
        busy.give_back();
        assert_eq!((0..9).filter(|_| dev.take()).count(), 1);
        assert!(!busy.take());
    }

    #[test]
    fn a_pool_without_a_connection_is_kept_a_place_and_no_more_than_half_of_all() {
        let host = Arc::new(HostCount::default());
        host.set_limit(6);
        let (dev, prod) = (Share::of(&host), Share::of(&host));
        assert_eq!((0..9).filter(|_| dev.take()).count(), 5);
        assert!(prod.take() && !prod.take());
        dev.give_back();
        assert!(prod.take());
        drop(prod);
        assert_eq!((0..9).filter(|_| dev.take()).count(), 2);
        drop(dev);
        let many: Vec<Share> = (0..20).map(|_| Share::of(&host)).collect();
        assert_eq!((0..9).filter(|_| many[0].take()).count(), 3);
        assert_eq!(many.iter().skip(1).filter(|pool| pool.take()).count(), 3);
    }
}
