//! The relay's core: bytes of a client and of an upstream, in any cut, with a connection or without one, are dealt with, and
//! neither side is owed more than was sent.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use policy::config::file::PoolMode;
use relay::{BackendState, Core, Facts, Interner, Parameters, SessionSettings, Sink, Then};
use pgusher_fuzz::Input;

/// What a core may add to what it passes on: its own statements, errors, and setups.
const OVERHEAD: usize = 4 << 20;

struct Session {
    core: Core,
    backend: BackendState,
    /// It is lent the connection.
    lent: bool,
    from_client: Vec<u8>,
    from_upstream: Vec<u8>,
    sent: usize,
    ended: bool,
}

impl Session {
    fn new(mode: PoolMode, interner: Arc<Interner>) -> Self {
        let facts = Facts {
            environment: "dev".into(),
            connection: "warehouse".into(),
            user: "dana".into(),
            route: "because".into(),
        };
        let pair = |name: &str, value: &str| (name.as_bytes().into(), value.as_bytes().into());
        let reported = Arc::new(Parameters::new([
            pair("client_encoding", "UTF8"),
            pair("standard_conforming_strings", "on"),
            pair("TimeZone", "UTC"),
        ]));
        let settings = SessionSettings::new(reported.clone(), Arc::default(), None);
        Self {
            core: Core::new(1, mode, interner, Arc::new(facts), settings),
            backend: BackendState::new(reported, 3, Some(7)),
            lent: mode == PoolMode::Session,
            from_client: Vec::new(),
            from_upstream: Vec::new(),
            sent: 0,
            ended: false,
        }
    }

    fn client(&mut self) {
        let (input, mut copy, mut down) = (std::mem::take(&mut self.from_client), Vec::new(), Vec::new());
        let mut up = Sink::new(&input, &mut copy);
        let backend = self.lent.then_some(&mut self.backend);
        let Ok(taken) = self.core.from_client(&input, backend, &mut up, &mut down) else {
            self.ended = true;
            return;
        };
        assert!(taken.consumed <= input.len());
        self.sent += up.bytes().len() + down.len();
        self.from_client = input[taken.consumed..].to_vec();
        match taken.then {
            Then::Lease => {
                assert!(!self.lent, "it has a connection");
                let mut setup = Vec::new();
                self.core.attach(&mut self.backend, &mut setup);
                self.sent += setup.len();
                self.lent = true;
            }
            Then::Terminate => self.ended = true,
            Then::Need(length) => assert!(length > self.from_client.len() || self.from_client.len() < 5),
            Then::More | Then::Hold => {}
        }
    }

    fn upstream(&mut self) {
        if !self.lent {
            return self.from_upstream.clear();
        }
        let (input, mut copy) = (std::mem::take(&mut self.from_upstream), Vec::new());
        let mut down = Sink::new(&input, &mut copy);
        let Ok(consumed) = self.core.from_upstream(&input, &mut self.backend, &mut down) else {
            self.ended = true;
            return;
        };
        assert!(consumed <= input.len());
        self.sent += down.bytes().len();
        self.from_upstream = input[consumed..].to_vec();
        if self.core.wants_survey() {
            let mut up = Vec::new();
            self.core.survey(relay::reset::Proof::new(7), &mut self.backend, &mut up);
            self.sent += up.len();
        }
    }

    fn give_back(&mut self) {
        if self.lent && self.core.may_release() && !self.core.holds_client() {
            assert!(self.core.is_idle() && !self.core.in_transaction() && self.core.pin().is_none());
            self.core.detach(&mut self.backend);
            self.from_upstream.clear();
            self.lent = false;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mode = if input.byte() & 1 == 0 { PoolMode::Transaction } else { PoolMode::Session };
    let interner = Interner::new(7);
    let mut session = Session::new(mode, Arc::new(interner));
    while !input.0.is_empty() && !session.ended {
        // Two bits say what happens, the others how many bytes come.
        let step = input.byte();
        let length = match step >> 2 {
            63 => input.0.len(),
            length => usize::from(length) * 3,
        };
        match step & 3 {
            0 | 1 if !session.core.holds_client() => {
                session.from_client.extend_from_slice(input.take(length));
                session.client();
            }
            3 => session.give_back(),
            _ => {
                session.from_upstream.extend_from_slice(input.take(length));
                session.upstream();
            }
        }
        assert!(session.sent <= 64 * data.len() + OVERHEAD, "{} bytes for {}", session.sent, data.len());
    }
});
