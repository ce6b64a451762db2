//! The calls that no safe crate offers.
#![expect(unsafe_code, reason = "the one place of this program for calls that no safe crate offers")]

use std::io;

use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

/// Leaves the namespaces that this process was started in.
pub(super) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: descriptors are not unshared.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Forks. The child gets none.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: `prepare` has seen that this process has one thread, so the child is a whole copy of it.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        child => Pid::from_raw(child).filter(|_| child > 0).map(Some).ok_or_else(io::Error::last_os_error),
    }
}

/// Signals every process of this pid namespace but this one, its process 1. Nobody being there is fine.
pub(super) fn signal_all(signal: Signal) {
    // SAFETY: takes no pointers; in a pid namespace of its own, -1 means those in it.
    unsafe { libc::kill(-1, signal.as_raw()) };
}
