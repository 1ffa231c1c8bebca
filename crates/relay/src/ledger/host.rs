//! A host's ledger: which pool may open one more connection to it, which must leave some to others, and whose turn it is.
//!
//! A permit is reserved before a connection is dialled. It goes with the dial into the connection, and comes back when either is
//! over: there is no moment at which a connection is open that was not counted before. Nobody can make a permit but the ledger,
//! give one back twice, or copy one.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub struct HostLedger {
    /// 0 is no limit.
    limit: usize,
    /// All permits that are out: those of each pool, added up.
    open: usize,
    pools: BTreeMap<u64, PoolShare>,
    joined: u64,
    reserved: u64,
}

/// How one pool stands.
#[derive(Debug, Default)]
struct PoolShare {
    /// Permits of connections that are lent to sessions.
    pooled: usize,
    /// Permits of the others.
    apart: usize,
    /// The number of its last reservation among all of the host.
    last: u64,
    /// It could not open a connection that somebody waits for.
    starved: bool,
    /// No permit is kept for it when it has none.
    retired: bool,
    /// It reserves nothing any more: forgotten with its last permit.
    left: bool,
}

impl PoolShare {
    /// It has none to lend: what is apart serves nobody who waits.
    fn has_none(&self) -> bool {
        self.pooled == 0
    }

    /// It has a part in what is kept and shared.
    fn counts(&self) -> bool {
        !(self.retired && self.has_none())
    }

    /// No permit of its own is out.
    fn is_empty(&self) -> bool {
        self.pooled + self.apart == 0
    }
}

/// A pool that has joined.
#[derive(Debug)]
pub struct Membership {
    number: u64,
}

impl Membership {
    /// The pool's number at this host; never used again for another.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// A connection that a pool spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spared {
    /// None at all.
    None,
    /// One of several.
    NotLast,
    /// Its last one: a permit is kept for it from then on.
    Last,
    /// The last one of a pool for which none is kept: it counts no more.
    LastOfRetired,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is lent to sessions.
    Pooled,
    /// It is the pool's own: it listens, or asks for functions.
    Apart,
}

/// The right to have one connection open, from before it is dialled until it is closed.
#[must_use = "what is reserved must be given back"]
#[derive(Debug)]
pub struct Permit {
    pool: u64,
    purpose: Purpose,
}

impl HostLedger {
    /// A pool joins, until it leaves ([`HostLedger::leave`]); a membership is of this ledger only.
    pub fn join(&mut self) -> Membership {
        let number = self.joined;
        self.joined += 1;
        self.pools.insert(number, PoolShare::default());
        Membership { number }
    }

    /// No route leads to it any more: it still reserves for those who are there, and nothing is kept for it.
    pub fn retire(&mut self, pool: &Membership) {
        if let Some(standing) = self.pools.get_mut(&pool.number) {
            standing.retired = true;
        }
    }

    /// It is gone and reserves nothing any more. What it has reserved counts until it is given back.
    pub fn leave(&mut self, pool: &Membership) {
        if let Some(standing) = self.pools.get_mut(&pool.number) {
            (standing.retired, standing.left, standing.starved) = (true, true, false);
        }
        self.forget(pool.number);
    }

    fn forget(&mut self, number: u64) {
        if self.pools.get(&number).is_some_and(|standing| standing.left && standing.is_empty()) {
            self.pools.remove(&number);
        }
    }

    /// Sets the maximum number of permits; 0 is no limit, and then nobody is starved. Where more are out, none is reserved until
    /// enough have come back.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        if limit == 0 {
            self.end_starvation();
        }
    }

    fn end_starvation(&mut self) {
        self.pools.values_mut().for_each(|standing| standing.starved = false);
    }

    /// The maximum number of permits, if there is one.
    pub fn limit(&self) -> Option<usize> {
        (self.limit > 0).then_some(self.limit)
    }

    /// How many permits are out.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Whether a pool may have one more to lend. Each pool that has none is kept one, or, where there are more pools than the
    /// limit, half of the limit is kept for them: who holds many, perhaps idle within transactions, keeps nobody out.
    pub fn has_room(&self, pool: &Membership) -> bool {
        self.has_room_for(pool, Purpose::Pooled)
    }

    /// What is kept for a pool is kept to be lent: one of its own has to leave it, as the others have.
    fn has_room_for(&self, pool: &Membership, purpose: Purpose) -> bool {
        let Some(standing) = self.pools.get(&pool.number).filter(|standing| !standing.left) else {
            return false;
        };
        let Some(limit) = self.limit() else { return true };
        let is_kept_for_it = standing.has_none() && purpose == Purpose::Pooled;
        let kept = if is_kept_for_it { 0 } else { self.kept(limit, Spared::None) };
        self.open + kept < limit
    }

    /// How many are kept for the pools that have none, if one of them had spared such a connection.
    fn kept(&self, limit: usize, spared: Spared) -> usize {
        let counted = || self.pools.values().filter(|standing| standing.counts());
        let without = counted().filter(|standing| standing.has_none()).count();
        let without = without + usize::from(spared == Spared::Last);
        let pools = counted().count().saturating_sub(usize::from(spared == Spared::LastOfRetired));
        if pools <= limit { without } else { without.min(limit / 2) }
    }

    /// A permit for one more connection; `None` if there is no room ([`HostLedger::has_room`]) or the pool has left.
    pub fn reserve(&mut self, pool: &Membership, purpose: Purpose) -> Option<Permit> {
        if !self.has_room_for(pool, purpose) {
            return None;
        }
        let standing = self.pools.get_mut(&pool.number)?;
        match purpose {
            Purpose::Pooled => standing.pooled += 1,
            Purpose::Apart => standing.apart += 1,
        }
        self.reserved += 1;
        (standing.last, standing.starved) = (self.reserved, false);
        self.open += 1;
        Some(Permit { pool: pool.number, purpose })
    }

    /// The connection was closed, or could not be opened. The permit must be of this ledger.
    #[expect(clippy::needless_pass_by_value, reason = "who has given it back has it no more")]
    pub fn give_back(&mut self, permit: Permit) {
        // The pool is there: it is forgotten with its last permit.
        let Some(standing) = self.pools.get_mut(&permit.pool) else { return };
        match permit.purpose {
            Purpose::Pooled => standing.pooled -= 1,
            Purpose::Apart => standing.apart -= 1,
        }
        self.open -= 1;
        self.forget(permit.pool);
    }

    /// A pool could not reserve what somebody waits for: the others leave it some, until the next turn. Nothing for a pool that
    /// has left, or where there is no limit any more.
    pub fn starve(&mut self, pool: &Membership) {
        let is_limited = self.limit().is_some();
        if let Some(standing) = self.pools.get_mut(&pool.number) {
            standing.starved = is_limited && !standing.left;
        }
    }

    /// Whether a pool has too few.
    pub fn is_starved(&self) -> bool {
        self.pools.values().any(|standing| standing.starved)
    }

    /// How many connections each pool may keep to lend while one is starved; `None` while none is. It is an equal part for each
    /// that has or wants some; but who has only one more than whoever is starved keeps it, or the one that is left of the
    /// division would be closed and opened for ever.
    pub fn fair_share(&self) -> Option<usize> {
        let least = self.pools.values().filter(|standing| standing.starved).map(|s| s.pooled).min()?;
        let active = self.pools.values().filter(|s| s.pooled > 0 || s.starved).count();
        Some((self.limit / active.max(1)).max(least + 1))
    }

    /// One was closed: the pools in the order in which they may try to reserve it. Those that are starved come first, of these
    /// the one with the fewest; then whoever has gone longest without. None counts as starved until it has tried.
    pub fn next_turn(&mut self) -> Vec<u64> {
        let mut turns: Vec<_> = self.pools.iter().filter(|(_, standing)| !standing.left).collect();
        turns.sort_by_key(|(_, s)| (!s.starved, if s.starved { s.pooled } else { 0 }, s.last));
        let turns = turns.into_iter().map(|(number, _)| *number).collect();
        self.end_starvation();
        turns
    }

    /// The other pools in the order in which they are asked to spare one: whoever has most first. Only those whose connection is
    /// of use to the one who asks: the last one of a pool leaves a permit that is kept for that pool. One may not be enough where
    /// the limit was lowered, or where a pool has come for which one is kept.
    pub fn givers(&self, pool: &Membership) -> Vec<u64> {
        let has_none = self.pools.get(&pool.number).is_some_and(PoolShare::has_none);
        let kept = |spared| if has_none { 0 } else { self.kept(self.limit, spared) };
        let is_of_use = |spared| kept(spared) <= kept(Spared::None) || self.open + kept(spared) <= self.limit;
        let [not_last, last, last_of_retired] =
            [Spared::NotLast, Spared::Last, Spared::LastOfRetired].map(is_of_use);
        let others = self.pools.iter().filter(|(number, other)| {
            **number != pool.number
                && match (other.pooled, other.retired) {
                    (0, _) => false,
                    (1, false) => last,
                    (1, true) => last_of_retired,
                    _ => not_last,
                }
        });
        let mut others: Vec<_> = others.collect();
        others.sort_by_key(|(_, standing)| std::cmp::Reverse(standing.pooled));
        others.into_iter().map(|(number, _)| *number).collect()
    }
}
