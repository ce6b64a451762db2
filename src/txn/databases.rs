//! SQLite databases among the paths of a transaction.
//!
//! A database that is replaced, removed or moved must not be in use, and its sidecars must go with it: a new database
//! beside an old `-wal` silently reads as the old one. To tell a database its header has to be read, on the thread that
//! may open files of the tree: it is asked early and answers while the rest is prepared.

use std::collections::BTreeSet;

use super::ground::Ground;
use super::layout::Layout;
use super::prepare::Step;
use crate::error::{Error, Result};
use crate::fs::opener::{self, Held, SIDECARS};
use crate::fs::root::{Dirs, Kind, Meta};
use crate::journal::What;
use crate::path::RelPath;

/// The databases of one transaction, locked against everybody until released.
#[derive(Debug, Default)]
pub(super) struct Databases {
    held: Option<Held>,
    /// Paths that are databases, or may be: their sidecars must not be there on their own.
    alone: BTreeSet<RelPath>,
}

impl Databases {
    /// Asks which of the paths are databases, and has them locked.
    pub(super) fn hold(ground: &Ground, steps: &[Step]) -> Result<Self> {
        let mut candidates = BTreeSet::new();
        let mut alone = BTreeSet::new();
        for step in steps {
            let displaced = step.seen.filter(|meta| meta.kind == Kind::File);
            let moved = match &step.redo.what {
                What::Move { from: Some(from), directory: false, .. } => Some(from),
                _ => None,
            };
            match displaced {
                // An empty file may be a database whose content is all in its log.
                Some(meta) if meta.size == 0 => drop(alone.insert(step.path.clone())),
                Some(meta) if may_be_database(&meta) => drop(candidates.insert(step.path.clone())),
                _ => {}
            }
            candidates.extend(moved.cloned());
            if step.database {
                alone.insert(step.path.clone());
            }
            // Whoever touches a sidecar touches its database.
            candidates.extend(opener::database_beside(&step.path));
        }
        let held = match candidates.is_empty() {
            true => None,
            false => Some(ground.opener.hold_databases(candidates.into_iter().collect())?),
        };
        Ok(Self { held, alone })
    }

    /// Waits for the answer. [`Error::DatabaseInUse`] when somebody has one open, or has left a sidecar.
    pub(super) fn refuse_in_use(&mut self, ground: &Ground, dirs: &mut Dirs<'_>, layout: &Layout) -> Result<()> {
        if let Some(held) = &mut self.held {
            self.alone.extend(held.databases()?);
        }
        for database in &self.alone {
            for suffix in SIDECARS {
                let Some(sidecar) = database.with_suffix(suffix.as_bytes()) else { continue };
                if !layout.lifted.contains(&sidecar) && layout.look(dirs, &sidecar)?.is_some() {
                    return Err(Error::DatabaseInUse { path: ground.root.full(database) });
                }
            }
        }
        Ok(())
    }

    /// True when one of the paths is a database, or may be, as far as was asked.
    pub(super) fn are_there(&self) -> bool {
        !self.alone.is_empty()
    }

    /// Lets them go.
    pub(super) fn release(&mut self, ground: &Ground) {
        if let Some(held) = self.held.take() {
            ground.opener.release(held);
        }
    }
}

/// A database is a whole number of pages, of 512 bytes at least.
fn may_be_database(meta: &Meta) -> bool {
    meta.size.is_multiple_of(512)
}
