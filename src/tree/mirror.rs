//! The mirror: the old version of every file of a guarded tree, in a directory of the baseline for each of the tree's.
//!
//! Kept between transactions, so that bytes are copied once, and afterwards only for what changed. Flat: the directories
//! are numbered, and what a number stands for is in the rows, so that a directory may be moved or lie deep.
//! All of it runs on the opener's thread.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::record::{DirId, DirRow, Entry, EntryKind, Stamp};
use super::scan::{DirDiff, Scan};
use crate::error::{Error, IoContext, Result};
use crate::fs::area;
use crate::fs::attrs::{self, Attrs};
use crate::fs::clone::{FileToKeep, Way};
use crate::fs::root::{Dir, Kind, Meta};
use crate::path::RelPath;

/// What the mirror is to be told to the rows.
#[derive(Debug)]
pub(crate) enum Mirrored {
    /// A directory with its entries, as it is now.
    Directory(DirRow, Vec<Entry>),
    /// A directory that is no more.
    Gone(DirId),
}

/// Where a mirror lies, and how it keeps files.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    /// An existing directory of an area.
    pub(crate) base: PathBuf,
    /// The way to try first.
    pub(crate) way: Way,
}

/// Brings a mirror up to date.
pub(crate) struct Update<'a> {
    pub(crate) scan: Scan<'a>,
    pub(crate) mirror: &'a Mirror,
    /// The next number of a directory.
    pub(crate) next: &'a AtomicI64,
    /// Timestamps of the filesystem that are later than this may be of two changes.
    pub(crate) clock: Option<(i64, u32)>,
    pub(crate) tell: &'a mut dyn FnMut(Mirrored) -> Result<()>,
}

impl Mirror {
    /// The mirror of one directory, made if it is missing.
    fn open(&self, id: DirId) -> Result<OwnedFd> {
        let base = open(&self.base)?;
        area::subdirectory(&base, &id.0.to_string(), &self.base, 0o700)
    }

    /// Where the old version of a file lies.
    pub(crate) fn path(&self, id: DirId, name: &[u8]) -> PathBuf {
        self.base.join(id.0.to_string()).join(OsStr::from_bytes(name))
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

impl Update<'_> {
    /// Mirrors a directory that is not in the baseline, and all below it. One that is gone is passed over.
    pub(crate) fn add(&mut self, path: Option<RelPath>) -> Result<()> {
        let mut waiting = vec![path];
        while let Some(path) = waiting.pop() {
            let id = DirId(self.next.fetch_add(1, Ordering::Relaxed));
            // Nothing stamps it yet: everything in it is new.
            let row = DirRow {
                id,
                path,
                stamp: Stamp { ino: 0, mtime: (0, 0), ctime: (0, 0) },
                attrs: Attrs::default(),
                racy: true,
            };
            let Some(diff) = self.scan.diff(row, false, |_| Ok(Vec::new()))? else { continue };
            if diff.live.is_some() {
                self.directory(diff, &mut waiting)?;
            }
        }
        Ok(())
    }

    /// Mirrors what is different in a directory.
    pub(crate) fn adopt(&mut self, diff: DirDiff) -> Result<()> {
        if diff.live.is_none() {
            let base = open(&self.mirror.base)?;
            area::remove_below(&base, OsStr::new(&diff.row.id.0.to_string()), &self.mirror.base)?;
            return (self.tell)(Mirrored::Gone(diff.row.id));
        }
        let mut waiting = Vec::new();
        self.directory(diff, &mut waiting)?;
        waiting.into_iter().try_for_each(|path| self.add(path))
    }

    fn directory(&mut self, diff: DirDiff, below: &mut Vec<Option<RelPath>>) -> Result<()> {
        let DirDiff { mut row, live, same, gone, changed, new } = diff;
        let Some(live) = live else { return Ok(()) };
        row.racy = false;
        let root = self.scan.root;
        let full = row.path.as_ref().map_or(root.path().to_owned(), |path| root.full(path));
        let opened;
        let dir: &Dir = match &row.path {
            None => root.top(),
            Some(path) => {
                opened = root.open_dir(path)?;
                &opened
            }
        };
        let mirror = self.mirror.open(row.id)?;
        for entry in gone.iter().chain(changed.iter().map(|(entry, _)| entry)) {
            if entry.kind() == Kind::File {
                unlink(&mirror, OsStr::from_bytes(&entry.name), &full)?;
            }
        }
        let mut entries = same;
        let new = changed.into_iter().map(|(entry, meta)| (entry.name, meta)).chain(new);
        for (name, meta) in new {
            let Some(entry) = self.entry(dir, &mirror, &full, name, &meta)? else {
                // Gone or changed by now: the stamp is no longer what the directory has, so it is looked at again.
                row.racy = true;
                continue;
            };
            if entry.what == EntryKind::Directory {
                below.push(Some(RelPath::join(row.path.as_ref(), &entry.name)));
            }
            entries.push(entry);
        }
        row.stamp = Stamp::from(&live);
        row.attrs = attrs_of(dir, row.path.as_ref(), &live, &full)?;
        row.racy |= self.clock.is_some_and(|clock| live.ctime >= clock);
        (self.tell)(Mirrored::Directory(row, entries))
    }

    /// Keeps what lies under a name. None when that is gone by now.
    fn entry(&self, dir: &Dir, mirror: &OwnedFd, full: &Path, name: Vec<u8>, meta: &Meta) -> Result<Option<Entry>> {
        if meta.place != dir.meta.place {
            let path = full.join(OsStr::from_bytes(&name));
            let reason = "another filesystem is mounted there: guard what lies on it by itself";
            return Err(Error::BadPath { path, reason });
        }
        let as_name = OsStr::from_bytes(&name);
        let path = full.join(as_name);
        let xattrs = attrs::xattrs(&dir.fd, as_name, &path)?;
        let (meta, what) = match meta.kind {
            Kind::Directory => (*meta, EntryKind::Directory),
            Kind::Other => (*meta, EntryKind::Other),
            Kind::Symlink => match rustix::fs::readlinkat(&dir.fd, as_name, Vec::new()) {
                Ok(target) => (*meta, EntryKind::Symlink(target.into_bytes())),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(error).at("read the symlink", path),
            },
            Kind::File => {
                let attrs =
                    Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs: xattrs.clone() };
                // What an update that was cut short left.
                unlink(mirror, as_name, &path)?;
                let file = FileToKeep {
                    dir: dir.fd.as_fd(),
                    name: as_name,
                    full: &path,
                    attrs: &attrs,
                    to_dir: mirror.as_fd(),
                    to: Path::new(as_name),
                    way: self.mirror.way,
                };
                match file.keep(meta)? {
                    Some(kept) => (kept.meta, EntryKind::File(kept.way)),
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Entry::new(name, &meta, xattrs, what)))
    }
}

fn attrs_of(dir: &Dir, path: Option<&RelPath>, meta: &Meta, full: &Path) -> Result<Attrs> {
    // By way of itself: what lies above the root is nobody's business here.
    let xattrs = if path.is_some() { attrs::xattrs(&dir.fd, OsStr::new("."), full)? } else { Vec::new() };
    Ok(Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs })
}

fn unlink(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("forget the old version of", path),
    }
}
