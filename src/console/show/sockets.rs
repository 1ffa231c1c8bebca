//! `SHOW CLIENTS`, `SHOW SERVERS` and `SHOW SOCKETS`: what is connected, on either side.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::{Overview, split, state_of, time};
use crate::console::table::Kind::{Int, Text};
use crate::console::table::{Column, Table};
use crate::stream::Tls;

const COLUMNS: [Column; 23] = [
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int),
    ("local_addr", Text),
    ("local_port", Int),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int),
    ("wait_us", Int),
    ("close_needed", Int),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int),
    ("id", Int),
    ("environment", Text),
    ("last_user", Text),
];

impl Overview<'_> {
    pub(super) fn clients(&self) -> Table {
        let mut table = Table::new(&COLUMNS);
        self.add_clients(&mut table);
        table
    }

    pub(super) fn servers(&self) -> Table {
        let mut table = Table::new(&COLUMNS);
        self.add_servers(&mut table);
        table
    }

    /// Both, the clients first.
    pub(super) fn sockets(&self) -> Table {
        let mut table = Table::new(&COLUMNS);
        self.add_clients(&mut table);
        self.add_servers(&mut table);
        table
    }

    fn add_clients(&self, table: &mut Table) {
        for session in &self.sessions {
            let (target, waits) = session.slot.now();
            let (wait, wait_us) = split(waits.map_or(Duration::ZERO, |since| since.elapsed()));
            let (addr, port) = peer(&session.peer);
            let state = state_of(target.as_ref(), waits);
            let since = waits.map_or(session.since, |since| SystemTime::now() - since.elapsed());
            table.push(vec![
                "C".into(),
                session.identity.user().as_str().into(),
                session.place.route.connection().as_str().into(),
                "none".into(),
                state.into(),
                addr.into(),
                port.into(),
                "".into(),
                0_u32.into(),
                time(session.since).into(),
                time(since).into(),
                wait.into(),
                wait_us.into(),
                0_u32.into(),
                format!("c{}", session.id).into(),
                target.map_or(String::new(), |target| format!("s{}", target.pid())).into(),
                0_u32.into(),
                session.tls.map_or("", Tls::word).into(),
                (*session.application_name).into(),
                session.orders.statistics.see().prepared.into(),
                session.id.into(),
                session.place.route.environment().as_str().into(),
                "".into(),
            ]);
        }
    }

    fn add_servers(&self, table: &mut Table) {
        for pool in &self.pools {
            let lent: BTreeMap<u32, u64> = self
                .sessions_of(pool)
                .filter_map(|session| Some((session.slot.now().0?.pid(), session.id)))
                .collect();
            let connection = pool.connection();
            for (server, is_idle) in pool.servers() {
                let (addr, port) = server.remote();
                let local = server.local();
                let link = lent.get(&server.pid()).map_or(String::new(), |id| format!("c{id}"));
                table.push(vec![
                    "S".into(),
                    connection.target.username.as_str().into(),
                    connection.name.as_str().into(),
                    "none".into(),
                    if is_idle { "idle" } else { "active" }.into(),
                    addr.into(),
                    port.into(),
                    local.map_or(String::new(), |local| local.ip().to_string()).into(),
                    local.map_or(0, |local| local.port()).into(),
                    time(server.opened()).into(),
                    time(server.opened()).into(),
                    0_u32.into(),
                    0_u32.into(),
                    server.is_spoiled().into(),
                    format!("s{}", server.pid()).into(),
                    link.into(),
                    server.pid().into(),
                    if server.is_tls() { "TLS" } else { "" }.into(),
                    "".into(),
                    0_u32.into(),
                    server.pid().into(),
                    connection.environment.as_str().into(),
                    server.last_user().map_or(String::new(), |user| user.to_string()).into(),
                ]);
            }
        }
    }
}

/// An address and a port.
fn peer(peer: &str) -> (String, u16) {
    match peer.parse::<std::net::SocketAddr>() {
        Ok(address) => (address.ip().to_string(), address.port()),
        Err(_) => (peer.to_owned(), 0),
    }
}
