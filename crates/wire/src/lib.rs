//! What is on the wire between PostgreSQL and its clients. Pure: bytes in, values out; no socket, no clock.
//!
//! - [`error`]: what a client is told when pgusher refuses or loses it ([`error::Refusal`]), whose fault that is, and how
//!   texts of others are shown.
//! - frames: the [`Header`] of a message, the few messages that pgusher writes itself, the fields of those that it reads.
//! - [`UserName`], [`DatabaseName`], and [`name!`], which declares such names.
//! - [`hex()`]: bytes in hexadecimal digits.
//! - [`startup`]: the first packet of a client, the settings in it, and the key of a cancel request.

pub mod error;
mod frame;
mod hex;
mod name;
pub mod startup;

pub use frame::{
    HEADER, Header, MAX_LENGTH, MAX_SMALL_LENGTH, Severity, backend_key_data, columns, cstr, error_field,
    error_response, identifier, literal, message, notice_response, notification, parameter_status, push_cstr,
    query, ready_for_query, unicode_identifier, warning_response,
};
pub use hex::hex;
pub use name::{DatabaseName, UserName};
