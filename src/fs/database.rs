//! SQLite databases of the tree, as files: a database and what SQLite puts beside it are one thing.
//!
//! They are kept while SQLite's own locks keep writers and checkpoints out, and written back in place while nobody has the
//! database open: whoever opens it later finds the same file under the same name. The locks are open-file-description
//! locks, which meet those of SQLite in this process as well as in others. Runs on the opener's thread.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::attrs::Attrs;
use super::calls;
use super::clone::{self, FileToKeep, Kept, KeptFile, Way};
use super::identity::Identity;
use super::opener::SIDECARS;
use super::root::{self, Kind, Meta, RootDir};
use super::{sys, temp};
use crate::error::{Error, IoContext, Result};
use crate::path::RelPath;
use crate::time::Deadline;

/// The bytes of a database that its readers lock, and those of its `-shm` that a writer and a checkpoint lock.
const READERS: (u64, u64) = (0x4000_0002, 510);
const WRITER_AND_CHECKPOINT: (u64, u64) = (120, 2);
/// How long to wait for somebody's commit to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);
/// This often it is asked whether somebody has a database open.
const LOOKS: usize = 10;

/// A database with its sidecars, to be kept.
#[derive(Clone, Debug)]
pub(crate) struct KeepSet {
    pub(crate) path: RelPath,
    /// Where the database goes, and each sidecar, in the order of [`SIDECARS`].
    pub(crate) to: PathBuf,
    pub(crate) sidecars: [PathBuf; 3],
    /// The database was kept there before, as this: then it is not copied again.
    pub(crate) kept: Option<Identity>,
}

/// What was kept of a database, and of each sidecar.
pub(crate) type KeptSet = (Kept, [Kept; 3]);

/// Locks that keep everybody from changing a database.
struct Quiet {
    _database: OwnedFd,
    _shm: Option<OwnedFd>,
}

/// Keeps a database and its sidecars as they are at one instant. Waits for commits of others to end, and answers
/// [`Error::DatabaseInUse`] when they do not. [`Kept::Database`] for one that was kept before.
pub(crate) fn keep(root: &RootDir, what: &KeepSet) -> Result<KeptSet> {
    let deadline = Deadline::after(PATIENCE);
    let full = root.full(&what.path);
    loop {
        if let Some(_quiet) = quiet(root, &what.path)? {
            let live = root.look(&what.path)?;
            let database = match (&what.kept, live) {
                (Some(kept), Some(live)) if kept.is(&live, false) => Kept::Database,
                _ => keep_one(root, &what.path, &what.to, true)?,
            };
            let mut sidecars = [Kept::Nothing, Kept::Nothing, Kept::Nothing];
            for (n, suffix) in SIDECARS.iter().enumerate() {
                if let Some(path) = what.path.with_suffix(suffix.as_bytes()) {
                    // What SQLite maps into memory may change at any time; it is made anew from the log where it is missing.
                    sidecars[n] = keep_one(root, &path, &what.sidecars[n], *suffix != "-shm")?;
                }
            }
            return Ok((database, sidecars));
        }
        if deadline.passed() {
            return Err(Error::DatabaseInUse { path: full });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Takes the locks. None while somebody is writing.
fn quiet(root: &RootDir, path: &RelPath) -> Result<Option<Quiet>> {
    let open = |path: &RelPath| match root.resolve(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => Ok(Some(file)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let full = root.full(path);
    let Some(database) = open(path)? else { return Err(Error::NotFound { path: full }) };
    let shm = match path.with_suffix(b"-shm") {
        Some(shm) => open(&shm)?,
        None => None,
    };
    let lock = |file: &OwnedFd, exclusive, range| sys::try_lock_range(file.as_fd(), exclusive, range).at("lock", &full);
    let quiet = match &shm {
        // With a log: readers may go on, writers and checkpoints may not; nor may the last to close it.
        Some(shm) => lock(&database, false, READERS)? && lock(shm, true, WRITER_AND_CHECKPOINT)?,
        // A log that nobody has open: whoever opens it would have to wait.
        None if is_wal(&database).at("read", &full)? => lock(&database, true, READERS)?,
        None => lock(&database, false, READERS)?,
    };
    Ok(quiet.then_some(Quiet { _database: database, _shm: shm }))
}

/// True when the header says that the database has a write-ahead log.
fn is_wal(database: &OwnedFd) -> Result<bool, Errno> {
    let mut versions = [0; 2];
    Ok(rustix::io::pread(database, &mut versions, 18)? == 2 && versions == [2, 2])
}

fn keep_one(root: &RootDir, path: &RelPath, to: &Path, must: bool) -> Result<Kept> {
    match calls::unlink(to) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error).at("remove", to),
    }
    match clone::keep_with(root, path, to, Way::Reflink, true) {
        Err(Error::ChangedMeanwhile { .. }) if !must => Ok(Kept::Nothing),
        other => other,
    }
}

/// Locks a database against everybody. None when somebody has it open, or may have.
pub(super) fn lock_alone(root: &RootDir, path: &RelPath) -> Result<Option<Vec<OwnedFd>>> {
    let mut locked = Vec::new();
    for path in [Some(path.clone()), path.with_suffix(b"-shm")].into_iter().flatten() {
        let file = match root.resolve(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => file,
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        if !sys::try_lock_range(file.as_fd(), true, (0, 0)).at("lock", root.full(&path))? {
            return Ok(None);
        }
        locked.push(file);
    }
    // A connection that has nothing to do holds no lock, but it has the file open.
    match locked.first() {
        Some(database) if open_where(database).at("look at", root.full(path))? != Open::Nowhere => Ok(None),
        _ => Ok(Some(locked)),
    }
}

/// Whether a process has a file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nowhere,
    Somewhere,
    /// Not all processes can be looked at, and none of the others has.
    Unknown,
}

fn open_where(file: &OwnedFd) -> Result<Open, Errno> {
    for _ in 0..LOOKS {
        match sys::is_open_elsewhere(file.as_fd()) {
            // A process that was just forked has everything open that its parent had, until it becomes another program.
            Some(true) => std::thread::sleep(PAUSE),
            Some(false) => return Ok(Open::Nowhere),
            None => return root::look_at(file).map(|file| open_in_processes(&file)),
        }
    }
    Ok(Open::Somewhere)
}

/// Looks through all processes. This thread's own descriptors are in a table that is not looked at.
fn open_in_processes(file: &Meta) -> Open {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Open::Unknown };
    let mut found = Open::Nowhere;
    for process in processes.flatten() {
        if !process.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let descriptors = match std::fs::read_dir(process.path().join("fd")) {
            Ok(descriptors) => descriptors,
            // Gone by now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(_) => {
                found = Open::Unknown;
                continue;
            }
        };
        let same = |path: PathBuf| {
            std::fs::metadata(path).is_ok_and(|meta| {
                let dev = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
                meta.ino() == file.ino && dev == file.place.dev
            })
        };
        if descriptors.flatten().any(|descriptor| same(descriptor.path())) {
            return Open::Somewhere;
        }
    }
    found
}

/// True when some process is known to have a file open: a connection that has nothing to do holds no lock.
pub(super) fn is_open(root: &RootDir, path: &RelPath) -> Result<bool> {
    let file = match root.resolve(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(Error::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(open_where(&file).at("look at", root.full(path))? == Open::Somewhere)
}

/// Writes what was kept back into a locked database, which stays the same file. What it held before is copied to `aside`.
pub(super) fn write_back(root: &RootDir, path: &RelPath, kept: &Path, attrs: &Attrs, aside: &Path) -> Result<()> {
    let full = root.full(path);
    let live = root.resolve(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    if root::look_outside(aside).at("look at", aside)?.is_none() {
        clone::keep_with(root, path, aside, Way::Reflink, true)?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let kept = rustix::fs::open(kept, flags, Mode::empty()).at("open", kept)?;
    let size = root::look_at(&kept).at("look at", &full)?.size;
    calls::ftruncate(&live, size).at("put back", &full)?;
    clone::copy_range(&kept, &live, 0, size).at("put back", &full)?;
    temp::finish(&live, Some(attrs), true, &full).map(drop)
}

/// Copies files of the engine's own, side by side, for SQLite to work on.
pub(super) fn copy_own(files: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (from, to) in files {
        let Some(meta) = root::look_outside(from).at("look at", from)? else { continue };
        if meta.kind != Kind::File {
            continue;
        }
        let attrs = Attrs { mode: 0o600, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs: Vec::new() };
        let dir = root::open_outside(from.parent().unwrap_or(from)).at("open", from)?;
        let file = FileToKeep {
            dir: dir.as_fd(),
            name: from.file_name().unwrap_or_default(),
            full: from,
            attrs: &attrs,
            to_dir: rustix::fs::CWD,
            to,
            way: Way::Reflink,
            databases: true,
        };
        let copied: Option<KeptFile> = file.keep(&meta)?;
        copied.ok_or_else(|| Error::ChangedMeanwhile { path: from.clone() })?;
    }
    Ok(())
}
