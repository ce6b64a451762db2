//! The commit: one SQLite COMMIT decides, then the tree follows, under one turn.
//!
//! 1. prepare everything that can fail (`prepare`);
//! 2. take the turnstile and begin the SQLite transaction, at `synchronous=FULL`;
//! 3. when anything is in the way, roll back and look closer: carry into the tree what a dead process committed and
//!    could not apply, settle what moved directories, refuse what overlaps a transaction that is pending or in
//!    quarantine; then begin again;
//! 4. look at the paths again, unless nobody has touched the tree through the journal since they were looked at;
//! 5. fence, key, the caller's SQL, redo records, changes, what was not noted yet of the commit before: COMMIT;
//! 6. apply; leave the turnstile. That it was applied is noted with the next COMMIT, or a little later.
//!
//! A crash before 5 leaves temporary files of a dead session, swept later. A crash after 5 leaves a committed
//! transaction that the next one at the turnstile applies, as far as the stage shows that it was not.

use super::apply::Outcome;
use super::ground::{Ground, Version, Which};
use super::guard::refuse_guarded;
use super::guarding::Guarding;
use super::overlay::Overlay;
use super::prepare::{Prepared, Step};
use super::receipt::{Receipt, Warning};
use super::settle::{self, SettleLock};
use super::transaction::SqlFn;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::id::{Fence, TxnId};
use crate::journal::{self, Change, Level, NewTxn, TxnState, What};
use crate::lock::{self, Held};
use crate::path::RelPath;
use crate::store::{Durability, Turn, Tx};
use crate::time::Deadline;

/// What a transaction asks for.
pub(super) struct Request<'r> {
    pub(super) lease: &'r Held,
    pub(super) label: &'r str,
    pub(super) key: Option<&'r str>,
    pub(super) began_ms: i64,
    pub(super) overlay: &'r Overlay,
    /// What of the tree's versions its lock was taken in.
    pub(super) version: Version,
    /// Of what was asked for, to compare a repeat of the key with.
    pub(super) digest: [u8; 32],
    pub(super) sql: &'r mut [SqlFn],
    pub(super) guarding: Option<&'r mut Guarding>,
}

/// Commits. On `Ok` the lock's release is noted too; the OS lock goes with the lease.
pub(super) fn commit(ground: &Ground, mut request: Request<'_>) -> Result<Receipt> {
    if let Some(key) = request.key {
        // Before anything is prepared: the second time, sources are gone that were moved the first time.
        let mut turn = ground.enter()?;
        if let Some(receipt) = turn.look(|tx| first(tx, key, &request.digest))? {
            request.lease.let_go(&mut turn)?;
            return Ok(receipt);
        }
    }
    let touched = match &mut request.guarding {
        Some(guarding) => guarding.touched(ground)?,
        None => Vec::new(),
    };
    let mut prepared = Prepared::new(ground, request.version, request.overlay.effects())?;
    prepared.touched = touched;
    let (mut turn, settling, recorded) = decide(ground, &mut request, &mut prepared)?;
    let (id, fence, changes, alone) = match recorded {
        Ok(Recorded::New { id, fence, changes, alone }) => (id, fence, changes, alone),
        Ok(Recorded::Before(receipt)) => {
            request.lease.let_go(&mut turn)?;
            return Ok(receipt);
        }
        Ok(Recorded::NotYet) => return Err(Error::corrupt("the journal", "something is in the way of every commit")),
        Err(error) => {
            match &error {
                // The rows may be there: what they refer to has to be, too.
                Error::OutcomeUnknown { .. } => prepared.keep(),
                Error::LockLost { .. } => drop(request.lease.note_loss(&mut turn)),
                _ => {}
            }
            return Err(error);
        }
    };
    prepared.keep();
    request.lease.concluded(fence);
    let warnings = carry_out(ground, &mut turn, id, &mut prepared, alone, settling.as_ref());
    Ok(Receipt { id, fence, changes, warnings, repeated: false })
}

/// Takes the turn and commits in it, having looked closer where anything is in the way.
fn decide<'g>(
    ground: &'g Ground,
    request: &mut Request<'_>,
    prepared: &mut Prepared<'_>,
) -> Result<(Turn<'g>, Option<SettleLock>, Result<Recorded>)> {
    // Who moves directories has to look closer anyway.
    if !prepared.structural {
        let mut turn = ground.enter()?;
        match record(ground, &mut turn, request, prepared, false) {
            Ok(Recorded::NotYet) => {}
            recorded => return Ok((turn, None, recorded)),
        }
    }
    let (mut turn, settling) = clear_the_way(ground, prepared.structural)?;
    let paths: Vec<RelPath> = prepared.steps.iter().flat_map(Step::paths).cloned().collect();
    refuse_troubled(ground, &mut turn, &paths)?;
    refuse_guarded(ground, &turn, request.guarding.as_ref().map(|guarding| guarding.id), &paths)?;
    let recorded = record(ground, &mut turn, request, prepared, true);
    Ok((turn, settling, recorded))
}

/// Waits for the turn. Whatever a dead process committed is in the tree then, and settled where directories moved.
/// A transaction that moves directories itself also holds the right to settle, and everything before it is settled.
pub(super) fn clear_the_way(ground: &Ground, structural: bool) -> Result<(Turn<'_>, Option<SettleLock>)> {
    let settle_lock = || SettleLock::wait(ground, Deadline::after(ground.limits.turn_wait));
    // Always before the turnstile: a settler holds this one while it waits for that.
    let mut lock = if structural { Some(settle_lock()?) } else { None };
    loop {
        let mut turn = ground.enter()?;
        ground.write_late(&mut turn)?;
        (ground.drain)(ground, &mut turn, Which::Unapplied)?;
        if let Some(held) = &lock {
            settle::settle_in_turn(ground, &mut turn, held)?;
            return Ok((turn, lock.filter(|_| structural)));
        }
        if !turn.look(journal::has_unsettled_structure)? {
            return Ok((turn, None));
        }
        drop(turn);
        lock = Some(settle_lock()?);
    }
}

/// The first receipt, when the key was committed before.
fn first(tx: &Tx<'_>, key: &str, digest: &[u8; 32]) -> Result<Option<Receipt>> {
    let Some(first) = journal::by_key(tx, key)? else { return Ok(None) };
    if first.digest.as_deref() != Some(&digest[..]) {
        return Err(Error::KeyReused { key: key.to_owned(), txn: first.id });
    }
    Ok(Some(Receipt {
        id: first.id,
        fence: first.fence,
        changes: journal::changes(tx, first.id)?,
        warnings: journal::warnings(tx, first.id)?.into_iter().map(Warning).collect(),
        repeated: true,
    }))
}

/// What a COMMIT recorded.
enum Recorded {
    New {
        id: TxnId,
        fence: Fence,
        changes: Vec<Change>,
        /// No other session has the journal open.
        alone: bool,
    },
    /// Nothing: the key was committed before, by somebody who came first.
    Before(Receipt),
    /// Nothing: something is in the way.
    NotYet,
}

/// One SQLite transaction: everything, or nothing.
fn record(
    ground: &Ground,
    turn: &mut Turn<'_>,
    request: &mut Request<'_>,
    prepared: &mut Prepared<'_>,
    cleared: bool,
) -> Result<Recorded> {
    request.lease.check_same()?;
    let weak = planted(Fault::CommitNotDurable);
    let writing = turn.begin(if weak { Durability::Normal } else { Durability::Full })?;
    let tx = &writing.tx();
    let unnoted = ground.late.unnoted();
    let own = request.guarding.as_ref().map(|guarding| guarding.id);
    if !cleared && journal::is_in_the_way(tx, unnoted, own)? {
        return Ok(Recorded::NotYet);
    }
    prepared.bind(tx)?;
    let fence = request.lease.conclude(tx)?;
    if let Some(key) = request.key
        && let Some(receipt) = first(tx, key, &request.digest)?
    {
        return Ok(Recorded::Before(receipt));
    }
    for sql in request.sql.iter_mut() {
        tx.caller(|rows| sql(rows))?;
    }
    let changes = prepared.changes();
    let id = insert(ground, tx, request, fence, prepared, &changes)?;
    if let Some(guarding) = &request.guarding {
        guarding.conclude(tx, request.lease)?;
    }
    if let Some(before) = unnoted {
        journal::note_carried_out(tx, before)?;
    }
    let alone = !lock::others_open(tx, ground.session.id)?;
    prepared.refuse_databases_in_use()?;
    if planted(Fault::AppliedBeforeCommit) {
        let _ = prepared.apply(id);
    }
    writing.commit()?;
    if unnoted.is_some() {
        ground.late.set_unnoted(None);
    }
    Ok(Recorded::New { id, fence, changes, alone })
}

fn insert(
    ground: &Ground,
    tx: &Tx<'_>,
    request: &Request<'_>,
    fence: Fence,
    prepared: &Prepared<'_>,
    changes: &[Change],
) -> Result<TxnId> {
    let steps = &prepared.steps;
    if steps.len() as i64 >= journal::MAX_EFFECTS {
        return Err(Error::TooLarge {
            what: "the number of paths of one transaction",
            limit: journal::MAX_EFFECTS as u64,
        });
    }
    let old_size = |change: &Change| change.old_size.filter(|_| change.preimage.is_some());
    let history = changes.iter().filter_map(old_size).sum();
    let mark = (!steps.is_empty()).then(|| ground.mark(steps.iter().map(|step| step.area.id)));
    let id = journal::insert_txn(
        tx,
        &NewTxn {
            lock: request.lease.name(),
            fence,
            session: ground.session.id,
            label: request.label,
            key: request.key,
            digest: request.digest,
            ran_sql: !request.sql.is_empty(),
            structural: prepared.structural,
            changes: changes.len(),
            bytes: bytes(steps) + prepared.touched.iter().filter_map(|touched| touched.change.size).sum::<u64>(),
            kept: changes.iter().filter(|change| change.preimage.is_some()).count(),
            history,
            began_ms: request.began_ms,
            mark,
        },
    )?;
    if !steps.is_empty() {
        journal::insert_redo(tx, id, steps.iter().map(Step::row))?;
    }
    if !changes.is_empty() {
        journal::insert_changes(tx, id, changes)?;
    }
    Ok(id)
}

/// After the commit point: nothing here turns a success into a failure.
fn carry_out(
    ground: &Ground,
    turn: &mut Turn<'_>,
    id: TxnId,
    prepared: &mut Prepared<'_>,
    alone: bool,
    settling: Option<&SettleLock>,
) -> Vec<Warning> {
    let outcome = if planted(Fault::AppliedBeforeCommit) { Outcome::default() } else { prepared.apply(id) };
    let steps = &prepared.steps;
    let messages = outcome.messages();
    // Others would have to look for themselves whether it was applied; after a crash the stage tells.
    let later = messages.is_empty() && settling.is_none() && alone;
    let noted = match (steps.is_empty(), later) {
        (true, _) => Ok(()),
        (false, true) => {
            ground.late.set_unnoted(Some(id));
            Ok(())
        }
        (false, false) => turn.write(Durability::Normal, |tx| {
            match outcome.failed.is_empty() {
                true => journal::note_carried_out(tx, id)?,
                false => journal::transition(tx, id, TxnState::Committed, TxnState::Pending)?,
            }
            messages.iter().try_for_each(|(path, message)| {
                journal::insert_event(tx, Level::Warn, "apply", Some(id), Some(path), message)
            })
        }),
    };
    let mut warnings: Vec<Warning> = messages.into_iter().map(|(_, message)| Warning(message)).collect();
    let mut warn = |what: &str, error: Error| {
        tracing::warn!(txn = %id, %error, "{what}");
        warnings.push(Warning(format!("{what}: {error}")));
    };
    if let Err(error) = noted {
        warn("committed and applied, but that could not be noted; recovery will look again", error);
    } else if outcome.failed.is_empty() {
        ground.backlog.add(steps.len() as u64, bytes(steps), turn.log_frames());
    }
    if let Some(lock) = settling
        && let Err(error) = settle::settle_in_turn(ground, turn, lock)
    {
        warn("committed and applied, but not yet durable in the tree itself", error);
    }
    warnings
}

fn bytes(steps: &[Step]) -> u64 {
    let size = |step: &Step| match step.redo.what {
        What::Content { size, .. } => size,
        _ => 0,
    };
    steps.iter().map(size).sum()
}

/// Work that overlaps a transaction which could not be applied retries it first, or is refused.
pub(super) fn refuse_troubled(ground: &Ground, turn: &mut Turn<'_>, paths: &[RelPath]) -> Result<()> {
    if paths.is_empty() || !turn.look(journal::has_troubles)? {
        return Ok(());
    }
    if let Some((state, txn, _)) = overlap(turn, paths)? {
        if state == TxnState::Pending {
            (ground.drain)(ground, turn, Which::PendingToo)?;
        }
        match overlap(turn, paths)? {
            None => {}
            Some((TxnState::Quarantined, txn, path)) => {
                return Err(Error::PathQuarantined { path: ground.root.full(&path), txn });
            }
            Some((_, _, path)) => return Err(Error::PathPending { path: ground.root.full(&path), txn }),
        }
    }
    Ok(())
}

fn overlap(turn: &Turn<'_>, paths: &[RelPath]) -> Result<Option<(TxnState, TxnId, RelPath)>> {
    for txn in turn.look(journal::unsettled)? {
        if !matches!(txn.state, TxnState::Committed | TxnState::Pending | TxnState::Quarantined) {
            continue;
        }
        let theirs = turn.look(|tx| journal::redo_paths(tx, txn.id))?;
        if let Some(path) = paths.iter().find(|path| theirs.iter().any(|their| their.overlaps(path))) {
            return Ok(Some((txn.state, txn.id, path.clone())));
        }
    }
    Ok(None)
}

impl Outcome {
    /// What people are told of it, path by path.
    pub(crate) fn messages(&self) -> Vec<(RelPath, String)> {
        let failed = self.failed.iter().map(|(path, error)| {
            (path.clone(), format!("committed, but not applied to {path:?} yet: {error}; recovery will try again"))
        });
        let aside = self.aside.iter().map(|(path, kept)| {
            (path.clone(), format!("somebody else changed {path:?} meanwhile; their version is kept at {kept}"))
        });
        failed.chain(aside).collect()
    }
}
