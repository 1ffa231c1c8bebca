//! What is asked of the server between two users of one connection, so that nothing of the one meets the other.
//!
//! It rests on PostgreSQL and not on what was read of statements: `DISCARD ALL`, which must be a message of its own, and a
//! new seed, which it leaves alone. Both are answered without an error, the second with a row that nobody else can make, before
//! anything of the next user's is sent: should answers of the last user's still be under way, they are not taken for these.

use super::requests::{Kind, Note};
use super::{BackendState, Core};
use wire::UserName;

/// Takes away all that PostgreSQL can take away from a session.
pub const DISCARD: &str = "DISCARD ALL";

/// What nobody can know who has used the connection before: whatever answers a reset or a survey with it answers just that,
/// and not something that was still under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof(u64);

impl Proof {
    /// Of random bits.
    pub fn new(random: u64) -> Self {
        Self(random)
    }

    /// The statement that gives `random()` a seed nobody knows, and answers with the proof behind it.
    pub fn new_seed(self, random: u64) -> String {
        // Qualified, in ASCII, and with digits alone: it means the same on every connection.
        format!(
            "SELECT pg_catalog.setseed('0.{:015}'::pg_catalog.float8),{}",
            random % 1_000_000_000_000_000,
            self.column()
        )
    }

    /// A query that does nothing else than to answer with it.
    pub fn question(self) -> String {
        format!("SELECT {}", self.column())
    }

    /// What a query selects last so that its row holds the proof.
    pub(super) fn column(self) -> String {
        format!("'{:016x}'::pg_catalog.text", self.0)
    }

    /// Whether the body of a `DataRow` ends with it.
    pub fn is_in(self, row: &[u8]) -> bool {
        row.ends_with(format!("{:016x}", self.0).as_bytes())
    }
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
    pub(crate) fn reset(&mut self, seed: u64, proof: Proof, up: &mut Vec<u8>) {
        wire::query(up, DISCARD);
        wire::query(up, &proof.new_seed(seed));
        self.requests.push(Kind::Reset);
        self.requests.push_noted(Kind::Reset, Note::Proof(proof));
    }

    /// True while that is not done.
    pub(crate) fn is_resetting(&self) -> bool {
        self.requests.front_kind() == Some(Kind::Reset)
    }

    /// Who the session's user is.
    #[cfg(test)]
    pub(crate) fn user(&self) -> &UserName {
        &self.facts.user
    }
}
