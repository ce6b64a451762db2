//! What the rows, the tree and the stage say, before anything is touched.

use std::collections::{BTreeMap, HashSet};

use super::decide::{Decision, Evidence, Live, decide};
use crate::error::Result;
use crate::fault::{Fault, planted};
use crate::fs::area;
use crate::fs::opener::Found;
use crate::fs::root::{Kind, Meta};
use crate::id::TxnId;
use crate::journal::{self, Redo, TxnState, Unsettled, What};
use crate::path::RelPath;
use crate::store::Tx;
use crate::txn::{AGAIN, Scene, asides};

/// The newest effect on a path, and what any unsettled commit found there.
pub(super) struct Newest {
    pub(super) txn: TxnId,
    pub(super) n: i64,
    pub(super) redo: Redo,
    pub(super) inline: bool,
    /// The effects of all unsettled commits on the path, this one last.
    pub(super) found_by: Vec<Redo>,
}

/// A row of the redo log that cannot be read, or names what is not the tree's.
pub(super) struct Unreadable {
    pub(super) txn: TxnId,
    pub(super) n: i64,
    pub(super) path: Option<RelPath>,
    pub(super) error: String,
    /// It says something, of a mount that is not there now.
    pub(super) unmounted: bool,
}

/// The newest effect on each path, of everything that is neither settled nor set aside, and the rows that say nothing.
/// Structural transactions are carried out whole, so they do not take part.
pub(super) fn newest(
    scene: &Scene<'_>,
    tx: &Tx<'_>,
    unsettled: &[Unsettled],
) -> Result<(BTreeMap<RelPath, Newest>, Vec<Unreadable>)> {
    let mut newest: BTreeMap<RelPath, Newest> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for txn in unsettled.iter().filter(|txn| txn.state != TxnState::Quarantined) {
        for row in journal::redo_rows(tx, txn.id)? {
            let checked = row.path.and_then(|path| scene.check(&path).map(|()| path));
            let readable = |redo: Redo| area::check_name(&redo.staged).map(|()| redo);
            let (path, redo) = match (checked, row.redo.and_then(readable)) {
                (Ok(path), Ok(redo)) => match scene.area(redo.area) {
                    Ok(_) => (path, redo),
                    Err(error) => {
                        let (txn, n, error) = (row.txn, row.n, error.to_string());
                        unreadable.push(Unreadable { txn, n, path: Some(path), error, unmounted: true });
                        continue;
                    }
                },
                (path, redo) => {
                    let error = path.as_ref().err().or(redo.as_ref().err()).map(ToString::to_string);
                    let (txn, n, error) = (row.txn, row.n, error.unwrap_or_default());
                    unreadable.push(Unreadable { txn, n, path: path.ok(), error, unmounted: false });
                    continue;
                }
            };
            if txn.structural {
                continue;
            }
            if planted(Fault::OldestEffectWins) && newest.contains_key(&path) {
                continue;
            }
            let mut found_by = newest.remove(&path).map(|older| older.found_by).unwrap_or_default();
            found_by.push(redo.clone());
            newest.insert(path, Newest { txn: row.txn, n: row.n, redo, inline: row.content, found_by });
        }
    }
    Ok((newest, unreadable))
}

pub(super) type Decided<'n> = (&'n RelPath, &'n Newest, Decision);

pub(super) fn decisions<'n>(
    scene: &Scene<'_>,
    newest: &'n BTreeMap<RelPath, Newest>,
    due: &[Unsettled],
) -> Result<Vec<Decided<'n>>> {
    let now = scene.mark();
    let counts = |txn: &&Unsettled| txn.mark.as_ref().is_some_and(|mark| mark.counts_in(&now));
    let marked: HashSet<TxnId> = due.iter().filter(counts).map(|txn| txn.id).collect();
    let due: HashSet<TxnId> = due.iter().filter(|txn| !txn.structural).map(|txn| txn.id).collect();
    let due: Vec<(&RelPath, &Newest)> = newest.iter().filter(|(_, effect)| due.contains(&effect.txn)).collect();
    let mut emptied = HashSet::new();
    for (_, effect) in due.iter().filter(|(_, effect)| marked.contains(&effect.txn)) {
        if is_missing(scene, effect)? {
            emptied.insert(effect.txn);
        }
    }
    let sizes = due.iter().map(|(path, effect)| {
        let size = match effect.redo.what {
            What::Content { size, .. } => size,
            _ => 0,
        };
        ((*path).clone(), size)
    });
    let found = scene.opener.examine(sizes.collect())?;
    due.into_iter()
        .zip(found)
        .map(|((path, effect), found)| {
            // What cannot be looked at is left to the step itself, which will say why.
            let found = found.unwrap_or_default();
            let live = classify(scene, effect, found.as_ref())?;
            let available = is_available(scene, effect)?;
            let applied =
                marked.contains(&effect.txn) && !emptied.contains(&effect.txn) && has_left_stage(scene, effect)?;
            Ok((path, effect, decide(Evidence { applied, live, available })))
        })
        .collect()
}

/// True when a path has what an effect leaves there, or what was there before.
pub(super) fn as_expected(scene: &Scene<'_>, path: &RelPath, effect: &Newest) -> Result<bool> {
    let size = if let What::Content { size, .. } = effect.redo.what { size } else { 0 };
    let found = scene.opener.examine(vec![(path.clone(), size)])?.pop().transpose()?.flatten();
    let live = classify(scene, effect, found.as_ref())?;
    Ok(match live {
        Live::New | Live::PreImage => true,
        Live::Empty => found.is_some() || effect.redo.old.is_none(),
        Live::Other => false,
    })
}

/// What is to be done so that the tree has the recorded versions of a transaction, whatever lies there now and whatever is known
/// of how far it came: a person has said so.
pub(super) fn forced<'n>(scene: &Scene<'_>, effects: &'n BTreeMap<RelPath, Newest>) -> Result<Vec<Decided<'n>>> {
    let size = |effect: &Newest| if let What::Content { size, .. } = effect.redo.what { size } else { 0 };
    let found = scene.opener.examine(effects.iter().map(|(path, effect)| (path.clone(), size(effect))).collect())?;
    effects
        .iter()
        .zip(found)
        .map(|((path, effect), found)| {
            let found = found.unwrap_or_default();
            let mut live = classify(scene, effect, found.as_ref())?;
            if let (What::Content { hash, .. }, Live::New, Some(found)) = (&effect.redo.what, live, &found)
                && found.hash != Some(*hash)
            {
                // The very file, written to in place since.
                live = Live::Other;
            }
            let available = is_available(scene, effect)?;
            Ok((path, effect, decide(Evidence { applied: false, live, available })))
        })
        .collect()
}

fn classify(scene: &Scene<'_>, effect: &Newest, found: Option<&Found>) -> Result<Live> {
    let Some(found) = found else {
        return Ok(if effect.redo.what == What::Absence { Live::New } else { Live::Empty });
    };
    let meta = &found.meta;
    let is_new = match &effect.redo.what {
        What::Content { ino, size, hash, .. } => {
            found.hash == Some(*hash) && meta.kind == Kind::File && meta.size == *size
                || !effect.inline && meta.ino == *ino
        }
        What::Symlink { target, .. } => {
            meta.kind == Kind::Symlink && found.hash == Some(*blake3::hash(target).as_bytes())
        }
        What::Directory { .. } => meta.kind == Kind::Directory,
        What::Absence => false,
        What::Move { ino, .. } => meta.ino == *ino,
    };
    if is_new {
        return Ok(Live::New);
    }
    let older = || effect.found_by.iter().filter_map(|of| of.old.as_ref());
    if older().any(|old| old.is(meta, false)) {
        return Ok(Live::PreImage);
    }
    // The fallback without an exchange links the old version aside before it renames, which moves its ctime on.
    let area = scene.area(effect.redo.area)?;
    let mut linked = false;
    for aside in asides(&effect.redo.staged) {
        linked |= area.look_staged(&aside)?.is_some_and(|aside| aside.ino == meta.ino);
    }
    // So does a rename into history that a power cut left half done, with all that came before it.
    for of in &effect.found_by {
        linked |= area.look_in_history(&of.preimage_name())?.is_some_and(|kept| kept.ino == meta.ino);
    }
    if linked && older().any(|old| old.is(meta, true)) {
        return Ok(Live::PreImage);
    }
    let wants_something = effect.redo.what != What::Absence;
    Ok(if wants_something && meta.kind == Kind::File && meta.size == 0 { Live::Empty } else { Live::Other })
}

/// True when neither the new version nor the old one is where it has to be: somebody has been in the stage. The names that are
/// missing there show nothing then, and the redo record may be all there is.
fn is_missing(scene: &Scene<'_>, effect: &Newest) -> Result<bool> {
    let area = scene.area(effect.redo.area)?;
    let versions = matches!(effect.redo.what, What::Content { .. } | What::Symlink { .. });
    if effect.redo.old.is_none() || !versions {
        return Ok(false);
    }
    for name in [effect.redo.staged.clone(), format!("{}{AGAIN}", effect.redo.staged), effect.redo.preimage_name()] {
        if area.look_staged(&name)?.is_some() || area.look_in_history(&name)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True when the stage shows that an effect was carried out. A name in the stage is never reused, and what it holds is
/// the new version until that is in place, then the old one, or nothing where there was none. Says nothing once something
/// unsynced may be lost, nor where somebody has been in the stage.
fn has_left_stage(scene: &Scene<'_>, effect: &Newest) -> Result<bool> {
    let area = scene.area(effect.redo.area)?;
    let again = format!("{}{AGAIN}", effect.redo.staged);
    let names = [area.look_staged(&effect.redo.staged)?, area.look_staged(&again)?];
    let old = names.iter().flatten().any(|meta| effect.redo.old.as_ref().is_some_and(|old| old.is(meta, true)));
    Ok(match effect.redo.what {
        What::Content { .. } | What::Symlink { .. } => old || names.iter().all(Option::is_none),
        What::Absence => old,
        What::Directory { .. } | What::Move { .. } => false,
    })
}

/// True when the new version can be had.
fn is_available(scene: &Scene<'_>, effect: &Newest) -> Result<bool> {
    let What::Content { ino, size, attrs, .. } = &effect.redo.what else { return Ok(true) };
    if effect.inline {
        return Ok(true);
    }
    let area = scene.area(effect.redo.area)?;
    // Nobody writes to it once it is recorded: with another size or time it is not what was committed.
    let whole = |staged: Meta| (staged.ino, staged.size, staged.mtime) == (*ino, *size, attrs.mtime);
    Ok(area.look_staged(&effect.redo.staged)?.is_some_and(whole))
}
