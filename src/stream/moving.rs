//! A socket's way from one runtime, or one thread, to another.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::net::{TcpStream, UnixStream};

use super::{Family, Socket, Unregistered};
use crate::ring;

impl Socket {
    pub(super) fn unregister(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Moving(None)) {
            Self::Tcp(s) => Self::Moving(Some(Unregistered::Tcp(s.into_std()?))),
            Self::Unix(s) => Self::Moving(Some(Unregistered::Unix(s.into_std()?))),
            other @ (Self::Moving(_) | Self::Coming(..) | Self::Ring(..)) => other,
        };
        Ok(())
    }

    /// Mostly it is where it is to be.
    pub(super) fn register(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(socket, _) if socket.is_here() => return Ok(()),
            _ if ring::Socket::can_be_here() => return self.enter_ring(),
            Self::Tcp(_) | Self::Unix(_) => return Ok(()),
            Self::Ring(..) | Self::Coming(..) | Self::Moving(_) => {}
        }
        *self = match std::mem::replace(self, Self::Moving(None)) {
            Self::Moving(Some(Unregistered::Tcp(s))) => Self::Tcp(TcpStream::from_std(s)?),
            Self::Moving(Some(Unregistered::Unix(s))) => Self::Unix(UnixStream::from_std(s)?),
            registered => registered,
        };
        Ok(())
    }

    /// Has it on this thread, from whichever it is on, with what was received there and not read. Answers whether its other side has
    /// not ended it.
    #[inline]
    pub(super) fn poll_register(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self {
            Self::Ring(socket, _) if socket.is_here() => Poll::Ready(Ok(true)),
            Self::Ring(..) | Self::Coming(..) => self.poll_come(cx),
            _ => Poll::Ready(self.register().map(|()| true)),
        }
    }

    #[cold]
    fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        *self = match std::mem::replace(self, Self::Moving(None)) {
            Self::Ring(socket, family) => Self::Coming(socket.call(), family),
            other => other,
        };
        let Self::Coming(coming, family) = self else { return Poll::Pending };
        let (freed, family) = (ready!(coming.poll(cx)), *family);
        *self = Self::Moving(None);
        let freed = freed?;
        if freed.is_lost {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let is_open = !freed.has_ended;
        *self = Self::Ring(ring::Socket::enter(freed.descriptor, freed.unread)?, family);
        Poll::Ready(Ok(is_open))
    }

    fn enter_ring(&mut self) -> io::Result<()> {
        self.unregister()?;
        *self = match std::mem::replace(self, Self::Moving(None)) {
            Self::Moving(Some(Unregistered::Tcp(s))) => {
                Self::Ring(ring::Socket::enter(s.into(), Vec::new())?, Family::Tcp)
            }
            Self::Moving(Some(Unregistered::Unix(s))) => {
                Self::Ring(ring::Socket::enter(s.into(), Vec::new())?, Family::Unix)
            }
            _ => return Err(io::ErrorKind::NotConnected.into()),
        };
        Ok(())
    }

    /// Takes it off a ring, if it is on one; answers whether it is as if it had never been there: nothing was received on it that nobody
    /// has read, nothing written that was not sent, and it has not ended.
    ///
    /// Not cancel-safe: dropped, the socket is closed.
    pub(super) async fn leave_ring(&mut self) -> io::Result<bool> {
        let mut is_whole = true;
        *self = match std::mem::replace(self, Self::Moving(None)) {
            Self::Ring(socket, family) => {
                let mut coming = socket.call();
                let freed = std::future::poll_fn(|cx| coming.poll(cx)).await?;
                is_whole = freed.is_whole();
                Self::Moving(Some(match family {
                    Family::Tcp => Unregistered::Tcp(freed.descriptor.into()),
                    Family::Unix => Unregistered::Unix(freed.descriptor.into()),
                }))
            }
            other => other,
        };
        Ok(is_whole)
    }
}
