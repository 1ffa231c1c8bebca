//! What the sessions of one user on one pool remember together.

use std::sync::atomic::{AtomicBool, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub struct UserMemory {
    asks_for_last_values: AtomicBool,
}

impl UserMemory {
    /// Whether one of them has ever asked for the last value of a sequence (`lastval()`, `currval()`): then each is lent a
    /// connection that has none of another's.
    pub(crate) fn asks_for_last_values(&self) -> bool {
        self.asks_for_last_values.load(Ordering::Relaxed)
    }

    /// One does.
    pub(crate) fn asked_for_last_value(&self) {
        if !self.asks_for_last_values() {
            self.asks_for_last_values.store(true, Ordering::Relaxed);
        }
    }
}
