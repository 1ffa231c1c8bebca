//! A world that answers the same each time, and a session in it: for tests, fuzzers and benchmarks.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{Actions, Conductor, Database, Event, Grounds, Moment, Session, Statistics, Step, Wishes, World};
use crate::{BackendState, Catalog, Facts, Interner, Own, Parameters, PoolMode, SessionSettings};

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
        Database {
            environment: "dev".into(),
            connection: "warehouse".into(),
            pool_size: 2,
            is_paused: false,
            most_resets: 2,
        }
    }
}

/// What a conductor has said, for whoever keeps it.
#[derive(Debug)]
pub struct Said {
    /// See [`Actions`].
    pub consumed: usize,
    /// See [`Actions`].
    pub to_client: Vec<u8>,
    /// See [`Actions`].
    pub to_upstream: Vec<u8>,
    /// See [`Actions`].
    pub step: Step,
    /// See [`Actions`].
    pub wishes: Wishes,
    /// What was counted.
    pub statistics: Statistics,
}

/// Tells it what happened on this connection, where all was written that was to be sent before. The scratch is not empty: nothing
/// of what was in it is sent.
pub fn tell(
    conductor: &mut Conductor,
    event: Event<'_>,
    backend: Option<&mut BackendState>,
    world: &Still,
) -> Said {
    let (mut up, mut down, mut statistics) = (vec![9; 3], vec![9; 5], Statistics::default());
    let grounds =
        Grounds { backend, written: true, up: &mut up, down: &mut down, statistics: &mut statistics, world };
    let Actions { consumed, to_client, to_upstream, step, wishes } = conductor.on(event, grounds);
    let (to_client, to_upstream) = (to_client.to_vec(), to_upstream.to_vec());
    Said { consumed, to_client, to_upstream, step, wishes, statistics }
}

/// A session of the user `dana`, whose server has reported these.
pub fn session(mode: PoolMode, reported: Arc<Parameters>) -> Session {
    let facts = Facts {
        environment: "dev".into(),
        connection: "warehouse".into(),
        user: "dana".into(),
        route: "because".into(),
        memory: Arc::default(),
    };
    Session {
        own: Own { id: 1, pid: Some(5_000_000) },
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
