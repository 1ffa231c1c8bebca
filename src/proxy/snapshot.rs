//! What is, at one moment. The console, `/metrics`, the API and the page all show this, and so agree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use super::{Generation, LiveSession, Sessions};
use crate::pool::Pool;

/// See the module. It takes as long as there are sessions: never to be made on the thread that accepts.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The configuration in force.
    pub generation: Arc<Generation>,
    /// The sessions that live, by their numbers.
    pub sessions: Vec<Arc<LiveSession>>,
    /// The pools in force, by their names, and then those that only sessions still have.
    pub pools: Vec<Arc<Pool>>,
    /// The sessions of each pool, by its address.
    by_pool: HashMap<usize, Vec<usize>>,
    /// Logins that were decided by an earlier configuration.
    arriving: Vec<u64>,
}

fn address(pool: &Arc<Pool>) -> usize {
    Arc::as_ptr(pool).addr()
}

impl Sessions {
    /// What is now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let generation = self.current.generation();
        // Before the sessions: a login is one of either, at any time.
        let before = self.arriving.iter().filter(|login| *login.value() < generation.number);
        let arriving = before.map(|login| *login.key()).collect();
        let mut sessions = self.list();
        sessions.sort_unstable_by_key(|session| session.id);
        let pools = pools_of(&generation, sessions.iter());
        let mut by_pool: HashMap<usize, Vec<usize>> = HashMap::new();
        for (number, session) in sessions.iter().enumerate() {
            by_pool.entry(address(&session.pool)).or_default().push(number);
        }
        Snapshot { generation, sessions, pools, by_pool, arriving }
    }

    /// The pools in force, and those that sessions still have.
    pub(crate) fn all_pools(&self) -> Vec<Arc<Pool>> {
        pools_of(&self.current.generation(), self.iter())
    }
}

/// Those in force, by their names, and then those that only sessions still have.
fn pools_of(
    generation: &Generation,
    sessions: impl Iterator<Item = impl Deref<Target = Arc<LiveSession>>>,
) -> Vec<Arc<Pool>> {
    let mut pools: Vec<_> = generation.pools.values().cloned().collect();
    let mut known: HashSet<usize> = pools.iter().map(address).collect();
    for session in sessions {
        if known.insert(address(&session.pool)) {
            pools.push(session.pool.clone());
        }
    }
    pools
}

impl Snapshot {
    /// The sessions of a pool.
    pub(crate) fn sessions_of(&self, pool: &Arc<Pool>) -> impl Iterator<Item = &Arc<LiveSession>> {
        let own = self.by_pool.get(&address(pool)).map_or(&[][..], Vec::as_slice);
        own.iter().filter_map(|number| self.sessions.get(*number))
    }

    /// How many sessions each generation has decided.
    pub(crate) fn by_generation(&self) -> BTreeMap<u64, usize> {
        let mut sessions = BTreeMap::new();
        for session in &self.sessions {
            *sessions.entry(session.target.generation).or_default() += 1;
        }
        sessions
    }

    /// The sessions whose user's route has changed and that have not been moved yet, and logins that were decided before that.
    pub(crate) fn unsettled(&self) -> Vec<u64> {
        let moved = self.sessions.iter().filter(|session| self.generation.moved(session).is_some());
        self.arriving.iter().copied().chain(moved.map(|session| session.id)).collect()
    }
}
