//! Schedules at random over the pools of a host: its promises hold, whatever happens in whatever order.

use proptest::prelude::*;

use super::*;

/// The pools of a host that perform what its ledger says, in memory.
#[derive(Default)]
struct Rig {
    ledger: HostLedger,
    pools: Vec<Pool>,
    /// The highest that `open` may be: the limit, or what was open when it was lowered.
    most: usize,
}

struct Pool {
    membership: Membership,
    permits: Vec<Permit>,
    retired: bool,
    left: bool,
}

#[derive(Debug, Clone)]
enum Act {
    Join,
    Reserve(usize, Purpose),
    GiveBack(usize, usize),
    Retire(usize),
    Leave(usize),
    Limit(usize),
    Starve(usize),
    Turn,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let any = any::<usize>;
    let purpose = prop::sample::select(&[Purpose::Pooled, Purpose::Pooled, Purpose::Apart][..]);
    let act = prop_oneof![
        2 => Just(Act::Join),
        12 => (any(), purpose).prop_map(|(pool, purpose)| Act::Reserve(pool, purpose)),
        6 => (any(), any()).prop_map(|(pool, at)| Act::GiveBack(pool, at)),
        1 => any().prop_map(Act::Retire),
        1 => any().prop_map(Act::Leave),
        2 => (0..12_usize).prop_map(Act::Limit),
        2 => any().prop_map(Act::Starve),
        1 => Just(Act::Turn),
    ];
    prop::collection::vec(act, 1..100)
}

impl Rig {
    fn of(limit: usize, pools: usize) -> Self {
        let mut rig = Self::default();
        rig.act(&Act::Limit(limit));
        (0..pools).for_each(|_| rig.act(&Act::Join));
        rig
    }

    fn reserve(&mut self, at: usize, purpose: Purpose) -> bool {
        let pool = &mut self.pools[at];
        let had_room = self.ledger.has_room(&pool.membership);
        let permit = self.ledger.reserve(&pool.membership, purpose);
        let reserved = permit.is_some();
        match purpose {
            Purpose::Pooled => {
                assert_eq!(had_room, reserved, "there is room where one can be reserved, and only there");
            }
            Purpose::Apart => assert!(had_room || !reserved, "what serves nobody comes after what does"),
        }
        pool.permits.extend(permit);
        match self.ledger.limit() {
            _ if pool.left => assert!(!reserved, "who has left reserves nothing"),
            None => assert!(reserved, "no limit refuses nobody"),
            Some(limit) => assert!(!reserved || self.ledger.open() <= limit),
        }
        reserved
    }

    /// Who has none is refused only where nothing at all is free.
    fn who_has_none_gets_what_is_free(&mut self) {
        for at in 0..self.pools.len() {
            let pool = &self.pools[at];
            let free = self.ledger.limit().is_none_or(|limit| self.ledger.open() < limit);
            let has_none = pool.permits.iter().all(|permit| permit.purpose == Purpose::Apart);
            if has_none && !pool.left {
                assert_eq!(self.ledger.has_room(&pool.membership), free);
            }
        }
    }

    fn act(&mut self, act: &Act) {
        let count = self.pools.len().max(1);
        match act {
            Act::Join => {
                let membership = self.ledger.join();
                self.pools.push(Pool { membership, permits: Vec::new(), retired: false, left: false });
            }
            Act::Limit(limit) => {
                self.ledger.set_limit(*limit);
                assert!(*limit > 0 || !self.ledger.is_starved());
                self.most = self.ledger.open().max(*limit);
            }
            Act::Turn => {
                let turns = self.ledger.next_turn();
                let mut sorted = turns.clone();
                sorted.sort_unstable();
                let there = self.pools.iter().filter(|pool| !pool.left);
                assert!(sorted.iter().copied().eq(there.map(|pool| pool.membership.number())), "each once");
                assert!(!self.ledger.is_starved() && self.ledger.fair_share().is_none());
            }
            _ if self.pools.is_empty() => {}
            Act::Reserve(at, purpose) => {
                self.reserve(at % count, *purpose);
            }
            Act::GiveBack(pool, at) => {
                let permits = &mut self.pools[pool % count].permits;
                if !permits.is_empty() {
                    let permit = permits.swap_remove(at % permits.len());
                    self.ledger.give_back(permit);
                }
            }
            Act::Retire(at) => {
                let pool = &mut self.pools[at % count];
                self.ledger.retire(&pool.membership);
                pool.retired = true;
            }
            Act::Leave(at) => {
                let pool = &mut self.pools[at % count];
                self.ledger.leave(&pool.membership);
                (pool.retired, pool.left) = (true, true);
            }
            Act::Starve(at) => {
                let pool = &self.pools[at % count];
                let before = self
                    .ledger
                    .pools
                    .iter()
                    .any(|(number, standing)| *number != pool.membership.number() && standing.starved);
                self.ledger.starve(&pool.membership);
                assert_eq!(
                    self.ledger.is_starved(),
                    before || !pool.left && self.ledger.limit().is_some(),
                    "where nothing is limited nobody is starved"
                );
            }
        }
        self.check();
    }

    /// By how much a pool is nearer to one more if another gives one back.
    fn gains(&self, pool: &Membership, giver: u64) -> bool {
        if self.ledger.has_room(pool) {
            return true;
        }
        let excess = |ledger: &HostLedger| {
            let has_none = ledger.pools[&pool.number].has_none();
            ledger.open + if has_none { 0 } else { ledger.kept(ledger.limit, Spared::None) }
        };
        let copy = |standing: &PoolShare| PoolShare { ..*standing };
        let mut pools: BTreeMap<u64, PoolShare> =
            self.ledger.pools.iter().map(|(number, standing)| (*number, copy(standing))).collect();
        if let Some(standing) = pools.get_mut(&giver) {
            standing.pooled -= 1;
        }
        let HostLedger { limit, open, joined, reserved, .. } = self.ledger;
        excess(&HostLedger { limit, open: open - 1, pools, joined, reserved }) < excess(&self.ledger)
    }

    fn check(&mut self) {
        let open = self.ledger.open();
        let parts: usize = self.pools.iter().map(|pool| pool.permits.len()).sum();
        assert_eq!(open, parts, "all is the sum of the parts");
        if self.ledger.limit().is_some() {
            // What is beyond a lowered limit comes back, and never goes out again.
            self.most = self.most.min(open.max(self.ledger.limit));
            assert!(open <= self.most, "{open} of {}", self.most);
        }
        for pool in &self.pools {
            let standing = self.ledger.pools.get(&pool.membership.number);
            let of_pool = |purpose| pool.permits.iter().filter(|p| p.purpose == purpose).count();
            match standing {
                Some(standing) => assert_eq!(
                    (standing.pooled, standing.apart),
                    (of_pool(Purpose::Pooled), of_pool(Purpose::Apart))
                ),
                None => assert!(pool.left && pool.permits.is_empty(), "who is there is not forgotten"),
            }
            let givers = self.ledger.givers(&pool.membership);
            for giver in &givers {
                assert!(self.ledger.pools[giver].pooled > 0, "it has one to spare");
                assert!(pool.left || self.gains(&pool.membership, *giver), "it is of use");
            }
            assert!(!givers.contains(&pool.membership.number()));
        }
        assert_eq!(self.ledger.is_starved(), self.ledger.fair_share().is_some());
        self.who_has_none_gets_what_is_free();
    }
}

proptest! {
    /// What is open is the sum of what the pools have, and never more than allowed but for a limit that was lowered; no limit
    /// refuses nobody; a pool that has none gets what comes free; who has left is forgotten with its last permit.
    #[test]
    fn the_promises_hold_whatever_happens(limit in 0..12_usize, pools in 0..6_usize, acts in acts()) {
        let mut rig = Rig::of(limit, pools);
        acts.iter().for_each(|act| rig.act(act));
        for at in 0..rig.pools.len() {
            rig.act(&Act::Leave(at));
            while !rig.pools[at].permits.is_empty() {
                rig.act(&Act::GiveBack(at, 0));
            }
        }
        prop_assert_eq!(rig.ledger.open(), 0);
        prop_assert!(rig.ledger.pools.is_empty());
    }

    /// Whatever the others take and give back: where there are no more pools than the limit, each that has none gets one at once,
    /// and where there are more, one pool alone leaves half of the limit. Who has retired keeps none from the others.
    #[test]
    fn who_has_none_is_kept_one_whatever_the_others_do(
        limit in 1..12_usize,
        pools in 1..16_usize,
        retired in 0..4_usize,
        acts in prop::collection::vec((any::<bool>(), any::<usize>()), 0..80),
    ) {
        let mut rig = Rig::of(limit, pools + retired);
        (pools..pools + retired).for_each(|at| rig.act(&Act::Retire(at)));
        let greedy = if pools <= limit { pools.div_ceil(2) } else { 1 };
        for (reserves, at) in acts {
            let act = if reserves { Act::Reserve(at % greedy, Purpose::Pooled) } else { Act::GiveBack(at % greedy, 0) };
            rig.act(&act);
        }
        takes(&mut rig, 0);
        let without: Vec<usize> = (0..pools).filter(|at| rig.pools[*at].permits.is_empty()).collect();
        let free = limit - rig.ledger.open();
        let kept = if pools <= limit { without.len() } else { without.len().min(limit / 2) };
        prop_assert_eq!(free, kept);
        prop_assert!(!without.iter().any(|at| rig.reserve(*at, Purpose::Apart)), "it is kept to be lent");
        let served = without.into_iter().filter(|at| rig.reserve(*at, Purpose::Pooled)).count();
        prop_assert_eq!(served, free);
    }

    /// Pools that always want more come to rest: some few closings, and then everybody has as many as everybody else, or one more,
    /// as far as the limit reaches. From then on nothing is closed for the sake of another.
    #[test]
    fn pools_that_always_want_more_share_equally_and_come_to_rest(
        limit in 1..16_usize,
        before in prop::collection::vec(0..8_usize, 2..6),
        returns in prop::collection::vec(any::<usize>(), 200..300),
    ) {
        let mut rig = Rig::of(limit, before.len());
        for (at, wants) in before.iter().enumerate() {
            (0..*wants).for_each(|_| { rig.reserve(at, Purpose::Pooled); });
        }
        try_all(&mut rig);
        let (mut closings, half) = (0, returns.len() / 2);
        for (round, at) in returns.iter().enumerate() {
            let at = at % before.len();
            let own = rig.pools[at].permits.len();
            if rig.ledger.fair_share().is_some_and(|share| own > share) {
                rig.act(&Act::GiveBack(at, 0));
                try_all(&mut rig);
                closings += 1;
                prop_assert!(round < half, "it is closed and opened for ever");
            }
        }
        prop_assert!(closings <= limit * before.len());
        let counts: Vec<usize> = rig.pools.iter().map(|pool| pool.permits.len()).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{counts:?} of {limit}");
        prop_assert_eq!(counts.iter().sum::<usize>(), limit);
    }
}

/// One was closed: all try to open more, in their turn.
fn try_all(rig: &mut Rig) {
    for number in rig.ledger.next_turn() {
        let at = rig.pools.iter().position(|pool| pool.membership.number() == number).unwrap();
        let within =
            |rig: &Rig| rig.ledger.fair_share().is_none_or(|share| rig.pools[at].permits.len() < share);
        (0..99).take_while(|_| within(rig) && rig.reserve(at, Purpose::Pooled)).count();
        if within(rig) {
            rig.act(&Act::Starve(at));
        }
    }
}

/// How many a pool can reserve; all that it can.
fn takes(rig: &mut Rig, at: usize) -> usize {
    (0..99).take_while(|_| rig.reserve(at, Purpose::Pooled)).count()
}

#[test]
fn a_pool_that_has_retired_is_kept_no_permit() {
    let mut rig = Rig::of(3, 3);
    let [dev, idle, busy] = [0, 1, 2];
    assert!(rig.reserve(busy, Purpose::Pooled));
    assert_eq!(takes(&mut rig, dev), 1, "one is kept for the idle one");
    rig.act(&Act::Retire(idle));
    rig.act(&Act::Retire(busy));
    assert_eq!(takes(&mut rig, dev), 1);
    rig.act(&Act::GiveBack(busy, 0));
    assert_eq!(takes(&mut rig, dev), 1);
    assert!(!rig.reserve(busy, Purpose::Pooled));
}

#[test]
fn a_pool_without_a_connection_is_kept_a_permit_and_no_more_than_half_of_all() {
    let mut rig = Rig::of(6, 2);
    assert_eq!((takes(&mut rig, 0), takes(&mut rig, 1)), (5, 1));
    rig.act(&Act::GiveBack(0, 0));
    assert_eq!(takes(&mut rig, 1), 1);
    let mut many = Rig::of(6, 20);
    assert_eq!(takes(&mut many, 0), 3);
    assert_eq!((1..20).filter(|at| many.reserve(*at, Purpose::Pooled)).count(), 3);
}

/// A listener counts, but is nothing that could be lent: who has only that is as starved as who has nothing.
#[test]
fn what_each_may_keep_counts_what_is_lent_to_sessions() {
    let mut rig = Rig::of(4, 2);
    rig.reserve(0, Purpose::Apart);
    assert_eq!(takes(&mut rig, 0), 2, "one is kept for the other");
    assert_eq!(takes(&mut rig, 1), 1);
    assert_eq!(rig.ledger.fair_share(), None, "nobody is starved");
    rig.act(&Act::Starve(1));
    assert_eq!(rig.ledger.fair_share(), Some(2), "who has one more than another keeps it");
    let mut rig = Rig::of(3, 2);
    rig.reserve(0, Purpose::Apart);
    assert_eq!(takes(&mut rig, 1), 1, "one is kept for who has none to lend");
    rig.act(&Act::Starve(0));
    assert_eq!(rig.ledger.fair_share(), Some(1), "it has none to lend");
    assert!(rig.reserve(0, Purpose::Pooled));
    let mut rig = Rig::of(6, 3);
    assert_eq!((takes(&mut rig, 0), rig.reserve(1, Purpose::Pooled)), (4, true));
    rig.act(&Act::Starve(1));
    assert_eq!(rig.ledger.fair_share(), Some(3), "who wants none has no part");
}

#[test]
fn who_is_starved_tries_first_and_of_these_who_has_fewest() {
    let mut rig = Rig::of(9, 4);
    for (at, count) in [(3, 1), (0, 3), (1, 2), (2, 1)] {
        (0..count).for_each(|_| assert!(rig.reserve(at, Purpose::Pooled)));
    }
    [0, 1].into_iter().for_each(|at| rig.act(&Act::Starve(at)));
    assert_eq!(rig.ledger.givers(&rig.pools[1].membership), [0, 2, 3], "whoever has most first");
    assert_eq!(rig.ledger.next_turn(), [1, 0, 3, 2], "then whoever has gone longest without");
    assert_eq!(rig.ledger.next_turn(), [3, 0, 1, 2], "they have tried");
    rig.act(&Act::Starve(0));
    assert!(rig.reserve(0, Purpose::Pooled) && !rig.ledger.is_starved(), "it has got what it wanted");
}

#[test]
fn a_limit_that_is_lowered_closes_nothing_and_opens_nothing_until_enough_have_come_back() {
    let mut rig = Rig::of(0, 2);
    assert_eq!((takes(&mut rig, 0), rig.ledger.limit()), (99, None));
    rig.act(&Act::Limit(98));
    assert_eq!((rig.ledger.open(), rig.ledger.limit()), (99, Some(98)));
    rig.act(&Act::GiveBack(0, 0));
    assert!(!rig.reserve(1, Purpose::Pooled));
    rig.act(&Act::GiveBack(0, 0));
    assert!(!rig.reserve(0, Purpose::Pooled), "it is kept for the other");
    assert!(rig.reserve(1, Purpose::Pooled));
    rig.act(&Act::Limit(0));
    assert!(rig.reserve(0, Purpose::Apart));
}

/// What a change of the configuration has made too many, or what is kept for more pools than the limit: whoever has most spares one
/// after the other, until there is room for who has less.
#[test]
fn as_many_are_spared_as_it_takes() {
    let spared = |rig: &mut Rig| {
        let mut spared = 0;
        while !rig.reserve(1, Purpose::Pooled) {
            assert_eq!(rig.ledger.givers(&rig.pools[1].membership), [0]);
            rig.act(&Act::GiveBack(0, 0));
            spared += 1;
        }
        spared
    };
    let full = |limit, pools, of_dev| {
        let mut rig = Rig::of(limit, pools);
        assert_eq!((takes(&mut rig, 0), rig.reserve(1, Purpose::Pooled)), (of_dev, true));
        rig
    };
    let mut rig = full(10, 2, 9);
    rig.act(&Act::Join);
    assert_eq!(spared(&mut rig), 2, "one for who has come");
    let mut rig = full(10, 2, 9);
    rig.act(&Act::Limit(6));
    assert_eq!(spared(&mut rig), 5);
    assert_eq!(spared(&mut full(6, 8, 3)), 2);
}

/// Whoever waits for one more does not have the only connection of another pool closed, of which only that pool could make use.
#[test]
fn the_last_connection_of_a_pool_is_spared_for_nobody_who_cannot_have_it() {
    let mut rig = Rig::of(4, 2);
    assert_eq!((takes(&mut rig, 0), rig.reserve(1, Purpose::Pooled)), (3, true));
    assert_eq!(rig.ledger.givers(&rig.pools[0].membership), []);
    assert_eq!(rig.ledger.givers(&rig.pools[1].membership), [0]);
    // No permit is kept for who has retired.
    rig.act(&Act::Retire(1));
    assert_eq!(rig.ledger.givers(&rig.pools[0].membership), [1]);
}
