//! Nothing may ask for much memory at once because of what is stored: a record is at most 1 MiB.

use std::alloc::{GlobalAlloc, Layout, System};

/// More than anything here has a reason to ask for.
const LIMIT: usize = 16 << 20;

struct Limited;

#[global_allocator]
static LIMITED: Limited = Limited;

fn refuse_too_much(size: usize) {
    if size > LIMIT {
        let told = "somebody asked for more than 16 MiB at once\n";
        // SAFETY: the text is as long as it says. What panics would ask for memory itself.
        unsafe { libc::write(2, told.as_ptr().cast(), told.len()) };
        std::process::abort();
    }
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        refuse_too_much(layout.size());
        // SAFETY: what the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        refuse_too_much(layout.size());
        // SAFETY: what the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: what the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        refuse_too_much(size);
        // SAFETY: what the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}
