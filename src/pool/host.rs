//! The connections to one host and port, over all pools: its ledger under a lock, and who performs what it says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Pool;
use relay::ledger::host::{HostLedger, Membership, Permit, Purpose};

/// See the module.
#[derive(Debug, Default)]
pub struct HostCount {
    state: Mutex<State>,
    /// What the ledger has said at its last change: asked at every return of a connection, where no lock is to be taken.
    is_starved: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    ledger: HostLedger,
    pools: BTreeMap<u64, Weak<Pool>>,
}

impl State {
    /// The pools of these numbers that are still there. They must not be dropped under the lock: the last one leaves.
    fn living(&self, numbers: &[u64]) -> Vec<Arc<Pool>> {
        numbers.iter().filter_map(|number| self.pools.get(number)?.upgrade()).collect()
    }
}

impl HostCount {
    /// Sets the maximum number of connections; 0 is no limit.
    pub fn set_limit(&self, limit: u32) {
        self.with(|state| state.ledger.set_limit(limit as usize));
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let answer = act(&mut state);
        self.is_starved.store(state.ledger.is_starved(), Ordering::Relaxed);
        answer
    }
}

/// A pool's part in a host. Dropped, it leaves.
#[derive(Debug)]
pub(super) struct Share {
    host: Arc<HostCount>,
    membership: Membership,
}

impl Share {
    pub(super) fn of(host: &Arc<HostCount>) -> Self {
        let membership = host.with(|state| state.ledger.join());
        Self { host: host.clone(), membership }
    }

    /// From now on it is told when it is this pool's turn.
    pub(super) fn join(&self, pool: &Arc<Pool>) {
        self.host.with(|state| state.pools.insert(self.membership.number(), Arc::downgrade(pool)));
    }

    /// A permit for one more connection, if there may be one.
    pub(super) fn reserve(&self, purpose: Purpose) -> Option<HostPermit> {
        let permit = self.host.with(|state| state.ledger.reserve(&self.membership, purpose));
        permit.map(|permit| HostPermit { host: self.host.clone(), permit: Some(permit) })
    }

    /// Whether there may be one more.
    pub(super) fn has_room(&self) -> bool {
        self.host.with(|state| state.ledger.has_room(&self.membership))
    }

    /// No permit is kept for it any more.
    pub(super) fn retire(&self) {
        self.host.with(|state| state.ledger.retire(&self.membership));
    }

    /// How many connections each pool that wants any may have while one is starved; `None` while none is.
    pub(super) fn fair_share(&self) -> Option<usize> {
        if !self.is_starving() {
            return None;
        }
        self.host.with(|state| state.ledger.fair_share())
    }

    /// Whether a pool of the host has too few.
    pub(super) fn is_starving(&self) -> bool {
        self.host.is_starved.load(Ordering::Relaxed)
    }

    /// As [`Share::reserve`], after other pools have closed connections that nobody there waits for: as many as it takes.
    pub(super) fn reserve_from_others(&self) -> Option<HostPermit> {
        loop {
            let others = self.host.with(|state| state.living(&state.ledger.givers(&self.membership)));
            if !others.iter().any(|other| other.spare_one()) {
                self.host.with(|state| state.ledger.starve(&self.membership));
                return None;
            }
            let permit = self.reserve(Purpose::Pooled);
            if permit.is_some() {
                return permit;
            }
        }
    }

    /// All pools of the host.
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        self.host.with(|state| state.pools.values().filter_map(Weak::upgrade).collect())
    }

    /// A connection was closed: the pools that wait for one try in turn.
    pub(super) fn next_turn(&self, pool: &Arc<Pool>) {
        let turns = self.host.with(|state| {
            let is_limited = state.ledger.limit().is_some();
            is_limited.then(|| {
                let turns = state.ledger.next_turn();
                state.living(&turns)
            })
        });
        match turns {
            Some(turns) => turns.iter().for_each(Pool::open_more),
            None => pool.open_more(),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.host.with(|state| {
            state.ledger.leave(&self.membership);
            state.pools.remove(&self.membership.number());
        });
    }
}

/// A permit of a host's ledger. Dropped, it is given back: it goes with the dial into the connection, and ends with either.
#[must_use = "dropped, it is given back"]
#[derive(Debug)]
pub(super) struct HostPermit {
    host: Arc<HostCount>,
    /// Until it is dropped.
    permit: Option<Permit>,
}

impl Drop for HostPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.host.with(|state| state.ledger.give_back(permit));
        }
    }
}

/// A permit for a connection that is lent to nobody: it listens, or asks for functions. Dropped, the pools try in turn to get it.
pub(super) struct PermitApart {
    pool: Arc<Pool>,
    /// Until it is dropped.
    permit: Option<HostPermit>,
}

impl PermitApart {
    /// One of this pool's, if there may be one.
    pub(super) fn reserve(pool: &Arc<Pool>) -> Option<Self> {
        let permit = pool.share.reserve(Purpose::Apart)?;
        Some(Self { pool: pool.clone(), permit: Some(permit) })
    }
}

impl Drop for PermitApart {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.pool.share.next_turn(&self.pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_that_is_dropped_is_given_back_also_after_its_pool_has_gone() {
        let host = Arc::new(HostCount::default());
        host.set_limit(2);
        let (dev, prod) = (Share::of(&host), Share::of(&host));
        let permits = [dev.reserve(Purpose::Pooled).unwrap(), prod.reserve(Purpose::Pooled).unwrap()];
        assert!(dev.reserve(Purpose::Pooled).is_none() && !prod.has_room());
        drop(prod);
        assert!(dev.reserve(Purpose::Pooled).is_none(), "its connection is still open");
        drop(permits);
        assert_eq!(host.state.lock().ledger.open(), 0);
        let all: Vec<_> = (0..9).map_while(|_| dev.reserve(Purpose::Pooled)).collect();
        assert_eq!(all.len(), 2, "nothing is kept for who has gone");
    }

    #[test]
    fn whether_a_pool_is_starved_is_known_without_the_lock() {
        let host = Arc::new(HostCount::default());
        host.set_limit(1);
        let (dev, prod) = (Share::of(&host), Share::of(&host));
        let permit = dev.reserve(Purpose::Pooled).unwrap();
        assert_eq!(dev.fair_share(), None);
        assert!(prod.reserve_from_others().is_none(), "nobody spares one");
        assert!(host.is_starved.load(Ordering::Relaxed));
        assert_eq!((dev.fair_share(), prod.fair_share()), (Some(1), Some(1)));
        drop(permit);
        let permit = prod.reserve(Purpose::Pooled);
        assert!(permit.is_some() && dev.fair_share().is_none());
    }
}
