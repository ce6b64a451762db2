//! The records: what recovery needs to know of an effect, what people are shown of a change.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, planted};
use crate::fs::attrs::Attrs;
use crate::fs::identity::Identity;
use crate::id::TxnId;
use crate::path::RelPath;

/// The redo record of one effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Redo {
    pub(crate) what: What,
    /// Where `staged` lies.
    pub(crate) area: i64,
    /// The name in that area's stage: of the new version until it is in place, of the old one afterwards.
    pub(crate) staged: String,
    /// What was at the path when the turnstile was taken; none when nothing was.
    pub(crate) old: Option<Identity>,
}

/// What an effect leaves at its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// A file with these bytes. They stand in the row, or were synced in the stage before COMMIT as inode `ino`.
    Content { ino: u64, size: u64, hash: [u8; 32], attrs: Attrs },
    /// A symlink.
    Symlink { ino: u64, target: Vec<u8> },
    /// A directory, empty but for what other effects put there.
    Directory { mode: Option<u32> },
    /// Nothing. For structural transactions the path is the one before any move.
    Absence,
    /// An inode that existed before: moved from a path of the tree, or published from the stage.
    Move { from: Option<RelPath>, ino: u64, btime: (i64, u32), directory: bool },
}

/// The boot, state directory and mounts in which "applied" is true: anything unsynced may be lost with any of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) boot: Vec<u8>,
    pub(crate) state_dir: u64,
    pub(crate) mounts: Vec<u64>,
}

impl Mark {
    /// True when whatever was true in `self` still is, as seen from `now`.
    pub(crate) fn counts_in(&self, now: &Mark) -> bool {
        planted(Fault::StaleMarkTrusted)
            || !self.boot.is_empty()
                && self.boot == now.boot
                && self.state_dir == now.state_dir
                && self.mounts.iter().all(|mount| now.mounts.contains(mount))
    }
}

/// What an event says besides its columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventDetails {
    pub(crate) message: String,
}

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChangeKind {
    /// Nothing was there before.
    Created,
    /// Another version, or another kind of thing, was there.
    Replaced,
    /// It is gone.
    Removed,
    /// It came from another path, or was published.
    Renamed,
    /// A directory was made.
    Directory,
}

impl ChangeKind {
    const ALL: [Self; 5] = [Self::Created, Self::Replaced, Self::Removed, Self::Renamed, Self::Directory];

    /// The word in the database and in `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Removed => "removed",
            Self::Renamed => "renamed",
            Self::Directory => "directory",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One path that a transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    pub(crate) path: RelPath,
    /// What happened to it.
    pub kind: ChangeKind,
    pub(crate) origin: Option<RelPath>,
    /// The size of the new version in bytes; none for what has no size of its own.
    pub size: Option<u64>,
    /// BLAKE3 of the new version's bytes.
    pub hash: Option<[u8; 32]>,
    /// The size of the version that was there before.
    pub old_size: Option<u64>,
    pub(crate) preimage: Option<String>,
    pub(crate) area: i64,
}

impl Change {
    /// The path, relative to the root.
    pub fn path(&self) -> &Path {
        self.path.as_path()
    }

    /// Where it was before, if it was renamed within the tree.
    pub fn origin(&self) -> Option<PathBuf> {
        self.origin.as_ref().map(RelPath::to_path_buf)
    }
}

/// Transactions from one number to another, of one COMMIT: nobody else's are between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: TxnId,
    pub(crate) last: TxnId,
}

impl Span {
    /// Both ends, for SQL; with nothing between them when there is none.
    pub(super) fn ends(span: Option<Self>) -> (i64, i64) {
        span.map_or((0, 0), |span| (span.first.get(), span.last.get()))
    }
}
