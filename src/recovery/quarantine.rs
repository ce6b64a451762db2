//! What a person decides about what recovery could not: try again, the tree is right, put back what can be had, throw away.
//!
//! Each is done under the turn, with everything else settled, and may be killed at any point:
//!
//! - retry: one durable COMMIT makes it an unfinished transaction like any other, with no attempt counted; the rest is
//!   recovery, which whoever comes next carries on;
//! - keep live: one durable COMMIT ends it; what is kept is moved by [`keeping`], which recovery carries on;
//! - restore: each path as recovery would do it, while it stays in quarantine; one COMMIT ends it once all are in place;
//! - discard: keep live, then the files go.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use super::decide::Decision;
use super::drain::{AT_ONCE, carry_out_some, drain, step};
use super::evidence::{Newest, forced};
use super::guards::{images, is_in_doubt, put_back};
use super::keeping::{keep_effects, keep_guard, keep_transaction};
use crate::error::{Error, Result};
use crate::fs::root::Dirs;
use crate::id::{QuarantineId, TxnId};
use crate::journal::{self, ChangeKind, GuardRow, GuardState, Level, TxnState, Unsettled, What};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::tree::TreeRestorer;
use crate::txn::{self, Attempt, Drained, For, Ground, Missing, Outcome, Repeat, Which};

/// How something that was in quarantine stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It is over: its paths are free again.
    Ended,
    /// It is a transaction like any other that some path still refuses: retried by recovery, and by work that overlaps it.
    Pending,
    /// It is still there, or is there again; nothing that was kept is lost.
    Quarantined,
}

/// What came of a decision about something in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// About what.
    pub id: QuarantineId,
    /// How it stands now.
    pub standing: Standing,
    /// Paths that were put in place, relative to the root. A retry does not tell them.
    pub restored: Vec<PathBuf>,
    /// Paths that could not be, or whose old version could not be had, and why. They are as they were found.
    pub left: Vec<(PathBuf, String)>,
    /// Where what is kept lies now, directories: empty when nothing is.
    pub kept: Vec<PathBuf>,
}

impl Resolved {
    fn new(id: QuarantineId, standing: Standing) -> Self {
        Self { id, standing, restored: Vec::new(), left: Vec::new(), kept: Vec::new() }
    }

    fn leave(&mut self, left: impl IntoIterator<Item = (RelPath, String)>) {
        self.left.extend(left.into_iter().map(|(path, why)| (path.to_path_buf(), why)));
    }

    /// Says where things are kept, as of now.
    fn told(mut self, ground: &Ground) -> Result<Self> {
        let id = self.id.to_string();
        for area in ground.areas() {
            self.kept.extend(area.has_kept(&id)?.then(|| area.quarantine_path(&id)));
        }
        Ok(self)
    }
}

/// What waits in quarantine.
enum Waiting {
    Transaction(Unsettled),
    Guard(GuardRow),
}

fn find(ground: &Ground, turn: &Turn<'_>, id: QuarantineId) -> Result<Waiting> {
    let found = match id {
        QuarantineId::Transaction(txn) => {
            let waits = |row: &Unsettled| row.id == txn && row.state == TxnState::Quarantined;
            turn.look(journal::unsettled)?.into_iter().find(waits).map(Waiting::Transaction)
        }
        QuarantineId::Guard(guard) => {
            let waits = |row: &GuardRow| row.id.0 == guard && row.state == GuardState::Quarantined;
            turn.look(journal::guards)?.into_iter().find(waits).map(Waiting::Guard)
        }
    };
    match found {
        Some(found) => Ok(found),
        None => {
            Err(Error::NotInQuarantine { id, kept: !Resolved::new(id, Standing::Ended).told(ground)?.kept.is_empty() })
        }
    }
}

fn note(turn: &mut Turn<'_>, id: QuarantineId, level: Level, kind: &'static str, message: &str) -> Result<()> {
    turn.write(Durability::Full, |tx| journal::insert_event(tx, level, kind, number(id), None, message))
}

fn number(id: QuarantineId) -> Option<TxnId> {
    match id {
        QuarantineId::Transaction(txn) => Some(txn),
        QuarantineId::Guard(_) => None,
    }
}

/// Takes the count of attempts back and recovers once more.
pub(crate) fn retry(ground: &Ground, id: QuarantineId) -> Result<Resolved> {
    let (mut turn, _settling) = txn::stand_alone(ground)?;
    ground.refresh_areas(&turn)?;
    match find(ground, &turn, id)? {
        Waiting::Transaction(row) => {
            // What others have changed since stays as they left it.
            let overtaken = overtaken(&turn, &row)?;
            keep_effects(ground, &turn, row.id, &overtaken)?;
            turn.write(Durability::Full, |tx| {
                overtaken.iter().try_for_each(|&n| journal::delete_redo_row(tx, row.id, n))?;
                journal::set_attempts(tx, row.id, 0)?;
                journal::insert_event(tx, Level::Info, "retried", Some(row.id), None, "tried again: a person said so")?;
                journal::transition(tx, row.id, TxnState::Quarantined, TxnState::Committed)
            })?;
            drain(ground, &mut turn, Which::PendingToo)?;
            let state = turn.look(journal::unsettled)?.into_iter().find(|txn| txn.id == row.id).map(|txn| txn.state);
            let standing = match state {
                Some(TxnState::Quarantined) => Standing::Quarantined,
                Some(TxnState::Pending | TxnState::Committed) => Standing::Pending,
                _ => Standing::Ended,
            };
            Resolved::new(id, standing).told(ground)
        }
        Waiting::Guard(row) => {
            let message = format!("what guard {id} kept is put back once more: a person said so");
            turn.write(Durability::Full, |tx| {
                journal::insert_event(tx, Level::Info, "retried", None, None, &message)?;
                journal::retry_guard(tx, row.id)
            })?;
            let row = GuardRow { state: GuardState::Active, attempts: 0, ..row };
            put_back(ground, &mut turn, &row, &mut Drained::default())?;
            let state =
                turn.look(journal::guards)?.into_iter().find(|guard| guard.id == row.id).map(|guard| guard.state);
            let standing = match state {
                None | Some(GuardState::Ending) => Standing::Ended,
                Some(GuardState::Active) => Standing::Pending,
                Some(GuardState::Quarantined) => Standing::Quarantined,
            };
            Resolved::new(id, standing).told(ground)
        }
    }
}

/// Ends it with the tree as it is, and keeps everything else under `quarantine/`.
pub(crate) fn keep_live(ground: &Ground, id: QuarantineId) -> Result<Resolved> {
    let (mut turn, _settling) = txn::stand_alone(ground)?;
    ground.refresh_areas(&turn)?;
    let waiting = find(ground, &turn, id)?;
    end(ground, &mut turn, id, &waiting)?.told(ground)
}

fn end(ground: &Ground, turn: &mut Turn<'_>, id: QuarantineId, waiting: &Waiting) -> Result<Resolved> {
    let mut resolved = Resolved::new(id, Standing::Ended);
    match waiting {
        Waiting::Transaction(row) => {
            turn.write(Durability::Full, |tx| {
                let message = "ended with the tree as it was: a person said so; what it kept is in quarantine/";
                journal::insert_event(tx, Level::Info, "kept-live", Some(row.id), None, message)?;
                journal::transition(tx, row.id, TxnState::Quarantined, TxnState::Settled)
            })?;
            keep_transaction(ground, turn, row.id)?;
        }
        Waiting::Guard(row) => {
            // Of a tree the baseline has the old versions, and the next guard of it lets them go.
            let (mut images, _) = images(ground, turn, row)?;
            let mut missing = Vec::new();
            txn::complete(ground, turn, row.id, &mut images, For::Keep, &mut Missing::Tell(&mut missing))?;
            turn.write(Durability::Full, |tx| journal::end_guard(tx, row.id))?;
            keep_guard(ground, turn, row)?;
            resolved.leave(missing);
        }
    }
    Ok(resolved)
}

/// Puts in place what can be had, path by path; ends it when that is everything.
pub(crate) fn restore(ground: &Ground, id: QuarantineId) -> Result<Resolved> {
    let (mut turn, _settling) = txn::stand_alone(ground)?;
    ground.refresh_areas(&turn)?;
    ground.touch();
    let resolved = match find(ground, &turn, id)? {
        Waiting::Transaction(row) => restore_transaction(ground, &mut turn, &row)?,
        Waiting::Guard(row) => restore_guard(ground, &mut turn, &row)?,
    };
    if resolved.standing == Standing::Quarantined {
        let many = resolved.left.len();
        let message = format!(
            "{id}: {} paths put in place, {many} could not be: it stays in quarantine",
            resolved.restored.len()
        );
        note(&mut turn, id, Level::Warn, "restored", &message)?;
    }
    resolved.told(ground)
}

fn restore_transaction(ground: &Ground, turn: &mut Turn<'_>, row: &Unsettled) -> Result<Resolved> {
    let id = QuarantineId::Transaction(row.id);
    let mut resolved = Resolved::new(id, Standing::Quarantined);
    let overtaken = overtaken(turn, row)?;
    let (mut effects, mut steps) = (BTreeMap::new(), Vec::new());
    for effect in turn.look(|tx| journal::redo_rows(tx, row.id))? {
        if overtaken.contains(&effect.n) {
            continue;
        }
        let known = effect.path.as_ref().map_or_else(|_| RelPath::unknown(), RelPath::clone);
        let inline = effect.content;
        match step(ground, turn, effect) {
            Err(error) => resolved.leave([(known, error.to_string())]),
            Ok(step) if row.structural => steps.push(step),
            Ok(step) => {
                let found_by = vec![step.redo.clone()];
                effects.insert(known, Newest { txn: row.id, n: step.n, redo: step.redo, inline, found_by });
            }
        }
    }
    let mut dirs = Dirs::new(&ground.root);
    let mut outcome = Outcome::default();
    if row.structural {
        // Whatever is where something moved away from is displaced, as everything is that stands in the way.
        let again = Repeat { turn, in_doubt: true };
        outcome = txn::apply(ground, &mut dirs, row.id, &steps, Some(again));
        resolved.restored = steps.iter().map(|step| step.path.to_path_buf()).collect();
    } else {
        let decided = forced(&ground.scene(), &effects)?;
        let lost = |decision: &Decision| matches!(decision, Decision::Lost | Decision::KeepTheirs);
        let (lost, decided): (Vec<_>, Vec<_>) = decided.into_iter().partition(|(_, _, decision)| lost(decision));
        resolved.leave(
            lost.into_iter().map(|(path, ..)| (path.clone(), "its new version is not to be had any more".into())),
        );
        let mut troubles = HashMap::new();
        for some in decided.chunks(AT_ONCE) {
            carry_out_some(ground, turn, &mut dirs, some, &mut troubles);
        }
        outcome = troubles.remove(&row.id).unwrap_or(outcome);
        let placed = decided.iter().filter(|(_, _, decision)| *decision != Decision::Keep);
        resolved.restored = placed.map(|(path, ..)| path.to_path_buf()).collect();
    }
    let failed: Vec<PathBuf> = outcome.failed.iter().map(|(path, _)| path.to_path_buf()).collect();
    resolved.restored.retain(|path| !failed.contains(path));
    turn.write(Durability::Normal, |tx| {
        outcome.aside.iter().try_for_each(|(path, kept)| {
            let message =
                format!("what was at {path:?} is kept at {kept}: a person had the recorded version put there");
            journal::insert_event(tx, Level::Warn, "recovery", Some(row.id), Some(path), &message)
        })
    })?;
    resolved.leave(outcome.failed.into_iter().map(|(path, error)| (path, error.to_string())));
    if !resolved.left.is_empty() {
        // Nothing settles what is in quarantine.
        ground.areas().iter().try_for_each(|area| area.sync_whole())?;
        return Ok(resolved);
    }
    keep_effects(ground, turn, row.id, &overtaken)?;
    let mark = ground.mark_now();
    turn.write(Durability::Full, |tx| {
        overtaken.iter().try_for_each(|&n| journal::delete_redo_row(tx, row.id, n))?;
        journal::set_attempts(tx, row.id, 0)?;
        journal::transition(tx, row.id, TxnState::Quarantined, TxnState::Committed)?;
        journal::note_applied(tx, row.id, TxnState::Committed, &mark)?;
        let message = "every path has what was committed: a person had it put there";
        journal::insert_event(tx, Level::Info, "restored", Some(row.id), None, message)
    })?;
    resolved.standing = Standing::Ended;
    Ok(resolved)
}

/// The effects of a transaction that later ones have overtaken: the newest decides, and an older one is never put over it.
fn overtaken(turn: &Turn<'_>, row: &Unsettled) -> Result<Vec<i64>> {
    // Nothing that overlaps one that moves directories gets in before it is over.
    if row.structural {
        return Ok(Vec::new());
    }
    let later = turn.look(|tx| journal::changes_after(tx, row.id))?;
    let mut overtaken = Vec::new();
    for effect in turn.look(|tx| journal::redo_rows(tx, row.id))? {
        let Ok(path) = &effect.path else { continue };
        let makes_directory = matches!(&effect.redo, Ok(redo) if matches!(redo.what, What::Directory { .. }));
        let overtakes = |(at, kind): &(RelPath, ChangeKind)| match *kind {
            ChangeKind::Directory => at.is_within(path) && !makes_directory,
            _ if makes_directory => path.is_within(at),
            _ => at.overlaps(path),
        };
        if later.iter().any(overtakes) {
            overtaken.push(effect.n);
        }
    }
    Ok(overtaken)
}

fn restore_guard(ground: &Ground, turn: &mut Turn<'_>, row: &GuardRow) -> Result<Resolved> {
    let mut resolved = Resolved::new(QuarantineId::Guard(row.id.0), Standing::Quarantined);
    let (mut images, unreadable) = images(ground, turn, row)?;
    resolved.leave(unreadable);
    let in_doubt = is_in_doubt(ground, row);
    let mut missing = Vec::new();
    let what_for = if in_doubt { For::RollbackInDoubt } else { For::Rollback };
    txn::complete(ground, turn, row.id, &mut images, what_for, &mut Missing::Tell(&mut missing))?;
    let unmounted: Vec<RelPath> =
        images.iter().filter(|(_, image)| ground.area(image.area).is_err()).map(|(path, _)| path.clone()).collect();
    missing.extend(unmounted.into_iter().map(|path| (path, "the mount it lies on is not there".to_owned())));
    missing.iter().for_each(|(path, _)| drop(images.remove(path)));
    let mut restorer = TreeRestorer::new(&ground.root, &ground.opener, ground.areas()).in_doubt(in_doubt);
    missing.extend(restorer.missing(&images, false)?);
    missing.iter().for_each(|(path, _)| drop(images.remove(path)));
    resolved.leave(missing);
    let done = txn::put_back_some(ground, &images, in_doubt)?;
    resolved.restored = done.restored;
    resolved.leave(done.left);
    if !resolved.left.is_empty() {
        return Ok(resolved);
    }
    // Everything is as before: what is left is to say so, and to keep what was displaced.
    txn::put_back(ground, turn, row, &images, Attempt::Recovery { in_doubt, again: true })?;
    let message =
        format!("guard {} is over: everything it guarded is as before; a person had it put back", resolved.id);
    note(turn, resolved.id, Level::Info, "restored", &message)?;
    resolved.standing = Standing::Ended;
    Ok(resolved)
}

/// Ends it with the tree as it is, if it is not over, and removes what was kept of it, for good.
pub(crate) fn discard(ground: &Ground, id: QuarantineId) -> Result<Resolved> {
    let (mut turn, _settling) = txn::stand_alone(ground)?;
    ground.refresh_areas(&turn)?;
    match find(ground, &turn, id) {
        Ok(waiting) => drop(end(ground, &mut turn, id, &waiting)?),
        Err(Error::NotInQuarantine { kept: true, .. }) => {}
        Err(error) => return Err(error),
    }
    // Written down first: what is gone for good must not be gone in silence.
    note(
        &mut turn,
        id,
        Level::Warn,
        "discarded",
        &format!("what was kept of {id} is removed for good: a person said so"),
    )?;
    for area in ground.areas() {
        area.drop_kept(&id.to_string())?;
    }
    Resolved::new(id, Standing::Ended).told(ground)
}
