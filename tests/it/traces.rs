//! The conversations of the end-to-end tests through an engine in memory: had once with a real server, and then again with what
//! that said, in every cut of the bytes of both sides.

use std::io::{Read, Write};
use std::sync::Arc;

use relay::conductor::still::{Said, Still, reported, session, tell};
use relay::conductor::{Condition, Conductor, Event, EventBytes, Phase, Step, Wishes};
use relay::{BackendState, Parameters, PoolMode};

use super::differential::{Burst, SCRIPTS, Way, arrive, extended, server, simple};
use super::house::size;
use super::random::Random;
use super::wire::Raw;

/// What a server was sent in all, and what it said, each piece behind so many bytes of that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Trace {
    sent: Vec<u8>,
    said: Vec<(usize, Vec<u8>)>,
}

/// Who answers on a connection.
enum Server {
    Real(Raw),
    /// What was said once, and how many pieces of it were said again.
    Recorded(Trace, usize),
}

struct Connection {
    state: BackendState,
    server: Server,
    trace: Trace,
    /// What the server has said and nobody has read.
    unread: Vec<u8>,
}

impl Connection {
    fn new(reported: Arc<Parameters>, server: Server) -> Self {
        let state = BackendState::new(reported, 100, Some(7));
        Self { state, server, trace: Trace::default(), unread: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.trace.sent.extend_from_slice(bytes);
        match &mut self.server {
            Server::Real(raw) => raw.stream.write_all(bytes).unwrap(),
            Server::Recorded(trace, _) => assert!(
                trace.sent.starts_with(&self.trace.sent),
                "sent {:?} where it was {:?}",
                bytes.escape_ascii().to_string(),
                trace.sent[(self.trace.sent.len() - bytes.len()).min(trace.sent.len())..]
                    .escape_ascii()
                    .to_string()
            ),
        }
    }

    /// What the server says now: a real one is waited for.
    fn hear(&mut self) {
        match &mut self.server {
            Server::Real(raw) => {
                let mut piece = vec![0; 1 << 16];
                let read = raw.stream.read(&mut piece).unwrap();
                piece.truncate(read);
                self.unread.extend_from_slice(&piece);
                self.trace.said.push((self.trace.sent.len(), piece));
            }
            Server::Recorded(trace, told) => {
                let due = trace.said[*told..].iter().take_while(|(after, _)| *after <= self.trace.sent.len());
                for (after, piece) in due {
                    *told += 1;
                    self.unread.extend_from_slice(piece);
                    self.trace.said.push((*after, piece.clone()));
                }
            }
        }
    }
}

/// Into how many bytes each side's are cut.
#[derive(Clone)]
struct Cut {
    client: Vec<usize>,
    server: Vec<usize>,
}

/// Reads, writes and obeys.
struct Engine {
    conductor: Conductor,
    world: Still,
    /// The next one that is lent is the first one: they take turns.
    idle: Vec<Connection>,
    held: Option<Connection>,
    client_tail: Vec<u8>,
    upstream_tail: Vec<u8>,
    wishes: Wishes,
    to_client: Vec<u8>,
    /// How many of these bytes are messages that were looked at, and how many of those say that the server is ready.
    looked_at: usize,
    ready: usize,
    /// What it was told to do, and what held whenever all was answered.
    acted: Vec<String>,
    closed: bool,
}

impl Engine {
    fn new(reported: &Arc<Parameters>, servers: impl IntoIterator<Item = Server>) -> Self {
        let connections = servers.into_iter().map(|server| Connection::new(reported.clone(), server));
        let mut engine = Self {
            conductor: Conductor::new(session(PoolMode::Transaction, reported.clone())),
            world: Still::default(),
            idle: connections.collect(),
            held: None,
            client_tail: Vec::new(),
            upstream_tail: Vec::new(),
            wishes: Wishes::default(),
            to_client: Vec::new(),
            looked_at: 0,
            ready: 0,
            acted: Vec::new(),
            closed: false,
        };
        engine.tell(Event::FromClient(&[]));
        engine
    }

    fn tell(&mut self, event: Event<'_>) {
        assert!(!self.closed, "an event behind the end");
        let shown = event.shown();
        let backend = self.held.as_mut().map(|connection| &mut connection.state);
        let Said { consumed, to_client, to_upstream, step, wishes, .. } =
            tell(&mut self.conductor, event, backend, &self.world);
        self.wishes = wishes;
        self.to_client.extend_from_slice(&to_client);
        while let Some(Ok(header)) = wire::Header::read(&self.to_client[self.looked_at..])
            && self.to_client.len() >= self.looked_at + header.total
        {
            self.ready += usize::from(header.tag == b'Z');
            self.looked_at += header.total;
        }
        if !to_upstream.is_empty() {
            self.held.as_mut().expect("a connection for what is sent").send(&to_upstream);
        }
        match shown {
            EventBytes::Client(input) => self.client_tail = input[consumed..].to_vec(),
            EventBytes::Upstream(input) => self.upstream_tail = input[consumed..].to_vec(),
            EventBytes::Nothing => {}
        }
        self.take(step);
    }

    fn take(&mut self, step: Step) {
        if !matches!(step, Step::Wait | Step::ShowClient | Step::ShowUpstream | Step::Flush) {
            self.acted.push(format!("{step:?}"));
        }
        match step {
            Step::Wait => {}
            Step::ShowClient => {
                let tail = std::mem::take(&mut self.client_tail);
                self.tell(Event::FromClient(&tail));
            }
            Step::ShowUpstream => {
                let tail = std::mem::take(&mut self.upstream_tail);
                self.tell(Event::FromUpstream(&tail));
            }
            Step::Flush | Step::Outdate(_) | Step::Free(_) | Step::Pin(None) => self.tell(Event::Flushed),
            Step::Lend => {
                self.held = Some(self.idle.remove(0));
                let tail = std::mem::take(&mut self.client_tail);
                self.tell(Event::Lent(Condition::AsItIs, &tail));
            }
            Step::Release => {
                assert!(self.upstream_tail.is_empty(), "given back within an answer");
                self.idle.push(self.held.take().expect("a connection to be given back"));
            }
            Step::PutBack(bytes) => {
                self.client_tail.splice(..0, bytes);
                self.tell(Event::PutBack);
            }
            Step::Pin(Some(_)) => self.tell(Event::Permitted(true)),
            Step::Signal(_) => self.tell(Event::Signalled(relay::Reached::Session)),
            Step::AskListener(_) => self.tell(Event::NoListener),
            Step::Cancel | Step::Replace { .. } => panic!("no server has failed, and nothing is overdue"),
            Step::Close(_) => self.closed = true,
        }
    }

    /// A burst of the client's and all that is answered to it: when this returns, nothing is owed. Of several queries the first may
    /// be answered before the next is there whole, and then is dealt with by itself: those come at once.
    fn have(&mut self, burst: &Burst, cut: &mut Cut) {
        let (mut unread, ready) = (&burst.0[..], burst.1);
        let before = self.ready;
        while !unread.is_empty() && !self.closed {
            if !self.wishes.from_client {
                self.listen(&mut cut.server);
                continue;
            }
            let size = if ready > 1 { unread.len() } else { next(&mut cut.client).min(unread.len()) };
            let input = [&std::mem::take(&mut self.client_tail)[..], &unread[..size]].concat();
            unread = &unread[size..];
            self.tell(Event::FromClient(&input));
        }
        let is_at_rest = |engine: &Self| {
            engine.ready == before + ready
                && matches!(engine.wishes.phase, Phase::Idle | Phase::IdleInTransaction)
        };
        while !self.closed && !is_at_rest(self) {
            self.listen(&mut cut.server);
        }
        self.acted.push(format!("{:?}", self.wishes));
    }

    /// Hears a piece of what the server has to say.
    fn listen(&mut self, sizes: &mut [usize]) {
        assert!(self.wishes.from_upstream, "nobody is waited for: {:?}", self.wishes);
        let connection = self.held.as_mut().expect("a connection that is waited for");
        if connection.unread.is_empty() {
            connection.hear();
        }
        assert!(!connection.unread.is_empty(), "the server has nothing more to say");
        let size = next(sizes).min(connection.unread.len());
        let piece: Vec<u8> = connection.unread.drain(..size).collect();
        let input = [std::mem::take(&mut self.upstream_tail), piece].concat();
        self.tell(Event::FromUpstream(&input));
    }

    /// What each connection was sent and said; the one that was lent last comes last.
    fn traces(self) -> Vec<Trace> {
        self.idle.into_iter().chain(self.held).map(|connection| connection.trace).collect()
    }
}

/// The next size, which comes again when the others were used.
fn next(sizes: &mut [usize]) -> usize {
    sizes.rotate_left(1);
    sizes[sizes.len() - 1]
}

/// Has each script's conversation with two connections to the server, and then again in cuts.
fn replayed(way: Way, number: usize) {
    let address = ([127, 0, 0, 1], server().port).into();
    let mut random = Random(0x5eed);
    for (name, script) in SCRIPTS {
        let bursts = way(script, number);
        let servers: Vec<Raw> = (0..2).map(|_| arrive(address, "app")).collect();
        let pairs: Vec<(&str, &str)> = servers[0].parameters.iter().map(|(n, v)| (&**n, &**v)).collect();
        let reported = reported(&pairs);
        let mut whole = Engine::new(&reported, servers.into_iter().map(Server::Real));
        let at_once = || Cut { client: vec![usize::MAX], server: vec![usize::MAX] };
        for burst in &bursts {
            whole.have(burst, &mut at_once());
        }
        assert!(!whole.closed, "{name}: the session has ended");
        let lent = whole.acted.iter().filter(|act| *act == "Lend").count();
        let (to_client, acted) = (whole.to_client.clone(), whole.acted.clone());
        // As they were lent first.
        let mut traces = whole.traces();
        traces.rotate_left(lent % 2);
        let mut some = |most| (0..7).map(|_| 1 + random.below(most)).collect::<Vec<_>>();
        let mut cuts = vec![
            at_once(),
            Cut { client: vec![1], ..at_once() },
            Cut { server: vec![1], ..at_once() },
            Cut { client: vec![1], server: vec![1] },
        ];
        cuts.extend((0..size(4, 40)).map(|_| Cut { client: some(40), server: some(40) }));
        for mut cut in cuts {
            let told = format!("{name}, {number}: {:?} and {:?} bytes", cut.client, cut.server);
            let servers = traces.iter().map(|trace| Server::Recorded(trace.clone(), 0));
            let mut again = Engine::new(&reported, servers);
            for burst in &bursts {
                again.have(burst, &mut cut);
            }
            assert_eq!(again.acted, acted, "{told}");
            assert_eq!(again.to_client, to_client, "{told}");
            let mut sent = again.traces();
            sent.rotate_left(lent % 2);
            assert_eq!(sent, traces, "{told}");
        }
    }
}

#[test]
fn a_conversation_in_the_simple_protocol_is_the_same_in_every_cut() {
    replayed(simple, 21);
}

#[test]
fn a_conversation_in_the_extended_protocol_is_the_same_in_every_cut() {
    replayed(extended, 22);
}
