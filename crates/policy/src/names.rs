//! Newtypes for the names that must not be confused with one another.

use uuid::Uuid;

pub use wire::{DatabaseName, UserName};

wire::name! {
    /// What several users share: a `[groups.NAME]`.
    GroupName,
    /// Where an upstream is: a `[connections.NAME]`.
    ConnectionName,
    /// What a connection is called among those of its base: shown to clients, and requested by them.
    EnvironmentName,
    /// A named fact about a user: an `[attributes.NAME]`.
    AttributeName,
}

/// What the management API calls something that has this name: always the same (RFC 9562, version 5).
pub fn id_of(kind: &str, name: &str) -> Uuid {
    const OURS: Uuid = Uuid::from_u128(0x7d1f_6a52_0c5b_4f0e_9a3e_5b8d_2e61_c704);
    Uuid::new_v5(&OURS, format!("{kind}:{name}").as_bytes())
}
