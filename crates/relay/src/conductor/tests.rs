//! A fake engine, and conversations through it: of an example each, and of a generator.

mod edges;
mod rests;
mod server;

use std::sync::Arc;

use proptest::prelude::*;

use super::setup::MAX_SETUPS;
use super::*;
use server::Server;
use still::{Said, Still, reported, session, tell};
use wire::{Header, message};

/// A connection of the fake pool.
struct Backend {
    state: BackendState,
    server: Server,
    /// What the server has said and nobody has read.
    answers: Vec<u8>,
}

/// Reads, writes and obeys; everything is in memory.
struct Rig {
    conductor: Conductor,
    world: Still,
    /// Connections that can be lent, the next one last.
    idle: Vec<Backend>,
    held: Option<Backend>,
    /// Its servers say only what the test says.
    is_mute: bool,
    /// There is a listener.
    listener: bool,
    /// The pool has none to lend.
    dry: bool,
    permits: bool,
    client_tail: Vec<u8>,
    upstream_tail: Vec<u8>,
    wishes: Wishes,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
    /// Steps that were taken, but for those that say nothing.
    steps: Vec<&'static str>,
    /// How often the client's bytes were to be shown again.
    shown_again: usize,
    statistics: Vec<Statistics>,
    /// Something of the client's had to wait for an answer.
    deferred: bool,
    closed: Option<Closing>,
    /// At each chance, and how often.
    rests: Option<usize>,
}

/// A connection that nobody has used.
fn fresh(last_user: Option<&str>) -> Backend {
    let mut state = BackendState::new(Arc::default(), 100, Some(7));
    if let Some(user) = last_user {
        state.serve(&user.into());
    }
    Backend { state, server: Server::default(), answers: Vec::new() }
}

impl Rig {
    fn new(mode: PoolMode) -> Self {
        Self {
            conductor: Conductor::new(session(mode, Arc::default())),
            world: Still::default(),
            idle: vec![fresh(None), fresh(None)],
            held: None,
            is_mute: false,
            listener: false,
            dry: false,
            permits: true,
            client_tail: Vec::new(),
            upstream_tail: Vec::new(),
            wishes: Wishes::default(),
            to_client: Vec::new(),
            to_upstream: Vec::new(),
            steps: Vec::new(),
            shown_again: 0,
            statistics: Vec::new(),
            deferred: false,
            closed: None,
            rests: None,
        }
    }

    /// In transaction mode, and at its first event.
    fn started() -> Self {
        let mut rig = Self::new(PoolMode::Transaction);
        rig.say(Event::FromClient(&[]));
        rig
    }

    /// Of a client that has sent `LISTEN news`, which the listener is asked to take over.
    fn listening() -> Self {
        let mut rig = Self::new(PoolMode::Transaction);
        let reported = reported(&[("client_encoding", "UTF8")]);
        rig.conductor = Conductor::new(session(PoolMode::Transaction, reported.clone()));
        rig.idle = vec![Backend { state: BackendState::new(reported, 100, Some(7)), ..fresh(None) }];
        rig.listener = true;
        rig.say(Event::FromClient(&[]));
        rig.converse(&query("LISTEN news"));
        rig.upstream(&[]);
        rig
    }

    /// The listener listens: the marker goes by, and the connection listens no more.
    fn listener_listens(&mut self) {
        let mark = crate::Mark { id: 1, channel: "ours".into(), seal: crate::Seal::new([3; 32]) };
        self.say(Event::Listener(Box::new(Ok(Answer::Listening(mark)))));
        self.upstream(&[]);
        self.upstream(&[]);
    }

    /// The listener delivers from here on.
    fn listener_delivers(&mut self) {
        self.say(Event::Listener(Box::new(Ok(Answer::Marked(vec!["news".into()])))));
    }

    /// Deals with one event and with all that follows from it.
    fn say(&mut self, event: Event<'_>) {
        let mut queue = self.one(event);
        while let Some(next) = queue.take() {
            queue = match next {
                Next::Client => {
                    let tail = std::mem::take(&mut self.client_tail);
                    self.one(Event::FromClient(&tail))
                }
                Next::Upstream => {
                    let tail = std::mem::take(&mut self.upstream_tail);
                    self.one(Event::FromUpstream(&tail))
                }
                Next::Lend => {
                    let Some(backend) = self.idle.pop().filter(|_| !self.dry) else { break };
                    let user = "dana".into();
                    let foreign = backend.state.is_foreign_to(&user);
                    let condition = if foreign { Condition::OfAnother } else { Condition::AsItIs };
                    self.held = Some(backend);
                    let tail = std::mem::take(&mut self.client_tail);
                    self.one(Event::Lent(condition, &tail))
                }
                Next::Event(event) => self.one(event),
            };
        }
    }

    fn one(&mut self, event: Event<'_>) -> Option<Next> {
        assert!(self.closed.is_none(), "an event behind the end");
        self.rest();
        let shown = event.shown();
        let backend = self.held.as_mut().map(|backend| &mut backend.state);
        let Said { consumed, to_client, to_upstream, step, wishes, statistics } =
            tell(&mut self.conductor, event, backend, &self.world);
        assert!(!wishes.from_upstream || self.held.is_some(), "bytes of no connection are wanted");
        self.wishes = wishes;
        self.deferred |= wishes.doing == Doing::Running && !wishes.from_client;
        self.to_client.extend_from_slice(&to_client);
        if !to_upstream.is_empty() {
            self.to_upstream.extend_from_slice(&to_upstream);
            let backend = self.held.as_mut().expect("a connection for what is sent");
            if !self.is_mute {
                backend.answers.extend(backend.server.answer(&to_upstream));
            }
        }
        if statistics.any {
            self.statistics.push(statistics);
        }
        match shown {
            EventBytes::Client(input) => self.client_tail = input[consumed..].to_vec(),
            EventBytes::Upstream(input) => self.upstream_tail = input[consumed..].to_vec(),
            EventBytes::Nothing => assert_eq!(consumed, 0),
        }
        self.take(step)
    }

    fn take(&mut self, step: Step) -> Option<Next> {
        let (name, next) = match step {
            Step::Wait => return None,
            Step::ShowClient => {
                self.shown_again += 1;
                return Some(Next::Client);
            }
            Step::ShowUpstream => return Some(Next::Upstream),
            Step::Flush => return Some(Next::Event(Event::Flushed)),
            Step::Lend => ("lend", Some(Next::Lend)),
            Step::Release => {
                let backend = self.held.take().expect("a connection to be given back");
                assert!(
                    backend.answers.is_empty() && self.upstream_tail.is_empty(),
                    "answers are outstanding"
                );
                assert!(backend.server.is_at_rest(), "something is under way");
                self.idle.push(backend);
                ("release", None)
            }
            Step::Replace { .. } => {
                self.held = None;
                self.upstream_tail.clear();
                ("replace", Some(Next::Client))
            }
            Step::PutBack(bytes) => {
                self.client_tail.splice(..0, bytes);
                ("put back", Some(Next::Event(Event::PutBack)))
            }
            Step::Pin(None) => ("unpin", Some(Next::Event(Event::Flushed))),
            Step::Pin(Some(_)) => ("pin", Some(Next::Event(Event::Permitted(self.permits)))),
            Step::Outdate(_) => ("outdate", Some(Next::Event(Event::Flushed))),
            Step::Free(_) => ("free", Some(Next::Event(Event::Flushed))),
            Step::Signal(_) => ("signal", Some(Next::Event(Event::Signalled(crate::Reached::Nobody)))),
            Step::AskListener(_) if self.listener => ("ask the listener", None),
            Step::AskListener(_) => ("ask the listener", Some(Next::Event(Event::NoListener))),
            Step::Cancel => ("cancel", None),
            Step::Close(closing) => {
                self.closed = Some(*closing);
                ("close", None)
            }
        };
        self.steps.push(name);
        next
    }

    /// The client sends, in pieces of these sizes (the last one again and again).
    fn client(&mut self, bytes: &[u8], sizes: &[usize]) {
        let mut sizes = sizes
            .iter()
            .copied()
            .chain(std::iter::repeat(sizes.last().copied().unwrap_or(bytes.len()).max(1)));
        let mut unread = bytes;
        while !unread.is_empty() && self.closed.is_none() {
            if !self.wishes.from_client {
                let before = (self.wishes, self.to_client.len(), self.to_upstream.len());
                self.upstream(&[usize::MAX]);
                let after = (self.wishes, self.to_client.len(), self.to_upstream.len());
                if before == after {
                    break;
                }
                continue;
            }
            let size = sizes.next().unwrap_or(1).clamp(1, unread.len());
            let (piece, rest) = unread.split_at(size);
            unread = rest;
            let input = [&std::mem::take(&mut self.client_tail)[..], piece].concat();
            self.say(Event::FromClient(&input));
        }
    }

    /// The upstream's answers are read, in pieces of these sizes, until there are no more.
    fn upstream(&mut self, sizes: &[usize]) {
        let mut sizes =
            sizes.iter().copied().chain(std::iter::repeat(sizes.last().copied().unwrap_or(usize::MAX)));
        while self.closed.is_none() && self.wishes.from_upstream {
            let Some(backend) = self.held.as_mut().filter(|backend| !backend.answers.is_empty()) else {
                break;
            };
            let size = sizes.next().unwrap_or(1).clamp(1, backend.answers.len());
            let piece: Vec<u8> = backend.answers.drain(..size).collect();
            let input = [std::mem::take(&mut self.upstream_tail), piece].concat();
            self.say(Event::FromUpstream(&input));
        }
    }

    fn converse(&mut self, bytes: &[u8]) {
        self.client(bytes, &[]);
        self.upstream(&[]);
    }

    /// What was run on each connection.
    fn ran(&self) -> Vec<&[String]> {
        self.idle.iter().chain(&self.held).map(|backend| backend.server.ran.as_slice()).collect()
    }

    /// What the client was statistics, as the tags of messages.
    fn tags(&self) -> String {
        tags(&self.to_client)
    }
}

/// What follows from a step.
enum Next {
    Client,
    Upstream,
    Lend,
    Event(Event<'static>),
}

fn tags(bytes: &[u8]) -> String {
    let (mut tags, mut rest) = (String::new(), bytes);
    while let Some(Ok(header)) = Header::read(rest) {
        tags.push(header.tag as char);
        rest = &rest[header.total..];
    }
    tags
}

/// A message of this tag.
fn m(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

fn query(text: &str) -> Vec<u8> {
    m(b'Q', format!("{text}\0").as_bytes())
}

fn refusal() -> Refusal {
    Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, "the end")
}

#[test]
fn a_query_is_lent_a_connection_that_goes_back_when_it_is_answered() {
    let mut rig = Rig::started();
    assert_eq!((rig.wishes.doing, rig.wishes.phase), (Doing::Nothing, Phase::Idle));
    rig.client(&query("SELECT 1"), &[]);
    assert_eq!((rig.steps.as_slice(), rig.wishes.doing), (&["lend"][..], Doing::Running));
    assert!(matches!(rig.wishes.phase, Phase::Querying(0)));
    rig.upstream(&[]);
    assert_eq!((rig.steps.as_slice(), rig.tags()), (&["lend", "release"][..], "DCZ".into()));
    assert_eq!((rig.wishes.doing, rig.wishes.phase), (Doing::Nothing, Phase::Idle));
    let ended = rig.statistics.iter().find_map(|statistics| statistics.ended).unwrap();
    assert_eq!((ended.transactions, ended.counts.queries, ended.took), (1, 1, Some(1000)));
}

#[test]
fn within_a_transaction_the_connection_stays() {
    let mut rig = Rig::started();
    for (text, steps) in [("BEGIN", 1), ("SELECT 1", 1), ("FAIL", 1), ("COMMIT", 2)] {
        rig.converse(&query(text));
        assert_eq!(rig.steps.len(), steps, "{text}");
        assert_eq!(rig.wishes.phase == Phase::IdleInTransaction, text != "COMMIT", "{text}");
    }
    assert_eq!(rig.tags(), "CZDCZEZCZ");
}

#[test]
fn a_connection_of_another_user_is_reset_before_anything_is_sent_on_it() {
    let mut rig = Rig::started();
    rig.idle = vec![fresh(Some("mallory"))];
    rig.client(&query("SELECT 1"), &[]);
    assert!(!rig.wishes.from_client && rig.wishes.doing == Doing::Nothing);
    assert!(matches!(rig.wishes.phase, Phase::Resetting { attempt: 0 }));
    assert!(!tags(&rig.to_upstream).is_empty() && rig.held.as_ref().unwrap().server.ran[0] == "DISCARD ALL");
    assert!(rig.held.as_ref().unwrap().server.ran.iter().all(|ran| ran != "SELECT 1"));
    rig.upstream(&[]);
    rig.upstream(&[]);
    assert_eq!((rig.steps.as_slice(), rig.tags()), (&["lend", "release"][..], "DCZ".into()));
    let resets: Vec<_> = rig.statistics.iter().filter_map(|statistics| statistics.reset).collect();
    assert!(matches!(resets.as_slice(), [Resets::Begun, Resets::Done(_)]), "{resets:?}");
}

#[test]
fn a_connection_that_cannot_be_reset_is_replaced_and_in_the_end_the_client_is_told() {
    let mut rig = Rig::started();
    rig.idle = vec![fresh(Some("mallory")), fresh(Some("mallory"))];
    rig.client(&query("SELECT 1"), &[]);
    rig.say(Event::UpstreamEnded(Box::default()));
    assert_eq!(rig.steps, ["lend", "replace", "lend"]);
    assert!(matches!(rig.wishes.phase, Phase::Resetting { attempt: 1 }));
    rig.say(Event::Overdue(Overdue::Phase(rig.wishes.phase)));
    let closing = rig.closed.unwrap();
    assert!(
        matches!(closing.cause, Cause::Refused(ref refusal) if refusal.sqlstate == SqlState::CONNECTION_FAILURE)
    );
    assert_eq!(tags(&rig.to_client), "E");
    assert!(matches!(closing.connection, Leaving::Discard { .. }));
}

#[test]
fn a_client_that_is_refused_a_connection_is_told_and_may_ask_again() {
    let mut rig = Rig::started();
    rig.dry = true;
    let batch = [m(b'P', b"\0SELECT 1\0\0\0"), m(b'S', b"")].concat();
    rig.client(&batch, &[]);
    assert_eq!((rig.wishes.doing, rig.wishes.from_client), (Doing::Waiting, false));
    assert_eq!(rig.wishes.phase, Phase::Waiting { notified: false });
    rig.say(Event::Overdue(Overdue::Notice));
    assert_eq!(rig.wishes.phase, Phase::Waiting { notified: true });
    let tail = std::mem::take(&mut rig.client_tail);
    rig.say(Event::Refused(&refusal(), &tail));
    assert_eq!((rig.tags(), rig.wishes.phase), ("NEZ".into(), Phase::Idle));
    (rig.dry, rig.idle) = (false, vec![fresh(None)]);
    rig.converse(&query("SELECT 1"));
    assert_eq!(rig.tags(), "NEZDCZ");
}

#[test]
fn what_a_session_has_set_is_asked_for_before_its_connection_goes_back_and_is_set_on_the_next_one() {
    let mut rig = Rig::started();
    rig.client(&query("SET work_mem TO 8MB"), &[]);
    let pieces = [tags(&rig.to_upstream), String::new()];
    assert_eq!(pieces[0], "Q");
    rig.upstream(&[]);
    assert_eq!((tags(&rig.to_upstream), rig.steps.as_slice()), ("QQ".into(), &["lend", "release"][..]));
    assert_eq!(rig.tags(), "CZ", "the client hears nothing of what is asked");
    // Another connection.
    rig.idle.insert(0, fresh(None));
    rig.idle.truncate(1);
    rig.converse(&query("SELECT 1"));
    rig.upstream(&[]);
    let server = &rig.idle.last().unwrap().server;
    assert_eq!(server.settings.get("work_mem").map(String::as_str), Some("8MB"));
    assert_eq!(rig.tags(), "CZDCZ");
}

/// It would end the connection in the hands of somebody else.
#[test]
fn a_limit_for_idle_sessions_is_taken_off_before_the_connection_goes_back() {
    let mut rig = Rig::started();
    rig.converse(&query("SET idle_session_timeout TO 20"));
    rig.upstream(&[]);
    assert_eq!((rig.steps.as_slice(), rig.tags()), (&["lend", "release"][..], "CZ".into()));
    let set = |rig: &Rig| rig.idle.iter().any(|b| b.server.settings.contains_key("idle_session_timeout"));
    assert!(!set(&rig));
    // The session has it again whenever it has one, and only then.
    rig.client(&query("SELECT 1"), &[]);
    rig.upstream(&[]);
    assert_eq!(rig.steps, ["lend", "release", "lend", "release"]);
    assert!(!set(&rig) && rig.ran().concat().iter().filter(|ran| ran.contains("set_config")).count() > 0);
    rig.client(&[query("SELECT 1"), m(b'X', b"")].concat(), &[]);
    rig.upstream(&[]);
    assert!(matches!(rig.closed.as_ref().unwrap().connection, Leaving::Release) && !set(&rig));
}

#[test]
fn orders_end_a_session_between_transactions_or_at_once() {
    let order = |now| Event::Order { now, refusal: Box::new(refusal()) };
    let mut rig = Rig::started();
    rig.converse(&query("BEGIN"));
    rig.say(order(false));
    assert!(rig.closed.is_none());
    rig.converse(&query("COMMIT"));
    rig.say(order(false));
    assert_eq!((rig.tags(), rig.closed.unwrap().connection), ("CZCZE".into(), Leaving::Nothing));
    let mut rig = Rig::started();
    rig.client(&query("SELECT 1"), &[]);
    rig.say(order(true));
    assert_eq!(rig.closed.unwrap().connection, Leaving::Discard { running: true });
}

#[test]
fn a_statement_that_lasts_too_long_is_cancelled_and_then_given_up() {
    let mut rig = Rig::started();
    rig.converse(&query("BEGIN"));
    rig.client(&query("SELECT 1"), &[]);
    rig.say(Event::Overdue(Overdue::Phase(rig.wishes.phase)));
    assert_eq!((rig.steps.last(), rig.wishes.phase), (Some(&"cancel"), Phase::Cancelled(1)));
    rig.upstream(&[]);
    assert_eq!(rig.wishes.phase, Phase::IdleInTransaction);
    rig.client(&query("SELECT 1").repeat(2), &[]);
    assert_eq!(rig.wishes.phase, Phase::Querying(2), "the next one has its own time");
    let backend = rig.held.as_mut().unwrap();
    let end = backend.answers.iter().position(|byte| *byte == b'Z').unwrap() + 6;
    let first: Vec<u8> = backend.answers.drain(..end).collect();
    rig.say(Event::FromUpstream(&first));
    assert_eq!(rig.wishes.phase, Phase::Querying(3), "and so has each of those that came together");
    rig.say(Event::Overdue(Overdue::Phase(rig.wishes.phase)));
    rig.say(Event::Overdue(Overdue::Phase(rig.wishes.phase)));
    assert!(matches!(rig.closed.unwrap().cause, Cause::Refused(refusal) if refusal.fault == Fault::Upstream));
}

/// A look at what is left on the connection that takes too long is not the fault of the next statement.
#[test]
fn what_was_overdue_before_a_connection_went_back_is_forgotten() {
    let mut rig = Rig::started();
    rig.client(&query("SET work_mem TO 8MB"), &[]);
    let answers = std::mem::take(&mut rig.held.as_mut().unwrap().answers);
    rig.say(Event::FromUpstream(&answers));
    assert_eq!((rig.wishes.doing, rig.wishes.phase), (Doing::Nothing, Phase::Querying(1)));
    rig.say(Event::Overdue(Overdue::Phase(rig.wishes.phase)));
    assert_eq!(rig.wishes.phase, Phase::Cancelled(1));
    rig.upstream(&[]);
    assert_eq!((rig.steps.last(), rig.wishes.phase), (Some(&"release"), Phase::Idle));
    rig.client(&query("SELECT 1"), &[]);
    assert_eq!(rig.wishes.phase, Phase::Querying(1), "it has its own time");
}

#[test]
fn idle_clients_are_ended_in_words_of_their_phase() {
    for (texts, sqlstate) in
        [(&[][..], SqlState::IDLE_SESSION_TIMEOUT), (&["BEGIN"][..], SqlState::IDLE_IN_TRANSACTION_TIMEOUT)]
    {
        let mut rig = Rig::started();
        texts.iter().for_each(|text| rig.converse(&query(text)));
        rig.say(Event::Overdue(Overdue::Phase(rig.wishes.phase)));
        assert!(matches!(rig.closed.unwrap().cause, Cause::Refused(refusal) if refusal.sqlstate == sqlstate));
    }
}

#[test]
fn a_client_that_says_goodbye_leaves_a_connection_that_is_clean() {
    let mut rig = Rig::started();
    rig.client(&[query("SELECT 1"), m(b'X', b"")].concat(), &[]);
    assert!(rig.closed.is_none(), "it is owed an answer");
    rig.upstream(&[]);
    let closing = rig.closed.unwrap();
    assert_eq!(closing.connection, Leaving::Release);
    assert!(matches!(closing.cause, Cause::Client) && closing.transactions == 1);
    let ended: Vec<_> = rig.statistics.iter().filter_map(|statistics| statistics.ended).collect();
    assert!(matches!(ended[..], [Ended { transactions: 1, took: Some(_), .. }]), "{ended:?}");
}

/// What it is owed comes first; what can never be answered, as the rest of it does not come, is not waited for.
#[test]
fn a_client_that_closes_its_side_is_answered_and_not_waited_for() {
    let sync = m(b'S', b"");
    let parse = m(b'P', b"\0SELECT 1\0\0\0");
    let long = query(&"long".repeat(5000));
    let half = &long[..30];
    for (sent, answered) in [
        (query("SELECT 1"), true),
        ([&query("SELECT 1"), half].concat(), true),
        ([query("SELECT 1"), parse.clone()].concat(), true),
        ([parse.clone(), sync.clone()].concat(), true),
        (parse.clone(), false),
        (half.to_vec(), false),
        ([&parse, half].concat(), false),
        // A `Sync` that says it is long, and is not there whole.
        ([&m(b'd', b"1\n")[..], &m(b'C', b"Ss\0"), b"S\0\0\x01\x04E"].concat(), false),
        (m(b'd', b"1\n"), false),
    ] {
        let mut rig = Rig::started();
        rig.client(&sent, &[]);
        rig.say(Event::ClientClosed);
        assert_eq!(rig.closed.is_none(), answered, "{}", sent.escape_ascii());
        if answered {
            rig.upstream(&[]);
            assert!(rig.closed.is_some(), "{}", sent.escape_ascii());
            assert!(rig.tags().contains('Z'), "{}", sent.escape_ascii());
        }
    }
}

#[test]
fn in_session_mode_the_connection_stays_and_is_cleaned_at_the_end() {
    let mut rig = Rig::new(PoolMode::Session);
    rig.held = rig.idle.pop();
    rig.say(Event::Lent(Condition::AsItIs, &[]));
    rig.converse(&query("SELECT 1"));
    assert!(rig.steps.is_empty() && rig.held.is_some());
    rig.say(Event::ClientEnded);
    assert_eq!(rig.closed.unwrap().connection, Leaving::Clean);
}

/// Behind it would come what the upstream has still to be told: that it listens no more.
#[test]
fn what_a_client_has_sent_and_had_to_wait_waits_for_the_end_of_a_hand_over() {
    let mut rig = Rig::listening();
    rig.conductor.deferred = true;
    rig.client_tail = query("SELECT 'waits'");
    let has_sent = |rig: &Rig| memchr::memmem::find(&rig.to_upstream, b"'waits'").is_some();
    rig.listener_listens();
    assert!(!has_sent(&rig) && rig.conductor.deferred);
    rig.listener_delivers();
    rig.upstream(&[]);
    assert!(has_sent(&rig) && !rig.conductor.deferred);
    assert_eq!(rig.tags(), "CZDCZ");
}

#[test]
fn the_channels_of_a_session_go_over_to_the_listener_and_its_connection_goes_back() {
    let mut rig = Rig::listening();
    assert_eq!(
        (rig.steps.as_slice(), rig.wishes.listening),
        (&["lend", "ask the listener"][..], Listening::Answer)
    );
    assert_eq!((rig.wishes.doing, rig.wishes.from_client), (Doing::Nothing, false));
    rig.listener_listens();
    assert_eq!(rig.wishes.listening, Listening::Answer);
    rig.listener_delivers();
    assert_eq!((rig.steps.last(), rig.wishes.listening), (Some(&"release"), Listening::Yes));
    assert_eq!(rig.tags(), "CZ", "the client hears nothing of the transfer");
    let news = m(b'A', b"\0\0\0\x07news\0x\0");
    assert!(rig.wishes.takes_notifications);
    rig.say(Event::Notifications(Box::new(Ok(vec![news.into()]))));
    assert_eq!(rig.tags(), "CZA");
    // It goes on to listen while it waits for a connection.
    rig.dry = true;
    rig.client(&query("SELECT 1"), &[]);
    assert_eq!((rig.wishes.doing, rig.wishes.listening), (Doing::Waiting, Listening::Yes));
    let lost = refusal();
    rig.say(Event::Notifications(Box::new(Err(lost))));
    assert!(matches!(rig.closed.unwrap().cause, Cause::Refused(_)));
}

#[test]
fn a_session_may_keep_its_connection_only_with_a_permit() {
    // A function of which nothing is known.
    let call = m(b'F', &[0; 12]);
    let mut rig = Rig::started();
    rig.converse(&call);
    assert_eq!((rig.steps.as_slice(), rig.held.is_some()), (&["lend", "pin"][..], true));
    let mut rig = Rig::started();
    rig.permits = false;
    rig.client(&call, &[]);
    assert_eq!(rig.steps, ["lend", "pin", "close"]);
    assert!(
        matches!(rig.closed.unwrap().cause, Cause::Refused(refusal) if refusal.sqlstate == SqlState::TOO_MANY_CONNECTIONS)
    );
}

/// What a client of the generator does.
#[derive(Debug, Clone)]
enum Act {
    Query(&'static str),
    /// Named by a digit, or unnamed.
    Parse(u8, &'static str),
    BindAndExecute(u8),
    Describe(u8),
    Close(u8),
    Copy {
        fails: bool,
    },
    Sync,
    Flush,
    /// What was sent is answered before more is.
    Remainder,
}

const TEXTS: [&str; 8] = [
    "SELECT 1",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "FAIL",
    "SET work_mem TO 8MB",
    "SELECT 1;SELECT 2",
    "SET statement_timeout TO 5s",
];

fn name(name: u8) -> String {
    if name == 0 { String::new() } else { format!("s{name}") }
}

impl Act {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Query(text) => query(text),
            Self::Parse(n, text) => m(b'P', format!("{}\0{text}\0\0\0", name(*n)).as_bytes()),
            Self::BindAndExecute(n) => {
                let bind = m(b'B', format!("\0{}\0\0\0\0\0\0\0", name(*n)).as_bytes());
                [bind, m(b'E', &[0; 5])].concat()
            }
            Self::Describe(n) => m(b'D', format!("S{}\0", name(*n)).as_bytes()),
            Self::Close(n) => m(b'C', format!("S{}\0", name(*n)).as_bytes()),
            Self::Copy { fails } => {
                let end = if *fails { m(b'f', b"no\0") } else { m(b'c', b"") };
                [query("COPY t FROM STDIN"), m(b'd', b"1\n"), end].concat()
            }
            Self::Sync => m(b'S', b""),
            Self::Flush => m(b'H', b""),
            Self::Remainder => Vec::new(),
        }
    }

    /// Whether the client is owed a `ReadyForQuery` for it.
    fn ends(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Copy { .. } | Self::Sync)
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let text = prop::sample::select(&TEXTS[..]);
    let single = prop::sample::select(
        &["SELECT 1", "BEGIN", "COMMIT", "FAIL", "FAIL TO PARSE", "SET work_mem TO 8MB"][..],
    );
    let act = prop_oneof![
        4 => text.prop_map(Act::Query),
        3 => (0..3_u8, single).prop_map(|(name, text)| Act::Parse(name, text)),
        3 => (0..3_u8).prop_map(Act::BindAndExecute),
        1 => (0..3_u8).prop_map(Act::Describe),
        1 => (0..3_u8).prop_map(Act::Close),
        1 => any::<bool>().prop_map(|fails| Act::Copy { fails }),
        4 => Just(Act::Sync),
        1 => Just(Act::Flush),
        3 => Just(Act::Remainder),
    ];
    // A query behind requests without their Sync is not what any client sends, and its answers depend on the server.
    prop::collection::vec(act, 1..24).prop_map(|acts| {
        let mut whole = Vec::new();
        let mut open = false;
        for act in acts {
            if open && matches!(act, Act::Query(_) | Act::Copy { .. } | Act::Remainder) {
                whole.push(Act::Sync);
                open = false;
            }
            open = match act {
                Act::Parse(..) | Act::BindAndExecute(_) | Act::Describe(_) | Act::Close(_) => true,
                Act::Flush => open,
                _ => false,
            };
            whole.push(act);
        }
        whole.extend([Act::Sync, Act::Remainder, Act::Query("ROLLBACK"), Act::Remainder]);
        whole
    })
}

/// Has a conversation, in pieces of these sizes; between two rests all is sent before anything is answered.
fn have(acts: &[Act], of_client: &[usize], of_upstream: &[usize]) -> Rig {
    let mut rig = Rig::started();
    go_on(&mut rig, acts, of_client, of_upstream);
    rig
}

fn go_on(rig: &mut Rig, acts: &[Act], of_client: &[usize], of_upstream: &[usize]) {
    for burst in acts.split(|act| matches!(act, Act::Remainder)) {
        let bytes: Vec<u8> = burst.iter().flat_map(Act::bytes).collect();
        rig.client(&bytes, of_client);
        rig.upstream(of_upstream);
    }
}

proptest! {
    /// However the bytes of both sides are cut, the same is sent to both, and the same is done.
    #[test]
    fn every_cut_of_the_bytes_gives_the_same_actions(
        acts in acts(),
        of_client in prop::collection::vec(1..40_usize, 1..8),
        of_upstream in prop::collection::vec(1..40_usize, 1..8),
    ) {
        let (whole, cut) = (have(&acts, &[], &[]), have(&acts, &of_client, &of_upstream));
        prop_assert_eq!(tags(&whole.to_client), tags(&cut.to_client));
        prop_assert_eq!(&whole.to_client, &cut.to_client);
        // Where something had to wait for an answer, it is known by then whether it fails, and the connection may have gone
        // back before the rest had come.
        if !whole.deferred && !cut.deferred {
            prop_assert_eq!(&whole.steps, &cut.steps);
            prop_assert_eq!(whole.ran(), cut.ran());
            prop_assert_eq!(&whole.to_upstream, &cut.to_upstream);
        }
    }

    /// Whoever asks is answered, and between two transactions the connection goes back.
    #[test]
    fn every_conversation_ends_at_rest_with_each_query_answered(acts in acts()) {
        let rig = have(&acts, &[], &[]);
        prop_assert!(rig.closed.is_none(), "{:?}", rig.closed);
        let ends = acts.iter().filter(|act| act.ends()).count();
        prop_assert_eq!(rig.tags().matches('Z').count(), ends);
        prop_assert!(rig.held.is_none() && rig.wishes.phase == Phase::Idle);
        let lent = rig.steps.iter().filter(|step| **step == "lend").count();
        prop_assert_eq!(lent, rig.steps.iter().filter(|step| **step == "release").count());
    }

    /// Messages of any kind and any content are dealt with, whoever sends them.
    #[test]
    fn messages_of_any_kind_are_dealt_with(pieces in prop::collection::vec(piece(), 0..40)) {
        let mut rig = Rig::started();
        rig.is_mute = true;
        for (of_client, bytes) in pieces {
            match (&mut rig.held, of_client) {
                _ if rig.closed.is_some() => break,
                (Some(backend), false) => {
                    backend.answers.extend(bytes);
                    rig.upstream(&[7]);
                }
                (_, true) if rig.wishes.from_client => {
                    let input = [std::mem::take(&mut rig.client_tail), bytes].concat();
                    rig.say(Event::FromClient(&input));
                }
                _ => {}
            }
        }
    }
}

/// Whether the client sends it, and the bytes: mostly a message that is whole and of a kind that there is.
fn piece() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let tag = |of_client: bool| {
        let tags: &'static [u8] = if of_client { b"QPBDCEFSHdcfX" } else { b"ZCEDTtn123sIGHWcdNASV" };
        prop::sample::select(tags)
    };
    let body = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20),
            Just(b"I".to_vec()),
            Just(b"\0\0\0".to_vec()),
            Just(b"SELECT set_config('a','b',false)\0".to_vec()),
            Just(b"s1\0SELECT 1\0\0\0".to_vec()),
            Just(b"Sx\0CXX000\0Mno\0\0".to_vec()),
        ]
    };
    let message = any::<bool>().prop_flat_map(move |of_client| {
        (Just(of_client), tag(of_client), body())
            .prop_map(|(of_client, tag, body)| (of_client, m(tag, &body)))
    });
    prop_oneof![9 => message, 1 => (any::<bool>(), prop::collection::vec(any::<u8>(), 0..60))]
}
