//! Who is on the console now: so that operators see each other, and can end a session that was forgotten.

use std::collections::BTreeMap;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// One session of the console.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    /// Its number, among those of all sessions.
    pub id: u64,
    /// Who.
    pub user: String,
    /// `admin` or `stats`
    pub right: &'static str,
    /// How it is known who that is: `login` or `peer`.
    pub proof: &'static str,
    /// Its other end.
    pub peer: String,
    /// When it came.
    pub since: SystemTime,
    /// For ending it.
    pub leave: CancellationToken,
}

/// All of them, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<BTreeMap<u64, Present>>);

impl Presence {
    /// It is here until this is dropped.
    pub(super) fn enter(&self, present: Present) -> Here<'_> {
        let id = present.id;
        self.0.lock().insert(id, present);
        Here { presence: self, id }
    }

    /// Those who are here.
    pub(crate) fn list(&self) -> Vec<Present> {
        self.0.lock().values().cloned().collect()
    }

    /// Ends one; false if there is none of this number.
    pub(crate) fn end(&self, id: u64) -> bool {
        self.0.lock().get(&id).inspect(|present| present.leave.cancel()).is_some()
    }
}

/// A session of the console that is here.
pub(super) struct Here<'a> {
    presence: &'a Presence,
    id: u64,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.presence.0.lock().remove(&self.id);
    }
}
