//! Named locks, exclusive: first come, first served within the process, the kernel's queue across processes.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use super::rows;
use crate::error::{Error, Result};
use crate::fs::os_lock::OsLock;
use crate::id::{Fence, SessionId};
use crate::store::{Durability, Store, Turn, Tx};
use crate::time::Deadline;

/// The longest name of a lock, in bytes; escaped it still fits a file's name.
const NAME_MAX: usize = 80;

/// All named locks, as this process sees them.
#[derive(Debug)]
pub(crate) struct Locks {
    dir: PathBuf,
    session: SessionId,
    queues: Arc<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    waiting: Mutex<HashMap<String, VecDeque<u64>>>,
    moved: Condvar,
}

/// A place in this process's queue for one name. Leaves the queue on drop.
#[derive(Debug)]
struct Ticket {
    queues: Arc<Queues>,
    name: String,
    number: u64,
}

/// A held lock. Dropping it frees the OS lock at once and leaves a row that says "held"; [`Lease::release`] mends
/// the row first.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub(crate) struct Lease {
    pub(crate) name: String,
    pub(crate) fence: Fence,
    os: OsLock,
    _ticket: Ticket,
}

/// The OS lock, before the acquisition is recorded.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub(crate) struct Granted {
    name: String,
    os: OsLock,
    ticket: Ticket,
}

impl Locks {
    pub(crate) fn new(dir: PathBuf, session: SessionId) -> Self {
        Self { dir, session, queues: Arc::default() }
    }

    /// Waits for the OS lock `name`. [`Error::Busy`] names the holder when the deadline passes.
    pub(crate) fn wait(&self, store: &Store, name: &str, deadline: Deadline) -> Result<Granted> {
        let file = file_name(name)?;
        let busy = || {
            // Who holds it is worth knowing, but not worth failing over.
            let holder = store
                .enter(std::time::Duration::from_millis(200))
                .and_then(|turn| turn.look(|tx| rows::holder(tx, name)));
            Error::Busy {
                what: format!("lock {name:?}"),
                holder: holder.unwrap_or_else(|_| "another process".into()),
                waited: deadline.waited(),
            }
        };
        let Some(ticket) = Ticket::draw(&self.queues, name, deadline) else { return Err(busy()) };
        loop {
            let mut os = OsLock::open(&self.dir, &file)?;
            if !os.lock_until(deadline)? {
                return Err(busy());
            }
            match os.check_same() {
                Ok(()) => return Ok(Granted { name: name.to_owned(), os, ticket }),
                // Replaced while we waited: the lock is on whatever has the name now.
                Err(Error::LockFileReplaced { .. }) if !deadline.passed() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Records the acquisition: a larger fence, who and why. Not synced: a power cut frees every lock anyway, and the
    /// fences' ceiling is durable.
    pub(crate) fn record(&self, granted: Granted, turn: &mut Turn<'_>, purpose: &str) -> Result<Lease> {
        let Granted { name, os, ticket } = granted;
        let acquire = |tx: &Tx<'_>| rows::acquire(tx, &name, self.session, purpose);
        let fence = match turn.write(Durability::Normal, acquire)? {
            Some(fence) => fence,
            // Once in a million: a new block of fences has to be durable before one of them is handed out.
            None => {
                turn.write(Durability::Full, rows::raise_ceiling)?;
                let fence = turn.write(Durability::Normal, acquire)?;
                fence.ok_or_else(|| Error::corrupt("journal_meta", "the ceiling of fences does not rise"))?
            }
        };
        Ok(Lease { name, fence, os, _ticket: ticket })
    }
}

impl Lease {
    /// Refuses to go on when the lock file is no longer the one that was locked.
    pub(crate) fn check_same(&self) -> Result<()> {
        self.os.check_same()
    }

    /// Records the release inside a transaction that is being written anyway. The OS lock goes with the lease.
    pub(crate) fn note_release(&self, tx: &Tx<'_>) -> Result<()> {
        rows::release(tx, &self.name, self.fence)
    }

    /// Counts that this lock was lost.
    pub(crate) fn note_loss(&self, turn: &mut Turn<'_>) -> Result<()> {
        turn.write(Durability::Normal, |tx| rows::count_loss(tx, &self.name))
    }

    /// Records the release, then frees the lock.
    pub(crate) fn release(self, turn: &mut Turn<'_>) -> Result<()> {
        turn.write(Durability::Normal, |tx| self.note_release(tx))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Explicitly: a forked child may have inherited the descriptor, and would keep the lock.
        let _ = self.os.unlock();
    }
}

impl Ticket {
    fn draw(queues: &Arc<Queues>, name: &str, deadline: Deadline) -> Option<Self> {
        let mut waiting = queues.waiting.lock().unwrap_or_else(|poison| poison.into_inner());
        let queue = waiting.entry(name.to_owned()).or_default();
        let number = queue.back().map_or(0, |last| last + 1);
        queue.push_back(number);
        let ticket = Self { queues: Arc::clone(queues), name: name.to_owned(), number };
        loop {
            if waiting.get(name).and_then(VecDeque::front) == Some(&number) {
                return Some(ticket);
            }
            if deadline.passed() {
                drop(waiting);
                return None;
            }
            waiting = match queues.moved.wait_timeout(waiting, deadline.left()) {
                Ok((waiting, _)) => waiting,
                Err(poison) => poison.into_inner().0,
            };
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.queues.waiting.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some(queue) = waiting.get_mut(&self.name) {
            queue.retain(|&number| number != self.number);
            if queue.is_empty() {
                waiting.remove(&self.name);
            }
        }
        drop(waiting);
        self.queues.moved.notify_all();
    }
}

/// The file of a lock: letters, digits, `.`, `-` and `_` as they are, every other byte as `%xx`.
pub(crate) fn file_name(name: &str) -> Result<String> {
    let bad = |reason| Err(Error::BadPath { path: name.into(), reason });
    match name.len() {
        0 => return bad("a lock needs a name"),
        1..=NAME_MAX => {}
        _ => return bad("a lock's name has at most 80 bytes"),
    }
    let mut file = String::with_capacity(name.len() + 5);
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => file.push(char::from(byte)),
            b'.' if at > 0 => file.push('.'),
            _ => file.push_str(&format!("%{byte:02x}")),
        }
    }
    file.push_str(".lock");
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_locks_become_names_of_files() {
        assert_eq!(file_name("main").unwrap(), "main.lock");
        assert_eq!(file_name("sync:a/b é").unwrap(), "sync%3aa%2fb%20%c3%a9.lock");
        assert_eq!(file_name("..").unwrap(), "%2e..lock");
        assert!(file_name("").is_err() && file_name(&"x".repeat(81)).is_err());
    }
}
