//! The hosts that upstream connections go to, and the pools that open them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Generation;
use crate::pool::{HostCount, Pool, PoolSettings, Runtimes};
use crate::upstream::Dialer;
use policy::config::{Connection, Host, Server};
use policy::names::ConnectionName;

/// How many connections are open to each host and port, by all generations, and where they are served.
pub(super) struct Hosts {
    runtimes: Runtimes,
    counts: Mutex<HashMap<(Host, u16), Arc<HostCount>>>,
    /// Every pool that there is, also one to which no route leads any more.
    pools: Mutex<Vec<Weak<Pool>>>,
}

impl Hosts {
    pub(super) fn new(runtimes: Runtimes) -> Self {
        Self { runtimes, counts: Mutex::default(), pools: Mutex::default() }
    }

    /// All pools of all generations that are still there.
    pub(super) fn living(&self) -> Vec<Arc<Pool>> {
        let mut pools = self.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.iter().filter_map(Weak::upgrade).collect()
    }

    /// A pool for each connection of the generation of this number. Those of connections that lead to the same database are
    /// taken over from the old one.
    pub(super) fn pools(
        &self,
        server: &Server,
        dialers: Vec<(Arc<Connection>, Dialer)>,
        old: Option<&Generation>,
        number: u64,
    ) -> BTreeMap<ConnectionName, Arc<Pool>> {
        let mut pools = BTreeMap::new();
        for (connection, dialer) in dialers {
            let settings = pool_settings(server, dialer);
            let known = old.and_then(|g| g.pools.get(&connection.name));
            let pool = match known.filter(|pool| pool.connection().target == connection.target) {
                Some(pool) => {
                    pool.update(settings);
                    pool.clone()
                }
                None => {
                    let place = (connection.target.host.clone(), connection.target.port);
                    let host = self.counts.lock().entry(place).or_default().clone();
                    let pool = Pool::new(settings, number, self.runtimes.clone(), &host);
                    self.pools.lock().push(Arc::downgrade(&pool));
                    pool
                }
            };
            pools.insert(connection.name.clone(), pool);
        }
        self.counts.lock().values().for_each(|host| host.set_limit(*server.max_host_connections));
        pools
    }
}

fn pool_settings(server: &Server, dialer: Dialer) -> PoolSettings {
    PoolSettings {
        dialer,
        reserve_pool_timeout: *server.reserve_pool_timeout,
        idle_timeout: *server.server_idle_timeout,
        lifetime: *server.server_lifetime,
        max_prepared_statements: *server.max_prepared_statements,
        catalog_interval: *server.catalog_interval,
    }
}
