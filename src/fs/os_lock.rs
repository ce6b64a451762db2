//! OS locks: the kernel's `flock`, freed when the last descriptor of the holder is gone.
//!
//! A lock file is empty, never unlinked and never truncated. Waiting blocks in the kernel, on a thread of its own, so
//! that a deadline needs no polling; a waiter that gave up unlocks the moment the kernel hands it the lock. A forked child
//! keeps none ([`super::fork`]).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use super::fork::LockFile;
use super::waiting;
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::time::Deadline;
use crate::wait::Patience;

/// Who else may have a lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody.
    Exclusive,
    /// Everybody who shares it too.
    Shared,
}

impl Sharing {
    fn try_on(self, file: &File) -> Result<bool, std::io::Error> {
        let tried = match self {
            Self::Exclusive => fs4::FileExt::try_lock(file),
            Self::Shared => fs4::FileExt::try_lock_shared(file),
        };
        match tried {
            Ok(()) => Ok(true),
            Err(fs4::TryLockError::WouldBlock) => Ok(false),
            Err(fs4::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Blocks in the kernel.
    pub(super) fn wait_on(self, file: &File) -> Result<(), std::io::Error> {
        loop {
            let waited = match self {
                Self::Exclusive => fs4::FileExt::lock(file),
                Self::Shared => fs4::FileExt::lock_shared(file),
            };
            match waited {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// A lock file, open but not necessarily locked.
#[derive(Debug)]
pub(crate) struct OsLock {
    file: LockFile,
    dir: PathBuf,
    name: String,
    /// Other processes may have it open too: what is locked through it again is theirs as well.
    is_lent: AtomicBool,
}

impl OsLock {
    /// Opens, and where needed makes, the lock file `name` in the directory `dir`.
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = LockFile::open(&path, || rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666)))?;
        Ok(Self { file, dir: dir.to_owned(), name: name.to_owned(), is_lent: AtomicBool::new(false) })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_lock(&self) -> Result<bool> {
        self.try_lock_as(Sharing::Exclusive)
    }

    /// Takes the lock if nobody is in the way. IMPORTANT: not through a lock that is held: the kernel would let go of
    /// that first.
    pub(crate) fn try_lock_as(&self, sharing: Sharing) -> Result<bool> {
        sharing.try_on(&self.file).at_in("lock", &self.dir, &self.name)
    }

    /// Waits for the lock until the deadline. False when it passed.
    pub(crate) fn lock_until(&mut self, deadline: Deadline) -> Result<bool> {
        self.lock_as(Sharing::Exclusive, &mut Patience::until(deadline))
    }

    /// Waits until nobody is in the way, as long as patience lasts. False when it came to an end. The kernel lets those
    /// who share in past somebody who waits to have it alone.
    pub(crate) fn lock_as(&mut self, sharing: Sharing, patience: &mut Patience<'_>) -> Result<bool> {
        if self.try_lock_as(sharing)? {
            return Ok(true);
        }
        if patience.is_over() {
            return Ok(false);
        }
        let waiting = || Self::open(&self.dir, &self.name).map(|lock| lock.file);
        match waiting::wait(waiting, self.file.place(), sharing, || self.path(), patience)? {
            Some(granted) => {
                self.file = granted;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// A descriptor of the same lock that processes started from now on inherit.
    pub(crate) fn lend(&self) -> Result<OwnedFd> {
        self.is_lent.store(true, Ordering::Relaxed);
        let lent = rustix::io::fcntl_dupfd_cloexec(&*self.file, 3).at_in("lend", &self.dir, &self.name)?;
        rustix::io::fcntl_setfd(&lent, rustix::io::FdFlags::empty()).at_in("lend", &self.dir, &self.name)?;
        Ok(lent)
    }

    /// True once another process may have inherited it.
    pub(crate) fn is_lent(&self) -> bool {
        self.is_lent.load(Ordering::Relaxed)
    }

    pub(crate) fn unlock(&self) -> Result<()> {
        unlock(&self.file).at_in("unlock", &self.dir, &self.name)
    }

    /// Refuses to go on when the name no longer stands for the file that is locked.
    pub(crate) fn check_same(&self) -> Result<()> {
        let path = self.path();
        match rustix::fs::lstat(&path) {
            Ok(named) if named.st_ino == self.file.place().1 || planted(Fault::LockFileNotChecked) => Ok(()),
            Ok(_) => Err(Error::LockFileReplaced { path }),
            Err(rustix::io::Errno::NOENT) => Err(Error::LockFileReplaced { path }),
            Err(error) => Err(error).at("look at", path),
        }
    }
}

/// Shares the lock on a file that is no lock file, for as long as it is open. False while somebody has it alone.
pub(super) fn share(file: &File) -> Result<bool, std::io::Error> {
    Sharing::Shared.try_on(file)
}

/// The same, to have it alone.
pub(super) fn alone(file: &File) -> Result<bool, std::io::Error> {
    Sharing::Exclusive.try_on(file)
}

pub(super) fn unlock(file: &File) -> Result<(), std::io::Error> {
    fs4::FileExt::unlock(file)
}

/// True when nobody has the lock file in `dir` alone, or it is not there. Shares the lock for an instant, so that any number may
/// ask at once.
pub(crate) fn is_unheld(dir: &Path, name: &str) -> Result<bool> {
    let path = dir.join(name);
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match LockFile::open(&path, || rustix::fs::open(&path, flags, Mode::empty())) {
        Ok(file) => Sharing::Shared.try_on(&file).at("lock", path),
        Err(Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// True when the lock file in `dir` is locked by nobody, or is not there. Takes the lock for an instant.
pub(crate) fn is_free(dir: &OwnedFd, name: &str, path: &Path) -> Result<bool> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match LockFile::open(&path.join(name), || rustix::fs::openat(dir, name, flags, Mode::empty())) {
        Ok(file) => Sharing::Exclusive.try_on(&file).at("lock", path.join(name)),
        Err(Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_shares_a_lock_keeps_out_only_who_wants_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OsLock::open(dir.path(), "tree.lock").unwrap();
        let (first, second, alone) = (open(), open(), open());
        assert!(first.try_lock_as(Sharing::Shared).unwrap());
        assert!(second.try_lock_as(Sharing::Shared).unwrap());
        assert!(!alone.try_lock().unwrap());
        first.unlock().unwrap();
        assert!(!alone.try_lock().unwrap(), "one of them still has it");
        second.unlock().unwrap();
        assert!(alone.try_lock().unwrap());
        assert!(!first.try_lock_as(Sharing::Shared).unwrap());
    }

    #[test]
    fn who_waits_to_share_a_lock_gets_it_with_all_others_who_do_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OsLock::open(dir.path(), "tree.lock").unwrap();
        let alone = open();
        assert!(alone.try_lock().unwrap());
        assert!(
            !open().lock_as(Sharing::Shared, &mut Patience::until(Deadline::after(Duration::from_millis(5)))).unwrap()
        );
        let long = Deadline::after(Duration::from_secs(30));
        let waiters = [(); 2].map(|()| {
            let mut lock = open();
            #[expect(clippy::disallowed_methods, reason = "a thread of a test needs no name")]
            std::thread::spawn(move || lock.lock_as(Sharing::Shared, &mut Patience::until(long)).map(|got| (got, lock)))
        });
        alone.unlock().unwrap();
        let held = waiters.map(|waiter| waiter.join().unwrap().unwrap());
        assert!(held.iter().all(|(got, _)| *got));
        assert!(!alone.try_lock().unwrap());
    }
}
