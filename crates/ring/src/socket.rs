//! One socket of a thread's.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Waker};

use crate::kernel::BUFFER;
use crate::lent::{Lent, Operation};

/// How often a socket is read directly within a turn.
const MOST_DIRECT: u8 = 16;

/// How the other side of a socket has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It sends nothing more.
    Closed,
    /// There is no connection any more.
    Lost,
}

/// What can be told of a socket from any thread.
#[derive(Debug, Default)]
pub struct Notice(AtomicU8);

impl Notice {
    /// True if nothing has come that was not read, nor the end.
    pub fn is_quiet(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// What was received and not read.
#[derive(Debug)]
pub(crate) enum Inbox {
    Empty,
    /// In a buffer of the kernel's, read up to here.
    Lent(Lent, u32),
    /// Kept, as nobody has read it within its turn.
    Kept(Box<(Vec<u8>, usize)>),
}

/// What is being sent.
#[derive(Debug)]
pub(crate) enum Sending {
    Nothing,
    /// Since this turn, or one before: then the socket is full.
    UnderWay {
        operation: Operation,
        since: u32,
        /// Up to here it was taken before.
        from: u32,
    },
}

/// Whether it is still used.
pub(crate) enum Use {
    Used,
    /// What is written is sent if the socket takes it; then it is closed.
    Dropped,
    /// It goes elsewhere when nothing is under way, with what was received and not read.
    Leaving(Box<AtLeave>),
}

/// What is done with a socket that goes elsewhere.
pub(crate) struct AtLeave(pub(crate) Box<dyn FnOnce(io::Result<Freed>)>);

/// A socket that goes elsewhere.
#[derive(Debug)]
pub struct Freed {
    /// The system's.
    pub descriptor: OwnedFd,
    /// What was received and not read.
    pub unread: Vec<u8>,
    /// The other side has ended it, which was seen.
    pub has_ended: bool,
    /// There is no connection any more, or something that was written was not sent.
    pub is_lost: bool,
}

impl Freed {
    /// Whether it is as if it had never been here: nothing is lost, nothing was received that nobody has read, and it has not ended.
    pub fn is_whole(&self) -> bool {
        !self.has_ended && !self.is_lost && self.unread.is_empty()
    }
}

/// A socket, with what is under way on it.
pub(crate) struct Socket {
    pub(crate) descriptor: Rc<OwnedFd>,
    pub(crate) receiving: Option<Operation>,
    pub(crate) inbox: Inbox,
    /// How reading has failed, if it has.
    pub(crate) end: Option<io::ErrorKind>,
    /// How sending has.
    pub(crate) broken: Option<io::ErrorKind>,
    pub(crate) has_ended: bool,
    pub(crate) sending: Sending,
    pub(crate) outbox: Vec<u8>,
    pub(crate) is_dirty: bool,
    /// It has filled a whole buffer: the next bytes are read directly.
    pub(crate) is_bulk: bool,
    /// The turn in which that was last done, and how often.
    pub(crate) direct: (u32, u8),
    /// The other side is told that nothing more comes when all is sent.
    pub(crate) finishes: bool,
    /// No buffer was there for it.
    pub(crate) is_starved: bool,
    /// Of the task that has it.
    pub(crate) waker: Option<Waker>,
    /// The task waits until what was written is sent.
    pub(crate) is_awaited: bool,
    pub(crate) used: Use,
    pub(crate) notice: Arc<Notice>,
}

impl Socket {
    pub(crate) fn new(descriptor: OwnedFd, unread: Vec<u8>) -> Self {
        let inbox = if unread.is_empty() { Inbox::Empty } else { Inbox::Kept(Box::new((unread, 0))) };
        let socket = Self {
            descriptor: Rc::new(descriptor),
            receiving: None,
            inbox,
            end: None,
            broken: None,
            has_ended: false,
            sending: Sending::Nothing,
            outbox: Vec::new(),
            is_dirty: false,
            is_bulk: false,
            direct: (0, 0),
            finishes: false,
            is_starved: false,
            waker: None,
            is_awaited: false,
            used: Use::Used,
            notice: Arc::default(),
        };
        socket.tell();
        socket
    }

    /// Has all threads know whether something has come that was not read, or the end.
    pub(crate) fn tell(&self) {
        let is_quiet = matches!(self.inbox, Inbox::Empty) && !self.has_ended;
        self.notice.0.store(u8::from(!is_quiet), Ordering::Release);
    }

    /// Whether it may be read directly in this turn, once more.
    pub(crate) fn may_read_directly(&mut self, turn: u32) -> bool {
        if !self.is_bulk || self.receiving.is_some() {
            return false;
        }
        if self.direct.0 != turn {
            self.direct = (turn, 0);
        }
        self.direct.1 = self.direct.1.saturating_add(1);
        // Others have their turns, too.
        self.direct.1 <= MOST_DIRECT
    }

    /// It was read directly; `None` if nothing was there.
    pub(crate) fn was_read(&mut self, read: io::Result<usize>, most: usize) -> Option<io::Result<usize>> {
        self.is_bulk = matches!(read, Ok(length) if length >= BUFFER.min(most));
        match &read {
            Ok(0) => self.has_ended = true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return None;
            }
            Err(error) => (self.has_ended, self.end) = (true, Some(error.kind())),
        }
        self.tell();
        Some(read)
    }

    /// Its task is woken when what was written is sent.
    pub(crate) fn await_sending(&mut self, cx: &Context<'_>) {
        register(&mut self.waker, cx);
        self.is_awaited = true;
    }

    pub(crate) fn is_used(&self) -> bool {
        matches!(self.used, Use::Used)
    }

    pub(crate) fn is_full(&self, turn: u32) -> bool {
        matches!(self.sending, Sending::UnderWay { since, .. } if since != turn.wrapping_add(1))
    }
}

/// There is no such socket any more.
pub(crate) fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

pub(crate) fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every client has one, whatever it does.
    #[test]
    fn a_socket_fits_in_128_bytes() {
        assert!(size_of::<Socket>() <= 128, "{}", size_of::<Socket>());
    }
}
