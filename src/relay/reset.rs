//! What is asked of the server between two users of one connection, so that nothing of the one meets the other.
//!
//! It rests on PostgreSQL and not on what was read of statements: `DISCARD ALL`, which must be a message of its own, and a
//! new seed, which it leaves alone. Both are answered without an error before anything of the next user's is sent.

use super::requests::Kind;
use super::{BackendState, Core};
use crate::names::UserName;
use crate::wire;

/// Takes away all that PostgreSQL can take away from a session.
pub const DISCARD: &str = "DISCARD ALL";

/// The statement that gives `random()` a seed nobody knows; `random` are random bits.
pub fn new_seed(random: u64) -> String {
    // Qualified, in ASCII, and with digits alone: it means the same on every connection.
    format!("SELECT pg_catalog.setseed('0.{:015}'::pg_catalog.float8)", random % 1_000_000_000_000_000)
}

impl BackendState {
    /// Whom it was used for last, if it was used.
    pub fn last_user(&self) -> Option<&UserName> {
        self.last_user.as_ref()
    }

    /// True if nobody has used it since it was opened or reset.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// True if something may be left on it of somebody else than this user.
    pub fn is_foreign_to(&self, user: &UserName) -> bool {
        !self.clean && self.last_user.as_ref().is_none_or(|last| last != user)
    }

    /// From now on it is used for this user. True if that was somebody else before.
    pub fn serve(&mut self, user: &UserName) -> bool {
        self.clean = false;
        let changes = self.last_user.as_ref() != Some(user);
        if changes {
            self.last_user = Some(user.clone());
        }
        changes
    }
}

impl Core {
    /// Asks the server to take away what another user has left on it; nothing of this one's may be sent before that is
    /// done: see [`Core::is_setting_up`].
    pub fn reset(&mut self, random: u64, up: &mut Vec<u8>) {
        wire::query(up, DISCARD);
        wire::query(up, &new_seed(random));
        self.requests.push(Kind::Reset);
        self.requests.push(Kind::Reset);
    }

    /// True while that is not done.
    pub fn is_resetting(&self) -> bool {
        self.requests.front_kind() == Some(Kind::Reset)
    }

    /// Who the session's user is.
    pub fn user(&self) -> &UserName {
        &self.facts.user
    }
}
