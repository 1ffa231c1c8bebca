//! What the upstream still owes answers to, in the order in which it was asked.

use std::collections::VecDeque;

use super::doubts::{Doubts, Subjects};
use super::teaching::Teaching;
use crate::reset::Proof;
use crate::statement::{Description, NamedStatement, Unnamed, significant};

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

    fn was_sent(&self) -> bool {
        !matches!(self.kind, Kind::Local(_))
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
    Transfer,
    Query,
    FunctionCall,
    Parse,
    ParseUnnamed,
    /// Of a name that is taken: it fails.
    ParseDuplicate,
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
        previous: Option<NamedStatement>,
        /// The number under which the upstream prepares it.
        prepared: Option<u64>,
    },
    /// The upstream prepares something under this number.
    Prepared(u64),
    /// The upstream closes what has this number.
    Closed(u64),
    /// What is to be learned from the answer.
    Lesson(Teaching),
    /// What the row must hold that answers it.
    Proof(Proof),
    /// It changed the unnamed statement, which was this one.
    Unnamed(Unnamed),
    /// The `ErrorResponse` to send in place of the upstream's.
    Refused(Vec<u8>),
    /// All of a local answer.
    Answer(Vec<u8>),
}

impl Note {
    /// What depends on whether its request fails.
    fn subjects(&self) -> Option<Subjects<'_>> {
        match self {
            Self::Named { name, prepared, .. } => Some(Subjects { name: Some(name), statement: *prepared }),
            Self::Prepared(number) | Self::Closed(number) => {
                Some(Subjects { name: None, statement: Some(*number) })
            }
            Self::Proof(_) | Self::Unnamed(_) | Self::Refused(_) | Self::Answer(_) | Self::Lesson(_) => None,
        }
    }

    /// How many bytes are kept for it.
    fn bytes(&self) -> usize {
        match self {
            Self::Named { name, previous, .. } => {
                name.len() + previous.as_ref().map_or(0, |named| named.statement.cost())
            }
            Self::Unnamed(previous) => previous.text.text().map_or(0, <[u8]>::len),
            Self::Refused(answer) | Self::Answer(answer) => answer.len(),
            Self::Prepared(_) | Self::Closed(_) | Self::Proof(_) | Self::Lesson(_) => 0,
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
    /// Most clients never have any.
    doubts: Option<Box<Doubts>>,
    /// Of all notes.
    bytes: usize,
    /// The last one that ended a query, and the last one that executed a portal.
    last_end: u64,
    last_executed: u64,
}

impl Requests {
    /// None is under way; the last one had this number, and all was ended that was asked.
    pub(crate) fn after(number: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            last: number,
            ends: 0,
            noted: 0,
            doubts: None,
            bytes: 0,
            last_end: number,
            last_executed: 0,
        }
    }

    pub(crate) fn push(&mut self, kind: Kind) {
        self.add(kind, Whose::Clients, None);
    }

    pub(crate) fn push_noted(&mut self, kind: Kind, note: Note) {
        self.add(kind, Whose::Clients, Some(Box::new(note)));
    }

    pub(crate) fn push_hidden(&mut self, kind: Kind, note: Option<Note>) {
        self.add(kind, Whose::Ours, note.map(Box::new));
    }

    #[inline]
    fn add(&mut self, kind: Kind, whose: Whose, note: Option<Box<Note>>) {
        if self.queue.capacity() == 0 {
            // What most clients need, who send one query at a time.
            self.queue.reserve_exact(1);
        }
        self.last += 1;
        let request = Request { kind, whose, number: self.last, uses: 0, note };
        if let Some(note) = &request.note {
            self.noted += 1;
            self.bytes += note.bytes();
            if let Some(subjects) = note.subjects() {
                self.doubts.get_or_insert_default().add(subjects, self.last, self.last_end);
            }
        }
        if request.is_an_end() {
            self.ends += 1;
            self.last_end = self.last;
        }
        if kind == Kind::Execute {
            self.last_executed = self.last;
        }
        self.queue.push_back(request);
    }

    /// It is not under way any more.
    fn leaves(&mut self, request: &Request) {
        if let Some(note) = &request.note {
            self.loses_note(note, request.number);
        }
        self.ends -= usize::from(request.is_an_end());
    }

    fn loses_note(&mut self, note: &Note, number: u64) {
        self.noted -= 1;
        self.bytes -= note.bytes();
        if let (Some(subjects), Some(doubts)) = (note.subjects(), &mut self.doubts) {
            doubts.remove(subjects, number);
        }
    }

    /// One that uses a name, which this request gave.
    pub(crate) fn push_using(&mut self, kind: Kind, giver: u64) {
        self.add(kind, Whose::Clients, None);
        if let Some(request) = self.queue.back_mut() {
            request.uses = giver;
        }
    }

    /// The number of the last one, under way or not.
    pub(crate) fn last_number(&self) -> u64 {
        self.last
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

    /// The `Sync` of ours that is the first ends what the client has asked.
    pub(crate) fn show_sync(&mut self) {
        if let Some(sync) = self.queue.front_mut().filter(|sync| sync.kind == Kind::Sync && sync.is_hidden())
        {
            sync.whose = Whose::Clients;
            self.ends += 1;
        }
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
        let front = self.queue.front_mut()?;
        let (note, number) = (front.note.take()?, front.number);
        self.loses_note(&note, number);
        Some(note)
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
            let over = self.queue.pop_front();
            over.iter().for_each(|request| self.leaves(request));
        }
    }

    /// Whether anything may be in doubt.
    pub(crate) fn has_notes_in_doubt(&self) -> bool {
        self.noted > 0 && self.ends > 0
    }

    /// Whether a request that was sent before the last `Sync` is not answered yet and has its note: it may fail, and what depends on
    /// it may then mean something else. (With what was sent behind the last `Sync`, whatever comes now fails as well.)
    fn is_note_in_doubt(&self, number: u64) -> bool {
        let has_its_note = |front: &Request| front.number < number || front.note.is_some();
        self.ends > 0 && self.queue.front().is_some_and(|front| front.number <= number && has_its_note(front))
    }

    /// Whether it depends on an answer to come what a name stands for.
    pub(crate) fn is_in_doubt(&self, name: &[u8]) -> bool {
        let of_name = |doubts: &Doubts| doubts.of_name(significant(name), self.last_end);
        self.is_note_in_doubt(self.doubts.as_deref().map_or(0, of_name))
    }

    /// Whether it depends on an answer to come if the upstream has this statement.
    pub(crate) fn is_preparation_in_doubt(&self, id: u64) -> bool {
        let of_statement = |doubts: &Doubts| doubts.of_statement(id, self.last_end);
        self.is_note_in_doubt(self.doubts.as_deref().map_or(0, of_statement))
    }

    /// Whether it depends on an answer to come what the unnamed statement is, which this request made what it is.
    pub(crate) fn is_unnamed_in_doubt(&self, stamp: u64) -> bool {
        let is_under_way = self.queue.front().is_some_and(|front| front.number <= stamp);
        is_under_way && self.has_an_end() && stamp <= self.last_end
    }

    /// Whether the request of this number is not answered yet.
    pub(crate) fn is_unanswered(&self, number: u64) -> bool {
        self.queue.front().is_some_and(|front| front.number <= number)
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

    /// The statement of a name that this request gave, and another, under way, has taken away, is told so.
    pub(crate) fn tell(&mut self, giver: u64, told: &Description) {
        for request in &mut self.queue {
            if let Some(Note::Named { previous: Some(named), .. }) = request.note.as_deref_mut()
                && named.request == giver
            {
                named.told = told.clone();
                return;
            }
        }
    }

    /// Whether it is still to be learned what the statement is whose name this request has given.
    pub(crate) fn is_lesson_under_way(&self, giver: u64) -> bool {
        let is_it = |request: &Request| matches!(request.note.as_deref(), Some(Note::Lesson(lesson)) if lesson.giver == giver);
        self.queue.iter().any(is_it)
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.doubts = None;
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
        !self.queue.iter().any(Request::was_sent)
    }

    /// True if nothing is left but local answers and queries of our own, which the client does not see: nothing of its own was
    /// sent.
    pub(crate) fn only_unseen(&self) -> bool {
        let is_ours = |request: &Request| request.is_hidden() && request.kind == Kind::Query;
        !self.queue.iter().any(|request| request.was_sent() && !is_ours(request))
    }

    /// Whether the last one ends a query: all of them are answered whatever the client does, or one of them fails.
    pub(crate) fn are_ended(&self) -> bool {
        self.last_end == self.last
    }

    /// True if an answer is awaited to a query that was ended before the last request.
    pub(crate) fn has_an_end_before_the_last(&self) -> bool {
        self.ends > self.queue.back().map_or(0, |last| usize::from(last.is_an_end()))
    }

    /// Whether nothing was executed since the last end of a query.
    pub(crate) fn has_executed_nothing(&self) -> bool {
        self.last_executed <= self.last_end
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

    /// The unnamed statement was never made what it is by this request, but had been this one: so says the first of those under way
    /// that has replaced it since.
    pub(crate) fn amend_unnamed(&mut self, stamp: u64, before: Unnamed) {
        let mut notes = self.queue.iter_mut().filter_map(|request| request.note.as_deref_mut());
        let first = notes.find(|note| matches!(note, Note::Unnamed(_)));
        if let Some(note) = first
            && matches!(note, Note::Unnamed(previous) if previous.stamp == stamp)
        {
            self.bytes -= note.bytes();
            *note = Note::Unnamed(before);
            self.bytes += note.bytes();
        }
    }

    /// The front has turned out to be a COPY: the upstream reads and ignores the `Sync`s behind it, up to the end
    /// of the data. Whether that end was sent already, and whether there are such `Sync`s: if the COPY fails before it
    /// has read them, they are answered after all.
    pub(crate) fn begin_copy(&mut self) -> (bool, bool) {
        if self.queue.is_empty() {
            return (false, false);
        }
        let behind = self.queue.iter().skip(1);
        let ignored = behind.take_while(|r| matches!(r.kind, Kind::Local(_) | Kind::Sync)).count();
        let is_ended = self.queue.get(1 + ignored).is_some_and(|request| request.kind == Kind::CopyEnd);
        let mut has_sync = false;
        let taken: Vec<Request> = self.queue.drain(1..1 + ignored + usize::from(is_ended)).collect();
        // What was never sent stays.
        let (stay, leave): (Vec<Request>, Vec<Request>) =
            taken.into_iter().partition(|request| !request.was_sent());
        leave.iter().for_each(|request| {
            has_sync |= request.kind == Kind::Sync;
            self.leaves(request);
        });
        stay.into_iter().rev().for_each(|request| self.queue.insert(1, request));
        (is_ended, has_sync)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Name(u8, Option<u64>),
        Prepared(u64),
        Closed(u64),
        Plain(Kind),
        Pop,
        TakeNote,
        SkipToSync,
        BeginCopy,
        Clear,
    }

    fn act() -> impl Strategy<Value = Act> {
        let id = || prop::option::of(0..3_u64);
        let kinds = vec![Kind::Sync, Kind::Sync, Kind::Query, Kind::Bind, Kind::Local(b'3'), Kind::CopyEnd];
        prop_oneof![
            4 => (0..3_u8, id()).prop_map(|(name, prepared)| Act::Name(name, prepared)),
            2 => (0..3_u64).prop_map(Act::Prepared),
            2 => (0..3_u64).prop_map(Act::Closed),
            5 => prop::sample::select(kinds).prop_map(Act::Plain),
            4 => Just(Act::Pop),
            1 => Just(Act::TakeNote),
            1 => Just(Act::SkipToSync),
            1 => Just(Act::BeginCopy),
            1 => Just(Act::Clear),
        ]
    }

    fn run(requests: &mut Requests, act: &Act) {
        match *act {
            Act::Name(name, prepared) => {
                let note = Note::Named { name: [name].into(), previous: None, prepared };
                requests.push_noted(Kind::Parse, note);
            }
            Act::Prepared(id) => requests.push_hidden(Kind::Parse, Some(Note::Prepared(id))),
            Act::Closed(id) => requests.push_hidden(Kind::Close, Some(Note::Closed(id))),
            Act::Plain(kind) => requests.push(kind),
            Act::Pop => drop(requests.pop()),
            Act::TakeNote => drop(requests.take_front_note()),
            Act::SkipToSync => drop(requests.skip_to_sync()),
            Act::BeginCopy => drop(requests.begin_copy()),
            Act::Clear => requests.clear(),
        }
    }

    /// By going through all of them: what was sent before the last `Sync` or `Query` and has a note like this.
    fn any(requests: &Requests, is_it: impl Fn(&Note) -> bool) -> bool {
        let end = if requests.ends > 0 { requests.last_end } else { 0 };
        let notes = requests.queue.iter().take_while(|r| r.number <= end).filter_map(|r| r.note.as_deref());
        notes.into_iter().any(is_it)
    }

    proptest! {
        #[test]
        fn what_is_in_doubt_is_what_is_found_by_going_through_all(acts in prop::collection::vec(act(), 0..80)) {
            let mut requests = Requests::after(0);
            for act in acts {
                run(&mut requests, &act);
                for thing in 0..3_u8 {
                    let id = u64::from(thing);
                    let of_name = any(&requests, |note| matches!(note, Note::Named { name, .. } if **name == [thing]));
                    let of_statement = any(&requests, |note| match note {
                        Note::Named { prepared, .. } => *prepared == Some(id),
                        Note::Prepared(changed) | Note::Closed(changed) => *changed == id,
                        _ => false,
                    });
                    prop_assert_eq!(requests.is_in_doubt(&[thing]), of_name);
                    prop_assert_eq!(requests.is_preparation_in_doubt(id), of_statement);
                    prop_assert!(requests.has_notes_in_doubt() || !of_name && !of_statement);
                }
                let notes = requests.queue.iter().filter_map(|request| request.note.as_deref());
                prop_assert_eq!(requests.bytes(), notes.map(Note::bytes).sum::<usize>());
            }
        }
    }

    /// A client may have thousands under way, and name something in thousands of messages that come in one piece. Not by the
    /// clock, but by how much longer it takes with a hundred times as many: least of all that was measured.
    #[test]
    fn what_is_in_doubt_is_not_searched_for() {
        let looks = |notes: u64| {
            let mut requests = Requests::after(0);
            for id in 0..notes {
                requests.push_noted(Kind::Parse, Note::Prepared(id));
            }
            requests.push(Kind::Sync);
            let round = || {
                let since = std::time::Instant::now();
                let found = (0..8000).filter(|id| requests.is_preparation_in_doubt(8000 + id)).count();
                assert_eq!((found, requests.is_in_doubt(b"~"), requests.only_local()), (0, false, false));
                since.elapsed()
            };
            (0..9).map(|_| round()).min().unwrap_or_default()
        };
        let (few, many) = (looks(80), looks(8000));
        assert!(many < 25 * few, "{few:?} with 80 under way, {many:?} with 8000");
    }

    #[test]
    fn a_copy_ignores_the_syncs_behind_it_up_to_its_end_and_nothing_else() {
        let of = |kinds: &[Kind]| {
            let mut requests = Requests::after(0);
            kinds.iter().for_each(|kind| requests.push(*kind));
            let (ended, has_sync) = requests.begin_copy();
            let left: Vec<_> = std::iter::from_fn(|| requests.pop()).map(|request| request.kind).collect();
            (ended, has_sync, left)
        };
        let local = Kind::Local(b'3');
        use Kind::{CopyEnd, Execute, Query, Sync};
        assert_eq!(of(&[Execute]), (false, false, vec![Execute]));
        assert_eq!(of(&[Execute, Sync, local, Sync]), (false, true, vec![Execute, local]));
        assert_eq!(
            of(&[Query, local, local, Sync, CopyEnd, Sync]),
            (true, true, vec![Query, local, local, Sync])
        );
        assert_eq!(of(&[Query, CopyEnd, CopyEnd]), (true, false, vec![Query]));
        assert_eq!(of(&[Query, Execute, Sync]), (false, false, vec![Query, Execute, Sync]));
    }
}
