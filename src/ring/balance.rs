//! How many of the threads that relay have sessions, and which sessions go from one to another: as few threads as can do what there is to
//! be done, since each more costs more for the same.

/// With how much of that a thread is full it may do more than the others, and all of them less than is too much for one thread fewer: a
/// fifth; where none is to be full, of the whole time.
const SLACK: u32 = 5;

/// What a thread has done in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Percent of the time.
    pub(super) busy: u32,
    /// How many of its sessions have done something.
    pub(super) active: usize,
}

/// So many of the active sessions go from one thread to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) sessions: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Balance {
    threads: usize,
    full: u32,
    open: usize,
}

impl Balance {
    /// Of so many threads, of which one is full when it is busy for so many percent of the time. 0: all have sessions at once.
    pub(super) fn new(threads: usize, full: u32) -> Self {
        Self { threads, full, open: if full == 0 { threads } else { 1 } }
    }

    /// So many have sessions: the first ones.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    fn slack(&self) -> u32 {
        if self.full == 0 { 100 / SLACK } else { self.full / SLACK }
    }

    /// What follows from what the threads have done in this round.
    pub(super) fn round(&mut self, loads: &[Load]) -> Vec<Move> {
        let all: u32 = loads.iter().map(|load| load.busy).sum();
        if self.full > 0 {
            let are_full = loads.iter().take(self.open).all(|load| load.busy >= self.full);
            let fewer = u32::try_from(self.open - 1).unwrap_or(u32::MAX);
            if are_full && self.open < self.threads {
                self.open += 1;
            } else if self.open > 1 && all + self.slack() < self.full.saturating_mul(fewer) {
                self.open -= 1;
            }
        }
        let mean = all / u32::try_from(self.open).unwrap_or(u32::MAX).max(1);
        let least = loads.iter().take(self.open).enumerate().min_by_key(|(_, load)| load.busy);
        let Some((to, _)) = least else { return Vec::new() };
        let moved = |(from, load): (usize, &Load)| {
            let fair = if from < self.open { mean } else { 0 };
            let has_too_much =
                from != to && load.busy > 0 && (from >= self.open || load.busy > fair + self.slack());
            // One that does all there is stays where it is: it would be too much there as well.
            let is_alone = from < self.open && load.active < 2;
            let excess = u64::from(load.busy.saturating_sub(fair));
            let share = u64::try_from(load.active).unwrap_or(u64::MAX).saturating_mul(excess);
            let sessions = usize::try_from(share.div_ceil(u64::from(load.busy.max(1)))).unwrap_or(usize::MAX);
            (has_too_much && !is_alone && sessions > 0).then_some(Move { from, to, sessions })
        };
        loads.iter().enumerate().filter_map(moved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(busy: u32, active: usize) -> Load {
        Load { busy, active }
    }

    #[test]
    fn one_thread_has_all_until_it_is_full() {
        let mut balance = Balance::new(4, 80);
        for busy in [0, 40, 79] {
            assert_eq!(balance.round(&[load(busy, 100), load(0, 0), load(0, 0), load(0, 0)]), []);
            assert_eq!(balance.open(), 1, "{busy} %");
        }
        let moves = balance.round(&[load(90, 100), load(0, 0), load(0, 0), load(0, 0)]);
        assert_eq!((balance.open(), moves), (2, vec![Move { from: 0, to: 1, sessions: 50 }]));
        assert_eq!(balance.round(&[load(45, 50), load(50, 50), load(0, 0), load(0, 0)]), []);
        assert_eq!(balance.open(), 2);
        assert_eq!(balance.round(&[load(85, 50), load(88, 50), load(0, 0), load(0, 0)]).len(), 2);
        assert_eq!(balance.open(), 3);
    }

    #[test]
    fn what_one_thread_fewer_can_do_it_does() {
        let mut balance = Balance::new(2, 80);
        balance.round(&[load(100, 10), load(0, 0)]);
        assert_eq!(balance.round(&[load(40, 5), load(40, 5)]), [], "the two of them are full for one");
        assert_eq!(balance.open(), 2);
        // Sessions on a thread that is not open any more leave when they do something.
        assert_eq!(balance.round(&[load(30, 5), load(20, 5)]), [Move { from: 1, to: 0, sessions: 5 }]);
        assert_eq!(balance.open(), 1);
        assert_eq!(balance.round(&[load(50, 10), load(0, 0)]), []);
    }

    #[test]
    fn a_session_that_does_all_there_is_goes_nowhere() {
        let mut balance = Balance::new(2, 80);
        assert_eq!(balance.round(&[load(95, 1), load(0, 0)]), []);
        assert_eq!(balance.round(&[load(0, 0), load(95, 1)]), []);
    }

    #[test]
    fn all_have_their_share_at_once_where_nothing_is_to_be_full() {
        let mut balance = Balance::new(3, 0);
        assert_eq!(balance.open(), 3);
        assert_eq!(balance.round(&[load(1, 1), load(0, 0), load(0, 0)]), []);
        let moves = balance.round(&[load(60, 6), load(0, 0), load(0, 0)]);
        assert_eq!((balance.open(), moves), (3, vec![Move { from: 0, to: 1, sessions: 4 }]));
    }

    #[test]
    fn whatever_is_seen_no_more_go_than_are_there_and_all_to_one_that_is_open() {
        for (threads, full) in [(1, 80), (2, 80), (3, 1), (4, 0)] {
            let mut balance = Balance::new(threads, full);
            let mut seed = 7_u32;
            for _ in 0..2000 {
                let mut next = || {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed >> 16
                };
                let loads: Vec<Load> =
                    (0..threads).map(|_| load(next() % 120, next() as usize % 9)).collect();
                for moved in balance.round(&loads) {
                    assert!(moved.to < balance.open() && moved.from != moved.to, "{loads:?} {moved:?}");
                    assert!((1..=loads[moved.from].active).contains(&moved.sessions), "{loads:?} {moved:?}");
                }
                assert!((1..=threads).contains(&balance.open()));
            }
        }
    }
}
