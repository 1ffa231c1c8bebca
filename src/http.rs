//! HTTP for operators and their tools: `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::metrics;
use crate::proxy::Proxy;
use crate::stream;

/// How many clients at a time.
const MAX_CLIENTS: usize = 64;
/// How long a request's head may take, and a whole connection.
const HEAD: Duration = Duration::from_secs(10);
const CONNECTION: Duration = Duration::from_secs(60);
/// The longest head.
const MAX_HEAD: usize = 16 << 10;
const BACKLOG: i32 = 128;
/// How long accepting rests when the system has no more descriptors or memory.
const REST: Duration = Duration::from_millis(100);

fn router(proxy: Arc<Proxy>) -> Router {
    Router::new()
        .route("/metrics", get(all_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(proxy)
}

async fn all_metrics(State(proxy): State<Arc<Proxy>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&proxy))
}

/// Whether clients are accepted.
async fn ready(State(proxy): State<Arc<Proxy>>) -> (StatusCode, &'static str) {
    match () {
        () if proxy.is_draining() || proxy.closing.is_cancelled() => {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        }
        () if !proxy.is_listening() => (StatusCode::SERVICE_UNAVAILABLE, "not listening yet\n"),
        () => (StatusCode::OK, "ok\n"),
    }
}

/// Binds it, maybe beside another process.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    TcpListener::from_std(stream::listen(address, shared, BACKLOG)?)
}

/// Serves until the process ends: whoever watches sees it drain. With `so_reuseport`, until another process is to be
/// asked.
pub async fn run(proxy: Arc<Proxy>, listener: TcpListener) {
    let shared = *proxy.generation().config.server.so_reuseport;
    let closing = proxy.closing.clone();
    let router = router(proxy);
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled(), if shared => return,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                warn!(%error, "cannot accept HTTP clients for a moment");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            let service = TowerToHyperService::new(router);
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
            let connection = server.serve_connection(TokioIo::new(socket), service);
            if let Ok(Err(error)) = timeout(CONNECTION, connection).await {
                debug!(%error, "an HTTP client");
            }
            drop(place);
        });
    }
}
