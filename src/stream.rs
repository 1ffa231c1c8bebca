//! A socket, plain or under TLS, of either side; it can move from one runtime to another.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP, with `TCP_NODELAY`.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// Neither: only while it moves between runtimes.
    Moving,
}

/// A socket, or TLS over one.
#[derive(Debug)]
pub enum Stream {
    /// No TLS.
    Plain(Socket),
    /// TLS, ours being the server.
    Server(Box<server::TlsStream<Socket>>),
    /// TLS, ours being the client.
    Client(Box<client::TlsStream<Socket>>),
}

macro_rules! on_socket {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self {
            Socket::Tcp($inner) => $call,
            Socket::Unix($inner) => $call,
            Socket::Moving => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

macro_rules! on_stream {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self {
            Stream::Plain($inner) => $call,
            Stream::Server($inner) => $call,
            Stream::Client($inner) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_socket!(self.get_mut(), s => Pin::new(s).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), s => Pin::new(s).poll_shutdown(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self.get_mut(), s => Pin::new(s).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), s => Pin::new(s).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), s => Pin::new(s).poll_shutdown(cx))
    }
}

impl Socket {
    fn rehome(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Moving) {
            Self::Tcp(s) => Self::Tcp(TcpStream::from_std(s.into_std()?)?),
            Self::Unix(s) => Self::Unix(UnixStream::from_std(s.into_std()?)?),
            Self::Moving => Self::Moving,
        };
        Ok(())
    }
}

impl Stream {
    /// The socket below.
    pub fn socket_mut(&mut self) -> &mut Socket {
        match self {
            Self::Plain(s) => s,
            Self::Server(s) => s.get_mut().0,
            Self::Client(s) => s.get_mut().0,
        }
    }

    /// Moves the socket to the runtime whose context this is called in. About 4 µs.
    ///
    /// # Errors
    /// The socket cannot be registered there; it is then lost.
    pub fn rehome(&mut self) -> io::Result<()> {
        self.socket_mut().rehome()
    }

    /// True if the runtime has seen neither bytes nor an end on the socket since it was last read dry. Costs no
    /// system call.
    pub fn is_quiet(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        match self.socket_mut() {
            Socket::Tcp(s) => s.poll_read_ready(cx).is_pending(),
            Socket::Unix(s) => s.poll_read_ready(cx).is_pending(),
            Socket::Moving => false,
        }
    }

    /// True if the other side has closed it and nothing is left to be read. It can be told without reading only
    /// where there is no TLS, and on TCP; otherwise it is found out later.
    pub fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        let Self::Plain(Socket::Tcp(tcp)) = self else { return false };
        let mut byte = [0];
        matches!(tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)), Poll::Ready(Ok(0) | Err(_)))
    }

    /// Whether it is under TLS.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Whether TLS still holds bytes that the socket did not take.
    pub fn wants_flush(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Server(s) => s.get_ref().1.wants_write(),
            Self::Client(s) => s.get_ref().1.wants_write(),
        }
    }
}
