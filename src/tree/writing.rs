//! What a program made of a tree, told path by path; and what of it does not go together with what others did.

use std::collections::{BTreeMap, BTreeSet};

use crate::fs::attrs::Attrs;
use crate::fs::root::Meta;
use crate::path::RelPath;

/// What is to lie at a path.
#[derive(Debug)]
pub(crate) enum Made {
    Nothing,
    /// A directory; whether it is the one that is there already, its path tells.
    Directory(Attrs),
    Symlink(Vec<u8>, Attrs),
    /// What lies at this path of the layer: a file, or a device, socket or FIFO.
    Written {
        at: RelPath,
        meta: Meta,
        attrs: Attrs,
    },
    /// The very file that lies at another path, or did until now.
    Live {
        from: RelPath,
        attrs: Attrs,
    },
}

impl Made {
    /// How many names it has in the layer.
    pub(crate) fn links(&self) -> u32 {
        match self {
            Self::Written { meta, .. } => meta.links,
            _ => 1,
        }
    }
}

/// What a layer makes of its tree.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    pub(crate) made: BTreeMap<RelPath, Made>,
    /// What goes with a directory that is removed or replaced.
    pub(crate) below: BTreeSet<RelPath>,
    /// Files that seem to be what the live tree has at a path: at their own, or where they came from. Their bytes decide.
    pub(crate) same: Vec<(RelPath, RelPath)>,
    /// Directories where nothing is yet: what comes with them needs no guard of its own.
    pub(super) new: BTreeSet<RelPath>,
    /// What lay at those paths when they were looked at.
    pub(crate) seen: BTreeMap<RelPath, Meta>,
}

impl Writing {
    /// The paths that will not be what they are.
    pub(crate) fn touched(&self) -> impl Iterator<Item = &RelPath> {
        let in_new =
            |path: &RelPath| std::iter::successors(path.parent(), RelPath::parent).any(|at| self.new.contains(&at));
        self.made.keys().chain(&self.below).filter(move |path| self.new.is_empty() || !in_new(path))
    }
}

/// Somebody else did something to the tree that the layer knows nothing of.
#[derive(Debug)]
pub(crate) struct Clash {
    pub(crate) path: RelPath,
    pub(crate) reason: &'static str,
}

pub(super) const CHANGED: &str = "somebody else changed it meanwhile";
pub(super) const REPLACED: &str = "somebody else replaced or removed it meanwhile";
pub(super) const LINKED: &str = "it has other names, which would keep the old content";
pub(super) const JOURNAL: &str = "it belongs to a journal of its own";
pub(super) const SUBVOLUME: &str = "it lies on a subvolume of its own, which a layer over another does not reach";
pub(super) const FIXED: &str = "it cannot be moved out of the way: immutable, append-only, or a mount point";
pub(super) const DRESSED: &str = "somebody else changed its mode or owner meanwhile";
