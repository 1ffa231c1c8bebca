//! How deep and how much of a text is looked at: the one place that bounds it.
//!
//! Whoever may log in, or may define a function in any database, chooses these texts. So nothing here recurses: a text
//! within a text is work that is put off, with a depth; and what is read of all of them together is bounded by a multiple
//! of the text itself. Beyond any of it the verdict is "opaque", which is always right.

/// How many texts may be within one another (`DO` in an `EXECUTE` in a function's body): people write two or three.
pub const MAX_DEPTH: u8 = 8;
/// The longest text that the lexer looks at. Longer statements are scanned, longer bodies of functions are opaque.
pub const MAX_LEXED: usize = 64 << 10;
/// How many bytes are read, as a multiple of the text: each text within it is read again for itself.
const TIMES: usize = 4;
/// How many settings are told apart: beyond that it is "some setting".
pub const MAX_SETTINGS: usize = 64;
/// How many names of a catalog are looked up in one statement before it counts as opaque.
pub const MAX_MENTIONS: usize = 256;

/// What may still be read of one text and of those within it.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Budget {
    /// For a text of this length.
    pub fn of(length: usize) -> Self {
        Self { left: TIMES * length }
    }

    /// How many bytes may still be read.
    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Takes a text of this length, at this depth; false if it may not be read.
    pub fn take(&mut self, length: usize, depth: u8) -> bool {
        let may = depth < MAX_DEPTH && length <= MAX_LEXED && length <= self.left;
        self.left -= if may { length } else { 0 };
        may
    }
}

#[cfg(test)]
thread_local! {
    /// How many bytes of whole texts were gone through on this thread.
    pub static GONE_THROUGH: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A whole text of this length is gone through: counted in tests, where no clock is right.
pub fn goes_through(length: usize) {
    #[cfg(test)]
    GONE_THROUGH.set(GONE_THROUGH.get() + length);
    let _ = length;
}
