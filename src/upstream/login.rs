//! The login to an upstream: startup packet, proof, parameters, key.

use postgres_protocol::authentication::sasl::{
    ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use relay::settings::{MAX_REPORTED, MAX_REPORTED_BYTES, Parameter};

use super::{Dialer, UpstreamError};
use crate::stream::Stream;
use crate::tls::server_end_point;
use policy::config::file::{ChannelBinding, UpstreamMethod};
use policy::config::{Connection, UpstreamScram};
use policy::verifier::{EMPTY, Verifier, is_empty, md5_hex, md5_response};
use wire::error::SqlState;
use wire::startup::{MAX_CANCEL_KEY, MAX_STARTUP_LENGTH, Settings};
use wire::{Header, cstr};

/// The longest message that an upstream may send during a login: an error text can be long.
const MAX_LOGIN_MESSAGE: usize = 64 << 10;
/// How many bytes of notices are kept of a login.
const MAX_NOTICES: usize = 16 << 10;
/// How many messages a login may take, notices included.
const MAX_LOGIN_MESSAGES: usize = 1000;
const PROTOCOL_3_0: u32 = 0x0003_0000;

/// What a login gives.
pub(super) struct Login {
    pub pid: u32,
    pub secret: Box<[u8]>,
    pub parameters: Vec<Parameter>,
    /// `NoticeResponse`s, whole.
    pub notices: Vec<u8>,
}

/// True if two secrets are the same.
pub(super) fn same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}

/// Logs in and reads up to the first `ReadyForQuery`.
pub(super) async fn log_in(
    stream: &mut Stream,
    dialer: &Dialer,
    settings: &Settings,
    password: Option<&SecretString>,
) -> Result<Login, UpstreamError> {
    let connection = &*dialer.connection;
    stream.write_all(&startup_packet(connection, settings)?).await?;
    stream.flush().await?;
    let mut proof = ProofProgress::Nothing;
    let mut login = Login { pid: 0, secret: Box::default(), parameters: Vec::new(), notices: Vec::new() };
    let (mut authenticated, mut reported) = (false, 0);
    for _ in 0..MAX_LOGIN_MESSAGES {
        let (tag, body) = read_message(stream).await?;
        match tag {
            b'R' if !authenticated => {
                authenticated = authentication(stream, dialer, password, &mut proof, &body).await?;
            }
            b'E' => return Err(refused(&body)),
            b'N' => keep_notice(&mut login.notices, &body),
            b'v' => {}
            b'S' if authenticated => {
                let (name, rest) = cstr(&body).ok_or_else(|| broken("ParameterStatus"))?;
                let (value, _) = cstr(rest).ok_or_else(|| broken("ParameterStatus"))?;
                reported += name.len() + value.len();
                if login.parameters.len() >= MAX_REPORTED || reported > MAX_REPORTED_BYTES {
                    return Err(UpstreamError::Protocol("more settings than a server reports".into()));
                }
                login.parameters.push((name.into(), value.into()));
            }
            b'K' if authenticated => {
                let (pid, secret) = body.split_first_chunk::<4>().ok_or_else(|| broken("BackendKeyData"))?;
                if secret.len() > MAX_CANCEL_KEY {
                    return Err(broken("BackendKeyData"));
                }
                login.pid = u32::from_be_bytes(*pid);
                login.secret = secret.into();
            }
            b'Z' if authenticated => return Ok(login),
            other => return Err(UpstreamError::Protocol(format!("message {other:#x} during login"))),
        }
    }
    Err(UpstreamError::Protocol("more messages than a login has".into()))
}

/// Keeps a `NoticeResponse`, as far as there is room.
pub(crate) fn keep_notice(notices: &mut Vec<u8>, body: &[u8]) {
    if notices.len() + wire::HEADER + body.len() <= MAX_NOTICES {
        wire::message(notices, b'N', |out| out.extend_from_slice(body));
    }
}

/// What the configuration sets on every connection of this name.
fn settings_of(connection: &Connection) -> Settings {
    let timeout = connection.query_timeout;
    let timeout = (!timeout.is_zero()).then(|| ("statement_timeout", timeout.as_millis().to_string()));
    let path = connection.search_path.clone().map(|path| ("search_path", path));
    Settings::ours(path.into_iter().chain(timeout))
}

/// The packet has three fields, whatever a client said: our user, the connection's database, and one `options` with the
/// connection's settings and behind them the client's, so that these win.
fn startup_packet(connection: &Connection, settings: &Settings) -> Result<Vec<u8>, UpstreamError> {
    let mut options = Vec::new();
    settings_of(connection).option_words(&mut options);
    settings.option_words(&mut options);
    let mut packet = vec![0; 4];
    packet.extend(PROTOCOL_3_0.to_be_bytes());
    for (name, value) in [("user", &connection.target.username), ("database", &connection.target.database)] {
        wire::push_cstr(&mut packet, name);
        wire::push_cstr(&mut packet, value);
    }
    if !options.is_empty() {
        wire::push_cstr(&mut packet, "options");
        packet.extend_from_slice(&options);
        packet.push(0);
    }
    packet.push(0);
    if packet.len() > MAX_STARTUP_LENGTH {
        return Err(UpstreamError::Refused {
            sqlstate: SqlState::LIMIT_EXCEEDED.as_str().to_owned(),
            message: "the settings at startup are too long".to_owned(),
        });
    }
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    packet[..4].copy_from_slice(&length.to_be_bytes());
    Ok(packet)
}

/// Reads one message; what it may announce is bounded.
async fn read_message(stream: &mut Stream) -> Result<(u8, Vec<u8>), UpstreamError> {
    let mut header = [0; wire::HEADER];
    stream.read_exact(&mut header).await?;
    let length = match Header::read(&header) {
        Some(Ok(header)) if header.total <= MAX_LOGIN_MESSAGE => header.total - wire::HEADER,
        _ => return Err(UpstreamError::Protocol("a message of impossible length during login".into())),
    };
    let mut body = Vec::new();
    // As it arrives, not as it is announced.
    (&mut *stream).take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok((header[0], body))
}

fn refused(body: &[u8]) -> UpstreamError {
    let text = |code| wire::error_field(body, code).map(|t| String::from_utf8_lossy(t).into_owned());
    UpstreamError::Refused {
        sqlstate: text(b'C').filter(|s| s.len() == 5).unwrap_or_else(|| "08P01".into()),
        message: text(b'M').map(|m| m.chars().take(1000).collect()).unwrap_or_else(|| "no message".into()),
    }
}

fn broken(what: &str) -> UpstreamError {
    UpstreamError::Protocol(format!("a broken {what} during login"))
}

/// How far our proof has come.
enum ProofProgress {
    Nothing,
    /// The password, as it is or hashed.
    Given,
    ScramSent(ScramSha256),
    ScramAnswered(ScramSha256),
    Done,
}

/// Whether the upstream may have this proof: before any of it is sent.
fn allowed(connection: &Connection, method: UpstreamMethod) -> Result<(), UpstreamError> {
    if connection.methods.contains(&method) {
        return Ok(());
    }
    let asks = match method {
        UpstreamMethod::ScramSha256 => "asks for a SCRAM proof",
        UpstreamMethod::Md5 => "asks for an MD5 hash of the password",
        UpstreamMethod::Password => "asks for the password in clear text",
        UpstreamMethod::None => "asks for no proof",
    };
    let (name, word) = (&connection.name, method.word());
    let hint = match method {
        UpstreamMethod::Md5 | UpstreamMethod::Password => format!(
            "let the server ask for scram-sha-256, or set sslmode = \"verify-full\" in [connections.{name}]; or write \
             require_auth = \"{word}\" there, if whoever answers at that address may have the password"
        ),
        UpstreamMethod::ScramSha256 | UpstreamMethod::None => {
            format!("add \"{word}\" to require_auth in [connections.{name}], if that is meant")
        }
    };
    Err(UpstreamError::Method { asks, hint })
}

/// Handles one `Authentication…` message; true at `AuthenticationOk`.
async fn authentication(
    stream: &mut Stream,
    dialer: &Dialer,
    password: Option<&SecretString>,
    proof: &mut ProofProgress,
    body: &[u8],
) -> Result<bool, UpstreamError> {
    let (code, data) = body.split_first_chunk::<4>().ok_or_else(|| broken("Authentication"))?;
    let connection = &*dialer.connection;
    let user = &connection.target.username;
    let binding_required = connection.scram.channel_binding == ChannelBinding::Require;
    let wanted = || match password {
        None => Err(UpstreamError::Auth("the server wants a password and none is set".into())),
        // It was not when the configuration was read: a file has changed since.
        Some(password) if is_empty(password.expose_secret()) => Err(UpstreamError::Auth(EMPTY.into())),
        Some(password) => Ok(password),
    };
    let may = |method| allowed(connection, method);
    match u32::from_be_bytes(*code) {
        0 => match proof {
            ProofProgress::ScramSent(_) | ProofProgress::ScramAnswered(_) => {
                Err(UpstreamError::Auth("the server did not prove itself".into()))
            }
            ProofProgress::Nothing | ProofProgress::Given if binding_required => Err(UpstreamError::Auth(
                "channel binding is required, but the server did not use SCRAM".into(),
            )),
            ProofProgress::Nothing => may(UpstreamMethod::None).map(|()| true),
            ProofProgress::Given | ProofProgress::Done => Ok(true),
        },
        3 | 5 if binding_required => {
            Err(UpstreamError::Auth("channel binding is required, but the server asks for a password".into()))
        }
        3 => {
            may(UpstreamMethod::Password)?;
            let password = wanted()?;
            *proof = ProofProgress::Given;
            send(stream, |out| wire::push_cstr(out, password.expose_secret())).await?;
            Ok(false)
        }
        5 => {
            let salt: [u8; 4] = data.try_into().map_err(|_| broken("AuthenticationMD5Password"))?;
            may(UpstreamMethod::Md5)?;
            let hash = md5_proof(user, wanted()?, salt);
            *proof = ProofProgress::Given;
            send(stream, |out| wire::push_cstr(out, &hash)).await?;
            Ok(false)
        }
        10 => {
            may(UpstreamMethod::ScramSha256)?;
            let (mechanism, binding) = choose(stream, data, connection.scram)?;
            let scram = ScramSha256::new(wanted()?.expose_secret().as_bytes(), binding);
            let first = scram.message().to_vec();
            *proof = ProofProgress::ScramSent(scram);
            send(stream, |out| {
                wire::push_cstr(out, mechanism);
                out.extend(u32::try_from(first.len()).unwrap_or(0).to_be_bytes());
                out.extend_from_slice(&first);
            })
            .await?;
            Ok(false)
        }
        11 => {
            let ProofProgress::ScramSent(scram) = std::mem::replace(proof, ProofProgress::Nothing) else {
                return Err(broken("AuthenticationSASLContinue"));
            };
            let scram = answer(scram, data.to_vec(), dialer).await?;
            let last = scram.message().to_vec();
            *proof = ProofProgress::ScramAnswered(scram);
            send(stream, |out| out.extend_from_slice(&last)).await?;
            Ok(false)
        }
        12 => {
            let ProofProgress::ScramAnswered(mut scram) = std::mem::replace(proof, ProofProgress::Nothing)
            else {
                return Err(broken("AuthenticationSASLFinal"));
            };
            scram.finish(data).map_err(|e| UpstreamError::Auth(format!("SCRAM: {e}")))?;
            *proof = ProofProgress::Done;
            Ok(false)
        }
        other => Err(UpstreamError::Auth(format!("the server wants authentication method {other}"))),
    }
}

/// The strongest mechanism that both have.
fn choose(
    stream: &Stream,
    offered: &[u8],
    scram: UpstreamScram,
) -> Result<(&'static str, Binding), UpstreamError> {
    let offers = |name: &str| offered.split(|b| *b == 0).any(|m| m == name.as_bytes());
    let certificate = match stream {
        Stream::Client(tls) => tls.get_ref().1.peer_certificates().and_then(|c| server_end_point(c.first()?)),
        _ => None,
    };
    match certificate {
        Some(hash) if offers(SCRAM_SHA_256_PLUS) && scram.channel_binding != ChannelBinding::Disable => {
            Ok((SCRAM_SHA_256_PLUS, Binding::tls_server_end_point(hash)))
        }
        _ if scram.channel_binding == ChannelBinding::Require => {
            Err(UpstreamError::Auth("channel binding is required, but the server does not offer it".into()))
        }
        Some(_) if offers(SCRAM_SHA_256) && !offers(SCRAM_SHA_256_PLUS) => {
            Ok((SCRAM_SHA_256, Binding::unrequested()))
        }
        _ if offers(SCRAM_SHA_256) => Ok((SCRAM_SHA_256, Binding::unsupported())),
        _ => Err(UpstreamError::Auth("the server offers no SASL mechanism that pgusher has".into())),
    }
}

/// How many iterations a server's first message asks for.
///
/// # Errors
/// Fewer than are wanted, or it does not say.
pub fn server_iterations(first: &[u8], floor: u32) -> Result<u64, String> {
    let text = std::str::from_utf8(first).map_err(|e| e.to_string())?;
    let iterations =
        text.split(',').find_map(|part| part.strip_prefix("i=")).and_then(|i| i.parse::<u64>().ok());
    match iterations {
        Some(i) if i >= u64::from(floor) => Ok(i),
        Some(i) => Err(format!("{i} iterations are fewer than scram_min_iterations = {floor}")),
        None => Err("no iteration count".into()),
    }
}

/// Answers the server's first message, away from the runtime: its iterations are work.
async fn answer(
    mut scram: ScramSha256,
    data: Vec<u8>,
    dialer: &Dialer,
) -> Result<ScramSha256, UpstreamError> {
    let floor = dialer.connection.scram.min_iterations;
    let failed = |why: String| UpstreamError::Auth(format!("SCRAM: {why}"));
    server_iterations(&data, floor).map_err(failed)?;
    let proved = dialer.aside.run(move || scram.update(&data).map(|()| scram)).await;
    proved.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
}

async fn send(stream: &mut Stream, body: impl FnOnce(&mut Vec<u8>)) -> Result<(), UpstreamError> {
    let mut out = zeroize::Zeroizing::new(Vec::with_capacity(128));
    wire::message(&mut out, b'p', body);
    stream.write_all(&out).await?;
    stream.flush().await?;
    Ok(())
}

/// A stored `md5…` hash serves in place of the password.
fn md5_proof(user: &str, password: &SecretString, salt: [u8; 4]) -> String {
    match Verifier::parse(password) {
        Ok(Verifier::Md5(stored)) => md5_response(&stored, salt),
        _ => md5_response(&md5_hex([password.expose_secret().as_bytes(), user.as_bytes()]), salt),
    }
}
