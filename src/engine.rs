//! Drives the core of a session between the client's socket and the connections that it is lent.
//!
//! One future, polled as a whole. Bytes go through a scratch buffer of the thread; a session owns memory only for
//! what a full socket did not take, and for a message that is not there whole.

mod timing;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cancel::Slot;
use crate::pool::{
    Answer, Lease, Outcome, Pinned, Pool, Subscription, Ticket, not_reset, refusal_of, waited_too_long,
};
use crate::stats::Figure;
use crate::stream::{Reader, Stream};
use policy::config::file::PoolMode;
use relay::reset::Proof;
use relay::{Broken, Core, Gathered, Sink, Then};
pub use timing::Timeouts;
use timing::{Moment, Phase, Timer};
use wire::Severity;
use wire::error::{Fault, Refusal, SqlState};

/// How many connections may fail to take a session's settings before it is told.
const MAX_SETUPS: u32 = 3;
/// How long a connection may take to be reset before it is closed and another taken.
const MAX_RESET: Duration = Duration::from_secs(5);
/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// Buffers of a thread, used by one session after the other.
struct Scratch {
    input: Box<[u8]>,
    up: Vec<u8>,
    down: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; CHUNK].into_boxed_slice(),
        up: Vec::new(),
        down: Vec::new(),
    });
}

/// What others may tell a session to do.
#[derive(Debug, Default)]
pub struct Orders {
    order: Mutex<Option<Box<Order>>>,
    /// Of the session's task, which is the same for all its life.
    waker: OnceLock<Waker>,
    pending: AtomicBool,
    /// What can be seen of the session meanwhile.
    pub watch: Watch,
}

/// Whose an order is: what one has ordered, another does not take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderedBy {
    /// The configuration: its user does not go there any more.
    Route,
    /// An operator, or the end of the process.
    Operator,
}

/// An order to end.
#[derive(Debug, Clone)]
pub struct Order {
    /// Whose it is.
    pub by: OrderedBy,
    /// Now, or at the next idle point.
    pub now: bool,
    /// What the client is told.
    pub refusal: Refusal,
}

impl Orders {
    /// Gives an order; a later one replaces it, but "now" stays "now", and an operator's is not replaced by the configuration's.
    pub fn give(&self, order: Order) {
        let mut slot = self.order.lock();
        let now = order.now || slot.as_ref().is_some_and(|o| o.now);
        match &mut *slot {
            Some(known) if known.by == OrderedBy::Operator && order.by == OrderedBy::Route => known.now = now,
            _ => *slot = Some(Box::new(Order { now, ..order })),
        }
        drop(slot);
        self.pending.store(true, Ordering::Release);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Takes back what the configuration has ordered: the reason for it is gone. What an operator has ordered stays.
    pub fn take_back(&self) {
        let mut slot = self.order.lock();
        if slot.as_ref().is_some_and(|order| order.by == OrderedBy::Route) {
            *slot = None;
            self.pending.store(false, Ordering::Release);
        }
    }

    fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }
}

/// What can be seen of a session from outside, while it lives.
#[derive(Debug, Default)]
pub struct Watch {
    transactions: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Microseconds that it has waited for connections, all in all.
    waited: AtomicU64,
    prepared: AtomicU32,
    /// Why it keeps its connection: the place in [`Pin::ALL`](relay::Pin::ALL), from 1.
    pin: AtomicU8,
}

/// The figures of a [`Watch`] at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// How many have ended.
    pub transactions: u64,
    /// Bytes from the client and to it, as of the last of them.
    pub bytes: (u64, u64),
    /// How long it has waited for connections.
    pub waited: Duration,
    /// Its named prepared statements.
    pub prepared: u32,
    /// Why it keeps its connection.
    pub pin: Option<relay::Pin>,
}

impl Watch {
    /// What can be seen now.
    pub fn see(&self) -> Seen {
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let pin = usize::from(self.pin.load(Ordering::Relaxed));
        Seen {
            transactions: get(&self.transactions),
            bytes: (get(&self.received), get(&self.sent)),
            waited: Duration::from_micros(get(&self.waited)),
            prepared: self.prepared.load(Ordering::Relaxed),
            pin: pin.checked_sub(1).and_then(|at| relay::Pin::ALL.get(at)).copied(),
        }
    }

    fn pin_is(&self, pin: Option<relay::Pin>) {
        let at = pin.and_then(|pin| relay::Pin::ALL.iter().position(|known| *known == pin));
        let at = at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0);
        self.pin.store(at, Ordering::Relaxed);
    }
}

/// How a session ended.
#[derive(Debug)]
pub enum Cause {
    /// `Terminate`, or its socket ended.
    Client,
    /// pgusher refused to go on; the client was told, if that was possible.
    Refused(Refusal),
    /// The upstream ended its connection, in its own words.
    Upstream,
}

/// What a session was, when it is over.
#[derive(Debug)]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// How many transactions.
    pub transactions: u64,
    /// Bytes from the client and to it.
    pub bytes: (u64, u64),
}

enum Leasing {
    None,
    Waiting(Arc<Ticket>),
    Held(Lease),
}

/// What a full socket did not take.
#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

/// What an engine is started with.
pub struct Parts {
    /// The client.
    pub client: Reader,
    /// Its core.
    pub core: Core,
    /// Where its connections come from.
    pub pool: Arc<Pool>,
    /// In session mode: the connection.
    pub lease: Option<Lease>,
    /// For cancels.
    pub slot: Arc<Slot>,
    /// For orders.
    pub orders: Arc<Orders>,
    /// Changed by a reload.
    pub timeouts: Arc<Timeouts>,
}

/// One session, from its first query to its end.
pub struct Engine {
    client: Stream,
    core: Core,
    pool: Arc<Pool>,
    leasing: Leasing,
    slot: Arc<Slot>,
    orders: Arc<Orders>,
    timeouts: Arc<Timeouts>,
    /// When the transaction under way began, and since when the upstream owes an answer.
    began: Option<Moment>,
    asked: Option<Moment>,
    /// Read and not dealt with.
    client_tail: Vec<u8>,
    upstream_tail: Vec<u8>,
    /// How much of the client's tail must be there before it is looked at again.
    need: usize,
    to_client: Backlog,
    to_upstream: Backlog,
    timer: Timer,
    bytes: (u64, u64),
    /// The client said goodbye while it was owed answers.
    leaving: bool,
    ending: Option<Box<Cause>>,
    started: bool,
    /// Found dry since the task was last woken: the runtime will say when that changes, so it need not be asked.
    client_is_dry: bool,
    upstream_is_dry: bool,
    setups_failed: u32,
    /// Since when the connection is being reset.
    reset_since: Option<Moment>,
    /// What the client sent last depends on an answer that has still to come.
    held: bool,
    /// Its connection is kept.
    pinned: Option<Pinned>,
    /// For sessions that listen.
    subscription: Option<Box<Subscription>>,
    /// What is counted of a long message of which the rest is waited for.
    gathered: Option<Box<Gathered>>,
}

/// Whether a step got anywhere.
type Progress = Result<bool, Cause>;

impl Engine {
    /// Ready to be polled, by whatever runtime: the client's socket is registered there then.
    ///
    /// # Errors
    /// The client's socket was lost.
    pub fn new(mut parts: Parts) -> io::Result<Self> {
        let leasing = match parts.lease {
            Some(lease) => {
                parts.core.knows(&parts.pool.catalog());
                parts.slot.is_lent(lease.target.clone());
                Leasing::Held(lease)
            }
            None => Leasing::None,
        };
        let (mut client, ahead) = parts.client.into_parts();
        client.unregister()?;
        Ok(Self {
            client,
            core: parts.core,
            pool: parts.pool,
            leasing,
            slot: parts.slot,
            orders: parts.orders,
            timeouts: parts.timeouts,
            began: None,
            asked: None,
            client_tail: ahead,
            upstream_tail: Vec::new(),
            need: 0,
            to_client: Backlog::default(),
            to_upstream: Backlog::default(),
            timer: Timer::default(),
            bytes: (0, 0),
            leaving: false,
            ending: None,
            started: false,
            client_is_dry: false,
            upstream_is_dry: false,
            setups_failed: 0,
            reset_since: None,
            held: false,
            pinned: None,
            subscription: None,
            gathered: None,
        })
    }

    /// The first thing that is done on the runtime that relays: what the client sent with its login waits already.
    fn start(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Cause> {
        self.started = true;
        let _ = self.orders.waker.set(cx.waker().clone());
        self.client.register().map_err(|_| Cause::Client)?;
        // What was sent ahead of an order to go has not begun.
        if self.orders.is_pending()
            && let Some(order) = self.orders.order.lock().clone()
        {
            return Err(Cause::Refused(order.refusal));
        }
        self.take_in_tail(cx, scratch)
    }

    /// Goes on until nothing can be done without waiting.
    fn drive(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Cause> {
        (self.client_is_dry, self.upstream_is_dry) = (false, false);
        loop {
            self.obey()?;
            let mut progress = self.take_turn(cx, scratch)?;
            progress |= self.client_to_upstream(cx, scratch)?;
            progress |= self.upstream_to_client(cx, scratch)?;
            progress |= self.hand_over(cx, scratch)?;
            progress |= self.deliver_notifications(cx)?;
            if self.leaving && (self.core.is_clients_turn() || self.core.awaits_client()) {
                return Err(Cause::Client);
            }
            if !progress && !self.on_time(cx, scratch)? {
                return Ok(());
            }
        }
    }

    fn obey(&self) -> Result<(), Cause> {
        if !self.orders.is_pending() {
            return Ok(());
        }
        let order = self.orders.order.lock().clone();
        match order {
            Some(order) if order.now || self.is_at_idle_point() => Err(Cause::Refused(order.refusal)),
            _ => Ok(()),
        }
    }

    /// Between transactions, with nothing owed.
    fn is_at_idle_point(&self) -> bool {
        match &self.leasing {
            // What waits for a connection has not begun.
            Leasing::None | Leasing::Waiting(_) => true,
            Leasing::Held(_) => self.core.is_idle(),
        }
    }

    /// A session that waits: has its turn come?
    fn take_turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let Leasing::Waiting(ticket) = &self.leasing else { return Ok(false) };
        match ticket.poll(cx) {
            Poll::Pending if self.client.has_ended(cx) => Err(Cause::Client),
            Poll::Pending => Ok(false),
            Poll::Ready(Outcome::Granted(lease)) => {
                let waited = micros(ticket.since.elapsed());
                self.pool.stats().observe(Figure::WaitTime, waited);
                self.orders.watch.waited.fetch_add(waited, Ordering::Relaxed);
                self.hold(lease);
                if !self.set_up(cx)? {
                    self.take_in_tail(cx, scratch)?;
                }
                Ok(true)
            }
            Poll::Ready(Outcome::Refused(refusal)) => {
                self.refuse_waiting(&refusal, cx, scratch)?;
                Ok(true)
            }
        }
    }

    /// There is no connection for what the client asked: it is told, and may ask again.
    fn refuse_waiting(
        &mut self,
        refusal: &Refusal,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        if let Leasing::Waiting(ticket) = std::mem::replace(&mut self.leasing, Leasing::None) {
            self.pool.abandon(&ticket);
        }
        self.slot.has_nothing();
        let connection = self.pool.connection();
        let refusal =
            refusal.clone().in_environment(connection.environment.as_str(), connection.name.as_str());
        let mut answer = Vec::new();
        self.core.refuse(&self.client_tail, &refusal, &mut answer);
        self.send_to_client(&answer, cx)?;
        self.take_in_tail(cx, scratch)
    }

    fn hold(&mut self, lease: Lease) {
        self.core.knows(&self.pool.catalog());
        self.pool.stats().add(Figure::Assignments, 1);
        self.leasing = Leasing::Held(lease);
        self.upstream_is_dry = false;
    }

    /// Has the connection that was just lent reset, if another user had it, and gives it the session's settings; true if
    /// that must be waited for. Until it is done nothing of the client's is sent, so that nothing of it can run without
    /// them, and there is nothing to cancel.
    fn set_up(&mut self, cx: &mut Context<'_>) -> Progress {
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(false) };
        let mut setup = Vec::new();
        if self.core.mode() == PoolMode::Transaction && lease.must_reset_for(self.core.user()) {
            let random = || getrandom::u64().map_err(|_| Cause::Refused(no_random()));
            self.core.reset(random()?, Proof::new(random()?), &mut setup);
            self.pool.stats().isolated.hand_overs.fetch_add(1, Ordering::Relaxed);
            self.reset_since = Some(Moment::now());
        } else {
            lease.serve(self.core.user());
            self.core.attach(&mut lease.state, &mut setup);
        }
        if setup.is_empty() {
            self.slot.is_lent(lease.target.clone());
            return Ok(false);
        }
        self.send_to_upstream(&setup, cx)?;
        Ok(true)
    }

    /// Deals with what was read before a connection was there.
    fn take_in_tail(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Cause> {
        let tail = std::mem::take(&mut self.client_tail);
        self.take_in(&tail, cx, &mut scratch.up, &mut scratch.down)?;
        if self.client_tail.len() <= CHUNK {
            // It was kept until now, also while it had to wait for a connection.
            self.gathered = None;
        }
        self.count();
        Ok(())
    }

    fn client_to_upstream(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        if self.client_is_dry {
            return Ok(false);
        }
        let waits = self.held || self.leaving || matches!(self.leasing, Leasing::Waiting(_));
        if !self.flush_upstream(cx)? || waits {
            return Ok(false);
        }
        if !self.flush_client(cx)? || self.core.is_full() || self.core.holds_client() {
            return Ok(false);
        }
        let tail = self.client_tail.len();
        if self.need > CHUNK / 2 || tail > CHUNK / 2 {
            return self.gather(cx, scratch);
        }
        scratch.input[..tail].copy_from_slice(&self.client_tail);
        let mut buffer = ReadBuf::new(&mut scratch.input[tail..]);
        match Pin::new(&mut self.client).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                self.client_is_dry = true;
                return Ok(false);
            }
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            Poll::Ready(_) => return Err(Cause::Client),
        }
        let read = buffer.filled().len();
        self.bytes.0 += read as u64;
        self.client_tail = Vec::new();
        let Scratch { input, up, down } = scratch;
        self.take_in(&input[..tail + read], cx, up, down)?;
        self.settle_lease(cx)?;
        Ok(true)
    }

    /// A message that must be there whole and is longer than a chunk: read it into memory of the session's own,
    /// which grows as the bytes come and not as they are announced.
    fn gather(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let mut buffer = ReadBuf::new(&mut scratch.input);
        match Pin::new(&mut self.client).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            Poll::Ready(_) => return Err(Cause::Client),
        }
        self.bytes.0 += buffer.filled().len() as u64;
        self.client_tail.extend_from_slice(buffer.filled());
        let all = self.core.gathered();
        if !self.gathered.get_or_insert_with(|| Box::new(all.enter())).add(buffer.filled().len()) {
            let message = "out of memory for messages that are not there whole";
            return Err(Cause::Refused(Refusal::new(Fault::Client, SqlState::OUT_OF_MEMORY, message)));
        }
        if self.client_tail.len() >= self.need {
            self.take_in_tail(cx, scratch)?;
        }
        Ok(true)
    }

    /// Gives bytes of the client's to the core, and what comes of them to the sockets.
    fn take_in(
        &mut self,
        input: &[u8],
        cx: &mut Context<'_>,
        up_copy: &mut Vec<u8>,
        down: &mut Vec<u8>,
    ) -> Result<(), Cause> {
        let mut rest = input;
        loop {
            let mut up = Sink::new(rest, up_copy);
            down.clear();
            let taken = match &mut self.leasing {
                Leasing::Held(lease) => self.core.from_client(rest, Some(&mut lease.state), &mut up, down),
                _ => self.core.from_client(rest, None, &mut up, down),
            };
            let taken = taken.map_err(Cause::Refused)?;
            if !down.is_empty() {
                self.send_to_client(down, cx)?;
            }
            if !up.bytes().is_empty() {
                self.send_to_upstream(up.bytes(), cx)?;
            }
            rest = &rest[taken.consumed..];
            self.need = 0;
            match taken.then {
                Then::Terminate => {
                    self.leaving = true;
                    return Ok(());
                }
                Then::Need(length) => self.need = length,
                Then::More => {}
                Then::Hold => self.held = true,
                Then::Lease => match self.pool.try_lend(Some(self.core.user())) {
                    Some(lease) => {
                        self.hold(lease);
                        if !self.set_up(cx)? {
                            continue;
                        }
                    }
                    None => {
                        let ticket = self.pool.wait(self.core.user());
                        self.slot.waits(ticket.clone());
                        self.leasing = Leasing::Waiting(ticket);
                    }
                },
            }
            self.client_tail.extend_from_slice(rest);
            return Ok(());
        }
    }

    fn upstream_to_client(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        if !self.flush_client(cx)? {
            return Ok(false);
        }
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(false) };
        if let Some(recall) = self.core.pausing() {
            return self.pause(recall, cx, scratch);
        }
        if self.upstream_is_dry {
            return Ok(false);
        }
        let input = &mut scratch.input;
        let tail = self.upstream_tail.len();
        input[..tail].copy_from_slice(&self.upstream_tail);
        let mut buffer = ReadBuf::new(&mut input[tail..]);
        match Pin::new(&mut lease.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                self.upstream_is_dry = true;
                return Ok(false);
            }
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            // Nothing of the client's was sent on it: it need not know.
            Poll::Ready(_) if self.core.is_setting_up() => {
                self.setup_failed(None, cx, scratch)?;
                return Ok(true);
            }
            Poll::Ready(end) => return Err(self.upstream_lost(end.err())),
        }
        let length = tail + buffer.filled().len();
        self.take_in_answers(length, cx, scratch)
    }

    /// Gives bytes of the upstream's to the core, so many as are in the scratch buffer.
    fn take_in_answers(&mut self, length: usize, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(false) };
        let Scratch { input, down, .. } = scratch;
        let input = &input[..length];
        let mut sink = Sink::new(input, down);
        let (was_setting_up, was_surveying) = (self.core.is_setting_up(), self.core.is_surveying());
        let was_resetting = self.core.is_resetting();
        let dealt = self.core.from_upstream(input, &mut lease.state, &mut sink);
        if let Ok(consumed) = dealt
            && (consumed < input.len() || !self.upstream_tail.is_empty())
        {
            self.upstream_tail = input[consumed..].to_vec();
        }
        if !sink.bytes().is_empty() {
            self.send_to_client(sink.bytes(), cx)?;
        }
        match dealt {
            Ok(_) => {}
            Err(Broken::Setup(body) | Broken::Reset(body)) => {
                self.setup_failed(Some(body), cx, scratch)?;
                return Ok(true);
            }
            Err(broken) => return Err(self.upstream_broken(broken)),
        }
        if was_setting_up {
            if was_resetting && !self.core.is_resetting() {
                self.count_reset();
                if self.set_up(cx)? {
                    return Ok(true);
                }
            }
            if !self.core.is_setting_up() {
                self.setups_failed = 0;
                self.held = false;
                self.is_lent();
                self.take_in_tail(cx, scratch)?;
                self.settle_lease(cx)?;
            }
            return Ok(true);
        }
        let replay = match &mut self.leasing {
            Leasing::Held(lease) => self.core.replay(&mut lease.state),
            _ => None,
        };
        if let Some(mut batch) = replay {
            batch.append(&mut self.client_tail);
            self.client_tail = batch;
            self.held = true;
        }
        if self.subscription.is_some() && was_surveying && !self.core.has_channels() {
            self.subscription = None;
        }
        self.take_in_held(cx, scratch)?;
        if was_surveying && !self.core.holds_client() {
            self.is_lent();
        }
        Ok(true)
    }

    /// From here on the connection delivers what the listener did: when all that is sent that came there before.
    fn pause(&mut self, recall: u64, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let Some(subscription) = &self.subscription else { return Ok(false) };
        if !subscription.has_paused(recall).map_err(Cause::Refused)? {
            return Ok(false);
        }
        self.send_notifications(cx)?;
        self.core.paused();
        let tail = std::mem::take(&mut self.upstream_tail);
        scratch.input[..tail.len()].copy_from_slice(&tail);
        self.take_in_answers(tail.len(), cx, scratch)?;
        Ok(true)
    }

    /// Goes on with handing the session's channels over to the listener.
    fn hand_over(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        if !self.core.is_handing_over() {
            return Ok(false);
        }
        if let Some(asked) = self.core.ask_listener() {
            if self.subscription.is_none() {
                let subscription = self.pool.subscribe(self.core.id(), cx.waker().clone());
                self.subscription = subscription.map(Box::new);
            }
            match &self.subscription {
                Some(subscription) => subscription.ask(asked),
                None => return self.keep_channels(cx, scratch),
            }
        }
        let mut up = Vec::new();
        let answer = match &self.subscription {
            Some(subscription) if self.core.awaits_listener() => subscription.answer(),
            _ => None,
        };
        match (answer, &mut self.leasing) {
            (Some(Ok(Answer::Listening(mark))), Leasing::Held(lease)) => {
                if !self.core.mark(mark, &mut lease.state, &mut up) {
                    return self.keep_channels(cx, scratch);
                }
            }
            (Some(Ok(Answer::Settled(channels))), _) => {
                if channels.is_empty() {
                    self.subscription = None;
                }
                self.core.carry_channels(channels);
                self.handed_over(cx, scratch)?;
                return Ok(true);
            }
            (Some(Err(refusal)), _) if self.core.has_carried_channels() || self.core.is_settling() => {
                return Err(Cause::Refused(refusal));
            }
            (Some(Err(_)), _) => return self.keep_channels(cx, scratch),
            _ => {
                if !self.core.unlisten(&mut up) {
                    return Ok(false);
                }
            }
        }
        self.send_to_upstream(&up, cx)?;
        Ok(true)
    }

    /// There is no listener: the session keeps its connection.
    fn keep_channels(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        self.subscription = None;
        self.core.keep_channels();
        self.handed_over(cx, scratch)?;
        Ok(true)
    }

    fn handed_over(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Cause> {
        self.is_lent();
        self.take_in_held(cx, scratch)
    }

    /// What depended on an answer is shown again, now that some have come; not before the startup values are back that
    /// it needs.
    fn take_in_held(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Cause> {
        if self.core.wants_setup() {
            self.slot.has_nothing();
            if self.set_up(cx)? {
                return Ok(());
            }
        }
        if self.held && self.core.may_go_on() {
            self.held = false;
            self.take_in_tail(cx, scratch)?;
        }
        self.settle_lease(cx)
    }

    /// Notifications go out between transactions.
    fn deliver_notifications(&mut self, cx: &mut Context<'_>) -> Progress {
        if !self.subscription.as_ref().is_some_and(|s| s.is_pending()) {
            return Ok(false);
        }
        if !self.core.takes_notifications() || self.core.is_handing_over() || !self.to_client.is_empty() {
            return Ok(false);
        }
        self.send_notifications(cx)?;
        Ok(true)
    }

    fn send_notifications(&mut self, cx: &mut Context<'_>) -> Result<(), Cause> {
        let Some(subscription) = &self.subscription else { return Ok(()) };
        let mut out = Vec::new();
        for message in subscription.take().map_err(Cause::Refused)? {
            if !self.core.can_be_told(&message) {
                return Err(Cause::Refused(untranslatable()));
            }
            out.extend_from_slice(&message);
        }
        self.send_to_client(&out, cx)
    }

    fn is_lent(&self) {
        if let Leasing::Held(lease) = &self.leasing {
            self.slot.is_lent(lease.target.clone());
        }
    }

    fn count_reset(&mut self) {
        self.timer.progress();
        if let Some(since) = self.reset_since.take() {
            self.pool.stats().isolated.reset(Duration::from_micros(Moment::now().micros_since(since)));
        }
    }

    /// The connection could not be reset, or did not take the session's settings, perhaps because of what it had from
    /// another session (a short `statement_timeout`), or has ended: another one is tried before the client hears of it.
    fn setup_failed(
        &mut self,
        body: Option<Vec<u8>>,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        let resetting = self.core.is_resetting();
        self.setups_failed = self.setups_failed.saturating_add(1);
        let most = if resetting { self.pool.most_resets() } else { MAX_SETUPS };
        if resetting {
            self.reset_since = None;
            self.pool.stats().isolated.failed();
        }
        if self.setups_failed >= most || self.core.pin().is_some() {
            return Err(match body {
                _ if resetting => self.upstream_broken(Broken::Reset(Vec::new())),
                Some(body) => self.upstream_broken(Broken::Setup(body)),
                None => self.upstream_lost(None),
            });
        }
        // The next one has its own time.
        self.timer.progress();
        self.core.abandon_setup();
        self.upstream_tail = Vec::new();
        self.to_upstream = Backlog::default();
        if let Leasing::Held(lease) = std::mem::replace(&mut self.leasing, Leasing::None) {
            lease.discard(resetting);
        }
        self.take_in_tail(cx, scratch)
    }

    /// The connection goes back, if nothing is owed on it and nothing is left on it; where that is not known, it is
    /// asked first.
    fn settle_lease(&mut self, cx: &mut Context<'_>) -> Result<(), Cause> {
        if self.core.pin().is_some() != self.pinned.is_some() {
            self.count_pin()?;
        }
        self.count();
        if let Some(defined) = self.core.has_defined() {
            self.pool.outdate_catalog(&defined);
        }
        if (self.pinned.is_some() || self.core.mode() == PoolMode::Session) && self.core.is_idle() {
            self.core.knows(&self.pool.catalog());
        }
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(()) };
        if !self.to_upstream.is_empty() || self.core.is_fatal() {
            return Ok(());
        }
        if self.core.may_release() {
            self.release();
        } else if self.core.wants_survey() {
            let mut survey = Vec::new();
            let random = getrandom::u64().map_err(|_| Cause::Refused(no_random()))?;
            self.core.survey(Proof::new(random), &mut lease.state, &mut survey);
            // Nothing of the client's runs: there is nothing to cancel.
            self.slot.has_nothing();
            self.send_to_upstream(&survey, cx)?;
        }
        Ok(())
    }

    /// Something was asked, or answered: what that means for the pool's figures. The clock is read when a transaction
    /// begins and when it ends, and around each query within.
    fn count(&mut self) {
        if !matches!(self.leasing, Leasing::Held(_)) {
            return;
        }
        if !self.core.is_clients_turn() {
            if self.asked.is_none() {
                let now = Moment::now();
                self.asked = Some(now);
                self.began.get_or_insert(now);
            }
            return;
        }
        let Some(asked) = self.asked.take() else { return };
        let now = Moment::now();
        let stats = self.pool.stats();
        stats.observe(Figure::QueryTime, now.micros_since(asked));
        if self.core.transactions() == self.orders.watch.transactions.load(Ordering::Relaxed) {
            return;
        }
        if let Some(began) = self.began.take() {
            stats.observe(Figure::TransactionTime, now.micros_since(began));
        }
        self.count_all();
    }

    /// What was counted goes to the pool, and to whoever looks: who looked last knows what was counted already.
    fn count_all(&mut self) {
        let counts = self.core.take_counts();
        let (stats, watch) = (self.pool.stats(), &self.orders.watch);
        let grown = |figure: &AtomicU64, now: u64| {
            let before = figure.load(Ordering::Relaxed);
            figure.store(now, Ordering::Relaxed);
            now - before
        };
        stats.add(Figure::Transactions, grown(&watch.transactions, self.core.transactions()));
        stats.add(Figure::Received, grown(&watch.received, self.bytes.0));
        stats.add(Figure::Sent, grown(&watch.sent, self.bytes.1));
        stats.add(Figure::Queries, counts.queries.into());
        stats.add(Figure::ClientParses, counts.client_parses.into());
        stats.add(Figure::ServerParses, counts.server_parses.into());
        stats.add(Figure::Binds, counts.binds.into());
        let prepared = u32::try_from(self.core.prepared()).unwrap_or(u32::MAX);
        watch.prepared.store(prepared, Ordering::Relaxed);
    }

    /// The session begins to keep its connection, or does so no longer.
    fn count_pin(&mut self) -> Result<(), Cause> {
        self.pinned = None;
        self.orders.watch.pin_is(self.core.pin());
        let Some(reason) = self.core.pin() else { return Ok(()) };
        self.pinned = self.pool.pin();
        if self.pinned.is_some() {
            return Ok(());
        }
        let connection = self.pool.connection();
        let message = "too many sessions keep their upstream connection";
        let refusal = Refusal::new(Fault::Client, SqlState::TOO_MANY_CONNECTIONS, message)
            .detail(format!("This one would keep it because of: {}. max_pinned is reached.", reason.word()))
            .hint("End such sessions, or what they keep the connection for; or use session mode.")
            .in_environment(connection.environment.as_str(), connection.name.as_str());
        Err(Cause::Refused(refusal))
    }

    fn release(&mut self) {
        if let Leasing::Held(mut lease) = std::mem::replace(&mut self.leasing, Leasing::None) {
            self.core.detach(&mut lease.state);
            self.slot.has_nothing();
            if self.upstream_tail.is_empty() {
                lease.release();
            } else {
                // Half of something unasked: the other half must not meet another client.
                self.upstream_tail = Vec::new();
                lease.discard(false);
            }
        }
    }

    /// The upstream's connection has ended: in its own words if it sent any.
    fn upstream_lost(&mut self, error: Option<io::Error>) -> Cause {
        if self.core.is_fatal() || !self.core.between_messages() || !self.upstream_tail.is_empty() {
            return Cause::Upstream;
        }
        let connection = self.pool.connection();
        let why = error.map_or_else(|| "the server closed it".to_owned(), |e| e.to_string());
        Cause::Refused(
            Refusal::new(
                Fault::Upstream,
                SqlState::CONNECTION_FAILURE,
                "server closed the connection unexpectedly",
            )
            .detail(format!("The upstream connection was lost: {why}."))
            .in_environment(connection.environment.as_str(), connection.name.as_str()),
        )
    }

    fn upstream_broken(&mut self, broken: Broken) -> Cause {
        let connection = self.pool.connection();
        let refusal = match broken {
            Broken::Setup(body) => refusal_of(&body),
            Broken::Reset(_) => not_reset(),
            Broken::Desync(what) => {
                tracing::warn!(connection = %connection.name, %what, "the upstream broke the protocol");
                Refusal::new(
                    Fault::Upstream,
                    SqlState::PROTOCOL_VIOLATION,
                    "the upstream server broke the protocol",
                )
            }
        };
        Cause::Refused(refusal.in_environment(connection.environment.as_str(), connection.name.as_str()))
    }

    fn send_to_client(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Cause> {
        self.bytes.1 += bytes.len() as u64;
        send(&mut self.client, bytes, &mut self.to_client, cx).map_err(|_| Cause::Client)
    }

    fn send_to_upstream(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Cause> {
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(()) };
        if send(&mut lease.stream, bytes, &mut self.to_upstream, cx).is_err() {
            // What it said before it ended is still to be read, and says more than the failed write.
            self.to_upstream = Backlog::default();
        }
        Ok(())
    }

    /// True if nothing is left to be sent to the upstream.
    fn flush_upstream(&mut self, cx: &mut Context<'_>) -> Progress {
        let Leasing::Held(lease) = &mut self.leasing else { return Ok(true) };
        if self.to_upstream.is_empty() && !lease.stream.is_tls() {
            return Ok(true);
        }
        Ok(flush(&mut lease.stream, &mut self.to_upstream, cx).unwrap_or(true))
    }

    /// True if nothing is left to be sent to the client.
    fn flush_client(&mut self, cx: &mut Context<'_>) -> Progress {
        if self.to_client.is_empty() && !self.client.is_tls() {
            return Ok(true);
        }
        let before = self.to_client.bytes.len() - self.to_client.sent;
        let done = flush(&mut self.client, &mut self.to_client, cx).map_err(|_| Cause::Client)?;
        if self.to_client.bytes.len() - self.to_client.sent < before {
            self.timer.progress();
        }
        Ok(done)
    }

    /// What the session is doing, for the clock.
    fn phase(&self) -> Phase {
        match &self.leasing {
            _ if !self.to_client.is_empty() => Phase::Writing,
            Leasing::Waiting(_) => Phase::Waiting,
            Leasing::None => Phase::Idle,
            Leasing::Held(_) if self.core.is_idle() => Phase::Idle,
            Leasing::Held(_) if self.core.is_clients_turn() => Phase::IdleInTransaction,
            Leasing::Held(_) => Phase::Querying(self.core.transactions()),
        }
    }

    /// Looks at the clock; true if that changed something.
    fn on_time(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Progress {
        let phase = self.phase();
        let limit = match (&self.leasing, phase) {
            (_, Phase::Querying(_)) if self.core.is_resetting() => MAX_RESET,
            (Leasing::Held(lease), Phase::Querying(_)) => {
                timing::of_query(lease.query_timeout, self.timer.strikes(phase))
            }
            (_, Phase::Waiting)
                if self.timer.strikes(phase) == 0 && !self.timeouts.until_notice().is_zero() =>
            {
                self.timeouts.until_notice()
            }
            _ => self.timeouts.of(phase),
        };
        if !self.timer.is_over(phase, limit, self.pool.control(), cx) {
            return Ok(false);
        }
        let fatal = |state, message| Err(Cause::Refused(Refusal::new(Fault::Client, state, message)));
        match phase {
            Phase::Writing => Err(Cause::Client),
            Phase::Idle => {
                fatal(SqlState::IDLE_SESSION_TIMEOUT, "terminating connection due to client_idle_timeout")
            }
            Phase::IdleInTransaction => fatal(
                SqlState::IDLE_IN_TRANSACTION_TIMEOUT,
                "terminating connection due to idle_transaction_timeout",
            ),
            Phase::Waiting if self.timer.strikes(phase) == 0 && !self.timeouts.until_notice().is_zero() => {
                self.timer.strike();
                self.tell_what_it_waits_for(cx)?;
                Ok(true)
            }
            Phase::Waiting => {
                self.refuse_waiting(&waited_too_long(limit), cx, scratch)?;
                Ok(true)
            }
            Phase::Querying(_) if self.core.is_resetting() => {
                self.setup_failed(None, cx, scratch)?;
                Ok(true)
            }
            Phase::Querying(_) => self.query_overdue(),
        }
    }

    fn tell_what_it_waits_for(&mut self, cx: &mut Context<'_>) -> Result<(), Cause> {
        let connection = self.pool.connection();
        let mut notice = Vec::new();
        let text = format!(
            "waiting for one of the {} connections to environment \"{}\" (connection \"{}\")",
            connection.pool_size, connection.environment, connection.name
        );
        wire::notice_response(&mut notice, &text);
        self.send_to_client(&notice, cx)
    }

    /// The upstream should have ended the statement itself: cancel it, and if that does not help, give it up.
    fn query_overdue(&mut self) -> Progress {
        let Leasing::Held(lease) = &self.leasing else { return Ok(false) };
        if self.timer.strike() > 1 {
            return Err(self.upstream_lost(Some(io::ErrorKind::TimedOut.into())));
        }
        let target = lease.target.clone();
        let fence = target.fence();
        self.pool.spawn(async move {
            let _ = target.cancel().await;
            drop(fence);
        });
        Ok(true)
    }

    /// Tells the client why its session ends, where a message can be put; then what is left is sent.
    fn say_goodbye(&mut self, cause: &Cause, cx: &mut Context<'_>) {
        if let Cause::Refused(refusal) = cause
            && self.core.between_messages()
        {
            let mut error = Vec::new();
            wire::error_response(&mut error, Severity::Fatal, refusal);
            let _ = self.send_to_client(&error, cx);
        }
        self.timer.progress();
    }

    /// Ends with the connection given back, cleaned or closed.
    fn leave_upstream(&mut self) {
        self.count_all();
        self.slot.has_nothing();
        self.pinned = None;
        match std::mem::replace(&mut self.leasing, Leasing::None) {
            Leasing::None => {}
            Leasing::Waiting(ticket) => self.pool.abandon(&ticket),
            Leasing::Held(lease) => {
                let clean = self.core.is_cleanable()
                    && self.to_upstream.is_empty()
                    && self.upstream_tail.is_empty()
                    && !self.core.is_fatal();
                if self.core.mode() == PoolMode::Session && clean {
                    self.pool.spawn(lease.clean());
                } else {
                    lease.discard(self.core.may_be_busy() && !self.core.is_fatal());
                }
            }
        }
    }
}

fn no_random() -> Refusal {
    Refusal::new(Fault::Ours, SqlState::INTERNAL, "no random bytes")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn untranslatable() -> Refusal {
    let message = "a notification cannot be told in this session's client_encoding";
    Refusal::new(Fault::Client, SqlState::UNTRANSLATABLE_CHARACTER, message)
        .hint("LISTEN after client_encoding is set, or leave it as the server has it.")
}

/// Sends what the socket takes, and keeps the rest. Behind a backlog, all of it is kept.
fn send(stream: &mut Stream, bytes: &[u8], backlog: &mut Backlog, cx: &mut Context<'_>) -> io::Result<()> {
    let mut rest = bytes;
    while backlog.is_empty() && !rest.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, rest) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(sent)) => rest = &rest[sent..],
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    backlog.push(rest);
    if stream.is_tls()
        && let Poll::Ready(flushed) = Pin::new(stream).poll_flush(cx)
    {
        return flushed;
    }
    Ok(())
}

/// Sends what was kept; true if nothing is left.
fn flush(stream: &mut Stream, backlog: &mut Backlog, cx: &mut Context<'_>) -> io::Result<bool> {
    while backlog.sent < backlog.bytes.len() {
        match Pin::new(&mut *stream).poll_write(cx, &backlog.bytes[backlog.sent..]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(sent)) => backlog.sent += sent,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(false),
        }
    }
    if !backlog.bytes.is_empty() {
        *backlog = Backlog::default();
    }
    if stream.wants_flush() {
        return Ok(Pin::new(stream).poll_flush(cx)?.is_ready());
    }
    Ok(true)
}

impl Future for Engine {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        if this.ending.is_none() {
            let driven = SCRATCH.with_borrow_mut(|scratch| {
                if !this.started {
                    this.start(cx, scratch)?;
                }
                this.drive(cx, scratch)
            });
            match driven {
                Ok(()) => return Poll::Pending,
                Err(cause) => {
                    this.say_goodbye(&cause, cx);
                    this.leave_upstream();
                    this.ending = Some(Box::new(cause));
                }
            }
        }
        // The last words: as long as the client takes them, but not for long.
        let sent = flush(&mut this.client, &mut this.to_client, cx);
        if matches!(sent, Ok(false))
            && !this.timer.is_over(Phase::Writing, timing::LAST_WORDS, this.pool.control(), cx)
        {
            return Poll::Pending;
        }
        if !matches!(this.ending.as_deref(), Some(Cause::Client)) {
            let _ = Pin::new(&mut this.client).poll_shutdown(cx);
        }
        let cause = this.ending.take().map_or(Cause::Client, |cause| *cause);
        Poll::Ready(End { cause, transactions: this.core.transactions(), bytes: this.bytes })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.slot.has_nothing();
        if let Leasing::Waiting(ticket) = &self.leasing {
            self.pool.abandon(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(by: OrderedBy, now: bool) -> Order {
        Order { by, now, refusal: no_random() }
    }

    fn held(orders: &Orders) -> Option<(OrderedBy, bool)> {
        assert_eq!(orders.is_pending(), orders.order.lock().is_some());
        orders.order.lock().as_ref().map(|order| (order.by, order.now))
    }

    #[test]
    fn what_an_operator_has_ordered_the_configuration_does_not_take_back() {
        use OrderedBy::{Operator, Route};
        let orders = Orders::default();
        orders.give(order(Route, false));
        orders.take_back();
        assert_eq!(held(&orders), None);
        // In whichever order they come, and "now" stays.
        for (first, second) in [(Route, Operator), (Operator, Route)] {
            let orders = Orders::default();
            orders.give(order(first, true));
            orders.give(order(second, false));
            orders.take_back();
            assert_eq!(held(&orders), Some((Operator, true)), "{first:?}, then {second:?}");
        }
    }
}
