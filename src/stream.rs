//! A socket, plain or under TLS, of either side; it can move from one runtime to another.

mod moving;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

pub(crate) use ::ring::Ending;
use rustix::net::RecvFlags;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Socket as RawSocket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};
use zeroize::Zeroizing;

use crate::ring;
use policy::config::Server;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP, with `TCP_NODELAY`.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// On io_uring, of the thread that relays.
    Ring(ring::Socket, Family),
    /// On its way here from another thread's.
    Coming(ring::Coming, Family),
    /// Registered with no runtime: while it moves between two.
    Moving(Option<Unregistered>),
}

/// What a socket is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// TCP
    Tcp,
    /// A unix socket.
    Unix,
}

/// A socket that no runtime knows.
#[derive(Debug)]
pub enum Unregistered {
    /// TCP
    Tcp(std::net::TcpStream),
    /// A unix socket.
    Unix(std::os::unix::net::UnixStream),
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

/// The addresses of one customer, as far as can be told from outside: one of IPv4, a /64 of IPv6, or all that come by a unix
/// socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Block(Option<IpAddr>);

impl Block {
    /// Whoever comes by a unix socket.
    pub(crate) const UNIX: Self = Self(None);

    /// That of an address.
    pub(crate) fn of_address(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
            v4 => v4,
        }))
    }

    /// That of a peer as sessions have it: an address with a port, or `unix`.
    pub(crate) fn of_peer(peer: &str) -> Self {
        peer.parse::<SocketAddr>().map_or(Self::UNIX, |address| Self::of_address(address.ip()))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unix"),
            Some(IpAddr::V4(address)) => address.fmt(f),
            Some(IpAddr::V6(address)) => write!(f, "{address}/64"),
        }
    }
}

/// Whether other processes may listen at the same address, if they say so, too (`so_reuseport`; socket(7), `SO_REUSEPORT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReusePort {
    /// They may.
    Shared,
    /// It is this process's alone.
    Exclusive,
}

impl ReusePort {
    /// As it is configured.
    pub(crate) fn of(server: &Server) -> Self {
        if *server.so_reuseport { Self::Shared } else { Self::Exclusive }
    }
}

/// A TCP socket that listens. Of IPv6, it takes IPv4, too.
///
/// # Errors
/// As bind(2) and listen(2).
pub(crate) fn listen(
    address: SocketAddr,
    reuse: ReusePort,
    backlog: i32,
) -> io::Result<std::net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse == ReusePort::Shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

macro_rules! on_socket {
    ($self:expr, $inner:ident => $call:expr, $on_ring:expr) => {
        match $self {
            Socket::Tcp($inner) => $call,
            Socket::Unix($inner) => $call,
            Socket::Ring($inner, _) => $on_ring,
            Socket::Coming(..) | Socket::Moving(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
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
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf), s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_socket!(self.get_mut(), s => Pin::new(s).poll_write(cx, buf), s.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), s => Pin::new(s).poll_shutdown(cx), s.poll_shutdown())
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    #[inline]
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

impl Unregistered {
    /// True if nothing has come on it, nor the end.
    fn is_quiet(&self) -> bool {
        let descriptor = match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        };
        let peeked = rustix::net::recv(descriptor, &mut [0_u8], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
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

    /// Takes the socket away from its runtime. Until it is registered again, reading and writing fail.
    ///
    /// # Errors
    /// The system's; the socket is then lost.
    pub fn unregister(&mut self) -> io::Result<()> {
        self.socket_mut().unregister()
    }

    /// Gives the socket to the runtime whose context this is called in.
    ///
    /// # Errors
    /// It cannot be registered there; it is then lost.
    pub fn register(&mut self) -> io::Result<()> {
        self.socket_mut().register()
    }

    /// Gives the socket to the thread that this is called on, whichever has it, with what was received there and not read; answers
    /// whether its other side has not ended it.
    ///
    /// # Errors
    /// It is lost.
    pub fn poll_register(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.socket_mut().poll_register(cx)
    }

    /// Has the socket with the runtime of tokio's whose context this is called in, whatever thread has it.
    ///
    /// # Errors
    /// It is lost: the system's reasons, or it was on a ring, and something had come there that nobody has read.
    pub async fn come_here(&mut self) -> io::Result<()> {
        if !self.socket_mut().leave_ring().await? {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.register()
    }

    /// Has the socket with the runtime of tokio's whose context this is called in, only to see its end: whatever was on its way is lost.
    ///
    /// Not cancel-safe: dropped, the socket is closed.
    ///
    /// # Errors
    /// It is lost.
    pub async fn come_to_end(&mut self) -> io::Result<()> {
        self.socket_mut().leave_ring().await?;
        self.register()
    }

    /// Ends our side of it, and reads until the other side has ended its own, whatever it says, or it is lost.
    pub async fn see_its_end(&mut self) {
        let _ = self.shutdown().await;
        // Under TLS, too: what it says is not read.
        let socket = self.socket_mut();
        let mut space = [0; 4096];
        while matches!(socket.read(&mut space).await, Ok(1..)) {}
    }

    /// The thread on whose ring it is; 0 if it is on none.
    pub fn home(&self) -> u16 {
        let socket = match self {
            Self::Plain(s) => s,
            Self::Server(s) => s.get_ref().0,
            Self::Client(s) => s.get_ref().0,
        };
        match socket {
            Socket::Ring(s, _) => s.home(),
            _ => 0,
        }
    }

    /// Whether it is on another thread's ring.
    pub fn is_elsewhere(&mut self) -> bool {
        matches!(self.socket_mut(), Socket::Ring(s, _) if !s.is_here())
    }

    /// Whether it is on a ring.
    pub fn is_on_ring(&mut self) -> bool {
        matches!(self.socket_mut(), Socket::Ring(..))
    }

    /// Has it known when something comes though nobody reads.
    pub fn watch(&mut self) {
        if let Socket::Ring(s, _) = self.socket_mut() {
            s.watch();
        }
    }

    /// Whether it does not take what was written; then the task is woken when it has. Only a ring keeps any.
    pub fn is_clogged(&mut self, cx: &mut Context<'_>) -> bool {
        match self.socket_mut() {
            Socket::Ring(s, _) => s.is_full(cx),
            Socket::Tcp(_) | Socket::Unix(_) | Socket::Coming(..) | Socket::Moving(_) => false,
        }
    }

    /// Whether something that was written is still to be sent; then the task is woken when it is.
    pub fn is_unsent(&mut self, cx: &mut Context<'_>) -> bool {
        match self.socket_mut() {
            Socket::Ring(s, _) => s.is_unsent(cx),
            Socket::Tcp(_) | Socket::Unix(_) | Socket::Coming(..) | Socket::Moving(_) => false,
        }
    }

    /// Whether it is known that nothing can be sent any more.
    pub fn is_broken(&mut self) -> bool {
        match self.socket_mut() {
            Socket::Ring(s, _) => s.is_broken(),
            Socket::Tcp(_) | Socket::Unix(_) | Socket::Coming(..) | Socket::Moving(_) => false,
        }
    }

    /// Sends these bytes, if that is possible at once, and closes it.
    pub fn close_with(mut self, last: &[u8]) {
        if let Self::Plain(Socket::Ring(s, _)) = &self {
            return s.close(last);
        }
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self).poll_write(cx, last);
        let _ = Pin::new(&mut self).poll_flush(cx);
    }

    /// Moves the socket to the runtime whose context this is called in. About 4 µs.
    ///
    /// # Errors
    /// As of [`Stream::unregister`] and [`Stream::register`].
    pub fn rehome(&mut self) -> io::Result<()> {
        self.unregister()?;
        self.register()
    }

    /// True if the runtime has seen neither bytes nor an end on the socket since it was last read dry. Costs no
    /// system call.
    pub fn is_quiet(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        match self.socket_mut() {
            Socket::Tcp(s) => s.poll_read_ready(cx).is_pending(),
            Socket::Unix(s) => s.poll_read_ready(cx).is_pending(),
            Socket::Ring(s, _) => s.is_quiet(),
            Socket::Coming(..) => false,
            Socket::Moving(unregistered) => unregistered.as_ref().is_some_and(Unregistered::is_quiet),
        }
    }

    /// How the other side has ended it, if nothing is left to be read. It can be told without reading only where there is no
    /// TLS, and on TCP; otherwise it is found out later.
    pub fn end(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        let tcp = match self {
            Self::Plain(Socket::Tcp(tcp)) => tcp,
            Self::Plain(Socket::Ring(s, _)) => return s.end(cx),
            _ => return None,
        };
        let mut byte = [0];
        match tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Ok(0)) => Some(Ending::Closed),
            Poll::Ready(Err(_)) => Some(Ending::Lost),
            Poll::Ready(Ok(_)) | Poll::Pending => None,
        }
    }

    /// Whether it is under TLS.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// The user of the operating system at the other end of a unix socket (`SO_PEERCRED`, unix(7)); `None` of any other.
    pub fn peer_uid(&self) -> Option<u32> {
        match self {
            Self::Plain(Socket::Unix(unix)) => unix.peer_cred().ok().map(|peer| peer.uid()),
            _ => None,
        }
    }

    /// The version of TLS that it is under.
    pub fn tls(&self) -> Option<Tls> {
        let version = match self {
            Self::Plain(_) => None,
            Self::Server(s) => s.get_ref().1.protocol_version(),
            Self::Client(s) => s.get_ref().1.protocol_version(),
        };
        version.map(|version| match version {
            rustls::ProtocolVersion::TLSv1_2 => Tls::V1_2,
            _ => Tls::V1_3,
        })
    }

    /// The certificates that the other side has shown, its own first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        let shown = match self {
            Self::Plain(_) => None,
            Self::Server(s) => s.get_ref().1.peer_certificates(),
            Self::Client(s) => s.get_ref().1.peer_certificates(),
        };
        shown.unwrap_or_default()
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

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// RFC 5246
    V1_2,
    /// RFC 8446
    V1_3,
}

impl Tls {
    /// As PostgreSQL words it.
    pub fn word(self) -> &'static str {
        match self {
            Self::V1_2 => "TLSv1.2",
            Self::V1_3 => "TLSv1.3",
        }
    }
}

/// How much a [`Reader`] reads at once, if no more is asked for.
const AHEAD: usize = 1024;

/// A stream during a login, with what was read from it ahead of need: what the other side sent at once is read at
/// once.
#[derive(Debug)]
pub(crate) struct Reader {
    /// For writing. Whoever reads from it must not leave anything behind here.
    pub stream: Stream,
    ahead: Zeroizing<Vec<u8>>,
}

impl Reader {
    /// Nothing was read yet.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, ahead: Zeroizing::default() }
    }

    /// Reads until so many bytes are there, and what there is behind them, but not much more. The caller bounds
    /// the length: room is made for all of it.
    ///
    /// Cancel-safe: what was read stays here.
    ///
    /// # Errors
    /// The stream's own; `UnexpectedEof` if it ends before.
    pub(crate) async fn fill(&mut self, length: usize) -> io::Result<&[u8]> {
        while self.ahead.len() < length {
            let missing = length - self.ahead.len();
            self.ahead.reserve_exact(missing.max(AHEAD));
            if self.stream.read_buf(&mut *self.ahead).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(&self.ahead)
    }

    /// Takes the first bytes, all of which must be there.
    pub(crate) fn take(&mut self, length: usize) -> Zeroizing<Vec<u8>> {
        let rest = self.ahead.split_off(length).into();
        std::mem::replace(&mut self.ahead, rest)
    }

    /// The stream, and what was read and not taken.
    pub(crate) fn into_parts(self) -> (Stream, Vec<u8>) {
        (self.stream, self.ahead.to_vec())
    }

    /// What was read and not taken.
    pub(crate) fn ahead(&self) -> &[u8] {
        &self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// T-35: a read that is given up has lost nothing, whenever that is.
    #[tokio::test]
    async fn a_reader_that_is_dropped_in_the_middle_loses_no_byte() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut random = crate::random::Random(0x5eed);
        let mut below = move |end| random.below(end);
        let sent: Vec<u8> = (0..200_000_u32).map(|i| i.to_be_bytes()[2] ^ i.to_be_bytes()[3]).collect();
        let pieces: Vec<(Vec<u8>, usize)> = {
            let mut pieces = Vec::new();
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(rest.len().min(1 + below(300)));
                pieces.push((piece.to_vec(), below(3)));
                rest = behind;
            }
            pieces
        };
        let writing = tokio::spawn(async move {
            for (piece, pause) in pieces {
                far.write_all(&piece).await.unwrap();
                for _ in 0..pause {
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut reader = Reader::new(Stream::Plain(Socket::Unix(near)));
        let (mut received, mut dropped) = (Vec::new(), 0);
        while received.len() < sent.len() {
            let length = (1 + below(2000)).min(sent.len() - received.len());
            loop {
                let filled = {
                    let mut fill = std::pin::pin!(reader.fill(length));
                    let mut filled = futures_util::poll!(&mut fill);
                    for _ in 0..below(3) {
                        if filled.is_pending() {
                            tokio::task::yield_now().await;
                            filled = futures_util::poll!(&mut fill);
                        }
                    }
                    filled.map(|filled| filled.unwrap().len())
                };
                match filled {
                    Poll::Ready(there) => break assert!(there >= length),
                    Poll::Pending => dropped += 1,
                }
                tokio::task::yield_now().await;
            }
            received.extend_from_slice(&reader.take(length));
        }
        writing.await.unwrap();
        assert!(received == sent, "the bytes are not those that were sent");
        assert!(dropped > 100, "only {dropped} reads were dropped");
        assert_eq!(reader.fill(1).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
