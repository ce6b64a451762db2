//! Where a journal is at home: which directories its root and its state directory are, by inode and birth.
//!
//! A root that is moved, or mounted elsewhere, stays the same directory, and nothing is different. When the directories are
//! others, everything was copied, or put back from a backup; or the journal alone was, beside a tree that is not its own. All
//! evidence that goes by inodes is worth nothing then, and what is unfinished could wreck a tree that it knows nothing of. So,
//! before anything is recovered:
//!
//! 1. records are brought to the inodes that are there now ([`rebind`]);
//! 2. the tree is asked whether it is the journal's own: whether it has what settled transactions left there, and what the
//!    baselines of guarded trees say. When it has not, what is unfinished goes to quarantine, and nothing is touched. Where there
//!    is nothing to ask for, each transaction is judged by its own paths;
//! 3. one durable COMMIT says all that, and where the journal is at home from now on.
//!
//! With nothing unfinished only 3 is done.

use serde::{Deserialize, Serialize};

use super::evidence::{Newest, as_expected};
use super::rebind::{Rebound, rebind};
use crate::codec;
use crate::error::Result;
use crate::fs::root::{Kind, Meta};
use crate::id::TxnId;
use crate::journal::{self, GuardRow, GuardState, Level, TxnState};
use crate::path::RelPath;
use crate::store::{Durability, Turn};
use crate::tree::{PreImage, Was};
use crate::txn::Ground;

/// The directories, by inode and birth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Home {
    root: (u64, (i64, u32)),
    state: (u64, (i64, u32)),
}

/// The tree is asked for so many files, of this size at most.
const MOST: usize = 256;
const LARGEST: u64 = 1 << 20;

const ELSEWHERE: &str =
    "the journal was copied to where it is now, and the tree does not look like its own; nothing was touched";

/// Finds out whether the journal is where it was, and whether what is unfinished belongs to this tree.
pub(crate) fn arrive(ground: &Ground, turn: &mut Turn<'_>) -> Result<()> {
    let top = &ground.root.top().meta;
    let now = Home { root: (top.ino, top.btime), state: (ground.state_ino, ground.state_born) };
    let stored = turn.look(journal::home)?.map(|home| codec::decode::<Home>(&home));
    let encoded = codec::encode(&now)?;
    match stored {
        None => return turn.write(Durability::Normal, |tx| journal::set_home(tx, &encoded)),
        Some(Ok(home)) if home == now => return Ok(()),
        // Elsewhere, or nobody can say.
        Some(_) => {}
    }
    ground.refresh_areas(turn)?;
    let unsettled = turn.look(journal::unsettled)?;
    let guards = turn.look(journal::guards)?;
    if unsettled.is_empty() && guards.is_empty() {
        return turn.write(Durability::Full, |tx| {
            journal::distrust_trees(tx)?;
            journal::set_home(tx, &encoded)
        });
    }
    let rebound = rebind(ground, turn, &unsettled, &guards)?;
    let own = is_own(ground, turn, &rebound)?;
    let foreign_txns: Vec<&journal::Unsettled> = unsettled
        .iter()
        .filter(|txn| txn.state != TxnState::Quarantined)
        .filter(|txn| !own.unwrap_or_else(|| fits(ground, &rebound, txn.id)))
        .collect();
    let foreign_guards: Vec<&GuardRow> = guards
        .iter()
        .filter(|guard| guard.state == GuardState::Active)
        .filter(|guard| {
            !own.unwrap_or_else(|| rebound.images_of(guard.id).any(|(path, image)| is_as_it_was(ground, path, image)))
        })
        .collect();
    ground.touch();
    turn.write(Durability::Full, |tx| {
        rebound.write(tx)?;
        for txn in &foreign_txns {
            journal::insert_event(tx, Level::Error, "quarantined", Some(txn.id), None, ELSEWHERE)?;
            journal::transition(tx, txn.id, txn.state, TxnState::Quarantined)?;
        }
        for guard in &foreign_guards {
            let message =
                format!("what lock {:?} guarded is in quarantine as g{}: {ELSEWHERE}", guard.lock, guard.id.0);
            journal::insert_event(tx, Level::Error, "quarantined", None, None, &message)?;
            journal::quarantine_guard(tx, guard.id, ELSEWHERE)?;
        }
        let message =
            "the journal and its tree were copied or put back from a backup: what goes by inodes was found again";
        journal::insert_event(tx, Level::Info, "moved", None, None, message)?;
        journal::distrust_trees(tx)?;
        journal::set_home(tx, &encoded)
    })
}

/// Whether the tree is the journal's own; none where nothing tells.
fn is_own(ground: &Ground, turn: &Turn<'_>, rebound: &Rebound) -> Result<Option<bool>> {
    let unfinished = rebound.paths();
    let mut expected = turn.look(|tx| journal::expected(tx, LARGEST, MOST))?;
    expected.retain(|expected| {
        ground.scene().check(&expected.path).is_ok() && !unfinished.iter().any(|path| path.overlaps(&expected.path))
    });
    let paths = expected.iter().map(|expected| (expected.path.clone(), expected.size)).collect();
    let found = ground.opener.examine(paths)?;
    let same = expected.iter().zip(found).filter(|(expected, found)| {
        matches!(found, Ok(Some(found)) if found.hash == Some(expected.hash) && found.meta.kind == Kind::File)
    });
    let same = same.count();
    Ok(match (expected.len(), rebound.entries) {
        // Whoever died may have changed all of a guarded tree; but no other one has a file with that size and time.
        (0, 0) => None,
        (0, _) => Some(rebound.same > 0),
        (all, _) => Some(same * 2 >= all),
    })
}

/// True when every path of a transaction has what it committed, or what was there before: then to carry it out displaces
/// nobody's work.
fn fits(ground: &Ground, rebound: &Rebound, txn: TxnId) -> bool {
    let scene = ground.scene();
    rebound.redo.iter().filter(|row| row.txn == txn).all(|row| {
        let found_by = vec![row.redo.clone()];
        let effect = Newest { txn, n: row.n, redo: row.redo.clone(), inline: row.inline, found_by };
        scene.check(&row.path).is_ok() && as_expected(&scene, &row.path, &effect).unwrap_or(false)
    })
}

/// True for a guarded path that is there, and as it was.
fn is_as_it_was(ground: &Ground, path: &RelPath, image: &PreImage) -> bool {
    let live: Option<Meta> = if path.is_root() { None } else { ground.root.look(path).ok().flatten() };
    match (&image.was, live) {
        (Was::File { seen, .. } | Was::Database { seen, .. }, Some(live)) => seen.is(&live, true),
        (Was::Symlink { ino, .. }, Some(live)) => live.kind == Kind::Symlink && live.ino == *ino,
        (Was::Directory { attrs, .. }, Some(live)) => live.kind == Kind::Directory && live.mtime == attrs.mtime,
        _ => false,
    }
}
