//! Access for a while: one environment that a user may request until a time.

use std::time::{Duration, SystemTime};

use crate::names::{ConnectionName, EnvironmentName, UserName};

/// The longest that an environment is granted for.
pub const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// An environment that an operator has given to a user for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub user: UserName,
    /// What they may request.
    pub environment: EnvironmentName,
    /// Of which base connection; `None`: of every one that has such an environment.
    pub database: Option<ConnectionName>,
    /// Since when.
    pub since: SystemTime,
    /// Until when.
    pub until: SystemTime,
    /// Why.
    pub reason: String,
    /// The operator who gave it.
    pub by: UserName,
}

/// Which grants of an environment to a user are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of them, whichever database they are for.
    All,
    /// The one that is for this database, or the one that is for all.
    Of(Option<ConnectionName>),
}

impl Grant {
    /// Whether it is for this base connection, or for all.
    pub fn is_on(&self, base: &ConnectionName) -> bool {
        self.database.as_ref().is_none_or(|database| database == base)
    }

    /// Whether both are for the same: then the later one takes the other's place.
    pub fn is_like(&self, other: &Self) -> bool {
        self.is_for(other.user.as_str(), other.environment.as_str(), &Which::Of(other.database.clone()))
    }

    /// Whether it is of this environment to this user, and one of those that are meant.
    pub fn is_for(&self, user: &str, environment: &str, which: &Which) -> bool {
        let is_meant = match which {
            Which::All => true,
            Which::Of(database) => self.database == *database,
        };
        self.user.as_str() == user && self.environment.as_str() == environment && is_meant
    }
}
