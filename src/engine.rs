//! Drives a session between the client's socket and the connections that it is lent: it reads, writes, and does what the
//! [`Conductor`] says.
//!
//! One future, polled as a whole. Bytes go through a scratch buffer of the thread; a session owns memory only for
//! what a full socket did not take, and for a message that is not there whole.

mod activity;
mod backlog;
mod hearing;
mod orders;
mod resting;
mod attaching;
mod steps;
mod world;
mod timing;
mod statistics;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cancel::Slot;
use crate::pool::{Lease, PinPermit, Pool, Subscription, WaitEnd, Waiter, waited_too_long};
use crate::stats::Counter;
use crate::stream::{Ending, Reader, Stream};
use backlog::Backlog;
pub(crate) use orders::{Order, OrderedBy, Orders, Signals, When};
use policy::names::UserName;
pub(crate) use relay::conductor::Cause;
use relay::conductor::{
    Actions, Closing, Conductor, Event, EventBytes, Grounds, Overdue, Phase, Statistics, Step, UpstreamEnd,
    Wishes,
};
use relay::{Gathered, Gathering};
pub(crate) use resting::Resting;
pub(crate) use statistics::{SessionStatistics, State};
pub(crate) use timing::Timeouts;
use timing::{Farewell, Timer};
use wire::error::{Fault, Refusal, SqlState};
use world::RealWorld;
pub(crate) use world::SessionContext;

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// Buffers of a thread, used by one session after the other.
struct Scratch {
    input: Box<[u8]>,
    out: Out,
}

/// What is made for either side.
#[derive(Default)]
struct Out {
    up: Vec<u8>,
    down: Vec<u8>,
    statistics: Statistics,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; CHUNK].into_boxed_slice(),
        out: Out::default(),
    });
}

/// What a session was, when it is over.
#[derive(Debug)]
pub(crate) struct End {
    /// Why.
    pub cause: Cause,
    /// How many transactions.
    pub transactions: u64,
    /// Bytes from the client and to it.
    pub bytes: (u64, u64),
}

enum Leasing {
    None,
    Waiting(Arc<Waiter>),
    /// On its way from another thread.
    Coming(Lease),
    Held(Lease),
}

/// What an engine is started with.
pub(crate) struct Parts {
    /// The client.
    pub client: Reader,
    /// The session that has just logged in.
    pub conductor: Conductor,
    /// In session mode: the connection.
    pub lease: Option<Lease>,
    /// What is around it.
    pub around: SessionContext,
}

/// One session, from its first query to its end.
pub(crate) struct Engine {
    client: Stream,
    conductor: Conductor,
    id: u64,
    user: UserName,
    pool: Arc<Pool>,
    leasing: Leasing,
    slot: Arc<Slot>,
    orders: Arc<Orders>,
    signals: Arc<dyn Signals>,
    timeouts: Arc<Timeouts>,
    gathering: Arc<Gathering>,
    wishes: Wishes,
    /// Read and not dealt with.
    client_tail: Vec<u8>,
    upstream_tail: Vec<u8>,
    to_client: Backlog,
    to_upstream: Backlog,
    timer: Timer,
    /// The client has closed its side.
    farewell: Option<Box<Farewell>>,
    bytes: (u64, u64),
    ending: Option<Box<Closing>>,
    /// Its sockets are on this thread.
    attached: bool,
    started: bool,
    /// Its thread has a ring for its sockets, which keeps what they do not take.
    is_on_ring: bool,
    /// Found dry since the task was last woken: the runtime will say when that changes, so it need not be asked.
    client_is_dry: bool,
    upstream_is_dry: bool,
    /// The pool's permit to keep the connection.
    pinned: Option<PinPermit>,
    /// For sessions that listen.
    subscription: Option<Box<Subscription>>,
    /// What is counted of a long message of which the rest is waited for.
    gathered: Option<Box<Gathered>>,
}

/// Whether a step got anywhere; a session that is over says how.
type Progress = Result<bool, Box<Closing>>;

/// What follows when an event is dealt with.
enum Follow {
    Nothing,
    Client,
    Upstream,
    Say(Event<'static>),
}

impl Engine {
    /// Ready to be polled, by whatever runtime: the client's socket is registered there then.
    ///
    /// # Errors
    /// The client's socket was lost.
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let (mut client, ahead) = parts.client.into_parts();
        client.unregister()?;
        Ok(Self {
            leasing: parts.lease.map_or(Leasing::None, Leasing::Held),
            client_tail: ahead,
            ..Self::of(client, parts.conductor, parts.around)
        })
    }

    /// Without a connection, and to be started.
    fn of(client: Stream, conductor: Conductor, around: SessionContext) -> Self {
        let SessionContext { id, user, pool, slot, orders, signals, timeouts, gathering } = around;
        Self {
            client,
            conductor,
            id,
            user,
            pool,
            leasing: Leasing::None,
            slot,
            orders,
            signals,
            timeouts,
            gathering,
            wishes: Wishes::default(),
            client_tail: Vec::new(),
            upstream_tail: Vec::new(),
            to_client: Backlog::default(),
            to_upstream: Backlog::default(),
            timer: Timer::default(),
            farewell: None,
            bytes: (0, 0),
            ending: None,
            attached: false,
            started: false,
            is_on_ring: false,
            client_is_dry: false,
            upstream_is_dry: false,
            pinned: None,
            subscription: None,
            gathered: None,
        }
    }

    /// The first thing that is done on the runtime that relays: what the client sent with its login waits already.
    fn start(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Result<(), Box<Closing>> {
        self.started = true;
        // What was sent ahead of an order to go has not begun.
        if let Some(order) = self.orders.pending() {
            let event = Event::Order { now: true, refusal: Box::new(order.refusal) };
            return self.follow(Follow::Say(event), cx, out);
        }
        match &mut self.leasing {
            Leasing::Held(lease) => {
                let condition = lease.lend_to(&self.user);
                self.go_on_with(condition, cx, out)
            }
            _ => self.follow(Follow::Client, cx, out),
        }
    }

    /// Goes on until nothing can be done without waiting.
    fn drive(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Box<Closing>> {
        (self.client_is_dry, self.upstream_is_dry) = (false, false);
        loop {
            if self.orders.is_pending()
                && let Some(Order { when, refusal, .. }) = self.orders.pending()
            {
                let event = Event::Order { now: when == When::Now, refusal: Box::new(refusal) };
                self.follow(Follow::Say(event), cx, &mut scratch.out)?;
            }
            let mut progress = self.take_turn(cx, &mut scratch.out)?;
            progress |= self.read_client(cx, scratch)?;
            progress |= self.read_upstream(cx, scratch)?;
            if self.subscription.is_some() {
                progress |= self.hear_listener(cx, &mut scratch.out)?;
            }
            if !progress && !self.on_time(cx, &mut scratch.out)? {
                return Ok(());
            }
        }
    }

    /// Deals with an event and with all that follows from it.
    fn follow(
        &mut self,
        mut follow: Follow,
        cx: &mut Context<'_>,
        out: &mut Out,
    ) -> Result<(), Box<Closing>> {
        loop {
            follow = match follow {
                Follow::Nothing => return Ok(()),
                Follow::Client => {
                    let tail = std::mem::take(&mut self.client_tail);
                    self.tell(Event::FromClient(&tail), cx, out)?
                }
                Follow::Upstream => {
                    let tail = std::mem::take(&mut self.upstream_tail);
                    self.tell(Event::FromUpstream(&tail), cx, out)?
                }
                Follow::Say(event) => self.tell(event, cx, out)?,
            };
        }
    }

    /// Tells the conductor what happened, and does what it says; the rest of the input is kept.
    fn tell<'a>(
        &mut self,
        mut event: Event<'a>,
        cx: &mut Context<'_>,
        out: &mut Out,
    ) -> Result<Follow, Box<Closing>> {
        let shown = event.shown();
        let mut rest: &'a [u8] = match shown {
            EventBytes::Client(input) | EventBytes::Upstream(input) => input,
            EventBytes::Nothing => &[],
        };
        loop {
            let Out { up, down, statistics } = &mut *out;
            let world = RealWorld { pool: &self.pool };
            let backend = match &mut self.leasing {
                Leasing::Held(lease) => Some(&mut lease.state),
                _ => None,
            };
            let written = self.to_upstream.is_empty();
            let grounds = Grounds { backend, written, up, down, statistics, world: &world };
            let Actions { consumed, to_client, to_upstream, mut step, wishes } =
                self.conductor.on(event, grounds);
            rest = &rest[consumed..];
            self.obey(wishes);
            self.bytes.1 += to_client.len() as u64;
            let lost = !to_client.is_empty() && self.to_client.send(&mut self.client, to_client, cx).is_err();
            if let (Leasing::Held(lease), false) = (&mut self.leasing, to_upstream.is_empty())
                && self.to_upstream.send(&mut lease.stream, to_upstream, cx).is_err()
            {
                // What it said before it ended is still to be read, and says more than the failed write.
                self.to_upstream = Backlog::default();
            }
            if out.statistics.any {
                self.orders.statistics.count(&out.statistics.take(), self.bytes, self.pool.stats());
            }
            if let Step::Lend = step
                && !lost
                && let Some(lease) = self.pool.try_lend(&self.user, self.id)
            {
                match self.hold(lease) {
                    Some(condition) => {
                        event = Event::Lent(condition, rest);
                        continue;
                    }
                    None => step = Step::Wait,
                }
            }
            match shown {
                EventBytes::Nothing => {}
                EventBytes::Client(_) => {
                    self.client_tail.extend_from_slice(rest);
                    if self.client_tail.len() <= CHUNK {
                        // It was counted until now, also while it had to wait for a connection.
                        self.gathered = None;
                    }
                }
                EventBytes::Upstream(_) => self.upstream_tail = rest.to_vec(),
            }
            return if lost { self.take_and_leave(step, cx) } else { self.take(step, cx) };
        }
    }

    /// A session that waits: has its turn come?
    fn take_turn(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        let waiter = match &self.leasing {
            Leasing::None | Leasing::Held(_) => return Ok(false),
            Leasing::Coming(_) => return self.take_arrived(cx, out),
            Leasing::Waiting(waiter) => waiter,
        };
        match waiter.poll(cx) {
            Poll::Pending => match self.client.end(cx) {
                Some(Ending::Lost) => return self.client_ended(cx, out),
                Some(Ending::Closed) if self.farewell.is_none() => return self.client_closed(cx, out),
                _ => return Ok(false),
            },
            Poll::Ready(WaitEnd::Granted(lease)) => {
                let waited = u64::try_from(waiter.since.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.pool.stats().observe(Counter::WaitTime, waited);
                self.orders.statistics.waited(waited);
                if let Some(condition) = self.hold(lease) {
                    self.go_on_with(condition, cx, out)?;
                }
            }
            Poll::Ready(WaitEnd::Refused(refusal)) => self.refuse_waiting(&refusal, cx, out)?,
        }
        Ok(true)
    }

    /// There is no connection for what the client asked: it is told, and may ask again.
    fn refuse_waiting(
        &mut self,
        refusal: &Refusal,
        cx: &mut Context<'_>,
        out: &mut Out,
    ) -> Result<(), Box<Closing>> {
        if let Leasing::Waiting(waiter) = std::mem::replace(&mut self.leasing, Leasing::None) {
            self.pool.abandon(&waiter);
        }
        // Whatever it asks for next has its own time.
        self.timer.progress();
        let tail = std::mem::take(&mut self.client_tail);
        let follow = self.tell(Event::Refused(refusal, &tail), cx, out)?;
        self.follow(follow, cx, out)
    }

    fn read_client(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let Scratch { input, out } = scratch;
        let waited = !self.to_upstream.is_empty();
        if !self.flush_upstream(cx) {
            return Ok(false);
        }
        if waited {
            self.follow(Follow::Say(Event::Flushed), cx, out)?;
        }
        if self.client_is_dry || !self.wishes.from_client {
            return Ok(false);
        }
        match self.flush_client(cx) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(_) => return self.client_ended(cx, out),
        }
        let tail = self.client_tail.len();
        if self.wishes.need as usize > CHUNK / 2 || tail > CHUNK / 2 {
            return self.gather(cx, scratch);
        }
        input[..tail].copy_from_slice(&self.client_tail);
        let mut buffer = ReadBuf::new(&mut input[tail..]);
        let polled = Pin::new(&mut self.client).poll_read(cx, &mut buffer);
        let read = buffer.filled().len();
        let done = match polled {
            Poll::Pending => {
                self.client_is_dry = true;
                Ok(None)
            }
            Poll::Ready(Ok(())) if read > 0 => {
                self.bytes.0 += read as u64;
                self.client_tail = Vec::new();
                self.tell(Event::FromClient(&input[..tail + read]), cx, out).map(Some)
            }
            Poll::Ready(read) => return self.client_has_ended(&read, cx, out),
        };
        match done? {
            Some(Follow::Nothing) => Ok(true),
            Some(follow) => self.follow(follow, cx, out).map(|()| true),
            None => Ok(false),
        }
    }

    /// A message that must be there whole and is longer than a chunk: read it into memory of the session's own,
    /// which grows as the bytes come and not as they are announced.
    fn gather(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let Scratch { input, out } = scratch;
        let mut buffer = ReadBuf::new(input);
        match Pin::new(&mut self.client).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            Poll::Ready(read) => return self.client_has_ended(&read, cx, out),
        }
        let read = buffer.filled().len();
        self.bytes.0 += read as u64;
        self.client_tail.extend_from_slice(buffer.filled());
        if !self.gathered.get_or_insert_with(|| Box::new(self.gathering.enter())).add(read) {
            let message = "out of memory for messages that are not there whole";
            let refusal = Refusal::new(Fault::Client, SqlState::OUT_OF_MEMORY, message);
            let event = Event::Order { now: true, refusal: Box::new(refusal) };
            return self.follow(Follow::Say(event), cx, out).map(|()| true);
        }
        if self.client_tail.len() >= self.wishes.need as usize {
            self.follow(Follow::Client, cx, out)?;
        }
        Ok(true)
    }

    fn read_upstream(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let Scratch { input, out } = scratch;
        match self.flush_client(cx) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(_) => return self.client_ended(cx, out),
        }
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(false) };
        if self.upstream_is_dry || !self.wishes.from_upstream {
            return Ok(false);
        }
        let tail = self.upstream_tail.len();
        input[..tail].copy_from_slice(&self.upstream_tail);
        let mut buffer = ReadBuf::new(&mut input[tail..]);
        let polled = Pin::new(&mut lease.stream).poll_read(cx, &mut buffer);
        let read = buffer.filled().len();
        let done = match polled {
            Poll::Pending => {
                self.upstream_is_dry = true;
                Ok(None)
            }
            Poll::Ready(Ok(())) if read > 0 => {
                let event = Event::FromUpstream(&input[..tail + read]);
                self.tell(event, cx, out).map(Some)
            }
            Poll::Ready(end) => {
                let why = end.err().map(|error| error.to_string());
                Ok(Some(Follow::Say(Event::UpstreamEnded(Box::new(UpstreamEnd { why, partial: tail > 0 })))))
            }
        };
        match done? {
            Some(Follow::Nothing) => Ok(true),
            Some(follow) => self.follow(follow, cx, out).map(|()| true),
            None => Ok(false),
        }
    }

    /// True if nothing is left to be sent to the upstream.
    fn flush_upstream(&mut self, cx: &mut Context<'_>) -> bool {
        let Leasing::Held(lease) = &mut self.leasing else { return true };
        if self.is_on_ring && lease.stream.is_clogged(cx) {
            return false;
        }
        if self.to_upstream.is_empty() && !lease.stream.is_tls() {
            return true;
        }
        self.to_upstream.flush(&mut lease.stream, cx).unwrap_or(true)
    }

    /// True if nothing is left to be sent to the client.
    fn flush_client(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.is_on_ring && self.client.is_clogged(cx) {
            return Ok(false);
        }
        if self.to_client.is_empty() && !self.client.is_tls() {
            return Ok(true);
        }
        let before = self.to_client.len();
        let done = self.to_client.flush(&mut self.client, cx)?;
        if self.to_client.len() < before {
            self.timer.progress();
        }
        Ok(done)
    }

    /// Looks at the clock; true if that changed something.
    fn on_time(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        if !self.to_client.is_empty() || self.is_on_ring && self.client.is_clogged(cx) {
            let limit = self.timeouts.of_writing();
            return match self.timer.is_over(timing::Kind::Writing, limit, self.pool.control(), cx) {
                true => self.client_ended(cx, out),
                false => Ok(false),
            };
        }
        if self.farewell.is_some() && self.client.is_broken() {
            return self.client_ended(cx, out);
        }
        if let Some(farewell) = &mut self.farewell
            && farewell.knocks(self.pool.control(), cx)
        {
            return self.follow(Follow::Say(Event::Knock), cx, out).map(|()| true);
        }
        let phase = self.wishes.phase;
        let query_timeout = match &self.leasing {
            Leasing::Held(lease) => lease.query_timeout,
            _ => std::time::Duration::ZERO,
        };
        let limit = self.timeouts.of(phase, query_timeout);
        if !self.timer.is_over(phase.into(), limit.after, self.pool.control(), cx) {
            return Ok(false);
        }
        match limit.what {
            Overdue::Phase(Phase::Waiting { .. }) => {
                self.refuse_waiting(&waited_too_long(limit.after), cx, out)?;
            }
            what => self.follow(Follow::Say(Event::Overdue(what)), cx, out)?,
        }
        Ok(true)
    }
}

impl Future for Engine {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        this.orders.activity.is_seen();
        if this.ending.is_none() {
            let driven = SCRATCH.with_borrow_mut(|scratch| {
                if !this.attached && !this.attach(cx, &mut scratch.out)? {
                    return Ok(());
                }
                if !this.started {
                    this.start(cx, &mut scratch.out)?;
                }
                this.drive(cx, scratch)
            });
            match driven {
                Ok(()) => return Poll::Pending,
                Err(closing) => {
                    this.leave(&closing);
                    this.ending = Some(closing);
                }
            }
        }
        // The last words: as long as the client takes them, but not for long.
        let sent = match this.to_client.flush(&mut this.client, cx) {
            Ok(true) => Ok(!this.client.is_unsent(cx)),
            other => other,
        };
        if matches!(sent, Ok(false))
            && !this.timer.is_over(timing::Kind::Writing, timing::LAST_WORDS, this.pool.control(), cx)
        {
            return Poll::Pending;
        }
        let (cause, transactions) = match this.ending.take() {
            Some(closing) => (closing.cause, closing.transactions),
            None => (Cause::Client, 0),
        };
        if !matches!(cause, Cause::Client) {
            let _ = Pin::new(&mut this.client).poll_shutdown(cx);
        }
        Poll::Ready(End { cause, transactions, bytes: this.bytes })
    }
}
