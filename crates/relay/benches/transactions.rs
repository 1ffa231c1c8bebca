//! Transactions through the conductor, with the answers of a server that never varies: to be run under callgrind, which counts
//! instructions (`make bench-core`). `transactions KIND COUNT`, with `simple`, `extended` or `prepared`.

#![allow(clippy::unwrap_used)]

use pgusher_relay::conductor::still::{Still, reported, session};
use pgusher_relay::conductor::{Actions, Condition, Conductor, Event, Grounds, Statistics, Step};
use pgusher_relay::{BackendState, PoolMode};
use wire::message;

/// As an engine tells it, without the engine.
struct Engine {
    conductor: Conductor,
    backend: BackendState,
    world: Still,
    up: Vec<u8>,
    down: Vec<u8>,
    statistics: Statistics,
}

impl Engine {
    fn new() -> Self {
        let reported = reported(&[("client_encoding", "UTF8"), ("standard_conforming_strings", "on")]);
        Self {
            conductor: Conductor::new(session(PoolMode::Transaction, reported.clone())),
            backend: BackendState::new(reported, 100, Some(7)),
            world: Still::default(),
            up: Vec::new(),
            down: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    fn tell(&mut self, event: Event<'_>, lent: bool) -> (Step, usize) {
        let Self { conductor, backend, world, up, down, statistics } = self;
        let backend = lent.then_some(backend);
        let grounds = Grounds { backend, written: true, up, down, statistics, world };
        let Actions { step, to_client, to_upstream, .. } = conductor.on(event, grounds);
        (step, to_client.len() + to_upstream.len())
    }

    fn transaction(&mut self, ask: &[u8], answer: &[u8]) {
        let (step, _) = self.tell(Event::FromClient(ask), false);
        assert!(matches!(step, Step::Lend));
        let (_, sent) = self.tell(Event::Lent(Condition::AsItIs, ask), true);
        assert!(sent > 0);
        let (step, sent) = self.tell(Event::FromUpstream(answer), true);
        assert!(matches!(step, Step::Release) && sent > 0);
    }
}

fn m(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let kind = arguments.next().unwrap_or_else(|| "simple".into());
    let count: u64 = arguments.next().map_or(1000, |count| count.parse().unwrap());
    // As `pgbench -S` asks, and as PostgreSQL answers.
    let text = b"SELECT abalance FROM pgbench_accounts WHERE aid = 12345;\0";
    let columns = m(b'T', b"\0\x01abalance\0\0\0\x40\0\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    let row = m(b'D', b"\0\x01\0\0\0\x010");
    let end = [m(b'C', b"SELECT 1\0"), m(b'Z', b"I")].concat();
    let bind = |name: &str| [b"\0", name.as_bytes(), b"\0\0\0\0\x01\0\0\0\x0512345\0\0"].concat();
    let rest = |name: &str| [m(b'B', &bind(name)), m(b'D', b"P\0"), m(b'E', &[0; 5]), m(b'S', b"")].concat();
    let bound = [m(b'2', b""), columns.clone(), row.clone(), end.clone()].concat();
    let mut engine = Engine::new();
    let (ask, answer) = match &*kind {
        "simple" => (m(b'Q', text), [columns, row, end].concat()),
        "extended" => {
            let parse = m(b'P', &[b"\0", &text[..], b"\0\0"].concat());
            ([parse, rest("")].concat(), [m(b'1', b""), bound].concat())
        }
        "prepared" => {
            let parse = [m(b'P', &[b"P0\0", &text[..], b"\0\0"].concat()), m(b'S', b"")].concat();
            // It is described at once, unseen.
            let described = [m(b't', &[0, 1, 0, 0, 0, 23]), columns].concat();
            engine.transaction(&parse, &[m(b'1', b""), described, m(b'Z', b"I")].concat());
            (rest("P0"), bound)
        }
        other => {
            eprintln!("`{other}` is none of simple, extended, prepared");
            #[expect(clippy::disallowed_methods, reason = "a program of its own")]
            std::process::exit(2);
        }
    };
    (0..count).for_each(|_| engine.transaction(&ask, &answer));
}
