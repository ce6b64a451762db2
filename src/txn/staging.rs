//! What a transaction looks at while things are staged: is this path fit for that?

use std::path::Path;

use super::overlay::{Bytes, NewFile, Node, View};
use super::transaction::Transaction;
use crate::error::{Error, IoContext, Result};
use crate::fs::root::{self, Kind};
use crate::path::RelPath;
use crate::store;

/// The largest number of paths one transaction may name.
const MAX_PATHS: u64 = 1 << 20;

impl Transaction {
    pub(super) fn begin_staging(&mut self, path: &Path) -> Result<RelPath> {
        store::refuse_reentry("a change of the tree")?;
        self.ground.store.refuse_poisoned()?;
        let Some(lease) = &self.lease else { return Err(Error::Closed) };
        lease.used();
        lease.refuse_lost()?;
        self.paths += 1;
        if self.paths > MAX_PATHS {
            return Err(Error::TooLarge { what: "the number of paths of one transaction", limit: MAX_PATHS });
        }
        self.ground.path(path)
    }

    /// Puts a node, and gives back what its predecessor took of the limit for small content.
    pub(super) fn replace(&mut self, path: &RelPath, node: Node) -> Result<()> {
        if let View::File(NewFile { bytes: Bytes::Inline(old), .. }) = self.overlay.view(path)? {
            self.inline = self.inline.saturating_sub(old.len() as u64);
        }
        self.overlay.put(path, node)
    }

    /// A staged node on its way to another path. A directory that only this transaction makes has nothing live to
    /// bring along.
    pub(super) fn detached(&self, mut node: Node) -> Result<Node> {
        if let Some(origin) = node.live_origin()
            && self.ground.root.look(origin)?.is_none()
        {
            node.make_fresh();
        }
        Ok(node)
    }

    /// Remembers an operation, to compare a repeat of the key with.
    pub(super) fn ask(&mut self, operation: &str, parts: &[&[u8]]) {
        for part in [operation.as_bytes()].iter().chain(parts) {
            self.asked.update(&(part.len() as u64).to_le_bytes());
            self.asked.update(part);
        }
    }

    /// What is at a path that something is to be put to. What comes along with a published directory is the caller's
    /// own, to be arranged before.
    pub(super) fn placing(&self, path: &RelPath) -> Result<View<'_>> {
        if !self.publishes {
            return self.overlay.view(path);
        }
        let along = |path: &RelPath| match self.overlay.view(path)? {
            View::Along(source) => root::look_outside(&source).at("look at", source),
            _ => Ok(None),
        };
        if along(path)?.is_some() {
            return Err(Self::published(path));
        }
        for above in std::iter::successors(path.parent(), RelPath::parent) {
            if along(&above)?.is_some_and(|meta| meta.kind != Kind::Directory) {
                return Err(Error::NotADirectory { path: self.ground.root.full(&above) });
            }
        }
        self.overlay.view(path)
    }

    /// What is at a path that is to leave it: there must be something, and nothing of the journal's own in it.
    pub(super) fn leaving(&self, path: &RelPath) -> Result<Kind> {
        let Some(kind) = self.kind_of(path)? else {
            return Err(Error::NotFound { path: self.ground.root.full(path) });
        };
        if let View::Along(_) = self.overlay.view(path)? {
            return Err(Self::published(path));
        }
        self.ground.whole_path(path.as_path()).map(|_| kind)
    }

    pub(super) fn published(path: &RelPath) -> Error {
        let reason = "it is part of what this transaction publishes; change that before publishing it";
        Error::BadPath { path: path.to_path_buf(), reason }
    }

    /// What is at a path, as this transaction sees it.
    pub(super) fn kind_of(&self, path: &RelPath) -> Result<Option<Kind>> {
        Ok(match self.overlay.view(path)? {
            View::Absent => None,
            // One on the way to something staged need not exist yet; it will.
            View::Dir => Some(Kind::Directory),
            View::File(_) => Some(Kind::File),
            View::Symlink => Some(Kind::Symlink),
            View::Live(live) => self.ground.root.look(&live)?.map(|meta| meta.kind),
            View::Outside(source) | View::Along(source) => {
                root::look_outside(&source).at("look at", source)?.map(|meta| meta.kind)
            }
        })
    }

    /// Something may be moved to a path where a file is; not onto a directory, nor a directory onto a file.
    pub(super) fn refuse_occupied(&self, to: &RelPath, directory: bool) -> Result<()> {
        self.placing(to)?;
        match self.kind_of(to)? {
            None => Ok(()),
            Some(Kind::Directory) => Err(Error::AlreadyExists { path: self.ground.root.full(to) }),
            Some(_) if directory => Err(Error::NotADirectory { path: self.ground.root.full(to) }),
            Some(_) => Ok(()),
        }
    }
}
