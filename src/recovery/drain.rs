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

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::decide::Decision;
use super::evidence::{Decided, Newest, Unreadable, decisions, newest};
use super::guards::put_back_dead;
use crate::error::{Error, IoContext, Result};
use crate::fault::{Fault, planted};
use crate::fs::area::{self, Area};
use crate::fs::exchange::{self};
use crate::fs::root::{Dir, Dirs};
use crate::id::TxnId;
use crate::journal::{self, Level, Mark, Redo, RedoRow, TxnState, Unsettled, What};
use crate::path::RelPath;
use crate::store::{Durability, Turn, Tx};
use crate::txn::{self, AGAIN, Again, Displaced, Drained, Ground, Outcome, Repeat, Scene, Step, Which};

/// Recoveries begun for a transaction before it goes to quarantine.
pub(super) const MAX_ATTEMPTS: i64 = 5;

/// How many new versions are recorded at once, and open at once.
pub(super) const AT_ONCE: usize = 64;

/// One row of what recovery would do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) txn: TxnId,
    pub(crate) path: RelPath,
    pub(crate) action: String,
    pub(crate) reason: String,
}

/// Applies what is committed and not in the tree.
pub(crate) fn drain(ground: &Ground, turn: &mut Turn<'_>, which: Which) -> Result<Drained> {
    let mut drained = Drained::default();
    put_back_dead(ground, turn, &mut drained)?;
    // Every commit asks this; marks are compared only when a journal is opened, because no mount changes under one
    // that is open.
    let known = [ground.late.unnoted(), None];
    if which == Which::Unapplied && !turn.look(|tx| journal::has_unfinished(tx, known))? {
        return Ok(drained);
    }
    ground.write_late(turn)?;
    set_unknown_aside(turn)?;
    let unsettled = turn.look(journal::unsettled)?;
    if unsettled.is_empty() {
        return Ok(drained);
    }
    ground.refresh_areas(turn)?;
    let scene = ground.scene();
    let due = due(&scene, &unsettled, which);
    if due.is_empty() {
        return Ok(drained);
    }
    let found = due.len();
    let due = begin_attempt(turn, due)?;
    drained.quarantined += (found - due.len()) as u64;
    ground.touch();
    let (newest, unreadable) = turn.look(|tx| newest(&scene, tx, &unsettled))?;
    let mut troubles: HashMap<TxnId, Outcome> = HashMap::new();
    let mut dirs = Dirs::new(&ground.root);
    for some in decisions(&scene, &newest, &due)?.chunks(AT_ONCE) {
        carry_out_some(ground, turn, &mut dirs, some, &mut troubles);
    }
    let mut ended = Vec::new();
    for txn in &due {
        let of_it = || unreadable.iter().filter(|row| row.txn == txn.id);
        let rows: Vec<&Unreadable> = of_it().filter(|row| !row.unmounted).collect();
        let mut outcome = troubles.remove(&txn.id).unwrap_or_default();
        for path in of_it().filter(|row| row.unmounted).filter_map(|row| row.path.clone()) {
            let missing = Error::NotFound { path: ground.root.full(&path) };
            outcome.failed.push((path, missing));
        }
        if txn.structural && rows.is_empty() && outcome.failed.is_empty() {
            note(ground, turn, &mut ended)?;
            let in_doubt = txn.mark.as_ref().is_none_or(|mark| !mark.counts_in(&ground.mark_now()));
            match steps(ground, turn, txn.id) {
                Ok(steps) => {
                    outcome = txn::apply(ground, &mut dirs, txn.id, &steps, Some(Repeat { turn, in_doubt }));
                }
                // In part it would be worse than not at all.
                Err(error) => outcome.failed.push((RelPath::unknown(), error)),
            }
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
        ended.push((txn, outcome));
        if ended.len() >= AT_ONCE {
            note(ground, turn, &mut ended)?;
        }
    }
    note(ground, turn, &mut ended)?;
    Ok(drained)
}

/// A state that nobody knows says nothing of how far a transaction came: it is left for a person.
fn set_unknown_aside(turn: &mut Turn<'_>) -> Result<()> {
    let unknown = turn.look(journal::unknown_states)?;
    if unknown.is_empty() {
        return Ok(());
    }
    turn.write(Durability::Full, |tx| {
        unknown.iter().try_for_each(|(txn, word)| {
            let message = format!("its state is {word:?}, which this version does not know; everything is kept");
            journal::insert_event(tx, Level::Error, "quarantined", Some(*txn), None, &message)?;
            journal::quarantine_unknown(tx, *txn)
        })
    })
}

/// True for what is nobody's fault: a full or read-only disk, a quota, a busy file. An attempt that ended so is given back.
pub(super) fn is_excused(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EBUSY)) || error.is_full()
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
    let due: HashSet<TxnId> = due.iter().map(|txn| txn.id).collect();
    for txn in unsettled.iter().filter(|txn| !due.contains(&txn.id)) {
        let in_quarantine = format!("in quarantine: see `journalctl-kb quarantine show {}`", txn.id);
        let (action, reason) = match txn.state {
            TxnState::Settling => ("rewrite and settle", "a settle was cut short"),
            TxnState::Quarantined => ("leave", in_quarantine.as_str()),
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
            if !planted(Fault::AttemptNotCounted) {
                journal::set_attempts(tx, txn.id, txn.attempts + 1)?;
            }
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

/// Carries out a few decisions, recording what it needs to for all of them at once.
pub(super) fn carry_out_some(
    ground: &Ground,
    turn: &mut Turn<'_>,
    dirs: &mut Dirs<'_>,
    decided: &[Decided<'_>],
    troubles: &mut HashMap<TxnId, Outcome>,
) {
    let mut placings = Vec::with_capacity(decided.len());
    for &(path, effect, decision) in decided {
        let trouble = troubles.entry(effect.txn).or_default();
        match begin_carrying_out(ground, turn, dirs, path, effect, decision) {
            Ok(Begun::Done(kept)) => trouble.aside.extend(kept.map(|kept| (path.clone(), kept))),
            Ok(Begun::ToPlace(placing)) => placings.push((path, effect, placing)),
            Err(error) => trouble.failed.push((path.clone(), error)),
        }
    }
    let record = |tx: &Tx<'_>, effect: &Newest, placing: &Placing| match &placing.again {
        Some(again) => journal::update_redo(tx, effect.txn, effect.n, &again.recorded(&effect.redo)),
        None => Ok(()),
    };
    let all = turn.write(Durability::Normal, |tx| {
        placings.iter().try_for_each(|(_, effect, placing)| record(tx, effect, placing))
    });
    for (path, effect, placing) in placings {
        // Where not all can be recorded, each says for itself why.
        let recorded = match all {
            Ok(()) => Ok(()),
            Err(_) => turn.write(Durability::Normal, |tx| record(tx, effect, &placing)),
        };
        let trouble = troubles.entry(effect.txn).or_default();
        match recorded.and_then(|()| placing.place(ground, dirs, path, effect)) {
            Ok(kept) => trouble.aside.extend(kept.map(|kept| (path.clone(), kept))),
            Err(error) => trouble.failed.push((path.clone(), error)),
        }
    }
}

/// How far a decision got before anything had to be recorded.
enum Begun {
    /// All the way; and where somebody's version was put, if it was.
    Done(Option<String>),
    ToPlace(Box<Placing>),
}

/// A new version on its way to its path.
struct Placing {
    step: Step,
    /// Small content and symlinks are written once more. Large content is in the stage under the recorded inode, synced
    /// before its COMMIT.
    again: Option<Again>,
    /// Something is at the path.
    occupied: bool,
    left: Option<String>,
}

fn begin_carrying_out(
    ground: &Ground,
    turn: &mut Turn<'_>,
    dirs: &mut Dirs<'_>,
    path: &RelPath,
    effect: &Newest,
    decision: Decision,
) -> Result<Begun> {
    let area = ground.area(effect.redo.area)?;
    let full = || ground.root.full(path);
    let live = txn::look(dirs, path)?;
    let displaced = displaced(ground, &area, effect);
    let left = displaced.reconcile(live.as_ref())?;
    match decision {
        Decision::Keep | Decision::KeepTheirs => {
            return Ok(Begun::Done(displaced.judge_staged(live.as_ref(), false)?.or(left)));
        }
        Decision::Lost => return Err(Error::NotFound { path: area.stage_path(&effect.redo.staged) }),
        Decision::Apply | Decision::ApplyAside => {}
    }
    // A name that belongs to this row: whatever cuts this short, the next recovery knows what it may find there.
    let again = format!("{}{AGAIN}", effect.redo.staged);
    if matches!(effect.redo.what, What::Absence | What::Directory { .. }) {
        let dir = parent_again(dirs, path)?;
        let mut kept = left;
        if live.is_some() {
            exchange::take(&dir.fd, path.name(), &area.stage, &again).at("remove", full())?;
            kept = displaced.keep(&again)?.or(kept);
        }
        if let What::Directory { mode } = effect.redo.what {
            dirs.forget(path);
            dir.make_dir(path.name(), mode).at("make the directory", full())?;
        }
        return Ok(Begun::Done(displaced.judge_staged(None, true)?.or(kept)));
    }
    let large = matches!(effect.redo.what, What::Content { .. }) && !effect.inline;
    let content = match large {
        true => None,
        false => turn.look(|tx| journal::redo_content(tx, effect.txn, effect.n))?,
    };
    check_content(&effect.redo, content.as_deref())?;
    let step = Step::again(effect.n, path.clone(), effect.redo.clone(), area, content.map(Into::into));
    let again = if large { None } else { Some(Again::begin(&step, again)?) };
    Ok(Begun::ToPlace(Box::new(Placing { step, again, occupied: live.is_some(), left })))
}

/// Refuses bytes that are not those that were committed.
fn check_content(redo: &Redo, content: Option<&[u8]>) -> Result<()> {
    match (&redo.what, content) {
        (What::Content { hash, .. }, Some(content)) if blake3::hash(content) != *hash => {
            Err(Error::corrupt("the content of a redo record", "it is not what was committed"))
        }
        _ => Ok(()),
    }
}

impl Placing {
    /// Puts it in place. Answers where somebody's version was put, if it was.
    fn place(self, ground: &Ground, dirs: &mut Dirs<'_>, path: &RelPath, effect: &Newest) -> Result<Option<String>> {
        let area = &self.step.area;
        let displaced = displaced(ground, area, effect);
        let name = self.again.as_ref().map_or_else(|| effect.redo.staged.clone(), |again| again.staged.clone());
        if let Some(again) = self.again {
            again.fill(&self.step)?;
        }
        let dir = parent_again(dirs, path)?;
        let placed = exchange::place(area, &area.stage, &name, &dir.fd, path.name(), self.occupied);
        let placed = placed.at("put in place", dirs.root().full(path))?;
        let live = txn::look(dirs, path)?;
        let kept = match placed {
            // What the try before this one had moved aside.
            exchange::Placed::New => displaced.reconcile(live.as_ref())?,
            exchange::Placed::Exchanged => displaced.keep(&name)?,
        };
        Ok(displaced.judge_staged(live.as_ref(), true)?.or(kept).or(self.left))
    }
}

fn displaced<'a>(ground: &'a Ground, area: &'a Area, effect: &'a Newest) -> Displaced<'a> {
    let Newest { txn, redo, found_by, .. } = effect;
    Displaced { opener: &ground.opener, area, txn: *txn, redo, found_by }
}

/// The directory a path lies in, made again where somebody removed it: what is committed has to be somewhere.
fn parent_again(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Arc<Dir>> {
    if let Some(dir) = dirs.try_parent(path)? {
        return Ok(dir);
    }
    let mut missing: Vec<RelPath> = std::iter::successors(path.parent(), RelPath::parent).collect();
    while let Some(at) = missing.pop() {
        let above = dirs.parent(&at)?;
        dirs.forget(&at);
        match above.make_dir(at.name(), None) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).at("make the directory", dirs.root().full(&at)),
        }
    }
    dirs.parent(path)
}

/// The steps of a structural transaction, from its rows.
fn steps(ground: &Ground, turn: &Turn<'_>, txn: TxnId) -> Result<Vec<Step>> {
    let rows = turn.look(|tx| journal::redo_rows(tx, txn))?;
    rows.into_iter().map(|row| step(ground, turn, row)).collect()
}

/// The step of one row.
pub(super) fn step(ground: &Ground, turn: &Turn<'_>, row: RedoRow) -> Result<Step> {
    let (path, redo) = (row.path?, row.redo?);
    area::check_name(&redo.staged)?;
    let area = ground.area(redo.area)?;
    ground.path(path.as_path())?;
    let content = if row.content { turn.look(|tx| journal::redo_content(tx, row.txn, row.n))? } else { None };
    check_content(&redo, content.as_deref())?;
    Ok(Step::again(row.n, path, redo, area, content.map(Into::into)))
}

/// Notes how the attempts on some transactions ended.
fn note(ground: &Ground, turn: &mut Turn<'_>, ended: &mut Vec<(&Unsettled, Outcome)>) -> Result<()> {
    let mark = ground.mark_now();
    turn.write(Durability::Normal, |tx| ended.iter().try_for_each(|(txn, outcome)| note_one(tx, &mark, txn, outcome)))?;
    ended.clear();
    Ok(())
}

fn note_one(tx: &Tx<'_>, mark: &Mark, txn: &Unsettled, outcome: &Outcome) -> Result<()> {
    let excused = outcome.failed.iter().any(|(_, error)| is_excused(error));
    for (path, message) in outcome.messages() {
        journal::insert_event(tx, Level::Warn, "recovery", Some(txn.id), Some(&path), &message)?;
    }
    if outcome.failed.is_empty() {
        journal::set_attempts(tx, txn.id, 0)?;
        journal::note_applied(tx, txn.id, txn.state, mark)?;
        return journal::insert_event(tx, Level::Info, "recovered", Some(txn.id), None, "applied by recovery");
    }
    if excused && !planted(Fault::AttemptNotGivenBack) {
        journal::set_attempts(tx, txn.id, txn.attempts)?;
    }
    match txn.state {
        TxnState::Committed => journal::transition(tx, txn.id, TxnState::Committed, TxnState::Pending),
        _ => Ok(()),
    }
}
