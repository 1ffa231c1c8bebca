//! A session that does nothing takes little memory: most sessions do nothing, most of the time.

use super::timing::Timer;
use super::{Engine, SessionContext};
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

/// Where tests run, every other transaction is followed by a rest, however short.
const REST_OFTEN: bool = cfg!(debug_assertions);

impl Engine {
    /// True if it is to rest, and nothing is lost when it does.
    pub(crate) fn is_to_rest(&self) -> bool {
        let is_even = || self.orders.statistics.is_even();
        (self.orders.activity.is_to_rest() || REST_OFTEN && is_even()) && self.may_rest()
    }

    fn may_rest(&self) -> bool {
        self.does_nothing()
            && self.started
            && self.wishes == idle()
            && self.gathered.is_none()
            && self.upstream_tail.is_empty()
            && self.to_upstream.is_empty()
            && self.conductor.may_rest()
    }

    /// What is kept of one that [is to rest](Self::is_to_rest). Its task is woken by whatever wakes it otherwise.
    pub(crate) fn rest(self) -> Resting {
        self.orders.activity.rests();
        let Self { client, conductor, bytes, timer, .. } = self;
        Resting { client, conductor: conductor.rest(), bytes, timer: timer.is_set().then(|| Box::new(timer)) }
    }
}

impl Resting {
    /// The session as it was, with the same around it as before.
    pub(crate) fn wake(self, around: SessionContext) -> Engine {
        let Self { mut client, conductor, bytes, timer } = self;
        Engine {
            bytes,
            timer: timer.map(|timer| *timer).unwrap_or_default(),
            wishes: idle(),
            attached: true,
            started: true,
            is_on_ring: client.is_on_ring(),
            ..Engine::of(client, conductor.wake(), around)
        }
    }
}
