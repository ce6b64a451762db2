//! Puts back what dead transactions guarded.
//!
//! A transaction holds its lock from begin to end, so one whose guard is still recorded while its lock is free is dead, or
//! could not put everything back. Where it had somebody else work under the guard, it is over when they have ended too. Each
//! attempt is counted durably before it begins; one that did not end for want of room is not held against it.
//!
//! Before any live file is touched it is clear that every old version that is needed is there.

use super::drain::{MAX_ATTEMPTS, is_excused};
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::area;
use crate::fs::os_lock::OsLock;
use crate::id::{QuarantineId, SessionId};
use crate::journal::{self, GuardRow, GuardState, Level};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::time::Process;
use crate::tree::PreImages;
use crate::txn::{self, Attempt, Drained, For, Ground, Missing};

/// Why nobody is at work under a guard.
pub(super) enum Over {
    /// This process knows: it was its own transaction, or it has the lock by now.
    Known,
    /// Nobody has the lock; it is held here meanwhile.
    Free { _lock: OsLock },
}

/// Puts back what the guards of dead transactions kept. Nothing to do costs one look.
pub(super) fn put_back_dead(ground: &Ground, turn: &mut Turn<'_>, drained: &mut Drained) -> Result<()> {
    if !turn.look(journal::has_guards)? {
        return Ok(());
    }
    for guard in turn.look(journal::guards)? {
        match guard.state {
            GuardState::Quarantined if guard.unknown => {
                give_up(turn, &guard, "its state is none that this version knows; everything is kept", drained)?;
            }
            GuardState::Quarantined => drained.quarantined += 1,
            // Over, and in nobody's way: the sweep goes on with it.
            GuardState::Ending => {}
            GuardState::Active => {
                let Some(_over) = is_over(ground, &guard)? else { continue };
                put_back(ground, turn, &guard, drained)?;
            }
        }
    }
    Ok(())
}

pub(super) fn is_over(ground: &Ground, guard: &GuardRow) -> Result<Option<Over>> {
    if SessionId::from_slice(&guard.session) == Some(ground.session.id) {
        return Ok((!ground.guarding().contains(&guard.id)).then_some(Over::Known));
    }
    // It may have closed the lock that it was lent.
    if guard.worker.as_ref().is_some_and(Process::lives) {
        return Ok(None);
    }
    if ground.locks.holds(&guard.lock) {
        return Ok(Some(Over::Known));
    }
    match ground.locks.try_os_lock(&guard.lock) {
        // No lock can have that name, so nobody has it.
        Err(Error::BadLockName { .. }) => Ok(Some(Over::Known)),
        lock => Ok(lock?.map(|lock| Over::Free { _lock: lock })),
    }
}

/// True when what is kept is not there, or says nothing.
fn is_lost(ground: &Ground, error: &Error) -> bool {
    match error {
        Error::Corrupt { .. } => true,
        Error::NotFound { path } | Error::NotADirectory { path } => {
            ground.areas().iter().any(|area| path.starts_with(&area.path))
        }
        _ => false,
    }
}

fn give_up(turn: &mut Turn<'_>, guard: &GuardRow, why: &str, drained: &mut Drained) -> Result<()> {
    drained.quarantined += 1;
    turn.write(Durability::Full, |tx| {
        let id = QuarantineId::Guard(guard.id.0);
        let message = format!(
            "what lock {:?} guarded is in quarantine as {id}: {why}; `journalctl-kb quarantine show {id}` says more",
            guard.lock
        );
        journal::insert_event(tx, Level::Error, "quarantined", None, None, &message)?;
        journal::quarantine_guard(tx, guard.id, why)
    })
}

/// A path of which it cannot be read what it was, and why.
pub(super) type Unreadable = (RelPath, String);

/// What is recorded of the paths of a guard, and of which it cannot be read.
pub(super) fn images(ground: &Ground, turn: &Turn<'_>, guard: &GuardRow) -> Result<(PreImages, Vec<Unreadable>)> {
    let (mut images, mut unreadable) = (PreImages::new(), Vec::new());
    for row in turn.look(|tx| journal::guarded(tx, guard.id))? {
        let path = row.path.and_then(|path| ground.scene().check(&path).map(|()| path));
        let image = row.image.and_then(|image| area::check_name(&image.name).map(|()| image));
        match (path, image) {
            (Ok(path), Ok(image)) => drop(images.insert(path, image)),
            (Ok(path), Err(error)) => unreadable.push((path, error.to_string())),
            (Err(error), _) => unreadable.push((RelPath::unknown(), error.to_string())),
        }
    }
    Ok((images, unreadable))
}

/// True when a power cut may have come since the guard began: bytes that were written in place may be there, and the times
/// that would tell may not.
pub(super) fn is_in_doubt(ground: &Ground, guard: &GuardRow) -> bool {
    !planted(Fault::TimesBelieved) && !guard.mark.as_ref().is_some_and(|mark| mark.counts_in(&ground.mark_now()))
}

pub(super) fn put_back(ground: &Ground, turn: &mut Turn<'_>, guard: &GuardRow, drained: &mut Drained) -> Result<()> {
    if guard.attempts >= MAX_ATTEMPTS {
        let why = format!("given up after {MAX_ATTEMPTS} attempts to put it back; everything is kept");
        return give_up(turn, guard, &why, drained);
    }
    if !planted(Fault::GuardAttemptNotCounted) {
        turn.write(Durability::Full, |tx| journal::set_guard_attempts(tx, guard.id, guard.attempts + 1))?;
    }
    ground.refresh_areas(turn)?;
    let (mut images, unreadable) = images(ground, turn, guard)?;
    if let Some((_, error)) = unreadable.first() {
        // What the row said is not known, so neither is what would be right: a person has to look.
        let why = format!("a guarded path cannot be read; everything is kept: {error}");
        return give_up(turn, guard, &why, drained);
    }
    let in_doubt = is_in_doubt(ground, guard);
    let attempt = Attempt::Recovery { in_doubt, again: guard.attempts > 0 };
    let what_for = if in_doubt { For::RollbackInDoubt } else { For::Rollback };
    let done = txn::complete(ground, turn, guard.id, &mut images, what_for, &mut Missing::Refuse)
        .and_then(|()| txn::put_back(ground, turn, guard, &images, attempt));
    match done {
        Ok(done) => {
            drained.rolled_back += 1;
            for path in &done.damaged {
                tracing::error!(?path, "it could not be put back, and is as it was found");
            }
            Ok(())
        }
        Err(error) => {
            // Somebody has to act first: that is not this transaction's fault.
            let excused = is_excused(&error) || matches!(error, Error::NotMounted { .. } | Error::MountInTree { .. });
            if excused {
                turn.write(Durability::Full, |tx| journal::set_guard_attempts(tx, guard.id, guard.attempts))?;
            }
            if is_lost(ground, &error) {
                // What the old versions were is not known any more: a person has to look.
                return give_up(
                    turn,
                    guard,
                    &format!("it cannot be put back, and everything is kept: {error}"),
                    drained,
                );
            }
            drained.pending += 1;
            tracing::error!(%error, "what a dead transaction guarded could not be put back yet");
            if excused {
                return Ok(());
            }
            let message =
                format!("what lock {:?} guarded could not be put back; it is tried again: {error}", guard.lock);
            turn.write(Durability::Normal, |tx| journal::insert_event(tx, Level::Warn, "guard", None, None, &message))
        }
    }
}
