//! `pgusher serve`: the runtimes, the signals.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle as Task;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use tracing_appender::non_blocking::ErrorCounter;

use super::{log, service};
use crate::audit::{Audit, Event};
use crate::console::Console;
use crate::entrance::Entrance;
use crate::http::{self, Security, Service};
use crate::lifetime::{Lifetime, Shutdown};
use crate::listener::{self, Acceptor, OpenedBy};
use crate::management;
use crate::metrics::Figures;
use crate::pool::{Data, Runtimes};
use crate::prepare::PreparedConfig;
use crate::proxy::{Proxy, SetLevel};
use crate::ring::{self, Relays};
use crate::siblings::{self, Siblings};
use crate::stream::ReusePort;
use policy::config::file::Io;
use policy::config::{Config, Outside, Server, ValidatedConfig};

/// What is left running when everything was told to end may take this long.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Runs until a signal ends it.
pub(super) fn serve(file: &Path) -> ExitCode {
    let prepared = match super::prepared(file, Outside::Read) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let checked = prepared.checked();
    let log::Log { _writes, dropped, set } = log::start(&checked.config().server);
    set_limits();
    checked.warnings().iter().for_each(|w| warn!("{}", checked.warnings().line(w)));
    match runtimes(&checked.config().server) {
        Ok((control, data)) => {
            let ended = control.block_on(run(prepared, (dropped, set), control.handle(), data.data()));
            // What is left of the sessions ends with the runtimes: only then is nothing more to be told.
            data.stop();
            control.shutdown_background();
            let ended = ended.map(|audit| {
                audit.record(|| Event::new("stop").number("pid", pid()));
                audit.close();
                info!("stopped");
            });
            ended.map_or_else(
                |why| {
                    eprintln!("{why}");
                    ExitCode::FAILURE
                },
                |()| ExitCode::SUCCESS,
            )
        }
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Each client and each upstream connection is a descriptor.
fn set_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // The allocator would fill them for each thread that has a few bytes in one.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // A picture of the memory would hold passwords and what clients are sent.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        warn!("cannot raise the limit of open files");
    }
}

/// The runtime that relays: of one thread, which costs least per transaction, or of several. It has no clock, so
/// that it need not look at one whenever it waits.
enum DataPlane {
    Ring(Relays),
    One { handle: Handle, stop: CancellationToken, thread: JoinHandle<()> },
    Several(Runtime),
}

impl DataPlane {
    /// As configured.
    ///
    /// # Errors
    /// What cannot be had.
    fn start(server: &Server) -> std::io::Result<Self> {
        let threads = ring::threads(server);
        if ring::is_wanted(server) {
            match Relays::start(threads, *server.thread_full) {
                Ok(relays) => return Ok(Self::Ring(relays)),
                Err(reason) if *server.io == Io::IoUring => {
                    let advice = "io = \"auto\" takes epoll where there is none";
                    return Err(std::io::Error::other(format!("no io_uring: {reason}; {advice}")));
                }
                Err(reason) => info!(%reason, "no io_uring: epoll is used"),
            }
        }
        Self::on_epoll(threads)
    }

    fn on_epoll(threads: usize) -> std::io::Result<Self> {
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

    fn data(&self) -> Data {
        match self {
            Self::Ring(relays) => Data::Ring(relays.clone()),
            Self::One { handle, .. } => Data::Tokio(handle.clone()),
            Self::Several(runtime) => Data::Tokio(runtime.handle().clone()),
        }
    }

    fn stop(self) {
        match self {
            Self::Ring(relays) => relays.stop(),
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
    let control = Builder::new_current_thread().enable_all().build()?;
    let data = DataPlane::start(server)?;
    info!(io = data.data().io(), "relaying");
    Ok((control, data))
}

/// Until it has ended; what is to be told of that, and closed.
///
/// # Errors
/// Why it could not begin.
async fn run(
    prepared: PreparedConfig,
    (dropped, set): (ErrorCounter, SetLevel),
    control: &Handle,
    data: Data,
) -> Result<Audit, String> {
    // Before anybody can connect: whoever sees it listen may signal it.
    let signals = Signals::listen().map_err(|error| format!("cannot listen to signals: {error}"))?;
    let audit = open_audit(prepared.checked())?;
    let server = &prepared.checked().config().server;
    let http = Http::bind(prepared.checked().config())?;
    let inherited = listener::inherited(server)
        .map_err(|error| format!("a socket of the service manager cannot be listened on: {error}"))?;
    let opened_by = if inherited.is_empty() { OpenedBy::Us } else { OpenedBy::ServiceManager };
    let listeners = match opened_by {
        OpenedBy::Us => listener::bind(server)
            .map_err(|(address, error)| format!("cannot listen on {address}: {error}"))?,
        OpenedBy::ServiceManager => inherited,
    };
    let runtimes = Runtimes { control: control.clone(), data: data.clone(), tasks: TaskTracker::new() };
    let proxy = Proxy::new(prepared, runtimes, audit).map_err(|error| error.to_string())?;
    let generation = proxy.current.generation();
    let (connections, users) = (generation.config.connections.len(), generation.config.users.len());
    let (version, file) = (env!("CARGO_PKG_VERSION"), generation.config.path.display());
    info!(version, pid = pid(), %file, connections, users, "starting");
    listener::announce(&listeners);
    let server = &generation.config.server;
    http.serve(&proxy, control)?;
    proxy.journal.counters.log_lines_dropped(dropped);
    proxy.journal.log_is_set_by(set);
    control.spawn(proxy.tend());
    let successor = Successor::of(&proxy, opened_by);
    let siblings = (successor == Successor::Possible).then(|| Siblings::of(server));
    match siblings.as_ref().map(Siblings::listen) {
        Some(Ok(listener)) => drop(control.spawn(siblings::serve(listener, proxy.keys.clone()))),
        Some(Err(error)) => warn!(%error, "cancel requests that another process has will not be passed on"),
        None => {}
    }
    let door = Acceptor {
        entrance: Arc::new(Entrance::of(&proxy, siblings)),
        console: Arc::new(Console::of(&proxy)),
    };
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| control.spawn(listener::run(door.clone(), listener, opened_by)))
        .collect();
    control.spawn(service::watchdog(data.clone()));
    control.spawn(data.clone().balance());
    control.spawn(service::bury_orphans());
    proxy.life.listens();
    service::ready();
    proxy
        .journal
        .audit
        .record(|| Event::new("start").text("version", env!("CARGO_PKG_VERSION")).number("pid", pid()));
    signals.obey(&proxy, successor).await;
    for task in accepting {
        task.abort();
        let _ = task.await;
    }
    proxy.runtimes.tasks.close();
    let _ = tokio::time::timeout(LAST_TASKS, proxy.runtimes.tasks.wait()).await;
    proxy.journal.sum_up_refusals();
    Ok(proxy.journal.audit.clone())
}

/// The addresses for operators' tools, bound before those of clients: whoever finds these finds those.
struct Http {
    metrics: Option<TcpListener>,
    management: Option<TcpListener>,
}

impl Http {
    fn bind(config: &Config) -> Result<Self, String> {
        let reuse = ReusePort::of(&config.server);
        let bind = |address: Option<SocketAddr>, setting: &str| {
            let Some(address) = address else { return Ok(None) };
            let bound = http::bind(address, reuse);
            bound.map(Some).map_err(|error| format!("cannot listen on {address} ({setting}): {error}"))
        };
        Ok(Self {
            metrics: bind(*config.server.metrics_listen, "metrics_listen")?,
            management: bind(config.management.listen, "[management] listen")?,
        })
    }

    fn serve(self, proxy: &Proxy, control: &Handle) -> Result<(), String> {
        let serve = |what: &str, listener: TcpListener, router: Router, security: Security| {
            let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
            info!(address, "{what} listening");
            let service = Service { current: proxy.current.clone(), router, security };
            control.spawn(http::run(service, listener, proxy.life.closing().clone()));
        };
        if let Some(listener) = self.metrics {
            serve("metrics", listener, http::figures(Figures::of(proxy)), Security::Plain);
        }
        if let Some(listener) = self.management {
            let router = management::router(proxy).map_err(|error| error.to_string())?;
            serve("management", listener, router, Security::AsClients);
        }
        Ok(())
    }
}

fn pid() -> u64 {
    std::process::id().into()
}

/// The audit of a configuration, if it has one.
///
/// # Errors
/// What is wrong with its file, and what to do.
fn open_audit(checked: &ValidatedConfig) -> Result<Audit, String> {
    let server = &checked.config().server;
    let Some(path) = checked.config().audit_file() else { return Ok(Audit::default()) };
    Audit::open(&path, server.audit_max_size.0).map_err(|error| {
        let path = path.display();
        format!("cannot write the audit {path}: {error}. It must be a file of pgusher's, in a folder it may write to.")
    })
}

/// Whether another process can take the place of this one at the same addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    /// It shares them (`so_reuseport`), or is handed them by whoever has opened them.
    Possible,
    /// They are this process's alone: once it has closed them, nobody would be let in any more.
    Impossible,
}

impl Successor {
    fn of(proxy: &Proxy, opened_by: OpenedBy) -> Self {
        match (ReusePort::of(&proxy.current.generation().config.server), opened_by) {
            (ReusePort::Exclusive, OpenedBy::Us) => Self::Impossible,
            (ReusePort::Shared, _) | (_, OpenedBy::ServiceManager) => Self::Possible,
        }
    }
}

/// What an operator's signals ask for. Every signal that those of PgBouncer or PostgreSQL send is listened to: one that is
/// not ends the process in the middle of all transactions, without a word.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    pause: Signal,
    give_way: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            pause: signal(SignalKind::user_defined1())?,
            give_way: signal(SignalKind::user_defined2())?,
        })
    }

    /// `SIGHUP` reloads; `SIGUSR2` lets nobody in and ends after the last client, where another process can take over;
    /// `SIGTERM` and `SIGINT` drain; another of those, and `SIGQUIT` in any case, ends at once.
    async fn obey(mut self, proxy: &Proxy, successor: Successor) {
        let mut asked = std::pin::pin!(proxy.sessions.end_when_asked());
        // A reload may take long: stopping does not wait for it, and another SIGHUP is dealt with after it.
        let mut reload: Option<Task<()>> = None;
        loop {
            tokio::select! {
                () = &mut asked => return service::stopping(),
                _ = self.pause.recv() => warn!(
                    "SIGUSR1 does nothing here: PAUSE and RESUME are commands of the console, and the log needs no signal to \
                     be rotated"
                ),
                _ = self.give_way.recv() => make_way(&proxy.life, successor),
                _ = self.hangup.recv(), if reload.is_none() => {
                    service::reloading();
                    let configuration = proxy.configuration.clone();
                    reload = Some(tokio::task::spawn_blocking(move || drop(configuration.reload_and_log())));
                }
                () = ended(&mut reload) => {
                    reload = None;
                    service::ready();
                }
                _ = self.quit.recv() => {
                    warn!("SIGQUIT: ending at once");
                    return service::stopping();
                }
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
            }
        }
        service::stopping();
        tokio::select! {
            () = proxy.sessions.drain() => {}
            _ = self.terminate.recv() => warn!("second signal: ending at once"),
            _ = self.interrupt.recv() => warn!("second signal: ending at once"),
            _ = self.quit.recv() => warn!("SIGQUIT: ending at once"),
        }
    }
}

/// Returns when what was begun has ended, if anything was.
async fn ended(begun: &mut Option<Task<()>>) {
    match begun {
        Some(begun) => drop(begun.await),
        None => std::future::pending().await,
    }
}

/// `SIGUSR2` to a process that has no successor would only shut everybody out, and there is no way back: refused.
fn make_way(life: &Lifetime, successor: Successor) {
    match successor {
        Successor::Possible => life.ask_to_end(Shutdown::WaitForClients),
        Successor::Impossible => warn!(
            "SIGUSR2 refused: no other process can take over without so_reuseport = true; to stop, send SIGTERM; to resume \
             what was paused, use RESUME on the console"
        ),
    }
}
