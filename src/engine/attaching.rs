//! A session on the thread where it is polled, and its way to another.

use std::task::{Context, Poll};

use super::{Engine, Follow, Leasing, Out, Progress};
use crate::ring;
use relay::conductor::Event;

impl Engine {
    /// Has its sockets on this thread; false while they are on their way from another.
    pub(super) fn attach(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        self.orders.is_woken_by(cx.waker());
        match self.client.poll_register(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(_)) => self.is_on_ring = self.client.is_on_ring(),
            Poll::Ready(Err(_)) => {
                self.attached = true;
                return self.client_ended(cx, out);
            }
        }
        let upstream = match &mut self.leasing {
            Leasing::Held(lease) => lease.stream.poll_register(cx),
            _ => Poll::Ready(Ok(true)),
        };
        match upstream {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(true)) => self.attached = true,
            Poll::Ready(_) => {
                (self.attached, self.started) = (true, true);
                self.follow(Follow::Say(Event::UpstreamEnded(Box::default())), cx, out)?;
            }
        }
        Ok(true)
    }

    /// True if it is here, has nothing and waits for nothing but its client.
    pub(super) fn does_nothing(&self) -> bool {
        self.attached
            && matches!(self.leasing, Leasing::None)
            && self.client_tail.is_empty()
            && self.to_client.is_empty()
            && self.pinned.is_none()
            && self.subscription.is_none()
            && self.farewell.is_none()
            && self.ending.is_none()
    }

    /// Has it go on at another thread, if it does nothing, has nothing and waits for nothing but its client.
    pub(crate) fn leave_thread(&mut self, cx: &mut Context<'_>) {
        let leaves = self.does_nothing() && self.is_on_ring && !self.client.is_unsent(cx) && ring::leave();
        self.attached &= !leaves;
    }
}
