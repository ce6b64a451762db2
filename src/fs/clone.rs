//! Keeps what lies at a path, so that it can be put back: by a second link, a reflink, or a copy.
//!
//! Which way is a value. It steps down to the next only where the filesystem says that it cannot do this one; a full disk
//! or an I/O error is one in every way. All of this opens files of the tree, so it runs on the opener's thread.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attrs::{self, Attrs};
use super::exchange::unsupported;
use super::opener::is_database;
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
    /// The file, as it is after being kept; `kept` is what lies in the stage. With [`Way::Link`] they are one.
    File {
        meta: Meta,
        attrs: Attrs,
        kept: Meta,
        way: Way,
    },
}

/// This often a file is copied anew, because somebody wrote to it meanwhile.
const TRIES: usize = 4;
/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// Keeps what lies at a path.
pub(super) fn keep(root: &RootDir, what: &Keep) -> Result<Kept> {
    let full = root.full(&what.path);
    let opened;
    let dir: &Dir = match what.path.parent() {
        None => root.top(),
        Some(parent) => match root.open_dir(&parent) {
            Ok(dir) => {
                opened = dir;
                &opened
            }
            Err(Error::NotFound { .. }) => return Ok(Kept::Nothing),
            Err(error) => return Err(error),
        },
    };
    let name = what.path.name();
    for _ in 0..TRIES {
        let Some(meta) = root::look(&dir.fd, name).at("look at", &full)? else { return Ok(Kept::Nothing) };
        let attrs = || -> Result<Attrs> {
            let xattrs = attrs::xattrs(&dir.fd, name, &full)?;
            Ok(Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs })
        };
        match meta.kind {
            Kind::Directory => return Ok(Kept::Directory(meta, attrs()?)),
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(&dir.fd, name, Vec::new()).at("read the symlink", &full)?;
                return Ok(Kept::Symlink(meta, attrs()?, target.into_bytes()));
            }
            Kind::Other => {
                let reason = "it is neither a file, a directory nor a symlink";
                return Err(Error::BadPath { path: what.path.to_path_buf(), reason });
            }
            Kind::File => {
                if let Some(kept) = keep_file(root, dir, what, &attrs()?)? {
                    return Ok(kept);
                }
                // Changed while it was being kept.
                remove(&what.to)?;
            }
        }
    }
    Err(Error::ChangedMeanwhile { path: full })
}

/// Keeps a file. None when it changed meanwhile.
fn keep_file(root: &RootDir, dir: &Dir, what: &Keep, attrs: &Attrs) -> Result<Option<Kept>> {
    let full = root.full(&what.path);
    let file = match root.resolve(&what.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let before = root::look_at(&file).at("look at", &full)?;
    if before.kind != Kind::File {
        return Ok(None);
    }
    let mut header = [0; 16];
    let read = rustix::io::pread(&file, &mut header, 0).at("read", &full)?;
    if is_database(&header[..read]) {
        let reason = "it is a SQLite database, which has to be guarded as one";
        return Err(Error::BadPath { path: what.path.to_path_buf(), reason });
    }
    let mut way = what.way;
    if before.size == 0 && way == Way::Link {
        // It may become a database, and those must have one link.
        way = Way::Copy;
    }
    loop {
        let done = match way {
            Way::Link => rustix::fs::linkat(&dir.fd, what.path.name(), rustix::fs::CWD, &what.to, AtFlags::empty()),
            Way::Reflink => reflink(&file, &what.to),
            Way::Copy => copy(&file, before.size, &what.to),
        };
        match (done, way.next()) {
            (Ok(()), _) => break,
            (Err(Errno::NOENT), _) if way == Way::Link => return Ok(None),
            (Err(error), Some(next)) if unsupported(error) => {
                remove(&what.to)?;
                way = next;
            }
            (Err(error), _) => return Err(error).at("keep the old version of", full),
        }
    }
    if way != Way::Link {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copied = rustix::fs::open(&what.to, flags, Mode::empty()).at("open", &what.to)?;
        temp::finish(&copied, Some(attrs), true, &what.to)?;
    }
    let after = root::look_at(&file).at("look at", &full)?;
    let same = |other: &Meta| (other.ino, other.size, other.mtime) == (before.ino, before.size, before.mtime);
    // A new link moves ctime on; nothing else may.
    if !same(&after) || (way != Way::Link && after.ctime != before.ctime) {
        return Ok(None);
    }
    let kept = root::look_outside(&what.to).at("look at", &what.to)?;
    match kept {
        Some(kept) if way != Way::Link || kept.ino == after.ino => {
            Ok(Some(Kept::File { meta: after, attrs: attrs.clone(), kept, way }))
        }
        _ => Ok(None),
    }
}

fn create(to: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(to, flags, Mode::from_raw_mode(0o600))
}

fn reflink(from: &OwnedFd, to: &Path) -> Result<(), Errno> {
    rustix::fs::ioctl_ficlone(create(to)?, from)
}

/// Copies what holds data, and leaves holes where there are holes.
fn copy(from: &OwnedFd, size: u64, to: &Path) -> Result<(), Errno> {
    let to = create(to)?;
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
    rustix::fs::ftruncate(&to, size)
}

fn copy_range(from: impl AsFd, to: impl AsFd, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = Vec::new();
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let (mut source, mut target) = (at, at);
        match rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left) {
            // Shorter than it was: whoever asked looks again.
            Ok(0) => return Ok(()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            Err(error) if unsupported(error) || error == Errno::NOSYS => {
                buffer.resize(CHUNK, 0);
                match rustix::io::pread(&from, &mut buffer[..left], at) {
                    Ok(0) => return Ok(()),
                    Ok(read) => {
                        let mut written = 0;
                        while written < read {
                            written += rustix::io::pwrite(&to, &buffer[written..read], at + written as u64)?;
                        }
                        at += read as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("remove", path),
    }
}
