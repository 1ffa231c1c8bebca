//! Statements that are prepared for the client, under numbers of ours. Each is described at once, unseen: what the client was told
//! of one, it is to be wherever it is prepared again, and that is compared before anything of the client's uses it.

use std::sync::Arc;

use super::requests::{Kind, Note};
use super::statements::Preparation;
use super::teaching::Teaching;
use super::{BackendState, Core, OutputBuffer};
use crate::bearing::Bearing;
use crate::statement::{Description, Held, Lesson, NamedStatement, Owner, Statement, significant};
use wire::cstr;

/// The number of a statement of pgusher's own that does nothing.
pub(super) const EMPTY: u64 = u64::MAX;

impl Core {
    /// Gives a statement this name, and has the upstream prepare it: what the client gets is what that gives now, whoever else has
    /// prepared the same before.
    pub(super) fn prepare_named(
        &mut self,
        name: &[u8],
        statement: Arc<Statement>,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        let (giver, number) = (self.position.requests().next_number(), self.statements.interner().number());
        self.send_parse(number, statement.body(), up);
        let name_given =
            Note::Named { name: significant(name).into(), previous: None, prepared: Some(number) };
        self.position.requests_mut().push_noted(Kind::Parse, name_given);
        let owner = self.owner();
        self.remember_prepared(number, backend, up);
        let named =
            NamedStatement { statement: statement.clone(), request: giver, told: Description::Soon(number) };
        self.statements.put(name, Some(named));
        self.describe(Teaching { giver, statement, number, owner, expected: None }, up);
    }

    /// Prepares a statement on a connection that does not have it. Answers its number, or nothing if what the client was told of it
    /// is to be compared first: then that is asked for, and the message that uses it is shown again.
    pub(super) fn prepare_again(
        &mut self,
        named: &NamedStatement,
        backend: &mut BackendState,
        up: &mut OutputBuffer<'_>,
    ) -> Option<u64> {
        let out = up.buffer();
        let number = self.statements.interner().number();
        // The session's settings may be others by now.
        let statement = self.statements.interner().intern(
            named.statement.body(),
            self.facts.connection(),
            &self.facts.scope(),
        );
        // It may use others by their names.
        if let Some(effects) = statement.effects() {
            self.lend_names(effects, None, backend, out);
        }
        let expected = named.shape().filter(|_| statement.has_fixed_columns()).cloned();
        match &expected {
            None => self.send_parse(number, statement.body(), out),
            Some(shape) => {
                let body = statement.body();
                let text = cstr(body).map_or(body, |(text, _)| text);
                self.send_parse(number, &[text, &[0], shape.parameters()].concat(), out);
            }
        }
        self.position.requests_mut().push_hidden(Kind::Parse, Some(Note::Prepared(number)));
        let owner = self.owner();
        self.remember_prepared(number, backend, out);
        let compares = expected.is_some();
        if !compares {
            self.statements.tell(named.request, &statement, &Description::Soon(number));
        }
        self.describe(Teaching { giver: named.request, statement, number, owner, expected }, out);
        if compares && self.position.may_defer() {
            self.ask_for_all_answers(up.buffer());
            return None;
        }
        Some(number)
    }

    /// Whose it is what is prepared now.
    pub(super) fn owner(&self) -> Owner {
        match self.residue.mixed() > Bearing::None || self.residue.has_temporary() {
            true => Owner::Session,
            false => Owner::All,
        }
    }

    /// Whether the connection has a statement as its client knows it. Among temporary objects its tables may be others than those of
    /// what all share.
    pub(super) fn held(&self, named: &NamedStatement, backend: &mut BackendState) -> Held {
        let is_shared = named.shape().is_some_and(|shape| shape.owner() == Owner::All);
        match is_shared && self.residue.has_temporary() {
            true => Held::No,
            false => named.held(&mut backend.prepared),
        }
    }

    fn describe(&mut self, teaching: Teaching, up: &mut Vec<u8>) {
        wire::message(up, b'D', |out| {
            out.push(b'S');
            self.statements.interner().push_name(out, teaching.number);
        });
        self.position.requests_mut().push_hidden(Kind::Describe, Some(Note::Lesson(teaching)));
    }

    /// True while a description comes that we have asked for.
    pub(super) fn is_learning(&self) -> bool {
        self.position
            .requests()
            .front()
            .is_some_and(|front| front.kind == Kind::Describe && front.is_hidden())
    }

    /// The next bytes of it.
    pub(super) fn learn(&mut self, bytes: &[u8], backend: &mut BackendState) {
        let is_over = self.position.between_messages();
        if let Some(lesson) = &mut backend.lesson {
            lesson.feed(bytes);
            if is_over && lesson.is_of_columns() {
                self.learned(backend);
            }
        }
    }

    /// All of it has come.
    pub(super) fn learned(&mut self, backend: &mut BackendState) {
        let lesson = backend.lesson.take().map(|lesson| *lesson);
        let note = self.position.requests_mut().take_front_note();
        self.position.requests_mut().pop();
        let (Some(lesson), Some(note)) = (lesson, note) else { return };
        let Note::Lesson(Teaching { giver, statement, number, owner, expected }) = *note else { return };
        let described = lesson.ends();
        if expected.as_ref().is_some_and(|shape| !shape.is(&described)) {
            backend.prepared.abandon(number);
            return self.statements.compared(giver, Preparation::Differs);
        }
        let compared = expected.is_some();
        let shape = match owner {
            Owner::All => statement.shaped(described, self.statements.interner()),
            Owner::Session => self.statements.interner().own_shape(described),
        };
        backend.prepared.describe(number, shape.id());
        let told = Description::Shape(shape);
        if !self.statements.tell(giver, &statement, &told) {
            self.position.requests_mut().tell(giver, &told);
        }
        if compared {
            self.statements.compared(giver, Preparation::Same(number));
        }
    }

    /// The `Parse` that was sent last is of this number. What must go for it, goes; and so do those that nobody asks for any more.
    pub(super) fn remember_prepared(&mut self, number: u64, backend: &mut BackendState, up: &mut Vec<u8>) {
        let request = self.position.requests().last_number();
        let oldest = backend.prepared.insert(number, request, backend.max_prepared);
        for number in oldest.into_iter().chain(backend.prepared.take_stale()) {
            self.close_upstream(number, up);
        }
    }

    pub(super) fn close_upstream(&mut self, number: u64, up: &mut Vec<u8>) {
        wire::message(up, b'C', |out| {
            out.push(b'S');
            self.statements.interner().push_name(out, number);
        });
        self.position.requests_mut().push_hidden(Kind::Close, Some(Note::Closed(number)));
    }

    /// A `Parse` of nothing.
    pub(super) fn send_empty(&self, number: u64, up: &mut Vec<u8>) {
        wire::message(up, b'P', |out| {
            self.statements.interner().push_name(out, number);
            out.extend([0; 3]);
        });
    }

    pub(super) fn send_parse(&mut self, number: u64, body: &[u8], up: &mut Vec<u8>) {
        self.position.counts_mut().server_parses += 1;
        wire::message(up, b'P', |out| {
            self.statements.interner().push_name(out, number);
            out.extend_from_slice(body);
        });
    }
}

/// What is learned comes as a `ParameterDescription`, and a `RowDescription` or `NoData`.
pub(super) fn lesson(tag: u8, backend: &mut BackendState) -> bool {
    match tag {
        b't' => backend.lesson = Some(Box::new(Lesson::parameters())),
        b'T' => backend.lesson.iter_mut().for_each(|lesson| lesson.columns()),
        _ => {}
    }
    backend.lesson.is_some()
}
