//! pgusher shows every PostgreSQL client to the right database.
//!
//! The modules stand in the order of a client's path, and each uses only those above it: reading this file from
//! top to bottom is reading the product (`docs/architecture.md`).

// ── words ──
// ── the machine ──
pub mod files;
pub mod machine;
// ── bytes ──
pub mod aside;
pub mod stream;
pub mod tls;
// ── the path of a client ──
pub mod strangers;
pub mod handshake;
pub mod auth;
pub mod audit;
pub mod grants;
pub mod upstream;
pub mod stats;
pub mod pool;
pub mod cancel;
pub mod engine;
// ── the house ──
pub mod metrics;
pub mod store;
pub mod prepare;
pub mod proxy;
pub mod doctor;
pub mod console;
pub mod session;
pub mod http;
pub mod management;
pub mod listener;
pub mod cli;
