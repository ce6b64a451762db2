//! Puts back what was done to guarded paths: for a transaction that does not commit, and for one that died.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::ground::Ground;
use super::guarding::{change, sync_whole};
use super::renames;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::clone::Way;
use crate::fs::root::{Kind, Meta};
use crate::id::TxnId;
use crate::journal::{self, Change, ChangeKind, GuardRow, Level};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::tree::{PreImage, PreImages, PutBack, TreeRestorer, Was};

/// What a rollback put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RolledBack {
    /// Paths that are as before again.
    pub restored: Vec<PathBuf>,
    /// Paths that could not be put back: somebody wrote to the file in place under
    /// [`Guard::replacing`](crate::Guard::replacing), or removed a device, socket or FIFO. They are as they were found.
    pub damaged: Vec<PathBuf>,
    /// The record of it, for `journalctl-kb show`: what was displaced is kept there until retention drops it. None when
    /// nothing was different.
    pub id: Option<TxnId>,
}

/// Who puts things back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The transaction itself.
    First,
    /// Recovery: the transaction may have put things back and not synced them. `in_doubt`: there may have been a power cut,
    /// too, so that bytes changed and times did not. `again`: recovery has begun it before.
    Recovery { in_doubt: bool, again: bool },
}

/// What is kept of a path that could not be put back is called, below `quarantine/`.
const OLD: &str = "old";
/// Why something is not put back.
const DAMAGED: &str = "it cannot be put back: it was written to in place, nobody can move it away, or it is no file, directory or symlink";

/// What came of putting back what can be.
#[derive(Debug, Default)]
pub(crate) struct PutBackSome {
    pub(crate) restored: Vec<PathBuf>,
    /// What is not as before, and why.
    pub(crate) left: Vec<(RelPath, String)>,
}

/// Puts back what it can, and leaves the guard as it is: what is displaced stays in its hands. Durable on return.
pub(crate) fn put_back_some(ground: &Ground, images: &PreImages, in_doubt: bool) -> Result<PutBackSome> {
    ground.touch();
    let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas()).in_doubt(in_doubt);
    let mut done = PutBackSome::default();
    for (path, outcome) in restorer.put_back(images) {
        match outcome {
            Ok(PutBack::Unchanged) => {}
            Ok(PutBack::Restored | PutBack::Dressed) => done.restored.push(path.to_path_buf()),
            Ok(PutBack::Damaged) => done.left.push((path, DAMAGED.to_owned())),
            Err(error) => done.left.push((path, error.to_string())),
        }
    }
    sync_whole(ground, images)?;
    Ok(done)
}

/// Puts everything back that a guard's transaction changed, and ends the guard. Durable on return.
pub(crate) fn put_back(
    ground: &Ground,
    turn: &mut Turn<'_>,
    row: &GuardRow,
    images: &PreImages,
    attempt: Attempt,
) -> Result<RolledBack> {
    ground.touch();
    let (first, in_doubt, again) = match attempt {
        Attempt::First => (true, false, false),
        Attempt::Recovery { in_doubt, again } => (false, in_doubt, again),
    };
    let restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas());
    let mut restorer = restorer.in_doubt(in_doubt);
    // IMPORTANT: before any live file is touched. A tree of which some is put back is neither as before nor as found.
    refuse_missing(&restorer.missing(images, again)?)?;
    let mut done = RolledBack::default();
    let mut dressed = HashSet::new();
    let mut failed = None;
    for (path, outcome) in restorer.put_back(images) {
        match outcome {
            Ok(PutBack::Unchanged) => {}
            Ok(PutBack::Restored) => done.restored.push(path.to_path_buf()),
            Ok(PutBack::Dressed) => {
                done.restored.push(path.to_path_buf());
                dressed.insert(path);
            }
            Ok(PutBack::Damaged) => done.damaged.push(path.to_path_buf()),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let mut changes = Vec::new();
    let mut displaced = Vec::new();
    let mut history = 0;
    let mut counted = HashSet::new();
    let mut linked: HashMap<i64, HashSet<u64>> = HashMap::new();
    for image in images.values() {
        if let Was::File { kept, way: Way::Link, .. } = &image.was {
            linked.entry(image.area).or_default().insert(kept.ino);
        }
    }
    let restored: HashSet<&Path> = done.restored.iter().map(PathBuf::as_path).collect();
    for (path, image) in images {
        let touched = restored.contains(path.as_path());
        let found = restorer.displaced(image)?;
        let back = linked.get(&image.area);
        for (name, meta) in &found {
            // What has gone back to where it was is no old version of anything, and must not be linked to.
            let is_back =
                meta.links > 1 && meta.kind == Kind::File && back.is_some_and(|back| back.contains(&meta.ino));
            let preimage = (!is_back).then(|| name.clone());
            changes.push((Change { preimage, ..change(path, image, Some(meta)) }, Some(*meta), false));
            if is_back {
                ground.area(image.area)?.drop_staged(name)?;
                continue;
            }
            if let (Kind::Directory, Some(back)) = (meta.kind, back) {
                ground.area(image.area)?.drop_names_below(name, back)?;
            }
            displaced.push((image.area, name.clone()));
            history += area_bytes(ground, image.area, name, meta, &mut counted)?;
        }
        if dressed.contains(path) {
            // The times of a directory follow what is done in it, which is told by itself.
            if !matches!(image.was, Was::Directory { .. }) {
                let (kind, size) = (ChangeKind::Replaced, image.size());
                changes.push((Change { kind, size, preimage: None, ..change(path, image, None) }, None, true));
            }
        } else if found.is_empty() && touched && (image.named || !matches!(image.was, Was::Directory { .. })) {
            changes.push((Change { preimage: None, ..change(path, image, None) }, None, false));
        }
    }
    // What was only given its attributes again has not gone anywhere.
    let moves = changes.iter_mut().filter(|(.., stays)| !*stays);
    renames::tell(images, moves.map(|(change, now, _)| (change, *now)));
    let changes: Vec<Change> = changes.into_iter().map(|(change, ..)| change).collect();
    // IMPORTANT: what an earlier attempt put back is as it was, so nothing tells that it was never synced.
    let back = !first || !changes.is_empty() || !done.restored.is_empty();
    if back && !planted(Fault::PutBackUnsynced) {
        sync_whole(ground, images)?;
    }
    let unplaced = unplaced(&mut restorer, images, &done.damaged)?;
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
            let mut message =
                "written to in place under a guard for replacing writers, immovable, or no file at all: it could \
                               not be put back, and is as it was found"
                    .to_owned();
            if let Some(image) = unplaced.get(&path) {
                // IMPORTANT: before the COMMIT after which nothing refers to it in the stage.
                let area = ground.area(image.area)?;
                let of_it = id.to_string();
                let kept = area.keep_staged(&image.name, &of_it, OLD, path.as_path())?;
                area.sync_whole()?;
                message.extend(kept.map(|kept| format!("; its old version is kept at {}", kept.display())));
            }
            journal::insert_event(tx, Level::Error, "damaged", Some(id), Some(&path), &message)?;
        }
        Ok(Some(id))
    })?;
    let kept: HashSet<&(i64, String)> = displaced.iter().collect();
    let unused = images.values().map(|image| (image.area, image.name.clone())).filter(|name| !kept.contains(name));
    for (moves, (area, name)) in
        displaced.iter().cloned().map(|name| (true, name)).chain(unused.map(|name| (false, name)))
    {
        let Ok(area) = ground.area(area) else { continue };
        let moved = if moves { area.to_history(&name) } else { area.drop_staged(&name) };
        if let Err(error) = moved {
            tracing::warn!(%error, "an old version could not be moved; it stays in the stage");
        }
    }
    Ok(done)
}

/// The old versions that are kept of what could not be put back: nobody could move away what is in their places.
fn unplaced<'i>(
    restorer: &mut TreeRestorer<'_>,
    images: &'i PreImages,
    damaged: &[PathBuf],
) -> Result<HashMap<&'i RelPath, &'i PreImage>> {
    let mut unplaced = HashMap::new();
    for (path, image) in images.iter().filter(|(path, _)| damaged.iter().any(|damaged| damaged == path.as_path())) {
        let live = restorer.compare(path, image)?.0;
        let kept = restorer.area(image)?.look_staged(&image.name)?.filter(|staged| image.is_kept(staged));
        if kept.is_some_and(|kept| live.is_none_or(|live| live.ino != kept.ino)) {
            unplaced.insert(path, image);
        }
    }
    Ok(unplaced)
}

/// Refuses to begin where old versions are not there.
fn refuse_missing(missing: &[(RelPath, String)]) -> Result<()> {
    let Some(((path, why), others)) = missing.split_first() else { return Ok(()) };
    let more = if others.is_empty() { String::new() } else { format!(" (and of {} paths more)", others.len()) };
    Err(Error::corrupt(format!("the old version of {}{more}", path.as_path().display()), why))
}

/// How many bytes were displaced under a name, with all that lies below a directory. A file of several names counts once.
fn area_bytes(ground: &Ground, area: i64, name: &str, meta: &Meta, counted: &mut HashSet<(i64, u64)>) -> Result<u64> {
    let mut add =
        |meta: &Meta| match meta.links > 1 && meta.kind != Kind::Directory && !counted.insert((area, meta.ino)) {
            true => 0,
            false => meta.size,
        };
    match meta.kind {
        Kind::Directory => Ok(add(meta) + ground.area(area)?.staged_below(name)?.iter().map(add).sum::<u64>()),
        _ => Ok(add(meta)),
    }
}
