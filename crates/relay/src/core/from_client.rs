//! From the client to the upstream.

use std::ops::Range;

use super::position::Remainder;
use super::requests::Kind;
use super::{BackendState, Core, GATHER, MAX_ADDED, MAX_NOTED, OutputBuffer, Taken, Then};
use crate::sql::{Effects, Pin};
use wire::error::{Fault, Refusal, SqlState};
use wire::{HEADER, Header, MAX_SMALL_LENGTH};

/// The functions of large objects (`lo_open` and its like, see `pg_proc.dat`), which clients call by their numbers. What
/// they leave ends with the transaction.
const LARGE_OBJECTS: [u32; 15] =
    [715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171];

/// A message of the client's, as much of it as is there.
#[derive(Clone, Copy)]
pub(super) struct Incoming<'a> {
    pub header: Header,
    /// From its header on; others may be behind it.
    pub input: &'a [u8],
    /// Where in the piece at hand it begins.
    pub at: usize,
}

impl<'a> Incoming<'a> {
    pub(super) fn is_whole(&self) -> bool {
        self.input.len() >= self.header.total
    }

    /// Where it is in the piece at hand.
    pub(super) fn range(&self) -> Range<usize> {
        self.at..self.at + self.header.total
    }

    /// What is there of its body.
    pub(super) fn body(&self) -> &'a [u8] {
        &self.input[HEADER..self.header.total.min(self.input.len())]
    }
}

/// The connection that is lent, and what takes what goes to it and what goes back to the client at once.
pub(super) struct Wires<'w, 'a> {
    pub backend: &'w mut BackendState,
    pub up: &'w mut OutputBuffer<'a>,
    pub down: &'w mut Vec<u8>,
}

/// How one message ended.
pub(super) enum Step {
    /// It was dealt with whole.
    Done,
    /// All of it, as it comes, is to be treated like this.
    Streams(Remainder),
    /// So many bytes of it were dealt with; what comes behind them is to be treated like this.
    Partly(usize, Remainder),
    /// So much of it must be there.
    Need(usize),
    /// It can be dealt with when more answers have come.
    Defer,
}

impl Core {
    /// Deals with bytes from the client. `up` takes what goes to the upstream, `down` what goes back at once.
    ///
    /// # Errors
    /// The client broke the protocol: its session ends with this.
    pub(crate) fn client_sent(
        &mut self,
        input: &[u8],
        mut backend: Option<&mut BackendState>,
        up: &mut OutputBuffer<'_>,
        down: &mut Vec<u8>,
    ) -> Result<Taken, Refusal> {
        let taken = self.take_in(input, backend.as_deref_mut(), up, down)?;
        if let Some(backend) = backend {
            self.keep_batch(&input[..taken.consumed], backend);
        }
        Ok(taken)
    }

    /// True if the client's bytes begin with a message that needs a connection, and can be dealt with when there is one.
    pub(crate) fn asks_for_a_connection(&self, input: &[u8]) -> bool {
        let needs_one = |header: Header| {
            needs_connection(header.tag) && input.len() >= header.total && !is_too_long(header)
        };
        !self.position.is_in_clients_message()
            && !self.position.is_refusing()
            && matches!(Header::read(input), Some(Ok(header)) if needs_one(header))
    }

    fn take_in(
        &mut self,
        input: &[u8],
        mut backend: Option<&mut BackendState>,
        up: &mut OutputBuffer<'_>,
        down: &mut Vec<u8>,
    ) -> Result<Taken, Refusal> {
        let mut at = self.go_on(input, 0, up);
        loop {
            let rest = &input[at..];
            let header = match Header::read(rest) {
                None => return Ok(Taken { consumed: at, then: Then::More }),
                Some(Err(_)) => return Err(Refusal::protocol("invalid message length")),
                Some(Ok(header)) => header,
            };
            if is_too_long(header) {
                return Err(Refusal::protocol("invalid message length"));
            }
            match (header.tag, &mut backend) {
                (b'X', _) => return Ok(Taken { consumed: at, then: Then::Terminate }),
                (tag, None) if is_frontend(tag) => {
                    if let Some(then) = self.without_connection(header, rest.len(), down)? {
                        return Ok(Taken { consumed: at, then });
                    }
                }
                (tag, Some(backend)) if is_frontend(tag) => {
                    let message = Incoming { header, input: rest, at };
                    let asked = self.position.requests().next_number();
                    let step = self.message(message, &mut Wires { backend, up, down })?;
                    // Else nobody would end the series that was begun for it; but where it is waited for, all of it is asked for.
                    debug_assert!(
                        !matches!(step, Step::Need(_) | Step::Defer)
                            || asked == self.position.requests().next_number()
                            || self.position.is_ahead(),
                        "something was asked for a message that is not dealt with yet"
                    );
                    match step {
                        Step::Done => {
                            debug_assert!(rest.len() >= header.total, "only a whole message is done");
                            at += header.total;
                        }
                        Step::Streams(how) => self.position.expect_of_client(header.total, how),
                        Step::Partly(here, how) => {
                            at += here;
                            self.position.expect_of_client(header.total - here, how);
                        }
                        Step::Need(length) => return Ok(Taken { consumed: at, then: Then::Need(length) }),
                        Step::Defer => {
                            self.position.defer();
                            return Ok(Taken { consumed: at, then: Then::Defer });
                        }
                    }
                }
                (tag, _) => return Err(Refusal::protocol(format!("invalid frontend message type {tag}"))),
            }
            at += self.go_on(input, at, up);
            if self.statements.has_lent()
                && self.position.requests().are_ended()
                && !self.position.is_in_clients_message()
            {
                self.return_names(up.buffer());
            }
            if self.position.wants_answers() {
                self.flush_requests(up, down)?;
            }
            let is_much = up.bytes().len() > at + MAX_ADDED || self.position.requests().bytes() > MAX_NOTED;
            if is_much && !self.position.is_in_clients_message() {
                self.wait_for_answers(up, down)?;
            }
        }
    }

    /// A message of which so much is there, and no connection for it: either it needs one, or its bytes are dropped.
    fn without_connection(
        &mut self,
        header: Header,
        there: usize,
        down: &mut Vec<u8>,
    ) -> Result<Option<Then>, Refusal> {
        match header.tag {
            b'S' if header.total != HEADER => return Err(Refusal::protocol("invalid message format")),
            b'S' => {
                self.position.end_series();
                wire::ready_for_query(down, b'I');
            }
            // A COPY that failed was still being sent: PostgreSQL ignores the rest of it, and so do we.
            b'd' | b'c' | b'f' | b'H' => {}
            _ if self.position.is_refusing() => {}
            // Who sends a message bit by bit is lent a connection when it is whole.
            _ if there < header.total && header.total <= GATHER => return Ok(Some(Then::Need(header.total))),
            _ => return Ok(Some(Then::Lease)),
        }
        self.position.expect_of_client(header.total, Remainder::Drop);
        Ok(None)
    }

    /// A pipeline without end: what it has earned is asked for, so that it costs bounded memory.
    fn flush_requests(&mut self, up: &mut OutputBuffer<'_>, down: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.position.take_scan_limit_reached() {
            self.wait_for_answers(up, down)?;
        } else if self.position.requests().only_local() {
            self.send_local_answers_between_messages(down);
        } else if !self.position.is_in_clients_message() {
            wire::message(up.buffer(), b'H', |_| {});
        }
        self.position.asked_for_answers();
        Ok(())
    }

    /// A few of the client's bytes have become many, or many are remembered: what is under way must be answered first, or
    /// one piece of a pipeline could take all memory.
    #[cold]
    fn wait_for_answers(&mut self, up: &mut OutputBuffer<'_>, down: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.position.requests().only_local() {
            self.send_local_answers_between_messages(down);
            return Ok(());
        }
        if !self.position.may_defer() {
            let message = "too many statements during a COPY";
            return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message));
        }
        self.ask_for_all_answers(up.buffer());
        Ok(())
    }

    /// What is under way must be answered before more is sent.
    pub(super) fn ask_for_all_answers(&mut self, up: &mut Vec<u8>) {
        wire::message(up, b'H', |_| {});
        self.position.wait_for_all();
    }

    fn send_local_answers_between_messages(&mut self, down: &mut Vec<u8>) {
        if self.between_messages() {
            self.send_local_answers(down);
        }
    }

    /// There is no connection for the request at the front of `input`, which waits for one: it gets this error.
    /// Of an extended query, the rest up to its `Sync` is ignored, as PostgreSQL does after an error.
    pub(crate) fn refuse(&mut self, input: &[u8], refusal: &Refusal, down: &mut Vec<u8>) {
        wire::error_response(down, wire::Severity::Error, refusal);
        let Some(Ok(header)) = Header::read(input) else { return };
        self.position.expect_of_client(header.total, Remainder::Drop);
        if matches!(header.tag, b'Q' | b'F') {
            wire::ready_for_query(down, b'I');
        } else {
            self.position.refuse_series();
        }
    }

    /// Goes on with a message that was begun, if one was; answers how much of the input it takes.
    #[inline]
    fn go_on(&mut self, input: &[u8], at: usize, up: &mut OutputBuffer<'_>) -> usize {
        if self.position.is_in_clients_message() { self.go_on_within(input, at, up) } else { 0 }
    }

    fn go_on_within(&mut self, input: &[u8], at: usize, up: &mut OutputBuffer<'_>) -> usize {
        let (here, rest) = self.position.client_remainder(input.len() - at);
        if here == 0 {
            return 0;
        }
        match rest {
            Remainder::Drop => {}
            Remainder::Pass => up.pass(at..at + here),
            Remainder::Scan(scan) => {
                let piece = &input[at..at + here];
                scan.0.feed(piece);
                let catalog = self.facts.catalog();
                let mentioned = !catalog.is_plain() && catalog.is_mentioned_in(piece, &mut scan.1);
                up.pass(at..at + here);
                if mentioned {
                    self.note_effects(&Effects { asks_all: true, foreseen: true, ..Effects::default() });
                }
            }
        }
        if let Some(Remainder::Scan(scan)) = self.position.passed_of_client(here) {
            self.note_effects(&Effects { defines: scan.0.clone().defines(), ..Effects::default() });
            if scan.0.is_suspicious() {
                self.pin_for(Pin::Opaque);
            }
        }
        here
    }

    fn message(&mut self, message: Incoming<'_>, wires: &mut Wires<'_, '_>) -> Result<Step, Refusal> {
        let Incoming { header, at, .. } = message;
        if self.position.is_skipping() && header.tag != b'S' {
            return Ok(Step::Streams(Remainder::Pass));
        }
        if self.must_wait(header.tag) && self.position.may_defer() {
            return Ok(Step::Defer);
        }
        match header.tag {
            b'd' => {
                self.note_copy_message();
                return Ok(Step::Streams(Remainder::Pass));
            }
            b'Q' => {
                let step = self.query(message, wires)?;
                if !matches!(step, Step::Need(_) | Step::Defer) {
                    wires.backend.has_run = true;
                    self.statements.executes(self.position.requests().last_number());
                }
                return Ok(step);
            }
            b'S' => self.sync(),
            // The server would answer an error, which answers nothing, and ignore what comes up to a `Sync`.
            b'H' if header.total != HEADER => return Err(Refusal::protocol("invalid message format")),
            b'H' => {
                if self.position.requests().only_local() {
                    self.send_local_answers_between_messages(wires.down);
                }
            }
            b'c' | b'f' => {
                self.note_copy_message();
                // Perhaps of a COPY whose beginning we have still to see.
                if !self.position.client_ends_copy() && !self.position.requests().is_empty() {
                    self.position.requests_mut().push(Kind::CopyEnd);
                }
            }
            b'F' => {
                let Some(function) = function(&message) else { return Ok(Step::Need(HEADER + 4)) };
                if !LARGE_OBJECTS.contains(&function) {
                    self.residue.mark_dirty();
                    self.pin_for(Pin::Opaque);
                }
                wires.backend.has_run = true;
                self.position.requests_mut().push(Kind::FunctionCall);
            }
            b'E' => {
                if let Some(step) = self.execute_armed(&message, wires.up.buffer()) {
                    return Ok(step);
                }
                self.position.begin_series();
                wires.backend.has_run = true;
                self.position.requests_mut().push(Kind::Execute);
                self.statements.executes(self.position.requests().last_number());
            }
            _ => {
                let first = self.begins_batch().then(|| self.position.requests().next_number());
                let step = self.naming(message, wires)?;
                if !matches!(step, Step::Need(_) | Step::Defer) {
                    self.position.counts_mut().client_parses += u32::from(header.tag == b'P');
                    self.position.counts_mut().binds += u32::from(header.tag == b'B');
                    self.position.begin_series();
                    if let Some(number) = first {
                        self.begin_batch(number, at, wires.backend);
                    }
                }
                return Ok(step);
            }
        }
        Ok(Step::Streams(Remainder::Pass))
    }

    /// Whether what becomes of this message depends on something that is not answered yet.
    fn must_wait(&self, tag: u8) -> bool {
        self.awaits_channels()
            || self.must_know_how_to_read(tag)
            || self.must_have_its_values_first(tag)
            || self.position.is_ahead()
    }

    /// Data of a COPY, or its end. A server that is not in a COPY ignores them, unless `statement_timeout` fires just then: its
    /// error answers this message, and not the one that is next in the queue.
    fn note_copy_message(&mut self) {
        if self.facts.is_lent_for_transactions() && !self.position.is_copying() {
            self.residue.doubt_count();
        }
    }

    fn sync(&mut self) {
        self.disarm();
        if !self.position.note_sync_in_copy() {
            self.position.end_series();
            self.position.requests_mut().push(Kind::Sync);
        }
    }
}

/// The number of the function that a `FunctionCall` calls, or 0 if it has none; `None` if that is not there yet.
fn function(message: &Incoming<'_>) -> Option<u32> {
    match message.input.get(HEADER..).and_then(|body| body.first_chunk()) {
        Some(oid) if message.header.total >= HEADER + 4 => Some(u32::from_be_bytes(*oid)),
        None if message.header.total > HEADER + 4 => None,
        _ => Some(0),
    }
}

/// The kinds that ask the upstream for something by themselves.
pub(super) fn needs_connection(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F')
}

fn is_frontend(tag: u8) -> bool {
    needs_connection(tag) || matches!(tag, b'S' | b'H' | b'd' | b'c' | b'f')
}

/// Longer than PostgreSQL takes a message of this kind.
fn is_too_long(header: Header) -> bool {
    let is_small = matches!(header.tag, b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f');
    is_small && header.total > MAX_SMALL_LENGTH as usize + 1
}
