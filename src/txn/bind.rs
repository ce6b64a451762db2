//! A second look at what was prepared, under the turn: between the two somebody else may have committed.

use std::collections::HashSet;

use super::layout::look;
use super::prepare::{Prepared, Step, like, not_directory};
use crate::error::{Error, Result};
use crate::fs::attrs::Attrs;
use crate::fs::identity::Identity;
use crate::fs::root::{Dirs, Kind, Meta};
use crate::fs::temp;
use crate::journal::What;
use crate::path::RelPath;
use crate::store::Tx;

impl Prepared<'_> {
    /// Looks again at every path, now that nobody else commits, unless nobody has since this was prepared. What changed
    /// in the meantime is judged anew; where directories move, it is refused.
    pub(crate) fn bind(&mut self, tx: &Tx<'_>) -> Result<()> {
        if self.steps.is_empty() || self.ground.version(tx)? == self.version {
            return Ok(());
        }
        // Opened under the turn: one that was open before may have been moved away by somebody's commit since.
        let mut fresh = Dirs::new(&self.ground.root);
        let done = if self.structural { self.bind_structure(&mut fresh) } else { self.bind_simple(&mut fresh) };
        self.dirs = fresh;
        done
    }

    fn bind_simple(&mut self, dirs: &mut Dirs<'_>) -> Result<()> {
        self.check_parents(dirs)?;
        for step in &mut self.steps {
            let now = match look(dirs, &step.path) {
                // What stands on the way goes in this transaction.
                Err(Error::NotADirectory { .. } | Error::SymlinkOnTheWay { .. }) if step.seen.is_none() => None,
                other => other?,
            };
            let version = |meta: &Meta| (meta.ino, meta.ctime, meta.size);
            if now.as_ref().map(version) == step.seen.as_ref().map(version) {
                continue;
            }
            let directory = now.is_some_and(|meta| meta.kind == Kind::Directory);
            match &mut step.redo.what {
                What::Content { ino, attrs, .. } if !directory => {
                    if let Some(wanted) = like(dirs, &step.path, now.as_ref())? {
                        let file = temp::reopen(&step.area, &step.redo.staged)?;
                        let path = step.area.stage_path(&step.redo.staged);
                        let meta = temp::finish(&file, Some(&wanted), false, &path)?;
                        *ino = meta.ino;
                        *attrs = Attrs { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, ..wanted };
                    }
                }
                What::Directory { .. } if now.is_some_and(|meta| not_directory(&meta)) => {
                    return Err(Error::NotADirectory { path: self.ground.root.full(&step.path) });
                }
                What::Directory { .. } => {}
                _ if directory => return Err(Error::IsADirectory { path: self.ground.root.full(&step.path) }),
                _ => {}
            }
            step.seen = now;
            step.redo.old = now.as_ref().map(Identity::from);
        }
        Ok(())
    }

    /// Every directory that something is put in is there, or made by this transaction.
    fn check_parents(&self, dirs: &mut Dirs<'_>) -> Result<()> {
        let makes = |step: &&Step| matches!(step.redo.what, What::Directory { .. });
        let made: HashSet<&RelPath> = self.steps.iter().filter(makes).map(|step| &step.path).collect();
        for step in self.steps.iter().filter(|step| step.redo.what != What::Absence) {
            if let Some(parent) = step.path.parent()
                && !made.contains(&parent)
                && dirs.try_parent(&step.path)?.is_none()
            {
                return Err(Error::ChangedMeanwhile { path: parent.to_path_buf() });
            }
        }
        Ok(())
    }

    /// Each step was prepared for one arrangement of directories. Any other is somebody's commit since.
    fn bind_structure(&mut self, dirs: &mut Dirs<'_>) -> Result<()> {
        for step in &mut self.steps {
            let changed = |path: &RelPath| Error::ChangedMeanwhile { path: path.to_path_buf() };
            if let What::Move { from: Some(from), ino, .. } = &step.redo.what
                && look(dirs, from)?.is_none_or(|meta| meta.ino != *ino)
            {
                return Err(changed(from));
            }
            let now = match &step.redo.what {
                What::Absence => look(dirs, &step.path)?,
                _ => self.layout.look(dirs, &step.path)?,
            };
            // A directory that is lifted first displaces nothing, as when it was prepared.
            let gone = |meta: &Meta| meta.kind == Kind::Directory && step.redo.what != What::Absence;
            let now = now.filter(|meta| !gone(meta) || !self.layout.lifted.contains(&step.path));
            if now.map(|meta| meta.ino) != step.seen.map(|meta| meta.ino) {
                return Err(changed(&step.path));
            }
            step.seen = now;
            step.redo.old = now.as_ref().map(Identity::from);
        }
        Ok(())
    }
}
