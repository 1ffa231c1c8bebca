//! `Parse`, and statements that are prepared for the client.

use super::from_client::{Incoming, Step, Wires};
use super::names::NamesIn;
use super::position::Remainder;
use super::prepare::EMPTY;
use super::requests::{Kind, Note};
use super::transfer::Protocol;
use super::{BackendState, Core, MAX_NAMED_PARSE, MAX_UNNAMED};
use crate::sql::{Effects, Pin};
use crate::statement::{Held, NamedStatement, UnnamedText, significant};
use wire::error::{Fault, Refusal, SqlState};
use wire::{HEADER, cstr};

impl Core {
    pub(super) fn parse(
        &mut self,
        message: Incoming<'_>,
        names: &NamesIn<'_>,
        wires: &mut Wires<'_, '_>,
    ) -> Result<Step, Refusal> {
        let name = names.statement.unwrap_or_default();
        if name.is_empty() || !self.facts.is_lent_for_transactions() {
            return Ok(self.parse_unnamed(message, names.after, wires));
        }
        let Wires { backend, up, .. } = wires;
        let header = message.header;
        if header.total > MAX_NAMED_PARSE {
            let message = format!("a prepared statement is longer than {MAX_NAMED_PARSE} bytes");
            let refusal = Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message);
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Streams(Remainder::Drop));
        }
        if !message.is_whole() {
            return Ok(Step::Need(header.total));
        }
        if let Some(named) = self.statements.named(name).cloned() {
            // Any name that is taken there will do: what the client is told of it is its own.
            let taken = match self.statements.is_trusted() {
                true => {
                    let held = named.held(&mut backend.prepared);
                    backend.prepared.any(held)
                }
                false => None,
            };
            if taken.is_some_and(|id| self.position.requests().is_preparation_in_doubt(id))
                && self.position.may_defer()
            {
                return Ok(Step::Defer);
            }
            self.parse_again(&named, taken, names.after, wires);
            return Ok(Step::Done);
        }
        let text = cstr(names.after).map_or(names.after, |(text, _)| text);
        let effects = self.facts.effects(text);
        if let Some(refusal) = effects.as_deref().and_then(|effects| self.refused(effects)) {
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Done);
        }
        let shown = effects.as_ref().and_then(|effects| self.shown_body(effects, names.after));
        // With those that have lost their names in requests that are not answered.
        let own = self.statements.bytes() + self.position.requests().bytes();
        if !self.statements.interner().may_add(own, names.after.len()) {
            let message = "this session, or all of them together, have too many bytes of prepared statements";
            let refusal = Refusal::new(Fault::Client, SqlState::OUT_OF_MEMORY, message)
                .hint("Close statements that are not used any more (DEALLOCATE).");
            self.refuse_request(&refusal, up.buffer());
            return Ok(Step::Done);
        }
        let body = shown.as_deref().unwrap_or(names.after);
        let statement = self.statements.interner().intern(body, self.facts.connection(), &self.facts.scope());
        if let Some(effects) = effects.filter(|effects| effects.channels || !self.facts.can_lex()) {
            // It may be bound in the same batch, and then a transaction has begun.
            self.note_extended_effects(&effects, backend, up.buffer());
        }
        if self.residue.has_sql_names() {
            self.try_name(name, body, up.buffer());
        }
        self.prepare_named(name, statement, backend, up.buffer());
        Ok(Step::Done)
    }

    /// Fails, as the client's `Parse` would, if SQL has prepared a statement under this name.
    fn try_name(&mut self, name: &[u8], body: &[u8], up: &mut Vec<u8>) {
        self.parse_as(significant(name), |out| out.extend_from_slice(body), up);
        self.close_as(significant(name), up);
    }

    /// A `Parse` under a name that the client has given already: the upstream refuses it, after it has looked at the
    /// text, because it comes under the name of a statement that is there, `taken`.
    fn parse_again(
        &mut self,
        old: &NamedStatement,
        taken: Option<u64>,
        body: &[u8],
        wires: &mut Wires<'_, '_>,
    ) {
        let up = wires.up.buffer();
        if taken.is_none() {
            if wires.backend.prepared.hold(EMPTY) != Held::No {
                self.close_upstream(EMPTY, up);
            }
            self.send_empty(EMPTY, up);
            self.position.requests_mut().push_hidden(Kind::Parse, Some(Note::Prepared(EMPTY)));
            self.remember_prepared(EMPTY, wires.backend, up);
        }
        let taken = taken.unwrap_or(EMPTY);
        wire::message(up, b'P', |out| {
            self.statements.interner().push_name(out, taken);
            out.extend_from_slice(body);
        });
        self.position.requests_mut().push_using(Kind::ParseDuplicate, old.request);
    }

    /// If a `Parse` body is a `SHOW pgusher.…`, or asks for the session's own number, the body that answers it.
    fn shown_body(&self, effects: &Effects, body: &[u8]) -> Option<Vec<u8>> {
        let (_, types) = cstr(body)?;
        let shown = effects.shows.as_deref().and_then(|name| self.facts.show(name, self.pin()));
        let sql = shown.or_else(|| self.own_pid(effects.pid.as_deref()))?;
        let mut body = Vec::new();
        wire::push_cstr(&mut body, &sql);
        body.extend_from_slice(types);
        Some(body)
    }

    fn parse_unnamed(&mut self, message: Incoming<'_>, after: &[u8], wires: &mut Wires<'_, '_>) -> Step {
        let Incoming { header, input, .. } = message;
        let Wires { backend, up, .. } = wires;
        let session_mode = !self.facts.is_lent_for_transactions();
        let whole = message.is_whole();
        if !whole
            && !session_mode
            && (header.total <= MAX_UNNAMED || self.statements.interner().has_room(header.total))
        {
            // However it was cut on its way: it must be known what it may do, and what it was.
            return Step::Need(header.total);
        }
        let text = cstr(after).map_or(after, |(text, _)| text);
        let effects = if whole { self.facts.effects(text) } else { None };
        if let Some(refusal) = effects.as_deref().and_then(|effects| self.refused(effects)) {
            self.refuse_request(&refusal, up.buffer());
            return Step::Done;
        }
        if let (Some(effects), false) = (&effects, session_mode) {
            if self.mixes_changes(effects) || self.waits_to_lend_names(effects, up) {
                return Step::Defer;
            }
            self.note_run(effects, None, backend, up.buffer());
        }
        if session_mode {
            if let Some(effects) = &effects {
                self.mark_dirty(effects);
                self.tell_ours(effects, Protocol::Extended, backend, up.buffer());
            }
            if !whole {
                self.residue.mark_dirty();
            }
        }
        self.position.counts_mut().server_parses += 1;
        let shown = effects.as_deref().and_then(|effects| self.shown_body(effects, after));
        let body = shown.as_deref().unwrap_or(after);
        if session_mode {
            self.position.requests_mut().push(Kind::Parse);
        } else {
            self.remember_unnamed(whole.then_some(body), backend);
            let pid_use = effects.and_then(|effects| effects.pid);
            self.statements.note_pid_use(pid_use.filter(|_| shown.is_none()));
        }
        if !whole {
            return Step::Streams(Remainder::Pass);
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
            None => up.pass(message.range()),
        }
        Step::Done
    }

    /// Why a text with this is refused, if it is.
    fn refused(&self, effects: &Effects) -> Option<Refusal> {
        let name = || self.refused_name(effects).filter(|_| self.facts.is_lent_for_transactions());
        self.facts.refused_setting(effects).or_else(name)
    }

    /// A statement that may do this comes in the extended protocol.
    pub(super) fn note_extended_effects(
        &mut self,
        effects: &Effects,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        self.position.add_scanned_bytes(effects.cost());
        self.note_effects(effects);
        self.recall_channels(effects, Protocol::Extended, backend, up);
        self.tell_ours(effects, Protocol::Extended, backend, up);
        self.shield_sequences(effects, Protocol::Extended, backend, up);
    }

    /// The request, and the statement that the session has by it. One that is too long, or not there whole (`None`), is not
    /// remembered: then the connection is kept, as it is the only one that knows it.
    fn remember_unnamed(&mut self, whole: Option<&[u8]>, backend: &mut BackendState) {
        let text = if let Some(body) = whole.filter(|body| body.len() <= MAX_UNNAMED) {
            // Within a batch, what it was may be what it is again.
            let mut text =
                if self.position.is_unsynced() { Vec::new() } else { self.statements.take_unnamed_memory() };
            text.clear();
            text.extend_from_slice(body);
            UnnamedText::Known(text)
        } else if let Some(long) = whole.and_then(|body| self.statements.interner().keep_long(body)) {
            UnnamedText::Long(long)
        } else {
            self.pin_for(Pin::Opaque);
            UnnamedText::OnConnection
        };
        self.push_changing_unnamed(Kind::ParseUnnamed, text);
        backend.unnamed = Some((self.facts.id(), self.statements.stamp()));
    }
}
