//! What a full socket did not take.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::stream::Stream;

/// Bytes that are still to be sent.
#[derive(Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Backlog {
    /// True if nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends what the socket takes, and keeps the rest. Behind a backlog, all of it is kept.
    ///
    /// # Errors
    /// The socket was lost.
    pub(super) fn send(&mut self, stream: &mut Stream, bytes: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        let mut rest = bytes;
        while self.is_empty() && !rest.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => rest = &rest[sent..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.bytes.extend_from_slice(rest);
        if stream.is_tls()
            && let Poll::Ready(flushed) = Pin::new(stream).poll_flush(cx)
        {
            return flushed;
        }
        Ok(())
    }

    /// Sends what was kept; true if nothing is left.
    ///
    /// # Errors
    /// The socket was lost.
    pub(super) fn flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => self.sent += sent,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        if !self.bytes.is_empty() {
            *self = Self::default();
        }
        if stream.wants_flush() {
            return Ok(Pin::new(stream).poll_flush(cx)?.is_ready());
        }
        Ok(true)
    }
}
