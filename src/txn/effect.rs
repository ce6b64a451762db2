//! What a transaction finally does: one effect a path.
//!
//! Lifts come first, deepest first, in the paths of the tree as it was; then what is placed, parents first, in the
//! paths of the tree as it will be. Without moves and removed directories the two coincide, and the transaction is
//! *simple*: each path stands for itself, and recovery may look at them one by one. Otherwise it is *structural*, and
//! is settled at once.

use std::path::PathBuf;
use std::sync::Arc;

use super::overlay::{NewFile, Published};
use crate::path::RelPath;

/// An effect before anything was prepared for it.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// What is there now goes to history.
    Lift(RelPath),
    /// A directory, unless there is one.
    Directory(RelPath),
    File(RelPath, NewFile),
    Symlink(RelPath, PathBuf),
    Move {
        from: RelPath,
        to: RelPath,
    },
    Publish(Arc<Published>, RelPath),
}

impl Effect {
    /// The path a move takes its inode from.
    pub(crate) fn moved_from(&self) -> Option<&RelPath> {
        match self {
            Self::Move { from, .. } => Some(from),
            _ => None,
        }
    }

    /// The path at which something will be; none for what only lifts.
    pub(crate) fn placed_at(&self) -> Option<&RelPath> {
        match self {
            Self::Lift(_) => None,
            Self::Directory(to)
            | Self::File(to, _)
            | Self::Symlink(to, _)
            | Self::Move { to, .. }
            | Self::Publish(_, to) => Some(to),
        }
    }
}
