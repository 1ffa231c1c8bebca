//! What is known about a user, and from where: the facts that a route is picked by.

use std::fmt;

use crate::auth::Identity;
use crate::config::Config;
use crate::grants::{Grant, Grants};
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

/// A user and all that the configuration says about them. Made of an [`Identity`], or, to explain a route
/// without a login, of a name.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    user: UserName,
    config: &'a Config,
    granted: Vec<Grant>,
}

/// What is known about somebody who has logged in.
pub fn of<'a>(config: &'a Config, grants: &Grants, identity: &Identity) -> Attributes<'a> {
    of_user(config, identity.user().as_str()).with(grants)
}

/// What would be known about this user by the configuration alone: for explaining, never for a login.
pub fn of_user<'a>(config: &'a Config, user: &str) -> Attributes<'a> {
    Attributes { user: user.into(), config, granted: Vec::new() }
}

impl Attributes<'_> {
    /// With what the user is granted now.
    #[must_use]
    pub fn with(mut self, grants: &Grants) -> Self {
        self.granted = grants.of(&self.user);
        self
    }

    /// As if the user were granted this, and nothing else: to say what that would change.
    #[must_use]
    pub fn granted_only(mut self, grants: Vec<Grant>) -> Self {
        self.granted = grants;
        self
    }

    /// What the user is granted.
    pub fn granted(&self) -> &[Grant] {
        &self.granted
    }

    /// Whose they are.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// The values of one attribute: the user's own; else those of the first group that has it; else the
    /// default; else none.
    pub fn values(&self, attribute: &AttributeName) -> Option<(&[String], Origin)> {
        if let Some(user) = self.config.users.get(&self.user) {
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
