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

use rustix::fs::{Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::exchange;
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
        })
    }

    /// Opens, and where needed makes, the area of the mount whose topmost directory inside the root is `top`.
    pub(crate) fn open_in_tree(id: i64, root: &RootDir, top: Option<&RelPath>) -> Result<Self> {
        let opened;
        let dir: &Dir = match top {
            None => root.top(),
            Some(top) => {
                opened = root.open_dir(top)?;
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
        rustix::fs::renameat_with(&self.stage, name, rustix::fs::CWD, to, RenameFlags::NOREPLACE)
    }

    /// Gives a name of the stage another.
    pub(crate) fn rename_staged(&self, from: &str, to: &str) -> Result<()> {
        check_name(to)?;
        rustix::fs::renameat(&self.stage, from, &self.stage, to).at("rename", self.stage_path(from))
    }

    /// Moves an old version from the stage to history; fine when it went there before.
    pub(crate) fn to_history(&self, name: &str) -> Result<()> {
        check_name(name)?;
        match rustix::fs::renameat(&self.stage, name, &self.history, name) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).at("move to history", self.stage_path(name)),
        }
    }

    /// Removes one link of the stage, and nothing below it.
    pub(crate) fn unlink_staged(&self, name: &str) -> Result<()> {
        check_name(name)?;
        rustix::fs::unlinkat(&self.stage, name, rustix::fs::AtFlags::empty()).at("remove", self.stage_path(name))
    }

    /// Looks at a name of the stage.
    pub(crate) fn look_staged(&self, name: &str) -> Result<Option<Meta>> {
        check_name(name)?;
        root::look(&self.stage, name).at_in("look at", &self.stage_dir, name)
    }

    /// Makes a directory in the stage.
    pub(crate) fn make_staged_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.stage_path(name);
        rustix::fs::mkdirat(&self.stage, name, Mode::from_raw_mode(0o777)).at("make", &path)?;
        Ok(path)
    }

    /// Syncs the whole filesystem the area lies on, live files and stage alike.
    pub(crate) fn sync_whole(&self) -> Result<()> {
        rustix::fs::syncfs(&self.dir)
            .map_err(|source| Error::SyncFailed { path: self.path.clone(), source: source.into() })
    }

    /// True when all that lies under a name of the stage, but for directories, is one of these inodes.
    pub(crate) fn holds_only(&self, name: &str, known: &HashSet<u64>) -> Result<bool> {
        let mut waiting = vec![PathBuf::from(name)];
        while let Some(path) = waiting.pop() {
            let Some(meta) = root::look(&self.stage, &path).at_in("look at", &self.stage_dir, &path)? else { continue };
            if meta.kind != Kind::Directory {
                if !known.contains(&meta.ino) {
                    return Ok(false);
                }
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir =
                rustix::fs::openat(&self.stage, &path, flags, Mode::empty()).at_in("open", &self.stage_dir, &path)?;
            let listed = root::list(&dir).at_in("list", &self.stage_dir, &path)?;
            waiting.extend(listed.iter().map(|listed| path.join(OsStr::from_bytes(&listed.name))));
        }
        Ok(true)
    }

    /// Removes a name from the stage that nothing refers to any more.
    pub(crate) fn drop_staged(&self, name: &str) -> Result<()> {
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
            rustix::fs::futimens(&file, &times).at("set the times of", path())?;
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
        Err(Errno::NOENT) => match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
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
        Ok(file) => rustix::io::write(file, b"*\n").map(drop).at("write", path.join(".gitignore")),
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
    match rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("remove", path.join(name)),
    }
}

/// Removes a name and, where it is a directory, all that lies below it. Follows nothing; missing is fine.
pub(crate) fn remove_below(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let path = path.join(name);
    // Depth first with an own stack: a tree may be deeper than the thread's.
    let mut stack = vec![(duplicate(dir, &path)?, name.to_owned())];
    while let Some((parent, name)) = stack.last() {
        match rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {
                stack.pop();
                continue;
            }
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error).at("remove", path),
        }
        match rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                stack.pop();
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
                let inner = match open() {
                    // Closed by whoever made it, to its owner too: overlayfs does so, and programs may.
                    Err(Errno::ACCESS) => {
                        let mode = Mode::from_raw_mode(0o700);
                        let opened = rustix::fs::chmodat(parent, name, mode, rustix::fs::AtFlags::empty());
                        opened.at("open", &path)?;
                        open()
                    }
                    other => other,
                }
                .at("open", &path)?;
                for child in names(&inner, &path)? {
                    stack.push((duplicate(&inner, &path)?, child));
                }
            }
            Err(error) => return Err(error).at("remove", path),
        }
    }
    Ok(())
}

fn duplicate(dir: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(dir, 3).at("open", path)
}
