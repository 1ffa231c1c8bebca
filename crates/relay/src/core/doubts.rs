//! Which names and statements depend on answers to come: found without going through what is under way.

use std::collections::BTreeMap;

/// What a request may change: a name of the session's, and whether the connection has what is prepared under this number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subjects<'a> {
    pub name: Option<&'a [u8]>,
    pub statement: Option<u64>,
}

/// What the requests under way may change.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    names: BTreeMap<Box<[u8]>, Changes>,
    /// On the connection.
    statements: BTreeMap<u64, Changes>,
}

/// The numbers of requests that change one thing; 0 for none.
#[derive(Debug, Clone, Copy, Default)]
struct Changes {
    /// The last one that ended a query came behind this one.
    before_end: u64,
    last: u64,
}

impl Changes {
    fn add(&mut self, number: u64, last_end: u64) {
        if self.last <= last_end {
            self.before_end = self.last;
        }
        self.last = number;
    }

    /// The last one behind which a query has ended.
    fn ended(self, last_end: u64) -> u64 {
        if self.last <= last_end { self.last } else { self.before_end }
    }
}

impl Doubts {
    /// The request of this number, which may change these, is under way from now on.
    pub(super) fn add(&mut self, subjects: Subjects<'_>, number: u64, last_end: u64) {
        if let Some(name) = subjects.name {
            self.names.entry(name.into()).or_default().add(number, last_end);
        }
        if let Some(id) = subjects.statement {
            self.statements.entry(id).or_default().add(number, last_end);
        }
    }

    /// It is not any more.
    pub(super) fn remove(&mut self, subjects: Subjects<'_>, number: u64) {
        let is_last = |changes: Option<&Changes>| changes.is_some_and(|changes| changes.last == number);
        if let Some(name) = subjects.name.filter(|name| is_last(self.names.get(*name))) {
            self.names.remove(name);
        }
        if let Some(id) = subjects.statement.filter(|id| is_last(self.statements.get(id))) {
            self.statements.remove(&id);
        }
    }

    /// The last request behind which a query has ended, of those that change this name; 0 if none does.
    pub(super) fn of_name(&self, name: &[u8], last_end: u64) -> u64 {
        self.names.get(name).map_or(0, |changes| changes.ended(last_end))
    }

    /// The same, of those that change whether the connection has this statement.
    pub(super) fn of_statement(&self, id: u64, last_end: u64) -> u64 {
        self.statements.get(&id).map_or(0, |changes| changes.ended(last_end))
    }
}
