//! HTTP/1.1 for operators and their tools, with bounds on how slow and how many they may be; `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::{self, Figures};
use crate::proxy::Current;
use crate::stream::{self, ReusePort};
use policy::config::file::SslMode;

/// How many clients at a time.
const MAX_CLIENTS: usize = 64;
/// How long a request's head may take (and TLS before it), and a whole connection.
const HEAD: Duration = Duration::from_secs(10);
const CONNECTION: Duration = Duration::from_secs(60);
/// How long nobody has to make room for others.
const GRACE: Duration = Duration::from_secs(1);
/// The longest head.
const MAX_HEAD: usize = 16 << 10;
/// How many more may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long accepting rests when the system has no more descriptors or memory.
const REST: Duration = Duration::from_millis(100);
/// The first byte of TLS: a record of its handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Whether an address speaks TLS, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    /// Never.
    Plain,
    /// As the clients of PostgreSQL may or must.
    AsClients,
}

/// What an address serves.
#[derive(Clone)]
pub(crate) struct Service {
    /// Whose TLS it has.
    pub current: Arc<Current>,
    /// The calls.
    pub router: Router,
    /// Whether by TLS.
    pub security: Security,
}

/// Where a request comes from.
#[derive(Debug, Clone)]
pub(crate) struct RequestPeer {
    /// Its address.
    pub address: SocketAddr,
    usage: Arc<Mutex<Use>>,
}

/// What a connection is kept for.
#[derive(Debug)]
struct Use {
    /// How many authorized requests are under way.
    running: usize,
    /// When the last of them ended, or the connection began.
    since: Instant,
}

impl RequestPeer {
    fn new(address: SocketAddr) -> Self {
        Self { address, usage: Arc::new(Mutex::new(Use { running: 0, since: Instant::now() })) }
    }

    /// An authorized request begins: its connection keeps its permit until this is dropped.
    pub(crate) fn begins(&self) -> Running {
        self.usage.lock().running += 1;
        Running(self.usage.clone())
    }

    /// How long ago its last authorized request ended; `None` while one is under way.
    fn idle(&self) -> Option<Duration> {
        let known = self.usage.lock();
        (known.running == 0).then(|| known.since.elapsed())
    }
}

/// An authorized request that is under way.
#[derive(Debug)]
pub(crate) struct Running(Arc<Mutex<Use>>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut known = self.0.lock();
        known.running -= 1;
        known.since = Instant::now();
    }
}

/// All connections. Those without an authorized request for a while make room for others.
#[derive(Debug, Default)]
struct Connections(Mutex<Vec<(RequestPeer, CancellationToken)>>);

impl Connections {
    fn enter(&self, peer: &RequestPeer) -> CancellationToken {
        let leave = CancellationToken::new();
        let mut all = self.0.lock();
        // Those who have left need not be remembered.
        all.retain(|(_, leave)| !leave.is_cancelled());
        all.push((peer.clone(), leave.clone()));
        leave
    }

    /// A permit; when all are taken, the connection that was idle for longest is closed, once it has had its time.
    async fn permit(&self, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        loop {
            let wait = match permits.clone().try_acquire_owned() {
                Ok(permit) => return Some(permit),
                Err(TryAcquireError::Closed) => return None,
                Err(TryAcquireError::NoPermits) => self.make_room(),
            };
            if let Ok(permit) = timeout(wait, permits.clone().acquire_owned()).await {
                return permit.ok();
            }
        }
    }

    /// How long until one of them may have to leave; none, if one has had to.
    fn make_room(&self) -> Duration {
        let mut all = self.0.lock();
        all.retain(|(_, leave)| !leave.is_cancelled());
        let idle = all.iter().enumerate().filter_map(|(i, (peer, _))| Some((peer.idle()?, i)));
        let Some((idle, longest)) = idle.max() else { return GRACE };
        let left = GRACE.saturating_sub(idle);
        if !left.is_zero() {
            return left;
        }
        all.swap_remove(longest).1.cancel();
        REST
    }
}

/// What `metrics_listen` serves.
pub(crate) fn figures(figures: Figures) -> Router {
    Router::new()
        .route("/metrics", get(all_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(figures)
}

async fn all_metrics(State(figures): State<Figures>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // Its work grows with the sessions: not on the thread that accepts.
    let figures = tokio::task::spawn_blocking(move || metrics::render(figures)).await;
    ([(header::CONTENT_TYPE, kind)], figures.unwrap_or_default())
}

/// Whether clients are accepted.
async fn ready(State(figures): State<Figures>) -> (StatusCode, &'static str) {
    match figures.are_clients_accepted() {
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// Binds it, maybe beside another process.
///
/// # Errors
/// As bind(2) and listen(2).
pub(crate) fn bind(address: SocketAddr, reuse: ReusePort) -> io::Result<TcpListener> {
    TcpListener::from_std(stream::listen(address, reuse, BACKLOG)?)
}

/// Serves until the process ends: whoever watches sees it drain. With `so_reuseport`, until another process is to be
/// asked.
pub(crate) async fn run(service: Service, listener: TcpListener, closing: CancellationToken) {
    let reuse = ReusePort::of(&service.current.generation().config.server);
    let permits = Arc::new(Semaphore::new(MAX_CLIENTS));
    let connections = Arc::new(Connections::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled(), if reuse == ReusePort::Shared => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept HTTP clients for a moment");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let permit = connections.permit(&permits).await;
        let service = service.clone();
        let peer = RequestPeer::new(peer);
        let leave = connections.enter(&peer);
        tokio::spawn(async move {
            let address = peer.address;
            tokio::select! {
                served = serve_client(service, socket, peer) => {
                    served.unwrap_or_else(|error| debug!(%error, %address, "an HTTP client"));
                }
                () = leave.cancelled() => debug!(%address, "an HTTP client had to make room"),
            }
            leave.cancel();
            drop(permit);
        });
    }
}

/// TLS or not, as `[server.tls]` says now.
async fn serve_client(service: Service, socket: TcpStream, peer: RequestPeer) -> io::Result<()> {
    let Service { current, router, security } = service;
    let generation = current.generation();
    let tls = generation.tls.as_ref().filter(|_| security == Security::AsClients);
    let Some(tls) = tls.filter(|tls| tls.mode != SslMode::Disable) else {
        return serve_requests(socket, peer, router).await;
    };
    let mut first = [0];
    timeout(HEAD, socket.peek(&mut first)).await??;
    if first[0] == TLS_HANDSHAKE {
        let stream = timeout(HEAD, TlsAcceptor::from(tls.http.clone()).accept(socket)).await??;
        return serve_requests(stream, peer, router).await;
    }
    match tls.mode {
        SslMode::Allow | SslMode::Prefer => serve_requests(socket, peer, router).await,
        _ => Err(io::Error::other("without TLS, which [server.tls] requires")),
    }
}

async fn serve_requests<S>(stream: S, peer: RequestPeer, router: Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        TowerToHyperService::new(router.clone()).call(request.map(Body::new))
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let served = match timeout(CONNECTION, &mut connection).await {
        Ok(served) => served,
        Err(_) => {
            // What is being answered is answered.
            connection.as_mut().graceful_shutdown();
            timeout(HEAD, connection).await?
        }
    };
    served.map_err(io::Error::other)
}
