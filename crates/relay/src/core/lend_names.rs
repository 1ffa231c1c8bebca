//! Names of prepared statements in SQL. PostgreSQL has one name space for them and for the protocol's, and a connection knows the
//! protocol's under numbers: for a query or a batch whose SQL uses some, it has them under the client's own names as well.

use super::requests::Kind;
use super::{BackendState, Core, MAX_ADDED, MAX_NAMED_PARSE, OutputBuffer};
use crate::core::position::Transaction;
use crate::core::transfer::Protocol;
use crate::sql::{Effects, NameUse};
use crate::statement::{NamedStatement, significant};
use wire::error::{Fault, Refusal, Shown, SqlState};
use wire::{cstr, literal};

/// How many names a connection is given for a text that lists them.
const MAX_LISTED: usize = 1000;

impl Core {
    /// Whether a text uses names that the client has given by the protocol, or lists them.
    pub(super) fn uses_names(&self, effects: &Effects) -> bool {
        self.facts.is_lent_for_transactions()
            && (effects.lists_names
                || effects.names.iter().any(|(_, name)| self.statements.named(name).is_some()))
    }

    /// Why a text is refused that uses a name of pgusher's own: others may use what it stands for.
    pub(super) fn refused_name(&self, effects: &Effects) -> Option<Refusal> {
        let is_reserved = |name: &[u8]| self.statements.interner().is_reserved(name);
        let (_, name) = effects.names.iter().find(|(_, name)| is_reserved(name))?;
        let message = format!("prepared statement \"{}\" does not exist", Shown::bytes(name));
        Some(Refusal::new(Fault::Client, SqlState::INVALID_STATEMENT_NAME, message))
    }

    /// True if that is to be dealt with when what is under way is answered: what a name stands for depends on that, or whether
    /// anything can be prepared.
    pub(super) fn waits_to_lend_names(&mut self, effects: &Effects, up: &mut OutputBuffer<'_>) -> bool {
        let may_defer = self.position.may_defer();
        let ends =
            self.position.transaction() == Transaction::Failed && self.position.requests().has_an_end();
        if ends && (effects.channels || effects.notifies) && self.has_channels() && may_defer {
            // Whether the connection can listen to them depends on whether that transaction has ended.
            return true;
        }
        // One that was taken away is there again if that fails.
        let is_in_doubt = self.facts.is_lent_for_transactions()
            && effects.names.iter().any(|(_, name)| self.is_in_doubt(name));
        if !is_in_doubt && !self.uses_names(effects) {
            return false;
        }
        // Whether a name is the protocol's or SQL's own, its Parse decides.
        if self.residue.has_sql_names() && may_defer && !self.position.requests().only_local() {
            self.ask_for_all_answers(up.buffer());
            return true;
        }
        let depends = self.position.requests().has_an_end() || is_in_doubt;
        may_defer && depends || effects.names.iter().any(|(_, name)| self.waits_for_names(name, up))
    }

    /// True if a query that uses names, or stands behind what uses some, is in a batch that is not answered yet. If anything of that
    /// batch fails, PostgreSQL skips all up to the client's own `Sync`: the one with which names are returned may not come first.
    pub(super) fn may_be_skipped(&mut self, up: &mut OutputBuffer<'_>) -> bool {
        let waits = self.position.is_unsynced()
            && !self.position.requests().only_local()
            && self.position.may_defer();
        if waits {
            self.ask_for_all_answers(up.buffer());
        }
        waits
    }

    /// A statement that may do this is about to be run by the extended protocol; `keep` is the number under which it is, if it has one.
    pub(super) fn note_run(
        &mut self,
        effects: &Effects,
        keep: Option<u64>,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        self.note_extended_effects(effects, backend, up);
        self.lend_names(effects, keep, backend, up);
        self.note_deallocations(effects, Protocol::Extended);
    }

    /// Gives the connection the names that a text uses which is about to be sent, until the client's query or batch ends.
    /// One that is only deallocated, or that may not be there, stands for nothing. `keep` is a number that is used.
    pub(super) fn lend_names(
        &mut self,
        effects: &Effects,
        keep: Option<u64>,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        // In a failed transaction nothing can be prepared, and nothing is run.
        if !self.uses_names(effects) || self.position.transaction() == Transaction::Failed {
            return;
        }
        let end = up.len() + MAX_NAMED_PARSE;
        if effects.lists_names {
            // If all are given, so is the one that lists them.
            let is_much = self.statements.count() > MAX_LISTED || self.statements.bytes() > MAX_ADDED;
            let keep = keep.filter(|_| is_much);
            let end = up.len() + MAX_ADDED;
            for number in backend.prepared.take_all_but(keep) {
                self.close_upstream(number, up);
            }
            for name in self.statements.some_names(MAX_LISTED) {
                self.lend_name(&name, NameUse::Executes, end, up);
            }
        }
        let is_run = |name: &[u8]| effects.names.contains(&(NameUse::Executes, name.into()));
        for (name_use, name) in &effects.names {
            let name_use = if is_run(name) { NameUse::Executes } else { *name_use };
            self.lend_name(name, name_use, end, up);
        }
    }

    /// What is sent may not become longer than `end`, or a few bytes would become many.
    fn lend_name(&mut self, name: &[u8], name_use: NameUse, end: usize, up: &mut Vec<u8>) {
        let Some(named) = self.statements.named(name).cloned() else { return };
        let length = if name_use == NameUse::Executes { named.statement.cost() } else { 0 };
        if up.len() + length > end {
            return;
        }
        let name = significant(name);
        if !self.statements.lend(name) {
            return;
        }
        let body = |out: &mut Vec<u8>| match name_use {
            NameUse::Executes => body(&named, out),
            NameUse::Deallocates | NameUse::Prepares => out.extend([0; 3]),
        };
        self.parse_as(name, body, up);
    }

    /// Has the upstream prepare something under the client's own name for it, unseen.
    pub(super) fn parse_as(&mut self, name: &[u8], body: impl FnOnce(&mut Vec<u8>), up: &mut Vec<u8>) {
        wire::message(up, b'P', |out| {
            out.extend_from_slice(name);
            out.push(0);
            body(out);
        });
        self.position.requests_mut().push_hidden(Kind::Parse, None);
    }

    /// And close it.
    pub(super) fn close_as(&mut self, name: &[u8], up: &mut Vec<u8>) {
        wire::message(up, b'C', |out| {
            out.push(b'S');
            out.extend_from_slice(name);
            out.push(0);
        });
        self.position.requests_mut().push_hidden(Kind::Close, None);
    }

    /// The text that comes now deallocates these, if it is run: each with a tag of a command.
    pub(super) fn note_deallocations(&mut self, effects: &Effects, protocol: Protocol) {
        if !self.uses_names(effects) {
            return;
        }
        let request = self.position.requests().next_number();
        for (_, name) in effects.names.iter().filter(|(what, _)| *what == NameUse::Deallocates) {
            self.statements.note_deallocation(request, protocol, significant(name));
        }
    }

    /// A text names settings of pgusher's own otherwise than by a `SHOW` alone: the connection has them, until somebody else is lent
    /// it.
    pub(super) fn tell_ours(
        &mut self,
        effects: &Effects,
        protocol: Protocol,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        let is_failed = self.position.transaction() == Transaction::Failed;
        if !effects.names_ours || is_failed {
            return;
        }
        let mut statements = Vec::new();
        for (name, value) in self.facts.ours(self.pin()) {
            backend.settings.carry(format!("pgusher.{name}").as_bytes(), value.as_bytes());
            statements.push(format!("SET pgusher.\"{name}\" TO {}", literal(value.as_bytes())));
        }
        backend.unnamed = None;
        if self.is_query_of_its_own(protocol) {
            wire::query(up, &statements.join(";"));
            self.position.requests_mut().push_hidden(Kind::Query, None);
        } else {
            statements.iter().for_each(|statement| self.run_hidden(statement, up));
        }
    }

    /// The client's query or batch ends: the connection has the names no more.
    pub(super) fn return_names(&mut self, up: &mut Vec<u8>) {
        for name in self.statements.take_lent() {
            self.close_as(&name, up);
        }
        wire::message(up, b'S', |_| {});
        self.position.requests_mut().push_hidden(Kind::Sync, None);
    }
}

/// What a `Parse` of a statement has behind the name, with the types that its client was told.
fn body(named: &NamedStatement, out: &mut Vec<u8>) {
    let body = named.statement.body();
    match (named.shape(), cstr(body)) {
        (Some(shape), Some((text, _))) => {
            out.extend_from_slice(text);
            out.push(0);
            out.extend_from_slice(shape.parameters());
        }
        _ => out.extend_from_slice(body),
    }
}
