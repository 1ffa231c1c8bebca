//! Schedules at random: whatever happens in whatever order, the ledger's promises hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use wire::startup::Settings;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Connection {
    number: u32,
    user: Option<UserName>,
    session: u64,
    kept: bool,
    clean: bool,
    startup: Option<Arc<Settings>>,
    epoch: u64,
    born: Duration,
    idle_since: Option<Duration>,
    home: Home,
}

impl Lendable for Connection {
    fn last_user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }
    fn last_session(&self) -> u64 {
        self.session
    }
    fn is_kept(&self) -> bool {
        self.kept
    }
    fn is_clean(&self) -> bool {
        self.clean
    }
    fn is_foreign_to(&self, user: &UserName) -> bool {
        !self.clean && self.user.as_ref() != Some(user)
    }
    fn startup(&self) -> Option<&Arc<Settings>> {
        self.startup.as_ref()
    }
    fn epoch(&self) -> u64 {
        self.epoch
    }
    fn born(&self) -> Duration {
        self.born
    }
    fn is_spoiled(&self) -> bool {
        false
    }
    fn idle_since(&mut self) -> &mut Option<Duration> {
        &mut self.idle_since
    }
    fn home(&self) -> Home {
        self.home
    }
}

/// A pool that performs what its ledger says, in memory.
struct Rig {
    ledger: Ledger<Connection, u32>,
    now: Duration,
    /// Who waits, by the order in which they came.
    waiting: BTreeSet<u32>,
    /// And how many have ended, each once.
    ended: BTreeSet<u32>,
    wanted: Vec<Wanted>,
    lent: Vec<Connection>,
    dialing: Vec<Dial<u32>>,
    opened: u32,
    /// As the host has counted them.
    of_host: usize,
    most: usize,
    /// How many the pool may have while another one of the host has too few.
    share: Option<usize>,
}

fn user(name: u8) -> UserName {
    ["ann", "bob", "cat"][usize::from(name % 3)].into()
}

fn own(value: u8) -> Arc<Settings> {
    Arc::new(Settings::ours([("work_mem", format!("{}MB", value % 2))]))
}

fn limits(size: usize, isolation: Isolation) -> Limits {
    Limits {
        size,
        reserve: 1,
        reserve_after: Duration::from_secs(3),
        min: 1,
        idle_timeout: Duration::from_secs(20),
        lifetime: Duration::from_secs(60),
        epoch: 1,
        isolation,
    }
}

impl Rig {
    fn new(size: usize, isolation: Isolation) -> Self {
        Self {
            ledger: Ledger::new(limits(size, isolation)),
            now: Duration::ZERO,
            waiting: BTreeSet::new(),
            ended: BTreeSet::new(),
            wanted: Vec::new(),
            lent: Vec::new(),
            dialing: Vec::new(),
            opened: 0,
            of_host: 0,
            most: size + 1 + 1,
            share: None,
        }
    }

    fn want(&mut self, wanted: Wanted) {
        let who = u32::try_from(self.wanted.len()).unwrap();
        self.wanted.push(wanted.clone());
        match self.ledger.lend(wanted.want()) {
            Some(connection) => {
                assert!(self.waiting.is_empty(), "somebody else waits");
                self.ended.insert(who);
                self.is_lent(who, connection);
            }
            None => {
                self.waiting.insert(who);
                self.ledger.wait(Queued { who, wanted, since: self.now });
            }
        }
        self.settle();
    }

    /// It must be for them, and is theirs from now on.
    fn is_lent(&mut self, who: u32, mut connection: Connection) {
        assert_eq!(self.ledger.occupancy().halted, None, "nothing is lent while it is halted");
        match &self.wanted[who as usize] {
            Wanted::Clean => assert!(connection.clean && connection.startup.is_none()),
            Wanted::Any(user) | Wanted::Own(user, _) => {
                if self.ledger.limits().isolation == Isolation::Strict {
                    assert!(
                        connection.user.as_ref().is_none_or(|last| last == user),
                        "it serves one user alone"
                    );
                }
                let startup = match &self.wanted[who as usize] {
                    Wanted::Own(_, startup) => Some(startup.clone()),
                    _ => None,
                };
                assert_eq!(connection.startup, startup, "it was opened with other settings");
                (connection.user, connection.clean) = (Some(user.clone()), false);
            }
        }
        self.lent.push(connection);
    }

    fn is_first(&mut self, who: u32) {
        assert_eq!(self.waiting.pop_first(), Some(who), "who came first is served first");
        assert!(self.ended.insert(who), "every want ends once");
    }

    fn place(&mut self, place: Disposition<Connection, u32>) {
        match place {
            Disposition::Grant(waiter, connection) => {
                self.is_first(waiter.who);
                self.is_lent(waiter.who, connection);
            }
            // Its place stays taken.
            Disposition::Replace(_, dial) => {
                let Dial::Own(who, _) = &dial else { panic!("{dial:?}") };
                self.is_first(*who);
                self.dialing.push(dial);
            }
            Disposition::Close(_) => self.of_host -= 1,
            Disposition::Idle => {}
        }
    }

    /// What a pool does when something has changed.
    fn settle(&mut self) {
        for _ in 0..100 {
            let share = self.share.unwrap_or(usize::MAX);
            let place = self.ledger.serve(share, || true);
            let served = place.is_some();
            place.into_iter().for_each(|place| self.place(place));
            let dial = self.ledger.dial(self.now, share);
            if let Some(dial) = dial {
                self.of_host += 1;
                if let Dial::Own(who, _) = &dial {
                    self.is_first(*who);
                }
                self.dialing.push(dial);
            } else if !served {
                return self.check();
            }
        }
        panic!("it does not come to rest");
    }

    fn check(&self) {
        let counts = self.ledger.occupancy();
        assert_eq!((counts.lent, counts.dialing), (self.lent.len(), self.dialing.len()));
        assert_eq!(counts.waiting, self.waiting.len());
        let all = counts.idle + counts.lent + counts.dialing;
        assert_eq!(all, self.of_host, "what is open is what the host has counted");
        assert!(all <= self.most, "{all} of {}", self.most);
        let held_up = counts.halted.is_some() || self.ledger.retry_at.is_some_and(|at| self.now < at);
        let in_sight = counts.lent + counts.dialing > 0 || counts.waiting == 0;
        assert!(in_sight || held_up, "whoever waits has something to wait for");
    }

    fn dialed(&mut self, at: usize, succeeds: bool) {
        if self.dialing.is_empty() {
            return;
        }
        let dial = self.dialing.swap_remove(at % self.dialing.len());
        let how = match dial {
            Dial::Plain => Dialed::Plain,
            Dial::Succeeding => Dialed::Succeeding,
            Dial::Own(..) => Dialed::Own,
        };
        if !succeeds {
            self.of_host -= 1;
            for who in self.ledger.dial_failed(how, self.now).refused {
                assert!(self.waiting.remove(&who) && self.ended.insert(who), "every want ends once");
            }
            return self.settle();
        }
        self.ledger.dialed(how);
        self.opened += 1;
        let (number, born) = (self.opened, self.now);
        let startup = if let Dial::Own(_, startup) = &dial { Some(startup.clone()) } else { None };
        let connection = Connection {
            number,
            user: None,
            session: 0,
            kept: false,
            clean: true,
            startup,
            epoch: 1,
            born,
            idle_since: None,
            home: 0,
        };
        match dial {
            // Its owner has it, also while nothing else is lent.
            Dial::Own(who, _) => {
                let Wanted::Own(user, _) = &self.wanted[who as usize] else { panic!("{who}") };
                self.lent.push(Connection { user: Some(user.clone()), clean: false, ..connection });
            }
            _ => {
                self.give_back(connection);
                if let Some(_closed) = self.ledger.take_predecessor() {
                    self.of_host -= 1;
                }
            }
        }
        self.settle();
    }

    fn give_back(&mut self, connection: Connection) {
        let (place, ages) = self.ledger.returned(connection, self.share);
        self.place(place);
        if ages && let Some(dial) = self.ledger.dial_successor(self.now, || true) {
            self.of_host += 1;
            self.dialing.push(dial);
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Want(wanted) => self.want(wanted.clone()),
            Act::Cancel(at) => {
                let who = self.waiting.iter().nth(at % self.waiting.len().max(1)).copied();
                if let Some(who) = who {
                    self.waiting.remove(&who);
                    self.ended.insert(who);
                    self.ledger.cancel(|other| *other == who);
                }
                self.settle();
            }
            Act::Return(at) if !self.lent.is_empty() => {
                let connection = self.lent.swap_remove(at % self.lent.len());
                self.give_back(connection);
                self.settle();
            }
            Act::Lose(at) if !self.lent.is_empty() => {
                self.lent.swap_remove(at % self.lent.len());
                self.ledger.lost();
                self.of_host -= 1;
                self.settle();
            }
            Act::Return(_) | Act::Lose(_) => {}
            Act::Dialed(at, succeeds) => self.dialed(*at, *succeeds),
            Act::Tick(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.of_host -= self.ledger.tick(self.now, |_| true).len();
                let dirty = self.ledger.lend_dirty(self.now);
                self.lent.extend(dirty.into_iter().map(|c| Connection { clean: true, ..c }));
                self.settle();
            }
            Act::Halt(halt) => {
                self.of_host -= self.ledger.halt(*halt).len();
                self.settle();
            }
            Act::Resume => {
                self.ledger.resume();
                self.settle();
            }
            Act::Share(share) => {
                self.share = *share;
                self.settle();
            }
            Act::Spare => {
                self.of_host -= usize::from(self.ledger.spare().is_some());
                self.settle();
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Want(Wanted),
    Cancel(usize),
    Return(usize),
    Lose(usize),
    Dialed(usize, bool),
    Tick(u64),
    Halt(Halt),
    Resume,
    Share(Option<usize>),
    Spare,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let wanted = prop_oneof![
        6 => any::<u8>().prop_map(|name| Wanted::Any(user(name))),
        3 => any::<(u8, u8)>().prop_map(|(name, value)| Wanted::Own(user(name), own(value))),
    ];
    let act = prop_oneof![
        6 => wanted.prop_map(Act::Want),
        1 => any::<usize>().prop_map(Act::Cancel),
        6 => any::<usize>().prop_map(Act::Return),
        1 => any::<usize>().prop_map(Act::Lose),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(at, succeeds)| Act::Dialed(at, succeeds)),
        3 => (0..30_u64).prop_map(Act::Tick),
        1 => prop::sample::select(&[Halt::Paused, Halt::Suspended][..]).prop_map(Act::Halt),
        2 => Just(Act::Resume),
        2 => prop::option::of(1..4_usize).prop_map(Act::Share),
        1 => Just(Act::Spare),
    ];
    prop::collection::vec(act, 1..80)
}

proptest! {
    /// What is lent, idle and dialled is what is open, and never more than allowed; first come, first served; nothing is lent
    /// while it is halted; every want ends exactly once; nobody waits for nothing; and when all is given back, nobody waits.
    #[test]
    fn the_promises_hold_whatever_happens(
        acts in acts(),
        size in 1..5_usize,
        isolation in prop::sample::select(&[Isolation::User, Isolation::Strict, Isolation::Shared][..]),
    ) {
        let mut rig = Rig::new(size, isolation);
        acts.iter().for_each(|act| rig.act(act));
        rig.act(&Act::Resume);
        for _ in 0..400 {
            rig.act(&Act::Tick(2));
            rig.act(&Act::Dialed(0, true));
            rig.act(&Act::Return(0));
        }
        prop_assert!(rig.waiting.is_empty(), "{:?} still wait", rig.waiting);
        prop_assert_eq!(rig.ended.len(), rig.wanted.len());
    }
}

fn rig(size: usize) -> Rig {
    Rig::new(size, Isolation::User)
}

/// As many as fit are opened, and each is given back by its user.
fn used_by(rig: &mut Rig, users: &[u8]) {
    users.iter().for_each(|name| rig.act(&Act::Want(Wanted::Any(user(*name)))));
    users.iter().for_each(|_| rig.act(&Act::Dialed(0, true)));
    users.iter().for_each(|_| rig.act(&Act::Return(0)));
}

#[test]
fn among_idle_connections_the_users_own_is_chosen_then_the_newest() {
    let mut rig = rig(3);
    used_by(&mut rig, &[0, 1]);
    let of =
        |rig: &Rig, name: u8| rig.ledger.idle().iter().find(|c| c.user == Some(user(name))).unwrap().number;
    let (ann, bob) = (of(&rig, 0), of(&rig, 1));
    let lend = |rig: &mut Rig, name: u8| rig.ledger.lend(Want::Any(&user(name))).unwrap().number;
    assert_eq!((lend(&mut rig, 0), lend(&mut rig, 2)), (ann, bob), "a reset before a dial");
    assert!(rig.ledger.lend(Want::Any(&user(0))).is_none());
}

#[test]
fn among_idle_connections_the_sessions_own_is_chosen_before_the_users() {
    let mut ledger = lent(limits(3, Isolation::User), 3);
    for (number, session, name) in [(1, 7, 0), (2, 8, 0), (3, 9, 1)] {
        let used = Connection { session, ..connection(number, Some(name), 0) };
        assert_eq!(ends(&ledger.returned(used, None).0), "idle");
    }
    let lend = |ledger: &mut Ledger<Connection, u32>, name, session| {
        let one = ledger.lend_to(Want::Any(&user(name)), Asker { session, home: 0 }).unwrap();
        let number = one.number;
        assert_eq!(ends(&ledger.returned(one, None).0), "idle");
        number
    };
    assert_eq!(lend(&mut ledger, 0, 7), 1, "its own, though another of the user's is newer");
    assert_eq!(lend(&mut ledger, 0, 8), 2);
    assert_eq!((lend(&mut ledger, 0, 5), lend(&mut ledger, 0, 0)), (2, 2), "it has none: the user's newest");
    assert_eq!(lend(&mut ledger, 1, 7), 3, "another user's is not its own");
}

#[test]
fn what_a_session_may_come_back_for_is_lent_to_others_last_and_the_oldest_first() {
    let mut ledger = lent(limits(4, Isolation::User), 4);
    for (number, session, kept) in [(1, 7, true), (2, 8, false), (3, 9, true), (4, 10, true)] {
        let used = Connection { session, kept, ..connection(number, Some(0), 0) };
        assert_eq!(ends(&ledger.returned(used, None).0), "idle");
    }
    let mut lend = |session| ledger.lend_to(Want::Any(&user(0)), Asker { session, home: 0 }).unwrap().number;
    assert_eq!(lend(9), 3, "its own");
    assert_eq!((lend(1), lend(1), lend(1)), (2, 1, 4));
}

#[test]
fn where_the_host_has_no_room_as_many_make_way_as_are_needed() {
    let mut rig = Rig::new(4, Isolation::Strict);
    used_by(&mut rig, &[0, 0]);
    assert_eq!(rig.ledger.occupancy().idle, 2);
    assert!(rig.ledger.lend(Want::Any(&user(1))).is_none(), "they serve one user alone");
    rig.ledger.wait(Queued { who: 9, wanted: Wanted::Any(user(1)), since: rig.now });
    assert!(matches!(rig.ledger.serve(usize::MAX, || false), Some(Disposition::Close(_))));
    assert!(matches!(rig.ledger.dial(rig.now, 9), Some(Dial::Plain)));
    assert!(rig.ledger.serve(usize::MAX, || false).is_none(), "one is on its way");
}

/// The host may have room that this pool leaves to the others: then nothing is opened, and what is of no use makes way.
#[test]
fn where_the_pool_has_its_share_one_makes_way_though_the_host_has_room() {
    let mut rig = Rig::new(4, Isolation::Strict);
    used_by(&mut rig, &[0]);
    rig.ledger.wait(Queued { who: 9, wanted: Wanted::Any(user(1)), since: rig.now });
    assert!(rig.ledger.serve(2, || true).is_none(), "one more may be opened");
    assert!(!rig.ledger.wants_one(rig.now, 1));
    assert!(matches!(rig.ledger.serve(1, || true), Some(Disposition::Close(_))));
    assert!(rig.ledger.wants_one(rig.now, 1));
}

#[test]
fn a_session_of_its_own_settings_waits_in_the_same_queue_and_a_pause_holds_it() {
    let mut rig = rig(1);
    rig.act(&Act::Halt(Halt::Paused));
    rig.act(&Act::Want(Wanted::Own(user(0), own(1))));
    assert!(rig.dialing.is_empty() && rig.waiting.len() == 1, "a pause is for everybody");
    rig.act(&Act::Resume);
    assert!(matches!(rig.dialing[..], [Dial::Own(0, _)]));
    rig.act(&Act::Dialed(0, true));
    rig.act(&Act::Want(Wanted::Any(user(1))));
    rig.act(&Act::Want(Wanted::Own(user(2), own(0))));
    rig.act(&Act::Want(Wanted::Any(user(1))));
    rig.act(&Act::Return(0));
    // What was opened for the first one is of no use to the second, who gets another; only then comes the third.
    assert_eq!(rig.waiting.len(), 3);
    rig.act(&Act::Dialed(0, true));
    assert_eq!(rig.waiting.len(), 2);
    rig.act(&Act::Return(0));
    assert!(matches!(rig.dialing[..], [Dial::Own(2, _)]) && rig.waiting.len() == 1);
}

#[test]
fn what_is_wrong_with_one_clients_settings_is_told_to_nobody_else() {
    let mut rig = rig(1);
    rig.act(&Act::Want(Wanted::Own(user(0), own(1))));
    rig.act(&Act::Want(Wanted::Any(user(1))));
    rig.act(&Act::Dialed(0, false));
    assert_eq!(rig.waiting.len(), 1);
    rig.act(&Act::Dialed(0, false));
    assert!(
        rig.waiting.is_empty() && rig.ledger.occupancy().failing,
        "there is nothing that they could still get"
    );
}

#[test]
fn retries_wait_twice_as_long_each_time_up_to_a_second() {
    let mut ledger: Ledger<Connection, u32> = Ledger::new(limits(1, Isolation::User));
    let mut now = Duration::ZERO;
    let waits: Vec<u128> = (0..8)
        .map(|who| {
            ledger.wait(Queued { who, wanted: Wanted::Any(user(0)), since: now });
            assert!(matches!(ledger.dial(now, 9), Some(Dial::Plain)));
            assert!(ledger.dial(now, 9).is_none(), "one is on its way");
            let failure = ledger.dial_failed(Dialed::Plain, now);
            assert_eq!(failure.refused, [who]);
            ledger.wait(Queued { who, wanted: Wanted::Any(user(0)), since: now });
            assert!(ledger.dial(now, 9).is_none(), "not yet");
            ledger.cancel(|other| *other == who);
            now += failure.again_after;
            failure.again_after.as_millis()
        })
        .collect();
    assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
}

#[test]
fn those_who_have_waited_long_may_have_the_reserve() {
    let mut rig = rig(1);
    rig.act(&Act::Want(Wanted::Any(user(0))));
    rig.act(&Act::Dialed(0, true));
    rig.act(&Act::Want(Wanted::Any(user(1))));
    assert!(rig.dialing.is_empty());
    rig.act(&Act::Tick(3));
    assert_eq!(rig.dialing.len(), 1);
    rig.act(&Act::Dialed(0, true));
    assert_eq!(rig.lent.len(), 2);
    rig.act(&Act::Return(0));
    assert_eq!(rig.ledger.occupancy().idle, 0, "the reserve is closed when nobody waits");
}

#[test]
fn a_connection_that_grows_old_is_succeeded_before_it_goes() {
    let mut rig = rig(1);
    rig.act(&Act::Want(Wanted::Any(user(0))));
    rig.act(&Act::Dialed(0, true));
    rig.act(&Act::Tick(50));
    rig.act(&Act::Return(0));
    assert!(matches!(rig.dialing[..], [Dial::Succeeding]), "{:?}", rig.dialing);
    assert_eq!(rig.ledger.occupancy().idle, 1);
    rig.act(&Act::Dialed(0, true));
    assert_eq!(rig.ledger.idle().iter().map(|c| c.number).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_retired_pool_keeps_nothing_and_a_stranded_one_serves_nobody() {
    let mut rig = rig(2);
    rig.act(&Act::Want(Wanted::Any(user(0))));
    rig.act(&Act::Dialed(0, true));
    rig.ledger.retire();
    rig.act(&Act::Return(0));
    assert_eq!((rig.ledger.occupancy().idle, rig.of_host), (0, 0));
    let mut stranded = Rig::new(1, Isolation::User);
    stranded.act(&Act::Halt(Halt::Suspended));
    stranded.ledger.retire();
    assert!(stranded.ledger.is_stranded() && !stranded.ledger.resume());
}

#[test]
fn idle_connections_that_are_dead_outworn_or_too_long_idle_are_closed_down_to_the_least() {
    let mut rig = rig(3);
    used_by(&mut rig, &[0, 1, 2]);
    assert_eq!(rig.ledger.tick(Duration::from_secs(1), |c| c.number != 2).len(), 1);
    assert!(rig.ledger.tick(Duration::from_secs(21), |_| true).is_empty());
    assert_eq!(rig.ledger.tick(Duration::from_secs(22), |_| true).len(), 1, "one stays");
    rig.ledger.update(Limits { epoch: 2, ..limits(3, Isolation::User) });
    assert_eq!(rig.ledger.tick(Duration::from_secs(22), |_| true).len(), 1, "of other settings");
}

/// A connection that the test holds, without a rig.
fn connection(number: u32, last: Option<u8>, born: u64) -> Connection {
    Connection {
        number,
        user: last.map(user),
        session: 0,
        kept: false,
        clean: last.is_none(),
        startup: None,
        epoch: 1,
        born: Duration::from_secs(born),
        idle_since: None,
        home: 0,
    }
}

/// So many connections are open and lent.
fn lent(limits: Limits, count: usize) -> Ledger<Connection, u32> {
    let mut ledger = Ledger::new(limits);
    (0..count).for_each(|_| open(&mut ledger));
    ledger
}

fn open(ledger: &mut Ledger<Connection, u32>) {
    ledger.wait(Queued { who: 99, wanted: Wanted::Any(user(0)), since: Duration::ZERO });
    let dial = ledger.dial(Duration::from_secs(9), usize::MAX);
    assert!(matches!(dial, Some(Dial::Plain)));
    ledger.dialed(Dialed::Plain);
    ledger.cancel(|who| *who == 99);
}

fn wants(ledger: &mut Ledger<Connection, u32>, who: u32, wanted: Wanted) {
    ledger.wait(Queued { who, wanted, since: Duration::ZERO });
}

fn ends(place: &Disposition<Connection, u32>) -> &'static str {
    match place {
        Disposition::Grant(..) => "grant",
        Disposition::Replace(..) => "replace",
        Disposition::Close(_) => "close",
        Disposition::Idle => "idle",
    }
}

#[test]
fn who_could_not_be_given_a_connection_after_all_comes_first_again() {
    let mut ledger = lent(limits(2, Isolation::User), 2);
    wants(&mut ledger, 1, Wanted::Any(user(0)));
    wants(&mut ledger, 2, Wanted::Any(user(0)));
    let (Disposition::Grant(first, _), _) = ledger.returned(connection(1, None, 0), None) else { panic!() };
    ledger.lost();
    ledger.wait_first(first);
    let (Disposition::Grant(again, _), _) = ledger.returned(connection(2, None, 0), None) else { panic!() };
    assert_eq!(again.who, 1);
}

#[test]
fn what_comes_back_is_closed_where_it_is_one_too_many_and_kept_where_it_is_not() {
    // As many as there may be, and then one more than another pool of the host leaves.
    for (open, share, expected) in [(2, None, "idle"), (2, Some(2), "idle"), (2, Some(1), "close")] {
        let mut ledger = lent(limits(2, Isolation::User), open);
        assert_eq!(ends(&ledger.returned(connection(1, None, 0), share).0), expected, "{open} {share:?}");
    }
    // Of the reserve: for whoever waits, and for nobody else.
    for (waits, expected) in [(true, "grant"), (false, "close")] {
        let mut ledger = lent(limits(1, Isolation::User), 1);
        wants(&mut ledger, 1, Wanted::Any(user(0)));
        assert!(ledger.dial(Duration::from_secs(2), 9).is_none(), "not yet");
        assert!(ledger.dial(Duration::from_secs(3), 9).is_some());
        ledger.dialed(Dialed::Plain);
        if !waits {
            ledger.cancel(|who| *who == 1);
        }
        assert_eq!(ends(&ledger.returned(connection(1, None, 0), None).0), expected);
    }
    // With fewer places than before, even whoever waits gets none of what is beyond the reserve.
    let mut ledger = lent(limits(4, Isolation::User), 4);
    ledger.update(limits(2, Isolation::User));
    wants(&mut ledger, 1, Wanted::Any(user(0)));
    assert_eq!(ends(&ledger.returned(connection(1, None, 0), None).0), "close");
    assert_eq!(ends(&ledger.returned(connection(2, None, 0), None).0), "grant");
}

#[test]
fn what_is_outworn_or_of_a_pool_that_pauses_is_closed_and_a_suspended_pool_keeps_it() {
    let mut other = connection(1, None, 0);
    other.epoch = 2;
    let mut ledger = lent(limits(3, Isolation::User), 3);
    assert_eq!(ends(&ledger.returned(other, None).0), "close");
    assert!(ledger.tick(Duration::from_secs(60), |_| true).is_empty());
    assert_eq!(ends(&ledger.returned(connection(2, None, 0), None).0), "idle", "as old as it may be");
    assert_eq!(ledger.tick(Duration::from_secs(61), |_| true).len(), 1, "older than it may be");
    assert_eq!(ends(&ledger.returned(connection(3, None, 0), None).0), "close");
    for (halt, expected) in [(Halt::Paused, "close"), (Halt::Suspended, "idle")] {
        let mut ledger = lent(limits(1, Isolation::User), 1);
        ledger.halt(halt);
        wants(&mut ledger, 1, Wanted::Any(user(0)));
        assert_eq!(ends(&ledger.returned(connection(1, None, 0), None).0), expected, "{halt:?}");
        assert!(
            ledger.serve(usize::MAX, || true).is_none() && ledger.dial(Duration::from_secs(9), 9).is_none()
        );
    }
    let mut retired = lent(limits(2, Isolation::User), 2);
    retired.retire();
    assert!(retired.is_retired() && !retired.is_stranded());
    wants(&mut retired, 1, Wanted::Any(user(0)));
    assert_eq!(ends(&retired.returned(connection(1, None, 0), None).0), "grant", "whoever waits is served");
    assert_eq!(ends(&retired.returned(connection(2, None, 0), None).0), "close");
    assert!(!lent(limits(1, Isolation::User), 1).is_retired());
}

#[test]
fn a_client_is_given_what_was_opened_for_its_settings_and_its_user_alone() {
    let of = |last: u8, value: u8| Connection { startup: Some(own(value)), ..connection(1, Some(last), 0) };
    let wanted = || Wanted::Own(user(0), own(1));
    for (isolation, came, expected) in [
        (Isolation::User, of(0, 1), "grant"),
        (Isolation::User, of(1, 1), "grant"),
        (Isolation::Strict, of(0, 1), "grant"),
        (Isolation::Strict, of(1, 1), "replace"),
        (Isolation::User, of(0, 0), "replace"),
        (Isolation::User, connection(1, Some(0), 0), "replace"),
    ] {
        let mut ledger = lent(limits(1, isolation), 1);
        wants(&mut ledger, 1, wanted());
        assert_eq!(ends(&ledger.returned(came.clone(), None).0), expected, "{isolation:?} {came:?}");
        let mut idle = lent(limits(1, isolation), 1);
        assert_eq!(ends(&idle.returned(came.clone(), None).0), "idle");
        assert_eq!(idle.lend(wanted().want()).is_some(), expected == "grant", "{isolation:?} {came:?}");
    }
    // The pool itself uses only what nobody has used.
    for (came, expected) in [(connection(1, None, 0), "grant"), (connection(1, Some(0), 0), "close")] {
        let mut ledger = lent(limits(1, Isolation::User), 1);
        wants(&mut ledger, 1, Wanted::Clean);
        assert_eq!(ends(&ledger.returned(came, None).0), expected);
    }
    let mut ledger = lent(limits(1, Isolation::User), 1);
    wants(&mut ledger, 1, Wanted::Clean);
    let clean_of_a_client = Connection { startup: Some(own(1)), ..connection(1, None, 0) };
    assert_eq!(ends(&ledger.returned(clean_of_a_client.clone(), None).0), "close");
    let mut idle = lent(limits(1, Isolation::User), 1);
    assert_eq!(ends(&idle.returned(clean_of_a_client, None).0), "idle");
    assert!(idle.lend(Want::Clean).is_none() && idle.lend(Want::Any(&user(0))).is_none());
}

#[test]
fn one_successor_at_a_time_is_opened_and_none_where_it_would_be_of_no_use() {
    let now = Duration::from_secs(50);
    let ageing = |halt: Option<Halt>, retired: bool, failed: bool| {
        let mut ledger = lent(limits(2, Isolation::User), 1);
        if failed {
            wants(&mut ledger, 1, Wanted::Any(user(0)));
            ledger.dial(now, 9).unwrap();
            ledger.dial_failed(Dialed::Plain, now);
            ledger.cancel(|who| *who == 1);
        }
        halt.into_iter().for_each(|halt| drop(ledger.halt(halt)));
        if retired {
            ledger.retire();
        }
        ledger
    };
    assert!(ageing(Some(Halt::Suspended), false, false).dial_successor(now, || true).is_none());
    assert!(ageing(None, true, false).dial_successor(now, || true).is_none());
    assert!(ageing(None, false, true).dial_successor(now, || true).is_none());
    let later = now + Duration::from_millis(50);
    assert!(ageing(None, false, true).dial_successor(later, || true).is_some());
    let mut ledger = ageing(None, false, false);
    assert!(ledger.dial_successor(now, || false).is_none(), "the host has no room");
    assert!(matches!(ledger.dial_successor(now, || true), Some(Dial::Succeeding)));
    assert!(ledger.dial_successor(now, || true).is_none(), "one is on its way");
    ledger.dial_failed(Dialed::Succeeding, now);
    assert!(ledger.dial_successor(later, || true).is_some(), "that one has not come");
    ledger.dialed(Dialed::Succeeding);
    assert!(ledger.dial_successor(later, || true).is_none(), "its predecessor is still there");
    let mut busy: Ledger<Connection, u32> = Ledger::new(limits(20, Isolation::User));
    (0..20).for_each(|who| wants(&mut busy, who, Wanted::Any(user(0))));
    assert_eq!(std::iter::from_fn(|| busy.dial(now, 99)).count(), MAX_DIALING);
    assert!(busy.dial_successor(now, || true).is_none(), "so many are on their way");
}

/// The place beyond those of the pool is taken as long as both are there, and by no one else.
#[test]
fn a_successor_is_one_more_only_until_its_predecessor_is_gone() {
    let now = Duration::from_secs(50);
    let succeeding = || {
        let mut ledger = lent(limits(1, Isolation::User), 1);
        assert!(ledger.tick(now, |_| true).is_empty());
        assert!(ledger.dial_successor(now, || true).is_some());
        ledger.dialed(Dialed::Succeeding);
        assert!(ledger.dial_successor(now, || true).is_none(), "both are there");
        ledger
    };
    let mut ledger = succeeding();
    assert_eq!(ends(&ledger.returned(connection(1, Some(0), 0), None).0), "close");
    assert_eq!(ends(&ledger.returned(connection(2, None, 50), None).0), "idle");
    assert!(ledger.dial_successor(now, || true).is_some(), "the next one");
    let mut ledger = succeeding();
    ledger.lost();
    assert!(ledger.dial_successor(now, || true).is_some(), "the next one, after one that failed");
}

#[test]
fn what_is_idle_and_dirty_is_lent_to_be_reset_where_that_harms_nobody() {
    let dirty = |isolation: Isolation| {
        let mut ledger = lent(limits(2, isolation), 2);
        ledger.returned(connection(1, Some(0), 0), None);
        ledger.returned(connection(2, None, 0), None);
        assert!(ledger.tick(Duration::from_secs(5), |_| true).is_empty());
        ledger
    };
    let at = |seconds| Duration::from_secs(seconds);
    let numbers = |lent: Vec<Connection>| lent.iter().map(|c| c.number).collect::<Vec<_>>();
    assert!(dirty(Isolation::User).lend_dirty(at(5)).is_empty(), "it was used just now");
    let mut ledger = dirty(Isolation::User);
    assert_eq!(numbers(ledger.lend_dirty(at(6))), [1]);
    assert_eq!((ledger.occupancy().idle, ledger.occupancy().lent), (1, 1));
    assert!(dirty(Isolation::Shared).lend_dirty(at(6)).is_empty());
    let mut halted = dirty(Isolation::User);
    halted.halt(Halt::Suspended);
    assert!(halted.lend_dirty(at(6)).is_empty());
    let mut wanted = dirty(Isolation::User);
    wants(&mut wanted, 1, Wanted::Any(user(0)));
    assert!(wanted.lend_dirty(at(6)).is_empty());
}

#[test]
fn another_pool_of_the_host_is_spared_what_has_been_idle_longest_unless_somebody_waits() {
    let mut ledger = lent(limits(3, Isolation::User), 2);
    assert!(ledger.spare().is_none(), "nothing is idle");
    [1, 2].into_iter().for_each(|number| drop(ledger.returned(connection(number, None, 0), None)));
    assert_eq!(ledger.spare().map(|c| c.number), Some(1));
    wants(&mut ledger, 1, Wanted::Any(user(0)));
    assert!(ledger.spare().is_none());
}

#[test]
fn a_pool_is_short_while_somebody_waits_for_whom_nothing_is_dialled_and_not_for_its_least() {
    let now = Duration::from_secs(1);
    let mut ledger = lent(Limits { min: 3, ..limits(4, Isolation::User) }, 1);
    assert!(ledger.wants_one(now, 9) && !ledger.is_short(), "it wants its least");
    wants(&mut ledger, 1, Wanted::Any(user(0)));
    assert!(ledger.is_short());
    ledger.dial(now, 9).unwrap();
    assert!(ledger.wants_one(now, 9) && !ledger.is_short(), "one is on its way");
    let mut own_first = lent(limits(4, Isolation::User), 1);
    wants(&mut own_first, 1, Wanted::Any(user(0)));
    own_first.dial(now, 9).unwrap();
    own_first.cancel(|who| *who == 1);
    wants(&mut own_first, 2, Wanted::Own(user(0), own(1)));
    assert!(own_first.is_short(), "what is on its way is of no use");
}

#[test]
fn a_failure_is_told_while_it_lasts_and_the_least_is_kept_once_the_pool_was_used() {
    let now = Duration::from_secs(1);
    let mut unused: Ledger<Connection, u32> = Ledger::new(limits(2, Isolation::User));
    assert!(unused.dial(now, 9).is_none(), "nobody has used it");
    assert!(unused.lend(Want::Any(&user(0))).is_none());
    assert!(unused.dial(now, 9).is_some(), "one is the least");
    assert!(unused.dial(now, 9).is_none());
    assert!(!unused.occupancy().failing);
    unused.dial_failed(Dialed::Plain, now);
    assert!(unused.occupancy().failing);
    assert!(unused.dial(now + Duration::from_millis(49), 9).is_none());
    assert!(unused.dial(now + Duration::from_millis(50), 9).is_some());
    unused.dialed(Dialed::Plain);
    assert!(!unused.occupancy().failing);
    let mut shared: Ledger<Connection, u32> = Ledger::new(limits(2, Isolation::User));
    wants(&mut shared, 1, Wanted::Any(user(0)));
    assert!(shared.dial(now, 0).is_none(), "the host's others have too few");
    assert!(shared.dial(now, 1).is_some());
}

#[test]
fn an_idle_connection_of_ones_own_thread_is_taken_before_a_newer_one() {
    let mut ledger: Ledger<Connection, u32> = Ledger::new(Limits { size: 3, epoch: 1, ..Limits::default() });
    for (number, home) in [(1, 1), (2, 2), (3, 2)] {
        ledger.dialed(Dialed::Plain);
        ledger.returned(Connection { home, ..connection(number, Some(0), 0) }, None);
    }
    let mut lend = |home| ledger.lend_to(Want::Any(&user(0)), Asker { session: 9, home }).unwrap().number;
    assert_eq!([lend(1), lend(1), lend(2)], [1, 3, 2]);
}
