//! What a connection has prepared.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::shape::NO_SHAPE;

/// What one upstream connection has prepared, by the numbers under which it was prepared; the least recently used go first.
#[derive(Debug, Default)]
pub struct PreparedStatements {
    known: BTreeMap<u64, Use>,
    /// The newest of each shape.
    of_shape: BTreeMap<u64, u64>,
    /// When each was used, at the latest, the longest ago first: as it was when that was looked at.
    uses: BinaryHeap<Reverse<(u64, u64)>>,
    /// Nobody will ask for these any more: they are to be closed.
    stale: Vec<u64>,
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
    shape: u64,
    doubt: Doubt,
}

/// Whether the connection may have lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    No,
    Lost,
}

/// Whether a connection has a statement, and under which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It does not.
    No,
    /// It may have lost it.
    Doubted(u64),
    /// It does.
    Yes(u64),
}

impl PreparedStatements {
    /// Whether it has the one of this number; that counts as a use.
    pub fn hold(&mut self, number: u64) -> Held {
        self.clock += 1;
        match self.known.get_mut(&number) {
            None => Held::No,
            Some(used) => {
                used.last = self.clock;
                match used.doubt {
                    Doubt::No => Held::Yes(number),
                    Doubt::Lost => Held::Doubted(number),
                }
            }
        }
    }

    /// Whether it has one of this shape; that counts as a use.
    pub fn hold_shape(&mut self, shape: u64) -> Held {
        match self.of_shape.get(&shape) {
            None => Held::No,
            Some(number) => self.hold(*number),
        }
    }

    /// It has this one now. Answers which one must go to keep to the limit.
    pub fn insert(&mut self, number: u64, request: u64, limit: usize) -> Option<u64> {
        self.clock += 1;
        let (shape, doubt) = (NO_SHAPE, Doubt::No);
        self.known.insert(number, Use { last: self.clock, request, lease: self.lease, shape, doubt });
        if self.uses.len() > 2 * self.known.len() {
            // Of many that are there no more.
            self.uses = self.known.iter().map(|(number, used)| Reverse((used.last, *number))).collect();
        } else {
            self.uses.push(Reverse((self.clock, number)));
        }
        if self.known.len() <= limit.max(1) { None } else { self.take_oldest() }
    }

    /// Takes out the one that was not used for longest. Each use is looked at once, when its turn has come.
    fn take_oldest(&mut self) -> Option<u64> {
        loop {
            let Reverse((when, number)) = self.uses.pop()?;
            match self.known.get(&number) {
                Some(used) if used.last == when => {
                    self.remove(number);
                    return Some(number);
                }
                Some(used) if used.last > when => self.uses.push(Reverse((used.last, number))),
                _ => {}
            }
        }
    }

    /// The one of this number has this shape: it takes the place of another that has.
    pub fn describe(&mut self, number: u64, shape: u64) {
        let Some(used) = self.known.get_mut(&number) else { return };
        used.shape = shape;
        let before = self.of_shape.insert(shape, number).filter(|before| *before != number);
        self.stale.extend(before);
    }

    /// Nobody will ask for it any more.
    pub fn abandon(&mut self, number: u64) {
        self.hide(number);
        self.stale.push(number);
    }

    /// It has it after all, and nobody asks for it: it was to be closed.
    pub fn revive(&mut self, number: u64, request: u64) {
        self.insert(number, request, usize::MAX);
        self.stale.push(number);
    }

    /// It is not found by its shape any more.
    fn hide(&mut self, number: u64) {
        if let Some(used) = self.known.get(&number)
            && self.of_shape.get(&used.shape) == Some(&number)
        {
            self.of_shape.remove(&used.shape);
        }
    }

    /// Those that are to be closed now, which it has no more.
    pub fn take_stale(&mut self) -> Vec<u64> {
        let mut stale = std::mem::take(&mut self.stale);
        stale.retain(|number| self.known.contains_key(number));
        stale.iter().for_each(|number| self.remove(*number));
        stale
    }

    /// All that it has, but for this one: they are closed.
    pub fn take_all_but(&mut self, kept: Option<u64>) -> Vec<u64> {
        let all: Vec<u64> = self.known.keys().copied().filter(|number| Some(*number) != kept).collect();
        all.iter().for_each(|number| self.remove(*number));
        all
    }

    /// One that it has, if it has any: this one, if it can be.
    pub fn any(&self, rather: Held) -> Option<u64> {
        let any = || self.known.iter().find(|(_, used)| used.doubt == Doubt::No).map(|(number, _)| *number);
        match rather {
            Held::Yes(number) => Some(number),
            Held::No | Held::Doubted(_) => any(),
        }
    }

    /// It may have none of them any more.
    pub fn doubt_all(&mut self) {
        self.known.values_mut().for_each(|used| used.doubt = Doubt::Lost);
    }

    /// It does not have it after all.
    pub fn remove(&mut self, number: u64) {
        self.hide(number);
        self.known.remove(&number);
    }

    /// Everything prepared before this request of the present lease is gone.
    pub fn forget_before(&mut self, request: u64) {
        let lease = self.lease;
        self.known.retain(|_, used| used.lease == lease && used.request > request);
        let known = &self.known;
        self.of_shape.retain(|_, number| known.contains_key(number));
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

    fn numbers(prepared: &mut PreparedStatements, numbers: &[u64]) {
        for number in numbers {
            assert_eq!(prepared.insert(*number, *number, 9), None);
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut prepared = PreparedStatements::default();
        assert_eq!(prepared.insert(1, 1, 2), None);
        assert_eq!(prepared.insert(2, 2, 2), None);
        assert_eq!(prepared.hold(1), Held::Yes(1));
        assert_eq!(prepared.insert(3, 3, 2), Some(2));
        assert_eq!(
            (prepared.hold(1), prepared.hold(3), prepared.hold(2)),
            (Held::Yes(1), Held::Yes(3), Held::No)
        );
    }

    #[test]
    fn one_that_may_be_lost_is_not_one_that_is_there() {
        let mut prepared = PreparedStatements::default();
        assert_eq!(prepared.any(Held::No), None);
        numbers(&mut prepared, &[1]);
        prepared.doubt_all();
        let doubted = prepared.hold(1);
        assert_eq!((doubted, prepared.any(doubted)), (Held::Doubted(1), None));
        numbers(&mut prepared, &[2]);
        assert_eq!((prepared.hold(2), prepared.any(doubted)), (Held::Yes(2), Some(2)));
        assert_eq!(prepared.any(Held::Yes(2)), Some(2));
    }

    #[test]
    fn the_newest_of_a_shape_takes_the_place_of_the_others_which_are_closed() {
        let mut prepared = PreparedStatements::default();
        numbers(&mut prepared, &[1, 2, 3]);
        prepared.describe(1, 7);
        prepared.describe(2, 8);
        assert_eq!((prepared.hold_shape(7), prepared.hold_shape(9)), (Held::Yes(1), Held::No));
        prepared.describe(3, 7);
        assert_eq!(prepared.hold_shape(7), Held::Yes(3));
        assert_eq!((prepared.take_stale(), prepared.take_stale(), prepared.len()), (vec![1], vec![], 2));
        prepared.remove(3);
        assert_eq!((prepared.hold_shape(7), prepared.hold_shape(8)), (Held::No, Held::Yes(2)));
        prepared.forget_before(3);
        assert_eq!((prepared.hold_shape(8), prepared.len()), (Held::No, 0));
    }

    #[test]
    fn what_was_not_closed_after_all_is_closed_later() {
        let mut prepared = PreparedStatements::default();
        numbers(&mut prepared, &[1]);
        prepared.describe(1, 7);
        prepared.abandon(1);
        assert_eq!((prepared.hold_shape(7), prepared.take_stale()), (Held::No, vec![1]));
        prepared.revive(1, 2);
        assert_eq!((prepared.len(), prepared.take_stale(), prepared.len()), (1, vec![1], 0));
    }
}
