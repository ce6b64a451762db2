//! Changes of rows alone: no lock, no record of a transaction, nothing to carry into the tree.

use std::time::Duration;

use super::ground::Ground;
use crate::error::Result;
use crate::journal;
use crate::lock::Lease;
use crate::store::{Durability, Part, Rows, Tx, Wish};

/// Changes rows, durable on return, in one COMMIT with whoever may share it. `check` has the last word before the caller's
/// `work`, under the rights of the engine. Both may run more than once; only the last time counts.
pub(crate) fn write_rows<T>(
    ground: &Ground,
    wait: Duration,
    mut check: impl FnMut(&Tx<'_>) -> Result<()>,
    mut work: impl FnMut(&Rows<'_>) -> Result<T>,
) -> Result<T> {
    let wish = Wish::default();
    let decided = ground.store.commit(wait, Durability::Full, Some(&wish), |tx, comes_first| {
        let noted = ground.late.unnoted().filter(|_| comes_first);
        // Of no concern here, but to those who might share the COMMIT.
        let blocked = comes_first && (!ground.store.is_waited_for() || journal::is_in_the_way(tx, noted, None)?);
        check(tx)?;
        let value = tx.caller(&mut work)?;
        if let Some(before) = noted {
            journal::note_carried_out(tx, before)?;
        }
        Ok(Part::Commit { value: (value, noted), applies: false, hurry: blocked })
    })?;
    let (value, noted) = decided.value;
    if let Some(span) = noted {
        ground.late.noted(span);
    }
    ground.backlog.add_log(decided.log_frames);
    Ok(value)
}

/// The same, under a lock: nothing is changed when somebody else has acquired it since, which is looked at inside COMMIT.
pub(crate) fn write_rows_under<T>(
    ground: &Ground,
    lease: &Lease,
    wait: Duration,
    mut check: impl FnMut(&Tx<'_>) -> Result<()>,
    work: impl FnMut(&Rows<'_>) -> Result<T>,
) -> Result<T> {
    lease.check_same()?;
    let _ended = Ended(lease);
    let mut fence = None;
    let confirm = |tx: &Tx<'_>| {
        fence = Some(lease.confirm(tx)?);
        check(tx)
    };
    let written = write_rows(ground, wait, confirm, work);
    match (&written, fence) {
        (Ok(_), Some(fence)) => lease.confirmed(fence),
        (Err(error), _) if error.is_lock_lost() => {
            let _ = ground.enter().and_then(|mut turn| lease.note_loss(&mut turn));
        }
        _ => {}
    }
    written
}

/// Writes rows of the engine under a lock, by themselves and not synced: what can be found out again.
pub(crate) fn note_under(ground: &Ground, lease: &Lease, note: impl FnOnce(&Tx<'_>) -> Result<()>) -> Result<()> {
    lease.check_same()?;
    let _ended = Ended(lease);
    let fence = ground.enter()?.write(Durability::Normal, |tx| {
        let fence = lease.confirm(tx)?;
        note(tx).map(|()| fence)
    })?;
    lease.confirmed(fence);
    Ok(())
}

/// The COMMIT that was to record a lock is over, however it ended: by a panic, say.
struct Ended<'l>(&'l Lease);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.not_committed();
    }
}
