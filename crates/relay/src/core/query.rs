//! Simple queries, of which some are answered otherwise.

use super::from_client::{Incoming, Step, Wires};
use super::pids::Verdict;
use super::position::Remainder;
use super::requests::{Kind, Note};
use super::transfer::Protocol;
use super::{BackendState, Core, GATHER, OutputBuffer};
use crate::catalog::Words;
use crate::sql::{Effects, Scan};
use crate::statement::UnnamedText;
use wire::HEADER;
use wire::error::Refusal;

impl Core {
    pub(super) fn query(
        &mut self,
        message: Incoming<'_>,
        wires: &mut Wires<'_, '_>,
    ) -> Result<Step, Refusal> {
        let Incoming { header, input, at } = message;
        let Wires { backend, up, .. } = wires;
        let transaction = self.facts.is_lent_for_transactions();
        if !message.is_whole() && header.total <= GATHER {
            return Ok(Step::Need(header.total));
        }
        self.disarm();
        let text = input.get(HEADER..header.total);
        let effects = text.and_then(|text| self.facts.effects(text));
        if let Some(effects) = effects.as_deref()
            && (self.mixes_changes(effects) || self.waits_to_lend_names(effects, up))
        {
            return Ok(Step::Defer);
        }
        let uses_names = effects.as_deref().is_some_and(|effects| self.uses_names(effects));
        if (uses_names || self.statements.has_lent()) && self.may_be_skipped(up) {
            return Ok(Step::Defer);
        }
        let instead = match effects.as_deref().and_then(|effects| effects.pid.as_deref()) {
            None => None,
            Some(pid_use) => match self.signals(pid_use, None, up.buffer()) {
                Verdict::Wait => return Ok(Step::Defer),
                Verdict::AsItIs => None,
                Verdict::Instead(sql, _) => Some(sql),
            },
        };
        backend.unnamed = None;
        if text.is_none() {
            // Too long to be looked at.
            if !transaction {
                self.residue.mark_dirty();
            }
            self.push_changing_unnamed(Kind::Query, UnnamedText::None);
            up.pass(at..at + HEADER);
            let scan = if self.facts.can_lex() { Scan::of_statements() } else { Scan::default() };
            let rest = match transaction {
                true => Remainder::Scan(Box::new((scan, Words::default()))),
                false => Remainder::Pass,
            };
            return Ok(Step::Partly(HEADER, rest));
        }
        let answered_otherwise = match (instead, effects) {
            (Some(sql), _) => {
                self.query_instead(&sql, up);
                true
            }
            (None, effects) => effects.is_some_and(|effects| self.suspicious_query(&effects, backend, up)),
        };
        if !answered_otherwise {
            self.push_changing_unnamed(Kind::Query, UnnamedText::None);
            up.pass(message.range());
        }
        Ok(Step::Done)
    }

    /// Whether a text says something of settings while a query is under way that does: what the upstream reports then could be by
    /// either.
    pub(super) fn mixes_changes(&self, effects: &Effects) -> bool {
        self.residue.has_changes()
            && self.changes_what_is_reported(effects)
            && self.position.requests().has_an_end()
            && self.position.may_defer()
    }

    /// Whether a text says something of settings that PostgreSQL reports.
    pub(super) fn changes_what_is_reported(&self, effects: &Effects) -> bool {
        let is_reported = |name: &str| self.facts.settings().reports(name.as_bytes());
        effects.changes.iter().any(|change| change.name().is_none_or(is_reported))
    }

    /// A query that may do this. True if another was sent in its place.
    fn suspicious_query(
        &mut self,
        effects: &Effects,
        backend: &mut BackendState,
        up: &mut OutputBuffer<'_>,
    ) -> bool {
        if let Some(refusal) = self.facts.refused_setting(effects) {
            self.refuse_query(&refusal, up.buffer());
            return true;
        }
        if let Some(sql) = effects.shows.as_deref().and_then(|name| self.facts.show(name, self.pin())) {
            self.query_instead(&sql, up);
            return true;
        }
        if !self.facts.is_lent_for_transactions() {
            self.mark_dirty(effects);
            self.tell_ours(effects, Protocol::Simple, backend, up.buffer());
            return false;
        }
        self.note_effects(effects);
        self.recall_channels(effects, Protocol::Simple, backend, up.buffer());
        self.shield_sequences(effects, Protocol::Simple, backend, up.buffer());
        if let Some(refusal) = self.refused_name(effects) {
            self.refuse_query(&refusal, up.buffer());
            return true;
        }
        self.tell_ours(effects, Protocol::Simple, backend, up.buffer());
        self.lend_names(effects, None, backend, up.buffer());
        self.note_deallocations(effects, Protocol::Simple);
        false
    }

    /// This is sent in place of what the client has sent.
    fn query_instead(&mut self, sql: &str, up: &mut OutputBuffer<'_>) {
        wire::query(up.buffer(), sql);
        self.push_changing_unnamed(Kind::Query, UnnamedText::None);
    }

    /// A request that changes what the unnamed statement is. Should it be skipped, because one before it since the last
    /// `Sync` fails, that is what it was.
    pub(super) fn push_changing_unnamed(&mut self, kind: Kind, text: UnnamedText) {
        let stamp = self.position.requests().next_number();
        let previous = self.statements.replace_unnamed(stamp, text);
        if self.position.is_unsynced() {
            self.position.requests_mut().push_noted(kind, Note::Unnamed(previous));
        } else {
            self.position.requests_mut().push(kind);
        }
    }
}
