//! pgusher routes every PostgreSQL client to the right database.
//!
//! The modules stand in the order of a client's path, and each uses only those above it: reading this file from
//! top to bottom is reading the product (`docs/architecture.md`).

// ── the machine ──
mod files;
mod machine;
// ── bytes ──
mod aside;
mod ring;
mod stream;
pub mod tls;
// ── the path of a client ──
mod login_permits;
mod handshake;
mod auth;
mod audit;
mod grants;
mod upstream;
mod stats;
mod pool;
mod cancel;
mod siblings;
mod engine;
// ── the house ──
mod store;
mod prepare;
mod lifetime;
mod proxy;
mod entrance;
mod metrics;
mod doctor;
mod console;
mod session;
mod http;
mod management;
mod listener;
pub mod cli;

#[cfg(test)]
#[path = "../tests/it/random.rs"]
mod random;

/// What tests and fuzzers use of the inside; nobody else should.
#[doc(hidden)]
pub mod inside {
    pub use crate::audit::{Audit, files, verify};
    pub use crate::auth::{Offered, initial_response};
    pub use crate::console::command::Command;
    pub use crate::console::show::HELP;
    pub use crate::files::beside;
    pub use crate::management::{judge_body, strict_json};
    pub use crate::pool::{Data, HostCount, Pool, PoolSettings, Runtimes, WaitEnd, Waiter};
    pub use crate::prepare::draft_of;
    pub use crate::tls;
    pub use crate::upstream::{Dialer, server_iterations};
}
