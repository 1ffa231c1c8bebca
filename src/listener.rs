//! Binds, accepts, and starts a session for each client.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use socket2::{SockFilter, SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::{info, warn};

use crate::audit::Refused;
use crate::console::Console;
use crate::entrance::Entrance;
use crate::login_permits::{LoginLimits, no_permit};
use crate::proxy::Journal;
use crate::session;
use crate::stream::{self, Block, ReusePort, Socket};
use policy::config::{ListenAddress, Server};
use wire::{Severity, startup::MAX_STARTUP_LENGTH};

const BACKLOG: i32 = 4096;
/// How long accepting rests when the system has no more descriptors or memory.
const REST: Duration = Duration::from_millis(100);
/// How many sockets beyond `max_client_conn` may be there: cancels, and clients that are about to be refused.
const BEYOND: usize = 1000;
const DEFAULT_PORT: u16 = 6432;
/// How long a handshake that the system has begun may take to end while another process takes over.
const HANDSHAKE: Duration = Duration::from_millis(50);
/// Takes no SYN any more, and everything else: load the flags of the TCP header, return nothing of the packet if SYN is
/// among them, else all of it (bpf(4); socket(7), `SO_ATTACH_FILTER`).
const NO_SYN: [SockFilter; 4] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x45, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Who has opened the sockets that are listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenedBy {
    /// pgusher, at the addresses of its configuration.
    Us,
    /// Whoever has started it, such as systemd: they go on when pgusher ends.
    ServiceManager,
}

/// A bound address.
pub(crate) enum Listener {
    /// TCP
    Tcp(TcpListener),
    /// A unix socket; its file, if it is ours, is removed in the end.
    Unix(UnixListener, Option<SocketFile>),
}

/// Removes the file of a unix socket, unless another process has put its own there.
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let inode = std::fs::metadata(&path)?.ino();
        Ok(Self { path, inode })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds all addresses of a configuration.
///
/// # Errors
/// Which address, and why.
pub(crate) fn bind(server: &Server) -> Result<Vec<Listener>, (ListenAddress, io::Error)> {
    let reuse = ReusePort::of(server);
    let tcp_port = |a: &ListenAddress| match a {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix(_) => None,
    };
    let port = server.listen.iter().find_map(|a| tcp_port(a)).unwrap_or(DEFAULT_PORT);
    let mut listeners = Vec::new();
    for address in server.listen.iter() {
        let listener = match &**address {
            ListenAddress::Tcp(address) => stream::listen(*address, reuse, BACKLOG)
                .and_then(|listener| listen_on(listener, *server.tcp_keepidle)),
            ListenAddress::Unix(folder) => bind_unix(folder, port, reuse),
        };
        listeners.push(listener.map_err(|e| ((**address).clone(), e))?);
    }
    Ok(listeners)
}

/// What is set on a listening socket, every client of it inherits (on Linux): none of them costs a system call.
fn listen_on(listener: std::net::TcpListener, keepidle: Duration) -> io::Result<Listener> {
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket, keepidle);
    TcpListener::from_std(listener).map(Listener::Tcp)
}

/// The sockets that systemd (or the like) has opened for us, in place of those of the configuration (sd_listen_fds(3)).
///
/// # Errors
/// One of them is neither a TCP nor a unix listener.
pub(crate) fn inherited(server: &Server) -> io::Result<Vec<Listener>> {
    let mut sockets = ListenFd::from_env();
    let mut listeners = Vec::new();
    for i in 0..sockets.len() {
        // What is of another kind stays where it is.
        if let Ok(Some(tcp)) = sockets.take_tcp_listener(i) {
            tcp.set_nonblocking(true)?;
            listeners.push(listen_on(tcp, *server.tcp_keepidle)?);
        } else if let Some(unix) = sockets.take_unix_listener(i)? {
            unix.set_nonblocking(true)?;
            listeners.push(Listener::Unix(UnixListener::from_std(unix)?, None));
        }
    }
    Ok(listeners)
}

fn bind_unix(folder: &Path, port: u16, reuse: ReusePort) -> io::Result<Listener> {
    let path = folder.join(format!(".s.PGSQL.{port}"));
    if reuse == ReusePort::Shared {
        // Whoever connects meanwhile finds the old one or the new one.
        let aside = folder.join(format!(".s.PGSQL.{port}.{}", std::process::id()));
        let listener = UnixListener::bind(&aside)?;
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o777))?;
        std::fs::rename(&aside, &path)?;
        return Ok(Listener::Unix(listener, Some(SocketFile::new(path)?)));
    }
    if std::fs::metadata(&path).is_ok_and(|m| m.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(&path).is_err()
    {
        // Nobody answers: left behind by a process that was killed.
        std::fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    Ok(Listener::Unix(listener, Some(SocketFile::new(path)?)))
}

/// How long a client may be idle before it is probed; zero is never.
fn keep_alive(socket: &SockRef<'_>, keepidle: Duration) {
    let set = if keepidle.is_zero() {
        socket.set_keepalive(false)
    } else {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepidle))
    };
    if let Err(error) = set {
        warn!(%error, "cannot set tcp_keepidle");
    }
}

/// Where those who are accepted go.
#[derive(Clone)]
pub(crate) struct Acceptor {
    /// For clients.
    pub entrance: Arc<Entrance>,
    /// For operators.
    pub console: Arc<Console>,
}

/// Accepts clients until the proxy closes. Who waits in the queue of a socket that is not ours, waits for the next process.
pub(crate) async fn run(door: Acceptor, listener: Listener, opened_by: OpenedBy) {
    let _open = door.entrance.life.at_the_door();
    let mut keepidle = *door.entrance.current.generation().config.server.tcp_keepidle;
    loop {
        let accepted = tokio::select! {
            biased;
            () = door.entrance.life.closing().cancelled() => {
                if opened_by == OpenedBy::Us {
                    leave_to_others(&listener).await;
                    last_ones(&door, listener);
                }
                return;
            }
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let wanted = *door.entrance.current.generation().config.server.tcp_keepidle;
                if let (Listener::Tcp(listener), Socket::Tcp(tcp)) = (&listener, &socket)
                    && wanted != keepidle
                {
                    keepidle = wanted;
                    keep_alive(&listener.into(), keepidle);
                    keep_alive(&tcp.into(), keepidle);
                }
                start(&door, socket, peer);
            }
            Err(error) => {
                // ECONNABORTED is about one client that has left; the others are about us.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    warn!(%error, "cannot accept clients for a moment");
                    door.entrance.login_permits.make_room();
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }
}

/// Where another process listens, too, the system goes on choosing this one until its socket is closed, and resets whoever
/// came between the last accept and that. So nobody new is let in first: their systems ask again after a second (RFC 6298,
/// 2.1), and find the other process.
async fn leave_to_others(listener: &Listener) {
    let Listener::Tcp(tcp) = listener else { return };
    let socket = SockRef::from(tcp);
    if !socket.reuse_port().unwrap_or(false) {
        return;
    }
    match socket.attach_filter(&NO_SYN) {
        Ok(()) => tokio::time::sleep(HANDSHAKE).await,
        Err(error) => warn!(%error, "clients that come at this very moment may be reset"),
    }
}

/// Those whose connections the system has already made: to close on them would reset them.
fn last_ones(door: &Acceptor, listener: Listener) {
    // Asked of the system itself: the runtime may not have heard of them yet.
    match listener {
        Listener::Tcp(tcp) => {
            let Ok(tcp) = tcp.into_std() else { return };
            while let Ok((stream, peer)) = tcp.accept() {
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    start(door, Socket::Tcp(stream), peer.to_string());
                }
            }
        }
        Listener::Unix(unix, _file) => {
            let Ok(unix) = unix.into_std() else { return };
            while let Ok((stream, _)) = unix.accept() {
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) {
                    start(door, Socket::Unix(stream), "unix".to_owned());
                }
            }
        }
    }
}

async fn accept(listener: &Listener) -> io::Result<(Socket, String)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, peer) = listener.accept().await?;
            Ok((Socket::Tcp(stream), peer.to_string()))
        }
        Listener::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            Ok((Socket::Unix(stream), "unix".to_owned()))
        }
    }
}

fn start(door: &Acceptor, socket: Socket, peer: String) {
    let Acceptor { entrance, console } = door;
    let server = &entrance.current.generation().config.server;
    let limits = LoginLimits {
        all: *server.max_client_conn as usize + BEYOND,
        reserved: *server.reserved_connections as usize,
    };
    let Some(login_permit) = entrance.login_permits.enter(Block::of_peer(&peer), limits) else {
        return turn_away(&entrance.journal, socket, &peer);
    };
    let (entrance, console) = (entrance.clone(), console.clone());
    let tasks = entrance.runtimes.tasks.clone();
    let arriving = entrance.life.at_the_door();
    tasks.spawn(async move {
        let _arriving = arriving;
        session::serve(entrance, console, socket, peer, login_permit).await;
    });
}

/// There is no permit left for it: it is told so at once, as far as the system takes that without waiting.
fn turn_away(journal: &Journal, socket: Socket, peer: &str) {
    let refusal = no_permit();
    journal.refused(Refused { what: "login refused", refusal: &refusal, user: "-", database: "-", peer });
    let mut answer = Vec::new();
    wire::error_response(&mut answer, Severity::Fatal, &refusal);
    // What it has sent is read: a close on unread bytes would take the answer away again.
    let mut unread = [0; MAX_STARTUP_LENGTH];
    match socket {
        Socket::Tcp(tcp) => {
            let Ok(mut tcp) = tcp.into_std() else { return };
            let _ = tcp.read(&mut unread);
            let _ = tcp.write(&answer);
        }
        Socket::Unix(unix) => {
            let Ok(mut unix) = unix.into_std() else { return };
            let _ = unix.read(&mut unread);
            let _ = unix.write(&answer);
        }
        Socket::Ring(..) | Socket::Coming(..) | Socket::Moving(_) => {}
    }
}

/// Says in the log where clients can come.
pub(crate) fn announce(listeners: &[Listener]) {
    for listener in listeners {
        match listener {
            Listener::Tcp(tcp) => {
                let address = tcp.local_addr().map(|a| a.to_string()).unwrap_or_default();
                info!(address, "listening");
            }
            Listener::Unix(_, Some(file)) => info!(socket = %file.path.display(), "listening"),
            Listener::Unix(_, None) => info!(socket = "inherited", "listening"),
        }
    }
}
