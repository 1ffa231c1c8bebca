//! Access for a while: grants are given, ended, and end by themselves.

use std::sync::Arc;

use tracing::info;

use super::{Current, Journal, Sessions};
use crate::audit::Event;
use crate::grants::Grants;
use policy::grant::{Grant, Which};
use policy::names::UserName;
use policy::route;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// See the module.
pub(crate) struct Access {
    current: Arc<Current>,
    sessions: Arc<Sessions>,
    journal: Arc<Journal>,
    grants: Arc<Grants>,
}

impl Access {
    pub(super) fn new(
        current: Arc<Current>,
        sessions: Arc<Sessions>,
        journal: Arc<Journal>,
        grants: Arc<Grants>,
    ) -> Self {
        Self { current, sessions, journal, grants }
    }

    /// All that hold.
    pub(crate) fn all(&self) -> Arc<Vec<Grant>> {
        self.grants.all()
    }

    /// Those of a user.
    pub(crate) fn of(&self, user: &str) -> Vec<Grant> {
        self.grants.of(user)
    }

    /// Whether there are such a user, such a database and such an environment of it.
    ///
    /// # Errors
    /// Which of them there is not.
    pub(crate) fn check(&self, grant: &Grant) -> Result<(), Refusal> {
        let config = &self.current.generation().config;
        let unknown = |what: &str, name: &str| {
            Refusal::new(
                Fault::Client,
                SqlState::UNDEFINED_OBJECT,
                format!("there is no {what} \"{}\"", Shown::name(name)),
            )
        };
        if !config.users.contains_key(&grant.user) {
            return Err(unknown("user", grant.user.as_str()));
        }
        if let Some(database) = &grant.database {
            if config.base(database.as_str()).is_none() {
                return Err(unknown("database", database.as_str()).hint("SHOW ROUTES lists them."));
            }
            if route::opened_by(config, grant).is_empty() {
                let name = &grant.environment;
                let message = format!("database \"{database}\" has no environment \"{name}\" to be granted");
                let refusal = Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message);
                return Err(refusal.hint("SHOW ENVIRONMENTS lists them."));
            }
        }
        if !config.connections.values().any(|connection| connection.environment == grant.environment) {
            let refusal = unknown("environment", grant.environment.as_str());
            return Err(refusal.hint("SHOW ENVIRONMENTS lists them."));
        }
        Ok(())
    }

    /// Lets a user into an environment until a time. Blocks while it is written.
    ///
    /// # Errors
    /// There is no such user or environment, or the grant cannot be kept.
    pub(crate) fn grant(&self, grant: &Grant) -> Result<(), Refusal> {
        self.check(grant)?;
        self.grants.add(grant.clone()).map_err(|error| self.not_kept(&error))?;
        let database = grant.database.as_ref().map(tracing::field::display);
        info!(user = %grant.user, environment = %grant.environment, database, by = %grant.by, "environment granted");
        self.journal.audit.record(|| of_grant("grant", grant).text("by", &grant.by));
        self.sessions.settle();
        Ok(())
    }

    /// Ends that before its time.
    ///
    /// # Errors
    /// There is none, or that cannot be kept.
    pub(crate) fn revoke(
        &self,
        user: &str,
        environment: &str,
        which: &Which,
        by: &UserName,
    ) -> Result<(), Refusal> {
        let removed = self.grants.remove(user, environment, which);
        let revoked = removed.map_err(|error| self.not_kept(&error))?;
        if revoked.is_empty() {
            let of = match which {
                Which::Of(Some(database)) => format!(" of database \"{database}\""),
                Which::All | Which::Of(None) => String::new(),
            };
            let message = format!("environment \"{environment}\"{of} is not granted to user \"{user}\"");
            let refusal = Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message);
            return Err(refusal.hint("SHOW GRANTS lists them: to end one for all databases, leave out ON."));
        }
        revoked.iter().for_each(|grant| self.grant_ended(grant, "revoke", Some(by)));
        self.sessions.settle();
        Ok(())
    }

    /// Whether [`Access::tend`] has something to do.
    pub(super) fn are_due(&self) -> bool {
        self.grants.are_due()
    }

    /// Ends those whose time is over, and settles whoever came by them, or by one that another process has changed. Blocks.
    pub(super) fn tend(&self) {
        let over = self.grants.expire();
        over.iter().for_each(|grant| self.grant_ended(grant, "grant_ended", None));
        self.sessions.settle();
    }

    fn grant_ended(&self, grant: &Grant, event: &'static str, by: Option<&UserName>) {
        let database = grant.database.as_ref().map(tracing::field::display);
        info!(user = %grant.user, environment = %grant.environment, database, "environment granted no longer");
        self.journal.audit.record(|| of_grant(event, grant).maybe("by", by));
    }

    fn not_kept(&self, error: &std::io::Error) -> Refusal {
        let message = format!("the grants cannot be written to {}: {error}", self.grants.path().display());
        Refusal::new(Fault::Operator, SqlState::NOT_IN_PREREQUISITE_STATE, message)
            .hint("Set [server] grants_file to a file that pgusher may write.")
    }
}

fn of_grant(event: &'static str, grant: &Grant) -> Event {
    Event::new(event)
        .text("user", &grant.user)
        .text("environment", &grant.environment)
        .maybe("database", grant.database.as_ref())
        .time("until", grant.until)
        .text("reason", &grant.reason)
}
