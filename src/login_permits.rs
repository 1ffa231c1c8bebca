//! Clients that have not proved yet who they are: how many there may be, and who of them makes room for others, so that the
//! silent ones of one address never keep anybody else out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::stream::Block;
use wire::error::{Fault, Refusal, SqlState};

/// How long nobody has to make room for others of the same block.
const GRACE: Duration = Duration::from_secs(1);
/// How many who were told to leave may still be on their way out.
const MAX_LEAVING: usize = 1000;

/// How many clients may be logging in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoginLimits {
    /// For everybody.
    pub all: usize,
    /// Beyond those: for unix sockets, and for sessions of the console.
    pub reserved: usize,
}

/// One that has not logged in yet.
#[derive(Debug)]
struct Entry {
    since: Instant,
    leave: CancellationToken,
    /// It has asked for the console, and one of the reserved permits is its own.
    is_kept: bool,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By where they come from; the oldest has the lowest number.
    blocks: HashMap<Block, BTreeMap<u64, Entry>>,
    unknown: usize,
    /// How many of them are kept.
    kept: usize,
    /// Clients that have proved who they are and are on their way to a session.
    known: usize,
    operators: usize,
    leaving: usize,
}

/// All that there are now.
#[derive(Debug, Default)]
pub(crate) struct LoginPermits(Mutex<State>);

/// What one of them has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Unknown,
    Known,
    Operator,
}

/// The permit of one of them, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct LoginPermit {
    all: Arc<LoginPermits>,
    block: Block,
    number: u64,
    limits: LoginLimits,
    leave: CancellationToken,
    progress: Mutex<Progress>,
}

/// What those are told for whom there is no permit.
pub(crate) fn no_permit() -> Refusal {
    Refusal::new(Fault::Client, SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        .detail("Too many clients are logging in, most of them from one address.")
}

impl LoginPermits {
    /// A permit for somebody who has just come; `None` if there is none, and nobody who has to make room.
    pub(crate) fn enter(self: &Arc<Self>, block: Block, limits: LoginLimits) -> Option<LoginPermit> {
        let mut state = self.0.lock();
        let limit = if block == Block::UNIX { limits.all + limits.reserved } else { limits.all };
        if state.taken(limits) >= limit && !state.make_room(Some(block)) {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.unknown += 1;
        let leave = CancellationToken::new();
        let entry = Entry { since: Instant::now(), leave: leave.clone(), is_kept: false };
        state.blocks.entry(block).or_default().insert(number, entry);
        let progress = Mutex::new(Progress::Unknown);
        Some(LoginPermit { all: self.clone(), block, number, limits, leave, progress })
    }

    /// The system has no more descriptors: whoever has been silent for long makes room.
    pub(crate) fn make_room(&self) {
        self.0.lock().make_room(None);
    }

    /// How many there are now.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unknown
    }
}

impl State {
    fn taken(&self, limits: LoginLimits) -> usize {
        self.unknown + self.known + self.operators.saturating_sub(limits.reserved)
    }

    /// The oldest of the block that has most is told to leave: at once for somebody of a block that has fewer, else when it
    /// has had its time. False if nobody is.
    fn make_room(&mut self, newcomer: Option<Block>) -> bool {
        if self.leaving >= MAX_LEAVING {
            return false;
        }
        let oldest = |entries: &BTreeMap<u64, Entry>| {
            entries.iter().find(|(_, entry)| !entry.is_kept).map(|(number, entry)| (*number, entry.since))
        };
        let of_block =
            |(block, entries): (&Block, &BTreeMap<_, _>)| Some((*block, entries.len(), oldest(entries)?));
        let candidates = self.blocks.iter().filter_map(of_block);
        let first = candidates.max_by_key(|(_, count, (number, _))| (*count, std::cmp::Reverse(*number)));
        let Some((block, count, (number, since))) = first else { return false };
        let own = newcomer.map_or(usize::MAX, |block| self.blocks.get(&block).map_or(0, BTreeMap::len));
        if own >= count && since.elapsed() < GRACE {
            return false;
        }
        if let Some(entry) = self.take(block, number) {
            entry.leave.cancel();
            self.leaving += 1;
        }
        true
    }

    fn take(&mut self, block: Block, number: u64) -> Option<Entry> {
        let entries = self.blocks.get_mut(&block)?;
        let entry = entries.remove(&number)?;
        if entries.is_empty() {
            self.blocks.remove(&block);
        }
        self.unknown -= 1;
        self.kept -= usize::from(entry.is_kept);
        Some(entry)
    }
}

impl LoginPermit {
    /// It has to make room for others.
    pub(crate) async fn must_leave(&self) {
        self.leave.cancelled().await;
    }

    /// It asks for the console: one of the reserved permits is its own, if one is free.
    pub(crate) fn asks_for_console(&self) {
        let mut state = self.all.0.lock();
        if state.kept >= self.limits.reserved {
            return;
        }
        let entries = state.blocks.get_mut(&self.block);
        if let Some(entry) = entries.and_then(|entries| entries.get_mut(&self.number))
            && !std::mem::replace(&mut entry.is_kept, true)
        {
            state.kept += 1;
        }
    }

    /// It has proved who it is, and keeps its permit.
    ///
    /// # Errors
    /// It was told to leave just before.
    pub(crate) fn is_known(&self) -> Result<(), Refusal> {
        self.becomes(Progress::Known)
    }

    /// The same, on the console.
    ///
    /// # Errors
    /// It was told to leave just before.
    pub(crate) fn is_operator(&self) -> Result<(), Refusal> {
        self.becomes(Progress::Operator)
    }

    fn becomes(&self, what: Progress) -> Result<(), Refusal> {
        let mut state = self.all.0.lock();
        state.take(self.block, self.number).ok_or_else(no_permit)?;
        match what {
            Progress::Operator => state.operators += 1,
            _ => state.known += 1,
        }
        *self.progress.lock() = what;
        Ok(())
    }
}

impl Drop for LoginPermit {
    fn drop(&mut self) {
        let mut state = self.all.0.lock();
        match *self.progress.lock() {
            Progress::Operator => state.operators -= 1,
            Progress::Known => state.known -= 1,
            Progress::Unknown if state.take(self.block, self.number).is_none() => state.leaving -= 1,
            Progress::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: LoginLimits = LoginLimits { all: 10, reserved: 2 };

    fn block(n: u32) -> Block {
        Block::of_address(std::net::Ipv4Addr::from(n).into())
    }

    fn fill(all: &Arc<LoginPermits>, block: Block, count: usize) -> Vec<LoginPermit> {
        (0..count).map(|_| all.enter(block, PLACES).unwrap()).collect()
    }

    #[test]
    fn the_oldest_of_the_block_that_has_most_makes_room_for_others_and_not_for_its_own() {
        let all = Arc::default();
        let many = fill(&all, block(1), 7);
        let few = fill(&all, block(2), 3);
        assert!(all.enter(block(1), PLACES).is_none(), "none of its own has had its time");
        let third = all.enter(block(3), PLACES).unwrap();
        let left = |of: &[LoginPermit]| of.iter().map(|s| s.leave.is_cancelled()).collect::<Vec<_>>();
        assert_eq!(left(&many), [true, false, false, false, false, false, false]);
        assert!(many[0].is_known().is_err() && many[1].is_known().is_ok());
        // There are 11 then, of whom one is on its way out.
        drop(third);
        drop(many);
        assert_eq!(all.count(), 3);
        assert!(!left(&few).contains(&true));
        drop(few);
        let state = all.0.lock();
        assert_eq!((state.unknown, state.known, state.leaving, state.blocks.len()), (0, 0, 0, 0));
    }

    #[test]
    fn known_clients_keep_their_places_and_operators_have_some_of_their_own() {
        let all: Arc<LoginPermits> = Arc::default();
        let known = fill(&all, block(1), 10);
        known.iter().for_each(|one| one.is_known().unwrap());
        assert!(all.enter(block(2), PLACES).is_none(), "nobody who could make room");
        let unix = [all.enter(Block::UNIX, PLACES).unwrap(), all.enter(Block::UNIX, PLACES).unwrap()];
        assert!(all.enter(Block::UNIX, PLACES).is_none());
        unix.iter().for_each(|one| one.is_operator().unwrap());
        drop(known);
        let full = fill(&all, block(1), 10);
        // Whoever has asked for the console is not the one who makes room, as long as a reserved permit is free.
        full[..3].iter().for_each(LoginPermit::asks_for_console);
        let others: Vec<_> = (2..5).map(|n| all.enter(block(n), PLACES).unwrap()).collect();
        let left: Vec<_> = full.iter().map(|one| one.leave.is_cancelled()).collect();
        assert_eq!(left, [false, false, true, true, true, false, false, false, false, false]);
        drop((unix, full, others));
        let state = all.0.lock();
        assert_eq!((state.unknown, state.kept, state.operators, state.leaving), (0, 0, 0, 0));
    }
}
