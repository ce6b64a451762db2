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
use super::blobs::BlobChanges;
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
use crate::journal::{self, Change, Level, NewTxn, Span, TxnState, What};
use crate::lock::{self, Held};
use crate::outbox::{self, Draft};
use crate::path::RelPath;
use crate::run::Along;
use crate::store::{Decided, Durability, Part, Turn, Tx, Wish};
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
    pub(super) runs: &'r mut [Along],
    pub(super) messages: &'r [Draft],
    pub(super) blobs: &'r mut BlobChanges,
}

/// Commits. On `Ok` the lock's release is noted too; the OS lock goes with the lease.
pub(super) fn commit(ground: &Ground, mut request: Request<'_>) -> Result<Receipt> {
    if let Some(key) = request.key {
        // Before anything is prepared: the second time, sources are gone that were moved the first time.
        if let Some(receipt) = ground.store.peek(|tx| first(tx, key, &request.digest))? {
            return Ok(receipt);
        }
    }
    let touched = match &mut request.guarding {
        Some(guarding) => guarding.touched(ground)?,
        None => Vec::new(),
    };
    let mut prepared = Prepared::new(ground, request.version, request.overlay.effects())?;
    prepared.touched = touched;
    request.blobs.sync(ground)?;
    let (turn, settling, recorded) = decide(ground, &mut request, &mut prepared);
    let (new, log_frames) = match recorded {
        Ok((Recorded::New(new), log_frames)) => (new, log_frames),
        Ok((Recorded::Before(receipt), _)) => {
            drop(turn);
            request.lease.not_committed();
            return Ok(receipt);
        }
        Ok((Recorded::NotYet, _)) => {
            return Err(Error::corrupt("the journal", "something is in the way of every commit"));
        }
        Err(error) => {
            if let Some(id) = prepared.coming.take() {
                ground.late.gone(id);
            }
            drop(turn);
            request.lease.not_committed();
            match &error {
                // The rows may be there: what they refer to has to be, too.
                Error::OutcomeUnknown { .. } => {
                    prepared.keep();
                    request.blobs.in_doubt();
                }
                // The parent goes on with them.
                Error::Forked => prepared.keep(),
                Error::LockLost { .. } => {
                    let _ = ground.enter().and_then(|mut turn| request.lease.note_loss(&mut turn));
                }
                _ => {}
            }
            return Err(error);
        }
    };
    prepared.keep();
    request.lease.concluded(new.fence);
    if let Some(span) = new.noted {
        ground.late.noted(span);
    }
    let warnings = match turn {
        Some(mut turn) => carry_out(ground, &mut turn, &new, &mut prepared, settling.as_ref()),
        None => {
            ground.backlog.add(0, 0, log_frames);
            Vec::new()
        }
    };
    request.blobs.committed(ground);
    let New { id, fence, changes, .. } = new;
    Ok(Receipt { id, fence, changes, warnings, repeated: false })
}

/// What came of a decision: the turn, while it is needed, and how many frames the log has.
type Decision<'g> = (Option<Turn<'g>>, Option<SettleLock>, Result<(Recorded, u32)>);

/// Commits with whoever may share it; alone where something is in the way, having looked closer.
fn decide<'g>(ground: &'g Ground, request: &mut Request<'_>, prepared: &mut Prepared<'_>) -> Decision<'g> {
    // Who moves directories has to look closer anyway.
    if !prepared.structural {
        match together(ground, request, prepared) {
            Ok(Decided { value: Recorded::NotYet, .. }) => {}
            Ok(Decided { value, turn, log_frames }) => return (turn, None, Ok((value, log_frames))),
            Err(error) => return (None, None, Err(error)),
        }
    }
    let (mut turn, settling) = match clear_the_way(ground, prepared.structural) {
        Ok(cleared) => cleared,
        Err(error) => return (None, None, Err(error)),
    };
    let recorded = by_itself(ground, &mut turn, request, prepared).map(|recorded| (recorded, turn.log_frames()));
    (Some(turn), settling, recorded)
}

/// Commits unless something is in the way; in one COMMIT with other threads where it touches nothing of theirs.
fn together<'g>(
    ground: &'g Ground,
    request: &mut Request<'_>,
    prepared: &mut Prepared<'_>,
) -> Result<Decided<'g, Recorded>> {
    let contents = prepared.steps.iter().filter_map(|step| step.content.as_deref());
    let payloads = request.messages.iter().filter_map(|draft| draft.payload.as_deref());
    let wish = request.guarding.is_none().then(|| Wish {
        paths: prepared.steps.iter().flat_map(Step::paths).cloned().collect(),
        key: request.key.map(str::to_owned),
        bytes: contents.chain(payloads).map(|bytes| bytes.len() as u64).sum::<u64>() + request.blobs.inline(),
    });
    let durability = durability(request);
    ground.store.commit(ground.limits.turn_wait, durability, wish.as_ref(), |tx, comes_first| {
        let way = if comes_first { Way::Unknown } else { Way::LookedAt };
        let recorded = record(ground, tx, request, prepared, way)?;
        Ok(match &recorded {
            Recorded::New(_) => {
                Part::Commit { applies: !prepared.steps.is_empty(), hurry: prepared.has_databases(), value: recorded }
            }
            _ => Part::Nothing(recorded),
        })
    })
}

fn by_itself(
    ground: &Ground,
    turn: &mut Turn<'_>,
    request: &mut Request<'_>,
    prepared: &mut Prepared<'_>,
) -> Result<Recorded> {
    let paths: Vec<RelPath> = prepared.steps.iter().flat_map(Step::paths).cloned().collect();
    refuse_troubled(ground, turn, &paths)?;
    refuse_guarded(ground, turn, request.guarding.as_ref().map(|guarding| guarding.id), &paths)?;
    let writing = turn.begin(durability(request))?;
    let recorded = record(ground, &writing.tx(), request, prepared, Way::Clear)?;
    if let Recorded::New(_) = recorded {
        writing.commit()?;
    }
    Ok(recorded)
}

fn durability(request: &Request<'_>) -> Durability {
    let later = planted(Fault::ToldBeforeSync) && !request.messages.is_empty();
    if later || planted(Fault::CommitNotDurable) { Durability::Normal } else { Durability::Full }
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
    New(New),
    /// Nothing: the key was committed before, by somebody who came first.
    Before(Receipt),
    /// Nothing: something is in the way.
    NotYet,
}

struct New {
    id: TxnId,
    fence: Fence,
    changes: Vec<Change>,
    /// No other session has the journal open.
    alone: bool,
    /// Earlier ones of which this COMMIT says that they are applied.
    noted: Option<Span>,
}

/// Whether anything is in the way of a commit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Unknown,
    /// Whoever came first in this SQLite transaction has looked, and nobody else has written since.
    LookedAt,
    Clear,
}

/// What one transaction writes: everything, or nothing.
fn record(
    ground: &Ground,
    tx: &Tx<'_>,
    request: &mut Request<'_>,
    prepared: &mut Prepared<'_>,
    way: Way,
) -> Result<Recorded> {
    request.lease.check_same()?;
    let unnoted = ground.late.unnoted().filter(|_| way != Way::LookedAt);
    let own = request.guarding.as_ref().map(|guarding| guarding.id);
    if way == Way::Unknown && journal::is_in_the_way(tx, unnoted, own)? {
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
    for along in request.runs.iter_mut() {
        along.write(tx)?;
    }
    request.blobs.record(ground, tx)?;
    let changes = prepared.changes();
    let id = insert(ground, tx, request, fence, prepared, &changes)?;
    outbox::enqueue(tx, id, fence, request.messages)?;
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
    if !prepared.steps.is_empty() {
        ground.late.come(id);
        prepared.coming = Some(id);
    }
    Ok(Recorded::New(New { id, fence, changes, alone, noted: unnoted }))
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
    new: &New,
    prepared: &mut Prepared<'_>,
    settling: Option<&SettleLock>,
) -> Vec<Warning> {
    /// Should this thread panic, others have to look at the tree.
    struct Unsure<'g>(&'g Ground);
    impl Drop for Unsure<'_> {
        fn drop(&mut self) {
            self.0.late.forget();
        }
    }
    let id = new.id;
    let unsure = Unsure(ground);
    let outcome = if planted(Fault::AppliedBeforeCommit) { Outcome::default() } else { prepared.apply(id) };
    std::mem::forget(unsure);
    let steps = &prepared.steps;
    let messages = outcome.messages();
    // Others would have to look for themselves whether it was applied; after a crash the stage tells.
    let later = messages.is_empty() && settling.is_none();
    let mut noted = match (steps.is_empty(), later) {
        (true, _) => Ok(()),
        (false, true) => {
            ground.late.applied(id, false);
            Ok(())
        }
        (false, false) => {
            let noted = turn.write(Durability::Normal, |tx| {
                match outcome.failed.is_empty() {
                    true => journal::note_carried_out(tx, Span { first: id, last: id })?,
                    false => journal::transition(tx, id, TxnState::Committed, TxnState::Pending)?,
                }
                messages.iter().try_for_each(|(path, message)| {
                    journal::insert_event(tx, Level::Warn, "apply", Some(id), Some(path), message)
                })
            });
            match &noted {
                Ok(()) => ground.late.applied(id, true),
                Err(_) => ground.late.forget(),
            }
            noted
        }
    };
    if !new.alone && turn.is_last() {
        noted = noted.and(ground.write_late(turn));
    }
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
