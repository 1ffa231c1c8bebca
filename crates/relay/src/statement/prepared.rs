//! What a connection has prepared.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::Statement;

/// The edition of a statement that a connection may have lost: no other one.
const DOUBTED: u64 = u64::MAX;

/// What one upstream connection has prepared; the least recently used go first.
#[derive(Debug, Default)]
pub struct Prepared {
    known: BTreeMap<u64, Use>,
    /// When each was used, at the latest, the longest ago first: as it was when that was looked at.
    uses: BinaryHeap<Reverse<(u64, u64)>>,
    clock: u64,
    /// Which lease it is: requests are numbered within one.
    lease: u64,
}

#[derive(Debug)]
struct Use {
    last: u64,
    /// The request that prepared it, and in which lease.
    request: u64,
    lease: u64,
    edition: u64,
}

/// Whether a connection has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It does not.
    No,
    /// Prepared before it was outdated; or it may have lost it.
    Outdated,
    /// It does.
    Yes,
}

impl Prepared {
    /// Whether it has one of this number; that counts as a use.
    pub fn touch(&mut self, id: u64) -> bool {
        self.used(id).is_some()
    }

    /// Whether it has this one; that counts as a use.
    pub fn hold(&mut self, statement: &Statement) -> Held {
        match self.used(statement.id) {
            None => Held::No,
            Some(edition) if edition != statement.edition() => Held::Outdated,
            Some(_) => Held::Yes,
        }
    }

    fn used(&mut self, id: u64) -> Option<u64> {
        self.clock += 1;
        let used = self.known.get_mut(&id)?;
        used.last = self.clock;
        Some(used.edition)
    }

    /// It has this edition of it now. Answers which one must go to keep to the limit.
    pub fn insert(&mut self, id: u64, edition: u64, request: u64, limit: usize) -> Option<u64> {
        self.clock += 1;
        self.known.insert(id, Use { last: self.clock, request, lease: self.lease, edition });
        if self.uses.len() > 2 * self.known.len() {
            // Of many that are there no more.
            self.uses = self.known.iter().map(|(id, used)| Reverse((used.last, *id))).collect();
        } else {
            self.uses.push(Reverse((self.clock, id)));
        }
        if self.known.len() <= limit.max(1) { None } else { self.take_oldest() }
    }

    /// Takes out the one that was not used for longest. Each use is looked at once, when its turn has come.
    fn take_oldest(&mut self) -> Option<u64> {
        loop {
            let Reverse((when, id)) = self.uses.pop()?;
            match self.known.get(&id) {
                Some(used) if used.last == when => {
                    self.known.remove(&id);
                    return Some(id);
                }
                Some(used) if used.last > when => self.uses.push(Reverse((used.last, id))),
                _ => {}
            }
        }
    }

    /// One that it has, if it has any: this one, if it can be.
    pub fn any(&self, rather: u64) -> Option<u64> {
        let has = |used: &Use| used.edition != DOUBTED;
        let any = || self.known.iter().find(|(_, used)| has(used)).map(|(id, _)| *id);
        self.known.get(&rather).is_some_and(has).then_some(rather).or_else(any)
    }

    /// It may have none of them any more.
    pub fn doubt_all(&mut self) {
        self.known.values_mut().for_each(|used| used.edition = DOUBTED);
    }

    /// It does not have it after all.
    pub fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// Everything prepared before this request of the present lease is gone.
    pub fn forget_before(&mut self, request: u64) {
        let lease = self.lease;
        self.known.retain(|_, u| u.lease == lease && u.request > request);
    }

    /// The lease is over: request numbers of the next one start anew.
    pub fn end_lease(&mut self) {
        self.lease += 1;
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Parameters;
    use crate::statement::Interner;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut prepared = Prepared::default();
        assert_eq!(prepared.insert(1, 0, 1, 2), None);
        assert_eq!(prepared.insert(2, 0, 2, 2), None);
        assert!(prepared.touch(1));
        assert_eq!(prepared.insert(3, 0, 3, 2), Some(2));
        assert!(prepared.touch(1) && prepared.touch(3) && !prepared.touch(2));
    }

    #[test]
    fn a_statement_that_may_be_lost_is_prepared_again_and_is_not_one_that_is_there() {
        let interner = Interner::new(7);
        let none = Parameters::default();
        let (one, other) = (interner.intern(b"x\0\0\0", "c", &none), interner.intern(b"y\0\0\0", "c", &none));
        let mut prepared = Prepared::default();
        assert_eq!(prepared.any(one.id()), None);
        prepared.insert(one.id(), one.edition(), 1, 9);
        prepared.doubt_all();
        assert_eq!((prepared.hold(&one), prepared.any(one.id())), (Held::Outdated, None));
        prepared.insert(other.id(), other.edition(), 2, 9);
        assert_eq!((prepared.hold(&other), prepared.any(one.id())), (Held::Yes, Some(other.id())));
        prepared.insert(one.id(), one.edition(), 3, 9);
        assert_eq!((prepared.hold(&one), prepared.any(one.id())), (Held::Yes, Some(one.id())));
    }

    #[test]
    fn an_outdated_statement_is_held_no_longer() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let mut prepared = Prepared::default();
        assert_eq!(prepared.hold(&statement), Held::No);
        prepared.insert(statement.id(), statement.edition(), 1, 2);
        assert_eq!(prepared.hold(&statement), Held::Yes);
        statement.outdate();
        assert_eq!(prepared.hold(&statement), Held::Outdated);
    }
}
