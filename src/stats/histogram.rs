//! Times by how long they were.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper ends of all classes but the last, which has none; in microseconds.
const BOUNDS: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// How many times there were in each class, and their sum.
#[derive(Debug, Default)]
pub struct Histogram {
    classes: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

/// A [`Histogram`] at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Of all of them, in seconds.
    pub sum: f64,
    /// How many.
    pub count: u64,
    /// How many in each class, with the class's upper end in seconds.
    pub classes: Vec<(f64, u64)>,
}

impl Histogram {
    /// One time more, of which somebody else keeps the sum.
    pub fn record(&self, micros: u64) {
        let class = BOUNDS.partition_point(|bound| *bound < micros);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
    }

    /// One time more.
    pub fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.record(micros);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// All of them now.
    pub fn times(&self) -> Times {
        self.times_of(self.sum.load(Ordering::Relaxed))
    }

    /// All that were recorded now; this is their sum, in microseconds.
    pub fn times_of(&self, sum: u64) -> Times {
        let ends = BOUNDS.iter().map(|micros| Duration::from_micros(*micros).as_secs_f64()).chain([f64::MAX]);
        let counts = self.classes.iter().map(|class| class.load(Ordering::Relaxed));
        let classes: Vec<_> = ends.zip(counts).collect();
        let count = classes.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(sum).as_secs_f64();
        Times { sum, count, classes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_class_that_it_fits_in() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 30_000_000, 30_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let times = histogram.times();
        assert_eq!((times.count, times.classes[0].1, times.classes[1].1), (5, 2, 1));
        assert_eq!((times.classes[16].1, times.classes[17].1), (1, 1));
        assert!((times.sum - 60.000_202).abs() < 1e-9, "{}", times.sum);
    }
}
