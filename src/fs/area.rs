//! An area: stage, history and quarantine on one mount.
//!
//! A rename does not cross mounts or subvolumes, so each that lies inside the root has an area of its own: the state
//! directory is one, and `<top of the mount>/.journal-stage` any other. Names in a stage are
//! `<session>-<number>`: never reused, and they say whose they are.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::calls;
use super::exchange;
use super::fork::Born;
use super::root::{self, Dir, Kind, Meta, Place, RootDir};
use crate::error::{Error, IoContext, Result};
use crate::path::{AREA_DIR, RelPath};

/// How long a stamp of the filesystem is waited for.
const CLOCK_STEP: Duration = Duration::from_micros(500);
const CLOCK_TRIES: u32 = 200;
/// The area of the state directory.
pub(crate) const STATE_AREA: i64 = 0;

/// One open area.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) id: i64,
    /// The top of its mount inside the root; none for the root's own and the state directory's.
    pub(crate) top: Option<RelPath>,
    pub(crate) path: PathBuf,
    pub(crate) stage_dir: PathBuf,
    pub(crate) place: Place,
    pub(crate) dir: OwnedFd,
    pub(crate) stage: OwnedFd,
    pub(crate) history: OwnedFd,
    pub(crate) quarantine: OwnedFd,
    /// False once the filesystem has said that it cannot exchange two names.
    exchanges: AtomicBool,
    /// A forked child drops what its parent still has staged.
    born: Born,
}

impl Area {
    /// Opens, and where needed makes, an area in the open directory `dir`.
    pub(crate) fn open(id: i64, dir: OwnedFd, path: PathBuf) -> Result<Self> {
        let place = root::look_at(&dir).at("look at", &path)?.place;
        let sub = |name: &str| subdirectory(&dir, name, &path, 0o700);
        let (stage, history, quarantine) = (sub("stage")?, sub("history")?, sub("quarantine")?);
        let stage_dir = path.join("stage");
        Ok(Self {
            id,
            top: None,
            path,
            stage_dir,
            place,
            dir,
            stage,
            history,
            quarantine,
            exchanges: AtomicBool::new(true),
            born: Born::here(),
        })
    }

    /// Opens, and where needed makes, the area of the mount whose topmost directory inside the root is `top`.
    pub(crate) fn open_in_tree(id: i64, root: &RootDir, top: Option<&RelPath>) -> Result<Self> {
        let opened;
        let dir: &Dir = match top {
            None => root.top(),
            Some(top) => {
                opened = root.open_dir(top)?;
                let above = match top.parent() {
                    None => root.top().meta.place,
                    Some(above) => root.open_dir(&above)?.meta.place,
                };
                // IMPORTANT: the directory that a mount covers is there without it, and what waits for the mount is not to be
                // carried into that.
                if opened.meta.place == above {
                    return Err(Error::NotMounted { area: id });
                }
                &opened
            }
        };
        let path = top.map_or(root.path().to_owned(), |top| root.full(top));
        let dir = subdirectory(&dir.fd, AREA_DIR, &path, 0o700)?;
        let path = path.join(AREA_DIR);
        ignore_in_git(&dir, &path)?;
        Ok(Self { top: top.cloned(), ..Self::open(id, dir, path)? })
    }

    pub(crate) fn stage_path(&self, name: &str) -> PathBuf {
        self.stage_dir.join(name)
    }

    pub(crate) fn can_exchange(&self) -> bool {
        self.exchanges.load(Ordering::Relaxed)
    }

    pub(super) fn cannot_exchange(&self) {
        self.exchanges.store(false, Ordering::Relaxed);
    }

    /// Moves what lies at `source`, outside the tree, into the stage. `EXDEV` when it is on another filesystem.
    pub(crate) fn adopt(&self, source: &Path, name: &str) -> Result<(), Errno> {
        exchange::take(rustix::fs::CWD, source.as_os_str(), &self.stage, name)
    }

    /// Moves an adopted name back to where it came from, if nothing is there.
    pub(crate) fn give_back(&self, name: &str, to: &Path) -> Result<(), Errno> {
        calls::renameat_with(&self.stage, name, rustix::fs::CWD, to, RenameFlags::NOREPLACE)
    }

    /// Gives a name of the stage another.
    pub(crate) fn rename_staged(&self, from: &str, to: &str) -> Result<()> {
        check_name(to)?;
        calls::renameat(&self.stage, from, &self.stage, to).at("rename", self.stage_path(from))
    }

    /// Moves an old version from the stage to history; fine when it went there before.
    pub(crate) fn to_history(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let moved = match calls::renameat_with(&self.stage, name, &self.history, name, RenameFlags::NOREPLACE) {
            // A power cut may leave both names of a rename, and then a rename does nothing at all.
            Err(Errno::EXIST) => match self.is_in_history(name)? {
                true => calls::unlinkat(&self.stage, name, AtFlags::empty()),
                false => calls::renameat(&self.stage, name, &self.history, name),
            },
            Err(Errno::INVAL | Errno::NOSYS) => calls::renameat(&self.stage, name, &self.history, name),
            other => other,
        };
        match moved {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // There is one of that name, which no name of ours is used for twice: both are kept, each where it is.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error).at("move to history", self.stage_path(name)),
        }
    }

    /// Looks at a name of history.
    pub(crate) fn look_in_history(&self, name: &str) -> Result<Option<Meta>> {
        root::look(&self.history, name).at_in("look at", &self.path, name)
    }

    /// True when a file of the stage has the same name in history too.
    fn is_in_history(&self, name: &str) -> Result<bool> {
        let staged = self.look_staged(name)?;
        Ok(staged
            .zip(self.look_in_history(name)?)
            .is_some_and(|(staged, there)| staged.ino == there.ino && staged.kind != Kind::Directory))
    }

    /// Has two names of the stage change places.
    pub(crate) fn swap_staged(&self, one: &str, other: &str) -> Result<(), Errno> {
        calls::renameat_with(&self.stage, one, &self.stage, other, RenameFlags::EXCHANGE)
    }

    /// Has `name` of the stage be the same file as `other`, in place of the one that it is. False where the filesystem cannot
    /// do that.
    pub(crate) fn link_staged(&self, other: &str, name: &str) -> Result<bool> {
        let linked = format!("{name}.link");
        match calls::linkat(&self.stage, other, &self.stage, &*linked, AtFlags::empty()) {
            Ok(()) => self.rename_staged(&linked, name).map(|()| true),
            Err(error) if exchange::unsupported(error) => Ok(false),
            Err(error) => Err(error).at("link", self.stage_path(other)),
        }
    }

    /// Removes one link of the stage, and nothing below it.
    pub(crate) fn unlink_staged(&self, name: &str) -> Result<()> {
        check_name(name)?;
        calls::unlinkat(&self.stage, name, AtFlags::empty()).at("remove", self.stage_path(name))
    }

    /// Looks at a name of the stage.
    pub(crate) fn look_staged(&self, name: &str) -> Result<Option<Meta>> {
        check_name(name)?;
        root::look(&self.stage, name).at_in("look at", &self.stage_dir, name)
    }

    /// Makes a directory in the stage.
    pub(crate) fn make_staged_dir(&self, name: &str) -> Result<PathBuf> {
        self.born.check()?;
        let path = self.stage_path(name);
        calls::mkdirat(&self.stage, name, Mode::from_raw_mode(0o777)).at("make", &path)?;
        Ok(path)
    }

    /// Syncs the whole filesystem the area lies on, live files and stage alike.
    pub(crate) fn sync_whole(&self) -> Result<()> {
        calls::syncfs(&self.dir).map_err(|source| Error::SyncFailed { path: self.path.clone(), source: source.into() })
    }

    /// What lies below a directory of the stage, in no order.
    pub(crate) fn staged_below(&self, name: &str) -> Result<Vec<Meta>> {
        check_name(name)?;
        let mut found = Vec::new();
        let mut waiting = vec![PathBuf::from(name)];
        while let Some(at) = waiting.pop() {
            let path = || self.stage_dir.join(&at);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = match rustix::fs::openat(&self.stage, &at, flags, Mode::empty()) {
                Ok(dir) => dir,
                // Closed to an ordinary user, or deeper than a path may be long: what is in it is kept all the same.
                Err(Errno::ACCESS | Errno::NAMETOOLONG) => continue,
                Err(error) => return Err(error).at("open", path()),
            };
            for name in names(&dir, &path())? {
                let Some(meta) = root::look(&dir, &name).at("look at", path())? else { continue };
                if meta.kind == Kind::Directory {
                    waiting.push(at.join(&name));
                }
                found.push(meta);
            }
        }
        Ok(found)
    }

    /// Removes, from a directory of the stage, further names of these inodes.
    pub(crate) fn drop_names_below(&self, name: &str, inodes: &HashSet<u64>) -> Result<()> {
        check_name(name)?;
        let mut waiting = vec![PathBuf::from(name)];
        while let Some(at) = waiting.pop() {
            let path = || self.stage_dir.join(&at);
            let dir = match rustix::fs::openat(&self.stage, &at, OPEN_DIRECTORY, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::ACCESS | Errno::NAMETOOLONG) => continue,
                Err(error) => return Err(error).at("open", path()),
            };
            for name in names(&dir, &path())? {
                match root::look(&dir, &name).at("look at", path())? {
                    Some(meta) if meta.kind == Kind::Directory => waiting.push(at.join(&name)),
                    Some(meta) if meta.links > 1 && inodes.contains(&meta.ino) => unlink(&dir, &name, &path())?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Removes a name from the stage that nothing refers to any more.
    pub(crate) fn drop_staged(&self, name: &str) -> Result<()> {
        self.born.check()?;
        check_name(name)?;
        remove_below(&self.stage, OsStr::new(name), &self.path.join("stage"))
    }

    /// Removes an old version whose retention is over.
    pub(crate) fn drop_history(&self, name: &str) -> Result<()> {
        check_name(name)?;
        remove_below(&self.history, OsStr::new(name), &self.path.join("history"))
    }

    /// What time it is, as the filesystem stamps its files: of two changes, one before and one after this, the stamps are on
    /// their sides of the answer, as finely as the kernel stamps.
    pub(crate) fn clock(&self) -> Result<(i64, u32)> {
        const NAME: &str = "clock";
        let path = || self.path.join(NAME);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, NAME, flags, Mode::from_raw_mode(0o600)).at("open", path())?;
        let mut told = (0, 0);
        // A stamp that somebody has looked at is followed by a finer one.
        for _ in 0..2 {
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            calls::futimens(&file, &times).at("set the times of", path())?;
            told = root::look_at(&file).at("look at", path())?.ctime;
        }
        Ok(told)
    }

    /// The same, once it is later than `before`: what changes from here on cannot have that stamp. Kernels before 6.13, and
    /// some filesystems, give all changes within some milliseconds the same one.
    pub(crate) fn clock_after(&self, before: (i64, u32)) -> Result<(i64, u32)> {
        // Bounded, for a clock that was set back.
        for _ in 0..CLOCK_TRIES {
            let now = self.clock()?;
            if now > before {
                return Ok(now);
            }
            std::thread::sleep(CLOCK_STEP);
        }
        self.clock()
    }

    /// Opens, and where needed makes, the quarantine of a transaction.
    pub(crate) fn quarantine_of(&self, txn: i64) -> Result<OwnedFd> {
        subdirectory(&self.quarantine, &txn.to_string(), &self.path.join("quarantine"), 0o700)
    }
}

/// Refuses a name that could lead out of a stage. Such names are made by the engine alone, and may be stored by anybody.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if !name.is_empty() && !name.starts_with('.') && name.bytes().all(good) {
        return Ok(());
    }
    Err(Error::corrupt("the name of a staged file", format_args!("{name:?} is not one")))
}

/// Opens a directory in another, made first where it is missing.
pub(crate) fn subdirectory(dir: &OwnedFd, name: &str, path: &Path, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(dir, name, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => match calls::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => open(),
            Err(error) => Err(error),
        },
        other => other,
    }
    .at("open or make", path.join(name))
}

/// Keeps the engine's directory out of git.
pub(crate) fn ignore_in_git(dir: &OwnedFd, path: &Path) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".gitignore", flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => calls::write(file, b"*\n").map(drop).at("write", path.join(".gitignore")),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).at("create", path.join(".gitignore")),
    }
}

/// The names in a directory, but for `.` and `..`.
pub(crate) fn names(dir: &OwnedFd, path: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).at("list", path)? {
        let entry = entry.at("list", path)?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    Ok(names)
}

/// Opens a directory of the engine's own.
pub(crate) fn open_own(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

/// Removes one link in a directory of the engine's own; missing is fine.
pub(crate) fn unlink(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    match calls::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("remove", path.join(name)),
    }
}

/// Removes a name and, where it is a directory, all that lies below it. Follows nothing; missing is fine. Holds one descriptor,
/// however much and however deep that is. What its maker closed, to its owner too, is opened up.
pub(crate) fn remove_below(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let path = path.join(name);
    let gone = |done: Result<(), Errno>| match done {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        other => other.at("remove", &path),
    };
    if remove_one(dir, name).at("remove", &path)? {
        return Ok(());
    }
    let mut at = open_closed(dir, name).at("open", &path)?;
    let mut levels = vec![(name.to_owned(), names(&at, &path)?)];
    while let Some((_, waiting)) = levels.last_mut() {
        if let Some(child) = waiting.pop() {
            let mut removed = remove_one(&at, &child);
            if removed == Err(Errno::ACCESS) {
                calls::fchmod(&at, Mode::from_raw_mode(0o700)).at("open", &path)?;
                removed = remove_one(&at, &child);
            }
            if !removed.at("remove", &path)? {
                at = open_closed(&at, &child).at("open", &path)?;
                levels.push((child, names(&at, &path)?));
            }
            continue;
        }
        let Some((name, _)) = levels.pop() else { break };
        if levels.is_empty() {
            gone(calls::unlinkat(dir, name, AtFlags::REMOVEDIR))?;
            break;
        }
        at = rustix::fs::openat(&at, "..", OPEN_DIRECTORY, Mode::empty()).at("open", &path)?;
        gone(calls::unlinkat(&at, name, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a file, or an empty directory. False for one that is not empty.
fn remove_one(dir: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match calls::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match calls::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // It was no directory: then it could not be removed.
        Err(Errno::NOTDIR) => Err(Errno::PERM),
        Err(error) => Err(error),
    }
}

fn open_closed(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let open = || rustix::fs::openat(dir, name, OPEN_DIRECTORY, Mode::empty());
    match open() {
        Err(Errno::ACCESS) => {
            calls::chmodat(dir, name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
            open()
        }
        other => other,
    }
}
