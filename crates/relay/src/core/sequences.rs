//! What a connection has that only the session has any use for that it was lent to last: last values of sequences, and how long it
//! may be idle.

use super::requests::Kind;
use super::transfer::Protocol;
use super::{BackendState, Core};
use crate::sql::Effects;

/// What takes away the last values of sequences that a session has been told.
const FORGET_SEQUENCES: &str = "DISCARD SEQUENCES";

impl Core {
    /// Last values of another session's sequences are forgotten, if there may be any. No answer is waited for.
    pub(super) fn forget_sequences(&mut self, backend: &mut BackendState, up: &mut Vec<u8>) {
        if std::mem::take(&mut backend.foreign_sequences) {
            wire::query(up, FORGET_SEQUENCES);
            backend.unnamed = None;
            self.position.requests_mut().push_hidden(Kind::Query, None);
        }
    }

    /// The statement to come asks for last values of sequences: the connection is to know none of another session's. A `Query` of our
    /// own would end the implicit transaction that may be open: in a batch it is done within that.
    pub(super) fn shield_sequences(
        &mut self,
        effects: &Effects,
        protocol: Protocol,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        if !self.has_only_foreign_sequences(effects, backend) {
            return;
        }
        match protocol {
            Protocol::Simple if self.is_query_of_its_own(protocol) => self.forget_sequences(backend, up),
            Protocol::Simple | Protocol::Extended => {
                (backend.foreign_sequences, backend.unnamed) = (false, None);
                self.run_hidden(FORGET_SEQUENCES, up);
            }
        }
    }

    /// A statement is about to run that may ask for last values of sequences. True if the connection may have another session's,
    /// and can have none of this one's: nothing of it has run. (Had something, it may have advanced one; and whoever asks again is
    /// lent a connection without any.)
    fn has_only_foreign_sequences(&self, effects: &Effects, backend: &BackendState) -> bool {
        if !effects.reads_sequences {
            return false;
        }
        self.facts.memory().asked_for_last_value();
        backend.foreign_sequences && !backend.has_run
    }

    /// What would end the connection when nobody uses it, and somebody else with it, is taken off before it goes back. True if that
    /// is to be answered first.
    pub(crate) fn stay_when_idle(&mut self, backend: &mut BackendState, up: &mut Vec<u8>) -> bool {
        if !self.facts.settings().limits_idle() {
            return false;
        }
        let Some(sql) = backend.settings.stay_when_idle() else { return false };
        wire::query(up, sql);
        backend.unnamed = None;
        self.position.requests_mut().push(Kind::Setup);
        true
    }
}
