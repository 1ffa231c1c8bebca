//! Who was not let in, in the log and in the audit: each of the first, and of those who go on only how many there were, so
//! that nobody who has no right to anything can fill a disk.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::info;

use super::{Audit, Event};
use crate::stream::Block;
use wire::error::{Refusal, Shown, SqlState};

/// How many of one block and reason are told in a minute, each by itself; and how many of all.
const EACH: u64 = 10;
const ALL: u64 = 1000;
/// How many blocks and reasons are kept apart; those beyond are counted together.
const MAX_KEPT: usize = 4096;
/// Of how many SQLSTATEs those are counted apart.
const MAX_REASONS: usize = 200;
/// How much of a cause the log is told, in bytes.
const MAX_CAUSE: usize = 1024;
/// How long is counted.
const MINUTE: Duration = Duration::from_secs(60);

/// A login that was refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused<'a> {
    /// As the log calls it.
    pub what: &'static str,
    /// Why.
    pub refusal: &'a Refusal,
    /// Who it said it was.
    pub user: &'a str,
    /// What it asked for.
    pub database: &'a str,
    /// Its other end.
    pub peer: &'a str,
}

impl Refused<'_> {
    fn log(&self) {
        let (user, database) = (Shown::name(self.user), Shown::name(self.database));
        let (fault, sqlstate) = (self.refusal.fault.word(), self.refusal.sqlstate.as_str());
        let cause = Shown::within(&self.refusal.for_log(), MAX_CAUSE);
        info!(
            user = user.as_str(),
            database = database.as_str(),
            peer = self.peer,
            fault,
            sqlstate,
            %cause,
            "{}", self.what
        );
    }

    fn event(&self) -> Event {
        Event::new("refusal")
            .text("user", Shown::name(self.user))
            .text("database", Shown::name(self.database))
            .text("peer", self.peer)
            .text("sqlstate", self.refusal.sqlstate.as_str())
            .text("why", Shown::sentence(&self.refusal.to_string()))
    }
}

/// Where refusals came from, and their SQLSTATE; `None` is all addresses for which there was no room.
type Key = (Option<Block>, SqlState);

/// Those of this minute.
#[derive(Debug)]
struct Minute {
    began: Instant,
    counts: HashMap<Key, u64>,
    told: u64,
}

impl Minute {
    fn new() -> Self {
        Self { began: Instant::now(), counts: HashMap::new(), told: 0 }
    }

    /// Counts one; whether it is told by itself.
    fn count(&mut self, block: Block, reason: SqlState) -> bool {
        let key = (Some(block), reason);
        let has_room = self.counts.len() < MAX_KEPT || self.counts.contains_key(&key);
        let key = match (None, reason) {
            _ if has_room => key,
            of_reason
                if self.counts.len() < MAX_KEPT + MAX_REASONS || self.counts.contains_key(&of_reason) =>
            {
                of_reason
            }
            // Upstreams may send any.
            _ => (None, SqlState::INTERNAL),
        };
        let count = self.counts.entry(key).or_default();
        if *count < EACH && self.told < ALL {
            self.told += 1;
            *count += 1;
            return true;
        }
        // From here on those are counted that nobody was told of.
        *count = (*count).max(EACH) + 1;
        false
    }

    /// How many were not told, of whom.
    fn untold(self) -> impl Iterator<Item = (Key, u64)> {
        self.counts
            .into_iter()
            .filter_map(|(key, count)| Some((key, count.checked_sub(EACH).filter(|n| *n > 0)?)))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Refusals(Mutex<Minute>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Mutex::new(Minute::new()))
    }
}

impl Refusals {
    /// Tells the log and the audit, or counts.
    pub(crate) fn tell(&self, audit: &Audit, refused: Refused<'_>) {
        if self.count(refused.peer, refused.refusal) {
            refused.log();
            audit.record(|| refused.event());
        }
    }

    /// Counts one; whether it is told by itself.
    pub(crate) fn count(&self, peer: &str, refusal: &Refusal) -> bool {
        self.0.lock().count(Block::of_peer(peer), refusal.sqlstate)
    }

    /// Once a second or so: what was only counted is told when its minute is over.
    pub(crate) fn tend(&self, audit: &Audit) {
        if self.0.lock().began.elapsed() >= MINUTE {
            self.sum_up(audit);
        }
    }

    /// Tells what was only counted, and begins another minute.
    pub(crate) fn sum_up(&self, audit: &Audit) {
        let minute = std::mem::replace(&mut *self.0.lock(), Minute::new());
        for ((block, sqlstate), more) in minute.untold() {
            let from = block.map_or_else(|| "others".to_owned(), |block| block.to_string());
            info!(
                from,
                sqlstate = sqlstate.as_str(),
                more,
                "refused: these are the ones that were not told one by one"
            );
            audit.record(|| {
                Event::new("refusals")
                    .text("from", &from)
                    .text("sqlstate", sqlstate.as_str())
                    .number("more", more)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u32) -> Block {
        Block::of_address(std::net::Ipv4Addr::from(n).into())
    }

    #[test]
    fn the_first_are_told_and_the_rest_counted() {
        let mut minute = Minute::new();
        let told = (0..4_322).filter(|_| minute.count(block(1), SqlState::INVALID_PASSWORD)).count();
        assert_eq!(told, 10);
        assert!(minute.count(block(1), SqlState::UNKNOWN_DATABASE), "another reason");
        assert!(minute.count(block(2), SqlState::INVALID_PASSWORD), "another address");
        assert_eq!(
            minute.untold().collect::<Vec<_>>(),
            [((Some(block(1)), SqlState::INVALID_PASSWORD), 4_312)]
        );
    }

    #[test]
    fn from_however_many_addresses_they_come_the_table_and_what_is_told_are_bounded() {
        let mut minute = Minute::new();
        let told =
            (0..100_000).filter(|n| minute.count(block(*n), SqlState::INVALID_PASSWORD)).count() as u64;
        assert_eq!(told, ALL);
        assert!(minute.counts.len() <= MAX_KEPT + 1);
        assert!(minute.counts.contains_key(&(None, SqlState::INVALID_PASSWORD)), "the reason is still told");
        assert_eq!(told + minute.untold().map(|(_, more)| more).sum::<u64>(), 100_000);
    }

    #[test]
    fn however_many_reasons_an_upstream_gives_the_table_is_bounded() {
        let mut minute = Minute::new();
        let state = |n: u32| SqlState::parse(format!("P{:04}", n % 10_000).as_bytes()).unwrap();
        let told = (0..20_000).filter(|n| minute.count(block(*n), state(*n))).count() as u64;
        assert!(minute.counts.len() <= MAX_KEPT + MAX_REASONS + 1, "{}", minute.counts.len());
        assert_eq!(told + minute.untold().map(|(_, more)| more).sum::<u64>(), 20_000);
    }
}
