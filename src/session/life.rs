//! A session that has logged in, until it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{info, warn};

use super::LoggedIn;
use crate::audit::Audit;
use crate::engine::{Cause, End, Engine, Parts, Resting, SessionContext};
use crate::entrance::Entrance;
use crate::handshake::Arrival;
use crate::proxy::{ClientPermit, LiveSession};
use crate::ring;
use wire::error::Fault;

/// The rest of the session, as a task of its own on the runtime that relays: small, because it lives long.
pub(super) fn begin(entrance: Arc<Entrance>, arrival: Arrival, parts: LoggedIn) {
    let LoggedIn { live, conductor, lease, permit } = parts;
    let (data, tasks) = (entrance.runtimes.data.clone(), entrance.runtimes.tasks.clone());
    let engine =
        Engine::new(Parts { client: arrival.reader, conductor, lease, around: around(&entrance, &live) });
    // A token in place of a tracked task: the tracker would be asked at every poll.
    let registered = Registered { entrance, live, told: false, _permit: permit, _token: tasks.token() };
    match engine {
        Ok(engine) => {
            data.spawn(Life { state: State::Awake(Box::new(engine)), registered, round: 0 });
        }
        Err(error) => warn!(peer = %registered.live.peer, %error, "a socket was lost between the runtimes"),
    }
}

/// What a session has to do with.
fn around(entrance: &Entrance, live: &LiveSession) -> SessionContext {
    SessionContext {
        id: live.id,
        user: live.identity.user().clone(),
        pool: live.pool.clone(),
        slot: live.slot.clone(),
        orders: live.orders.clone(),
        signals: entrance.signals.clone(),
        timeouts: entrance.sessions.timeouts.clone(),
        gathering: entrance.interner.gathered().clone(),
    }
}

/// How much of a session there is. Most of them rest: that takes no memory of its own.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum State {
    Awake(Box<Engine>),
    AtRest(Resting),
    /// It is over.
    Over,
}

/// The rest of a session. A future of its own, because an `async` block would hold the engine twice.
struct Life {
    state: State,
    registered: Registered,
    /// When it was last counted among those that are active.
    round: u32,
}

impl Future for Life {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.wake();
        let State::Awake(engine) = &mut this.state else { return Poll::Ready(()) };
        let Poll::Ready(end) = Pin::new(&mut **engine).poll(cx) else {
            if ring::may_leave(&mut this.round) {
                engine.leave_thread(cx);
            }
            this.rest();
            return Poll::Pending;
        };
        if let Cause::Refused(refusal) = &end.cause {
            this.registered.entrance.journal.counters.refused(refusal);
        }
        this.registered.told = true;
        farewell(&this.registered.entrance.journal.audit, &this.registered.live, &end);
        Poll::Ready(())
    }
}

impl Life {
    fn wake(&mut self) {
        if let State::AtRest(_) = self.state
            && let State::AtRest(resting) = std::mem::replace(&mut self.state, State::Over)
        {
            let around = around(&self.registered.entrance, &self.registered.live);
            self.state = State::Awake(Box::new(resting.wake(around)));
        }
    }

    /// If it is to, and may.
    fn rest(&mut self) {
        if let State::Awake(engine) = &self.state
            && engine.is_to_rest()
            && let State::Awake(engine) = std::mem::replace(&mut self.state, State::Over)
        {
            self.state = State::AtRest(engine.rest());
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let State::Awake(engine) = &self.state {
            engine.abandon();
        }
    }
}

/// Takes a session out of every register, however it ends.
struct Registered {
    entrance: Arc<Entrance>,
    live: Arc<LiveSession>,
    /// How it ended was told.
    told: bool,
    _permit: ClientPermit,
    _token: TaskTrackerToken,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.told {
            audit_end(&self.entrance.journal.audit, &self.live, (0, (0, 0)), "pgusher ended");
        }
        withdraw(&self.entrance, &self.live);
    }
}

/// Takes it out of the keys, and of the sessions that live.
pub(super) fn withdraw(entrance: &Entrance, live: &LiveSession) {
    entrance.keys.withdraw(&live.pid, (live.id, &live.slot));
    entrance.sessions.leave(live.id);
}

/// One line a session.
fn farewell(audit: &Audit, live: &LiveSession, end: &End) {
    let (cause, fault) = match &end.cause {
        Cause::Client => ("the client left".to_owned(), None),
        Cause::Upstream => ("the upstream ended it".to_owned(), Some(Fault::Upstream)),
        Cause::Refused(refusal) => (refusal.to_string(), Some(refusal.fault)),
    };
    audit_end(audit, live, (end.transactions, end.bytes), &cause);
    info!(
        session = live.id,
        user = %live.identity.user(),
        database = %live.target.asked.database,
        environment = %live.target.route.environment(),
        connection = %live.target.route.connection(),
        generation = live.target.generation,
        peer = %live.peer,
        seconds = live.since.elapsed().unwrap_or_default().as_secs_f64(),
        transactions = end.transactions,
        bytes_in = end.bytes.0,
        bytes_out = end.bytes.1,
        fault = fault.map(Fault::word),
        cause,
        "session ended"
    );
}

/// What a session did, in transactions and bytes from and to the client, and why it ended.
pub(super) fn audit_end(
    audit: &Audit,
    live: &LiveSession,
    (transactions, bytes): (u64, (u64, u64)),
    cause: &str,
) {
    audit.record(|| {
        let lasted = live.since.elapsed().unwrap_or_default();
        live.event("end", audit)
            .time("began", live.since)
            .number("milliseconds", u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX))
            .number("transactions", transactions)
            .number("bytes_in", bytes.0)
            .number("bytes_out", bytes.1)
            .text("cause", cause)
    });
}
