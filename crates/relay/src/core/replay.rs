//! Statements that a connection has lost are prepared again, and what the client asked with them is asked again, before it hears
//! of it.
//!
//! That is only done where nobody can tell: outside a transaction, for the first request of a batch, so that nothing
//! before it has run, and up to its `Sync`, so that nothing behind it has.

use super::requests::{Note, Request, Skipped};
use super::{BackendState, Core, GATHER};
use crate::statement::{Held, NamedStatement};

/// Where PostgreSQL says that there is no such prepared statement: of the protocol's names, and of the unnamed one.
const WHERE_STATEMENTS_ARE_MISSED: [&[u8]; 3] =
    [b"FetchPreparedStatement", b"exec_bind_message", b"exec_describe_statement_message"];

/// What the client sent since its last idle point, as long as the first request of it, which uses a statement that the
/// connection is believed to have, is not answered. It belongs to the connection, so that idle clients cost nothing.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The number of that request; 0 for none.
    first: u64,
    /// Where it began in the piece at hand.
    start: usize,
    bytes: Vec<u8>,
}

impl Batch {
    /// There is none.
    pub(crate) fn end(&mut self) {
        self.first = 0;
    }
}

/// Whether a batch is to be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    None,
    /// When the upstream has answered its `Sync`.
    AtReady,
    Due,
}

impl Core {
    /// True if a request that comes now is the first of a batch, outside a transaction.
    pub(super) fn begins_batch(&self) -> bool {
        self.facts.is_lent_for_transactions()
            && self.position.is_before_transaction()
            && self.position.requests().only_unseen()
    }

    /// The first request of a batch was dealt with, which was to have this number and began at `at`.
    pub(super) fn begin_batch(&mut self, number: u64, at: usize, backend: &mut BackendState) {
        let batch = &mut backend.batch;
        let of_named =
            self.position.requests().last_numbered(number).is_some_and(|request| request.uses != 0);
        batch.first = if of_named { number } else { 0 };
        batch.start = at;
        batch.bytes.clear();
    }

    /// The client's next piece was dealt with: it is kept if it may have to be asked again.
    pub(super) fn keep_batch(&self, piece: &[u8], backend: &mut BackendState) {
        let batch = &mut backend.batch;
        if batch.first == 0 || self.position.requests().front().is_none_or(|front| front.number > batch.first)
        {
            return;
        }
        let start = std::mem::take(&mut batch.start);
        let piece = &piece[start.min(piece.len())..];
        if batch.bytes.len() + piece.len() > GATHER {
            batch.end();
        } else {
            batch.bytes.extend_from_slice(piece);
        }
    }

    /// The upstream has refused the first of these. If that is because it does not have a statement that we thought it had, this is
    /// remembered; true if the batch will be asked again.
    pub(super) fn plan_replay(
        &mut self,
        error: &[u8],
        skipped: &Skipped,
        backend: &mut BackendState,
    ) -> bool {
        let refused = &skipped.requests;
        let Some(first) = refused.first() else { return false };
        // By the place in the server's source: a function may raise the same codes, and another place is given then.
        let place = wire::error_field(error, b'R');
        let lost = wire::error_field(error, b'C') == Some(b"26000")
            && place.is_none_or(|place| WHERE_STATEMENTS_ARE_MISSED.contains(&place));
        if !lost {
            return false;
        }
        let Some(named) = self.named_used(refused) else { return false };
        if let Held::Yes(number) | Held::Doubted(number) = named.held(&mut backend.prepared) {
            backend.prepared.remove(number);
        }
        let again = skipped.has_sync
            && first.number == backend.batch.first
            && !self.position.is_in_clients_message()
            && self.position.requests_mut().hide_only_sync();
        if again {
            self.statements.replay_at_ready();
        }
        again
    }

    /// What the first of these uses: it may have lost its name by a later one.
    fn named_used(&self, requests: &[Request]) -> Option<NamedStatement> {
        let giver = requests.first().map(|first| first.uses).filter(|giver| *giver != 0)?;
        let taken = |request: &Request| match request.note.as_deref() {
            Some(Note::Named { previous: Some(named), .. }) if named.request == giver => Some(named.clone()),
            _ => None,
        };
        self.statements.given_by(giver).cloned().or_else(|| requests.iter().find_map(taken))
    }

    /// The batch that is to be asked again now, if one is.
    pub(crate) fn replay(&mut self, backend: &mut BackendState) -> Option<Vec<u8>> {
        if !self.statements.take_replay() {
            return None;
        }
        backend.batch.end();
        Some(std::mem::take(&mut backend.batch.bytes))
    }
}
