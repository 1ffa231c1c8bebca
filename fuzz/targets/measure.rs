//! What the targets share: how much memory a piece of work asked for, which is the same at each run, as seconds are not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    let _ = ASKED.try_with(|asked| asked.set(asked.get().wrapping_add(bytes)));
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// The answer, and how many bytes were asked for on the way, counting each time that a list grew.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ASKED.get();
    let answer = work();
    (answer, ASKED.get().wrapping_sub(before))
}

/// Work on an input of this length may ask for `each` bytes for each of its bytes, and for a little that does not grow.
pub fn bounded<T>(length: usize, each: usize, work: impl FnOnce() -> T) -> T {
    let (answer, asked) = measured(work);
    assert!(asked <= each * length + (64 << 10), "{asked} bytes were asked for, for {length} of input");
    answer
}

/// Pieces of an input, in the order in which they are taken.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// One byte; 0 at the end.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// So many, or what there is.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }

    /// Up to a line's end, or to the end.
    pub fn line(&mut self) -> &'a [u8] {
        let length = self.0.iter().position(|byte| *byte == b'\n').unwrap_or(self.0.len());
        let line = self.take(length);
        self.take(1);
        line
    }
}
