//! Passwords that were wrong, by user and where they came from: whoever goes on there gets his answers later. A right
//! password from elsewhere is never late, so nobody can keep another out.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::stream::Block;

/// The first wait, which doubles each time, and the longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(4);
/// How far beyond what is free anybody is counted: it is over in as many minutes.
const BEYOND: f64 = 10.0;
/// How many answers that are late wait at the same time, of one user and address; the others wait for them. So many that it takes
/// very many connections from the user's own address to keep the user himself waiting.
const AT_ONCE: usize = 50;
/// How many users and addresses are remembered.
const MAX_KEPT: usize = 10_000;

/// How many wrong passwords there were: it grows less by what is free in a minute.
#[derive(Debug, Clone, Copy)]
struct Level {
    height: f64,
    at: Instant,
}

impl Level {
    fn now(self, free: f64, now: Instant) -> f64 {
        (self.height - now.duration_since(self.at).as_secs_f64() * free / 60.0).max(0.0)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    /// Of names only a hash is kept: they may be of any length.
    hasher: RandomState,
    levels: Mutex<HashMap<(u64, Block), Level>>,
    /// Where answers are late, they come one after the other, however many are asked for at once.
    lines: Mutex<HashMap<(u64, Block), Arc<Semaphore>>>,
}

/// A position in one of those queues; the queue is forgotten with the last.
struct GuessTurn<'a> {
    guesses: &'a Guesses,
    key: (u64, Block),
    line: Option<Arc<Semaphore>>,
}

impl Drop for GuessTurn<'_> {
    fn drop(&mut self) {
        let mut lines = self.guesses.lines.lock();
        self.line = None;
        if lines.get(&self.key).is_some_and(|line| Arc::strong_count(line) == 1) {
            lines.remove(&self.key);
        }
    }
}

impl Guesses {
    /// How long the answer to a right password waits. `free` is how many wrong ones in a minute cost nothing; 0 is all.
    pub(super) fn right(&self, user: &str, block: Block, free: u32) -> Duration {
        let (key, free) = ((self.hasher.hash_one(user), block), f64::from(free));
        let level = self.levels.lock().get(&key).map_or(0.0, |level| level.now(free, Instant::now()));
        wait(level, free)
    }

    /// Waits, in turn with the others who guess there.
    pub(super) async fn wait(&self, user: &str, block: Block, wait: Duration) {
        let key = (self.hasher.hash_one(user), block);
        let line = self.lines.lock().entry(key).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone();
        let standing = GuessTurn { guesses: self, key, line: Some(line) };
        let turn = match &standing.line {
            Some(line) => line.acquire().await.ok(),
            None => None,
        };
        tokio::time::sleep(wait).await;
        drop(turn);
    }

    /// Counts a wrong one; how long its answer waits.
    pub(super) fn wrong(&self, user: &str, block: Block, free: u32) -> Duration {
        if free == 0 {
            return Duration::ZERO;
        }
        let (key, free) = ((self.hasher.hash_one(user), block), f64::from(free));
        let (mut levels, now) = (self.levels.lock(), Instant::now());
        if levels.len() >= MAX_KEPT && !levels.contains_key(&key) {
            keep_the_busiest(&mut levels, |level| level.now(free, now));
        }
        let before = levels.get(&key).map_or(0.0, |level| level.now(free, now));
        let height = (before + 1.0).min(free + BEYOND);
        levels.insert(key, Level { height, at: now });
        wait(height, free)
    }
}

fn wait(level: f64, free: f64) -> Duration {
    if free == 0.0 || level <= free {
        return Duration::ZERO;
    }
    FIRST.mul_f64((level - free).ceil().min(BEYOND).exp2() / 2.0).min(LONGEST)
}

/// Makes room in a table that is full: only those who have done more than the median are remembered.
pub(crate) fn keep_the_busiest<K, V>(table: &mut HashMap<K, V>, done: impl Fn(&V) -> f64) {
    let mut all: Vec<f64> = table.values().map(&done).collect();
    if all.is_empty() {
        return;
    }
    let middle = all.len() / 2;
    let (_, median, _) = all.select_nth_unstable_by(middle, f64::total_cmp);
    let median = *median;
    table.retain(|_, entry| done(entry) > median);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u32) -> Block {
        Block::of_address(std::net::Ipv4Addr::from(n).into())
    }

    #[test]
    fn answers_come_later_and_later_to_whoever_guesses_and_to_nobody_else() {
        let guesses = Guesses::default();
        let waits: Vec<_> = (0..20).map(|_| guesses.wrong("alice", block(1), 5)).collect();
        assert!(waits[..5].iter().all(Duration::is_zero), "{waits:?}");
        assert!(waits[5] >= FIRST && waits.is_sorted(), "{waits:?}");
        assert_eq!(waits[19], LONGEST);
        assert_eq!(guesses.right("alice", block(1), 5), LONGEST, "or a quick answer would be a right one");
        assert_eq!(guesses.right("alice", block(2), 5), Duration::ZERO);
        assert_eq!(guesses.right("bob", block(1), 5), Duration::ZERO);
        assert_eq!(guesses.wrong("alice", block(3), 0), Duration::ZERO, "off");
    }

    #[tokio::test]
    async fn whoever_asks_for_many_answers_at_once_gets_them_one_after_the_other() {
        let guesses = Guesses::default();
        let wait = Duration::from_millis(20);
        let began = Instant::now();
        let all = (0..5 * AT_ONCE).map(|_| guesses.wait("alice", block(1), wait));
        let mut many = std::pin::pin!(futures_join(all.collect()));
        tokio::select! {
            biased;
            () = guesses.wait("bob", block(1), wait) => {}
            () = &mut many => panic!("somebody else stands in that line"),
        }
        many.await;
        assert!(began.elapsed() >= wait * 5, "{:?}", began.elapsed());
        assert!(guesses.lines.lock().is_empty());
    }

    async fn futures_join(all: Vec<impl Future<Output = ()>>) {
        let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
        std::future::poll_fn(|cx| {
            all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    #[test]
    fn what_is_remembered_is_bounded_and_whoever_did_most_is_remembered_longest() {
        let guesses = Guesses::default();
        for _ in 0..20 {
            guesses.wrong("alice", block(1), 5);
        }
        for n in 0..3 * u32::try_from(MAX_KEPT).unwrap() {
            guesses.wrong("bob", block(n), 5);
        }
        assert!(guesses.levels.lock().len() <= MAX_KEPT);
        assert_eq!(guesses.right("alice", block(1), 5), LONGEST);
    }

    #[test]
    fn a_minute_later_it_is_forgiven_bit_by_bit() {
        let now = Instant::now();
        let Some(at) = now.checked_sub(Duration::from_secs(60)) else { return };
        assert!((Level { height: 12.0, at }.now(5.0, now) - 7.0).abs() < 0.01);
        assert!(Level { height: 3.0, at }.now(5.0, now) < 0.01);
    }
}
