//! Finds out what changed in a tree since the baseline was recorded.
//!
//! A directory whose inode, mtime and ctime are as recorded has the names it had, so it is not listed. Which files were
//! written to in place only a look at each of them tells; where all writers replace files, and somebody watched them, that
//! is spared.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::record::{DirId, DirRow, Entry, Stamp};
use crate::error::{Error, IoContext, Result};
use crate::fs::root::{self, Kind, Meta, Place, RootDir};
use crate::path::{AREA_DIR, RelPath, STATE_DIR};

/// How one directory differs from what is recorded of it.
#[derive(Debug)]
pub(crate) struct DirDiff {
    pub(crate) row: DirRow,
    /// What lies at its path now; none when that is no directory.
    pub(crate) live: Option<Meta>,
    /// Entries that are as they were.
    pub(crate) same: Vec<Entry>,
    /// Entries that are there no more, or whose name stands for something else now.
    pub(crate) gone: Vec<Entry>,
    /// Entries that are the same file, with other bytes or attributes.
    pub(crate) changed: Vec<(Entry, Meta)>,
    /// Names of something that is not recorded.
    pub(crate) new: Vec<(Vec<u8>, Meta)>,
}

impl DirDiff {
    /// True when nothing is different but, perhaps, the times of the directory itself.
    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_some() && self.gone.is_empty() && self.changed.is_empty() && self.new.is_empty()
    }
}

/// Looks at directories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'r> {
    pub(crate) root: &'r RootDir,
    /// Paths that are not the tree's.
    pub(crate) reserved: &'r [RelPath],
    pub(crate) files: Files<'r>,
    /// Where the whole tree lies.
    pub(crate) place: Place,
}

/// Which files to look at, besides those in directories that changed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Files<'r> {
    All,
    /// These, by their directory and name.
    Some(&'r HashSet<(i64, Vec<u8>)>),
    None,
}

impl Files<'_> {
    /// True when this one is to be looked at.
    pub(crate) fn has(&self, dir: DirId, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Some(names) => !names.is_empty() && names.contains(&(dir.0, name.to_vec())),
            Self::None => false,
        }
    }

    fn any_of(&self, dir: DirId) -> bool {
        match self {
            Self::All => true,
            Self::Some(names) => names.iter().any(|(of, _)| *of == dir.0),
            Self::None => false,
        }
    }
}

impl Scan<'_> {
    /// Compares one directory with its record. None when nothing differs. `above_gone`: a directory above it is no more.
    /// `load` gives what is recorded of its entries.
    pub(crate) fn diff(
        &self,
        row: DirRow,
        above_gone: bool,
        load: impl FnOnce(DirId) -> Result<Vec<Entry>>,
    ) -> Result<Option<DirDiff>> {
        let live = if above_gone { None } else { self.look(row.path.as_ref())? };
        let Some(live) = live else {
            let gone = load(row.id)?;
            return Ok(Some(DirDiff { row, live: None, same: Vec::new(), gone, changed: Vec::new(), new: Vec::new() }));
        };
        if live.place != self.place {
            // Mounted since, or no more: it has nothing to do with what is recorded.
            let path = row.path.as_ref().map_or(self.root.path().to_owned(), |path| self.root.full(path));
            return Err(Error::MountInTree { path });
        }
        let unlisted = Stamp::from(&live) == row.stamp && !row.racy;
        if unlisted && !row.looks && !self.files.any_of(row.id) {
            return Ok(None);
        }
        let full = row.path.as_ref().map_or(self.root.path().to_owned(), |path| self.root.full(path));
        let opened;
        let dir = match &row.path {
            None => self.root.top(),
            Some(path) => {
                opened = std::sync::Arc::new(self.root.open_dir(path)?);
                &opened
            }
        };
        let look =
            |name: &[u8]| root::look(&dir.fd, OsStr::from_bytes(name)).at_in("look at", &full, OsStr::from_bytes(name));
        let entries = load(row.id)?;
        let mut diff = DirDiff {
            row,
            live: Some(live),
            same: Vec::with_capacity(entries.len()),
            gone: Vec::new(),
            changed: Vec::new(),
            new: Vec::new(),
        };
        if unlisted {
            for entry in entries {
                if !entry.is_looked_at() && !self.files.has(diff.row.id, &entry.name) {
                    diff.same.push(entry);
                    continue;
                }
                match (entry.kind(), look(&entry.name)?) {
                    (Kind::File, Some(meta)) if !entry.is(&meta) => diff.changed.push((entry, meta)),
                    (_, Some(_)) => diff.same.push(entry),
                    (_, None) => diff.gone.push(entry),
                }
            }
            return Ok((!diff.is_empty()).then_some(diff));
        }
        let mut known: HashMap<Vec<u8>, Entry> = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        for listed in root::list(&dir.fd).at("list", &full)? {
            if self.is_reserved(diff.row.path.as_ref(), &listed.name) {
                continue;
            }
            match known.remove(&listed.name) {
                // A number that cannot stand for anything else.
                Some(entry)
                    if entry.is_pinned() && entry.ino == listed.ino && !self.files.has(diff.row.id, &entry.name) =>
                {
                    diff.same.push(entry)
                }
                Some(entry) => match look(&listed.name)? {
                    None => diff.gone.push(entry),
                    Some(meta) if entry.is(&meta) => diff.same.push(entry),
                    // Another directory of the same name: what differs in it is its own row's business.
                    Some(meta) if (entry.kind(), meta.kind) == (Kind::Directory, Kind::Directory) => {
                        diff.same.push(Entry { ino: meta.ino, btime: meta.btime, ..entry });
                    }
                    Some(meta) if (entry.kind(), entry.ino) == (meta.kind, meta.ino) => {
                        diff.changed.push((entry, meta))
                    }
                    Some(meta) => {
                        diff.gone.push(entry);
                        diff.new.push((listed.name, meta));
                    }
                },
                None => {
                    if let Some(meta) = look(&listed.name)? {
                        diff.new.push((listed.name, meta));
                    }
                }
            }
        }
        diff.gone.extend(known.into_values());
        Ok(Some(diff))
    }

    /// Looks at a directory by its path; none when it is not there, or is none. Every directory above it has been looked at
    /// before, and was one.
    pub(crate) fn look(&self, path: Option<&RelPath>) -> Result<Option<Meta>> {
        let Some(path) = path else { return Ok(Some(self.root.top().meta_now().at("look at", self.root.path())?)) };
        match root::look(&self.root.top().fd, path.as_path()) {
            Ok(found) => Ok(found.filter(|meta| meta.kind == Kind::Directory)),
            Err(Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).at("look at", self.root.full(path)),
        }
    }

    /// True for a name that is the engine's.
    pub(crate) fn is_reserved(&self, dir: Option<&RelPath>, name: &[u8]) -> bool {
        name == AREA_DIR.as_bytes()
            || (dir.is_none() && name == STATE_DIR.as_bytes())
            || (!self.reserved.is_empty() && self.reserved.contains(&RelPath::join(dir, name)))
    }
}
