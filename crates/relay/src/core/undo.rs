//! What is taken back when the upstream refuses a request and skips those behind it.

use super::requests::{Kind, Note, Request, Whose};
use super::{BackendState, Core};
use crate::statement::{Unnamed, UnnamedText};

impl Core {
    /// Takes back what requests did of which the upstream has refused the first and skipped the others; the last one
    /// first.
    pub(super) fn undo(&mut self, skipped: Vec<Request>, backend: &mut BackendState) {
        if let [first, ..] = &*skipped {
            let last = skipped.last().map_or(first.number, |last| last.number);
            self.residue.have_failed(first.number..=last);
        }
        // The last request that made the unnamed statement what it is, and what it is without them all.
        let mut unnamed: Option<(u64, Unnamed)> = None;
        for (i, request) in skipped.into_iter().enumerate().rev() {
            if request.kind == Kind::ParseUnnamed {
                // Which unnamed statement the connection has now depends on what was skipped: it is given one anew.
                backend.unnamed = None;
            }
            let (was_refused, number) = (i == 0, request.number);
            let last = unnamed.as_ref().map_or(number, |(last, _)| *last);
            match request.note.map(|note| *note) {
                Some(Note::Named { name, previous, prepared }) => {
                    self.statements.put(&name, previous);
                    prepared.into_iter().for_each(|number| backend.prepared.remove(number));
                }
                Some(Note::Prepared(number)) => backend.prepared.remove(number),
                Some(Note::Closed(closed)) => backend.prepared.revive(closed, number),
                Some(Note::Unnamed(previous)) if !was_refused => {
                    backend.unnamed = None;
                    unnamed = Some((last, previous));
                }
                // A Parse that fails has destroyed the old one already.
                _ if request.kind == Kind::ParseUnnamed && request.whose == Whose::Clients => {
                    unnamed = Some((last, Unnamed { stamp: number, text: UnnamedText::None }));
                }
                Some(
                    Note::Unnamed(_) | Note::Refused(_) | Note::Answer(_) | Note::Proof(_) | Note::Lesson(_),
                )
                | None => {}
            }
        }
        if let Some((last, before)) = unnamed
            && let Some(before) = self.statements.restore_unnamed(last, before)
        {
            self.position.requests_mut().amend_unnamed(last, before);
        }
    }
}
