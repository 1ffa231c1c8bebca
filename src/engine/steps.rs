//! Obeys the conductor's wishes, and takes the steps that it says.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::backlog::Backlog;
use super::{Engine, Follow, Leasing, Out, Progress};
use crate::pool::{Lease, Pool, Waiter};
use crate::stats::Counter;
use policy::names::UserName;
use relay::ListenRequest;
use relay::conductor::{Closing, Condition, Doing, Event, Leaving, Listening, Step, Wishes};

impl Engine {
    /// What holds from now on.
    pub(super) fn obey(&mut self, wishes: Wishes) {
        let before = std::mem::replace(&mut self.wishes, wishes);
        if wishes.doing != before.doing {
            match (wishes.doing, &self.leasing) {
                (Doing::Running, Leasing::Held(lease)) => self.slot.is_lent(lease.target.clone()),
                (Doing::Waiting, _) => {}
                _ => self.slot.has_nothing(),
            }
        }
        if wishes.phase != before.phase {
            self.orders.statistics.does(wishes.phase, self.conductor.under_way());
        }
        if wishes.listening == Listening::No {
            self.subscription = None;
        }
    }

    /// The client sends nothing more: whether it is gone is found out while it is owed something.
    pub(super) fn client_closed(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        self.farewell = Some(Box::default());
        self.follow(Follow::Say(Event::ClientClosed), cx, out).map(|()| true)
    }

    /// Nothing more can be read. Under TLS, many close their side without saying so there.
    pub(super) fn client_has_ended(
        &mut self,
        read: &io::Result<()>,
        cx: &mut Context<'_>,
        out: &mut Out,
    ) -> Progress {
        match read {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => self.client_ended(cx, out),
            _ => self.client_closed(cx, out),
        }
    }

    pub(super) fn client_ended(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        self.follow(Follow::Say(Event::ClientEnded), cx, out).map(|()| true)
    }

    /// The client is lost: what was to be done is done, and then its session ends.
    #[cold]
    pub(super) fn take_and_leave(
        &mut self,
        step: Step,
        cx: &mut Context<'_>,
    ) -> Result<Follow, Box<Closing>> {
        if !matches!(step, Step::Lend) {
            self.take(step, cx)?;
        }
        Ok(Follow::Say(Event::ClientEnded))
    }

    pub(super) fn take(&mut self, step: Step, cx: &mut Context<'_>) -> Result<Follow, Box<Closing>> {
        Ok(match step {
            Step::Wait => Follow::Nothing,
            Step::ShowClient => Follow::Client,
            Step::ShowUpstream => Follow::Upstream,
            Step::Lend => {
                self.wait(Pool::wait);
                Follow::Nothing
            }
            Step::Flush if self.to_upstream.is_empty() => Follow::Say(Event::Flushed),
            Step::Flush => Follow::Nothing,
            Step::Release => {
                self.release();
                Follow::Nothing
            }
            Step::Replace { running: true } => {
                if let Leasing::Held(lease) = self.part() {
                    lease.cancel_and_discard();
                }
                Follow::Client
            }
            Step::Replace { running: false } => {
                drop(self.part());
                Follow::Client
            }
            Step::PutBack(bytes) => {
                let mut bytes = bytes.into_vec();
                bytes.append(&mut self.client_tail);
                self.client_tail = bytes;
                Follow::Say(Event::PutBack)
            }
            Step::Pin(reason) => {
                self.pinned = None;
                self.orders.statistics.pin_is(reason);
                match reason {
                    None => Follow::Say(Event::Flushed),
                    Some(_) => {
                        self.pinned = self.pool.pin();
                        Follow::Say(Event::Permitted(self.pinned.is_some()))
                    }
                }
            }
            Step::Outdate(defined) => {
                self.pool.outdate_catalog(&defined);
                Follow::Say(Event::Flushed)
            }
            Step::Free(database) => {
                self.pool.free(&database);
                Follow::Say(Event::Flushed)
            }
            Step::Signal(signalled) => Follow::Say(Event::Signalled(self.signals.signal(self.id, signalled))),
            Step::AskListener(asked) => self.ask_listener(*asked, cx),
            Step::Cancel => {
                self.cancel();
                Follow::Nothing
            }
            Step::Close(closing) => return Err(closing),
        })
    }

    fn wait(&mut self, join: fn(&Arc<Pool>, &UserName) -> Arc<Waiter>) {
        let waiter = join(&self.pool, &self.user);
        self.slot.waits(waiter.clone());
        self.leasing = Leasing::Waiting(waiter);
    }

    /// Takes a connection that was lent; `None` while it is on its way from another thread.
    pub(super) fn hold(&mut self, mut lease: Lease) -> Option<Condition> {
        self.pool.stats().add(Counter::Assignments, 1);
        if self.is_on_ring {
            if lease.stream.is_elsewhere() {
                // What has come of it is looked at when it is here: the next thing that is done.
                self.leasing = Leasing::Coming(lease);
                return None;
            }
            // If that fails it is lost, which is found when it is used.
            let _ = lease.stream.register();
        }
        Some(self.is_lent(lease))
    }

    #[inline]
    fn is_lent(&mut self, mut lease: Lease) -> Condition {
        let condition = lease.lend_to(&self.user);
        self.leasing = Leasing::Held(lease);
        self.upstream_is_dry = false;
        condition
    }

    /// A connection that is on its way from another thread: has it come?
    #[cold]
    pub(super) fn take_arrived(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        let Leasing::Coming(lease) = &mut self.leasing else { return Ok(false) };
        let Poll::Ready(arrived) = lease.stream.poll_register(cx) else { return Ok(false) };
        let is_usable = matches!(arrived, Ok(true)) && lease.is_usable();
        let Leasing::Coming(lease) = std::mem::replace(&mut self.leasing, Leasing::None) else {
            return Ok(false);
        };
        if is_usable {
            let condition = self.is_lent(lease);
            return self.go_on_with(condition, cx, out).map(|()| true);
        }
        // It has ended, or said something that nobody has asked: another is waited for.
        drop(lease);
        self.wait(Pool::wait_first);
        Ok(true)
    }

    /// The session has its connection: what it has sent meanwhile goes there.
    pub(super) fn go_on_with(
        &mut self,
        condition: Condition,
        cx: &mut Context<'_>,
        out: &mut Out,
    ) -> Result<(), Box<Closing>> {
        let tail = std::mem::take(&mut self.client_tail);
        let follow = self.tell(Event::Lent(condition, &tail), cx, out)?;
        self.follow(follow, cx, out)
    }

    fn release(&mut self) {
        let Leasing::Held(mut lease) = std::mem::replace(&mut self.leasing, Leasing::None) else { return };
        if self.upstream_tail.is_empty() {
            if self.is_on_ring {
                lease.stream.watch();
            }
            return lease.release();
        }
        // Half of something unasked: the other half must not meet another client.
        self.upstream_tail = Vec::new();
        drop(lease);
    }

    /// The connection, of which nothing is kept. The next one has its own time.
    fn part(&mut self) -> Leasing {
        self.timer.progress();
        self.upstream_tail = Vec::new();
        self.to_upstream = Backlog::default();
        std::mem::replace(&mut self.leasing, Leasing::None)
    }

    fn cancel(&self) {
        let Leasing::Held(lease) = &self.leasing else { return };
        let target = lease.target.clone();
        let fence = target.fence();
        self.pool.spawn(async move {
            let _ = target.cancel().await;
            drop(fence);
        });
    }

    fn ask_listener(&mut self, asked: ListenRequest, cx: &mut Context<'_>) -> Follow {
        if self.subscription.is_none() {
            let subscription = self.pool.subscribe(self.id, cx.waker().clone());
            self.subscription = subscription.map(Box::new);
        }
        match &self.subscription {
            Some(subscription) => {
                subscription.ask(asked);
                Follow::Nothing
            }
            None => Follow::Say(Event::NoListener),
        }
    }

    /// It is dropped, by whoever calls this: nobody is to find its connection, and none is to come for it.
    pub(crate) fn abandon(&self) {
        self.slot.has_nothing();
        if let Leasing::Waiting(waiter) = &self.leasing {
            self.pool.abandon(waiter);
        }
    }

    /// The session is over: the connection is given back, cleaned or closed.
    pub(super) fn leave(&mut self, closing: &Closing) {
        self.timer.progress();
        self.slot.has_nothing();
        self.pinned = None;
        if let Some(what) = &closing.broke {
            let connection = self.pool.connection();
            tracing::warn!(connection = %connection.name, %what, "the upstream broke the protocol");
        }
        let all_said = self.to_upstream.is_empty() && self.upstream_tail.is_empty();
        match std::mem::replace(&mut self.leasing, Leasing::None) {
            // On its way, it is closed.
            Leasing::None | Leasing::Coming(_) => {}
            Leasing::Waiting(waiter) => self.pool.abandon(&waiter),
            Leasing::Held(mut lease) => match closing.connection {
                Leaving::Release if all_said => {
                    lease.stream.watch();
                    lease.release();
                }
                Leaving::Clean if all_said => self.pool.spawn(lease.clean()),
                Leaving::Discard { running: true } => lease.cancel_and_discard(),
                // It was never used: the session has ended before it began.
                Leaving::Nothing => self.pool.spawn(lease.clean()),
                Leaving::Discard { running: false } | Leaving::Release | Leaving::Clean => drop(lease),
            },
        }
    }
}
