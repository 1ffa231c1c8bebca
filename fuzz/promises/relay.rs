//! Conversations: bytes of a client and of an upstream in any cut, connections that are lent, refused and lost, orders and the
//! clock. Whatever happens, the conductor answers, never gives a connection back that something is owed on, and sends no more
//! than what it was sent allows.

use crate::input::Input;
use relay::conductor::still::{Said, Still, reported, session, tell};
use relay::conductor::{Condition, Conductor, Event, EventBytes, Overdue, Step, UpstreamEnd, Wishes};
use relay::{BackendState, PoolMode, Reached};
use wire::error::{Fault, Refusal, SqlState};

/// What a session may be sent beside what it passes on: statements of pgusher's own, errors, and setups.
const OVERHEAD: usize = 4 << 20;

struct Engine {
    conductor: Conductor,
    world: Still,
    lease: Option<BackendState>,
    from_client: Vec<u8>,
    from_upstream: Vec<u8>,
    wishes: Wishes,
    sent: usize,
    ended: bool,
    /// Another user had the connections that are lent.
    foreign: bool,
}

/// Settings that decide how texts are read.
const REPORTED: [(&str, &str); 3] =
    [("client_encoding", "UTF8"), ("standard_conforming_strings", "on"), ("TimeZone", "UTC")];

fn refusal() -> Refusal {
    Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, "the end")
}

impl Engine {
    fn new(mode: PoolMode, foreign: bool) -> Self {
        let mut engine = Self {
            conductor: Conductor::new(session(mode, reported(&REPORTED))),
            world: Still::default(),
            lease: None,
            from_client: Vec::new(),
            from_upstream: Vec::new(),
            wishes: Wishes::default(),
            sent: 0,
            ended: false,
            foreign,
        };
        match mode {
            PoolMode::Session => engine.lend(),
            PoolMode::Transaction => engine.say(Event::FromClient(&[])),
        }
        engine
    }

    fn lend(&mut self) {
        let mut state = BackendState::new(reported(&REPORTED), 3, Some(7));
        if self.foreign {
            state.serve(&"mallory".into());
        }
        self.lease = Some(state);
        let tail = std::mem::take(&mut self.from_client);
        let condition = if self.foreign { Condition::OfAnother } else { Condition::AsItIs };
        self.say(Event::Lent(condition, &tail));
    }

    fn say(&mut self, event: Event<'_>) {
        let shown = event.shown();
        let Said { consumed, to_client, to_upstream, step, wishes, .. } =
            tell(&mut self.conductor, event, self.lease.as_mut(), &self.world);
        self.sent += to_client.len() + to_upstream.len();
        assert!(to_upstream.is_empty() || self.lease.is_some(), "bytes for no connection");
        match shown {
            EventBytes::Client(input) => self.from_client = input[consumed..].to_vec(),
            EventBytes::Upstream(input) => self.from_upstream = input[consumed..].to_vec(),
            EventBytes::Nothing => assert_eq!(consumed, 0),
        }
        self.wishes = wishes;
        self.take(step);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wait | Step::Lend | Step::Cancel => {}
            Step::ShowClient => {
                let tail = std::mem::take(&mut self.from_client);
                self.say(Event::FromClient(&tail));
            }
            Step::ShowUpstream => {
                let tail = std::mem::take(&mut self.from_upstream);
                self.say(Event::FromUpstream(&tail));
            }
            Step::Flush | Step::Outdate(_) | Step::Free(_) | Step::Pin(None) => self.say(Event::Flushed),
            Step::Release => {
                assert!(self.lease.take().is_some(), "nothing was lent");
                self.from_upstream.clear();
            }
            Step::Replace { .. } => {
                self.lease = None;
                self.from_upstream.clear();
                self.take(Step::ShowClient);
            }
            Step::PutBack(bytes) => {
                self.from_client.splice(..0, bytes);
                self.say(Event::PutBack);
            }
            Step::Pin(Some(_)) => self.say(Event::Permitted(true)),
            Step::Signal(signalled) => {
                let reached = [Reached::Session, Reached::Nobody][signalled.pid as usize % 2];
                self.say(Event::Signalled(reached));
            }
            Step::AskListener(_) => self.say(Event::NoListener),
            Step::Close(_) => self.ended = true,
        }
    }

    fn waits(&self) -> bool {
        matches!(self.wishes.phase, relay::conductor::Phase::Waiting { .. })
    }
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let mut input = Input(data);
    let first = input.byte();
    let mode = if first & 1 == 0 { PoolMode::Transaction } else { PoolMode::Session };
    let mut engine = Engine::new(mode, first & 2 != 0);
    while !input.0.is_empty() && !engine.ended {
        // Two bits say what happens, the others how many bytes come.
        let step = input.byte();
        let length = match step >> 2 {
            63 => input.0.len(),
            length => usize::from(length) * 3,
        };
        match step & 3 {
            _ if engine.waits() => match step & 3 {
                0..=2 => engine.lend(),
                _ => {
                    let tail = std::mem::take(&mut engine.from_client);
                    engine.say(Event::Refused(&refusal(), &tail));
                }
            },
            0 | 1 if engine.wishes.from_client => {
                engine.from_client.extend_from_slice(input.take(length));
                let bytes = std::mem::take(&mut engine.from_client);
                engine.say(Event::FromClient(&bytes));
            }
            3 if length == 0 => engine.say(Event::Overdue(Overdue::Phase(engine.wishes.phase))),
            3 if length == 3 => engine.say(Event::Order { now: false, refusal: Box::new(refusal()) }),
            3 if length == 6 => engine.say(Event::UpstreamEnded(Box::<UpstreamEnd>::default())),
            _ if engine.wishes.from_upstream => {
                engine.from_upstream.extend_from_slice(input.take(length));
                let bytes = std::mem::take(&mut engine.from_upstream);
                engine.say(Event::FromUpstream(&bytes));
            }
            _ => drop(input.take(length)),
        }
        assert!(engine.sent <= 64 * data.len() + OVERHEAD, "{} bytes for {}", engine.sent, data.len());
    }
}
