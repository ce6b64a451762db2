//! The SQL of who follows the changes.

use super::guard::lossy;
use super::record::{Change, Span};
use super::rows::changes;
use crate::error::Result;
use crate::id::{Fence, TxnId};
use crate::store::Tx;
use crate::time::now_ms;

/// A committed transaction, as [`Journal::changes`](crate::Journal::changes) tells of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Commit {
    /// Its number: larger than that of every transaction committed before.
    pub id: TxnId,
    /// As what it was begun.
    pub label: String,
    /// The lock that it held.
    pub lock: String,
    /// The fencing token of that.
    pub fence: Fence,
    /// When it was committed, in milliseconds since 1970.
    pub committed_ms: i64,
    /// What it did to which path.
    pub changes: Vec<Change>,
    /// So many more changes there are whose rows make no sense: who has to know them looks at the tree itself.
    pub unreadable: u64,
}

/// The next commits behind `after`, in order, as many as fit: at most so many, with no more than so many changes beyond the
/// first. What was rolled back is none.
pub(crate) fn commits_after(tx: &Tx<'_>, after: TxnId, most: usize, most_changes: usize) -> Result<Vec<Commit>> {
    let rows = tx.query_map(
        "SELECT id, label, lock, fence, committed_ms, changes FROM main.journal_txn \
         WHERE id > ?1 AND rolled_back = 0 ORDER BY id LIMIT ?2",
        (after.get(), most),
        |row| {
            let commit = Commit {
                id: TxnId(row.get(0)?),
                label: lossy(row, 1)?,
                lock: lossy(row, 2)?,
                fence: Fence(row.get(3)?),
                committed_ms: row.get(4)?,
                changes: Vec::new(),
                unreadable: 0,
            };
            Ok((commit, row.get::<_, i64>(5)?))
        },
    )?;
    let mut left = most_changes;
    let mut found = Vec::new();
    for (mut commit, size) in rows {
        let size = usize::try_from(size).unwrap_or(0);
        if size > left && !found.is_empty() {
            break;
        }
        left = left.saturating_sub(size);
        if size > 0 {
            commit.changes = changes(tx, commit.id)?;
            commit.unreadable = size.saturating_sub(commit.changes.len()) as u64;
        }
        found.push(commit);
    }
    Ok(found)
}

/// True when a transaction was committed, and it is not known that it was carried into the tree. Those of `known` are.
pub(crate) fn has_unapplied(tx: &Tx<'_>, known: Option<Span>) -> Result<bool> {
    let (first, last) = Span::ends(known);
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.journal_txn WHERE state <> 'settled' AND state = 'committed' \
           AND id NOT BETWEEN ?1 AND ?2)",
        (first, last),
        |row| row.get(0),
    )
}

/// How far a follower is; none when there is none of this name.
pub(crate) fn position(tx: &Tx<'_>, name: &str) -> Result<Option<TxnId>> {
    tx.query_opt("SELECT position FROM main.journal_follower WHERE name = ?1", [name], |row| row.get(0).map(TxnId))
}

/// Records how far a follower is. Never back: false when it is that far already.
pub(crate) fn advance(tx: &Tx<'_>, name: &str, to: TxnId) -> Result<bool> {
    let advanced = tx.execute(
        "INSERT INTO main.journal_follower (name, position, at_ms) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE \
         SET position = excluded.position, at_ms = excluded.at_ms WHERE excluded.position > position",
        (name, to.get(), now_ms()),
    )?;
    Ok(advanced == 1)
}

/// Forgets a follower. False when there was none.
pub(crate) fn forget_follower(tx: &Tx<'_>, name: &str) -> Result<bool> {
    Ok(tx.execute("DELETE FROM main.journal_follower WHERE name = ?1", [name])? == 1)
}
