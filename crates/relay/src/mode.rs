//! For how long clients keep upstream connections.

/// For how long a client keeps the upstream connection it is lent (PgBouncer's `pool_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// For a transaction.
    Transaction,
    /// Until it disconnects.
    Session,
}

impl PoolMode {
    /// As each is written.
    pub const WORDS: &'static [&'static str] = &["transaction", "session"];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
        }
    }

    /// The one that is written so.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Transaction, Self::Session].into_iter().find(|mode| mode.word() == word)
    }
}
