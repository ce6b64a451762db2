//! Puts back what dead transactions guarded.
//!
//! A transaction holds its lock from begin to end, so one whose guard is still recorded while its lock is free is dead, or
//! could not put everything back. Where it had somebody else work under the guard, it is over when they have ended too. Each attempt is counted durably before it begins; one that did not end for want of room
//! is not held against it.

use super::drain::MAX_ATTEMPTS;
use crate::error::{Error, Result};
use crate::fault::{Fault, planted};
use crate::fs::os_lock::OsLock;
use crate::id::SessionId;
use crate::journal::{self, GuardRow, Level};
use crate::store::{Durability, Turn};
use crate::time::Process;
use crate::tree::PreImages;
use crate::txn::{self, Attempt, Drained, Ground};

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
        if guard.quarantined {
            drained.quarantined += 1;
            continue;
        }
        let Some(_over) = is_over(ground, &guard)? else { continue };
        put_back(ground, turn, &guard, drained)?;
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
    Ok(ground.locks.try_os_lock(&guard.lock)?.map(|lock| Over::Free { _lock: lock }))
}

fn put_back(ground: &Ground, turn: &mut Turn<'_>, guard: &GuardRow, drained: &mut Drained) -> Result<()> {
    let give_up = |turn: &mut Turn<'_>, message: &str| {
        turn.write(Durability::Full, |tx| {
            let message = format!("what lock {:?} guarded: {message}", guard.lock);
            journal::insert_event(tx, Level::Error, "quarantined", None, None, &message)?;
            journal::quarantine_guard(tx, guard.id)
        })
    };
    if guard.attempts >= MAX_ATTEMPTS {
        drained.quarantined += 1;
        return give_up(turn, &format!("given up after {MAX_ATTEMPTS} attempts to put it back; everything is kept"));
    }
    if !planted(Fault::GuardAttemptNotCounted) {
        turn.write(Durability::Full, |tx| journal::set_guard_attempts(tx, guard.id, guard.attempts + 1))?;
    }
    ground.refresh_areas(turn)?;
    let mut images = PreImages::new();
    for row in turn.look(|tx| journal::guarded(tx, guard.id))? {
        match (row.path.and_then(|path| ground.scene().check(&path).map(|()| path)), row.image) {
            (Ok(path), Ok(image)) => drop(images.insert(path, image)),
            (Err(error), _) | (_, Err(error)) => {
                // What the row said is not known, so neither is what would be right: a person has to look.
                drained.quarantined += 1;
                return give_up(turn, &format!("a guarded path cannot be read; everything is kept: {error}"));
            }
        }
    }
    // After a power cut bytes that were written in place may be there, and the times that would tell may not.
    let in_doubt =
        !planted(Fault::TimesBelieved) && !guard.mark.as_ref().is_some_and(|mark| mark.counts_in(&ground.mark_now()));
    let done = txn::complete(ground, turn, guard.id, &mut images, in_doubt)
        .and_then(|()| txn::put_back(ground, turn, guard, &images, Attempt::Recovery { in_doubt }));
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
            let excused = matches!(error.errno(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EBUSY))
                || matches!(error, Error::NotMounted { .. } | Error::MountInTree { .. });
            if excused {
                turn.write(Durability::Full, |tx| journal::set_guard_attempts(tx, guard.id, guard.attempts))?;
            }
            if let Error::Corrupt { .. } = error {
                // What the old versions were is not known any more: a person has to look.
                drained.quarantined += 1;
                return give_up(turn, &format!("it cannot be put back, and everything is kept: {error}"));
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
