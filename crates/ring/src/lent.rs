//! What a thread asks of a kernel, and what it is told.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// An operation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation(pub(crate) u32);

/// Bytes that were received, in a buffer of the kernel's choice: to be given back ([`Kernel::give_back`]), or it is lost to all.
#[derive(Debug)]
pub struct Lent {
    pub(crate) buffer: u16,
    pub(crate) length: u32,
}

impl Lent {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Never: the end of a stream has no buffer.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// What was done. Every operation ends in one of these, also one that was cancelled.
#[derive(Debug)]
pub enum Done {
    /// Bytes were received for this token; `None` at the end of the stream.
    Received(u64, io::Result<Option<Lent>>),
    /// So many bytes were sent for this token; the buffer comes back.
    Sent(u64, io::Result<usize>, Vec<u8>),
    /// Another thread has rung the bell.
    Woken,
}

/// Makes room for one more, and for a quarter more: twice as much would be a good part of what an idle client takes.
pub fn grow<T>(all: &mut Vec<T>) {
    if all.len() == all.capacity() {
        all.reserve_exact(all.len() / 4 + 16);
    }
}

/// For how long a turn waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until something is done.
    ForOne,
    /// Not at all.
    No,
    /// Until something is done, at the most for so long.
    AtMost(Duration),
}

/// Who receives and sends. A token is the caller's, and comes back as it is.
pub trait Kernel {
    /// Receives once.
    fn receive(&mut self, socket: &Rc<OwnedFd>, token: u64) -> Operation;

    /// Receives what is there already, without a buffer of the kernel's: for bulk, of which more is there than one holds.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there, or the socket's own.
    fn receive_now(&mut self, socket: &Rc<OwnedFd>, token: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Sends the bytes from this place on.
    fn send(&mut self, socket: &Rc<OwnedFd>, token: u64, bytes: Vec<u8>, from: usize) -> Operation;

    /// Asks for an operation to be ended early; it still ends in a [`Done`].
    fn cancel(&mut self, operation: Operation);

    /// Begins all that was asked for, and waits.
    ///
    /// # Errors
    /// The kernel does not do that any more: nothing on this thread goes on.
    fn turn(&mut self, wait: Wait) -> io::Result<()>;

    /// The next thing that was done.
    fn next(&mut self) -> Option<Done>;

    /// What is in a buffer.
    fn bytes(&self, lent: &Lent) -> &[u8];

    /// The buffer is read.
    fn give_back(&mut self, lent: Lent);
}
