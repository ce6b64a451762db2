//! Named locks, exclusive: first come, first served within the process, the kernel's queue across processes.
//!
//! Exclusion is the OS lock's. The row (who, why, which fence) need not be there before somebody can see the
//! difference: COMMIT records acquisition and release with the rest of the transaction, and what is held longer than
//! that is recorded in the background ([`Locks::record_held`]). A crash before either leaves no trace, and nobody has
//! seen the fence.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::rows;
use crate::error::{Error, Result};
use crate::fs::os_lock::OsLock;
use crate::id::{Fence, SessionId};
use crate::store::{Durability, Store, Turn, Tx};
use crate::time::Deadline;

/// The longest name of a lock, in bytes; escaped it still fits a file's name.
const NAME_MAX: usize = 80;
/// This many lock files stay open between acquisitions.
const FILES_KEPT: usize = 32;

/// All named locks, as this process sees them.
#[derive(Debug)]
pub(crate) struct Locks {
    dir: PathBuf,
    session: SessionId,
    names: Arc<Names>,
}

#[derive(Debug, Default)]
struct Names {
    known: Mutex<HashMap<String, Name>>,
    moved: Condvar,
}

/// One name, while anybody in this process has or wants it, or its file is open.
#[derive(Debug, Default)]
struct Name {
    /// Tickets of those who have it or wait, in order.
    queue: VecDeque<u64>,
    /// Somebody of this process has the OS lock.
    granted: bool,
    /// Who has it.
    standing: Option<Arc<Standing>>,
    /// The lock file, open and not locked, for the next one.
    idle: Option<OsLock>,
}

/// A place in this process's queue for one name. Leaves the queue on drop.
#[derive(Debug)]
struct Ticket {
    names: Arc<Names>,
    name: String,
    number: u64,
    /// The lock file, to be left open for the next one.
    leave: Option<OsLock>,
}

/// What the row of a held lock says of its holder. Changes only within a turn.
#[derive(Debug)]
struct Standing {
    name: String,
    purpose: String,
    record: Mutex<Record>,
}

#[derive(Clone, Copy, Debug)]
enum Record {
    /// Nothing yet. The newest acquisition that the row knows had this fence; `seen` by the background before.
    Unwritten { newest: i64, seen: bool },
    /// The row says that this holder has the lock, with this fence.
    Written(Fence),
    /// The row says that it was released.
    Over,
}

/// A held lock. Dropping it frees the OS lock at once; a row that says "held" is mended by [`Lease::release`] first.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub(crate) struct Lease {
    standing: Arc<Standing>,
    session: SessionId,
    os: Option<OsLock>,
    ticket: Ticket,
}

/// The OS lock, before anybody looked at the row.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub(crate) struct Granted {
    os: OsLock,
    ticket: Ticket,
}

impl Locks {
    pub(crate) fn new(dir: PathBuf, session: SessionId) -> Self {
        Self { dir, session, names: Arc::default() }
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
        let Some((ticket, mut idle)) = Ticket::draw(&self.names, name, deadline) else { return Err(busy()) };
        loop {
            let mut os = match idle.take() {
                Some(open) => open,
                None => OsLock::open(&self.dir, &file)?,
            };
            if !os.lock_until(deadline)? {
                return Err(busy());
            }
            match os.check_same() {
                Ok(()) => {
                    if let Some(known) = self.names.lock().get_mut(name) {
                        known.granted = true;
                    }
                    return Ok(Granted { os, ticket });
                }
                // Replaced while we waited: the lock is on whatever has the name now.
                Err(Error::LockFileReplaced { .. }) if !deadline.passed() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// True when a holder of this process has the lock `name`.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.names.lock().get(name).is_some_and(|name| name.granted)
    }

    /// Takes the OS lock `name` if nobody at all has it, for as long as the answer lives.
    pub(crate) fn try_os_lock(&self, name: &str) -> Result<Option<OsLock>> {
        let lock = OsLock::open(&self.dir, &file_name(name)?)?;
        Ok(lock.try_lock()?.then_some(lock))
    }

    /// Holds a granted lock whose row has the fence `newest`.
    pub(crate) fn hold(&self, granted: Granted, newest: i64, purpose: &str) -> Lease {
        let Granted { os, ticket } = granted;
        let record = Mutex::new(Record::Unwritten { newest, seen: false });
        let standing = Arc::new(Standing { name: ticket.name.clone(), purpose: purpose.to_owned(), record });
        if let Some(name) = self.names.lock().get_mut(&standing.name) {
            name.standing = Some(Arc::clone(&standing));
        }
        Lease { standing, session: self.session, os: Some(os), ticket }
    }

    /// Sees which locks are held and not recorded; true when one of them was seen so before, and is due.
    pub(crate) fn see_unrecorded(&self) -> Unrecorded {
        let known = self.names.lock();
        let mut found = Unrecorded::default();
        for standing in known.values().filter_map(|name| name.standing.as_ref()) {
            if let Record::Unwritten { seen, .. } = &mut *standing.record() {
                found.any = true;
                found.due |= std::mem::replace(seen, true);
            }
        }
        found
    }

    /// Records who holds what: a larger fence, who and why. Not synced: a power cut frees every lock anyway, and the
    /// fences' ceiling is durable.
    pub(crate) fn record_held(&self, turn: &mut Turn<'_>) -> Result<()> {
        let held: Vec<Arc<Standing>> = self.names.lock().values().filter_map(|name| name.standing.clone()).collect();
        for standing in held {
            let Record::Unwritten { newest, .. } = *standing.record() else { continue };
            // Once in a million a new block of fences has to be durable before one of them is handed out.
            let durability = match turn.look(rows::has_fences)? {
                true => Durability::Normal,
                false => Durability::Full,
            };
            let fence = turn.write(durability, |tx| standing.acquire(tx, self.session, newest, false));
            match fence {
                Ok(fence) => *standing.record() = Record::Written(fence),
                // The holder finds out at its next use.
                Err(Error::LockLost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Locks of this process that are held and whose rows do not say so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unrecorded {
    /// There are some.
    pub(crate) any: bool,
    /// Some have been so for a while.
    pub(crate) due: bool,
}

impl Names {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        self.known.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Standing {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn acquire(&self, tx: &Tx<'_>, session: SessionId, newest: i64, over: bool) -> Result<Fence> {
        if rows::newest_fence(tx, &self.name)? != newest {
            return Err(self.lost(Fence(newest)));
        }
        rows::acquire(tx, &self.name, session, &self.purpose, over)
    }

    fn lost(&self, fence: Fence) -> Error {
        Error::LockLost { name: self.name.clone(), fence }
    }
}

impl Lease {
    pub(crate) fn name(&self) -> &str {
        &self.standing.name
    }

    /// Refuses to go on when the lock file is no longer the one that was locked.
    pub(crate) fn check_same(&self) -> Result<()> {
        self.os.as_ref().map_or(Err(Error::Closed), OsLock::check_same)
    }

    /// Inside COMMIT: refuses when somebody else has acquired the lock since, and records the release; the
    /// acquisition too where that has not been done. Answers the fence.
    pub(crate) fn conclude(&self, tx: &Tx<'_>) -> Result<Fence> {
        match *self.standing.record() {
            Record::Unwritten { newest, .. } => self.standing.acquire(tx, self.session, newest, true),
            Record::Written(fence) if rows::release(tx, self.name(), fence)? => Ok(fence),
            Record::Written(fence) => Err(self.standing.lost(fence)),
            Record::Over => Err(Error::Closed),
        }
    }

    /// After a COMMIT that has concluded it: the row needs nothing more.
    pub(crate) fn concluded(&self) {
        *self.standing.record() = Record::Over;
    }

    /// The fence, once the row says that this lock is held.
    pub(crate) fn fence(&self) -> Option<Fence> {
        match *self.standing.record() {
            Record::Written(fence) => Some(fence),
            _ => None,
        }
    }

    /// True when the row says that this lock is held.
    pub(crate) fn is_recorded(&self) -> bool {
        matches!(*self.standing.record(), Record::Written(_))
    }

    /// A descriptor of the lock that processes started from now on inherit.
    pub(crate) fn lend(&self) -> Result<OwnedFd> {
        self.os.as_ref().map_or(Err(Error::Closed), OsLock::lend)
    }

    /// The error of a holder whose lock was taken by somebody else.
    pub(crate) fn lost(&self) -> Error {
        let fence = match *self.standing.record() {
            Record::Written(fence) => fence,
            Record::Unwritten { newest, .. } => Fence(newest),
            Record::Over => Fence(0),
        };
        self.standing.lost(fence)
    }

    /// Counts that this lock was lost.
    pub(crate) fn note_loss(&self, turn: &mut Turn<'_>) -> Result<()> {
        turn.write(Durability::Normal, |tx| rows::count_loss(tx, self.name()))
    }

    /// Records the release, if the row says that the lock is held.
    pub(crate) fn note_release(&self, turn: &mut Turn<'_>) -> Result<()> {
        let record = *self.standing.record();
        if let Record::Written(fence) = record {
            turn.write(Durability::Normal, |tx| rows::release(tx, self.name(), fence))?;
        }
        self.concluded();
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Explicitly: a forked child may have inherited the descriptor, and would keep the lock.
        self.ticket.leave = self.os.take().filter(|os| os.unlock().is_ok());
    }
}

impl Ticket {
    /// Waits for this process's turn at a name; comes with the lock file if it is open already.
    fn draw(names: &Arc<Names>, name: &str, deadline: Deadline) -> Option<(Self, Option<OsLock>)> {
        let mut known = names.lock();
        let entry = known.entry(name.to_owned()).or_default();
        let number = entry.queue.back().map_or(0, |last| last + 1);
        entry.queue.push_back(number);
        let ticket = Self { names: Arc::clone(names), name: name.to_owned(), number, leave: None };
        loop {
            if let Some(entry) = known.get_mut(name)
                && entry.queue.front() == Some(&number)
            {
                let idle = entry.idle.take();
                return Some((ticket, idle));
            }
            if deadline.passed() {
                drop(known);
                return None;
            }
            known = match names.moved.wait_timeout(known, deadline.left()) {
                Ok((known, _)) => known,
                Err(poison) => poison.into_inner().0,
            };
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut known = self.names.lock();
        let open = known.len();
        let Some(entry) = known.get_mut(&self.name) else { return };
        if entry.queue.front() == Some(&self.number) {
            (entry.standing, entry.granted) = (None, false);
            entry.idle = self.leave.take().filter(|_| open <= FILES_KEPT);
        }
        entry.queue.retain(|&number| number != self.number);
        if !entry.queue.is_empty() {
            drop(known);
            self.names.moved.notify_all();
        } else if entry.idle.is_none() {
            known.remove(&self.name);
        }
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
