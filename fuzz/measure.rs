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
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ASKED.get();
    let answer = work();
    (answer, ASKED.get().wrapping_sub(before))
}

/// Work on an input of this length may ask for `each` bytes for each of its bytes, and for a little that does not grow.
pub(crate) fn bounded<T>(length: usize, each: usize, work: impl FnOnce() -> T) -> T {
    let (answer, asked) = measured(work);
    assert!(asked <= each * length + (64 << 10), "{asked} bytes were asked for, for {length} of input");
    answer
}
