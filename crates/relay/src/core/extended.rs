//! The messages that name statements: whether the upstream has what they name, and under which name.

use super::bound::Bound;
use super::from_client::{Incoming, Step, Wires};
use super::names::{NamesIn, names};
use super::pids::Verdict;
use super::position::{Remainder, Transaction};
use super::requests::{Kind, NO_COLUMNS, Note};
use super::statements::Preparation;
use super::{BackendState, Core, GATHER, OutputBuffer};
use crate::sql::{Effects, PidUse};
use crate::statement::{Held, MAX_MENTIONING, NamedStatement, UnnamedText, significant};
use wire::error::{Fault, Refusal, Shown, SqlState};
use wire::{HEADER, cstr};

/// Where the connection has a statement.
enum StatementAt {
    Under(u64),
    /// And what becomes of the message that uses it.
    Nowhere(Step),
}

impl Core {
    /// `Parse`, `Bind`, `Describe`, `Close`: the messages that name statements.
    pub(super) fn naming(
        &mut self,
        message: Incoming<'_>,
        wires: &mut Wires<'_, '_>,
    ) -> Result<Step, Refusal> {
        let Incoming { header, input, .. } = message;
        let kind = match header.tag {
            b'P' => Kind::Parse,
            b'B' => Kind::Bind,
            b'D' => Kind::Describe,
            _ => Kind::Close,
        };
        if !self.facts.is_lent_for_transactions() && kind != Kind::Parse {
            self.position.requests_mut().push(kind);
            return Ok(Step::Streams(Remainder::Pass));
        }
        let whole = message.is_whole();
        if !whole && header.total <= GATHER {
            return Ok(Step::Need(header.total));
        }
        let Some(names) = names(kind, message.body()) else {
            if whole {
                // Broken: the upstream says how.
                self.position.requests_mut().push(kind);
                wires.up.pass(message.range());
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
            b"" => {
                kind != Kind::Parse && self.position.requests().is_unnamed_in_doubt(self.statements.stamp())
            }
            name => self.is_in_doubt(name),
        };
        if names.statement.is_some_and(in_doubt) && self.position.may_defer() {
            return Ok(Step::Defer);
        }
        if self.statements.may_lose_names()
            && names.statement.is_some_and(|name| self.waits_for_names(name, wires.up))
        {
            return Ok(Step::Defer);
        }
        match (kind, names.statement) {
            (Kind::Parse, _) => self.parse(message, &names, wires),
            (_, None) => {
                self.position.requests_mut().push(kind);
                Ok(Step::Streams(Remainder::Pass))
            }
            (Kind::Close, Some(name)) => {
                self.close(name, message, wires);
                Ok(Step::Done)
            }
            (_, Some(_)) => Ok(self.reference(kind, message, &names, wires)),
        }
    }

    /// Whether it depends on an answer to come what a name stands for, or if the upstream has the statement.
    pub(super) fn is_in_doubt(&self, name: &[u8]) -> bool {
        self.position.requests().has_notes_in_doubt() && self.position.requests().is_in_doubt(name)
            || self
                .losing_request(name)
                .is_some_and(|lost| self.position.requests().is_of_earlier_batch(lost))
    }

    /// The request under way that may take this name away, if there is one.
    fn losing_request(&self, name: &[u8]) -> Option<u64> {
        let lost = self.statements.lost_by().max(self.statements.deallocated_by(name));
        lost.filter(|lost| self.position.requests().is_unanswered(*lost))
    }

    /// True if what this name stands for depends on a request of the same batch that may take it away: then its answer is
    /// asked for, and waited for.
    #[cold]
    pub(super) fn waits_for_names(&mut self, name: &[u8], up: &mut OutputBuffer<'_>) -> bool {
        let waits = !name.is_empty()
            && self.facts.is_lent_for_transactions()
            && self.losing_request(name).is_some()
            && self.position.may_defer();
        if waits {
            self.ask_for_all_answers(up.buffer());
        }
        waits
    }

    /// The unnamed statement is bound: what it may do was noted when it was parsed, unless that was in another batch.
    fn note_unnamed_effects(&mut self, backend: &mut BackendState, up: &mut Vec<u8>) {
        if !self.position.requests().is_of_earlier_batch(self.statements.stamp()) {
            return;
        }
        let (facts, mut gone_through) = (&self.facts, 0);
        let effects = self.statements.see_unnamed(facts.lex_context(), |text| {
            gone_through = text.len();
            match text.len() > MAX_MENTIONING {
                true => Some(Box::new(Effects::opaque())),
                false => facts.effects(text),
            }
        });
        self.position.add_scanned_bytes(gone_through);
        if let Some(effects) = effects {
            self.note_run(&effects, None, backend, up);
        }
    }

    /// `Bind` or `Describe` of a statement: it is made sure that the upstream has it, and under which name.
    fn reference(
        &mut self,
        kind: Kind,
        message: Incoming<'_>,
        names: &NamesIn<'_>,
        wires: &mut Wires<'_, '_>,
    ) -> Step {
        let name = names.statement.unwrap_or_default();
        if name.is_empty() {
            if kind == Kind::Bind {
                if let Some(pid_use) = self.statements.pid_use().cloned()
                    && let Some(step) = self.bind_instead((&pid_use, None), &message, names, wires)
                {
                    return step;
                }
                self.note_unnamed_effects(wires.backend, wires.up.buffer());
            }
            let Wires { backend, up, .. } = wires;
            if !self.ensure_unnamed(backend, up) {
                return self.refuse_reference("unnamed prepared statement does not exist".into(), up);
            }
            self.position.requests_mut().push(kind);
            return Step::Streams(Remainder::Pass);
        }
        let Some(named) = self.statements.named(name).cloned() else {
            let up = &mut *wires.up;
            if self.statements.interner().is_reserved(name) {
                let shown = Shown::bytes(name);
                return self.refuse_reference(format!("prepared statement \"{shown}\" does not exist"), up);
            }
            // Perhaps of an SQL-level PREPARE; else the upstream says that there is none.
            self.position.requests_mut().push(kind);
            return Step::Streams(Remainder::Pass);
        };
        let effects = if kind == Kind::Bind { self.named_effects(&named) } else { None };
        if let Some(pid_use) = effects.as_deref().and_then(|effects| effects.pid.as_deref())
            && let Some(step) = self.bind_instead((pid_use, Some(&named)), &message, names, wires)
        {
            return step;
        }
        if effects.as_deref().is_some_and(|effects| self.waits_to_lend_names(effects, wires.up)) {
            return Step::Defer;
        }
        let number = match self.number_of(kind, &named, names, wires) {
            StatementAt::Under(number) => number,
            StatementAt::Nowhere(step) => return step,
        };
        let Wires { backend, up, .. } = wires;
        if let Some(effects) = effects {
            self.note_run(&effects, Some(number), backend, up.buffer());
            if effects.lists_names && self.statements.is_lent(name) {
                // The connection has it under this name, and lists it so.
                self.position.requests_mut().push_using(kind, named.request);
                return Step::Streams(Remainder::Pass);
            }
        }
        self.position.requests_mut().push_using(kind, named.request);
        self.send_under(number, &message, names, up.buffer())
    }

    /// The message, which names a statement, with this number in place of that name.
    fn send_under(
        &self,
        number: u64,
        message: &Incoming<'_>,
        names: &NamesIn<'_>,
        out: &mut Vec<u8>,
    ) -> Step {
        // The header is of the whole message, of which the end may not have come yet.
        let name = names.statement.unwrap_or_default();
        let total = message.header.total - name.len() + self.statements.interner().name_length(number);
        out.push(message.header.tag);
        out.extend_from_slice(&u32::try_from(total - 1).unwrap_or(4).to_be_bytes());
        out.extend_from_slice(names.before);
        self.statements.interner().push_name(out, number);
        out.extend_from_slice(names.after);
        Step::Partly(HEADER + message.body().len(), Remainder::Pass)
    }

    /// A statement is bound that is about the number of a process: if that is a session's, another is bound in its place.
    fn bind_instead(
        &mut self,
        (pid_use, named): (&PidUse, Option<&NamedStatement>),
        message: &Incoming<'_>,
        names: &NamesIn<'_>,
        wires: &mut Wires<'_, '_>,
    ) -> Option<Step> {
        let out = wires.up.buffer();
        let (sql, signalled) = match self.signals(pid_use, Some(names.after), out) {
            Verdict::AsItIs => return None,
            Verdict::Wait => return Some(Step::Defer),
            Verdict::Instead(sql, signalled) => (sql, signalled),
        };
        let types = |body: &[u8]| cstr(body).map_or([0; 2].to_vec(), |(_, types)| types.to_vec());
        let parameters = match named {
            Some(named) => match named.shape() {
                Some(shape) => shape.parameters().to_vec(),
                None => types(named.statement.body()),
            },
            None => types(self.statements.unnamed().text()?),
        };
        let number = self.statements.interner().number();
        self.send_parse(number, &[sql.as_bytes(), &[0], &parameters].concat(), out);
        self.position.requests_mut().push_hidden(Kind::Parse, Some(Note::Prepared(number)));
        self.remember_prepared(number, wires.backend, out);
        self.position.requests_mut().push(Kind::Bind);
        signalled.into_iter().for_each(|signalled| self.arm(names.before, signalled));
        Some(self.send_under(number, message, names, out))
    }

    /// The number under which the connection has what the client has named: if it has it not, it is prepared.
    fn number_of(
        &mut self,
        kind: Kind,
        named: &NamedStatement,
        names: &NamesIn<'_>,
        wires: &mut Wires<'_, '_>,
    ) -> StatementAt {
        let Wires { backend, up, .. } = wires;
        match self.statements.take_outcome(named.request) {
            Some(Preparation::Same(number)) => return StatementAt::Under(number),
            Some(Preparation::Differs) => {
                let message = "cached plan must not change result type";
                let refusal = Refusal::new(Fault::Client, SqlState::NOT_SUPPORTED, message);
                let described = named.shape().filter(|_| kind == Kind::Describe);
                self.refuse_behind(
                    described.map_or(Vec::new(), |shape| shape.described()),
                    &refusal,
                    up.buffer(),
                );
                return StatementAt::Nowhere(Step::Streams(Remainder::Drop));
            }
            None => {}
        }
        let held = self.held(named, backend);
        // It has gone before it was described: what the client is about to be told is waited for.
        let is_learned = || !self.position.requests().is_lesson_under_way(named.request);
        if held == Held::No && named.shape().is_none() && !is_learned() && self.position.may_defer() {
            self.ask_for_all_answers(up.buffer());
            return StatementAt::Nowhere(Step::Defer);
        }
        if let (Held::Yes(number), true) = (held, self.statements.is_trusted()) {
            return StatementAt::Under(number);
        }
        if kind == Kind::Bind
            && let Some(message) = miscounted(named, names)
        {
            // In a failed transaction it cannot be prepared for that to be found out.
            self.refuse_request(&Refusal::protocol(message), up.buffer());
            return StatementAt::Nowhere(Step::Streams(Remainder::Drop));
        }
        if kind == Kind::Describe
            && let Some(shape) = named.shape().filter(|shape| shape.has_no_columns())
        {
            // PostgreSQL does not look at it again, either.
            let mut answer = shape.described();
            wire::message(&mut answer, b'n', |_| {});
            self.position.requests_mut().push_noted(Kind::Local(NO_COLUMNS), Note::Answer(answer));
            return StatementAt::Nowhere(Step::Streams(Remainder::Drop));
        }
        if kind == Kind::Describe {
            // In a failed transaction nothing can be prepared. What is still to be answered may make it fail.
            if self.position.requests().has_an_end() && self.position.may_defer() {
                return StatementAt::Nowhere(Step::Defer);
            }
            if self.position.transaction() == Transaction::Failed && named.answers_nothing() {
                self.position.requests_mut().push(Kind::Local(NO_COLUMNS));
                return StatementAt::Nowhere(Step::Streams(Remainder::Drop));
            }
        }
        if let Held::Yes(number) | Held::Doubted(number) = held {
            backend.prepared.remove(number);
            self.close_upstream(number, up.buffer());
        }
        match self.prepare_again(named, backend, up) {
            Some(number) => StatementAt::Under(number),
            None => {
                self.statements.wait_to_describe(named.shape().filter(|_| kind == Kind::Describe).cloned());
                StatementAt::Nowhere(Step::Defer)
            }
        }
    }

    /// What a named statement may do that is bound.
    fn named_effects(&mut self, named: &NamedStatement) -> Option<Box<Effects>> {
        let (statement, mut gone_through) = (&named.statement, 0);
        let own = match self.facts.can_lex() {
            true => statement.effects().map(|effects| Box::new(effects.clone())),
            false => statement.effects_unread(),
        };
        let effects =
            self.facts.with_catalog(own, || statement.mentions(self.facts.catalog(), &mut gone_through));
        self.position.add_scanned_bytes(gone_through);
        effects
    }

    fn refuse_reference(&mut self, message: String, up: &mut OutputBuffer<'_>) -> Step {
        let refusal = Refusal::new(Fault::Client, SqlState::INVALID_STATEMENT_NAME, message);
        self.refuse_request(&refusal, up.buffer());
        Step::Streams(Remainder::Drop)
    }

    /// Makes the upstream's unnamed statement this session's; false if the session has none.
    fn ensure_unnamed(&mut self, backend: &mut BackendState, up: &mut OutputBuffer<'_>) -> bool {
        let stamp = (self.facts.id(), self.statements.stamp());
        match self.statements.unnamed().text() {
            _ if matches!(self.statements.unnamed(), UnnamedText::None) => return false,
            _ if backend.unnamed == Some(stamp) => {}
            None => return false,
            Some(text) => {
                wire::message(up.buffer(), b'P', |out| {
                    out.push(0);
                    out.extend_from_slice(text);
                });
                self.position.requests_mut().push_hidden(Kind::ParseUnnamed, None);
                backend.unnamed = Some(stamp);
            }
        }
        true
    }

    /// `Close` of a statement. Upstream, others may use it: it is only the name that goes.
    fn close(&mut self, name: &[u8], message: Incoming<'_>, wires: &mut Wires<'_, '_>) {
        if name.is_empty() {
            wires.backend.unnamed = None;
            self.push_changing_unnamed(Kind::Close, UnnamedText::None);
            return wires.up.pass(message.range());
        } else if self.statements.named(name).is_some() {
            if self.statements.take_back(name) {
                self.close_as(significant(name), wires.up.buffer());
            }
            let previous = self.statements.put(name, None);
            self.position.requests_mut().push_noted(
                Kind::Local(b'3'),
                Note::Named { name: significant(name).into(), previous, prepared: None },
            );
            return;
        } else if self.statements.interner().is_reserved(name) {
            self.position.requests_mut().push(Kind::Local(b'3'));
            return;
        }
        self.position.requests_mut().push(Kind::Close);
        wires.up.pass(message.range());
    }
}

/// Why a `Bind` of a statement does not fit what its client was told of it: its parameters are too few or too many.
fn miscounted(named: &NamedStatement, names: &NamesIn<'_>) -> Option<String> {
    let parameters = named.shape()?.parameters().first_chunk()?;
    let name = names.statement.unwrap_or_default();
    Bound::read(names.after)?.miscounted(name, u16::from_be_bytes(*parameters))
}
