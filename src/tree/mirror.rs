//! The mirror: the old version of every file of a guarded tree, in a directory of the baseline for each of the tree's.
//!
//! Kept between transactions, so that bytes are copied once, and afterwards only for what changed. Flat: the directories
//! are numbered, and what a number stands for is in the rows, so that a directory may be moved or lie deep.
//! All of it runs on the opener's thread.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::io::Errno;

use super::record::{DirId, DirRow, Entry, EntryKind, Stamp};
use super::scan::{DirDiff, Scan};
use crate::error::{Error, IoContext, Result};
use crate::fs::area;
use crate::fs::attrs::{self, Attrs};
use crate::fs::clone::{self, FileToKeep, Kept, Way};
use crate::fs::copies::Copies;
use crate::fs::database::{self, KeepSet};
use crate::fs::opener::{SIDECARS, base_of};
use crate::fs::owned;
use crate::fs::root::{self, Dir, Kind, Meta};
use crate::path::{RelPath, STATE_DIR};

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
    pub(crate) copies: Copies,
    /// Nothing lies in the mirror of the directory that is being mirrored.
    pub(crate) is_empty: bool,
}

impl Mirror {
    /// The mirror of one directory, made if it is missing.
    fn open(&self, id: DirId) -> Result<OwnedFd> {
        let base = area::open_own(&self.base)?;
        area::subdirectory(&base, &id.0.to_string(), &self.base, 0o700)
    }

    /// Where the old version of a file lies.
    pub(crate) fn path(&self, id: DirId, name: &[u8]) -> PathBuf {
        self.base.join(id.0.to_string()).join(OsStr::from_bytes(name))
    }
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
                looks: false,
                racy: true,
                btime: (0, 0),
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
            let base = area::open_own(&self.mirror.base)?;
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
        self.is_empty = same.is_empty() && root::list(&mirror).at("list", &self.mirror.base)?.is_empty();
        for entry in gone.iter().chain(changed.iter().map(|(entry, _)| entry)) {
            if matches!(entry.what, EntryKind::File(_)) {
                area::unlink(&mirror, OsStr::from_bytes(&entry.name), &full)?;
            }
        }
        let mut entries = same;
        let new: Vec<(Vec<u8>, Meta)> =
            changed.into_iter().map(|(entry, meta)| (entry.name, meta)).chain(new).collect();
        let mut databases = self.databases(dir, &full, &new, &entries)?;
        // A database of which only the log is gone.
        databases.extend(gone.iter().filter_map(|entry| {
            let base = base_of(&entry.name).filter(|_| entry.what == EntryKind::Sidecar)?;
            entries.iter().any(|entry| entry.name == base).then(|| base.to_vec())
        }));
        let of_database =
            |name: &[u8]| databases.contains(name) || base_of(name).is_some_and(|b| databases.contains(b));
        for database in &databases {
            self.set(row.path.as_ref(), row.id, database, &mut entries, &mut row.racy)?;
        }
        for (name, meta) in new.into_iter().filter(|(name, _)| !of_database(name)) {
            let Some(entry) = self.entry(dir, &mirror, &full, row.id, name, &meta)? else {
                // Gone or changed by now: the stamp is no longer what the directory has, so it is looked at again.
                row.racy = true;
                continue;
            };
            if entry.what == EntryKind::Directory {
                below.push(Some(RelPath::join(row.path.as_ref(), &entry.name)));
            }
            entries.push(entry);
        }
        row.looks = entries.iter().any(Entry::is_looked_at);
        row.stamp = Stamp::from(&live);
        row.btime = live.btime;
        row.attrs = attrs_of(dir, &live, &full)?;
        row.racy |= self.clock.is_some_and(|clock| live.ctime >= clock);
        (self.tell)(Mirrored::Directory(row, entries))
    }

    /// The databases among what is new or changed, and those whose sidecars are.
    fn databases(&self, dir: &Dir, full: &Path, new: &[(Vec<u8>, Meta)], known: &[Entry]) -> Result<BTreeSet<Vec<u8>>> {
        let mut found = BTreeSet::new();
        for (name, meta) in new.iter().filter(|(_, meta)| meta.kind == Kind::File) {
            let is_known =
                |base: &[u8]| known.iter().any(|entry| entry.name == base && entry.what == EntryKind::Database);
            if let Some(base) = base_of(name).filter(|base| is_known(base)) {
                found.insert(base.to_vec());
            } else if meta.size > 0 && meta.size.is_multiple_of(512) {
                let path = full.join(OsStr::from_bytes(name));
                if clone::is_database_at(dir, OsStr::from_bytes(name), &path)? {
                    found.insert(name.clone());
                }
            }
        }
        Ok(found)
    }

    /// Keeps a database with what lies beside it, in place of what is known of them.
    fn set(
        &self,
        dir: Option<&RelPath>,
        id: DirId,
        name: &[u8],
        entries: &mut Vec<Entry>,
        racy: &mut bool,
    ) -> Result<()> {
        let path = RelPath::join(dir, name);
        let (mut known, others): (Vec<Entry>, Vec<Entry>) = std::mem::take(entries)
            .into_iter()
            .partition(|entry| entry.name == name || base_of(&entry.name).is_some_and(|base| base == name));
        *entries = others;
        known.retain(|entry| entry.what == EntryKind::Database);
        let to = |suffix: &str| self.mirror.path(id, &[name, suffix.as_bytes()].concat());
        let kept = known.first().map(Entry::identity);
        let set = KeepSet { path: path.clone(), to: to(""), sidecars: SIDECARS.map(to), kept };
        let (database, sidecars) = match database::keep(self.scan.root, &set) {
            Ok(kept) => kept,
            // Gone by now.
            Err(Error::NotFound { .. }) => {
                *racy = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match database {
            Kept::Database => entries.append(&mut known),
            Kept::File { meta, attrs, .. } => {
                entries.push(Entry::new(name.to_vec(), &meta, attrs.xattrs, EntryKind::Database));
            }
            _ => *racy = true,
        }
        for (suffix, kept) in SIDECARS.iter().zip(sidecars) {
            if let Kept::File { meta, attrs, .. } = kept {
                let name = [name, suffix.as_bytes()].concat();
                entries.push(Entry::new(name, &meta, attrs.xattrs, EntryKind::Sidecar));
            }
        }
        Ok(())
    }

    /// Keeps what lies under a name. None when that is gone by now.
    fn entry(
        &mut self,
        dir: &Dir,
        mirror: &OwnedFd,
        full: &Path,
        id: DirId,
        name: Vec<u8>,
        meta: &Meta,
    ) -> Result<Option<Entry>> {
        if meta.place != dir.meta.place {
            return Err(Error::MountInTree { path: full.join(OsStr::from_bytes(&name)) });
        }
        if meta.kind == Kind::Directory && name == STATE_DIR.as_bytes() {
            let path = full.join(OsStr::from_bytes(&name));
            let reason = "a journal of its own lies there: guard around it, or what it belongs to by that journal";
            return Err(Error::BadPath { path, reason });
        }
        let as_name = OsStr::from_bytes(&name);
        let path = full.join(as_name);
        let xattrs = attrs::xattrs(&dir.fd, as_name, &path)?;
        if matches!(meta.kind, Kind::Directory | Kind::Symlink) {
            owned::check_restorable(dir, as_name, meta, &path)?;
        }
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
                if !self.is_empty {
                    area::unlink(mirror, as_name, full)?;
                }
                let file = FileToKeep {
                    dir: dir.fd.as_fd(),
                    name: as_name,
                    full: &path,
                    attrs: &attrs,
                    to_dir: mirror.as_fd(),
                    to: Path::new(as_name),
                    way: self.mirror.way,
                    databases: false,
                };
                let to = self.mirror.path(id, &name);
                match self.copies.keep(&file, meta, to).map_err(|error| owned::unreadable(error, &path))? {
                    Some((meta, way)) => {
                        if way != Way::Link {
                            owned::check_restorable(dir, as_name, &meta, &path)?;
                        }
                        (meta, EntryKind::File(way))
                    }
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Entry::new(name, &meta, xattrs, what)))
    }
}

fn attrs_of(dir: &Dir, meta: &Meta, full: &Path) -> Result<Attrs> {
    let xattrs = attrs::xattrs(&dir.fd, OsStr::new("."), full)?;
    Ok(Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs })
}
