//! SQLite databases among the paths of a transaction.

use std::collections::BTreeSet;

use super::ground::Ground;
use super::layout::Layout;
use super::prepare::Step;
use crate::error::{Error, Result};
use crate::fs::opener::{Held, SIDECARS};
use crate::fs::root::{Dirs, Kind};
use crate::journal::What;
use crate::path::RelPath;

/// A database that is replaced, removed or moved must not be in use, and its sidecars must go with it: a new
/// database beside an old `-wal` silently reads as the old one.
pub(super) fn hold(ground: &Ground, dirs: &mut Dirs<'_>, steps: &[Step], layout: &Layout) -> Result<Option<Held>> {
    let mut held = None;
    let mut candidates = BTreeSet::new();
    let mut alone = BTreeSet::new();
    for step in steps {
        let displaces = step.seen.filter(|meta| meta.kind == Kind::File);
        let moves = match &step.redo.what {
            What::Move { from: Some(from), directory: false, .. } => Some(from),
            _ => None,
        };
        for path in displaces.map(|_| &step.path).into_iter().chain(moves) {
            // An empty file may be a database whose content is all in its log.
            match displaces {
                Some(meta) if meta.size == 0 => drop(alone.insert(path.clone())),
                _ => drop(candidates.insert(path.clone())),
            }
        }
        if step.database {
            alone.insert(step.path.clone());
        }
        // Whoever touches a sidecar touches its database.
        let name = step.path.as_bytes();
        let base = SIDECARS.iter().find_map(|suffix| name.strip_suffix(suffix.as_bytes()));
        if let Some(base) = base.and_then(|base| RelPath::from_stored(base).ok()) {
            candidates.insert(base);
        }
    }
    if !candidates.is_empty() {
        let (locked, databases) = ground.opener.hold_databases(candidates.into_iter().collect())?;
        held = Some(locked);
        alone.extend(databases);
    }
    for database in alone {
        for suffix in SIDECARS {
            let Some(sidecar) = database.with_suffix(suffix.as_bytes()) else { continue };
            if !layout.lifted.contains(&sidecar) && layout.look(dirs, &sidecar)?.is_some() {
                return Err(Error::DatabaseInUse { path: ground.root.full(&database) });
            }
        }
    }
    Ok(held)
}
