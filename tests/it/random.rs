//! Random numbers for tests, the one source of them beside proptest: the same at each run.

// Each test takes what it needs.
#![allow(dead_code, clippy::cast_possible_truncation)]

/// See the module. The seed is any number but 0.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn some<'a>(&mut self, from: &[&'a str], percent: usize) -> Vec<&'a str> {
        from.iter().copied().filter(|_| self.chance(percent)).collect()
    }
}
