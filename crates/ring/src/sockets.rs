//! What the sockets of one thread have to read and to send: an operation is begun when somebody wants it, and all that were begun go
//! to the kernel in one turn.
//!
//! A socket is received from only while somebody wants bytes of it, once at a time: who is read slowly costs a buffer's worth of memory
//! and nobody else anything. Of what is sent, as much is kept as the socket did not take of one turn's.

#[cfg(test)]
mod tests;

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::kernel::BUFFER;
use crate::lent::{Done, Kernel, Lent, Wait, grow};
use crate::socket::{AtLeave, Ending, Freed, Inbox, Notice, Sending, Socket, Use, gone, register};

/// How much may be written to a socket in one turn.
const MAX_OUTBOX: usize = 128 << 10;
/// How many vectors are kept for the next sends, and how large each may be.
const MAX_SPARE: usize = 64;
/// See [`MAX_SPARE`].
const MAX_SPARE_BYTES: usize = 64 << 10;

/// A socket of one [`Sockets`]. It is worth nothing in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    slot: u32,
    generation: u32,
}

impl Token {
    fn packed(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    fn unpacked(packed: u64) -> Self {
        let slot = u32::try_from(packed & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { slot, generation: u32::try_from(packed >> 32).unwrap_or(u32::MAX) }
    }
}

enum Slot {
    Free,
    Taken(Box<Socket>),
}

/// See the module.
pub struct Sockets<K> {
    kernel: K,
    slots: Vec<(u32, Slot)>,
    free: Vec<u32>,
    /// Those that have something to send.
    dirty: Vec<u32>,
    /// Those with bytes in a buffer of the kernel's, and those for which there was none.
    holding: Vec<u32>,
    starved: Vec<u32>,
    /// Those that are to be closed, or go elsewhere.
    parting: Vec<u32>,
    spare: Vec<Vec<u8>>,
    turn: u32,
}

impl<K> std::fmt::Debug for Sockets<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockets").field("places", &self.slots.len()).finish_non_exhaustive()
    }
}

impl<K: Kernel> Sockets<K> {
    /// None yet.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            slots: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            holding: Vec::new(),
            starved: Vec::new(),
            parting: Vec::new(),
            spare: Vec::new(),
            turn: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a socket, which must not block (`O_NONBLOCK`), with what was received on it elsewhere and not read.
    pub fn add(&mut self, descriptor: OwnedFd, unread: Vec<u8>) -> (Token, Arc<Notice>) {
        let socket = Box::new(Socket::new(descriptor, unread));
        let notice = socket.notice.clone();
        let slot = self.free.pop().unwrap_or_else(|| {
            grow(&mut self.slots);
            self.slots.push((0, Slot::Free));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.slots[slot as usize];
        place.0 = place.0.wrapping_add(1);
        place.1 = Slot::Taken(socket);
        (Token { slot, generation: place.0 }, notice)
    }

    fn get(&mut self, token: Token) -> Option<&mut Socket> {
        taken(&mut self.slots, token)
    }

    /// Reads what has come; when nothing has, the next bytes are received, and the task is woken.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_read(&mut self, token: Token, into: &mut [u8], cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some(read) = self.read(token, into) else {
            self.receive(token);
            let Some(socket) = self.get(token) else { return Poll::Ready(Err(gone())) };
            register(&mut socket.waker, cx);
            return Poll::Pending;
        };
        Poll::Ready(read)
    }

    fn read(&mut self, token: Token, into: &mut [u8]) -> Option<io::Result<usize>> {
        if into.is_empty() {
            return Some(Ok(0));
        }
        let Some(socket) = taken(&mut self.slots, token) else {
            return Some(Err(gone()));
        };
        if matches!(socket.inbox, Inbox::Empty) {
            if socket.has_ended {
                return Some(socket.end.map_or(Ok(0), |lost| Err(lost.into())));
            }
            if !socket.may_read_directly(self.turn) {
                return None;
            }
            let read = self.kernel.receive_now(&socket.descriptor, token.packed(), into);
            return socket.was_read(read, into.len());
        }
        let (there, at) = match &socket.inbox {
            Inbox::Lent(lent, at) => (self.kernel.bytes(lent), *at as usize),
            Inbox::Kept(kept) => (&kept.0[..], kept.1),
            Inbox::Empty => return None,
        };
        let length = into.len().min(there.len() - at);
        into[..length].copy_from_slice(&there[at..at + length]);
        let is_all = at + length == there.len();
        match &mut socket.inbox {
            // No buffer is longer than that.
            Inbox::Lent(_, at) => *at += u32::try_from(length).unwrap_or(u32::MAX),
            Inbox::Kept(kept) => kept.1 += length,
            Inbox::Empty => {}
        }
        if is_all {
            if let Inbox::Lent(lent, _) = mem::replace(&mut socket.inbox, Inbox::Empty) {
                self.kernel.give_back(lent);
            }
            socket.tell();
            if length < into.len() && !socket.has_ended && socket.may_read_directly(self.turn) {
                // More is there than a buffer holds: it is seen at once, as by a call that reads all that there is.
                let rest = &mut into[length..];
                let read = self.kernel.receive_now(&socket.descriptor, token.packed(), rest);
                let more = socket.was_read(read, rest.len()).and_then(Result::ok);
                return Some(Ok(length + more.unwrap_or(0)));
            }
        }
        Some(Ok(length))
    }

    /// Has bytes received that nobody reads yet, so that their coming, or the end, is known.
    pub fn receive(&mut self, token: Token) {
        let Some(socket) = taken(&mut self.slots, token) else {
            return;
        };
        let wants = matches!(socket.inbox, Inbox::Empty) && socket.is_used();
        if wants && socket.receiving.is_none() && !socket.has_ended && !socket.is_starved {
            socket.receiving = Some(self.kernel.receive(&socket.descriptor, token.packed()));
        }
    }

    /// How the other side has ended it, if nothing is left to be read; else the task is woken when it does.
    pub fn end(&mut self, token: Token, cx: &Context<'_>) -> Option<Ending> {
        self.receive(token);
        let socket = self.get(token)?;
        match (&socket.inbox, socket.has_ended, socket.end) {
            (Inbox::Empty, true, None) => Some(Ending::Closed),
            (Inbox::Empty, true, Some(_)) => Some(Ending::Lost),
            _ => {
                register(&mut socket.waker, cx);
                None
            }
        }
    }

    /// Takes bytes to be sent in this turn. If the socket has not taken those of an earlier turn it takes none, and the task is woken
    /// when it has.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_write(&mut self, token: Token, bytes: &[u8], cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let turn = self.turn;
        let Some(socket) = taken(&mut self.slots, token) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(lost) = socket.broken.or(socket.end) {
            return Poll::Ready(Err(lost.into()));
        }
        let room = MAX_OUTBOX.saturating_sub(socket.outbox.len());
        if room == 0 || socket.is_full(turn) {
            socket.await_sending(cx);
            return Poll::Pending;
        }
        if socket.outbox.capacity() == 0
            && let Some(spare) = self.spare.pop()
        {
            socket.outbox = spare;
        }
        let length = bytes.len().min(room);
        socket.outbox.extend_from_slice(&bytes[..length]);
        if !socket.is_dirty {
            socket.is_dirty = true;
            self.dirty.push(token.slot);
        }
        Poll::Ready(Ok(length))
    }

    /// Whether the socket has not taken what was sent in an earlier turn; then the task is woken when it has.
    pub fn is_full(&mut self, token: Token, cx: &Context<'_>) -> bool {
        let turn = self.turn;
        let Some(socket) = self.get(token) else { return false };
        let is_full = socket.is_full(turn);
        if is_full {
            socket.await_sending(cx);
        }
        is_full
    }

    /// Whether something that was written is not sent; then the task is woken when it is.
    pub fn is_unsent(&mut self, token: Token, cx: &Context<'_>) -> bool {
        let Some(socket) = self.get(token) else { return false };
        let is_unsent = !socket.outbox.is_empty() || !matches!(socket.sending, Sending::Nothing);
        if is_unsent {
            socket.await_sending(cx);
        }
        is_unsent
    }

    /// Whether nothing can be sent any more, though something may be there to be read.
    pub fn is_broken(&mut self, token: Token) -> bool {
        self.get(token).is_none_or(|socket| socket.broken.is_some())
    }

    /// When all is sent, the other side is told that nothing more comes.
    pub fn finish(&mut self, token: Token) {
        if let Some(socket) = self.get(token) {
            socket.finishes = true;
        }
        self.settle(token.slot);
    }

    /// Closes a socket: what was written in this turn is sent, if there is room for it.
    pub fn close(&mut self, token: Token, last: &[u8]) {
        let _ = self.poll_write(token, last, &Context::from_waker(Waker::noop()));
        self.part(token, Use::Dropped);
    }

    /// Takes a socket away, with what was received and not read, when nothing is under way on it. What its other side does not take is
    /// not sent.
    pub fn leave(&mut self, token: Token, then: impl FnOnce(io::Result<Freed>) + 'static) {
        match self.get(token) {
            Some(_) => self.part(token, Use::Leaving(Box::new(AtLeave(Box::new(then))))),
            None => then(Err(gone())),
        }
    }

    fn part(&mut self, token: Token, used: Use) {
        let Some(socket) = self.get(token) else { return };
        (socket.waker, socket.is_awaited) = (None, false);
        socket.used = used;
        if let Some(receiving) = socket.receiving {
            self.kernel.cancel(receiving);
        }
        self.parting.push(token.slot);
        self.settle(token.slot);
    }

    /// A turn: what was written is sent, what was asked for begins, and whoever waits for what has come is woken.
    ///
    /// # Errors
    /// As of [`Kernel::turn`].
    pub fn turn(&mut self, wait: Wait) -> io::Result<Woken> {
        self.flush();
        self.keep();
        self.see_off();
        self.turn = self.turn.wrapping_add(1);
        self.kernel.turn(wait)?;
        let mut woken = Woken { rung: false, done: 0 };
        while let Some(done) = self.kernel.next() {
            woken.done += 1;
            match done {
                Done::Woken => woken.rung = true,
                Done::Received(token, received) => self.received(Token::unpacked(token), received),
                Done::Sent(token, sent, bytes) => self.sent(Token::unpacked(token), sent, bytes),
            }
        }
        Ok(woken)
    }

    /// Those that part, and whose other side has not taken what was sent in an earlier turn, are closed without.
    fn see_off(&mut self) {
        if self.parting.is_empty() {
            return;
        }
        let parting = mem::take(&mut self.parting);
        for slot in parting {
            self.settle(slot);
            if matches!(&self.slots[slot as usize].1, Slot::Taken(socket) if !socket.is_used()) {
                self.parting.push(slot);
            }
        }
    }

    /// Begins to send what was written.
    fn flush(&mut self) {
        let mut dirty = mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let Some((generation, Slot::Taken(socket))) = self.slots.get_mut(slot as usize) else { continue };
            socket.is_dirty = false;
            if socket.outbox.is_empty() || !matches!(socket.sending, Sending::Nothing) {
                continue;
            }
            let bytes = mem::take(&mut socket.outbox);
            let token = Token { slot, generation: *generation }.packed();
            let operation = self.kernel.send(&socket.descriptor, token, bytes, 0);
            socket.sending = Sending::UnderWay { operation, since: self.turn.wrapping_add(1), from: 0 };
        }
        self.dirty = dirty;
    }

    /// What nobody has read within the turn is kept aside: the kernel's buffers are for everybody. For whom there was none, there are
    /// some again.
    fn keep(&mut self) {
        let mut holding = mem::take(&mut self.holding);
        for slot in holding.drain(..) {
            let Some((_, Slot::Taken(socket))) = self.slots.get_mut(slot as usize) else { continue };
            match mem::replace(&mut socket.inbox, Inbox::Empty) {
                Inbox::Lent(lent, at) => {
                    let kept = self.kernel.bytes(&lent)[at as usize..].to_vec();
                    socket.inbox = Inbox::Kept(Box::new((kept, 0)));
                    self.kernel.give_back(lent);
                }
                other => socket.inbox = other,
            }
        }
        self.holding = holding;
        for slot in mem::take(&mut self.starved) {
            let Some((generation, Slot::Taken(socket))) = self.slots.get_mut(slot as usize) else { continue };
            if mem::take(&mut socket.is_starved) {
                let token = Token { slot, generation: *generation };
                self.receive(token);
            }
        }
    }

    fn received(&mut self, token: Token, received: io::Result<Option<Lent>>) {
        let Some(socket) = taken(&mut self.slots, token) else {
            // Of a socket that is gone, and its descriptor with it.
            if let Ok(Some(lent)) = received {
                self.kernel.give_back(lent);
            }
            return;
        };
        socket.receiving = None;
        match received {
            Ok(Some(lent)) => {
                socket.is_bulk = lent.len() == BUFFER;
                // It was empty when this was asked for, and is filled by nothing else.
                socket.inbox = Inbox::Lent(lent, 0);
                self.holding.push(token.slot);
            }
            Ok(None) => socket.has_ended = true,
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                socket.is_starved = true;
                self.starved.push(token.slot);
                return;
            }
            Err(error) if is_canceled(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.receive(token),
            Err(error) => (socket.has_ended, socket.end) = (true, Some(error.kind())),
        }
        socket.tell();
        if let Some(waker) = &socket.waker {
            waker.wake_by_ref();
        }
        self.settle(token.slot);
    }

    fn sent(&mut self, token: Token, sent: io::Result<usize>, bytes: Vec<u8>) {
        let Some(socket) = taken(&mut self.slots, token) else {
            return;
        };
        let before = match mem::replace(&mut socket.sending, Sending::Nothing) {
            Sending::UnderWay { from, .. } => from as usize,
            Sending::Nothing => 0,
        };
        match sent {
            Ok(length) if before + length >= bytes.len() => self.reuse(bytes),
            // Taken in part: it goes on with the rest.
            Ok(length) if length > 0 && socket.is_used() => {
                let from = before + length;
                let operation = self.kernel.send(&socket.descriptor, token.packed(), bytes, from);
                let from = u32::try_from(from).unwrap_or(u32::MAX);
                socket.sending = Sending::UnderWay { operation, since: self.turn, from };
                return;
            }
            // What the other side has said before it left is still to be read.
            sent => {
                socket.outbox.clear();
                socket.broken = Some(sent.err().map_or(io::ErrorKind::WriteZero, |error| error.kind()));
                // Whoever does not write now hears of it, too.
                socket.waker.iter().for_each(Waker::wake_by_ref);
            }
        }
        let Some(socket) = self.get(token) else { return };
        if mem::take(&mut socket.is_awaited) {
            socket.waker.iter().for_each(Waker::wake_by_ref);
        }
        if !socket.outbox.is_empty() && !socket.is_dirty {
            socket.is_dirty = true;
            self.dirty.push(token.slot);
        }
        self.settle(token.slot);
    }

    fn reuse(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < MAX_SPARE && bytes.capacity() <= MAX_SPARE_BYTES {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Does what waits until all is sent, or until nothing is under way.
    fn settle(&mut self, slot: u32) {
        let turn = self.turn;
        let Some((_, place)) = self.slots.get_mut(slot as usize) else { return };
        let Slot::Taken(socket) = place else { return };
        let is_full = socket.is_full(turn);
        if let (Sending::UnderWay { operation, .. }, false, true) =
            (&socket.sending, socket.is_used(), is_full)
        {
            // The other side does not take it.
            return self.kernel.cancel(*operation);
        }
        if !matches!(socket.sending, Sending::Nothing) || !socket.outbox.is_empty() {
            return;
        }
        if mem::take(&mut socket.finishes) {
            let _ = rustix::net::shutdown(&socket.descriptor, Shutdown::Write);
        }
        if socket.is_used() || socket.receiving.is_some() {
            return;
        }
        let Slot::Taken(socket) = mem::replace(place, Slot::Free) else { return };
        self.free.push(slot);
        let Socket { descriptor, inbox, used, has_ended, end, broken, .. } = *socket;
        let unread = match inbox {
            Inbox::Empty => Vec::new(),
            Inbox::Kept(kept) => kept.0[kept.1..].to_vec(),
            Inbox::Lent(lent, at) => {
                let bytes = self.kernel.bytes(&lent)[at as usize..].to_vec();
                self.kernel.give_back(lent);
                bytes
            }
        };
        if let Use::Leaving(then) = used {
            let is_lost = end.or(broken).is_some();
            let freed = Rc::try_unwrap(descriptor).map_err(|_| gone());
            then.0(freed.map(|descriptor| Freed { descriptor, unread, has_ended, is_lost }));
        }
    }

    /// The kernel below.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// Another thread has rung the bell.
    pub rung: bool,
    /// How much was done.
    pub done: usize,
}

fn is_canceled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::CANCELED.raw_os_error())
}

/// The socket of a token, if it is there still.
fn taken(slots: &mut [(u32, Slot)], token: Token) -> Option<&mut Socket> {
    match slots.get_mut(token.slot as usize) {
        Some((generation, Slot::Taken(socket))) if *generation == token.generation => Some(socket),
        _ => None,
    }
}
