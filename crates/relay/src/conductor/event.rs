//! What can happen to a session, and what it is decided with.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::{Phase, Statistics};
use crate::{BackendState, Catalog, Mark, Reached};
use wire::error::Refusal;

/// What happened. Small, as there are several for each transaction: what is rare is in a box.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes of the client's: those that were shown before and not consumed, and new ones behind them.
    FromClient(&'a [u8]),
    /// Bytes of the upstream's, likewise.
    FromUpstream(&'a [u8]),
    /// A connection was lent, in this condition; with the client's bytes that wait for it.
    Lent(Condition, &'a [u8]),
    /// There is no connection to be had; with the client's bytes that wait for one.
    Refused(&'a Refusal, &'a [u8]),
    /// What was to be sent was written, or what was to be done was done.
    Flushed,
    /// Bytes that are to be dealt with once more were put in front of the client's.
    PutBack,
    /// Whether the session may keep its connection: the answer to [`Step::Pin`](super::Step::Pin).
    Permitted(bool),
    /// Whether there was a session that this one may signal: the answer to [`Step::Signal`](super::Step::Signal).
    Signalled(Reached),
    /// The client sends nothing more, but may still read: it has closed its side, or all of the connection.
    ClientClosed,
    /// Whether such a client is still there is to be found out, by sending it something.
    Knock,
    /// The client has lost its connection, or does not take what it is sent.
    ClientEnded,
    /// The upstream has ended its connection; why, if that is known, and whether it did within a message.
    UpstreamEnded(Box<UpstreamEnd>),
    /// What the listener has answered, or why it cannot.
    Listener(Box<Result<Answer, Refusal>>),
    /// There is no listener to be had.
    NoListener,
    /// Notifications that the listener has delivered, in its order; or why there will be no more.
    Notifications(Box<Result<Vec<Arc<[u8]>>, Refusal>>),
    /// The listener has stopped to deliver: these were its last.
    Paused(Box<Result<Vec<Arc<[u8]>>, Refusal>>),
    /// The session is to end: now, or between two transactions.
    Order {
        /// Now.
        now: bool,
        /// What the client is told.
        refusal: Box<Refusal>,
    },
    /// What the session does has lasted longer than it may.
    Overdue(Overdue),
}

/// The bytes that an event shows. What is not consumed of them is kept, and shown again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventBytes<'a> {
    /// None.
    Nothing,
    /// Of the client.
    Client(&'a [u8]),
    /// Of the upstream.
    Upstream(&'a [u8]),
}

impl<'a> Event<'a> {
    /// The bytes that it shows.
    pub fn shown(&self) -> EventBytes<'a> {
        match self {
            Self::FromClient(input) | Self::Lent(_, input) | Self::Refused(_, input) => {
                EventBytes::Client(input)
            }
            Self::FromUpstream(input) => EventBytes::Upstream(input),
            _ => EventBytes::Nothing,
        }
    }
}

/// How an upstream has ended its connection.
#[derive(Debug, Default)]
pub struct UpstreamEnd {
    /// The system's words, if it gave any.
    pub why: Option<String>,
    /// Bytes of a message are there that is not whole.
    pub partial: bool,
}

/// What has lasted too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// A phase.
    Phase(Phase),
    /// The wait for a connection, of which the client is to be told.
    Notice,
}

/// In what condition a connection is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The session's user may use it as it is.
    AsItIs,
    /// Somebody else used it: it is to be reset first.
    OfAnother,
}

/// What the listener answers, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It listens to all that was asked for: now the marker may be sent.
    Listening(Mark),
    /// The marker has come by. From there on it delivers what comes on these channels.
    Marked(Vec<String>),
}

/// A moment: nanoseconds since the session began, and one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// So many nanoseconds after the beginning.
    pub fn after(nanoseconds: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(nanoseconds))
    }

    /// The whole tenths of a second after the beginning.
    pub fn tenths(self) -> u64 {
        (self.0.get() - 1) / 100_000_000
    }

    /// How many microseconds have passed since another.
    pub(super) fn micros_since(self, earlier: Self) -> u64 {
        self.0.get().saturating_sub(earlier.0.get()) / 1000
    }
}

/// The connection of the configuration that the session is on, as it is now.
#[derive(Debug, Clone)]
pub struct Database {
    /// What it is called among the environments of its base.
    pub environment: String,
    /// Its name.
    pub connection: String,
    /// How many connections its pool may have.
    pub pool_size: u32,
    /// An operator has paused it: none is lent.
    pub is_paused: bool,
    /// How many of them a session has tried to be reset before it is told that none can be.
    pub most_resets: u32,
}

/// What a session asks of the world around it. A test answers the same each time.
pub trait World {
    /// The time; asked when a query begins and when it ends.
    fn now(&self) -> Moment;
    /// Random bits that nobody can guess; `None` if the system gives none.
    fn random(&self) -> Option<u64>;
    /// What is known now of the database, if it is something else than this.
    fn catalog(&self, known: &Arc<Catalog>) -> Option<Arc<Catalog>>;
    /// Where the session is.
    fn database(&self) -> Database;
}

/// What an engine lends for one event.
pub struct Grounds<'a, 'g, W> {
    /// What is known of the connection that the session is lent.
    pub backend: Option<&'g mut BackendState>,
    /// Whether all that was to be sent to the upstream before is written.
    pub written: bool,
    /// Scratch for what goes to the upstream, and to the client.
    pub up: &'a mut Vec<u8>,
    /// See `up`.
    pub down: &'a mut Vec<u8>,
    /// Takes what is counted, beside what is there.
    pub statistics: &'g mut Statistics,
    /// The world.
    pub world: &'g W,
}

impl<W> fmt::Debug for Grounds<'_, '_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grounds").field("written", &self.written).finish_non_exhaustive()
    }
}
