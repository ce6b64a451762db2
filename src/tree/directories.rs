//! What directories get back besides their entries.
//!
//! One that was named is as before again, whatever was done to it. One that was not, and only lies on the way to a path that
//! was, is everybody's: others may have made files in it, or given it another mode, meanwhile.
//!
//! - It was removed, or is another directory now: it is made again, and has all that it had.
//! - It is the same directory: mode, owner and xattrs stay as they are found. Its mtime is the one it had, because what the
//!   transaction did in it is undone. Who else has moved it on meanwhile nobody tells: to watch a directory costs all that is
//!   in it.

use super::preimage::{PreImage, Was};
use super::restorer::TreeRestorer;
use crate::error::{Error, IoContext, Result};
use crate::fs::attrs;
use crate::fs::root::{self, Meta};
use crate::path::RelPath;

impl TreeRestorer<'_> {
    /// Remembers a directory as it is before anything in it is put back.
    pub(super) fn find(&mut self, path: &RelPath, image: &PreImage, live: &Meta) {
        if !image.named && image.is_inode(live) {
            self.found.entry(path.clone()).or_insert(*live);
        }
    }

    /// Gives a directory back what it had besides its entries.
    pub(super) fn directory(&mut self, path: &RelPath, image: &PreImage) -> Result<()> {
        let Was::Directory { attrs, .. } = &image.was else { return Ok(()) };
        let full = self.dirs.root().full(path);
        let Some(live) = self.look(path)? else { return Err(Error::NotFound { path: full }) };
        let dir = self.dirs.parent(path)?;
        if image.named || !image.is_inode(&live) {
            return attrs::dress_at(&dir.fd, path.name(), attrs, &full);
        }
        let Some(found) = self.found.get(path) else { return Ok(()) };
        attrs::give_back(&dir.fd, path.name(), &live, found.mode, attrs.mtime, &full)
    }

    /// Looks at a path; none when it is not there, or something else stands on the way.
    pub(super) fn look(&mut self, path: &RelPath) -> Result<Option<Meta>> {
        match self.dirs.try_parent(path) {
            Ok(None) => Ok(None),
            Ok(Some(dir)) => root::look(&dir.fd, path.name()).at_in("look at", self.dirs.root().path(), path),
            Err(Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
