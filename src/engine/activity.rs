//! Whether a session does something, for whoever has those rest that do nothing.

use std::sync::atomic::{AtomicU8, Ordering};

/// How much a session does: one that does little rests whenever it does nothing, another when it has done nothing for a while.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicU8);

/// It rests when it next does nothing, as one that has just logged in.
const TO_REST: u8 = 0;
/// It rests.
const RESTING: u8 = 1;
/// It was woken, for the first time since the last look, and rests again when it next does nothing.
const BRIEFLY_AWAKE: u8 = 2;
/// It rests, and has been woken since the last look.
const RESTING_AGAIN: u8 = 3;
/// It has done nothing since the last look.
const QUIET: u8 = 4;
const ACTIVE: u8 = 5;

impl Activity {
    /// The session does something, perhaps.
    pub(super) fn is_seen(&self) {
        match self.0.load(Ordering::Relaxed) {
            RESTING => self.0.store(BRIEFLY_AWAKE, Ordering::Relaxed),
            RESTING_AGAIN | QUIET => self.0.store(ACTIVE, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Whether it is to rest as soon as it does nothing.
    pub(super) fn is_to_rest(&self) -> bool {
        matches!(self.0.load(Ordering::Relaxed), TO_REST | BRIEFLY_AWAKE)
    }

    /// It rests from now on.
    pub(super) fn rests(&self) {
        let is_brief = self.0.load(Ordering::Relaxed) == BRIEFLY_AWAKE;
        self.0.store(if is_brief { RESTING_AGAIN } else { RESTING }, Ordering::Relaxed);
    }

    /// Looks whether it has done something since the last look; true if it is to be woken, to rest.
    pub(super) fn look(&self) -> bool {
        let next = |now: u8| match now {
            ACTIVE => Some(QUIET),
            QUIET => Some(TO_REST),
            RESTING_AGAIN => Some(RESTING),
            _ => None,
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) == Ok(QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_little_rests_at_once_and_others_when_they_have_done_nothing_for_a_while() {
        let activity = Activity::default();
        let is_seen = || {
            activity.is_seen();
            let rests = activity.is_to_rest();
            if rests {
                activity.rests();
            }
            rests
        };
        assert!(is_seen(), "who has just logged in");
        // Once between two looks, twice, and again and again.
        assert!(is_seen() && !activity.look() && is_seen());
        assert!(!is_seen() && !is_seen());
        assert_eq!([(); 2].map(|()| activity.look()), [false, true]);
        assert!(is_seen(), "to rest");
        assert!(is_seen() && !is_seen() && !activity.look());
        assert!(!is_seen() && !activity.look() && activity.look() && !activity.look());
    }
}
