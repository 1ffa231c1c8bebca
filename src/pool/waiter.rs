//! A place in the queue of a pool.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;

use super::Lease;
use wire::error::Refusal;

/// How a wait ended.
#[derive(Debug)]
pub enum WaitEnd {
    /// With a connection.
    Granted(Lease),
    /// With the reason why there is none.
    Refused(Box<Refusal>),
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Over(WaitEnd),
    /// Nobody wants the outcome any more.
    Abandoned,
}

/// Held by the pool and by whoever waits.
#[derive(Debug)]
pub struct Waiter {
    state: Mutex<State>,
    /// Since when.
    pub since: Instant,
}

impl Waiter {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Waiting(None)), since: Instant::now() })
    }

    /// Whether anybody still waits for its outcome, and has none.
    pub(super) fn waits(&self) -> bool {
        matches!(*self.state.lock(), State::Waiting(_))
    }

    /// The outcome, once.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<WaitEnd> {
        let mut state = self.state.lock();
        if let State::Waiting(waker) = &mut *state {
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Abandoned) {
            State::Over(outcome) => Poll::Ready(outcome),
            State::Waiting(_) | State::Abandoned => Poll::Pending,
        }
    }

    /// Ends the wait with a connection; gives it back if nobody waits.
    pub(super) fn grant(&self, lease: Lease) -> Option<Lease> {
        match self.end(WaitEnd::Granted(lease)) {
            Some(WaitEnd::Granted(lease)) => Some(lease),
            _ => None,
        }
    }

    /// Ends the wait without one; nothing happens if it is over already.
    pub fn refuse(&self, refusal: Refusal) {
        drop(self.end(WaitEnd::Refused(Box::new(refusal))));
    }

    fn end(&self, outcome: WaitEnd) -> Option<WaitEnd> {
        let mut state = self.state.lock();
        let State::Waiting(waker) = &mut *state else { return Some(outcome) };
        let waker = waker.take();
        *state = State::Over(outcome);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Nobody wants the outcome; what was granted is given back.
    pub(super) fn abandon(&self) -> Option<Lease> {
        match std::mem::replace(&mut *self.state.lock(), State::Abandoned) {
            State::Over(WaitEnd::Granted(lease)) => Some(lease),
            _ => None,
        }
    }
}
