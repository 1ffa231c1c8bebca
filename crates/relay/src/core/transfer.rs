//! `LISTEN` without a connection of one's own: how a session's channels go to the pool's listener and come back.

use super::channels::{ListenRequest, Mark};
use super::position::Transaction;
use super::requests::Kind;
use super::{BackendState, Core};
use crate::sql::{Effects, Pin};

/// How a statement comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Simple,
    Extended,
}

impl Core {
    /// True while the session's channels are on their way to the listener.
    pub(crate) fn is_transferring(&self) -> bool {
        self.channels.is_transferring()
    }

    /// True if a notification can be put in between what the client gets, as PostgreSQL would: outside a transaction.
    pub(crate) fn takes_notifications(&self) -> bool {
        self.is_idle() && !self.position.is_refusing()
    }

    /// True if the session has channels that the listener delivers.
    pub(crate) fn has_carried_channels(&self) -> bool {
        self.channels.is_carried()
    }

    /// True if what the client sends must wait: channels were brought back in a transaction that is over, or may be,
    /// and in the next one it must be known what became of them.
    pub(super) fn awaits_channels(&self) -> bool {
        self.channels.is_recalled()
            && (self.position.requests().has_an_end() || self.position.is_before_transaction())
    }

    /// The connection says that it listens to these.
    pub(super) fn found_channels(&mut self, found: Vec<String>) {
        if !self.channels.found(found) {
            self.keep_channels();
        }
    }

    /// What the listener is to be asked now, if anything.
    pub(crate) fn ask_listener(&mut self) -> Option<ListenRequest> {
        self.channels.ask()
    }

    /// True if the listener's first answer is awaited, or its last one.
    pub(crate) fn awaits_listener(&self) -> bool {
        self.channels.awaits_listener()
    }

    /// The listener listens: the marker is sent. False if it would deliver in another encoding than the client's:
    /// it does so in UTF-8.
    pub(crate) fn mark(&mut self, mark: Mark, backend: &mut BackendState, up: &mut Vec<u8>) -> bool {
        if !self.facts.is_utf8() && !self.channels.is_carried() {
            return false;
        }
        let Some(query) = self.channels.mark(mark, backend.pid) else { return false };
        wire::query(up, &query);
        backend.unnamed = None;
        self.position.requests_mut().push(Kind::Transfer);
        true
    }

    /// Once the marker has come back: the connection is to listen no more; and a step that has failed is made again. False if it is
    /// not the time.
    pub(crate) fn go_on_handing_over(&mut self, backend: Option<&BackendState>, up: &mut Vec<u8>) -> bool {
        let pid = backend.and_then(|backend| backend.pid);
        let Some(query) = self.channels.go_on(pid) else { return false };
        wire::query(up, &query);
        self.position.requests_mut().push(Kind::Transfer);
        true
    }

    /// The listener delivers what comes on these.
    pub(crate) fn carry_channels(&mut self, carried: Vec<String>) {
        self.channels.carry(carried);
    }

    /// There is no listener to be had: the session keeps its connection.
    pub(crate) fn keep_channels(&mut self) {
        self.channels.give_up();
        self.residue.pin_while_left(Pin::Listen);
    }

    /// True if the session has any.
    pub(crate) fn has_channels(&self) -> bool {
        self.channels.is_any()
    }

    /// True if the connection does not listen any more, and the listener has not said that it delivers.
    pub(crate) fn is_transfer_ending(&self) -> bool {
        self.channels.is_transfer_ending()
    }

    /// The recall with which the listener stops to deliver: see [`Channels::pausing`](super::channels::Channels::pausing).
    pub(crate) fn pausing(&self) -> Option<u64> {
        self.channels.pausing()
    }

    /// What the listener has delivered before has been sent.
    pub(crate) fn paused(&mut self) {
        self.channels.paused();
    }

    /// False if a notification has characters that the listener was sent in another encoding than the client's.
    pub(crate) fn can_be_told(&self, message: &[u8]) -> bool {
        self.facts.is_utf8() || message.get(wire::HEADER + 4..).unwrap_or_default().is_ascii()
    }

    /// A statement that has to do with channels, or may notify its own session, is about to run: the connection is to
    /// listen to those of the session, in the same transaction. A `Query` would end an implicit transaction.
    pub(super) fn recall_channels(
        &mut self,
        effects: &Effects,
        protocol: Protocol,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        let transaction = self.position.transaction();
        // Nothing takes effect there but its end; and what is wrong with the text is said before that.
        let requests = self.position.requests();
        let is_failed = transaction == Transaction::Failed;
        let stays_failed = is_failed && !requests.has_an_end() && requests.has_executed_nothing();
        if stays_failed && protocol == Protocol::Extended {
            return;
        }
        let Some(statements) = self.channels.recall(effects, transaction, backend.pid) else { return };
        backend.unnamed = None;
        // LISTEN takes effect when its transaction ends: where none has begun, it has one of its own. And DISCARD ALL may not come
        // behind anything that was executed.
        let discards = effects.deallocates_all && effects.resets_all;
        let in_between = discards
            && self.position.transaction() == Transaction::None
            && self.position.requests().has_executed_nothing();
        if self.is_query_of_its_own(protocol) || in_between {
            wire::query(up, &statements.join(";"));
            self.position.requests_mut().push_hidden(Kind::Query, None);
        } else {
            statements.iter().for_each(|statement| self.run_hidden(statement, up));
        }
    }

    /// True if a `Query` of our own may be sent in front of what comes now: it would end the transaction of a batch that has begun, and
    /// in session mode take the client's unnamed statement away.
    pub(super) fn is_query_of_its_own(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Simple => !self.position.is_unsynced(),
            Protocol::Extended => {
                self.facts.is_lent_for_transactions() && self.position.is_before_transaction()
            }
        }
    }

    /// `Parse`, `Bind` and `Execute` of a statement of our own, inside the transaction that the client is in.
    pub(super) fn run_hidden(&mut self, statement: &str, up: &mut Vec<u8>) {
        // Not the unnamed portal, which the client may have, or may ask for because it has none; and in session mode not the unnamed
        // statement, which nobody gives it again.
        let portal = self.statements.interner().name(0);
        let keeps_unnamed = !self.facts.is_lent_for_transactions();
        let name = if keeps_unnamed { &*portal } else { "" };
        wire::message(up, b'P', |out| {
            wire::push_cstr(out, name);
            wire::push_cstr(out, statement);
            out.extend([0; 2]);
        });
        wire::message(up, b'B', |out| {
            wire::push_cstr(out, &portal);
            wire::push_cstr(out, name);
            out.extend([0; 6]);
        });
        wire::message(up, b'E', |out| {
            wire::push_cstr(out, &portal);
            out.extend([0; 4]);
        });
        wire::message(up, b'C', |out| {
            out.push(b'P');
            wire::push_cstr(out, &portal);
        });
        let parse = if keeps_unnamed { Kind::Parse } else { Kind::ParseUnnamed };
        for kind in [parse, Kind::Bind, Kind::Execute, Kind::Close] {
            self.position.requests_mut().push_hidden(kind, None);
        }
        if keeps_unnamed {
            self.close_as(portal.as_bytes(), up);
        }
    }
}
