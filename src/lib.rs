//! pgusher shows every PostgreSQL client to the right database.
//!
//! The modules stand in the order of a client's path, and each uses only those above it: reading this file from
//! top to bottom is reading the product (`docs/architecture.md`).

// ── words ──
pub mod error;
pub mod names;
pub mod secret;
pub mod verifier;
pub mod config;
// ── bytes ──
pub mod wire;
// ── the path of a client ──
pub mod attribute;
pub mod route;
