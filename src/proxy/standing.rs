//! What operators have ordered of databases: it holds until it is taken back, whatever is put in force meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::signals::killed;
use super::{Current, Generation, Sessions};
use crate::engine::When;
use crate::pool::{Admission, Halt, Pool};
use policy::config::Connection;
use policy::names::{ConnectionName, EnvironmentName};

/// The orders that hold. They are of names, as operators give them, and not of the pools that have these names now.
#[derive(Debug, Default)]
struct StandingOrders {
    all: Option<Halt>,
    halted: BTreeMap<ConnectionName, Halt>,
    disabled: BTreeSet<ConnectionName>,
    drained: BTreeSet<EnvironmentName>,
}

impl StandingOrders {
    /// Gives them to the pools of a generation that is about to be in force. A connection that has another name now keeps
    /// what was ordered of it.
    fn apply(&mut self, old: &Generation, new: &Generation) {
        // As the configuration had them: a pool that goes on has the new settings already.
        let known = &old.config.connections;
        let (mut by_id, mut by_target) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        let gone = |name: &ConnectionName| old.pools.contains_key(name) && !new.pools.contains_key(name);
        for before in known.values().filter(|before| gone(&before.name)) {
            by_id.insert(before.id, before);
            by_target.entry(&before.target).or_default().push(before);
        }
        let (halted, disabled) = (self.halted.clone(), self.disabled.clone());
        let mut moved = BTreeSet::new();
        for (name, pool) in &new.pools {
            let connection = pool.connection();
            // Where several that led to one database have other names now, nobody knows which is which: each has the orders
            // of all.
            let renamed = match by_id.get(&connection.id) {
                Some(before) => vec![*before],
                None => by_target.get(&connection.target).cloned().unwrap_or_default(),
            };
            if let Some(before) = known.get(name).or_else(|| renamed.first().copied()) {
                self.follow(old, &before.environment, &connection);
            }
            for before in renamed.iter().filter(|_| !old.pools.contains_key(name)) {
                moved.insert(&before.name);
                if let Some(halt) = halted.get(&before.name) {
                    self.halted.insert(name.clone(), *halt);
                }
                if disabled.contains(&before.name) {
                    self.disabled.insert(name.clone());
                }
            }
            if let Some(halt) = self.all.or(self.halted.get(name).copied()) {
                pool.halt(halt);
            }
            self.let_in(name, pool);
        }
        for name in moved {
            self.halted.remove(name);
            self.disabled.remove(name);
        }
    }

    /// A connection's environment has another name now: it stays drained, and so does the environment, if nothing else is of
    /// that name.
    fn follow(&mut self, old: &Generation, before: &EnvironmentName, connection: &Connection) {
        if *before == connection.environment || !self.drained.contains(before) {
            return;
        }
        let is_new =
            !old.config.connections.values().any(|known| known.environment == connection.environment);
        match is_new {
            true => drop(self.drained.insert(connection.environment.clone())),
            false => drop(self.disabled.insert(connection.name.clone())),
        }
    }

    fn let_in(&self, name: &ConnectionName, pool: &Pool) {
        pool.admit(match () {
            () if self.disabled.contains(name) => Admission::Disabled,
            () if self.drained.contains(&pool.connection().environment) => Admission::Drained,
            () => Admission::Open,
        });
    }
}

/// See the module.
pub(crate) struct Standing {
    current: Arc<Current>,
    sessions: Arc<Sessions>,
    orders: Mutex<StandingOrders>,
}

impl Standing {
    pub(super) fn new(current: Arc<Current>, sessions: Arc<Sessions>) -> Self {
        Self { current, sessions, orders: Mutex::default() }
    }

    /// Puts a generation in force, with the orders that hold: none may fall between what is built and what is in force.
    pub(super) fn put_in_force(&self, build: impl FnOnce(&Generation) -> Generation) -> Arc<Generation> {
        let mut orders = self.orders.lock();
        let old = self.current.generation();
        let new = Arc::new(build(&old));
        orders.apply(&old, &new);
        self.current.put(new.clone());
        new
    }

    /// Whether all pools were told to lend nothing.
    pub(crate) fn halted(&self) -> Option<Halt> {
        self.orders.lock().all
    }

    /// No pool lends anything, until [`Standing::resume_all`].
    pub(crate) fn halt_all(&self, halt: Halt) {
        let mut orders = self.orders.lock();
        orders.all = Some(halt);
        self.sessions.all_pools().iter().for_each(|pool| pool.halt(halt));
    }

    /// All pools lend again; false if they did so already.
    pub(crate) fn resume_all(&self) -> bool {
        let mut orders = self.orders.lock();
        let were = orders.all.take().is_some() | !orders.halted.is_empty();
        orders.halted.clear();
        self.sessions.all_pools().iter().for_each(|pool| {
            pool.resume();
        });
        were
    }

    /// A database lends nothing, until [`Standing::resume`].
    pub(crate) fn pause(&self, pool: &Arc<Pool>) {
        let mut orders = self.orders.lock();
        let name = pool.connection().name.clone();
        // A reload may have put another pool in its place since it was looked up.
        if let Some(now) = self.current.generation().pools.get(&name) {
            now.halt(Halt::Paused);
        }
        orders.halted.insert(name, Halt::Paused);
        pool.halt(Halt::Paused);
    }

    /// It lends again; false if it did so already.
    pub(crate) fn resume(&self, pool: &Arc<Pool>) -> bool {
        let mut orders = self.orders.lock();
        let name = pool.connection().name.clone();
        let now = self.current.generation().pools.get(&name).is_some_and(Pool::resume);
        orders.halted.remove(&name).is_some() | pool.resume() | now
    }

    /// Nobody logs in to a database, or those who may do again. A drained environment stays closed.
    pub(crate) fn admit(&self, pool: &Arc<Pool>, admission: Admission) {
        let mut orders = self.orders.lock();
        let name = pool.connection().name.clone();
        match admission {
            Admission::Open => drop(orders.disabled.remove(&name)),
            Admission::Disabled | Admission::Drained => drop(orders.disabled.insert(name.clone())),
        }
        orders.let_in(&name, pool);
        if let Some(now) = self.current.generation().pools.get(&name) {
            orders.let_in(&name, now);
        }
    }

    /// Ends the sessions of a pool, and lends nothing of it until it is resumed.
    pub(crate) fn kill(&self, pool: &Arc<Pool>) {
        self.pause(pool);
        self.sessions.end_those_of(pool, When::Now, &killed());
    }

    /// Ends the sessions of an environment at their next idle points, and lets nobody in; its pools.
    pub(crate) fn drain_environment(&self, environment: &str) -> Vec<Arc<Pool>> {
        let mut orders = self.orders.lock();
        let pools = self.pools_of(environment);
        if !pools.is_empty() {
            orders.drained.insert(environment.into());
        }
        for pool in &pools {
            orders.let_in(&pool.connection().name, pool);
            let why = format!("Environment \"{environment}\" is drained by an operator.");
            self.sessions.end_those_of(pool, When::Idle, &killed().detail(why));
        }
        pools
    }

    /// Lets users into an environment again; its pools.
    pub(crate) fn resume_environment(&self, environment: &str) -> Vec<Arc<Pool>> {
        let mut orders = self.orders.lock();
        let pools = self.pools_of(environment);
        orders.drained.remove(environment);
        pools.iter().for_each(|pool| orders.let_in(&pool.connection().name, pool));
        // Whoever waits for it to be drained waits no longer.
        self.sessions.stir();
        pools
    }

    fn pools_of(&self, environment: &str) -> Vec<Arc<Pool>> {
        let generation = self.current.generation();
        let is_of = |pool: &&Arc<Pool>| pool.connection().environment.as_str() == environment;
        generation.pools.values().filter(is_of).cloned().collect()
    }
}
