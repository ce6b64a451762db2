//! What the baseline knows of a directory: when it was looked at, and what lay in it.

use serde::{Deserialize, Serialize};

use crate::fs::attrs::{Attrs, Xattrs};
use crate::fs::clone::Way;
use crate::fs::identity::Identity;
use crate::fs::root::{Kind, Meta};
use crate::path::RelPath;

/// The number of a directory in the baseline. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DirId(pub(crate) i64);

/// What tells without listing it whether a directory's entries may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) ino: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

impl From<&Meta> for Stamp {
    fn from(meta: &Meta) -> Self {
        Self { ino: meta.ino, mtime: meta.mtime, ctime: meta.ctime }
    }
}

/// A directory of the baseline, without its entries.
#[derive(Clone, Debug)]
pub(crate) struct DirRow {
    pub(crate) id: DirId,
    /// Relative to the root; none is the root itself.
    pub(crate) path: Option<RelPath>,
    pub(crate) stamp: Stamp,
    pub(crate) attrs: Attrs,
    /// Some entries of it are looked at whatever its times say: see [`Entry::is_looked_at`].
    pub(crate) looks: bool,
    /// It changed so shortly before it was looked at, or is to change, that the stamp proves nothing: it is listed anyway.
    pub(crate) racy: bool,
    /// When it was made.
    pub(crate) btime: (i64, u32),
}

/// What lies under one name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) ctime: (i64, u32),
    pub(crate) attrs: Attrs,
    pub(crate) what: EntryKind,
    /// The file had more than one name.
    pub(crate) shared: bool,
    /// When the inode was made.
    pub(crate) btime: (i64, u32),
}

/// What kind of thing it is, and how it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EntryKind {
    /// The mirror holds its old version, under the same name.
    File(Way),
    /// A SQLite database: the mirror holds a copy, taken together with what lies beside it.
    Database,
    /// What SQLite puts beside a database. The mirror holds a copy.
    Sidecar,
    /// A directory with a row of its own.
    Directory,
    Symlink(Vec<u8>),
    /// A device, socket or FIFO, or the top of another mount: left alone.
    Other,
}

impl Entry {
    /// What a look at a name says, before anything is kept of it.
    pub(crate) fn new(name: Vec<u8>, meta: &Meta, xattrs: Xattrs, what: EntryKind) -> Self {
        let attrs = Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs };
        let shared = meta.kind == Kind::File && meta.links > 1;
        Self { name, ino: meta.ino, size: meta.size, ctime: meta.ctime, attrs, what, shared, btime: meta.btime }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.what {
            EntryKind::File(_) | EntryKind::Database | EntryKind::Sidecar => Kind::File,
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink(_) => Kind::Symlink,
            EntryKind::Other => Kind::Other,
        }
    }

    /// True when the baseline holds a link to the very inode, so that its number cannot stand for another file.
    pub(crate) fn is_pinned(&self) -> bool {
        self.what == EntryKind::File(Way::Link)
    }

    /// Which version it was.
    pub(crate) fn identity(&self) -> Identity {
        Identity { directory: false, ino: self.ino, size: self.size, mtime: self.attrs.mtime, ctime: self.ctime }
    }

    /// True for what is written to in place whoever writes: a database and what lies beside it.
    pub(crate) fn is_of_database(&self) -> bool {
        matches!(self.what, EntryKind::Database | EntryKind::Sidecar)
    }

    /// True for a file of which the mirror holds a copy.
    pub(crate) fn is_copied(&self) -> bool {
        matches!(self.what, EntryKind::File(Way::Reflink | Way::Copy))
    }

    /// True for a file that may have other names in the tree, which only a copy would tear apart.
    pub(crate) fn has_other_names(&self) -> bool {
        self.shared && self.is_copied()
    }

    /// True for what is looked at even where nobody looks at every file: what is written to in place whoever writes, and a
    /// file that is only copied, because a copy does not show what somebody wrote to the file by hand, by whichever name.
    pub(crate) fn is_looked_at(&self) -> bool {
        self.is_of_database() || self.is_copied()
    }

    /// True when a look finds it as it was recorded.
    pub(crate) fn is(&self, meta: &Meta) -> bool {
        let same = (self.kind(), self.ino) == (meta.kind, meta.ino);
        if is_shared_memory(&self.name) && self.what == EntryKind::Sidecar {
            // It is mapped, and says nothing that the log does not.
            return meta.kind == Kind::File;
        }
        match self.what {
            // What lies in a directory is its own row's business.
            EntryKind::Directory => same,
            EntryKind::Other => same,
            _ => {
                same && (self.size, self.attrs.mtime, self.attrs.mode) == (meta.size, meta.mtime, meta.mode)
                    && self.ctime == meta.ctime
            }
        }
    }
}

/// True for the sidecar that is rebuilt from the others.
pub(crate) fn is_shared_memory(name: &[u8]) -> bool {
    name.ends_with(b"-shm")
}
