//! What an engine is to do.

use std::time::Duration;

use crate::{Counts, Effects, ListenRequest, Pin, Signalled};
use wire::error::Refusal;

/// What is to be done, in this order: obey the wishes, send to the client, send to the upstream, count, and take the step.
#[derive(Debug)]
pub struct Actions<'a> {
    /// How many bytes of the input need not be shown again.
    pub consumed: usize,
    /// What the client is sent.
    pub to_client: &'a [u8],
    /// What the upstream is sent.
    pub to_upstream: &'a [u8],
    /// What is done next.
    pub step: Step,
    /// What holds until the next event.
    pub wishes: Wishes,
}

/// What is done next.
#[derive(Debug)]
pub enum Step {
    /// Nothing: the next event is waited for.
    Wait,
    /// What the client has sent and was not consumed is shown again.
    ShowClient,
    /// The same of the upstream.
    ShowUpstream,
    /// A connection is wanted: [`Event::Lent`](super::Event::Lent) or [`Event::Refused`](super::Event::Refused) answers.
    Lend,
    /// If all is written that was to be sent, say so: [`Event::Flushed`](super::Event::Flushed).
    Flush,
    /// The connection goes back to its pool.
    Release,
    /// The connection is closed (whatever runs on it is cancelled if that is said), and the client's bytes are shown again.
    Replace {
        /// Something may still run on it.
        running: bool,
    },
    /// These bytes are put in front of those of the client that were not consumed: [`Event::PutBack`](super::Event::PutBack).
    PutBack(Box<[u8]>),
    /// The session keeps its connection for this reason: [`Event::Permitted`](super::Event::Permitted) answers. With none it
    /// does so no longer: [`Event::Flushed`](super::Event::Flushed).
    Pin(Option<Pin>),
    /// What is known of the database is not true any more, as this was defined: [`Event::Flushed`](super::Event::Flushed).
    Outdate(Box<Effects>),
    /// A statement needs this database to itself: idle connections to it, on the session's own route, are closed. Then
    /// [`Event::Flushed`](super::Event::Flushed).
    Free(Box<str>),
    /// A session is signalled: [`Event::Signalled`](super::Event::Signalled) answers.
    Signal(Signalled),
    /// The listener is asked; without one, [`Event::NoListener`](super::Event::NoListener).
    AskListener(Box<ListenRequest>),
    /// What runs on the connection is cancelled.
    Cancel,
    /// The session is over when the client was sent what it is sent.
    Close(Box<Closing>),
}

/// What holds until the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Whether bytes of the client's are wanted.
    pub from_client: bool,
    /// Whether bytes of the upstream's are wanted.
    pub from_upstream: bool,
    /// How many bytes of the client's are needed before anything can be said of them; 0 for any.
    pub need: u32,
    /// What a request to cancel would end.
    pub doing: Doing,
    /// What the session does, for the clock.
    pub phase: Phase,
    /// What is wanted of the listener.
    pub listening: Listening,
    /// Whether a notification can go to the client now.
    pub takes_notifications: bool,
}

impl Wishes {
    /// Of a session without channels that waits for a connection, which it has just said.
    pub(super) fn waiting() -> Self {
        Self { doing: Doing::Waiting, phase: Phase::Waiting { notified: false }, ..Self::default() }
    }
}

impl Default for Wishes {
    /// Of a session to which nothing has happened.
    fn default() -> Self {
        Self {
            from_client: false,
            from_upstream: false,
            need: 0,
            doing: Doing::Nothing,
            phase: Phase::Idle,
            listening: Listening::No,
            takes_notifications: false,
        }
    }
}

/// What a request to cancel the session's statement would end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Nothing.
    Nothing,
    /// The wait for a connection.
    Waiting,
    /// What runs on the connection.
    Running,
}

/// What is wanted of the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// Nothing: the session has no channels.
    No,
    /// What it delivers.
    Yes,
    /// Its answer, too.
    Answer,
    /// That it has stopped to deliver, with this recall.
    Pause(u64),
}

/// What a session does, for the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing, outside a transaction.
    Idle,
    /// Nothing, inside one.
    IdleInTransaction,
    /// It waits for a connection.
    Waiting {
        /// The client has been told.
        notified: bool,
    },
    /// The upstream works; the number tells one query (or series up to its `Sync`) from the next.
    Querying(u32),
    /// It works although it was cancelled.
    Cancelled(u32),
    /// The connection is reset after another user.
    Resetting {
        /// What tells one attempt from the next.
        attempt: u32,
    },
}

/// What is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// There is something.
    pub any: bool,
    /// How long a query took that is answered, in microseconds.
    pub query: Option<u64>,
    /// What has ended since this was told last.
    pub ended: Option<Ended>,
    /// What became of a reset.
    pub reset: Option<Resets>,
}

impl Statistics {
    /// What is there, and nothing is left.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// Transactions that have ended, and what was in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How long the last one took, in microseconds.
    pub took: Option<u64>,
    /// How many have ended.
    pub transactions: u64,
    /// What was in them.
    pub counts: Counts,
    /// How many named statements the session has now.
    pub prepared: usize,
}

/// What became of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resets {
    /// One has begun.
    Begun,
    /// It is done, and took so long.
    Done(Duration),
    /// It has failed.
    Failed,
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

/// The end of a session.
#[derive(Debug)]
pub struct Closing {
    /// Why.
    pub cause: Cause,
    /// What the upstream did that the protocol does not allow, for the log.
    pub broke: Option<String>,
    /// What becomes of the connection.
    pub connection: Leaving,
    /// How many transactions have ended.
    pub transactions: u64,
}

/// What becomes of the connection of a session that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// There is none, or it is waited for no more.
    Nothing,
    /// It goes back as it is.
    Release,
    /// It is reset, and goes back; closed, if not all was written that was to be sent.
    Clean,
    /// It is closed.
    Discard {
        /// Something may still run on it.
        running: bool,
    },
}
