//! A socket of a thread that relays on io_uring.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ring::{Ending, Freed, Notice, Token};
use tokio::io::ReadBuf;
use tokio::sync::oneshot;

use super::{Door, Letter, THREAD, is_here, with};

/// A socket of such a thread. Elsewhere it can only be closed, or asked to be freed.
pub struct Socket {
    door: Arc<Door>,
    token: Token,
    notice: Arc<Notice>,
    /// Its place is free, or another's.
    has_left: bool,
}

/// A socket on its way from another thread's ring. Dropped, it is closed.
#[derive(Debug)]
pub struct Coming(oneshot::Receiver<io::Result<Freed>>);

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Socket {
    /// Whether this thread has a ring for sockets.
    pub(crate) fn can_be_here() -> bool {
        THREAD.with(|thread| thread.door.get()) != 0
    }

    /// Takes a socket, which must not block, to this thread's ring, with what was received on it elsewhere and not read.
    ///
    /// # Errors
    /// The thread has none.
    pub(crate) fn enter(descriptor: OwnedFd, unread: Vec<u8>) -> io::Result<Self> {
        THREAD.with(|thread| {
            let mut here = thread.here.borrow_mut();
            let here = here.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let (token, notice) = here.sockets.add(descriptor, unread);
            Ok(Self { door: here.door.clone(), token, notice, has_left: false })
        })
    }

    /// Whether it is of this thread's ring.
    pub(crate) fn is_here(&self) -> bool {
        is_here(&self.door)
    }

    /// Has it taken off its ring, from whatever thread.
    pub(crate) fn call(mut self) -> Coming {
        let (sender, freed) = oneshot::channel();
        self.door.post(Letter::Free(self.token, sender));
        self.has_left = true;
        Coming(freed)
    }

    /// The number of its thread.
    pub(crate) fn home(&self) -> u16 {
        self.door.number
    }

    /// As of [`crate::stream::Stream::is_quiet`].
    pub(crate) fn is_quiet(&self) -> bool {
        self.notice.is_quiet()
    }

    /// Has it known when something comes though nobody reads.
    pub(crate) fn watch(&self) {
        let _ = with(&self.door, |sockets| sockets.receive(self.token));
    }

    /// As of [`crate::stream::Stream::end`].
    pub(crate) fn end(&self, cx: &Context<'_>) -> Option<Ending> {
        with(&self.door, |sockets| sockets.end(self.token, cx)).flatten()
    }

    /// Whether the other side does not take what was sent; then the task is woken when it has.
    pub(crate) fn is_full(&self, cx: &Context<'_>) -> bool {
        with(&self.door, |sockets| sockets.is_full(self.token, cx)).unwrap_or(false)
    }

    /// Whether something that was written is not sent; then the task is woken when it is.
    pub(crate) fn is_unsent(&self, cx: &Context<'_>) -> bool {
        with(&self.door, |sockets| sockets.is_unsent(self.token, cx)).unwrap_or(false)
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_broken(&self) -> bool {
        with(&self.door, |sockets| sockets.is_broken(self.token)).unwrap_or(false)
    }

    /// Sends these bytes, if there is room for them, and closes it.
    pub(crate) fn close(&self, last: &[u8]) {
        if with(&self.door, |sockets| sockets.close(self.token, last)).is_none() {
            self.door.post(Letter::Close(self.token, last.into()));
        }
    }

    #[inline(never)]
    pub(crate) fn poll_read(&self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let into = buf.initialize_unfilled();
        let read = with(&self.door, |sockets| sockets.poll_read(self.token, into, cx));
        match read.unwrap_or_else(elsewhere) {
            Poll::Ready(Ok(length)) => {
                buf.advance(length);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    #[inline(never)]
    pub(crate) fn poll_write(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        with(&self.door, |sockets| sockets.poll_write(self.token, bytes, cx)).unwrap_or_else(elsewhere)
    }

    pub(crate) fn poll_shutdown(&self) -> Poll<io::Result<()>> {
        let _ = with(&self.door, |sockets| sockets.finish(self.token));
        Poll::Ready(Ok(()))
    }
}

fn elsewhere<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl Coming {
    /// The socket, when it is there.
    ///
    /// # Errors
    /// Its thread has ended, or it is lost.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Freed>> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|freed| freed.unwrap_or_else(|_| Err(io::ErrorKind::NotConnected.into())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.has_left {
            self.close(&[]);
        }
    }
}
