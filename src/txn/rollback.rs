//! Puts back what was done to guarded paths: for a transaction that does not commit, and for one that died.

use std::path::PathBuf;

use super::ground::Ground;
use super::guarding::{change, sync_whole};
use crate::error::Result;
use crate::id::TxnId;
use crate::journal::{self, Change, GuardRow, Level};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::tree::{PreImages, PutBack, TreeRestorer, Was};

/// What a rollback put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RolledBack {
    /// Paths that are as before again.
    pub restored: Vec<PathBuf>,
    /// Paths that could not be put back, because somebody wrote to the file in place under [`Guard::replacing`](crate::Guard::replacing). They are as
    /// they were found.
    pub damaged: Vec<PathBuf>,
    /// The record of it, for `journalctl-kb show`: what was displaced is kept there until retention drops it. None when
    /// nothing was different.
    pub id: Option<TxnId>,
}

/// Puts everything back that a guard's transaction changed, and ends the guard. Durable on return.
pub(crate) fn put_back(ground: &Ground, turn: &mut Turn<'_>, row: &GuardRow, images: &PreImages) -> Result<RolledBack> {
    ground.touch();
    let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas());
    let mut done = RolledBack::default();
    let mut failed = None;
    for (path, outcome) in restorer.put_back(images) {
        match outcome {
            Ok(PutBack::Unchanged) => {}
            Ok(PutBack::Restored) => done.restored.push(path.to_path_buf()),
            Ok(PutBack::Damaged) => done.damaged.push(path.to_path_buf()),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let mut changes = Vec::new();
    let mut history = 0;
    for (path, image) in images {
        let displaced = restorer.displaced(image)?;
        let touched = done.restored.iter().any(|restored| restored == path.as_path());
        if let Some((name, displaced)) = displaced {
            let kept = Change { preimage: Some(name), ..change(path, image, Some(&displaced)) };
            changes.push(kept);
            history += displaced.size;
        } else if touched && (image.named || !matches!(image.was, Was::Directory { .. })) {
            changes.push(Change { preimage: None, ..change(path, image, None) });
        }
    }
    if !changes.is_empty() || !done.restored.is_empty() {
        sync_whole(ground, images)?;
    }
    done.id = turn.write(Durability::Full, |tx| {
        journal::delete_guard(tx, row.id)?;
        if changes.is_empty() && done.damaged.is_empty() {
            return Ok(None);
        }
        let kept = changes.iter().filter(|change| change.preimage.is_some()).count();
        let id = journal::insert_rolled_back(tx, row, changes.len(), kept, history)?;
        journal::insert_changes(tx, id, &changes)?;
        for change in &changes {
            if change.preimage.is_some() {
                let message = "rolled back; what was there is kept";
                journal::insert_event(tx, Level::Info, "rolled-back", Some(id), Some(&change.path), message)?;
            }
        }
        for path in &done.damaged {
            let path = RelPath::parse(path)?;
            let message = "written to in place under a guard for replacing writers: it could not be put back, and is as it \
                           was found";
            journal::insert_event(tx, Level::Error, "damaged", Some(id), Some(&path), message)?;
        }
        Ok(Some(id))
    })?;
    for image in images.values() {
        let Ok(area) = ground.area(image.area) else { continue };
        let moved = match restorer.displaced(image) {
            Ok(Some((name, _))) if name == image.name => area.to_history(&name),
            Ok(Some((name, _))) => area.to_history(&name).and_then(|()| area.drop_staged(&image.name)),
            _ => area.drop_staged(&image.name),
        };
        if let Err(error) = moved {
            tracing::warn!(%error, "an old version could not be moved; it stays in the stage");
        }
    }
    Ok(done)
}
