//! From an accepted socket to what the client wants: a login, a cancel, or nothing. TLS on the way.
//!
//! Packets are read to their exact end and no further, so that not one byte sent in the clear before TLS can be
//! read after it (CVE-2021-23214, CVE-2021-3935, CVE-2021-43766).

use std::io;
use std::sync::Arc;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::config::file::SslMode;
use crate::error::{Fault, Refusal, SqlState};
use crate::stream::{Socket, Stream};
use crate::tls::{ALPN, ServerTls, common_name};
use crate::wire::startup::{self, CancelKey, FirstPacket, MAX_STARTUP_LENGTH, Startup};

/// The first byte of a TLS record that begins a handshake: a client that starts TLS without asking.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the client wants.
#[derive(Debug)]
pub enum Opened {
    /// To log in.
    Login(Box<Arrival>),
    /// To cancel a query.
    Cancel(CancelKey, Stream),
}

/// A client that wants to log in.
#[derive(Debug)]
pub struct Arrival {
    /// Its connection.
    pub stream: Stream,
    /// What it said.
    pub startup: Startup,
    /// The common name of its TLS certificate, verified against `client_ca`.
    pub certificate_name: Option<String>,
}

/// Why there is nothing to answer or nobody to talk to.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// It left, or its packet is none: closed without a word, as PostgreSQL does.
    #[error("{0}")]
    Silent(&'static str),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It can be told why.
    #[error("{1}")]
    Refused(Box<Stream>, Refusal),
}

/// Reads until the client has said what it wants. Without a deadline of its own: the caller has one.
///
/// Not cancel-safe: a dropped handshake has lost bytes; drop the socket too.
///
/// # Errors
/// See [`HandshakeError`].
pub async fn open(socket: Socket, tls: Option<&Arc<ServerTls>>) -> Result<Opened, HandshakeError> {
    let mut stream = Stream::Plain(socket);
    if tls.is_some() && starts_with_tls(&mut stream).await? {
        stream = accept_tls(stream, tls).await?;
        let Stream::Server(ref established) = stream else { return Err(HandshakeError::Silent("no TLS")) };
        if established.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::Silent("direct TLS without ALPN"));
        }
    }
    let (mut asked_ssl, mut asked_gss) = (stream.is_tls(), stream.is_tls());
    loop {
        let packet = read_packet(&mut stream).await?;
        let parsed = match startup::parse(&packet) {
            Ok(parsed) => parsed,
            Err(refusal) => return Err(HandshakeError::Refused(Box::new(stream), refusal)),
        };
        match parsed {
            FirstPacket::Ssl if !asked_ssl => {
                asked_ssl = true;
                let answer = if tls.is_some() && is_tcp(&mut stream) { b"S" } else { b"N" };
                stream.write_all(answer).await?;
                if answer == b"S" {
                    asked_gss = true;
                    stream = accept_tls(stream, tls).await?;
                }
            }
            FirstPacket::GssEnc if !asked_gss => {
                asked_gss = true;
                stream.write_all(b"N").await?;
            }
            FirstPacket::Ssl | FirstPacket::GssEnc => {
                let refusal = Refusal::protocol("received a second encryption request");
                return Err(HandshakeError::Refused(Box::new(stream), refusal));
            }
            FirstPacket::Cancel(key) => return Ok(Opened::Cancel(key, stream)),
            FirstPacket::Startup(startup) => return arrival(stream, startup, tls),
        }
    }
}

fn arrival(
    mut stream: Stream,
    startup: Startup,
    tls: Option<&Arc<ServerTls>>,
) -> Result<Opened, HandshakeError> {
    let mode = tls.map_or(SslMode::Disable, |tls| tls.mode);
    let wants_tls = matches!(mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull);
    if wants_tls && !stream.is_tls() && is_tcp(&mut stream) {
        let refusal = Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, "TLS is required")
            .hint("Connect with sslmode=require or stronger.");
        return Err(HandshakeError::Refused(Box::new(stream), refusal));
    }
    let certificate_name = match &stream {
        Stream::Server(tls) => tls.get_ref().1.peer_certificates().and_then(|c| common_name(c.first()?)),
        _ => None,
    };
    if mode == SslMode::VerifyFull && stream.is_tls() && certificate_name.as_deref() != Some(&startup.user) {
        let message = format!("the client certificate is not for user \"{}\"", startup.user);
        let refusal = Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message);
        return Err(HandshakeError::Refused(Box::new(stream), refusal));
    }
    Ok(Opened::Login(Box::new(Arrival { stream, startup, certificate_name })))
}

fn is_tcp(stream: &mut Stream) -> bool {
    matches!(stream.socket_mut(), Socket::Tcp(_))
}

async fn starts_with_tls(stream: &mut Stream) -> io::Result<bool> {
    match stream.socket_mut() {
        Socket::Tcp(tcp) => {
            let mut first = [0];
            Ok(tcp.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE)
        }
        _ => Ok(false),
    }
}

async fn accept_tls(stream: Stream, tls: Option<&Arc<ServerTls>>) -> Result<Stream, HandshakeError> {
    let (Stream::Plain(socket), Some(tls)) = (stream, tls) else {
        return Err(HandshakeError::Silent("TLS inside TLS"));
    };
    let acceptor = TlsAcceptor::from(tls.config.clone());
    Ok(Stream::Server(Box::new(acceptor.accept(socket).await?)))
}

/// Reads one packet that has no tag; its length is checked before anything is allocated for it.
async fn read_packet(stream: &mut Stream) -> Result<Vec<u8>, HandshakeError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => HandshakeError::Silent("left without a packet"),
        _ => HandshakeError::Io(e),
    })?;
    let length = u32::from_be_bytes(length) as usize;
    if !(8..=MAX_STARTUP_LENGTH).contains(&length) {
        return Err(HandshakeError::Silent("invalid length of startup packet"));
    }
    let mut packet = vec![0; length - 4];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}
