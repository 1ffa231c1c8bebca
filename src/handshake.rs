//! From an accepted socket to what the client wants: a login, a cancel, or nothing. TLS on the way.
//!
//! What stands in the clear behind a request for encryption is never read as anything (CVE-2021-23214, CVE-2021-3935,
//! CVE-2021-43766): a client that has sent such bytes is left.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use rustls::ServerConnection;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use crate::login_permits::{LoginPermit, no_permit};
use crate::stream::{Reader, Socket, Stream};
use crate::tls::{self, ALPN, ServerTls, common_name};
use policy::config::file::SslMode;
use wire::error::{Fault, Refusal, Shown, SqlState};
use wire::startup::{self, CancelKey, FirstPacket, MAX_STARTUP_LENGTH, Startup};

/// The length and the code.
const SHORTEST_PACKET: usize = 8;
/// The first byte of a TLS record that begins a handshake: a client that starts TLS without asking.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the client wants.
#[derive(Debug)]
pub(crate) enum Opened {
    /// To log in.
    Login(Box<Arrival>),
    /// To cancel a query.
    Cancel(CancelKey, Stream),
}

/// A client that wants to log in.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Its connection.
    pub reader: Reader,
    /// What is to be sent to it.
    pub pending: Vec<u8>,
    /// What it said.
    pub startup: Startup,
    /// The common name of its TLS certificate, verified against `client_ca`.
    pub certificate_name: Option<String>,
}

/// Why there is nothing to answer or nobody to talk to.
#[derive(Debug, Error)]
pub(crate) enum HandshakeError {
    /// It left, or its packet is none: closed without a word, as PostgreSQL does.
    #[error("{0}")]
    Silent(&'static str),
    /// TLS failed: what it was is for the operator's log, as the client was sent no more than an alert.
    #[error("{0}")]
    Tls(String),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It can be told why.
    #[error("{1}")]
    Refused(Box<Stream>, Refusal),
}

impl Arrival {
    /// Sends what it is owed.
    ///
    /// Not cancel-safe: drop the client with it.
    ///
    /// # Errors
    /// It has left.
    pub(crate) async fn flush_pending(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.reader.stream.write_all(&pending).await?;
        self.reader.stream.flush().await
    }
}

/// Reads until the client has said what it wants, or has to make room for others. Without a deadline of its own: the caller
/// has one.
///
/// Not cancel-safe: a dropped handshake has lost bytes; drop the socket too.
///
/// # Errors
/// See [`HandshakeError`].
pub(crate) async fn open(
    socket: Socket,
    tls: Option<&Arc<ServerTls>>,
    login_permit: &LoginPermit,
) -> Result<Opened, HandshakeError> {
    let mut reader = Reader::new(Stream::Plain(socket));
    if tls.is_some() && first_byte(&mut reader, login_permit).await? == Some(TLS_HANDSHAKE) {
        reader = accept_tls(reader, tls, login_permit).await?;
        let Stream::Server(established) = &reader.stream else {
            return Err(HandshakeError::Silent("no TLS"));
        };
        if established.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::Silent("direct TLS without ALPN"));
        }
    }
    let (mut asked_ssl, mut asked_gss) = (reader.stream.is_tls(), reader.stream.is_tls());
    loop {
        let packet = tokio::select! {
            packet = read_packet(&mut reader) => packet?,
            () = login_permit.must_leave() => return makes_room(reader),
        };
        let parsed = match startup::parse(&packet) {
            Ok(parsed) => parsed,
            Err(refusal) => return Err(HandshakeError::Refused(Box::new(reader.stream), refusal)),
        };
        let refused = |reader: Reader, message: &'static str| {
            Err(HandshakeError::Refused(Box::new(reader.stream), Refusal::protocol(message)))
        };
        match parsed {
            FirstPacket::Ssl if !asked_ssl => {
                asked_ssl = true;
                let answer = if tls.is_some() && is_tcp(&mut reader.stream) { b"S" } else { b"N" };
                reader.stream.write_all(answer).await?;
                if !reader.ahead().is_empty() {
                    return refused(reader, "received unencrypted data after SSL request");
                }
                if answer == b"S" {
                    asked_gss = true;
                    reader = accept_tls(reader, tls, login_permit).await?;
                }
            }
            FirstPacket::GssEnc if !asked_gss => {
                asked_gss = true;
                reader.stream.write_all(b"N").await?;
                if !reader.ahead().is_empty() {
                    return refused(reader, "received unencrypted data after GSSAPI encryption request");
                }
            }
            FirstPacket::Ssl | FirstPacket::GssEnc => {
                return refused(reader, "received a second encryption request");
            }
            FirstPacket::Cancel(key) => return Ok(Opened::Cancel(key, reader.stream)),
            FirstPacket::Startup(startup) => return arrival(reader, startup, tls),
        }
    }
}

fn arrival(
    mut reader: Reader,
    startup: Startup,
    tls: Option<&Arc<ServerTls>>,
) -> Result<Opened, HandshakeError> {
    let mode = tls.map_or(SslMode::Disable, |tls| tls.mode);
    let certificate_name = match &reader.stream {
        Stream::Server(tls) => tls.get_ref().1.peer_certificates().and_then(|c| common_name(c.first()?)),
        _ => None,
    };
    let must = matches!(mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull);
    // Over a unix socket nobody can listen in; PostgreSQL's hostssl does not apply to it either.
    if must && !reader.stream.is_tls() && is_tcp(&mut reader.stream) {
        let message = format!(
            "no encryption for user \"{}\", database \"{}\": TLS is required",
            Shown::name(&startup.user),
            Shown::name(&startup.database)
        );
        let refusal = Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message);
        return Err(HandshakeError::Refused(Box::new(reader.stream), refusal));
    }
    // Whatever the method of the user: the certificate is a proof of its own (PostgreSQL's `clientcert=verify-full`).
    let is_of_user = certificate_name.as_deref() == Some(startup.user.as_str());
    if mode == SslMode::VerifyFull && !is_of_user && is_tcp(&mut reader.stream) {
        let refusal = certificate_refused(&startup.user);
        return Err(HandshakeError::Refused(Box::new(reader.stream), refusal));
    }
    Ok(Opened::Login(Box::new(Arrival { reader, pending: Vec::new(), startup, certificate_name })))
}

/// One that is told to leave before it has said anything reads why, should it ever read.
fn makes_room<T>(reader: Reader) -> Result<T, HandshakeError> {
    Err(HandshakeError::Refused(Box::new(reader.stream), no_permit()))
}

/// The first byte, which stays to be read. One that has to make room gets none, and is told when its packet is read.
async fn first_byte(reader: &mut Reader, login_permit: &LoginPermit) -> Result<Option<u8>, HandshakeError> {
    tokio::select! {
        bytes = reader.fill(1) => Ok(bytes?.first().copied()),
        () = login_permit.must_leave() => Ok(None),
    }
}

fn certificate_refused(user: &str) -> Refusal {
    let message = format!("certificate authentication failed for user \"{}\"", Shown::name(user));
    Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message)
}

fn is_tcp(stream: &mut Stream) -> bool {
    matches!(stream.socket_mut(), Socket::Tcp(_))
}

/// TLS; what was read ahead of it is its beginning.
async fn accept_tls(
    reader: Reader,
    ours: Option<&Arc<ServerTls>>,
    login_permit: &LoginPermit,
) -> Result<Reader, HandshakeError> {
    let (Some(ours), beginning, Stream::Plain(socket)) = (ours, reader.ahead().to_vec(), reader.stream)
    else {
        return Err(HandshakeError::Silent("TLS within TLS"));
    };
    let acceptor = TlsAcceptor::from(ours.config.clone());
    let accepted = tokio::select! {
        accepted = acceptor.accept_with(socket, |session| feed(session, &beginning)) => accepted,
        () = login_permit.must_leave() => return Err(HandshakeError::Silent("made room during TLS")),
    };
    let stream = accepted.map_err(|error| match tls::reason(&error) {
        Some(reason) => HandshakeError::Tls(reason),
        None => HandshakeError::Io(error),
    })?;
    Ok(Reader::new(Stream::Server(Box::new(stream))))
}

/// Shows TLS the bytes that its handshake begins with. What is wrong with them, the handshake says.
fn feed(session: &mut ServerConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        if session.read_tls(&mut bytes).is_err() || session.process_new_packets().is_err() {
            return;
        }
    }
}

/// Reads one packet that has no tag; its length is checked before anything is allocated for it.
async fn read_packet(reader: &mut Reader) -> Result<Vec<u8>, HandshakeError> {
    let Some(announced) = reader.fill(4).await?.first_chunk() else {
        return Err(HandshakeError::Silent("left without a packet"));
    };
    let length = u32::from_be_bytes(*announced) as usize;
    if !(SHORTEST_PACKET..=MAX_STARTUP_LENGTH).contains(&length) {
        return Err(HandshakeError::Silent("invalid length of startup packet"));
    }
    reader.fill(length).await?;
    Ok(reader.take(length)[4..].to_vec())
}
