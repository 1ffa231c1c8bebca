//! A world that answers the same each time, and a session in it: for tests, fuzzers and benchmarks.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{Database, Moment, Session, World};
use crate::{Catalog, Facts, Interner, Parameters, PoolMode, SessionSettings};

/// Time passes by a millisecond at each look, nothing is random, and the catalog is what it is told to be.
#[derive(Debug, Default)]
pub struct Still {
    looks: Cell<u64>,
    random: Cell<u64>,
    catalog: RefCell<Option<Arc<Catalog>>>,
}

impl Still {
    /// From now on the database has this.
    pub fn has(&self, catalog: Catalog) {
        self.catalog.replace(Some(Arc::new(catalog)));
    }
}

impl World for Still {
    fn now(&self) -> Moment {
        Moment::after(self.looks.replace(self.looks.get() + 1_000_000))
    }

    fn random(&self) -> Option<u64> {
        Some(self.random.replace(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15)))
    }

    fn catalog(&self, known: &Arc<Catalog>) -> Option<Arc<Catalog>> {
        self.catalog.borrow().clone().filter(|now| !Arc::ptr_eq(now, known))
    }

    fn database(&self) -> Database {
        Database { environment: "dev".into(), connection: "warehouse".into(), pool_size: 2, most_resets: 2 }
    }
}

/// A session of the user `dana`, whose server has reported these.
pub fn session(mode: PoolMode, reported: Arc<Parameters>) -> Session {
    let facts = Facts {
        environment: "dev".into(),
        connection: "warehouse".into(),
        user: "dana".into(),
        route: "because".into(),
    };
    Session {
        id: 1,
        mode,
        interner: Arc::new(Interner::new(7)),
        facts: Arc::new(facts),
        settings: SessionSettings::new(reported, Arc::default(), None),
    }
}

/// What a server has reported.
pub fn reported(pairs: &[(&str, &str)]) -> Arc<Parameters> {
    let pair = |(name, value): &(&str, &str)| (name.as_bytes().into(), value.as_bytes().into());
    Arc::new(Parameters::new(pairs.iter().map(pair)))
}
