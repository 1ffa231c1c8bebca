//! A session between its client and the connections that it is lent, and the pools and hosts that lend them: which bytes go
//! where, and who gets which connection. Pure: no socket, no clock, nothing asynchronous.
//!
//! - [`conductor`]: a session as a whole. What happened goes in ([`conductor::Event`]), what is to be done comes out
//!   ([`conductor::Actions`]).
//! - [`ledger`]: who is lent which connection of a pool, who waits, and what may be open; [`ledger::host`]: the same of a host.
//! - [`PoolMode`]: for how long a session is lent a connection.
//! - [`BackendState`]: what is known of a connection; [`settings`]: what a session wants on one.
//! - [`statement`]: prepared statements; [`Interner`]: those that sessions share.
//! - [`sql`]: what a statement may do; [`Catalog`]: what the database's own functions may do.
//! - [`reset`]: what is asked of a server between two users of a connection.
//! - `core` (private): the protocol itself, below the conductor.

mod bearing;
mod memory;
mod mode;
pub mod reset;
pub mod settings;
pub mod sql;
mod catalog;
pub mod statement;
mod core;
pub mod ledger;
pub mod conductor;

pub use catalog::{Catalog, Does, Function, Object, Relations};
pub use core::{
    Act, BackendState, Counts, Facts, GATHER, ListenRequest, MAX_NAMED_PARSE, MAX_PROCESS, Mark, Own,
    Reached, Seal, Signalled,
};
pub use memory::UserMemory;
pub use mode::PoolMode;
pub use settings::{BackendSettings, Parameters, SessionSettings};
pub use sql::{Effects, Pin, SettingChange};
pub use statement::{Gathered, Gathering, Interner};
