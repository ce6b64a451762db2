//! Which version of a path is which.

use serde::{Deserialize, Serialize};

use super::root::{Kind, Meta};

/// How a version of a path is told from others, without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) directory: bool,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

impl From<&Meta> for Identity {
    fn from(meta: &Meta) -> Self {
        Self {
            directory: meta.kind == Kind::Directory,
            ino: meta.ino,
            size: meta.size,
            mtime: meta.mtime,
            ctime: meta.ctime,
        }
    }
}

impl Identity {
    /// True when `meta` is this very version. A rename moves ctime on, so it counts only where `renamed` is false.
    pub(crate) fn is(&self, meta: &Meta, renamed: bool) -> bool {
        let seen = Self::from(meta);
        if self.directory {
            return seen.directory && seen.ino == self.ino;
        }
        Self { ctime: self.ctime, ..seen } == *self && (renamed || meta.ctime == self.ctime)
    }
}
