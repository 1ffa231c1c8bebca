//! What is asked of the server between two users of one connection, so that nothing of the one meets the other.
//!
//! It rests on PostgreSQL and not on what was read of statements: `DISCARD ALL`, which must be a message of its own, and a
//! new seed, which it leaves alone. Both are answered without an error, the second with a row that nobody else can make, before
//! anything of the next user's is sent: should answers of the last user's still be under way, they are not taken for these.

/// Takes away all that PostgreSQL can take away from a session.
pub const DISCARD: &str = "DISCARD ALL";

/// What nobody can know who has used the connection before: whatever answers a reset or a state probe with it answers just that,
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
