//! A session that does nothing takes little memory: most sessions do nothing, most of the time.

use std::sync::atomic::{AtomicU8, Ordering};

use super::timing::Timer;
use super::{Around, Engine, Leasing};
use crate::stream::Stream;
use relay::conductor::{self, Wishes};

/// A session that waits for its client, and for nothing else: what cannot be made anew.
pub(crate) struct Resting {
    client: Stream,
    conductor: conductor::Resting,
    bytes: (u64, u64),
    /// Where a limit holds for how long it does nothing.
    timer: Option<Box<Timer>>,
}

/// What an idle session wishes.
fn idle() -> Wishes {
    Wishes { from_client: true, ..Wishes::default() }
}

impl Engine {
    /// True if nothing is lost when it rests.
    pub(crate) fn may_rest(&self) -> bool {
        self.settled
            && self.started
            && self.wishes == idle()
            && matches!(self.leasing, Leasing::None)
            && self.ending.is_none()
            && self.farewell.is_none()
            && self.pinned.is_none()
            && self.subscription.is_none()
            && self.gathered.is_none()
            && [&self.client_tail, &self.upstream_tail].into_iter().all(Vec::is_empty)
            && self.to_client.is_empty()
            && self.to_upstream.is_empty()
            && self.conductor.may_rest()
    }

    /// What is kept of one that [may rest](Self::may_rest). Its task is woken by whatever wakes it otherwise.
    pub(crate) fn rest(self) -> Resting {
        let Self { client, conductor, bytes, timer, .. } = self;
        Resting { client, conductor: conductor.rest(), bytes, timer: timer.is_set().then(|| Box::new(timer)) }
    }
}

impl Resting {
    /// The session as it was, with the same around it as before.
    pub(crate) fn wake(self, around: Around) -> Engine {
        let Self { mut client, conductor, bytes, timer } = self;
        Engine {
            bytes,
            timer: timer.map(|timer| *timer).unwrap_or_default(),
            wishes: idle(),
            settled: true,
            started: true,
            is_on_ring: client.is_on_ring(),
            ..Engine::of(client, conductor.wake(), around)
        }
    }
}

/// Whether a session has done something lately: one that has not is told to rest. One that has just logged in rests as soon as it has
/// nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicU8);

/// It is to rest.
const ASKED: u8 = 0;
/// It does.
const RESTING: u8 = 1;
/// It has done nothing since it was looked at.
const QUIET: u8 = 2;
const ACTIVE: u8 = 3;

impl Activity {
    /// The session does something, perhaps.
    pub(crate) fn is_seen(&self) {
        if matches!(self.0.load(Ordering::Relaxed), RESTING | QUIET) {
            self.0.store(ACTIVE, Ordering::Relaxed);
        }
    }

    /// Whether it is to rest.
    pub(crate) fn is_asked_to_rest(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ASKED
    }

    /// It rests from now on.
    pub(crate) fn rests(&self) {
        self.0.store(RESTING, Ordering::Relaxed);
    }

    /// Looks whether it has done something since the last look; true if it is to be woken, to rest.
    pub(crate) fn look(&self) -> bool {
        let next = |now: u8| match now {
            ACTIVE => Some(QUIET),
            QUIET => Some(ASKED),
            _ => None,
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) == Ok(QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_nothing_from_one_look_to_the_next_is_asked_to_rest() {
        let activity = Activity::default();
        assert!(activity.is_asked_to_rest(), "who has just logged in");
        activity.rests();
        assert!(!activity.look() && !activity.is_asked_to_rest());
        activity.is_seen();
        assert_eq!([(); 3].map(|()| activity.look()), [false, true, false]);
        assert!(activity.is_asked_to_rest());
        // Not yet: it was busy.
        activity.is_seen();
        assert!(activity.is_asked_to_rest());
        activity.rests();
        activity.is_seen();
        assert!(!activity.look());
        activity.is_seen();
        assert!(!activity.look() && !activity.is_asked_to_rest());
    }
}
