//! Sweeps the stages: the database is truth, and what no row refers to is what a dead session staged and never
//! committed. Nothing was taken out of the tree for it, because that happens after COMMIT only.

use std::collections::HashSet;

use super::keeping;
use crate::blob;
use crate::error::Result;
use crate::fault::{Fault, planted};
use crate::fs::area::{self, STATE_AREA};
use crate::id::SessionId;
use crate::journal::{self, GuardState, StagedNames};
use crate::lock;
use crate::store::{Durability, Turn};
use crate::txn::{Ground, KEEP, NOBODYS, set_aside};

/// Ends dead sessions and removes their strays. Answers how many names went.
pub(crate) fn sweep(ground: &Ground, turn: &mut Turn<'_>) -> Result<u64> {
    lock::sweep_dead(turn, &ground.sessions, &ground.state_path.join("sessions"))?;
    let mut swept = 0;
    let mut alive: HashSet<SessionId> = HashSet::from([ground.session.id]);
    if !planted(Fault::LivingSessionsSwept) {
        alive.extend(turn.look(lock::open_sessions)?);
    }
    // Somebody may still be at work in what a dead session has laid.
    for guard in turn.look(journal::guards)? {
        if guard.state == GuardState::Active && super::guards::is_over(ground, &guard)?.is_none() {
            alive.extend(SessionId::from_slice(&guard.session));
        }
    }
    keeping::carry_on(ground, turn)?;
    end_blobs(ground, turn, &alive)?;
    let mut referred: Option<StagedNames> = None;
    let mut history: Option<HashSet<(i64, String)>> = None;
    for area in ground.areas() {
        for name in area::names(&area.stage, &area.path.join("stage"))? {
            let Some(name) = name.to_str() else { continue };
            let owner = name.split_once('-').and_then(|(session, _)| SessionId::parse(session));
            // Not a name of ours: somebody's file, left alone.
            let Some(owner) = owner else { continue };
            if alive.contains(&owner) {
                continue;
            }
            let history = match &mut history {
                Some(history) => history,
                none => none.insert(turn.look(journal::history_names)?),
            };
            // An old version whose transaction is over, and whose process died on its way here.
            if history.contains(&(area.id, name.to_owned())) {
                area.to_history(name)?;
                continue;
            }
            let referred = match &mut referred {
                Some(referred) => referred,
                none => none.insert(referred_to(turn)?),
            };
            // What the engine derives from a recorded name goes with it.
            let base = name.find('.').map_or(name, |at| &name[..at]);
            // IMPORTANT: what a record says that cannot be read may be this very name.
            if referred.in_doubt.contains(&owner) || referred.names.contains(base) {
                continue;
            }
            if name.contains(KEEP) {
                // A published source that was on its way in: it is the caller's, so it is kept.
                let kept = set_aside(&area, NOBODYS, &area.stage, name)?;
                tracing::warn!(%kept, "the source of a publish that was not committed is kept");
            } else if let Err(error) = area.drop_staged(name) {
                // It is in nobody's way, and the next sweep tries again.
                tracing::warn!(%error, "what a dead session staged could not be removed");
                continue;
            }
            swept += 1;
        }
    }
    Ok(swept)
}

/// What rows refer to.
fn referred_to(turn: &Turn<'_>) -> Result<StagedNames> {
    let mut referred = turn.look(journal::staged_names)?;
    if planted(Fault::CommittedBlobsSwept) {
        return Ok(referred);
    }
    let blobs = turn.look(|tx| blob::todo(tx, i64::MIN, i64::MAX as usize))?;
    referred.names.extend(blobs.into_iter().map(|todo| todo.file.staged));
    Ok(referred)
}

/// Blobs whose writers died are never sealed: what there is of them goes, and how much that was is noted before.
fn end_blobs(ground: &Ground, turn: &mut Turn<'_>, alive: &HashSet<SessionId>) -> Result<()> {
    let mut ended = turn.look(blob::written)?;
    ended.retain(|blob| SessionId::from_slice(&blob.session).is_none_or(|session| !alive.contains(&session)));
    if ended.is_empty() {
        return Ok(());
    }
    let area = ground.area(STATE_AREA)?;
    turn.write(Durability::Normal, |tx| {
        ended.iter().try_for_each(|ended| {
            let size = area.look_staged(&ended.name).ok().flatten().map_or(0, |meta| meta.size);
            blob::incomplete(tx, ended, size)
        })
    })
}
