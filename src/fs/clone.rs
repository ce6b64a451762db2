//! Keeps what lies at a path, so that it can be put back: by a second link, a reflink, or a copy.
//!
//! Which way is a value. It steps down to the next only where the filesystem says that it cannot do this one; a full disk
//! or an I/O error is one in every way. All of this opens files of the tree, so it runs on the opener's thread.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attrs::{self, Attrs};
use super::calls;
use super::exchange::unsupported;
use super::opener::is_database;
use super::owned;
use super::root::{self, Dir, Kind, Meta, RootDir};
use super::temp;
use crate::error::{Error, IoContext, Result};
use crate::path::RelPath;

/// How the old bytes of a file are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Way {
    /// A second link to the same file. Costs nothing, and is lost to whoever writes to the file in place.
    Link,
    /// A file of its own that shares blocks with the first until one of them is written to.
    Reflink,
    /// A file of its own.
    Copy,
}

impl Way {
    /// What to try when the filesystem cannot do this.
    fn next(self) -> Option<Self> {
        match self {
            Self::Link => Some(Self::Reflink),
            Self::Reflink => Some(Self::Copy),
            Self::Copy => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Link => "link",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        })
    }
}

/// One path to be kept.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    pub(crate) path: RelPath,
    /// Where a file goes: in a stage that a rename reaches the path from.
    pub(crate) to: PathBuf,
    pub(crate) way: Way,
}

/// What lay at the path.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    Nothing,
    Directory(Meta, Attrs),
    Symlink(Meta, Attrs, Vec<u8>),
    /// A SQLite database, to be kept with what lies beside it: see `fs::database`.
    Database,
    /// The file, as it is after being kept; `kept` is what lies in the stage. With [`Way::Link`] they are one.
    File {
        meta: Meta,
        attrs: Attrs,
        kept: Meta,
        way: Way,
    },
}

impl Kept {
    /// When the inode was made; zero where there is none.
    pub(crate) fn born(&self) -> (i64, u32) {
        match self {
            Self::Nothing | Self::Database => (0, 0),
            Self::Directory(meta, _) | Self::Symlink(meta, ..) | Self::File { meta, .. } => meta.btime,
        }
    }
}

/// This often a file is copied anew, because somebody wrote to it meanwhile.
const TRIES: usize = 4;
/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// A file that is to be kept: where it is, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileToKeep<'a> {
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) name: &'a OsStr,
    /// For messages.
    pub(crate) full: &'a Path,
    pub(crate) attrs: &'a Attrs,
    pub(crate) to_dir: BorrowedFd<'a>,
    pub(crate) to: &'a Path,
    /// The way to try first.
    pub(crate) way: Way,
    /// Also one that is a SQLite database.
    pub(crate) databases: bool,
}

/// A file that is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptFile {
    /// As it is after being kept.
    pub(crate) meta: Meta,
    pub(crate) kept: Meta,
    pub(crate) way: Way,
}

/// Keeps what lies at a path. Of a database it only says that it is one.
pub(super) fn keep(root: &RootDir, what: &Keep) -> Result<Kept> {
    match keep_with(root, &what.path, &what.to, what.way, false) {
        Err(Error::DatabaseInUse { .. }) => Ok(Kept::Database),
        other => other,
    }
}

/// The same, of a database too where `databases` says so; else it is [`Error::DatabaseInUse`].
pub(super) fn keep_with(root: &RootDir, path: &RelPath, to: &Path, way: Way, databases: bool) -> Result<Kept> {
    let full = root.full(path);
    let opened;
    let dir: &Dir = match path.parent() {
        None => root.top(),
        Some(parent) => match root.open_dir(&parent) {
            Ok(dir) => {
                opened = dir;
                &opened
            }
            Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => return Ok(Kept::Nothing),
            Err(error) => return Err(error),
        },
    };
    let name = path.name();
    for _ in 0..TRIES {
        let Some(meta) = root::look(&dir.fd, name).at("look at", &full)? else { return Ok(Kept::Nothing) };
        let attrs = || -> Result<Attrs> {
            let xattrs = attrs::xattrs(&dir.fd, name, &full)?;
            Ok(Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs })
        };
        match meta.kind {
            Kind::Directory => return Ok(Kept::Directory(meta, attrs()?)),
            Kind::Symlink => {
                owned::check_restorable(dir, name, &meta, &full)?;
                let target = rustix::fs::readlinkat(&dir.fd, name, Vec::new()).at("read the symlink", &full)?;
                return Ok(Kept::Symlink(meta, attrs()?, target.into_bytes()));
            }
            Kind::Other => {
                let reason = "it is neither a file, a directory nor a symlink";
                return Err(Error::BadPath { path: path.to_path_buf(), reason });
            }
            Kind::File => {
                let attrs = attrs()?;
                let file = FileToKeep {
                    dir: dir.fd.as_fd(),
                    name,
                    full: &full,
                    attrs: &attrs,
                    to_dir: rustix::fs::CWD,
                    to,
                    way,
                    databases,
                };
                let kept = file.keep(&meta).map_err(|error| owned::unreadable(error, &full))?;
                if let Some(KeptFile { meta, kept, way }) = kept {
                    if way != Way::Link {
                        owned::check_restorable(dir, name, &meta, &full)?;
                    }
                    return Ok(Kept::File { meta, attrs, kept, way });
                }
            }
        }
    }
    Err(Error::ChangedMeanwhile { path: full })
}

/// True when a file begins as a SQLite database does.
pub(crate) fn is_database_at(dir: &Dir, name: &OsStr, full: &Path) -> Result<bool> {
    let attrs = Attrs::default();
    let nowhere = Path::new("");
    let (dir, to_dir) = (dir.fd.as_fd(), rustix::fs::CWD);
    let file = FileToKeep { dir, name, full, attrs: &attrs, to_dir, to: nowhere, way: Way::Copy, databases: false };
    match file.open() {
        Ok(_) => Ok(false),
        Err(Error::DatabaseInUse { .. }) => Ok(true),
        Err(error) => Err(owned::unreadable(error, full)),
    }
}

impl FileToKeep<'_> {
    /// Keeps the file that was just seen as `seen`. None, and nothing is kept, when it changed meanwhile.
    pub(crate) fn keep(&self, seen: &Meta) -> Result<Option<KeptFile>> {
        let mut way = self.way;
        // Not only may it become a database, and those must have one link: there is also nothing to be saved.
        if seen.size == 0 && way == Way::Link {
            way = Way::Copy;
        }
        // The size of a database is a multiple of its page's.
        let open = match way != Way::Link || seen.size.is_multiple_of(512) {
            false => None,
            true => match self.open()? {
                None => return Ok(None),
                open => open,
            },
        };
        loop {
            let done = match (way, &open) {
                (Way::Reflink, Some(file)) => self.reflink(file),
                (Way::Copy, Some(file)) => self.copy(file, seen.size),
                _ => calls::linkat(self.dir, self.name, self.to_dir, self.to, AtFlags::empty()),
            };
            match (done, way.next()) {
                (Ok(()), _) => break,
                (Err(Errno::NOENT), _) if way == Way::Link => return Ok(None),
                (Err(error), Some(next)) if unsupported(error) => {
                    self.forget()?;
                    if open.is_none() {
                        return Self { way: next, ..*self }.keep(seen);
                    }
                    way = next;
                }
                (Err(error), _) => {
                    self.forget()?;
                    return Err(error).at("keep the old version of", self.full);
                }
            }
        }
        if way != Way::Link {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let copied = rustix::fs::openat(self.to_dir, self.to, flags, Mode::empty()).at("open", self.to)?;
            temp::finish(&copied, Some(self.attrs), true, self.to)?;
        }
        let kept = root::look(self.to_dir, self.to).at("look at", self.to)?;
        let now = match &open {
            Some(file) => Some(root::look_at(file).at("look at", self.full)?),
            None => kept,
        };
        let same = |now: &Meta| {
            (now.ino, now.size, now.mtime) == (seen.ino, seen.size, seen.mtime)
                // A new link moves ctime on; nothing else may.
                && (way == Way::Link || now.ctime == seen.ctime)
        };
        match (now.filter(same), kept) {
            (Some(meta), Some(kept)) if way != Way::Link || kept.ino == meta.ino => {
                Ok(Some(KeptFile { meta: if way == Way::Link { kept } else { meta }, kept, way }))
            }
            _ => self.forget().map(|()| None),
        }
    }

    /// Opens the file; a database is refused unless asked for. None when it is not there, or is something else by now.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(self.dir, self.name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error).at("open", self.full),
        };
        if root::look_at(&file).at("look at", self.full)?.kind != Kind::File {
            return Ok(None);
        }
        let mut header = [0; 16];
        let read = rustix::io::pread(&file, &mut header, 0).at("read", self.full)?;
        if is_database(&header[..read]) && !self.databases {
            return Err(Error::DatabaseInUse { path: self.full.to_owned() });
        }
        Ok(Some(file))
    }

    fn create(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.to_dir, self.to, flags, Mode::from_raw_mode(0o600))
    }

    fn reflink(&self, from: &OwnedFd) -> Result<(), Errno> {
        calls::ioctl_ficlone(self.create()?, from)
    }

    /// Copies what holds data, and leaves holes where there are holes.
    fn copy(&self, from: &OwnedFd, size: u64) -> Result<(), Errno> {
        let to = self.create()?;
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole from here on.
                Err(Errno::NXIO) => break,
                // A filesystem that knows no holes.
                Err(Errno::INVAL) => at,
                Err(error) => return Err(error),
            };
            let end = match rustix::fs::seek(from, SeekFrom::Hole(data)) {
                Ok(hole) if hole > data => hole.min(size),
                _ => size,
            };
            copy_range(from, &to, data, end)?;
            at = end;
        }
        calls::ftruncate(&to, size)
    }

    fn forget(&self) -> Result<()> {
        match calls::unlinkat(self.to_dir, self.to, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).at("remove", self.to),
        }
    }
}

pub(super) fn copy_range(from: impl AsFd, to: impl AsFd, at: u64, end: u64) -> Result<(), Errno> {
    copy_between(from, at, to, at, end.saturating_sub(at))
}

/// Copies `length` bytes from one place of a file to one of another.
pub(super) fn copy_between(
    from: impl AsFd,
    mut source: u64,
    to: impl AsFd,
    mut target: u64,
    length: u64,
) -> Result<(), Errno> {
    let end = source.saturating_add(length);
    let mut buffer = Vec::new();
    while source < end {
        let left = usize::try_from(end - source).unwrap_or(CHUNK).min(CHUNK);
        let (mut from_at, mut to_at) = (source, target);
        let copied = match calls::copy_file_range(&from, Some(&mut from_at), &to, Some(&mut to_at), left) {
            // Shorter than it was: whoever asked looks again.
            Ok(0) => return Ok(()),
            Ok(copied) => copied as u64,
            Err(Errno::INTR) => 0,
            Err(error) if unsupported(error) || error == Errno::NOSYS => {
                buffer.resize(CHUNK, 0);
                match rustix::io::pread(&from, &mut buffer[..left], source) {
                    Ok(0) => return Ok(()),
                    Ok(read) => {
                        let mut written = 0;
                        while written < read {
                            written += calls::pwrite(&to, &buffer[written..read], target + written as u64)?;
                        }
                        read as u64
                    }
                    Err(Errno::INTR) => 0,
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        source += copied;
        target += copied;
    }
    Ok(())
}
