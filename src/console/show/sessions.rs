//! `SHOW SESSIONS`: what each client does, and since when.

use std::time::Duration;

use super::{Overview, time};
use crate::console::table::{Table, table};
use crate::stream::Tls;

impl Overview<'_> {
    pub(super) fn sessions(&self) -> Table {
        let generation = &self.generation;
        table!(session in &self.sessions, {
            let (target, waits) = session.slot.now();
            let figures = session.orders.statistics.see();
            let seen = session.seen();
            let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        }, {
            "id": Long = session.id,
            "user": Text = session.identity.user().as_str(),
            "database": Text = &*session.target.asked.database,
            "environment": Text = session.target.route.environment().as_str(),
            "connection": Text = session.target.route.connection().as_str(),
            "generation": Long = session.target.generation,
            "state": Text = seen.state.word(),
            "pid": Int = session.pid.get(),
            "upstream_pid": Int = target.map(|target| target.pid()),
            "pool_mode": Text = session.mode.word(),
            "pin": Text = figures.pin.map(relay::sql::Pin::word),
            "client": Text = &*session.peer,
            "application_name": Text = &*session.application_name,
            "tls": Text = session.tls.map(Tls::word),
            "connected": Text = time(session.since),
            "transactions": Long = figures.transactions,
            "bytes_in": Long = figures.bytes.0,
            "bytes_out": Long = figures.bytes.1,
            "waited_us": Long = micros(figures.waited),
            "waits_us": Long = waits.map(|since| micros(since.elapsed())),
            "prepared_statements": Int = figures.prepared,
            "moved": Text = generation.moved(session),
            "route": Text = session.target.facts.route.as_str(),
            "state_us": Long = micros(seen.lasts),
            "transaction_us": Long = seen.transaction.map(micros),
        })
    }
}
