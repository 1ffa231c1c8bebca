//! What a session asks of the world around it.

use std::sync::Arc;

use super::{Orders, Signals, Timeouts};
use crate::cancel::Slot;
use crate::pool::Pool;
use policy::names::UserName;
use relay::conductor::{Database, Moment, World};
use relay::{Catalog, Gathering};

/// What a session has to do with, as long as it lives.
pub(crate) struct SessionContext {
    /// Its number.
    pub id: u64,
    /// Its user.
    pub user: UserName,
    /// Where its connections come from.
    pub pool: Arc<Pool>,
    /// For cancels.
    pub slot: Arc<Slot>,
    /// For orders.
    pub orders: Arc<Orders>,
    /// For those that it gives to others.
    pub signals: Arc<dyn Signals>,
    /// Changed by a reload.
    pub timeouts: Arc<Timeouts>,
    /// What is counted of messages that are not there whole.
    pub gathering: Arc<Gathering>,
}

/// The clock, the system's random bits, and the pool as it is now.
pub(super) struct RealWorld<'a> {
    /// The pool of its connections.
    pub(super) pool: &'a Arc<Pool>,
}

impl World for RealWorld<'_> {
    fn now(&self) -> Moment {
        Moment::after(u64::try_from(self.pool.now().as_nanos()).unwrap_or(u64::MAX))
    }

    fn random(&self) -> Option<u64> {
        getrandom::u64().ok()
    }

    fn catalog(&self, known: &Arc<Catalog>) -> Option<Arc<Catalog>> {
        self.pool.catalog_other_than(known)
    }

    fn database(&self) -> Database {
        let connection = self.pool.connection();
        Database {
            environment: connection.environment.to_string(),
            connection: connection.name.to_string(),
            pool_size: connection.pool_size,
            is_paused: self.pool.view().halted.is_some(),
            most_resets: self.pool.most_resets(),
        }
    }
}
