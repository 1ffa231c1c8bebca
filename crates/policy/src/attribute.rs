//! What is known about a user, and from where: the facts that a route is picked by.

use std::fmt;

use crate::config::Config;
use crate::grant::Grant;
use crate::names::{AttributeName, GroupName, UserName};

/// Where a value stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the user.
    User,
    /// On one of the user's groups.
    Group(GroupName),
    /// The attribute's default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Whose attributes these are. What is resolved from them carries it on: a login is served only by what carries the proof of
/// that login (`auth::Identity` in the process), which nobody but the one who checked it can make.
pub trait Subject: Clone {
    /// The user's name.
    fn user(&self) -> &UserName;
}

/// A user about whom somebody asks, without a login: what is resolved of it explains, and opens nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypothetical(UserName);

impl Subject for Hypothetical {
    fn user(&self) -> &UserName {
        &self.0
    }
}

/// A user and all that the configuration says about them.
#[derive(Debug, Clone)]
pub struct Attributes<'a, S> {
    subject: S,
    config: &'a Config,
    granted: Vec<Grant>,
}

/// What the configuration says about this user, who is granted nothing.
pub fn of<S: Subject>(config: &Config, subject: S) -> Attributes<'_, S> {
    Attributes { subject, config, granted: Vec::new() }
}

/// What would be known about a user of this name: for explaining, never for a login.
pub fn explain<'a>(config: &'a Config, user: &str) -> Attributes<'a, Hypothetical> {
    of(config, Hypothetical(user.into()))
}

impl<S: Subject> Attributes<'_, S> {
    /// With these grants, which are the user's, and no others.
    #[must_use]
    pub fn with(mut self, granted: Vec<Grant>) -> Self {
        self.granted = granted;
        self
    }

    /// Whose they are.
    pub fn subject(&self) -> &S {
        &self.subject
    }

    /// What the user is granted.
    pub fn granted(&self) -> &[Grant] {
        &self.granted
    }

    /// The name of the user whose they are.
    pub fn user(&self) -> &UserName {
        self.subject.user()
    }

    /// The values of one attribute: the user's own; else those of the first group that has it; else the
    /// default; else none.
    pub fn values(&self, attribute: &AttributeName) -> Option<(&[String], Origin)> {
        if let Some(user) = self.config.users.get(self.subject.user()) {
            if let Some(values) = user.attributes.get(attribute) {
                return Some((values, Origin::User));
            }
            for group in &user.groups {
                if let Some(values) = self.config.groups.get(group).and_then(|g| g.get(attribute)) {
                    return Some((values, Origin::Group(group.clone())));
                }
            }
        }
        self.config.attribute_defaults.get(attribute).map(|values| (values.as_slice(), Origin::Default))
    }
}
