//! A secret: where it comes from, and its value, which is never printed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use parking_lot::RwLock;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

/// The longest secret that is read from a file, an environment variable or a command, in bytes.
pub const MAX_LENGTH: usize = 65_536;

/// Where a secret stands.
#[derive(Clone)]
pub enum Source {
    /// In the configuration itself.
    Plain(SecretString),
    /// In a file; a byte-order mark at its start and one trailing line end are not part of it.
    File(PathBuf),
    /// In an environment variable of the pgusher process.
    Env(String),
    /// On the standard output of a command; one trailing line end is not part of it.
    Command(Vec<String>),
}

/// A secret that has been read and can be read again.
pub struct Secret {
    source: Source,
    value: RwLock<SecretString>,
}

/// Why a secret cannot be had. Never holds any of it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {0}: {1}")]
    File(PathBuf, io::Error),
    /// The variable is not set, or not UTF-8.
    #[error("the environment variable {0} is not set")]
    Env(String),
    /// The command cannot be started, failed, or took too long.
    #[error("the secret command {0:?} {1}")]
    Command(String, String),
    /// Too long, or not UTF-8.
    #[error("the secret is not a text of at most {MAX_LENGTH} bytes")]
    Form,
}

impl Secret {
    /// A secret that was read from there.
    pub fn new(source: Source, value: SecretString) -> Self {
        Self { source, value: RwLock::new(value) }
    }

    /// Where it is read again.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The value as last read.
    pub fn value(&self) -> SecretString {
        self.value.read().clone()
    }

    /// It was read again; true if it differs from what was known.
    pub fn renew(&self, new: SecretString) -> bool {
        let mut value = self.value.write();
        let changed = new.expose_secret() != value.expose_secret();
        *value = new;
        changed
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.value.read().expose_secret() == other.value.read().expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new(Source::Plain("hunter2".to_owned().into()), "hunter2".to_owned().into());
        assert!(!format!("{secret:?} {:?}", secret.source()).contains("hunter2"));
    }
}
