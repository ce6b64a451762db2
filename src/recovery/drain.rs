//! Carries unapplied transactions into the tree, under the turnstile.
//!
//! 1. count the attempt, durably: a recovery that crashes is counted, and after [`MAX_ATTEMPTS`] the transaction goes to
//!    quarantine with everything kept;
//! 2. for all that is not settled together, find the newest effect on each path: an older one is never replayed over it;
//! 3. look at each path, decide, and only then touch anything;
//! 4. note "applied" and take the count back.
//!
//! A structural transaction (moves, removed directories) was alone when it committed: everything before it was
//! settled, and it is carried out again step by step, each step looking how far it had come.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::decide::{Decision, Evidence, Live, decide};
use crate::error::{Error, IoContext, Result};
use crate::fs::area;
use crate::fs::exchange::{self, ASIDE};
use crate::fs::opener::Found;
use crate::fs::root::{self, Dir, Dirs, Kind};
use crate::id::TxnId;
use crate::journal::{self, Identity, Level, Redo, TxnState, Unsettled, What};
use crate::path::RelPath;
use crate::store::{Durability, Turn, Tx};
use crate::txn::{self, AGAIN, Drained, Ground, Outcome, Scene, Step, Which};

/// Recoveries begun for a transaction before it goes to quarantine.
const MAX_ATTEMPTS: i64 = 5;

/// One row of what recovery would do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) txn: TxnId,
    pub(crate) path: RelPath,
    pub(crate) action: String,
    pub(crate) reason: String,
}

/// The newest effect on a path, and what any unsettled commit found there.
struct Newest {
    txn: TxnId,
    n: i64,
    redo: Redo,
    inline: bool,
    older: Vec<Identity>,
}

/// Applies what is committed and not in the tree.
pub(crate) fn drain(ground: &Ground, turn: &mut Turn<'_>, which: Which) -> Result<Drained> {
    // Every commit asks this; marks are compared only when a journal is opened, because no mount changes under one
    // that is open.
    if which == Which::Unapplied && !turn.look(journal::has_unapplied)? {
        return Ok(Drained::default());
    }
    let unsettled = turn.look(journal::unsettled)?;
    if unsettled.is_empty() {
        return Ok(Drained::default());
    }
    ground.refresh_areas(turn)?;
    let scene = ground.scene();
    let due = due(&scene, &unsettled, which);
    let mut drained = Drained::default();
    if due.is_empty() {
        return Ok(drained);
    }
    let found = due.len();
    let due = begin_attempt(turn, due)?;
    drained.quarantined = (found - due.len()) as u64;
    let (newest, unreadable) = turn.look(|tx| newest(&scene, tx, &unsettled))?;
    let mut troubles: HashMap<TxnId, Outcome> = HashMap::new();
    let mut dirs = Dirs::new(&ground.root);
    for (path, effect, decision) in decisions(&scene, &newest, &due)? {
        let trouble = troubles.entry(effect.txn).or_default();
        match carry_out(ground, turn, &mut dirs, path, effect, decision) {
            Ok(Some(kept)) => trouble.aside.push((path.clone(), kept)),
            Ok(None) => {}
            Err(error) => trouble.failed.push((path.clone(), error)),
        }
    }
    for txn in &due {
        let of_it = || unreadable.iter().filter(|row| row.txn == txn.id);
        let rows: Vec<&Unreadable> = of_it().filter(|row| !row.unmounted).collect();
        let mut outcome = troubles.remove(&txn.id).unwrap_or_default();
        for path in of_it().filter(|row| row.unmounted).filter_map(|row| row.path.clone()) {
            let missing = Error::NotFound { path: ground.root.full(&path) };
            outcome.failed.push((path, missing));
        }
        if txn.structural && rows.is_empty() && outcome.failed.is_empty() {
            let steps = steps(ground, turn, txn.id)?;
            outcome = txn::apply(ground, &mut dirs, txn.id, &steps, Some(turn));
        }
        drained.aside += outcome.aside.len() as u64;
        if !rows.is_empty() {
            drained.quarantined += 1;
            set_txn_aside(turn, txn, &rows, &outcome)?;
            continue;
        }
        match outcome.failed.is_empty() {
            true => drained.applied += 1,
            false => drained.pending += 1,
        }
        note(ground, turn, txn, outcome)?;
    }
    Ok(drained)
}

/// A transaction with a row that cannot be read: the others were carried out, and everything is kept for a person.
fn set_txn_aside(turn: &mut Turn<'_>, txn: &Unsettled, rows: &[&Unreadable], outcome: &Outcome) -> Result<()> {
    turn.write(Durability::Full, |tx| {
        for row in rows {
            let message = format!("row {} of the redo log cannot be carried out, and is kept: {}", row.n, row.error);
            journal::insert_event(tx, Level::Error, "unreadable", Some(txn.id), row.path.as_ref(), &message)?;
        }
        for (path, message) in outcome.messages() {
            journal::insert_event(tx, Level::Warn, "recovery", Some(txn.id), Some(&path), &message)?;
        }
        journal::set_attempts(tx, txn.id, 0)?;
        journal::transition(tx, txn.id, txn.state, TxnState::Quarantined)
    })
}

/// What [`drain`] would do, without doing it.
pub(crate) fn plan(scene: &Scene<'_>, tx: &Tx<'_>) -> Result<Vec<Plan>> {
    let unsettled = journal::unsettled(tx)?;
    let due = due(scene, &unsettled, Which::PendingToo);
    let (newest, unreadable) = newest(scene, tx, &unsettled)?;
    let mut plan: Vec<Plan> = decisions(scene, &newest, &due)?
        .into_iter()
        .map(|(path, effect, decision)| Plan {
            txn: effect.txn,
            path: path.clone(),
            action: decision.to_string(),
            reason: "committed, not known to be in the tree".into(),
        })
        .collect();
    plan.extend(unreadable.into_iter().map(|row| Plan {
        txn: row.txn,
        path: row.path.unwrap_or_else(RelPath::unknown),
        action: if row.unmounted { "wait for its mount" } else { "quarantine" }.into(),
        reason: format!("row {}: {}", row.n, row.error),
    }));
    for txn in due.iter().filter(|txn| txn.structural) {
        plan.extend(journal::redo_paths(tx, txn.id)?.into_iter().map(|path| Plan {
            txn: txn.id,
            path,
            action: "apply as far as it had not come".into(),
            reason: "a transaction with moves or removed directories".into(),
        }));
    }
    for txn in unsettled.iter().filter(|txn| !due.iter().any(|due| due.id == txn.id)) {
        let (action, reason) = match txn.state {
            TxnState::Settling => ("rewrite and settle", "a settle was cut short"),
            TxnState::Quarantined => ("leave", "in quarantine: a person has to look"),
            _ => ("settle", "applied"),
        };
        plan.extend(journal::redo_paths(tx, txn.id)?.into_iter().map(|path| Plan {
            txn: txn.id,
            path,
            action: action.into(),
            reason: reason.into(),
        }));
    }
    plan.sort_by(|a, b| (a.txn, &a.path).cmp(&(b.txn, &b.path)));
    Ok(plan)
}

fn due(scene: &Scene<'_>, unsettled: &[Unsettled], which: Which) -> Vec<Unsettled> {
    let now = scene.mark();
    let is_due = |txn: &&Unsettled| match txn.state {
        TxnState::Committed => true,
        TxnState::Pending => which == Which::PendingToo,
        TxnState::Applied | TxnState::Settling => txn.mark.as_ref().is_none_or(|mark| !mark.counts_in(&now)),
        TxnState::Settled | TxnState::Quarantined => false,
    };
    unsettled.iter().filter(is_due).cloned().collect()
}

/// Counts the attempt before anything is tried; sets aside what has used its attempts up.
fn begin_attempt(turn: &mut Turn<'_>, due: Vec<Unsettled>) -> Result<Vec<Unsettled>> {
    turn.write(Durability::Full, |tx| {
        let mut tried = Vec::with_capacity(due.len());
        for txn in due {
            if txn.attempts >= MAX_ATTEMPTS {
                journal::transition(tx, txn.id, txn.state, TxnState::Quarantined)?;
                let message = format!("given up after {MAX_ATTEMPTS} recoveries that did not end; everything is kept");
                journal::insert_event(tx, Level::Error, "quarantined", Some(txn.id), None, &message)?;
                continue;
            }
            journal::set_attempts(tx, txn.id, txn.attempts + 1)?;
            // A mark of another boot or mount is no mark: from here on it is a commit like any other.
            if matches!(txn.state, TxnState::Applied | TxnState::Settling) {
                journal::transition(tx, txn.id, txn.state, TxnState::Committed)?;
                tried.push(Unsettled { state: TxnState::Committed, ..txn });
            } else {
                tried.push(txn);
            }
        }
        Ok(tried)
    })
}

/// A row of the redo log that cannot be read, or names what is not the tree's.
struct Unreadable {
    txn: TxnId,
    n: i64,
    path: Option<RelPath>,
    error: String,
    /// It says something, of a mount that is not there now.
    unmounted: bool,
}

/// The newest effect on each path, of everything that is neither settled nor set aside, and the rows that say nothing.
/// Structural transactions are carried out whole, so they do not take part.
fn newest(
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
            let mut older = newest.remove(&path).map(|older| older.older).unwrap_or_default();
            older.extend(redo.old.clone());
            newest.insert(path, Newest { txn: row.txn, n: row.n, redo, inline: row.content, older });
        }
    }
    Ok((newest, unreadable))
}

type Decided<'n> = (&'n RelPath, &'n Newest, Decision);

fn decisions<'n>(
    scene: &Scene<'_>,
    newest: &'n BTreeMap<RelPath, Newest>,
    due: &[Unsettled],
) -> Result<Vec<Decided<'n>>> {
    let due: Vec<(&RelPath, &Newest)> =
        newest.iter().filter(|(_, effect)| due.iter().any(|txn| txn.id == effect.txn && !txn.structural)).collect();
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
    if effect.older.iter().any(|old| old.is(meta, false)) {
        return Ok(Live::PreImage);
    }
    // The fallback without an exchange links the old version aside before it renames, which moves its ctime on.
    let area = scene.area(effect.redo.area)?;
    let aside = root::look(&area.stage, format!("{}{ASIDE}", effect.redo.staged));
    let linked = aside.at("look at", &area.path)?.is_some_and(|aside| aside.ino == meta.ino);
    if linked && effect.older.iter().any(|old| old.is(meta, true)) {
        return Ok(Live::PreImage);
    }
    let wants_something = effect.redo.what != What::Absence;
    Ok(if wants_something && meta.kind == Kind::File && meta.size == 0 { Live::Empty } else { Live::Other })
}

/// True when the new version can be had.
fn is_available(scene: &Scene<'_>, effect: &Newest) -> Result<bool> {
    let What::Content { ino, .. } = effect.redo.what else { return Ok(true) };
    if effect.inline {
        return Ok(true);
    }
    let area = scene.area(effect.redo.area)?;
    Ok(area.look_staged(&effect.redo.staged)?.is_some_and(|staged| staged.ino == ino))
}

/// Carries one decision out. Answers where somebody's version was put, if it was.
fn carry_out(
    ground: &Ground,
    turn: &mut Turn<'_>,
    dirs: &mut Dirs<'_>,
    path: &RelPath,
    effect: &Newest,
    decision: Decision,
) -> Result<Option<String>> {
    let area = ground.area(effect.redo.area)?;
    let full = || ground.root.full(path);
    let live = txn::look(dirs, path)?;
    let left = txn::reconcile(&area, effect.txn, &effect.redo, &effect.older, live.as_ref())?;
    match decision {
        Decision::Keep | Decision::KeepTheirs => return Ok(left),
        Decision::Lost => return Err(Error::NotFound { path: area.stage_path(&effect.redo.staged) }),
        Decision::Apply | Decision::ApplyAside => {}
    }
    // A name that belongs to this row: whatever cuts this short, the next recovery knows what it may find there.
    let again = format!("{}{AGAIN}", effect.redo.staged);
    let keep = |name: &str| txn::keep(&area, effect.txn, &effect.redo, &effect.older, name);
    if matches!(effect.redo.what, What::Absence | What::Directory { .. }) {
        let dir = parent_again(dirs, path)?;
        let mut kept = left;
        if live.is_some() {
            exchange::take(&dir.fd, path.name(), &area.stage, &again).at("remove", full())?;
            kept = keep(&again)?.or(kept);
        }
        if let What::Directory { mode } = effect.redo.what {
            dir.make_dir(path.name(), mode).at("make the directory", full())?;
        }
        return Ok(kept);
    }
    // Small content and symlinks are written once more. Large content is in the stage under the recorded inode,
    // synced before its COMMIT.
    let large = matches!(effect.redo.what, What::Content { .. }) && !effect.inline;
    let name = if large { &effect.redo.staged } else { &again };
    if !large {
        let content = turn.look(|tx| journal::redo_content(tx, effect.txn, effect.n))?;
        let step = Step::again(effect.n, path.clone(), effect.redo.clone(), Arc::clone(&area), content.map(Into::into));
        let mut redo = effect.redo.clone();
        txn::write_again(&step, &again, |renewed| {
            if let What::Content { ino, .. } | What::Symlink { ino, .. } = &mut redo.what {
                *ino = renewed;
            }
            turn.write(Durability::Normal, |tx| journal::update_redo(tx, effect.txn, effect.n, &redo))
        })?;
    }
    let dir = parent_again(dirs, path)?;
    let placed = exchange::place(&area, &area.stage, name, &dir.fd, path.name(), true);
    let kept = match placed.at("put in place", full())? {
        exchange::Placed::New => left,
        exchange::Placed::Exchanged => keep(name)?.or(left),
    };
    if let What::Content { ino, .. } | What::Symlink { ino, .. } = effect.redo.what
        && !large
        && area.look_staged(&effect.redo.staged)?.is_some_and(|staged| staged.ino == ino)
    {
        // The temporary file of the first try, under its recorded inode: never published.
        area.unlink_staged(&effect.redo.staged)?;
    }
    Ok(kept)
}

/// The directory a path lies in, made again where somebody removed it: what is committed has to be somewhere.
fn parent_again(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Arc<Dir>> {
    if let Some(dir) = dirs.try_parent(path)? {
        return Ok(dir);
    }
    let mut missing: Vec<RelPath> = std::iter::successors(path.parent(), RelPath::parent).collect();
    while let Some(at) = missing.pop() {
        let above = dirs.parent(&at)?;
        match above.make_dir(at.name(), None) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).at("make the directory", dirs.root().full(&at)),
        }
    }
    dirs.parent(path)
}

/// The steps of a structural transaction, from its rows.
fn steps(ground: &Ground, turn: &mut Turn<'_>, txn: TxnId) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for row in turn.look(|tx| journal::redo_rows(tx, txn))? {
        let (path, redo) = (row.path?, row.redo?);
        let area = ground.area(redo.area)?;
        ground.path(path.as_path())?;
        let content = if row.content { turn.look(|tx| journal::redo_content(tx, txn, row.n))? } else { None };
        steps.push(Step::again(row.n, path, redo, area, content.map(Into::into)));
    }
    Ok(steps)
}

/// Notes how the attempt on one transaction ended.
fn note(ground: &Ground, turn: &mut Turn<'_>, txn: &Unsettled, outcome: Outcome) -> Result<()> {
    // A full or read-only disk, or a busy file, is nobody's fault: the attempt is given back.
    let excused = outcome.failed.iter().any(|(_, error)| {
        matches!(error.errno(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EBUSY)) || error.is_full()
    });
    turn.write(Durability::Normal, |tx| {
        for (path, message) in outcome.messages() {
            journal::insert_event(tx, Level::Warn, "recovery", Some(txn.id), Some(&path), &message)?;
        }
        if outcome.failed.is_empty() {
            journal::set_attempts(tx, txn.id, 0)?;
            journal::note_applied(tx, txn.id, txn.state, &ground.mark_now())?;
            return journal::insert_event(tx, Level::Info, "recovered", Some(txn.id), None, "applied by recovery");
        }
        if excused {
            journal::set_attempts(tx, txn.id, txn.attempts)?;
        }
        match txn.state {
            TxnState::Committed => journal::transition(tx, txn.id, TxnState::Committed, TxnState::Pending),
            _ => Ok(()),
        }
    })
}
