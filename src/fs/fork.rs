//! What a forked child gets of this process's OS locks: nothing.
//!
//! A child has a copy of every descriptor, and an OS lock lasts until the last copy is closed: a child that lives on would
//! keep the locks of a parent that died. To unlock in the child would be worse: a lock is the open file's, so the parent
//! would lose it. So, before `fork` returns in the child, each descriptor of a lock becomes one of `/dev/null`: the number
//! stays taken, and who closes it later closes nothing of anybody's.
//!
//! 1. A lock file is opened and listed under one mutex.
//! 2. Whoever forks holds that mutex meanwhile: none is open in the child that the list does not know.
//! 3. The child replaces what is listed and remembers it as inherited: what it names must not be opened there again.
//! 4. Whatever was made before the fork can tell by [`Born`].
//!
//! A program that is started with `exec` gets no lock files but those that are lent. A child made by a bare `clone` or
//! `vfork` that does not go on to `exec` is not seen.
#![expect(unsafe_code, reason = "no safe crate has handlers for forks, or replaces descriptors by number")]

use std::cell::Cell;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::{DupFlags, Errno};

use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};

/// How many forks lie between this process and the first one.
static FORKS: AtomicU64 = AtomicU64::new(0);
static NUMBERS: AtomicU64 = AtomicU64::new(0);
static LISTED: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

thread_local! {
    /// The list, in the hands of the thread that forks.
    static FORKING: Cell<Option<ManuallyDrop<MutexGuard<'static, Vec<Listed>>>>> = const { Cell::new(None) };
}

/// An open lock file, or one that the parent had open.
#[derive(Debug)]
struct Listed {
    number: u64,
    fd: RawFd,
    /// Device and inode.
    place: (u64, u64),
    inherited: bool,
}

/// In which process something was made, as far as forks go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Born(u64);

impl Born {
    pub(crate) fn here() -> Self {
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// True in the process that made it.
    pub(crate) fn is_here(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }

    /// True in a process that was not forked from one that had a lock file open.
    pub(super) fn is_first(self) -> bool {
        self.0 == 0
    }

    /// [`Error::Forked`] in a child of that process.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked) }
    }
}

impl Default for Born {
    fn default() -> Self {
        Self::here()
    }
}

/// An open lock file, which no forked child gets.
#[derive(Debug)]
pub(super) struct LockFile {
    /// Closed first: a descriptor that is listed and not open does no harm.
    file: File,
    entry: Entry,
}

/// Its line in the list.
#[derive(Debug)]
struct Entry {
    number: u64,
    place: (u64, u64),
}

impl LockFile {
    /// Opens a lock file; `path` is for messages. [`Error::Forked`] when the process that this one was forked from had it
    /// open: the journal is that process's.
    pub(super) fn open(path: &Path, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Self> {
        handle_forks().at("have forks handled for", path)?;
        let mut listed = list();
        let file: File = open().at("open the lock file", path)?.into();
        let place = place_of(file.as_fd()).at("look at", path)?;
        if listed.iter().any(|known| known.inherited && known.place == place) {
            return Err(Error::Forked);
        }
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        listed.push(Listed { number, fd: file.as_raw_fd(), place, inherited: false });
        Ok(Self { file, entry: Entry { number, place } })
    }

    /// Device and inode of what is locked.
    pub(super) fn place(&self) -> (u64, u64) {
        self.entry.place
    }
}

/// [`Error::Forked`] when the process that this one was forked from had the lock file of that path open.
pub(crate) fn refuse_inherited(path: &Path) -> Result<()> {
    if Born::here().0 == 0 {
        return Ok(());
    }
    let Ok(named) = rustix::fs::lstat(path) else { return Ok(()) };
    let place = (named.st_dev, named.st_ino);
    match list().iter().any(|known| known.inherited && known.place == place) {
        true => Err(Error::Forked),
        false => Ok(()),
    }
}

impl Deref for LockFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut listed = list();
        if let Some(at) = listed.iter().position(|known| known.number == self.number && !known.inherited) {
            listed.swap_remove(at);
        }
    }
}

fn list() -> MutexGuard<'static, Vec<Listed>> {
    LISTED.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn place_of(file: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(file).map(|meta| (meta.st_dev, meta.st_ino))
}

/// Has the kernel's forks announced, from the first lock file on.
fn handle_forks() -> std::io::Result<()> {
    static HANDLED: OnceLock<i32> = OnceLock::new();
    // SAFETY: the handlers live as long as the program, and the one of the child calls nothing that a forked child of
    // several threads may not: no allocation, and of locks only the one that this very thread holds.
    match *HANDLED.get_or_init(|| unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) }) {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn before() {
    FORKING.set(Some(ManuallyDrop::new(list())));
}

extern "C" fn in_parent() {
    drop(FORKING.take().map(ManuallyDrop::into_inner));
}

extern "C" fn in_child() {
    let Some(mut listed) = FORKING.take().map(ManuallyDrop::into_inner) else { return };
    FORKS.fetch_add(1, Ordering::Relaxed);
    let mut nothing = open_nothing();
    for lock in listed.iter_mut().filter(|lock| !lock.inherited) {
        lock.inherited = true;
        // SAFETY: open, or the look at it fails; and not touched by anybody else: this is the only thread.
        let fd = unsafe { BorrowedFd::borrow_raw(lock.fd) };
        // A thread with a descriptor table of its own may have forked, where this number means something else.
        if place_of(fd) != Ok(lock.place) || planted(Fault::ChildKeepsLocks) {
            continue;
        }
        // SAFETY: the number stays owned by who opened it, and is not closed here.
        let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(lock.fd) });
        match &nothing {
            Some(nothing) => drop(rustix::io::dup3(nothing, &mut fd, DupFlags::CLOEXEC)),
            None => {
                // No descriptor was left, or the sandbox has no such file. To keep the lock would be worse.
                drop(ManuallyDrop::into_inner(fd));
                nothing = open_nothing();
            }
        }
    }
    // It may have got the number of a lock just now.
    let stands_in = |nothing: &OwnedFd| listed.iter().any(|lock| lock.fd == nothing.as_raw_fd());
    if nothing.as_ref().is_some_and(stands_in) {
        std::mem::forget(nothing);
    }
}

fn open_nothing() -> Option<OwnedFd> {
    rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_is_not_listed_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let open = || LockFile::open(&path, || rustix::fs::open(&path, flags, Mode::RWXU)).unwrap();
        let listed = |ino| list().iter().filter(|known| known.place.1 == ino).count();
        let (first, second) = (open(), open());
        let ino = first.place().1;
        assert_eq!((second.place().1, listed(ino)), (ino, 2));
        drop(first);
        assert_eq!(listed(ino), 1);
        drop(second);
        assert_eq!(listed(ino), 0);
    }
}
