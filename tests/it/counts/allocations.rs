//! Allocations of the thread that commits. Those inside SQLite are not counted: it has them from C.
#![expect(unsafe_code, reason = "an allocator is unsafe to write, and this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::{Bound, Counts, commit_all, journal};
use crate::support::Tree;

const BOUNDS: &[Bound] = &[Bound::new("allocations", 30.0, 32.0, 8.5, 10.1, 14.3)];

/// For another version of std, and paths of another length.
const ROOM: f64 = 1.1;

/// The system's allocator; counts for a thread that asks for it.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<Option<usize>> = const { Cell::new(None) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get().map(|count| count + 1));
}

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

/// How often this thread allocates in it.
pub(super) fn of(work: &mut dyn FnMut()) -> usize {
    ALLOCATIONS.set(Some(0));
    work();
    ALLOCATIONS.take().unwrap()
}

#[test]
fn a_transaction_allocates_little() {
    let tree = Tree::new();
    let journal = journal(tree.root());
    let mut counts = Counts::default();
    commit_all(&journal, |kind, transaction| {
        counts.note("allocations", kind, of(transaction));
    });
    counts.check("allocations of the committing thread", BOUNDS, ROOM);
}
