//! The generation in force, for all who read it and for those who wait for another.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::Generation;

/// See the module.
#[derive(Debug)]
pub(crate) struct Current {
    generation: ArcSwap<Generation>,
    /// The number of the generation in force, for those who wait for another.
    changes: watch::Sender<u64>,
}

impl Current {
    pub(super) fn new(first: Generation) -> Self {
        let changes = watch::Sender::new(first.number);
        Self { generation: ArcSwap::from_pointee(first), changes }
    }

    /// The generation in force.
    pub(crate) fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    /// For those who wait until another generation is in force; its number.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn put(&self, next: Arc<Generation>) {
        self.generation.store(next);
    }

    /// Tells those who wait that this one is in force, and that the sessions know it.
    pub(super) fn announce(&self, number: u64) {
        self.changes.send_replace(number);
    }
}
