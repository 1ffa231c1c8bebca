//! Who may go where: what an operator writes, what it means, and what follows from it for a user. Pure: the same texts, secrets
//! and grants give the same answers; no file, no socket, no clock.
//!
//! - [`names`]: newtypes for what is named in a configuration.
//! - [`secret`], [`verifier`]: where a secret is and what it is; what a password can be checked against.
//! - [`config`]: the file as it is written ([`config::file`]), how it is read ([`config::read`]), and the checked settings
//!   ([`config::Config`]).
//! - [`grant`], [`attribute`]: access for a while, and what is known about a user.
//! - [`route`]: the one decision ([`route::resolve`]).
//! - [`plan`]: what another configuration would change.

pub mod names;
pub mod secret;
pub mod verifier;
pub mod config;
pub mod grant;
pub mod attribute;
pub mod route;
pub mod plan;

#[cfg(test)]
mod tests;
