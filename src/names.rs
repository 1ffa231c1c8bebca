//! Newtypes for the names that must not be confused with one another.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

macro_rules! name {
    ($(#[doc = $doc:literal] $Name:ident),* $(,)?) => {$(
        #[doc = $doc]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Name(Arc<str>);

        impl $Name {
            /// The name as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $Name {
            fn from(name: T) -> Self {
                Self(name.into())
            }
        }

        impl std::borrow::Borrow<str> for $Name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    )*};
}

name! {
    /// Who logs in: the `user` of the startup packet, a `[users.NAME]`.
    UserName,
    /// What several users share: a `[groups.NAME]`.
    GroupName,
    /// What a client asks for: the `database` of the startup packet.
    DatabaseName,
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
