//! `SHOW CLIENTS`, `SHOW SERVERS` and `SHOW SOCKETS`: what is connected, on either side.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::{Overview, split, state_of, time};
use crate::console::table::{Table, table};
use crate::stream::Tls;

/// A client or a server, as both are shown. What it does not have is empty, and 0.
#[derive(Default)]
struct SocketRow {
    kind: &'static str,
    user: String,
    database: String,
    state: &'static str,
    addr: String,
    port: u16,
    local: (String, u16),
    connected: String,
    /// Since when it does what it does.
    since: String,
    wait: Duration,
    is_outworn: bool,
    ptr: String,
    link: String,
    pid: u32,
    tls: &'static str,
    application_name: String,
    prepared: u32,
    id: u64,
    environment: String,
    last_user: String,
}

fn table_of(peers: impl IntoIterator<Item = SocketRow>) -> Table {
    table!(peer in peers, {
        let (wait, wait_us) = split(peer.wait);
        let (local_addr, local_port) = peer.local;
    }, {
        "type": Text = peer.kind,
        "user": Text = peer.user,
        "database": Text = peer.database,
        "replication": Text = "none",
        "state": Text = peer.state,
        "addr": Text = peer.addr,
        "port": Int = peer.port,
        "local_addr": Text = local_addr,
        "local_port": Int = local_port,
        "connect_time": Text = peer.connected,
        "request_time": Text = peer.since,
        "wait": Int = wait,
        "wait_us": Int = wait_us,
        "close_needed": Int = peer.is_outworn,
        "ptr": Text = peer.ptr,
        "link": Text = peer.link,
        "remote_pid": Int = peer.pid,
        "tls": Text = peer.tls,
        "application_name": Text = peer.application_name,
        "prepared_statements": Int = peer.prepared,
        "id": Int = peer.id,
        "environment": Text = peer.environment,
        "last_user": Text = peer.last_user,
    })
}

impl Overview<'_> {
    pub(super) fn clients(&self) -> Table {
        table_of(self.client_peers())
    }

    pub(super) fn servers(&self) -> Table {
        table_of(self.server_peers())
    }

    /// Both, the clients first.
    pub(super) fn sockets(&self) -> Table {
        table_of(self.client_peers().chain(self.server_peers()))
    }

    fn client_peers(&self) -> impl Iterator<Item = SocketRow> {
        self.sessions.iter().map(|session| {
            let (target, waits) = session.slot.now();
            let (addr, port) = peer(&session.peer);
            let since = SystemTime::now().checked_sub(session.seen().lasts).unwrap_or(session.since);
            SocketRow {
                kind: "C",
                user: session.identity.user().to_string(),
                database: session.target.route.connection().to_string(),
                state: state_of(target.as_ref(), waits),
                addr,
                port,
                connected: time(session.since),
                since: time(since),
                wait: waits.map_or(Duration::ZERO, |since| since.elapsed()),
                ptr: format!("c{}", session.id),
                link: target.map_or(String::new(), |target| format!("s{}", target.pid())),
                tls: session.tls.map_or("", Tls::word),
                application_name: session.application_name.to_string(),
                prepared: session.orders.statistics.see().prepared,
                id: session.id,
                environment: session.target.route.environment().to_string(),
                ..SocketRow::default()
            }
        })
    }

    fn server_peers(&self) -> impl Iterator<Item = SocketRow> {
        self.pools.iter().flat_map(|pool| {
            let lent: BTreeMap<u32, u64> = self
                .sessions_of(pool)
                .filter_map(|session| Some((session.slot.now().0?.pid(), session.id)))
                .collect();
            let connection = pool.connection();
            pool.servers().into_iter().map(move |(server, is_idle)| {
                let (addr, port) = server.remote();
                let local = server.local();
                SocketRow {
                    kind: "S",
                    user: connection.target.username.to_string(),
                    database: connection.name.to_string(),
                    state: if is_idle { "idle" } else { "active" },
                    addr,
                    port,
                    local: local
                        .map_or_else(Default::default, |local| (local.ip().to_string(), local.port())),
                    connected: time(server.opened()),
                    since: time(server.opened()),
                    is_outworn: server.is_spoiled(),
                    ptr: format!("s{}", server.pid()),
                    link: lent.get(&server.pid()).map_or(String::new(), |id| format!("c{id}")),
                    pid: server.pid(),
                    tls: if server.is_tls() { "TLS" } else { "" },
                    id: server.pid().into(),
                    environment: connection.environment.to_string(),
                    last_user: server.last_user().map_or(String::new(), |user| user.to_string()),
                    ..SocketRow::default()
                }
            })
        })
    }
}

/// An address and a port.
fn peer(peer: &str) -> (String, u16) {
    match peer.parse::<std::net::SocketAddr>() {
        Ok(address) => (address.ip().to_string(), address.port()),
        Err(_) => (peer.to_owned(), 0),
    }
}
