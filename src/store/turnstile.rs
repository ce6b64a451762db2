//! The turnstile: the OS lock that one process at a time has to write.
//!
//! Who has had it may take it again, for a short while, without asking who waits: to hand it from process to process for each
//! commit would take several times as long as the commits. After that it queues up behind the others, at a second lock:
//! whoever has that one is the next, and alone in waiting for the turnstile. A process that dies leaves both to the next.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fs::os_lock::OsLock;
use crate::time::Deadline;

/// The turnstile's file, in the state directory.
pub(crate) const TURNSTILE: &str = "turnstile.lock";
/// Who is next waits here for all others.
const NEXT: &str = "turnstile-next.lock";
/// So long may a process have it again and again. With eight of them each waits for seven times as long.
const SLICE: Duration = Duration::from_millis(10);
/// Who stayed away for so long has let everybody in who was waiting then.
const AWAY: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Turnstile {
    lock: OsLock,
    /// Held by the one that is next.
    next: OsLock,
    slice: Deadline,
    away: Deadline,
}

impl Turnstile {
    /// Opens it in the state directory.
    pub(super) fn open(state: &Path) -> Result<Self> {
        let lock = OsLock::open(state, TURNSTILE)?;
        Ok(Self {
            lock,
            next: OsLock::open(state, NEXT)?,
            slice: Deadline::after(Duration::ZERO),
            away: Deadline::after(Duration::ZERO),
        })
    }

    /// Waits for it. [`Error::Busy`] when it does not come free in time.
    pub(super) fn pass(&mut self, deadline: Deadline) -> Result<()> {
        if self.away.passed() {
            self.slice = Deadline::after(SLICE);
        }
        if self.slice.passed() || !self.lock.try_lock()? {
            self.queue_up(deadline)?;
        }
        self.lock.check_same()
    }

    fn queue_up(&mut self, deadline: Deadline) -> Result<()> {
        let came = self.next.lock_until(deadline)? && {
            let came = self.lock.lock_until(deadline);
            self.next.unlock()?;
            came?
        };
        if !came {
            let (what, holder) = ("the turnstile".to_owned(), "another process".to_owned());
            return Err(Error::Busy { what, holder, waited: deadline.waited() });
        }
        self.slice = Deadline::after(SLICE);
        Ok(())
    }

    pub(super) fn unlock(&mut self) -> Result<()> {
        self.away = Deadline::after(AWAY);
        self.lock.unlock()
    }
}
