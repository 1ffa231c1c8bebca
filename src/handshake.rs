//! From an accepted socket to what the client wants: a login, a cancel, or nothing. TLS on the way.
//!
//! Packets that may lead to TLS are read to their exact end and no further, so that not one byte sent in the clear
//! before TLS can be read after it (CVE-2021-23214, CVE-2021-3935, CVE-2021-43766).

use std::io;
use std::sync::Arc;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::config::file::SslMode;
use crate::error::{Fault, Refusal, SqlState};
use crate::stream::{Socket, Stream};
use crate::tls::{ALPN, ServerTls, common_name};
use crate::wire::startup::{self, CancelKey, FirstPacket, MAX_STARTUP_LENGTH, Startup};

/// The length and the code.
const SHORTEST_PACKET: usize = 8;
/// How much may be read beyond a startup packet.
const MAX_AHEAD: usize = 512;
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
    /// What was read from it beyond the last message that was dealt with.
    pub ahead: Zeroizing<Vec<u8>>,
    /// What is to be sent to it with the next message.
    pub owed: Vec<u8>,
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
        let (packet, ahead) = read_packet(&mut stream).await?;
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
            FirstPacket::Startup(startup) => return arrival(stream, startup, ahead, tls),
        }
    }
}

fn arrival(
    mut stream: Stream,
    startup: Startup,
    ahead: Vec<u8>,
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
    Ok(Opened::Login(Box::new(Arrival {
        stream,
        ahead: ahead.into(),
        owed: Vec::new(),
        startup,
        certificate_name,
    })))
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

/// Reads one packet that has no tag, and perhaps what stands behind it; its length is checked before anything is
/// allocated for it.
async fn read_packet(stream: &mut Stream) -> Result<(Vec<u8>, Vec<u8>), HandshakeError> {
    let mut start = [0; SHORTEST_PACKET];
    let mut there = 0;
    let mut length = 0;
    while there < SHORTEST_PACKET {
        match stream.read(&mut start[there..]).await? {
            0 => return Err(HandshakeError::Silent("left without a packet")),
            read => there += read,
        }
        if let (4.., Some(announced)) = (there, start.first_chunk()) {
            length = u32::from_be_bytes(*announced) as usize;
            if !(SHORTEST_PACKET..=MAX_STARTUP_LENGTH).contains(&length) {
                return Err(HandshakeError::Silent("invalid length of startup packet"));
            }
        }
    }
    let mut packet = start[4..].to_vec();
    // Behind a startup packet there is no TLS to come: what the client sent with it may be read with it.
    let spare = if startup::is_login(&packet) { MAX_AHEAD } else { 0 };
    let length = length - 4;
    let mut chunk = vec![0; length - packet.len() + spare];
    while packet.len() < length {
        let room = length - packet.len() + spare;
        match stream.read(&mut chunk[..room]).await? {
            0 => return Err(HandshakeError::Silent("left in the middle of a packet")),
            read => packet.extend_from_slice(&chunk[..read]),
        }
    }
    let ahead = packet.split_off(length);
    Ok((packet, ahead))
}
