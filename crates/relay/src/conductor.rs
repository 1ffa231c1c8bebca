//! A session as a whole: what happened goes in, what is to be done comes out. No socket, no clock, nothing asynchronous.
//!
//! [`Conductor::on`] is the only way in. It owns the order in which things are asked: when a connection is wanted, reset and set
//! up, when the client is held back, what is left on a connection and where it goes then, and how a session ends. An engine
//! reads, writes and obeys.

mod action;
mod event;
mod counting;
mod refusals;
mod rest;
mod setup;
#[doc(hidden)]
pub mod still;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use action::{
    Actions, Cause, Closing, Doing, Ended, Leaving, Listening, Phase, Resets, Statistics, Step, Wishes,
};
pub use event::{
    Answer, Condition, Database, Event, EventBytes, Grounds, Moment, Overdue, UpstreamEnd, World,
};
pub use refusals::not_reset;
pub use rest::Resting;

use counting::Clock;
use refusals::{desync, no_random, untranslatable};
use setup::LostRole;

use crate::core::{Broken, Core, OutputBuffer, Then};
use crate::reset::Proof;
use crate::{BackendState, Facts, Interner, Own, PoolMode, SessionSettings};
use wire::Severity;
use wire::error::{Fault, Refusal, SqlState};

/// What a session begins with.
#[derive(Debug)]
pub struct Session {
    /// Its numbers.
    pub own: Own,
    /// For how long it is lent a connection.
    pub mode: PoolMode,
    /// The statements that sessions share.
    pub interner: Arc<Interner>,
    /// Whose it is and where it was routed.
    pub facts: Arc<Facts>,
    /// What it has asked for at startup.
    pub settings: SessionSettings,
}

/// Where the session's connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loan {
    None,
    /// One is wanted; whether the client was told that it waits.
    Waiting {
        notified: bool,
    },
    /// One is lent.
    Held,
    /// It can go back as it is: the session is over.
    Returned,
}

/// One session. See the module.
#[derive(Debug)]
pub struct Conductor {
    core: Core,
    lease: Loan,
    /// Whether what the client has sent last is to be shown again when answers have come.
    deferred: bool,
    /// The client has said goodbye, or closed its side of the connection, perhaps while it was owed answers.
    leaving: bool,
    /// How much of the client's next message must be there before it is looked at.
    need: u32,
    lost_role: Option<Box<LostRole>>,
    /// How many connections have failed to be set up, one after the other.
    setups_failed: u32,
    /// Whether the engine has the pool's permit to keep the connection.
    permitted: bool,
    /// The query under way that was overdue, and cancelled.
    overdue: Option<u32>,
    clock: Clock,
}

/// What one event is dealt with.
struct Turn<'a, 'g, W> {
    up: OutputBuffer<'a>,
    down: OutputBuffer<'a>,
    backend: Option<&'g mut BackendState>,
    written: bool,
    world: &'g W,
    consumed: usize,
    statistics: &'g mut Statistics,
    /// Answers have come, or what stands for them: what was deferred may be looked at again.
    answered: bool,
}

impl<W> Turn<'_, '_, W> {
    fn record(&mut self, record: impl FnOnce(&mut Statistics)) {
        self.statistics.any = true;
        record(self.statistics);
    }
}

/// Why a session ends, and what the upstream did that the protocol does not allow.
struct End {
    cause: Cause,
    broke: Option<String>,
}

impl From<Cause> for Box<End> {
    fn from(cause: Cause) -> Self {
        Self::new(End { cause, broke: None })
    }
}

impl From<Refusal> for Box<End> {
    fn from(refusal: Refusal) -> Self {
        Cause::Refused(refusal).into()
    }
}

/// What is done next, if it is not to be decided by what the session has come to.
type Next = Result<Option<Step>, Box<End>>;

impl Conductor {
    /// A session that has just logged in.
    pub fn new(session: Session) -> Self {
        let Session { own, mode, interner, facts, settings } = session;
        Self::of(Core::new(own, mode, interner, facts, settings))
    }

    fn of(core: Core) -> Self {
        Self {
            core,
            lease: Loan::None,
            deferred: false,
            leaving: false,
            need: 0,
            lost_role: None,
            setups_failed: 0,
            permitted: false,
            overdue: None,
            clock: Clock::default(),
        }
    }

    /// What is to be done about what happened.
    pub fn on<'a, W: World>(&mut self, event: Event<'a>, grounds: Grounds<'a, '_, W>) -> Actions<'a> {
        if self.lease == Loan::None
            && let Event::FromClient(input) = event
            && self.core.asks_for_a_connection(input)
        {
            return match self.lost_role.take() {
                Some(lost) if self.is_kept_from(&lost, input, grounds.world) => {
                    self.without_role(lost, input, grounds.down)
                }
                _ => self.lend(),
            };
        }
        let Grounds { backend, written, up, down, statistics, world } = grounds;
        let (of_client, of_upstream): (&[u8], &[u8]) = match event.shown() {
            EventBytes::Client(input) => (input, &[]),
            EventBytes::Upstream(input) => (&[], input),
            EventBytes::Nothing => (&[], &[]),
        };
        let mut turn = Turn {
            up: OutputBuffer::new(of_client, up),
            down: OutputBuffer::new(of_upstream, down),
            backend,
            written,
            world,
            consumed: 0,
            statistics,
            answered: false,
        };
        let next = match self.take(event, &mut turn) {
            Ok(Some(step)) => Ok(step),
            Ok(None) => self.go_on(&mut turn),
            Err(end) => Err(end),
        };
        let step = next.unwrap_or_else(|end| self.close(*end, &mut turn));
        let wishes = if matches!(step, Step::Lend) { self.waiting() } else { self.wishes() };
        Actions {
            consumed: turn.consumed,
            to_client: turn.down.into_bytes(),
            to_upstream: turn.up.into_bytes(),
            step,
            wishes,
        }
    }

    /// A connection is wanted for what the client has sent, and nothing else is to be done before.
    fn lend<'a>(&mut self) -> Actions<'a> {
        self.lease = Loan::Waiting { notified: false };
        Actions { consumed: 0, to_client: &[], to_upstream: &[], step: Step::Lend, wishes: self.waiting() }
    }

    /// What is wished now that a connection is wanted.
    fn waiting(&mut self) -> Wishes {
        if self.core.has_channels() { self.wishes() } else { Wishes::waiting() }
    }

    fn take<W: World>(&mut self, event: Event<'_>, turn: &mut Turn<'_, '_, W>) -> Next {
        match event {
            Event::FromClient(input) => return self.client_sent(input, turn),
            Event::FromUpstream(input) => return self.upstream_sent(input, turn),
            Event::Lent(condition, input) => return self.lent(condition, input, turn),
            Event::Refused(refusal, input) => {
                self.lease = Loan::None;
                let Database { environment, connection, .. } = turn.world.database();
                let refusal = refusal.clone().in_environment(&environment, &connection);
                self.core.refuse(input, &refusal, turn.down.buffer());
                return Ok(Some(Step::ShowClient));
            }
            Event::Flushed => {}
            Event::PutBack => turn.answered = true,
            Event::Signalled(reached) => {
                self.core.has_signalled(reached);
                self.deferred = false;
                return Ok(Some(Step::ShowClient));
            }
            Event::Permitted(true) => self.permitted = true,
            Event::Permitted(false) => return Err(self.too_many_pinned(turn).into()),
            // As if it had said goodbye: what it has asked for is done and answered before.
            Event::ClientClosed => self.leaving = true,
            Event::Knock if self.core.between_messages() => self.core.repeat_a_setting(turn.down.buffer()),
            Event::Knock => {}
            Event::ClientEnded => return Err(Cause::Client.into()),
            // Nothing of the client's was sent on it: it need not know.
            Event::UpstreamEnded(_) if self.core.is_setting_up() => return self.setup_failed(None, turn),
            Event::UpstreamEnded(end) => return Err(self.upstream_lost(*end, turn).into()),
            Event::Listener(answer) => self.listener_says(*answer, turn)?,
            Event::NoListener => self.keep_channels(turn),
            Event::Notifications(messages) => self.notify((*messages)?, turn)?,
            Event::Paused(messages) => {
                self.notify((*messages)?, turn)?;
                self.core.paused();
                return Ok(Some(Step::ShowUpstream));
            }
            Event::Order { now, refusal } => {
                // What waits for a connection has not begun.
                if now || self.lease != Loan::Held || self.core.is_idle() {
                    return Err((*refusal).into());
                }
            }
            Event::Overdue(what) => return self.on_overdue(what, turn),
        }
        Ok(None)
    }

    fn client_sent<W: World>(&mut self, input: &[u8], turn: &mut Turn<'_, '_, W>) -> Next {
        let backend = turn.backend.as_deref_mut().filter(|_| self.lease == Loan::Held);
        let taken = self.core.client_sent(input, backend, &mut turn.up, turn.down.buffer())?;
        (turn.consumed, self.need) = (taken.consumed, 0);
        match taken.then {
            Then::More => {}
            Then::Need(length) => self.need = u32::try_from(length).unwrap_or(u32::MAX),
            Then::Defer => self.deferred = true,
            Then::Terminate => (self.leaving, turn.consumed) = (true, input.len()),
            Then::Lease => {
                self.lease = Loan::Waiting { notified: false };
                return Ok(Some(Step::Lend));
            }
        }
        Ok(None)
    }

    fn upstream_sent<W: World>(&mut self, input: &[u8], turn: &mut Turn<'_, '_, W>) -> Next {
        let Some(backend) = turn.backend.as_deref_mut() else { return Ok(None) };
        let (was_setting_up, was_resetting) = (self.core.is_setting_up(), self.core.is_resetting());
        turn.consumed = match self.core.upstream_sent(input, backend, &mut turn.down) {
            Ok(consumed) => consumed,
            Err(Broken::Setup(body) | Broken::Reset(body)) => return self.setup_failed(Some(body), turn),
            Err(Broken::Desync(what)) => return Err(desync(what, turn)),
        };
        if was_setting_up {
            if was_resetting && !self.core.is_resetting() {
                let since = self.clock.reset.take();
                let micros = since.map_or(0, |since| turn.world.now().micros_since(since));
                turn.record(|all| all.reset = Some(Resets::Done(Duration::from_micros(micros))));
                self.attach(turn);
            }
            if self.core.is_setting_up() {
                return Ok(Some(Step::Wait));
            }
            (self.setups_failed, self.deferred) = (0, false);
            return Ok(Some(Step::ShowClient));
        }
        if let Some(batch) = self.core.replay(backend) {
            self.deferred = true;
            return Ok(Some(Step::PutBack(batch.into_boxed_slice())));
        }
        turn.answered = true;
        Ok(None)
    }

    /// What follows from where the session is: this is the order in which things are asked.
    fn go_on<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) -> Result<Step, Box<End>> {
        if self.lease == Loan::Held && self.core.wants_setup() {
            self.attach(turn);
            if self.core.is_setting_up() {
                return Ok(Step::Wait);
            }
        }
        if turn.answered && self.deferred && self.core.may_go_on() && !self.core.holds_client() {
            self.deferred = false;
            return Ok(Step::ShowClient);
        }
        if let Some(signalled) = self.core.wants_signal() {
            return Ok(Step::Signal(signalled));
        }
        let pin = self.core.pin();
        if pin.is_some() != self.permitted {
            self.permitted = false;
            return Ok(Step::Pin(pin));
        }
        self.count(turn);
        if self.core.has_to_tell() {
            if let Some(database) = self.core.take_needed_database() {
                return Ok(Step::Free(database));
            }
            if let Some(defined) = self.core.has_defined() {
                return Ok(Step::Outdate(defined));
            }
        }
        if (self.permitted || self.core.mode() == PoolMode::Session) && self.core.is_idle() {
            self.core.set_catalog(|known| turn.world.catalog(known));
        }
        if self.lease == Loan::Held && !self.core.is_fatal() {
            let (releases, probes) = (self.core.may_release(), self.core.wants_probe());
            if releases || probes {
                if !turn.up.bytes().is_empty() {
                    return Ok(Step::Flush);
                }
                if turn.written {
                    if releases {
                        return self.release(turn);
                    }
                    self.probe(turn)?;
                }
            }
        }
        if self.core.has_channels()
            && let Some(step) = self.transfer_channels(turn)
        {
            return Ok(step);
        }
        if self.leaving && self.owes_nothing() { Err(Cause::Client.into()) } else { Ok(Step::Wait) }
    }

    /// True if all is done and answered that the client has asked for.
    fn owes_nothing(&self) -> bool {
        let waits = self.deferred || matches!(self.lease, Loan::Waiting { .. });
        !waits && (self.core.is_clients_turn() || self.core.awaits_client())
    }

    /// The next step with which the session's channels go to the listener, if they are on their way.
    fn transfer_channels<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) -> Option<Step> {
        if let Some(asked) = self.core.ask_listener() {
            return Some(Step::AskListener(Box::new(asked)));
        }
        let mut up = Vec::new();
        if self.core.go_on_handing_over(turn.backend.as_deref(), &mut up) {
            turn.up.buffer().extend_from_slice(&up);
        }
        None
    }

    /// The connection goes back: nothing is owed on it and nothing is left on it.
    fn release<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) -> Result<Step, Box<End>> {
        if let Some(backend) = &mut turn.backend {
            if self.core.stay_when_idle(backend, turn.up.buffer()) {
                return Ok(Step::Wait);
            }
            self.core.detach(backend);
        }
        self.lease = Loan::None;
        match self.leaving {
            false => Ok(Step::Release),
            true => {
                self.lease = Loan::Returned;
                Err(Cause::Client.into())
            }
        }
    }

    /// Asks the connection what the session has left on it.
    fn probe<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) -> Result<(), Box<End>> {
        let proof = Proof::new(turn.world.random().ok_or_else(no_random)?);
        if let Some(backend) = &mut turn.backend {
            self.core.probe(proof, backend, turn.up.buffer());
        }
        Ok(())
    }

    fn listener_says<W: World>(
        &mut self,
        answer: Result<Answer, Refusal>,
        turn: &mut Turn<'_, '_, W>,
    ) -> Result<(), Box<End>> {
        match answer {
            Ok(Answer::Listening(mark)) => {
                let mut up = Vec::new();
                let marked = match &mut turn.backend {
                    Some(backend) => self.core.mark(mark, backend, &mut up),
                    None => false,
                };
                turn.up.buffer().extend_from_slice(&up);
                if !marked {
                    self.keep_channels(turn);
                }
            }
            Ok(Answer::Marked(channels)) => {
                self.core.carry_channels(channels);
                turn.answered = true;
            }
            Err(refusal) if self.core.has_carried_channels() || self.core.is_transfer_ending() => {
                return Err(refusal.into());
            }
            Err(_) => self.keep_channels(turn),
        }
        Ok(())
    }

    /// There is no listener: the session keeps its connection.
    fn keep_channels<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) {
        self.core.keep_channels();
        turn.answered = true;
    }

    fn notify<W: World>(&self, messages: Vec<Arc<[u8]>>, turn: &mut Turn<'_, '_, W>) -> Result<(), Box<End>> {
        for message in messages {
            if !self.core.can_be_told(&message) {
                return Err(untranslatable().into());
            }
            turn.down.buffer().extend_from_slice(&message);
        }
        Ok(())
    }

    fn on_overdue<W: World>(&mut self, what: Overdue, turn: &mut Turn<'_, '_, W>) -> Next {
        let fatal = |state, message| Err(Refusal::new(Fault::Client, state, message).into());
        match what {
            Overdue::Notice => {
                let Database { environment, connection, pool_size, is_paused, .. } = turn.world.database();
                let of = format!("environment \"{environment}\" (connection \"{connection}\")");
                let text = match is_paused {
                    true => format!("waiting for an operator to resume {of}, which is paused"),
                    false => {
                        format!("waiting for one of the {pool_size} connections to {of}: all are in use")
                    }
                };
                wire::notice_response(turn.down.buffer(), &text);
                if let Loan::Waiting { notified } = &mut self.lease {
                    *notified = true;
                }
            }
            Overdue::Phase(Phase::Idle) => {
                let message = "terminating connection due to client_idle_timeout";
                return fatal(SqlState::IDLE_SESSION_TIMEOUT, message);
            }
            Overdue::Phase(Phase::IdleInTransaction) => {
                let message = "terminating connection due to idle_transaction_timeout";
                return fatal(SqlState::IDLE_IN_TRANSACTION_TIMEOUT, message);
            }
            Overdue::Phase(Phase::Resetting { .. }) if self.core.is_resetting() => {
                return self.setup_failed(None, turn);
            }
            // The upstream should have ended the statement itself: it is cancelled, and if that does not help, given up.
            Overdue::Phase(Phase::Querying(query)) => {
                self.overdue = Some(query);
                return Ok(Some(Step::Cancel));
            }
            Overdue::Phase(Phase::Cancelled(_)) => {
                let end = UpstreamEnd { why: Some("timed out".into()), partial: false };
                return Err(self.upstream_lost(end, turn).into());
            }
            Overdue::Phase(Phase::Waiting { .. } | Phase::Resetting { .. }) => {}
        }
        Ok(None)
    }

    /// Tells the client why its session ends, where a message can be put.
    fn close<W: World>(&mut self, end: End, turn: &mut Turn<'_, '_, W>) -> Step {
        let End { cause, broke } = end;
        if let Cause::Refused(refusal) = &cause
            && self.core.between_messages()
        {
            wire::error_response(turn.down.buffer(), Severity::Fatal, refusal);
        }
        // What has ended with this very event is counted already.
        let rest = self.ended(None);
        turn.record(|all| {
            all.ended.get_or_insert(rest);
        });
        let fatal = self.core.is_fatal();
        let connection = match self.lease {
            Loan::None | Loan::Waiting { .. } => Leaving::Nothing,
            Loan::Returned => Leaving::Release,
            Loan::Held
                if self.core.mode() == PoolMode::Session
                    && self.core.is_cleanable()
                    && !fatal
                    && turn.written =>
            {
                Leaving::Clean
            }
            Loan::Held => Leaving::Discard { running: self.core.may_be_busy() && !fatal },
        };
        self.lease = Loan::None;
        Step::Close(Box::new(Closing { cause, broke, connection, transactions: self.core.transactions() }))
    }

    fn wishes(&mut self) -> Wishes {
        let phase = self.phase();
        let doing = match self.lease {
            Loan::Waiting { .. } => Doing::Waiting,
            Loan::Held if !self.core.is_about_its_own() => Doing::Running,
            Loan::None | Loan::Held | Loan::Returned => Doing::Nothing,
        };
        let may_send = !self.deferred && !self.leaving && doing != Doing::Waiting;
        let (listening, takes_notifications) =
            if self.core.has_channels() { self.listening() } else { (Listening::No, false) };
        Wishes {
            from_client: may_send && !self.core.is_full() && !self.core.holds_client(),
            from_upstream: self.lease == Loan::Held && !matches!(listening, Listening::Pause(_)),
            need: self.need,
            doing,
            phase,
            listening,
            takes_notifications,
        }
    }

    /// What is wanted of the listener, and whether a notification can go to the client now.
    #[cold]
    fn listening(&self) -> (Listening, bool) {
        let listening = match self.core.pausing() {
            Some(recall) => Listening::Pause(recall),
            None if self.core.awaits_listener() => Listening::Answer,
            None => Listening::Yes,
        };
        (listening, self.core.takes_notifications() && !self.core.is_transferring())
    }

    fn phase(&mut self) -> Phase {
        match self.lease {
            Loan::Waiting { notified } => Phase::Waiting { notified },
            Loan::Held if !self.core.is_idle() => match () {
                () if self.core.is_clients_turn() => {
                    self.overdue = None;
                    Phase::IdleInTransaction
                }
                () if self.core.is_resetting() => Phase::Resetting { attempt: self.setups_failed },
                () if self.overdue == Some(self.core.query_number()) => {
                    Phase::Cancelled(self.core.query_number())
                }
                () => Phase::Querying(self.core.query_number()),
            },
            Loan::None | Loan::Held | Loan::Returned => {
                self.overdue = None;
                Phase::Idle
            }
        }
    }
}
