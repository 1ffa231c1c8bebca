//! What the upstream still owes answers to, in the order in which it was asked.

use std::collections::VecDeque;

use crate::reset::Proof;
use crate::statement::{Named, Unnamed, significant};

/// One request. Requests are numbered from 1 within a session.
#[derive(Debug)]
pub(crate) struct Request {
    pub kind: Kind,
    pub whose: Whose,
    pub number: u64,
    /// The request that gave the name that this one uses; 0 if it uses none.
    pub uses: u64,
    pub note: Option<Box<Note>>,
}

/// Whose a request is, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The client's.
    Clients,
    /// Our own: the client does not see the answer.
    Ours,
}

impl Request {
    pub(crate) fn is_hidden(&self) -> bool {
        self.whose == Whose::Ours
    }

    /// Whether it ends a query: a `Query` itself, or a `Sync`.
    fn is_an_end(&self) -> bool {
        matches!(self.kind, Kind::Sync | Kind::Query) && !self.is_hidden()
    }
}

/// What the upstream skips behind an error.
#[derive(Debug)]
pub(crate) struct Skipped {
    /// The one that has failed, and those behind it.
    pub requests: Vec<Request>,
    /// Behind them is a `Sync`; else the client has still to send it.
    pub has_sync: bool,
}

/// A [`Kind::Local`] that describes a statement without parameters and columns.
pub(crate) const NO_COLUMNS: u8 = b't';

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our own `Query`: everything up to its `ReadyForQuery` is ours. It takes away what another user has left.
    Reset,
    /// Our own `Query`, which gives the connection the session's settings.
    Setup,
    /// Our own `Query`, too: it asks what the session has left.
    Probe,
    /// And so are the steps that hand the session's channels over to the listener.
    HandOver,
    Query,
    FunctionCall,
    Parse,
    ParseUnnamed,
    /// Of a name that is taken: it fails.
    ParseDuplicate,
    /// A `Parse` of what the upstream has prepared already: it was asked to describe it in its place.
    ParseAsDescribe,
    Bind,
    Describe,
    Execute,
    Close,
    Sync,
    /// Was not sent; answered by this message without a body (`CloseComplete`), or by [`NO_COLUMNS`], when its turn comes.
    Local(u8),
    /// `CopyDone` or `CopyFail` for a COPY that has not begun yet, as far as we know. Gets no answer.
    CopyEnd,
    /// Was replaced by something that fails; the error is in the note.
    Fail,
}

/// What to take back if it fails or is skipped, or what to say.
#[derive(Debug)]
pub(crate) enum Note {
    /// A name was given a statement, or lost it.
    Named {
        name: Box<[u8]>,
        previous: Option<Named>,
        /// The statement that the upstream prepares with it.
        prepared: Option<u64>,
        /// The statement that the upstream deallocates with it.
        closed: Option<u64>,
    },
    /// The upstream prepares a statement.
    Prepared(u64),
    /// The upstream closes one.
    Closed(u64),
    /// What the row must hold that answers it.
    Proof(Proof),
    /// It changed the unnamed statement, which was this one.
    Unnamed(Unnamed),
    /// The `ErrorResponse` to send in place of the upstream's.
    Refused(Vec<u8>),
}

impl Note {
    /// How many bytes are kept for it.
    fn bytes(&self) -> usize {
        match self {
            Self::Named { name, previous, .. } => {
                name.len() + previous.as_ref().map_or(0, |named| named.statement.cost())
            }
            Self::Unnamed(previous) => previous.text.text().map_or(0, <[u8]>::len),
            Self::Refused(error) => error.len(),
            Self::Prepared(_) | Self::Closed(_) | Self::Proof(_) => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Requests {
    queue: VecDeque<Request>,
    last: u64,
    /// How many of them end a query, and how many have a note: mostly none, and then nothing is in doubt.
    ends: usize,
    noted: usize,
    /// Of all notes.
    bytes: usize,
    /// The last one that ended a query.
    last_end: u64,
}

impl Default for Requests {
    /// With room for what most clients need, who send one query at a time: idle clients keep it.
    fn default() -> Self {
        Self { queue: VecDeque::with_capacity(1), last: 0, ends: 0, noted: 0, bytes: 0, last_end: 0 }
    }
}

impl Requests {
    pub(crate) fn push(&mut self, kind: Kind) {
        self.add(kind, Whose::Clients, None);
    }

    pub(crate) fn push_noted(&mut self, kind: Kind, note: Note) {
        self.add(kind, Whose::Clients, Some(Box::new(note)));
    }

    pub(crate) fn push_hidden(&mut self, kind: Kind, note: Option<Note>) {
        self.add(kind, Whose::Ours, note.map(Box::new));
    }

    fn add(&mut self, kind: Kind, whose: Whose, note: Option<Box<Note>>) {
        self.last += 1;
        let request = Request { kind, whose, number: self.last, uses: 0, note };
        self.noted += usize::from(request.note.is_some());
        self.bytes += request.note.as_ref().map_or(0, |note| note.bytes());
        if request.is_an_end() {
            self.ends += 1;
            self.last_end = self.last;
        }
        self.queue.push_back(request);
    }

    /// It is not under way any more.
    fn leaves(&mut self, request: &Request) {
        self.noted -= usize::from(request.note.is_some());
        self.bytes -= request.note.as_ref().map_or(0, |note| note.bytes());
        self.ends -= usize::from(request.is_an_end());
    }

    /// One that uses a name, which this request gave.
    pub(crate) fn push_using(&mut self, kind: Kind, giver: u64) {
        self.add(kind, Whose::Clients, None);
        if let Some(request) = self.queue.back_mut() {
            request.uses = giver;
        }
    }

    /// A `Parse` of what the upstream has prepared: it uses the name that it gives.
    pub(crate) fn push_parse_as_describe(&mut self, note: Note) {
        self.push_noted(Kind::ParseAsDescribe, note);
        if let Some(request) = self.queue.back_mut() {
            request.uses = request.number;
        }
    }

    /// The number that the next request will have.
    pub(crate) fn next_number(&self) -> u64 {
        self.last + 1
    }

    pub(crate) fn front(&self) -> Option<&Request> {
        self.queue.front()
    }

    /// The last one, if it has this number.
    pub(crate) fn last_numbered(&self, number: u64) -> Option<&Request> {
        self.queue.back().filter(|last| last.number == number)
    }

    /// If what was skipped is all there was, up to one `Sync`: the answer to that is not the client's.
    pub(crate) fn hide_only_sync(&mut self) -> bool {
        let only = self.queue.len() == 1 && self.front_kind() == Some(Kind::Sync);
        if let (true, Some(sync)) = (only, self.queue.front_mut()) {
            sync.whose = Whose::Ours;
            self.ends = 0;
        }
        only
    }

    pub(crate) fn front_kind(&self) -> Option<Kind> {
        self.queue.front().map(|r| r.kind)
    }

    /// What the first one's answer must hold, if anything.
    pub(crate) fn front_proof(&self) -> Option<Proof> {
        match self.queue.front()?.note.as_deref() {
            Some(Note::Proof(proof)) => Some(*proof),
            _ => None,
        }
    }

    pub(crate) fn take_front_note(&mut self) -> Option<Box<Note>> {
        let note = self.queue.front_mut().and_then(|r| r.note.take());
        self.noted -= usize::from(note.is_some());
        self.bytes -= note.as_ref().map_or(0, |note| note.bytes());
        note
    }

    pub(crate) fn pop(&mut self) -> Option<Request> {
        let popped = self.queue.pop_front();
        popped.iter().for_each(|request| self.leaves(request));
        self.drop_unanswered();
        popped
    }

    /// What gets no answer is over when its turn comes.
    fn drop_unanswered(&mut self) {
        while self.front_kind() == Some(Kind::CopyEnd) {
            self.queue.pop_front();
        }
    }

    /// What was sent before the last `Sync`, is not answered yet, and has a note. It may fail, and what depends on it
    /// may then mean something else. (With what was sent behind the last `Sync`, whatever comes now fails as well.)
    fn notes_in_doubt(&self) -> impl Iterator<Item = &Note> {
        let end = if self.noted > 0 && self.ends > 0 { self.last_end } else { 0 };
        self.queue.iter().take_while(move |r| r.number <= end).filter_map(|r| r.note.as_deref())
    }

    /// Whether anything is in doubt.
    pub(crate) fn has_notes_in_doubt(&self) -> bool {
        self.notes_in_doubt().next().is_some()
    }

    /// Whether it depends on an answer to come what a name stands for.
    pub(crate) fn is_in_doubt(&self, name: &[u8]) -> bool {
        let name = significant(name);
        self.notes_in_doubt()
            .any(|note| matches!(note, Note::Named { name: changed, .. } if **changed == *name))
    }

    /// Whether it depends on an answer to come if the upstream has this statement.
    pub(crate) fn is_preparation_in_doubt(&self, id: u64) -> bool {
        self.notes_in_doubt().any(|note| match note {
            Note::Named { prepared, closed, .. } => [prepared, closed].contains(&&Some(id)),
            Note::Prepared(changed) | Note::Closed(changed) => *changed == id,
            _ => false,
        })
    }

    /// Whether it depends on an answer to come what the unnamed statement is, which this request made what it is.
    pub(crate) fn is_unnamed_in_doubt(&self, stamp: u64) -> bool {
        let is_under_way = self.queue.front().is_some_and(|front| front.number <= stamp);
        is_under_way && self.has_an_end() && stamp <= self.last_end
    }

    /// Whether a `Sync` or a `Query` came behind this request.
    pub(crate) fn is_of_earlier_batch(&self, number: u64) -> bool {
        number <= self.last_end
    }

    /// The number of the last one that ended a query.
    pub(crate) fn last_end(&self) -> u64 {
        self.last_end
    }

    /// True if an answer is awaited on which the transaction's status depends.
    pub(crate) fn has_an_end(&self) -> bool {
        self.ends > 0
    }

    /// The name that a request gave and another, under way, takes away again.
    pub(crate) fn name_taken(&self, giver: u64) -> Option<&[u8]> {
        self.queue.iter().find_map(|request| match request.note.as_deref() {
            Some(Note::Named { name, previous: Some(previous), .. }) if previous.request == giver => {
                Some(&**name)
            }
            _ => None,
        })
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        (self.ends, self.noted, self.bytes) = (0, 0, 0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many bytes are kept to take back what they did, or to say why they failed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// True if nothing but local answers is left: the upstream owes no answer.
    pub(crate) fn only_local(&self) -> bool {
        self.queue.iter().all(|r| matches!(r.kind, Kind::Local(_)))
    }

    /// Whether a `Sync` is among them.
    pub(crate) fn has_a_sync(&self) -> bool {
        self.queue.iter().any(|request| request.kind == Kind::Sync)
    }

    /// Takes everything before the next `Sync`, or all if there is none.
    pub(crate) fn skip_to_sync(&mut self) -> Skipped {
        let sync = self.queue.iter().position(|r| r.kind == Kind::Sync);
        let skipped: Vec<Request> = self.queue.drain(..sync.unwrap_or(self.queue.len())).collect();
        skipped.iter().for_each(|request| self.leaves(request));
        self.drop_unanswered();
        Skipped { requests: skipped, has_sync: sync.is_some() }
    }

    /// The front has turned out to be a COPY: the upstream reads and ignores the `Sync`s behind it, up to the end
    /// of the data. Whether that end was sent already, and whether there are such `Sync`s: if the COPY fails before it
    /// has read them, they are answered after all.
    pub(crate) fn begin_copy(&mut self) -> (bool, bool) {
        let (mut has_sync, mut at) = (false, 1);
        loop {
            match self.queue.get(at).map(|r| r.kind) {
                // It was never sent.
                Some(Kind::Local(_)) => at += 1,
                Some(Kind::Sync) => {
                    let ignored = self.queue.remove(at);
                    ignored.iter().for_each(|request| self.leaves(request));
                    has_sync = true;
                }
                Some(Kind::CopyEnd) => {
                    self.queue.remove(at);
                    return (true, has_sync);
                }
                _ => return (false, has_sync),
            }
        }
    }
}
