//! SQLite databases in a layer: a database and what SQLite puts beside it go into the tree as one set.
//!
//! Nobody may have written to the set in the tree since the layer was laid, or since it was captured: what the program did, it
//! did to a copy. A set that holds what it held stays as it is.

use std::collections::BTreeSet;

use super::layer::{Captured, Layer};
use super::transaction::Transaction;
use crate::error::{Error, Result};
use crate::fs::attrs::{self, Attrs};
use crate::fs::identity::Identity;
use crate::fs::opener::{self, SIDECARS};
use crate::fs::root::{Dirs, Kind, Meta};
use crate::path::RelPath;
use crate::tree::{Made, Writing};

/// The databases that take the place of ones in the tree.
pub(super) type Sets = BTreeSet<RelPath>;

const WRITTEN: &str = "somebody else wrote to the database meanwhile; name databases that others use beforehand";
const ALONE: &str = "it was written to, and the database it belongs to was not";

/// What is known of a database's log, shared memory or journal.
struct Beside {
    path: RelPath,
    is_shm: bool,
    live: Option<Meta>,
}

impl Transaction {
    /// Finds the databases of a layer, and makes each of them one set.
    pub(super) fn find_databases(&self, layer: &Layer, writing: &mut Writing) -> Result<Sets> {
        let mut found = Vec::new();
        let mut taken_away: Vec<RelPath> = writing.below.iter().cloned().collect();
        for (path, made) in &writing.made {
            let here = writing.seen.get(path).filter(|here| here.kind == Kind::File);
            match made {
                Made::Written { at, meta, .. } if meta.kind == Kind::File && is_database(layer, at, meta)? => {
                    found.push((path.clone(), here.copied()));
                }
                _ => taken_away.extend(here.filter(|here| may_be_database(here)).map(|_| path.clone())),
            }
        }
        let mut sets = Sets::new();
        for (path, here) in found {
            match here {
                Some(here) if self.make_set(layer, writing, &path, &here)? => drop(sets.insert(path)),
                Some(_) => {}
                // A new one. What SQLite maps into memory is worth nothing without those who had it open.
                None => drop(path.with_suffix(b"-shm").and_then(|shm| writing.made.remove(&shm))),
            }
        }
        self.refuse_alone(writing, &sets)?;
        self.refuse_in_use(taken_away)?;
        Ok(sets)
    }

    /// Makes a set of a database and what lies beside it. False when it holds what the one in the tree does.
    fn make_set(&self, layer: &Layer, writing: &mut Writing, path: &RelPath, here: &Meta) -> Result<bool> {
        let captured = layer.databases.iter().find(|captured| captured.path == *path);
        if captured.is_some_and(|captured| captured.live[0] != Some(Identity::from(here))) {
            return Err(self.conflict(path, WRITTEN));
        }
        let of_itself = (path.clone(), path.clone());
        let mut changes = !writing.same.contains(&of_itself);
        let beside = self.beside(layer, path, captured)?;
        for Beside { path, is_shm, live } in &beside {
            let had = live.is_some_and(|live| live.size > 0);
            changes |= match writing.made.get(path) {
                _ if *is_shm => false,
                Some(Made::Written { meta, .. }) => meta.size > 0 || had,
                Some(_) => had,
                None => false,
            };
        }
        // Its bytes alone do not decide.
        if changes {
            writing.same.retain(|same| *same != of_itself);
        }
        let mut dirs = Dirs::new(&self.ground.root);
        for Beside { path, is_shm, live } in beside {
            let Some(live) = live.filter(|_| changes) else {
                if !changes || is_shm {
                    writing.made.remove(&path);
                }
                continue;
            };
            if is_shm || (captured.is_some() && !writing.made.contains_key(&path)) {
                // Made anew where it is missing; or captured, and gone from the layer.
                writing.made.insert(path, Made::Nothing);
            } else if !writing.made.contains_key(&path) {
                // As it is, a part of the set.
                let parent = dirs.parent(&path)?;
                let xattrs = attrs::xattrs(&parent.fd, path.name(), self.ground.root.path())?;
                let attrs = Attrs { mode: live.mode, uid: live.uid, gid: live.gid, mtime: live.mtime, xattrs };
                writing.made.insert(path.clone(), Made::Live { from: path, attrs });
            }
        }
        Ok(changes)
    }

    fn beside(&self, layer: &Layer, path: &RelPath, captured: Option<&Captured>) -> Result<Vec<Beside>> {
        let mut found = Vec::with_capacity(SIDECARS.len());
        for (n, suffix) in SIDECARS.iter().enumerate() {
            let Some(beside) = path.with_suffix(suffix.as_bytes()) else { continue };
            let live = self.ground.root.look(&beside)?;
            let is_shm = *suffix == "-shm";
            let moved = match captured {
                _ if is_shm => false,
                Some(captured) => captured.live[n + 1] != live.as_ref().map(Identity::from),
                None => live.is_some_and(|live| live.ctime >= layer.began),
            };
            if moved {
                return Err(self.conflict(path, WRITTEN));
            }
            found.push(Beside { path: beside, is_shm, live });
        }
        Ok(found)
    }

    /// A log or journal does not come into the tree without its database.
    fn refuse_alone(&self, writing: &mut Writing, sets: &Sets) -> Result<()> {
        let mut idle = Vec::new();
        for (path, made) in &writing.made {
            let Some(database) = opener::database_beside(path).filter(|database| !sets.contains(database)) else {
                continue;
            };
            let Made::Written { meta, .. } = made else { continue };
            let stays = !writing.made.contains_key(&database) || writing.same.iter().any(|(to, _)| *to == database);
            if !stays || self.ground.root.look(&database)?.is_none_or(|live| live.kind != Kind::File) {
                continue;
            }
            match meta.size == 0 || path.as_bytes().ends_with(b"-shm") {
                true => idle.push(path.clone()),
                false => return Err(self.conflict(path, ALONE)),
            }
        }
        for path in idle {
            writing.made.remove(&path);
        }
        Ok(())
    }

    /// A database that goes away must not be open anywhere.
    fn refuse_in_use(&self, paths: Vec<RelPath>) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let opener = &self.ground.opener;
        let mut held = opener.hold_databases(paths)?;
        let databases = held.databases();
        opener.release(held);
        for path in databases? {
            if opener.is_open(path.clone())? {
                return Err(Error::DatabaseInUse { path: self.ground.root.full(&path) });
            }
        }
        Ok(())
    }
}

/// A database is a whole number of pages, of 512 bytes at least.
fn may_be_database(meta: &Meta) -> bool {
    meta.size > 0 && meta.size.is_multiple_of(512)
}

/// One that this user may not read is none that this user's program works on.
fn is_database(layer: &Layer, at: &RelPath, meta: &Meta) -> Result<bool> {
    Ok(may_be_database(meta) && layer.upper.head(at)?.is_some_and(|head| opener::is_database(&head)))
}
