//! The pre-image of a path: what it was before somebody else's code may change it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fs::append::End;
use crate::fs::attrs::Attrs;
use crate::fs::clone::{Kept, Way};
use crate::fs::identity::Identity;
use crate::fs::root::{Kind, Meta};
use crate::path::RelPath;

/// Pre-images by their paths, each directory before what lies below it.
pub(crate) type PreImages = BTreeMap<RelPath, PreImage>;

/// What one path was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreImage {
    /// Where `name` lies.
    pub(crate) area: i64,
    /// A name in that area's stage: of the old version, where it is kept as a file; and of what is displaced when it is
    /// put back.
    pub(crate) name: String,
    /// The caller named the path; else it is a directory on the way to one that was named.
    pub(crate) named: bool,
    pub(crate) was: Was,
}

/// What lay at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Was {
    Absent,
    Directory {
        ino: u64,
        attrs: Attrs,
    },
    Symlink {
        ino: u64,
        target: Vec<u8>,
        attrs: Attrs,
    },
    /// A file that is only appended to. What was appended is kept when it is cut off.
    Appended(End),
    /// A SQLite database, kept as a copy. What lies beside it has pre-images of its own, and goes with it.
    Database {
        seen: Identity,
        kept: Identity,
        attrs: Attrs,
    },
    /// A file. With [`Way::Link`] `seen` and `kept` are one inode.
    File {
        seen: Identity,
        kept: Identity,
        attrs: Attrs,
        way: Way,
    },
    /// Something that is not kept: a device, socket or FIFO, or a file that somebody wrote to in place where nobody should.
    /// It is not as it was, and stays so.
    Lost,
}

impl From<Kept> for Was {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Nothing | Kept::Database => Self::Absent,
            Kept::Directory(meta, attrs) => Self::Directory { ino: meta.ino, attrs },
            Kept::Symlink(meta, attrs, target) => Self::Symlink { ino: meta.ino, target, attrs },
            Kept::File { meta, attrs, kept, way } => {
                Self::File { seen: Identity::from(&meta), kept: Identity::from(&kept), attrs, way }
            }
        }
    }
}

/// How what lies at a path differs from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    None,
    /// It is the same file or directory, and something besides its bytes is different: mode, owner, times, xattrs.
    Attributes,
    /// It is something else, or may be.
    All,
}

impl Was {
    /// The inode that it was.
    pub(crate) fn ino(&self) -> Option<u64> {
        match self {
            Self::Directory { ino, .. } | Self::Symlink { ino, .. } => Some(*ino),
            Self::Appended(end) => Some(end.ino),
            Self::Database { seen, .. } | Self::File { seen, .. } => Some(seen.ino),
            Self::Absent | Self::Lost => None,
        }
    }

    /// The kept set's database.
    pub(crate) fn database(kept: Kept) -> Self {
        match Self::from(kept) {
            Self::File { seen, kept, attrs, .. } => Self::Database { seen, kept, attrs },
            other => other,
        }
    }
}

/// What a database held before it was put back in place is called, behind its name.
pub(crate) const WAS: &str = ".was";

impl PreImage {
    /// Compares with what lies at the path now. A file is not read: inode, size, times and mode tell.
    pub(crate) fn differs(&self, live: Option<&Meta>) -> Difference {
        let Some(live) = live else {
            return if self.was == Was::Absent { Difference::None } else { Difference::All };
        };
        let dressed = |attrs: &Attrs| (attrs.mode, attrs.uid, attrs.gid) == (live.mode, live.uid, live.gid);
        match &self.was {
            Was::Absent | Was::Lost => Difference::All,
            Was::Directory { attrs, .. } => match live.kind == Kind::Directory {
                true if dressed(attrs) && (!self.named || attrs.mtime == live.mtime) => Difference::None,
                true => Difference::Attributes,
                false => Difference::All,
            },
            Was::Symlink { ino, attrs, .. } => {
                let same = live.kind == Kind::Symlink && live.ino == *ino && live.mtime == attrs.mtime;
                if same { Difference::None } else { Difference::All }
            }
            Was::Appended(end) => match (live.ino, live.size, live.mtime) == (end.ino, end.size, end.mtime) {
                true => Difference::None,
                false => Difference::All,
            },
            Was::Database { seen, kept, attrs } => {
                if seen.is(live, false) || (kept.is(live, true) && dressed(attrs)) {
                    Difference::None
                } else if (seen.is(live, true) && dressed(attrs)) || kept.is(live, true) {
                    // Written back in place it is the same file: of its bytes size and time tell.
                    Difference::Attributes
                } else {
                    Difference::All
                }
            }
            Was::File { seen, kept, attrs, way } => {
                if seen.is(live, false) {
                    Difference::None
                } else if *way != Way::Link && kept.is(live, true) {
                    // IMPORTANT: the copy, put back before. Its number may be the one that the file itself had: nothing pins
                    // that, and it is free once somebody has removed the file.
                    if dressed(attrs) { Difference::None } else { Difference::Attributes }
                } else if *way == Way::Link && seen.is(live, true) {
                    // The link kept is this very file, so only what it has besides its bytes can be put back.
                    Difference::Attributes
                } else {
                    Difference::All
                }
            }
        }
    }

    /// True when what lies under the name in the stage is the old version; else it was displaced by it.
    pub(crate) fn is_kept(&self, staged: &Meta) -> bool {
        match &self.was {
            Was::File { kept, .. } | Was::Database { kept, .. } => staged.kind == Kind::File && kept.is(staged, true),
            _ => false,
        }
    }

    /// When the file last changed, where its ctime is what tells that it did again.
    pub(crate) fn changed(&self) -> Option<(i64, u32)> {
        match &self.was {
            Was::File { seen, way: Way::Reflink | Way::Copy, .. } => Some(seen.ctime),
            _ => None,
        }
    }

    /// The size of the old version, where it had one.
    pub(crate) fn size(&self) -> Option<u64> {
        match &self.was {
            Was::File { seen, .. } | Was::Database { seen, .. } => Some(seen.size),
            Was::Appended(end) => Some(end.size),
            _ => None,
        }
    }
}
