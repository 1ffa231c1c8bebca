//! `pgusher serve`: the runtimes, the log, the signals.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Checked, LogFormat, LogLevel, Server};
use crate::http;
use crate::listener;
use crate::pool::Runtimes;
use crate::proxy::Proxy;

/// What is left running when everything was told to end may take this long.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Runs until a signal ends it.
pub fn serve(file: &Path) -> ExitCode {
    let checked = match super::load(file) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    start_log(&checked.config.server);
    raise_descriptor_limit();
    checked.warnings.iter().for_each(|w| warn!("{}", checked.warnings.line(w)));
    match runtimes(&checked.config.server) {
        Ok((control, data)) => {
            let code = control.block_on(run(checked, control.handle(), data.handle()));
            data.stop();
            control.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(server: &Server) {
    let level = match *server.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    match *server.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Each client and each upstream connection is a descriptor.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        warn!("cannot raise the limit of open files");
    }
}

/// The runtime that relays: of one thread, which costs least per transaction, or of several. It has no clock, so
/// that it need not look at one whenever it waits.
enum DataPlane {
    One { handle: Handle, stop: CancellationToken, thread: JoinHandle<()> },
    Several(Runtime),
}

impl DataPlane {
    fn start(threads: usize) -> std::io::Result<Self> {
        if threads > 1 {
            let mut builder = Builder::new_multi_thread();
            return builder
                .worker_threads(threads)
                .thread_name("relay")
                .enable_all()
                .build()
                .map(Self::Several);
        }
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone().cancelled_owned();
        let work = move || runtime.block_on(stopped);
        let thread = std::thread::Builder::new().name("relay".into()).spawn(work)?;
        Ok(Self::One { handle, stop, thread })
    }

    fn handle(&self) -> &Handle {
        match self {
            Self::One { handle, .. } => handle,
            Self::Several(runtime) => runtime.handle(),
        }
    }

    fn stop(self) {
        match self {
            Self::One { stop, thread, .. } => {
                stop.cancel();
                let _ = thread.join();
            }
            Self::Several(runtime) => runtime.shutdown_background(),
        }
    }
}

/// One runtime for what is slow, one for relaying.
fn runtimes(server: &Server) -> std::io::Result<(Runtime, DataPlane)> {
    let threads = match *server.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads as usize,
    };
    let control = Builder::new_current_thread().enable_all().build()?;
    Ok((control, DataPlane::start(threads)?))
}

async fn run(checked: Checked, control: &Handle, data: &Handle) -> ExitCode {
    let listeners = match listener::bind(&checked.config.server) {
        Ok(listeners) => listeners,
        Err((address, error)) => {
            eprintln!("cannot listen on {address}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtimes = Runtimes { control: control.clone(), data: data.clone(), tasks: TaskTracker::new() };
    let proxy = match Proxy::new(checked, runtimes) {
        Ok(proxy) => proxy,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    listener::announce(&listeners);
    if let Some(address) = *proxy.generation().config.server.metrics_listen {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => {
                let bound = listener.local_addr().unwrap_or(address);
                info!(address = %bound, "metrics listening");
                control.spawn(http::run(proxy.clone(), listener));
            }
            Err(error) => {
                eprintln!("cannot listen on {address} (metrics_listen): {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    control.spawn(proxy.clone().tend());
    let accepting: Vec<_> =
        listeners.into_iter().map(|listener| control.spawn(listener::run(proxy.clone(), listener))).collect();
    proxy.listens();
    signals(&proxy).await;
    for task in accepting {
        task.abort();
        let _ = task.await;
    }
    proxy.runtimes.tasks.close();
    let _ = tokio::time::timeout(LAST_TASKS, proxy.runtimes.tasks.wait()).await;
    info!("stopped");
    ExitCode::SUCCESS
}

/// `SIGHUP` reloads; `SIGTERM` and `SIGINT` drain; another of those ends at once.
async fn signals(proxy: &Arc<Proxy>) {
    let streams =
        (signal(SignalKind::hangup()), signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)) = streams else {
        warn!("cannot listen to signals");
        return std::future::pending().await;
    };
    let mut asked = std::pin::pin!(proxy.end_when_asked());
    loop {
        tokio::select! {
            () = &mut asked => return,
            _ = hangup.recv() => {
                let proxy = proxy.clone();
                let _ = tokio::task::spawn_blocking(move || drop(proxy.reload_and_log())).await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tokio::select! {
        () = proxy.drain() => {}
        _ = terminate.recv() => warn!("second signal: ending at once"),
        _ = interrupt.recv() => warn!("second signal: ending at once"),
    }
}
