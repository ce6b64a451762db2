//! Changes of rows alone: no lock, no record of a transaction, nothing to carry into the tree.

use super::ground::Ground;
use crate::error::Result;
use crate::journal;
use crate::store::{Durability, Part, Rows, Tx, Wish};

/// Changes rows, durable on return, in one COMMIT with whoever may share it. `check` has the last word before the caller's
/// `work`, under the rights of the engine. Both may run more than once; only the last time counts.
pub(crate) fn write_rows<T>(
    ground: &Ground,
    mut check: impl FnMut(&Tx<'_>) -> Result<()>,
    mut work: impl FnMut(&Rows<'_>) -> Result<T>,
) -> Result<T> {
    let wish = Wish::default();
    let decided = ground.store.commit(ground.limits.turn_wait, Durability::Full, Some(&wish), |tx, comes_first| {
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
