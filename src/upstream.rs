//! One authenticated connection to an upstream: dial it, log in, cancel on it.

mod login;
pub(crate) use login::keep_notice;
mod rows;

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::warn;

use crate::aside::Aside;
use crate::stream::{Socket, Stream};
use crate::tls::{self, ALPN, TlsError, UpstreamClient};
pub use login::server_iterations;
use policy::config::file::{SslMode, SslNegotiation};
use policy::config::{Connection, Host, Server};
use policy::names::UserName;
use relay::settings::Parameter;
pub(crate) use rows::{Allowance, rows};
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;

/// How many of its slow things may be done at once: names looked up, passwords read again, proofs made.
const MAX_ASIDE: usize = 4;
/// How many cancel requests may be under way to one connection's server.
const MAX_CANCELS: usize = 64;

/// An upstream connection that has just logged in.
#[derive(Debug)]
pub struct Backend {
    /// Its bytes.
    pub stream: Stream,
    /// What a cancel needs.
    pub target: Arc<CancelTarget>,
    /// What it reported at login (`ParameterStatus`), in its order.
    pub parameters: Vec<Parameter>,
    /// What it said at login (`NoticeResponse`s, whole).
    pub notices: Vec<u8>,
}

/// How a dial differs from connection to connection, but not from dial to dial.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Where to, and as whom.
    pub connection: Arc<Connection>,
    /// TLS, unless it is never used.
    pub tls: Option<UpstreamClient>,
    /// Idle time before keepalive probes; zero leaves it to the system.
    pub keepidle: Duration,
    /// `TCP_USER_TIMEOUT`; zero leaves it to the system.
    pub user_timeout: Duration,
    /// The longest a cancel request may take.
    pub cancel_timeout: Duration,
    /// Places for the cancel requests that are under way to this connection's server: the others wait, within their time,
    /// and nobody who cancels elsewhere waits with them.
    pub cancels: Arc<Semaphore>,
    /// Where its slow things are done.
    pub aside: Aside,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// The name is none.
    #[error("could not translate host name \"{0}\" to address: {1}")]
    Resolve(String, io::Error),
    /// Nobody listens, or the network is down.
    #[error("connection to server at \"{0}\" failed: {1}")]
    Connect(String, io::Error),
    /// `connect_timeout` is over.
    #[error("connection to server at \"{0}\" timed out")]
    Timeout(String),
    /// It does not do TLS, and we must.
    #[error("server at \"{0}\" does not support TLS, but TLS was required")]
    NoTls(String),
    /// TLS failed: an unknown authority, a wrong name, a broken handshake.
    #[error("TLS with server at \"{0}\" failed: {1}")]
    Tls(String, io::Error),
    /// The configured certificates cannot be used.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// It said no, in its own words.
    #[error("{message} ({sqlstate})")]
    Refused {
        /// SQLSTATE as sent; `08P01` if it sent none.
        sqlstate: String,
        /// Its message.
        message: String,
    },
    /// It wants a proof that pgusher does not have or give.
    #[error("cannot log in: {0}")]
    Auth(String),
    /// It asks for a proof that it may not have.
    #[error("cannot log in: the server {asks}, which require_auth does not allow: {hint}")]
    Method {
        /// What it does: "asks for …".
        asks: &'static str,
        /// What to write in the file.
        hint: String,
    },
    /// It does not speak the protocol.
    #[error("unexpected answer from server: {0}")]
    Protocol(String),
    /// The connection broke during the login.
    #[error("connection lost during login: {0}")]
    Io(#[from] io::Error),
    /// A fault of ours.
    #[error("dial failed")]
    Panicked,
}

impl UpstreamError {
    /// What a client that waits for the connection is told.
    pub fn refusal(&self, connection: &Connection) -> Refusal {
        let refusal = match self {
            Self::Refused { sqlstate, message } => match sqlstate.as_str() {
                // The upstream's own words, where they are about it and not about our login.
                "53300" => Refusal::new(Fault::Upstream, SqlState::TOO_MANY_CONNECTIONS, message.clone()),
                "57P03" => Refusal::new(Fault::Upstream, SqlState::CANNOT_CONNECT_NOW, message.clone()),
                "57P01" => Refusal::new(Fault::Upstream, SqlState::ADMIN_SHUTDOWN, message.clone()),
                "3D000" => Refusal::new(Fault::Operator, SqlState::UNKNOWN_DATABASE, message.clone()),
                _ => Refusal::new(
                    Fault::Operator,
                    SqlState::UNABLE_TO_CONNECT,
                    "the upstream server refused pgusher's login",
                )
                .detail(format!("{message} ({sqlstate}).")),
            },
            Self::Method { asks, hint } => {
                let message = format!("cannot log in: the server {asks}, which require_auth does not allow");
                let refusal = Refusal::new(Fault::Operator, SqlState::UNABLE_TO_CONNECT, message);
                refusal.hint(format!("To whoever runs pgusher: {hint}."))
            }
            Self::Certificate(_) | Self::Auth(_) => {
                Refusal::new(Fault::Operator, SqlState::UNABLE_TO_CONNECT, self.to_string())
            }
            Self::Panicked => Refusal::new(Fault::Ours, SqlState::INTERNAL, self.to_string()),
            _ => Refusal::new(Fault::Upstream, SqlState::UNABLE_TO_CONNECT, self.to_string()),
        };
        // For the client, who can do no more about it.
        let refusal = match refusal.hint {
            None => refusal.hint("Try again later; if it lasts, tell whoever runs pgusher."),
            Some(_) => refusal,
        };
        refusal.in_environment(connection.environment.as_str(), connection.name.as_str())
    }
}

/// What it takes to cancel on one upstream connection, and how many cancels are under way to it.
#[derive(Debug)]
pub struct CancelTarget {
    dialer: Dialer,
    address: Address,
    local: Option<SocketAddr>,
    opened: SystemTime,
    tls: bool,
    pid: u32,
    secret: Box<[u8]>,
    fence: AtomicUsize,
    unfenced: Notify,
    /// Told when the connection is gone, and everybody who might cancel it.
    gone: OnceLock<Arc<Notify>>,
    /// For whom it was used last.
    user: Mutex<Option<UserName>>,
    /// Cancel requests that were sent, and of which it is not known whether the upstream has dealt with them.
    unsettled: AtomicUsize,
}

#[derive(Debug, Clone)]
enum Address {
    Tcp(SocketAddr),
    Unix(std::path::PathBuf),
}

/// Whether TLS is tried on one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    Plain,
    /// TLS, or plain if the server says no.
    Either,
    Tls,
}

impl Dialer {
    /// For a connection of a configuration.
    ///
    /// # Errors
    /// Its certificates, or the name for them, cannot be used.
    pub fn of(server: &Server, connection: &Arc<Connection>) -> Result<Self, TlsError> {
        Ok(Self {
            connection: connection.clone(),
            tls: tls::upstream(&connection.tls, &connection.target.host)?,
            keepidle: *server.tcp_keepidle,
            user_timeout: *server.tcp_user_timeout,
            cancel_timeout: *server.cancel_wait_timeout,
            cancels: Arc::new(Semaphore::new(MAX_CANCELS)),
            aside: Aside::new(MAX_ASIDE),
        })
    }

    /// Dials and logs in, with these settings in the startup packet, within the connection's `connect_timeout`.
    /// If the password is refused, it is read again, and tried once more if it has changed.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn dial(&self, settings: &Settings) -> Result<Backend, UpstreamError> {
        let place = self.place();
        timeout(self.connection.connect_timeout, self.dial_and_reread(settings))
            .await
            .unwrap_or(Err(UpstreamError::Timeout(place)))
    }

    async fn dial_and_reread(&self, settings: &Settings) -> Result<Backend, UpstreamError> {
        let password = self.connection.password.as_ref().map(|p| p.value());
        let refused = match self.dial_modes(settings, password.as_ref()).await {
            Err(UpstreamError::Refused { sqlstate, message }) if sqlstate == "28P01" => {
                UpstreamError::Refused { sqlstate, message }
            }
            other => return other,
        };
        let (Some(secret), Some(used)) = (self.connection.password.clone(), password) else {
            return Err(refused);
        };
        match self.aside.run(move || crate::machine::reread(&secret).map(|_| secret.value())).await {
            Ok(Ok(new)) if !login::same(&new, &used) => self.dial_modes(settings, Some(&new)).await,
            Ok(Err(error)) => Err(UpstreamError::Auth(error.to_string())),
            _ => Err(refused),
        }
    }

    /// The attempts that `sslmode` allows, in its order.
    async fn dial_modes(
        &self,
        settings: &Settings,
        password: Option<&secrecy::SecretString>,
    ) -> Result<Backend, UpstreamError> {
        let (first, second) = match self.connection.tls.mode {
            _ if self.tls.is_none() => (Security::Plain, None),
            SslMode::Disable => (Security::Plain, None),
            SslMode::Allow => (Security::Plain, Some(Security::Tls)),
            SslMode::Prefer => (Security::Either, Some(Security::Plain)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Security::Tls, None),
        };
        match (self.dial_once(first, settings, password).await, second) {
            // As libpq's `prefer`: whoever could break the handshake could as well have said that there is no TLS.
            (Err(error @ UpstreamError::Tls(..)), Some(second)) if first == Security::Either => {
                warn!(connection = %self.connection.name, %error, "sslmode = \"prefer\" goes on without TLS");
                match self.dial_once(second, settings, password).await {
                    Err(UpstreamError::Refused { sqlstate, .. }) if sqlstate == "28000" => Err(error),
                    other => other,
                }
            }
            // 28000: pg_hba.conf has no line for this kind of connection.
            (Err(UpstreamError::Refused { sqlstate, message }), Some(second)) if sqlstate == "28000" => {
                let again = self.dial_once(second, settings, password).await;
                again.map_err(|_| UpstreamError::Refused { sqlstate, message })
            }
            (other, _) => other,
        }
    }

    async fn dial_once(
        &self,
        security: Security,
        settings: &Settings,
        password: Option<&secrecy::SecretString>,
    ) -> Result<Backend, UpstreamError> {
        let (socket, address) = self.connect().await?;
        let local = match &socket {
            Socket::Tcp(tcp) => tcp.local_addr().ok(),
            Socket::Unix(_) | Socket::Ring(..) | Socket::Coming(..) | Socket::Moving(_) => None,
        };
        let mut stream = self.secure(socket, security).await?;
        let login = login::log_in(&mut stream, self, settings, password).await?;
        let target = CancelTarget {
            dialer: self.clone(),
            address,
            local,
            opened: SystemTime::now(),
            tls: stream.is_tls(),
            pid: login.pid,
            secret: login.secret,
            fence: AtomicUsize::new(0),
            unfenced: Notify::new(),
            gone: OnceLock::new(),
            user: Mutex::default(),
            unsettled: AtomicUsize::new(0),
        };
        Ok(Backend { stream, target: Arc::new(target), parameters: login.parameters, notices: login.notices })
    }

    fn place(&self) -> String {
        let target = &self.connection.target;
        format!("{}:{}", target.host, target.port)
    }

    /// Every address of the host in turn, each with its share of the time.
    async fn connect(&self) -> Result<(Socket, Address), UpstreamError> {
        let target = &self.connection.target;
        let name = match &target.host {
            Host::Socket(folder) => {
                let address = Address::Unix(folder.join(format!(".s.PGSQL.{}", target.port)));
                let socket = self.connect_to(&address).await;
                return Ok((socket.map_err(|e| UpstreamError::Connect(self.place(), e))?, address));
            }
            Host::Name(name) => name,
        };
        let addresses = self.addresses(name, target.port).await;
        let addresses = addresses.map_err(|e| UpstreamError::Resolve(name.clone(), e))?;
        let deadline = Instant::now() + self.connection.connect_timeout;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (i, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - i).unwrap_or(1);
            let address = Address::Tcp(*address);
            match timeout(share, self.connect_to(&address)).await {
                Ok(Ok(socket)) => return Ok((socket, address)),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(UpstreamError::Connect(self.place(), last))
    }

    async fn addresses(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(vec![(ip, port).into()]);
        }
        let name = name.to_owned();
        self.aside.run(move || Ok((name, port).to_socket_addrs()?.collect())).await?
    }

    async fn connect_to(&self, address: &Address) -> io::Result<Socket> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
            Address::Tcp(address) => {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let socket = SockRef::from(&tcp);
                if !self.keepidle.is_zero() {
                    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(self.keepidle))?;
                }
                if !self.user_timeout.is_zero() {
                    socket.set_tcp_user_timeout(Some(self.user_timeout))?;
                }
                Ok(Socket::Tcp(tcp))
            }
        }
    }

    async fn secure(&self, mut socket: Socket, security: Security) -> Result<Stream, UpstreamError> {
        let (Some(tls), false) = (&self.tls, security == Security::Plain) else {
            return Ok(Stream::Plain(socket));
        };
        let direct = self.connection.tls.negotiation == SslNegotiation::Direct;
        if !direct {
            socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
            // What comes with the answer in the clear is not the server's (CVE-2021-23222); what comes later goes to the TLS
            // handshake, and fails it.
            let mut answer = [0; 2];
            let read = socket.read(&mut answer).await?;
            match (answer[0], security) {
                _ if read == 0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                (b'S' | b'N', _) if read > 1 => {
                    return Err(UpstreamError::Protocol("bytes behind the answer to an SSLRequest".into()));
                }
                (b'S', _) => {}
                (b'N', Security::Either) => return Ok(Stream::Plain(socket)),
                (b'N', _) => return Err(UpstreamError::NoTls(self.place())),
                // An error before TLS could come from anybody: its text is not passed on (CVE-2024-10977).
                (other, _) => return Err(UpstreamError::Protocol(format!("{other:#x} to an SSLRequest"))),
            }
        }
        let connector = TlsConnector::from(tls.config.clone());
        let failed = |e| UpstreamError::Tls(self.place(), tls::explained(e));
        let stream = connector.connect(tls.name.clone(), socket).await.map_err(failed)?;
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(failed(io::Error::other("direct TLS without ALPN")));
        }
        Ok(Stream::Client(Box::new(stream)))
    }
}

/// Keeps an upstream connection from being lent while a cancel for it is under way.
pub struct Fence(Arc<CancelTarget>);

impl Drop for Fence {
    fn drop(&mut self) {
        if self.0.fence.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.unfenced.notify_waiters();
        }
    }
}

impl Drop for CancelTarget {
    fn drop(&mut self) {
        self.gone.get().inspect(|gone| gone.notify_waiters());
    }
}

impl CancelTarget {
    /// Whom to tell when it is gone.
    pub(crate) fn tell_when_gone(&self, gone: Arc<Notify>) {
        let _ = self.gone.set(gone);
    }

    /// Raises a fence; must be called while the connection is known to be lent to whoever cancels.
    pub fn fence(self: &Arc<Self>) -> Fence {
        self.fence.fetch_add(1, Ordering::AcqRel);
        Fence(self.clone())
    }

    /// Whether a cancel is under way.
    pub fn is_fenced(&self) -> bool {
        self.fence.load(Ordering::Acquire) > 0
    }

    /// Whether a cancel was sent of which the end is not known: it could hit whoever has the connection next.
    pub fn is_spoiled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) > 0
    }

    /// Waits until none is.
    pub async fn unfenced(&self) {
        loop {
            let notified = self.unfenced.notified();
            if !self.is_fenced() {
                return;
            }
            notified.await;
        }
    }

    /// The upstream's address: of TCP, or the path of its socket.
    pub fn remote(&self) -> (String, u16) {
        match &self.address {
            Address::Tcp(address) => (address.ip().to_string(), address.port()),
            Address::Unix(_) => ("unix".to_owned(), self.dialer.connection.target.port),
        }
    }

    /// Our own end of it, of TCP.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// When it was logged in.
    pub fn opened(&self) -> SystemTime {
        self.opened
    }

    /// The user that it serves, or served last.
    pub fn last_user(&self) -> Option<UserName> {
        self.user.lock().clone()
    }

    /// From now on it serves this one.
    pub fn is_used_for(&self, user: &UserName) {
        *self.user.lock() = Some(user.clone());
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The upstream's process ID of this connection.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a cancel request over the same kind of transport as the connection's, and waits until the upstream
    /// has closed it: then the signal was sent.
    ///
    /// # Errors
    /// It could not be sent; the query goes on.
    pub async fn cancel(&self) -> Result<(), UpstreamError> {
        let work = async {
            let _place = self.dialer.cancels.acquire().await.map_err(io::Error::other)?;
            let socket = self.dialer.connect_to(&self.address).await?;
            let security = if self.tls { Security::Tls } else { Security::Plain };
            let mut stream = self.dialer.secure(socket, security).await?;
            let mut packet = Vec::with_capacity(16);
            let length = u32::try_from(12 + self.secret.len()).unwrap_or(16);
            packet.extend(length.to_be_bytes());
            packet.extend(80_877_102u32.to_be_bytes());
            packet.extend(self.pid.to_be_bytes());
            packet.extend_from_slice(&self.secret);
            self.unsettled.fetch_add(1, Ordering::AcqRel);
            stream.write_all(&packet).await?;
            stream.flush().await?;
            let mut end = [0; 64];
            while stream.read(&mut end).await? > 0 {}
            // Not reached, if this is dropped before: then nobody knows when the signal will come.
            self.unsettled.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        };
        let place = self.dialer.place();
        timeout(self.dialer.cancel_timeout, work).await.unwrap_or(Err(UpstreamError::Timeout(place)))
    }
}
