//! What is counted for each pool, in PgBouncer's figures (`SHOW STATS`).

mod histogram;
mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use histogram::{Histogram, Times};
pub(crate) use process::Counters;

/// How long the times are over which averages are taken (PgBouncer's `stats_period`).
const PERIOD: Duration = Duration::from_secs(60);

/// A counter, in the order of `SHOW STATS`. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// How often a connection was lent.
    Assignments,
    /// Transactions, and queries outside of one.
    Transactions,
    /// Queries: each answer that ended with `ReadyForQuery`.
    Queries,
    /// Bytes from clients.
    Received,
    /// Bytes to clients.
    Sent,
    /// From the first message of a transaction to its end.
    TransactionTime,
    /// While the upstream owed an answer.
    QueryTime,
    /// How long clients waited for a connection.
    WaitTime,
    /// `Parse` messages of clients.
    ClientParses,
    /// `Parse` messages to the upstream.
    ServerParses,
    /// `Bind` messages.
    Binds,
    /// Logins that came as far as the pool.
    Logins,
}

/// How many figures there are.
pub(crate) const COUNTERS: usize = 12;

/// The figures at one moment, by [`Counter`].
pub(crate) type Totals = [u64; COUNTERS];

/// What is counted of connections that go from one user to another.
#[derive(Debug, Default)]
pub struct Isolated {
    /// How often a connection went from one user to another.
    pub hand_overs: AtomicU64,
    /// How often one was reset, for another user or because it was idle.
    pub resets: AtomicU64,
    /// How often that failed, and the connection was closed.
    pub failures: AtomicU64,
    /// How long all resets took, in microseconds.
    pub micros: AtomicU64,
}

impl Isolated {
    /// A reset has succeeded, which took so long.
    pub fn reset(&self, took: Duration) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// One has failed.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stats {
    figures: [AtomicU64; COUNTERS],
    period: Mutex<Period>,
    /// How long those waited for a connection who had to.
    waits: Histogram,
    /// How long it took to connect and log in.
    pub connects: Histogram,
    /// How long transactions took.
    transactions: Histogram,
    /// How long the upstream owed an answer.
    queries: Histogram,
    /// Attempts to connect that failed.
    pub failures: AtomicU64,
    /// Of connections that went from one user to another.
    pub isolated: Isolated,
}

#[derive(Debug)]
struct Period {
    begun: Instant,
    then: Totals,
    averages: Totals,
}

impl Default for Stats {
    fn default() -> Self {
        let period = Period { begun: Instant::now(), then: [0; COUNTERS], averages: [0; COUNTERS] };
        Self {
            figures: Default::default(),
            period: Mutex::new(period),
            waits: Histogram::default(),
            connects: Histogram::default(),
            transactions: Histogram::default(),
            queries: Histogram::default(),
            failures: AtomicU64::new(0),
            isolated: Isolated::default(),
        }
    }
}

impl Stats {
    /// Adds to a counter.
    pub fn add(&self, counter: Counter, value: u64) {
        if value > 0 {
            self.figures[counter as usize].fetch_add(value, Ordering::Relaxed);
        }
    }

    /// A time more: its sum and its class.
    pub fn observe(&self, counter: Counter, micros: u64) {
        self.add(counter, micros);
        if let Some(histogram) = self.histogram(counter) {
            histogram.record(micros);
        }
    }

    /// The times that a counter is the sum of.
    pub fn times(&self, counter: Counter) -> Option<Times> {
        let sum = self.figures[counter as usize].load(Ordering::Relaxed);
        self.histogram(counter).map(|histogram| histogram.times_of(sum))
    }

    fn histogram(&self, counter: Counter) -> Option<&Histogram> {
        match counter {
            Counter::WaitTime => Some(&self.waits),
            Counter::TransactionTime => Some(&self.transactions),
            Counter::QueryTime => Some(&self.queries),
            _ => None,
        }
    }

    /// All of them now.
    pub fn totals(&self) -> Totals {
        std::array::from_fn(|i| self.figures[i].load(Ordering::Relaxed))
    }

    /// The averages of the last whole period: a second, or, for the times, each transaction, query or assignment.
    pub fn averages(&self) -> Totals {
        self.period.lock().averages
    }

    /// To be called often: ends a period when it is over.
    pub fn tick(&self) {
        let mut period = self.period.lock();
        let elapsed = period.begun.elapsed();
        if elapsed < PERIOD {
            return;
        }
        let now = self.totals();
        let grown: Totals = std::array::from_fn(|i| now[i] - period.then[i]);
        period.averages = averages(&grown, elapsed);
        (period.begun, period.then) = (Instant::now(), now);
    }
}

/// Of what has come in such a time (as PgBouncer's `calc_average`).
pub(crate) fn averages(grown: &Totals, elapsed: Duration) -> Totals {
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
    let each = |time: Counter, count: Counter| match grown[count as usize] {
        0 => 0,
        count => grown[time as usize] / count,
    };
    let mut averages = grown.map(|value| value.saturating_mul(1_000_000) / micros);
    averages[Counter::TransactionTime as usize] = each(Counter::TransactionTime, Counter::Transactions);
    averages[Counter::QueryTime as usize] = each(Counter::QueryTime, Counter::Queries);
    averages[Counter::WaitTime as usize] = each(Counter::WaitTime, Counter::Assignments);
    averages
}

/// The sum of two.
pub(crate) fn sum(one: &Totals, other: &Totals) -> Totals {
    std::array::from_fn(|i| one[i] + other[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the engine does for a transaction of one query: two looks at the clock, and these figures. A transaction costs
    /// 15 to 20 µs of CPU in all (docs/benchmarks.md), of which this is to be less than a hundredth.
    #[test]
    fn counting_costs_less_than_a_hundredth_of_a_transaction() {
        let (stats, first) = (Stats::default(), Instant::now());
        let watch: [AtomicU64; 4] = Default::default();
        let rounds = 1_000_000;
        let begun = Instant::now();
        for round in 0..rounds {
            let asked = first.elapsed();
            let answered = first.elapsed();
            let micros = u64::try_from((answered - asked).as_micros()).unwrap_or(0) + 700;
            stats.observe(Counter::QueryTime, micros);
            stats.observe(Counter::TransactionTime, micros);
            for (counter, at) in
                [Counter::Transactions, Counter::Received, Counter::Sent].into_iter().zip(&watch)
            {
                let before = at.load(Ordering::Relaxed);
                at.store(round, Ordering::Relaxed);
                stats.add(counter, round - before);
            }
            stats.add(Counter::Queries, 1);
            stats.add(Counter::Assignments, 1);
            watch[3].store(round, Ordering::Relaxed);
        }
        let each = begun.elapsed().as_nanos() / u128::from(rounds);
        eprintln!("{each} ns a transaction");
        // Without optimizations that says nothing.
        assert!(each < 150 || cfg!(debug_assertions), "{each} ns");
    }

    #[test]
    fn averages_are_a_second_and_times_are_each() {
        let stats = Stats::default();
        stats.add(Counter::Transactions, 120);
        stats.add(Counter::Queries, 240);
        stats.add(Counter::TransactionTime, 1200);
        stats.add(Counter::QueryTime, 240);
        let averages = averages(&stats.totals(), Duration::from_secs(60));
        assert_eq!(averages[Counter::Transactions as usize], 2);
        assert_eq!(averages[Counter::Queries as usize], 4);
        assert_eq!(averages[Counter::TransactionTime as usize], 10);
        assert_eq!(averages[Counter::QueryTime as usize], 1);
        assert_eq!(sum(&stats.totals(), &stats.totals())[1], 240);
    }
}
