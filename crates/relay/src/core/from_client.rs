//! From the client to the upstream.

use std::sync::Arc;

use super::names::{NamesIn, names};
use super::requests::{Kind, NOTHING, Note};
use super::{
    BackendState, Copy, Core, GATHER, MAX_ADDED, MAX_NAMED_PARSE, MAX_NOTED, MAX_UNASKED, MAX_UNNAMED,
    MAX_WORK, Rest, Seen, Sink, Taken, Then,
};
use crate::PoolMode;
use crate::sql::{Effects, Pin};
use crate::statement::{Held, MAX_MENTIONING, Named, Unnamed, UnnamedText, significant};
use wire::error::{Fault, Refusal, Shown, SqlState};
use wire::{HEADER, Header, MAX_SMALL_LENGTH, cstr, identifier, literal};

/// The number of a statement of pgusher's own that does nothing.
const EMPTY: u64 = u64::MAX;
/// And of one that is there to be deallocated.
const SCAPEGOAT: u64 = u64::MAX - 1;
/// The functions of large objects (`lo_open` and its like, see `pg_proc.dat`), which clients call by their numbers. What
/// they leave ends with the transaction.
const LARGE_OBJECTS: [u32; 15] =
    [715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171];
const FORGET_SEQUENCES: &str = "DISCARD SEQUENCES";

/// How one message ended.
enum Step {
    /// It was dealt with whole.
    Done,
    /// All of it, as it comes, is to be treated like this.
    Streams(Rest),
    /// So many bytes of it were dealt with; what comes behind them is to be treated like this.
    Partly(usize, Rest),
    /// So much of it must be there.
    Need(usize),
    /// It can be dealt with when more answers have come.
    Hold,
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
        up: &mut Sink<'_>,
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
        let is_whole = |header: Header| {
            input.len() >= header.total
                && !(is_small(header.tag) && header.total > MAX_SMALL_LENGTH as usize + 1)
        };
        let needs_one = |header: Header| {
            matches!(header.tag, b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F') && is_whole(header)
        };
        self.client_rest.0 == 0
            && !self.refusing
            && matches!(Header::read(input), Some(Ok(header)) if needs_one(header))
    }

    fn take_in(
        &mut self,
        input: &[u8],
        mut backend: Option<&mut BackendState>,
        up: &mut Sink<'_>,
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
            if is_small(header.tag) && header.total > MAX_SMALL_LENGTH as usize + 1 {
                return Err(Refusal::protocol("invalid message length"));
            }
            match (header.tag, &mut backend) {
                (b'X', _) => return Ok(Taken { consumed: at, then: Then::Terminate }),
                // A COPY that failed was still being sent: PostgreSQL ignores the rest of it, and so do we.
                (b'd' | b'c' | b'f' | b'H', None) => self.client_rest = (header.total, Rest::Drop),
                (b'S', None) => {
                    if header.total != HEADER {
                        return Err(Refusal::protocol("invalid message format"));
                    }
                    self.refusing = false;
                    wire::ready_for_query(down, b'I');
                    self.client_rest = (header.total, Rest::Drop);
                }
                (b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F', None) if self.refusing => {
                    self.client_rest = (header.total, Rest::Drop);
                }
                // Who sends a message bit by bit is lent a connection when it is whole.
                (b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F', None)
                    if rest.len() < header.total && header.total <= GATHER =>
                {
                    return Ok(Taken { consumed: at, then: Then::Need(header.total) });
                }
                (b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F', None) => {
                    return Ok(Taken { consumed: at, then: Then::Lease });
                }
                (tag, Some(backend)) if is_frontend(tag) => {
                    match self.message(header, rest, at, backend, up, down)? {
                        Step::Done => {
                            debug_assert!(rest.len() >= header.total, "only a whole message is done");
                            at += header.total;
                        }
                        Step::Streams(how) => self.client_rest = (header.total, how),
                        Step::Partly(here, how) => {
                            at += here;
                            self.client_rest = (header.total - here, how);
                        }
                        Step::Need(length) => return Ok(Taken { consumed: at, then: Then::Need(length) }),
                        Step::Hold => {
                            self.held_until = self.requests.last_end();
                            return Ok(Taken { consumed: at, then: Then::Hold });
                        }
                    }
                }
                (tag, _) => return Err(Refusal::protocol(format!("invalid frontend message type {tag}"))),
            }
            at += self.go_on(input, at, up);
            if self.requests.len() >= self.flush_at {
                self.flush_requests(up, down)?;
            }
            let is_much = up.bytes().len() > at + MAX_ADDED || self.requests.bytes() > MAX_NOTED;
            if is_much && self.client_rest.0 == 0 {
                self.wait_for_answers(up, down)?;
            }
        }
    }

    /// A pipeline without end: what it has earned is asked for, so that it costs bounded memory.
    fn flush_requests(&mut self, up: &mut Sink<'_>, down: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.work > MAX_WORK && self.client_rest.0 == 0 {
            self.work = 0;
            self.wait_for_answers(up, down)?;
        } else if self.requests.only_fakes() {
            if self.between_messages() {
                self.send_fakes(down);
            }
        } else if self.client_rest.0 == 0 {
            wire::message(up.buffer(), b'H', |_| {});
        }
        self.flush_at = self.requests.len() + MAX_UNASKED;
        Ok(())
    }

    /// Counts bytes of a text that was gone through and is longer than the message at hand, such as a statement that is bound.
    /// Beyond a limit the next answer is waited for, so that the other sessions of this thread have their turns.
    fn worked(&mut self, bytes: usize) {
        self.work += bytes;
        if self.work > MAX_WORK {
            self.flush_at = 0;
        }
    }

    /// A few of the client's bytes have become many, or many are remembered: what is under way must be answered first, or
    /// one piece of a pipeline could take all memory.
    #[cold]
    fn wait_for_answers(&mut self, up: &mut Sink<'_>, down: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.requests.only_fakes() {
            if self.between_messages() {
                self.send_fakes(down);
            }
            return Ok(());
        }
        if !self.may_hold() {
            let message = "too many statements during a COPY";
            return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message));
        }
        wire::message(up.buffer(), b'H', |_| {});
        self.ahead = self.requests.next_number() - 1;
        Ok(())
    }

    /// True while what must be answered first is not.
    fn is_ahead(&self) -> bool {
        self.requests.front().is_some_and(|front| front.number <= self.ahead)
    }

    /// There is no connection for the request at the front of `input`, which waits for one: it gets this error.
    /// Of an extended query, the rest up to its `Sync` is ignored, as PostgreSQL does after an error.
    pub(crate) fn refuse(&mut self, input: &[u8], refusal: &Refusal, down: &mut Vec<u8>) {
        wire::error_response(down, wire::Severity::Error, refusal);
        let Some(Ok(header)) = Header::read(input) else { return };
        self.client_rest = (header.total, Rest::Drop);
        if matches!(header.tag, b'Q' | b'F') {
            wire::ready_for_query(down, b'I');
        } else {
            self.refusing = true;
        }
    }

    /// Goes on with a message that was begun; answers how much of the input it takes.
    fn go_on(&mut self, input: &[u8], at: usize, up: &mut Sink<'_>) -> usize {
        let here = self.client_rest.0.min(input.len() - at);
        if here == 0 {
            return 0;
        }
        match &mut self.client_rest.1 {
            Rest::Drop => {}
            Rest::Pass => up.pass(at..at + here),
            Rest::Scan(scan) => {
                let piece = &input[at..at + here];
                scan.0.feed(piece);
                let mentioned = !self.catalog.is_plain() && self.catalog.is_mentioned_in(piece, &mut scan.1);
                up.pass(at..at + here);
                if mentioned {
                    self.foresee(&Effects { asks_all: true, foreseen: true, ..Effects::default() });
                }
            }
        }
        self.client_rest.0 -= here;
        if self.client_rest.0 == 0
            && let Rest::Scan(scan) = std::mem::replace(&mut self.client_rest.1, Rest::Pass)
        {
            self.foresee(&Effects { defines: scan.0.clone().defines(), ..Effects::default() });
            if scan.0.is_suspicious() {
                self.pin_for(Pin::Opaque);
            }
        }
        here
    }

    fn message(
        &mut self,
        header: Header,
        input: &[u8],
        at: usize,
        backend: &mut BackendState,
        up: &mut Sink<'_>,
        down: &mut Vec<u8>,
    ) -> Result<Step, Refusal> {
        if self.skipping && header.tag != b'S' {
            return Ok(Step::Streams(Rest::Pass));
        }
        let waits = self.must_settle_first() || self.must_know_how_to_read(header.tag) || self.is_ahead();
        if waits && self.may_hold() {
            return Ok(Step::Hold);
        }
        match header.tag {
            b'd' => {
                self.copies();
                return Ok(Step::Streams(Rest::Pass));
            }
            b'Q' => return self.query(header, input, at, backend, up),
            b'S' => self.sync(),
            // The server would answer an error, which answers nothing, and ignore what comes up to a `Sync`.
            b'H' if header.total != HEADER => return Err(Refusal::protocol("invalid message format")),
            b'H' => {
                if self.requests.only_fakes() && self.between_messages() {
                    self.send_fakes(down);
                }
            }
            b'c' | b'f' => {
                self.copies();
                match self.copy {
                    Copy::In { stray } => self.copy = Copy::Ending { stray },
                    // Perhaps of a COPY whose beginning we have still to see.
                    _ if !self.requests.is_empty() => self.requests.push(Kind::CopyEnd),
                    _ => {}
                }
            }
            b'F' => {
                if header.total > HEADER + 4 && input.len() < HEADER + 4 {
                    return Ok(Step::Need(HEADER + 4));
                }
                let function = input.get(HEADER..).and_then(|body| body.first_chunk());
                if !function.is_some_and(|oid| LARGE_OBJECTS.contains(&u32::from_be_bytes(*oid))) {
                    self.stained = true;
                    self.pin_for(Pin::Opaque);
                }
                self.requests.push(Kind::FunctionCall);
            }
            b'E' => {
                self.unsynced = true;
                self.requests.push(Kind::Execute);
            }
            _ => {
                let first = self.begins_batch().then(|| self.requests.next_number());
                let step = self.naming(header, input, at, backend, up)?;
                if !matches!(step, Step::Need(_) | Step::Hold) {
                    self.counts.client_parses += u32::from(header.tag == b'P');
                    self.counts.binds += u32::from(header.tag == b'B');
                    self.unsynced = true;
                    if let Some(number) = first {
                        self.begin_batch(number, at, backend);
                    }
                }
                return Ok(step);
            }
        }
        Ok(Step::Streams(Rest::Pass))
    }

    /// Data of a COPY, or its end. A server that is not in a COPY ignores them, unless `statement_timeout` fires just then: its
    /// error answers this message, and not the one that is next in the queue.
    fn copies(&mut self) {
        if self.mode == PoolMode::Transaction && !matches!(self.copy, Copy::In { .. }) {
            self.doubt_count();
        }
    }

    fn sync(&mut self) {
        if let Copy::In { stray } = &mut self.copy {
            *stray = true;
            return;
        }
        self.unsynced = false;
        self.skipping = false;
        self.requests.push(Kind::Sync);
    }

    fn query(
        &mut self,
        header: Header,
        input: &[u8],
        at: usize,
        backend: &mut BackendState,
        up: &mut Sink<'_>,
    ) -> Result<Step, Refusal> {
        let transaction = self.mode == PoolMode::Transaction;
        if input.len() < header.total && header.total <= GATHER {
            return Ok(Step::Need(header.total));
        }
        let text = input.get(HEADER..header.total);
        let effects = text.and_then(|text| self.effects(text));
        let deallocates = effects.as_ref().and_then(|effects| effects.deallocates.as_deref());
        if deallocates.is_some_and(|name| self.is_in_doubt(name)) && self.may_hold() {
            return Ok(Step::Hold);
        }
        backend.unnamed = None;
        if text.is_none() {
            // Too long to be looked at.
            self.stained |= !transaction;
            self.push_changing_unnamed(Kind::Query, UnnamedText::None);
            up.pass(at..at + HEADER);
            let rest = if transaction { Rest::Scan(Box::default()) } else { Rest::Pass };
            return Ok(Step::Partly(HEADER, rest));
        }
        let answered_otherwise = effects.is_some_and(|effects| self.suspicious_query(*effects, backend, up));
        if !answered_otherwise {
            self.push_changing_unnamed(Kind::Query, UnnamedText::None);
            up.pass(at..at + header.total);
        }
        Ok(Step::Done)
    }

    /// A query that may do this. True if another was sent in its place.
    fn suspicious_query(&mut self, effects: Effects, backend: &mut BackendState, up: &mut Sink<'_>) -> bool {
        if let Some(refusal) = self.refused_setting(&effects) {
            self.refuse_query(&refusal, up.buffer());
            return true;
        }
        if let Some(sql) = effects.shows.as_deref().and_then(|name| self.shown(name)) {
            wire::query(up.buffer(), &sql);
            self.push_changing_unnamed(Kind::Query, UnnamedText::None);
            return true;
        }
        if self.mode != PoolMode::Transaction {
            self.stain(&effects);
            return false;
        }
        self.foresee(&effects);
        self.recall_channels(&effects, true, backend, up.buffer());
        if effects.reads_sequences && std::mem::take(&mut backend.foreign_sequences) {
            wire::query(up.buffer(), FORGET_SEQUENCES);
            self.requests.push_hidden(Kind::Query, None);
        }
        let Some(name) = effects.deallocates else { return false };
        if self.interner.is_reserved(&name) {
            // Others may use it: it is none of the client's.
            wire::query(up.buffer(), &format!("DEALLOCATE {}", identifier(&self.interner.name(0))));
            self.push_changing_unnamed(Kind::Query, UnnamedText::None);
            return true;
        }
        let Some(named) = self.named(&name).cloned() else { return false };
        self.deallocate(&name, &named, backend, up);
        true
    }

    /// A request that changes what the unnamed statement is. Should it be skipped, because one before it since the last
    /// `Sync` fails, that is what it was.
    fn push_changing_unnamed(&mut self, kind: Kind, text: UnnamedText) {
        let stamp = self.requests.next_number();
        let previous = std::mem::replace(&mut self.unnamed, Unnamed { stamp, text });
        if self.unsynced {
            self.requests.push_noted(kind, Note::Unnamed(previous));
        } else {
            self.requests.push(kind);
        }
    }

    /// `DEALLOCATE name` for a statement that was prepared by the protocol: the upstream knows it by another name.
    fn deallocate(&mut self, name: &[u8], named: &Named, backend: &mut BackendState, up: &mut Sink<'_>) {
        let id = named.statement.id();
        if !backend.prepared.touch(id) {
            self.prepare(named, backend, up.buffer());
            wire::message(up.buffer(), b'S', |_| {});
            self.requests.push_hidden(Kind::Sync, None);
        }
        backend.prepared.remove(id);
        wire::query(up.buffer(), &format!("DEALLOCATE {}", identifier(&self.interner.name(id))));
        self.unnamed = Unnamed::default();
        let previous = self.put_name(name, None);
        self.requests.push_noted(
            Kind::Query,
            Note::Named { name: significant(name).into(), previous, prepared: None, closed: Some(id) },
        );
    }

    /// The query that `SHOW pgusher.name` becomes.
    fn shown(&self, name: &str) -> Option<String> {
        let value = match name {
            "environment" => &*self.facts.environment,
            "connection" => &self.facts.connection,
            "user" => self.facts.user.as_str(),
            "route" => &self.facts.route,
            "pin" => self.pin().map_or("", Pin::word),
            _ => return None,
        };
        Some(format!("SELECT {}::pg_catalog.text AS \"pgusher.{name}\"", literal(value.as_bytes())))
    }

    /// `Parse`, `Bind`, `Describe`, `Close`: the messages that name statements.
    fn naming(
        &mut self,
        header: Header,
        input: &[u8],
        at: usize,
        backend: &mut BackendState,
        up: &mut Sink<'_>,
    ) -> Result<Step, Refusal> {
        let kind = match header.tag {
            b'P' => Kind::Parse,
            b'B' => Kind::Bind,
            b'D' => Kind::Describe,
            _ => Kind::Close,
        };
        if self.mode != PoolMode::Transaction && kind != Kind::Parse {
            self.requests.push(kind);
            return Ok(Step::Streams(Rest::Pass));
        }
        let whole = input.len() >= header.total;
        if !whole && header.total <= GATHER {
            return Ok(Step::Need(header.total));
        }
        let body = &input[HEADER..header.total.min(input.len())];
        let Some(names) = names(kind, body) else {
            if whole {
                // Broken: the upstream says how.
                self.requests.push(kind);
                up.pass(at..at + header.total);
                return Ok(Step::Done);
            }
            return if input.len() > 4 * GATHER {
                Err(Refusal::new(
                    Fault::Client,
                    SqlState::LIMIT_EXCEEDED,
                    "a statement or portal name is too long",
                ))
            } else {
                Ok(Step::Need(header.total.min(input.len() + GATHER)))
            };
        };
        let in_doubt = |name: &[u8]| match name {
            b"" => kind != Kind::Parse && self.requests.is_unnamed_in_doubt(self.unnamed.stamp),
            name => self.is_in_doubt(name),
        };
        if names.statement.is_some_and(in_doubt) && self.may_hold() {
            return Ok(Step::Hold);
        }
        match (kind, names.statement) {
            (Kind::Parse, _) => self.parse(header, input, at, &names, backend, up),
            (_, None) => {
                self.requests.push(kind);
                Ok(Step::Streams(Rest::Pass))
            }
            (Kind::Close, Some(name)) => {
                self.close(name, at..at + header.total, backend, up);
                Ok(Step::Done)
            }
            (_, Some(name)) => Ok(self.reference(kind, header, name, &names, body, backend, up)),
        }
    }

    /// Whether it depends on an answer to come what a name stands for, or if the upstream has the statement.
    fn is_in_doubt(&self, name: &[u8]) -> bool {
        let unprepared = |named: &Named| self.requests.is_preparation_in_doubt(named.statement.id());
        let is_any = self.requests.has_notes_in_doubt();
        is_any && (self.requests.is_in_doubt(name) || self.named(name).is_some_and(unprepared))
    }

    /// During a COPY the upstream waits for the client, and whatever else that sends is an error.
    fn may_hold(&self) -> bool {
        !matches!(self.copy, Copy::In { .. })
    }

    fn parse(
        &mut self,
        header: Header,
        input: &[u8],
        at: usize,
        names: &NamesIn<'_>,
        backend: &mut BackendState,
        up: &mut Sink<'_>,
    ) -> Result<Step, Refusal> {
        let name = names.statement.unwrap_or_default();
        let whole = input.len() >= header.total;
        if name.is_empty() || self.mode != PoolMode::Transaction {
            return Ok(self.parse_unnamed(header, input, at, names.after, backend, up));
        }
        if header.total > MAX_NAMED_PARSE {
            let message = format!("a prepared statement is longer than {MAX_NAMED_PARSE} bytes");
            let refusal = Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message);
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Streams(Rest::Drop));
        }
        if !whole {
            return Ok(Step::Need(header.total));
        }
        if let Some(named) = self.named(name).cloned() {
            if !self.distrust {
                // Any name that is taken there will do: what the client is told of it is its own.
                let id = named.statement.id();
                let taken = if backend.prepared.touch(id) { Some(id) } else { backend.prepared.any() };
                if taken.is_some_and(|id| self.requests.is_preparation_in_doubt(id)) && self.may_hold() {
                    return Ok(Step::Hold);
                }
                self.parse_again(&named, taken, names.after, backend, up.buffer());
                return Ok(Step::Done);
            }
            let shown = Shown::bytes(name);
            let message = format!("prepared statement \"{shown}\" already exists");
            let refusal = Refusal::new(Fault::Client, SqlState::DUPLICATE_STATEMENT, message);
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Done);
        }
        let text = cstr(names.after).map_or(names.after, |(text, _)| text);
        let effects = self.effects(text);
        if let Some(refusal) = effects.as_deref().and_then(|effects| self.refused_setting(effects)) {
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Done);
        }
        let shown = effects.as_ref().and_then(|effects| self.shown_body(effects, names.after));
        if let Some(effects) = effects.filter(|effects| effects.channels || !self.can_lex()) {
            // It may be bound in the same batch, and then a transaction has begun.
            self.foresee_extended(&effects, backend, up.buffer());
        }
        // With those that have lost their names in requests that are not answered.
        let own = self.names.as_ref().map_or(0, |names| names.bytes()) + self.requests.bytes();
        if !self.interner.may_add(own, names.after.len()) {
            let message = "this session, or all of them together, have too many bytes of prepared statements";
            let refusal = Refusal::new(Fault::Client, SqlState::OUT_OF_MEMORY, message)
                .hint("Close statements that are not used any more (DEALLOCATE).");
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Done);
        }
        let body = shown.as_deref().unwrap_or(names.after);
        let statement = self.interner.intern(body, &self.facts.connection, &self.settings.meaning());
        if self.requests.is_preparation_in_doubt(statement.id()) && self.may_hold() {
            return Ok(Step::Hold);
        }
        let request = self.requests.next_number();
        let named = Named { statement, request };
        let id = named.statement.id();
        // In a failed transaction it would be refused; what is still to be answered may make it fail. Outside one, what
        // fails because its tables have changed must be asked again.
        let trusted = self.status != b'E' && !self.distrust && !self.requests.has_an_end();
        let trusted = trusted && (self.status == b'T' || self.begins_batch());
        let held = backend.prepared.hold(&named.statement);
        let note =
            |prepared| Note::Named { name: significant(name).into(), previous: None, prepared, closed: None };
        if held == Held::Yes && trusted {
            // It need not be parsed again, but its tables may be gone since: then that is to be said now.
            let upstream_name = named.statement.upstream_name();
            wire::message(up.buffer(), b'D', |out| {
                out.push(b'S');
                wire::push_cstr(out, upstream_name);
            });
            self.requests.push_known(note(None));
        } else {
            if held != Held::No {
                self.close_upstream(id, up.buffer());
            }
            self.send_parse(&named, up.buffer());
            self.requests.push_noted(Kind::Parse, note(Some(id)));
            self.remember_prepared(id, named.statement.edition(), backend, up.buffer());
        }
        self.put_name(name, Some(Named { request, ..named }));
        Ok(Step::Done)
    }

    /// A `Parse` under a name that the client has given already: the upstream refuses it, after it has looked at the
    /// text, because it comes under the name of a statement that is there, `taken`.
    fn parse_again(
        &mut self,
        old: &Named,
        taken: Option<u64>,
        body: &[u8],
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        if taken.is_none() {
            // An empty statement can always be prepared.
            wire::message(up, b'P', |out| {
                wire::push_cstr(out, &self.interner.name(EMPTY));
                out.extend([0; 3]);
            });
            self.requests.push_hidden(Kind::Parse, Some(Note::Prepared(EMPTY)));
            self.remember_prepared(EMPTY, 0, backend, up);
        }
        let taken = taken.unwrap_or(EMPTY);
        wire::message(up, b'P', |out| {
            wire::push_cstr(out, &self.interner.name(taken));
            out.extend_from_slice(body);
        });
        self.requests.push_using(Kind::ParseTaken, old.request);
    }

    /// If a `Parse` body is a `SHOW pgusher.…`, the body that answers it.
    fn shown_body(&self, effects: &Effects, body: &[u8]) -> Option<Vec<u8>> {
        let (_, types) = cstr(body)?;
        let sql = self.shown(effects.shows.as_deref()?)?;
        let mut body = Vec::new();
        wire::push_cstr(&mut body, &sql);
        body.extend_from_slice(types);
        Some(body)
    }

    fn parse_unnamed(
        &mut self,
        header: Header,
        input: &[u8],
        at: usize,
        after: &[u8],
        backend: &mut BackendState,
        up: &mut Sink<'_>,
    ) -> Step {
        let session_mode = self.mode != PoolMode::Transaction;
        let whole = input.len() >= header.total;
        if !whole && !session_mode && (header.total <= MAX_UNNAMED || self.interner.has_room(header.total)) {
            // However it was cut on its way: it must be known what it may do, and what it was.
            return Step::Need(header.total);
        }
        let text = cstr(after).map_or(after, |(text, _)| text);
        let mut effects = if whole { self.effects(text) } else { None };
        if let Some(refusal) = effects.as_deref().and_then(|effects| self.refused_setting(effects)) {
            self.refuse_request(&refusal, up.buffer());
            return Step::Done;
        }
        let mut replaced = None;
        if let (Some(effects), false) = (&mut effects, session_mode) {
            if effects.deallocates.as_deref().is_some_and(|name| self.is_in_doubt(name)) && self.may_hold() {
                return Step::Hold;
            }
            replaced = self.deallocate_extended(effects, after, up.buffer());
            self.foresee_extended(effects, backend, up.buffer());
        }
        if session_mode {
            effects.iter().for_each(|effects| self.stain(effects));
            self.stained |= !whole;
        }
        self.counts.server_parses += 1;
        let shown = replaced.or_else(|| effects.and_then(|effects| self.shown_body(&effects, after)));
        let body = shown.as_deref().unwrap_or(after);
        if session_mode {
            self.requests.push(Kind::Parse);
        } else {
            self.remember_unnamed(body, whole, backend);
        }
        if !whole {
            return Step::Streams(Rest::Pass);
        }
        match &shown {
            // A statement of our own making; in session mode under whatever name it was given.
            Some(body) => {
                let name = cstr(&input[HEADER..]).map_or(&b""[..], |(name, _)| name);
                wire::message(up.buffer(), b'P', |out| {
                    out.extend_from_slice(name);
                    out.push(0);
                    out.extend_from_slice(body);
                });
            }
            None => up.pass(at..at + header.total),
        }
        Step::Done
    }

    /// `DEALLOCATE name` in the extended protocol, of a statement that was prepared by the protocol: others may use what
    /// the upstream has. The client's name is taken away, and the `Parse` body that is sent in its place deallocates a
    /// statement that was prepared for that.
    fn deallocate_extended(
        &mut self,
        effects: &mut Effects,
        body: &[u8],
        up: &mut Vec<u8>,
    ) -> Option<Vec<u8>> {
        let name = effects.deallocates.as_deref()?;
        let (_, types) = cstr(body)?;
        let deallocate = |id| {
            let mut body = Vec::new();
            wire::push_cstr(&mut body, &format!("DEALLOCATE {}", identifier(&self.interner.name(id))));
            body.extend_from_slice(types);
            body
        };
        if self.interner.is_reserved(name) {
            let body = deallocate(0);
            effects.deallocates = None;
            return Some(body);
        }
        self.named(name)?;
        let body = deallocate(SCAPEGOAT);
        let scapegoat = self.interner.name(SCAPEGOAT);
        wire::message(up, b'C', |out| {
            out.push(b'S');
            wire::push_cstr(out, &scapegoat);
        });
        self.requests.push_hidden(Kind::Close, None);
        wire::message(up, b'P', |out| {
            wire::push_cstr(out, &scapegoat);
            out.extend([0; 3]);
        });
        let name = effects.deallocates.take()?;
        let previous = self.put_name(&name, None);
        let note = Note::Named { name: significant(&name).into(), previous, prepared: None, closed: None };
        self.requests.push_hidden(Kind::Parse, Some(note));
        Some(body)
    }

    /// A statement that may do this comes in the extended protocol.
    fn foresee_extended(&mut self, effects: &Effects, backend: &mut BackendState, up: &mut Vec<u8>) {
        // The upstream knows a statement of the protocol by another name than the client does.
        let scapegoat = self.interner.name(SCAPEGOAT);
        let of_protocol = |name: &[u8]| {
            self.named(name).is_some() || self.interner.is_reserved(name) && name != scapegoat.as_bytes()
        };
        if effects.deallocates.as_deref().is_some_and(of_protocol) {
            self.pin_for(Pin::Prepare);
        }
        self.worked(effects.cost());
        self.foresee(effects);
        self.recall_channels(effects, false, backend, up);
        self.shield_sequences(effects, backend, up);
    }

    /// Whether it is known what the unnamed statement may do: it may be long, and be bound often.
    fn has_seen_unnamed(&self) -> bool {
        let is_it = |seen: &Seen| {
            seen.stamp == self.unnamed.stamp
                && seen.lexable == self.can_lex()
                && Arc::ptr_eq(&seen.catalog, &self.catalog)
        };
        self.seen.as_deref().is_some_and(is_it)
    }

    /// The unnamed statement is bound: what it may do was foreseen when it was parsed, unless that was in another batch.
    fn foresee_unnamed(&mut self, backend: &mut BackendState, up: &mut Vec<u8>) {
        if !self.requests.is_of_earlier_batch(self.unnamed.stamp) {
            return;
        }
        if !self.has_seen_unnamed() {
            let Some(text) = self.unnamed.text.text() else { return };
            let text = cstr(text).map_or(text, |(text, _)| text);
            let effects = match text.len() > MAX_MENTIONING {
                true => Some(Box::new(Effects::opaque())),
                false => self.effects(text),
            };
            let (stamp, lexable, length) = (self.unnamed.stamp, self.can_lex(), text.len());
            self.worked(length);
            self.seen = Some(Box::new(Seen { stamp, lexable, catalog: self.catalog.clone(), effects }));
        }
        let seen = self.seen.take();
        if let Some(effects) = seen.as_ref().and_then(|seen| seen.effects.as_ref()) {
            self.foresee_extended(effects, backend, up);
        }
        self.seen = seen;
    }

    /// The statement to come asks for last values of sequences: the connection is to know none of another session's.
    /// In the extended protocol, because a `Query` would end the implicit transaction that may be open.
    fn shield_sequences(&mut self, effects: &Effects, backend: &mut BackendState, up: &mut Vec<u8>) {
        if !effects.reads_sequences || !std::mem::take(&mut backend.foreign_sequences) {
            return;
        }
        backend.unnamed = None;
        self.run_hidden(FORGET_SEQUENCES, up);
    }

    /// The request, and the statement that the session has by it. One that is too long is not remembered: then the
    /// connection is kept, as it is the only one that knows it.
    fn remember_unnamed(&mut self, body: &[u8], whole: bool, backend: &mut BackendState) {
        let text = if whole && body.len() <= MAX_UNNAMED {
            let old = match &mut self.unnamed.text {
                UnnamedText::Known(old) if !self.unsynced => std::mem::take(old),
                _ => Vec::new(),
            };
            let mut text = old;
            text.clear();
            text.extend_from_slice(body);
            UnnamedText::Known(text)
        } else if let Some(long) = whole.then(|| self.interner.keep_long(body)).flatten() {
            UnnamedText::Long(long)
        } else {
            self.pin_for(Pin::Opaque);
            UnnamedText::OnConnection
        };
        self.push_changing_unnamed(Kind::ParseUnnamed, text);
        backend.unnamed = Some((self.id, self.unnamed.stamp));
    }

    /// `Bind` or `Describe` of a statement: it is made sure that the upstream has it, and under which name.
    fn reference(
        &mut self,
        kind: Kind,
        header: Header,
        name: &[u8],
        names: &NamesIn<'_>,
        body: &[u8],
        backend: &mut BackendState,
        up: &mut Sink<'_>,
    ) -> Step {
        if name.is_empty() {
            if kind == Kind::Bind {
                self.foresee_unnamed(backend, up.buffer());
            }
            if !self.ensure_unnamed(backend, up) {
                return self.refuse_reference("unnamed prepared statement does not exist".into(), up);
            }
            self.requests.push(kind);
            return Step::Streams(Rest::Pass);
        }
        let Some(named) = self.named(name).cloned() else {
            if self.interner.is_reserved(name) {
                let shown = Shown::bytes(name);
                return self.refuse_reference(format!("prepared statement \"{shown}\" does not exist"), up);
            }
            // Perhaps of an SQL-level PREPARE; else the upstream says that there is none.
            self.requests.push(kind);
            return Step::Streams(Rest::Pass);
        };
        if kind == Kind::Bind {
            let (statement, mut gone_through) = (&named.statement, 0);
            let own = match self.can_lex() {
                true => statement.effects().map(|effects| Box::new(effects.clone())),
                false => statement.effects_unread(),
            };
            let effects = self.with_catalog(own, || statement.mentions(&self.catalog, &mut gone_through));
            self.worked(gone_through);
            if let Some(effects) = effects {
                self.foresee_extended(&effects, backend, up.buffer());
            }
        }
        let held = backend.prepared.hold(&named.statement);
        if kind == Kind::Describe && held != Held::Yes {
            // In a failed transaction nothing can be prepared. What is still to be answered may make it fail.
            if self.requests.has_an_end() && self.may_hold() {
                return Step::Hold;
            }
            if self.status == b'E' && named.statement.answers_nothing() {
                self.requests.push(Kind::Fake(NOTHING));
                return Step::Streams(Rest::Drop);
            }
        }
        match held {
            Held::Yes if !self.distrust => {}
            Held::No => self.prepare(&named, backend, up.buffer()),
            Held::Yes | Held::Outdated => {
                self.close_upstream(named.statement.id(), up.buffer());
                self.prepare(&named, backend, up.buffer());
            }
        }
        self.requests.push_using(kind, named.request);
        let (upstream_name, before) = (named.statement.upstream_name(), names.before);
        let after = &body[before.len() + name.len() + 1..];
        // The header is of the whole message, of which the end may not have come yet.
        let total = header.total - name.len() + upstream_name.len();
        let out = up.buffer();
        out.push(header.tag);
        out.extend_from_slice(&u32::try_from(total - 1).unwrap_or(4).to_be_bytes());
        out.extend_from_slice(before);
        wire::push_cstr(out, upstream_name);
        out.extend_from_slice(after);
        Step::Partly(HEADER + body.len(), Rest::Pass)
    }

    fn refuse_reference(&mut self, message: String, up: &mut Sink<'_>) -> Step {
        let refusal = Refusal::new(Fault::Client, SqlState::INVALID_STATEMENT_NAME, message);
        self.refuse_request(&refusal, up.buffer());
        Step::Streams(Rest::Drop)
    }

    /// Makes the upstream's unnamed statement this session's; false if the session has none.
    fn ensure_unnamed(&mut self, backend: &mut BackendState, up: &mut Sink<'_>) -> bool {
        let stamp = (self.id, self.unnamed.stamp);
        match self.unnamed.text.text() {
            _ if matches!(self.unnamed.text, UnnamedText::None) => return false,
            _ if backend.unnamed == Some(stamp) => {}
            None => return false,
            Some(text) => {
                wire::message(up.buffer(), b'P', |out| {
                    out.push(0);
                    out.extend_from_slice(text);
                });
                self.requests.push_hidden(Kind::ParseUnnamed, None);
                backend.unnamed = Some(stamp);
            }
        }
        true
    }

    /// `Close` of a statement. Upstream, others may use it: it is only the name that goes.
    fn close(
        &mut self,
        name: &[u8],
        range: std::ops::Range<usize>,
        backend: &mut BackendState,
        up: &mut Sink<'_>,
    ) {
        if name.is_empty() {
            backend.unnamed = None;
            self.push_changing_unnamed(Kind::Close, UnnamedText::None);
            return up.pass(range);
        } else if self.named(name).is_some() {
            let previous = self.put_name(name, None);
            self.requests.push_noted(
                Kind::Fake(b'3'),
                Note::Named { name: significant(name).into(), previous, prepared: None, closed: None },
            );
            return;
        } else if self.interner.is_reserved(name) {
            self.requests.push(Kind::Fake(b'3'));
            return;
        }
        self.requests.push(Kind::Close);
        up.pass(range);
    }

    /// Prepares a statement on the upstream, unseen.
    fn prepare(&mut self, named: &Named, backend: &mut BackendState, up: &mut Vec<u8>) {
        self.send_parse(named, up);
        let id = named.statement.id();
        self.requests.push_hidden(Kind::Parse, Some(Note::Prepared(id)));
        self.remember_prepared(id, named.statement.edition(), backend, up);
    }

    fn remember_prepared(&mut self, id: u64, edition: u64, backend: &mut BackendState, up: &mut Vec<u8>) {
        let request = self.requests.next_number() - 1;
        if let Some(oldest) = backend.prepared.insert(id, edition, request, backend.max_prepared) {
            self.close_upstream(oldest, up);
        }
    }

    fn send_parse(&mut self, named: &Named, up: &mut Vec<u8>) {
        self.counts.server_parses += 1;
        wire::message(up, b'P', |out| {
            wire::push_cstr(out, named.statement.upstream_name());
            out.extend_from_slice(named.statement.body());
        });
    }

    fn close_upstream(&mut self, id: u64, up: &mut Vec<u8>) {
        wire::message(up, b'C', |out| {
            out.push(b'S');
            wire::push_cstr(out, &self.interner.name(id));
        });
        self.requests.push_hidden(Kind::Close, Some(Note::Closed(id)));
    }
}

fn is_frontend(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F' | b'S' | b'H' | b'd' | b'c' | b'f')
}

/// The kinds that PostgreSQL takes only in small.
fn is_small(tag: u8) -> bool {
    matches!(tag, b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f')
}
