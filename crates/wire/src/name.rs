//! The names in a startup packet, and how names are declared that must not be confused with one another.

/// Declares newtypes of texts, each with its doc comment.
#[macro_export]
macro_rules! name {
    ($(#[doc = $doc:literal] $Name:ident),* $(,)?) => {$(
        #[doc = $doc]
        #[derive(Clone, Eq, PartialOrd, Ord)]
        pub struct $Name(std::sync::Arc<str>);

        impl PartialEq for $Name {
            /// By what is written; most that are equal are one, which the pointers say.
            fn eq(&self, other: &Self) -> bool {
                std::sync::Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl std::hash::Hash for $Name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl $Name {
            /// The name as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: Into<std::sync::Arc<str>>> From<T> for $Name {
            fn from(name: T) -> Self {
                Self(name.into())
            }
        }

        impl std::borrow::Borrow<str> for $Name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    )*};
}

crate::name! {
    /// Who logs in: the `user` of the startup packet, a `[users.NAME]`.
    UserName,
    /// What a client asks for: the `database` of the startup packet.
    DatabaseName,
}
