//! Processes that are killed, and what they tell before: memory that they share with who started them.
//!
//! Only for a process with one thread, as a fuzz target is, or one test alone.
#![allow(unsafe_code, reason = "no safe crate forks")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a child tells.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Which of the states that were possible it found, from 1; 0: it did not come that far.
    pub(crate) found: AtomicU64,
    /// How many acts it began, and how many of them ended.
    pub(crate) begun: AtomicU64,
    pub(crate) ended: AtomicU64,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Killed,
    Failed,
}

/// Where the children of this process tell.
pub(crate) fn told() -> &'static Told {
    static TOLD: OnceLock<usize> = OnceLock::new();
    // SAFETY: the mapping is never unmapped, is zeroed, aligned to a page, and holds nothing but atomics.
    unsafe { &*(*TOLD.get_or_init(|| shared(size_of::<Told>()) as usize) as *const Told) }
}

/// Memory that children share.
fn shared(size: usize) -> *mut u8 {
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, of which nobody knows yet.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, rights, flags, -1, 0) };
    assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    at.cast()
}

/// Runs `work` in a process of its own.
pub(crate) fn run(work: impl FnOnce()) -> Ending {
    let told = told();
    for number in [&told.found, &told.begun, &told.ended] {
        number.store(0, Ordering::SeqCst);
    }
    coverage::prepare();
    // SAFETY: this process has one thread, so the child finds no lock held by another.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: it has no memory to go wrong with.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            std::panic::set_hook(Box::new(|what| {
                eprintln!("{what}");
                end(101)
            }));
            work();
            end(0)
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            while unsafe { libc::waitpid(child, &mut status, 0) } != child {
                // The fuzzer is interrupted by its clock.
                let error = std::io::Error::last_os_error();
                assert_eq!(error.raw_os_error(), Some(libc::EINTR), "{error}");
            }
            coverage::take_over();
            match status {
                0 => Ending::Done,
                status if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL => Ending::Killed,
                _ => Ending::Failed,
            }
        }
    }
}

/// Ends this process without another word.
fn end(code: i32) -> ! {
    coverage::leave();
    // SAFETY: it never returns.
    unsafe { libc::_exit(code) }
}

/// Kills this process, as anybody could.
pub(crate) fn die() -> ! {
    last_words("");
    // SAFETY: it has no memory to go wrong with.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    loop {
        std::thread::park();
    }
}

/// What a child does just before it is killed.
pub(crate) fn last_words(_: &'static str) {
    coverage::leave();
}

/// Which code a child went through is what the fuzzer learns from, so its counters are handed over.
#[cfg(fuzzing)]
mod coverage {
    use std::sync::OnceLock;

    unsafe extern "C" {
        static mut __start___sancov_cntrs: u8;
        static mut __stop___sancov_cntrs: u8;
    }

    fn counters() -> (*mut u8, usize) {
        let (start, stop) = (&raw mut __start___sancov_cntrs, &raw mut __stop___sancov_cntrs);
        (start, stop as usize - start as usize)
    }

    fn kept() -> *mut u8 {
        static KEPT: OnceLock<usize> = OnceLock::new();
        *KEPT.get_or_init(|| super::shared(counters().1) as usize) as *mut u8
    }

    pub(super) fn prepare() {
        let (counters, length) = counters();
        // SAFETY: both have this length, and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(counters, kept(), length) };
    }

    pub(super) fn leave() {
        prepare();
    }

    pub(super) fn take_over() {
        let (counters, length) = counters();
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(kept(), counters, length) };
    }
}

#[cfg(not(fuzzing))]
mod coverage {
    pub(super) fn prepare() {}
    pub(super) fn leave() {}
    pub(super) fn take_over() {}
}
