//! `SHOW SESSIONS`: what each client does, and since when.

use std::time::Duration;

use super::{Overview, state_of, time};
use crate::console::table::Kind::{Int, Long, Text};
use crate::console::table::{Column, Table};
use crate::stream::Tls;

const COLUMNS: [Column; 23] = [
    ("id", Long),
    ("user", Text),
    ("database", Text),
    ("environment", Text),
    ("connection", Text),
    ("generation", Long),
    ("state", Text),
    ("pid", Int),
    ("upstream_pid", Int),
    ("pool_mode", Text),
    ("pin", Text),
    ("client", Text),
    ("application_name", Text),
    ("tls", Text),
    ("connected", Text),
    ("transactions", Long),
    ("bytes_in", Long),
    ("bytes_out", Long),
    ("waited_us", Long),
    ("waits_us", Long),
    ("prepared_statements", Int),
    ("moved", Text),
    ("route", Text),
];

impl Overview<'_> {
    pub(super) fn sessions(&self) -> Table {
        let mut table = Table::new(&COLUMNS);
        let generation = &self.generation;
        for session in &self.sessions {
            let (target, waits) = session.slot.now();
            let seen = session.orders.statistics.see();
            let state = state_of(target.as_ref(), waits);
            let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            table.push(vec![
                session.id.into(),
                session.identity.user().as_str().into(),
                (*session.place.asked.database).into(),
                session.place.route.environment().as_str().into(),
                session.place.route.connection().as_str().into(),
                session.place.generation.into(),
                state.into(),
                session.pid.get().into(),
                target.map(|target| target.pid()).into(),
                session.mode.word().into(),
                seen.pin.map(relay::sql::Pin::word).into(),
                (*session.peer).into(),
                (*session.application_name).into(),
                session.tls.map(Tls::word).into(),
                time(session.since).into(),
                seen.transactions.into(),
                seen.bytes.0.into(),
                seen.bytes.1.into(),
                micros(seen.waited).into(),
                waits.map(|since| micros(since.elapsed())).into(),
                seen.prepared.into(),
                generation.moved(session).into(),
                session.place.facts.route.as_str().into(),
            ]);
        }
        table
    }
}
