//! The SQL of what a person decides about: what is in quarantine, what later transactions changed there, and what is on its
//! way to being kept.

use super::guard::GuardId;
use super::record::ChangeKind;
use super::rows::{MAX_EFFECTS, redo_ids};
use crate::error::Result;
use crate::id::{SessionId, TxnId};
use crate::path::RelPath;
use crate::store::Tx;

/// A row with a record, as it is stored.
#[derive(Debug)]
pub(crate) struct Raw {
    /// Its number within the transaction or guard.
    pub(crate) n: i64,
    pub(crate) path: Vec<u8>,
    pub(crate) record: Vec<u8>,
}

/// The redo rows of a transaction, as they are stored.
pub(crate) fn raw_redo(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<Raw>> {
    tx.query_map(
        "SELECT id, path, record FROM main.journal_redo WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        redo_ids(txn),
        |row| Ok(Raw { n: row.get::<_, i64>(0)? % MAX_EFFECTS, path: row.get(1)?, record: row.get(2)? }),
    )
}

/// What each path of a guard was, as it is stored.
pub(crate) fn raw_images(tx: &Tx<'_>, guard: GuardId) -> Result<Vec<Raw>> {
    let ids = super::guard::image_ids(guard);
    tx.query_map(
        "SELECT id, path, record FROM main.journal_preimage WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        ids,
        |row| Ok(Raw { n: row.get::<_, i64>(0)? - ids.0, path: row.get(1)?, record: row.get(2)? }),
    )
}

/// Drops one redo row.
pub(crate) fn delete_redo_row(tx: &Tx<'_>, txn: TxnId, n: i64) -> Result<()> {
    let id = redo_ids(txn).0.saturating_add(n);
    tx.execute("DELETE FROM main.journal_redo WHERE id = ?1", [id]).map(drop)
}

/// The session that committed a transaction, if it can be read.
pub(crate) fn session_of(tx: &Tx<'_>, txn: TxnId) -> Result<Option<SessionId>> {
    let found = tx.query_opt("SELECT session FROM main.journal_txn WHERE id = ?1", [txn.get()], |row| {
        Ok(row.get_ref(0)?.as_blob().ok().and_then(SessionId::from_slice))
    })?;
    Ok(found.flatten())
}

/// What transactions after this one changed in the tree: where, and how. What was renamed stands there twice.
pub(crate) fn changes_after(tx: &Tx<'_>, txn: TxnId) -> Result<Vec<(RelPath, ChangeKind)>> {
    let rows = tx.query_map(
        "SELECT c.path, c.kind, c.origin FROM main.journal_change c JOIN main.journal_txn t ON t.id = c.txn \
         WHERE c.txn > ?1 AND t.rolled_back = 0",
        [txn.get()],
        |row| {
            let kind = row.get_ref(1)?.as_str().ok().and_then(ChangeKind::parse);
            let path = |bytes: Vec<u8>| RelPath::from_stored(&bytes).ok();
            let (at, from) = (path(row.get(0)?), row.get::<_, Option<Vec<u8>>>(2)?.and_then(path));
            Ok((at, from, kind.unwrap_or(ChangeKind::Replaced)))
        },
    )?;
    let both = |(at, from, kind): (Option<RelPath>, Option<RelPath>, ChangeKind)| {
        [at.map(|at| (at, kind)), from.map(|from| (from, ChangeKind::Removed))].into_iter().flatten()
    };
    Ok(rows.into_iter().flat_map(both).collect())
}

/// The transactions whose state is a word that nobody knows, with that word.
pub(crate) fn unknown_states(tx: &Tx<'_>) -> Result<Vec<(TxnId, String)>> {
    tx.query_map(
        "SELECT id, state FROM main.journal_txn WHERE state <> 'settled' AND state NOT IN \
           ('committed', 'pending', 'applied', 'settling', 'quarantined')",
        (),
        |row| {
            let word = String::from_utf8_lossy(row.get_ref(1)?.as_bytes().unwrap_or_default()).into_owned();
            Ok((TxnId(row.get(0)?), word))
        },
    )
}

/// Puts a transaction in quarantine whatever its state was: that one nobody knows.
pub(crate) fn quarantine_unknown(tx: &Tx<'_>, txn: TxnId) -> Result<()> {
    tx.execute("UPDATE main.journal_txn SET state = 'quarantined' WHERE id = ?1", [txn.get()]).map(drop)
}

/// The transactions that are over and still have redo rows: a person has ended them, and what is kept of them is on its way
/// to quarantine/. Nothing else leaves them so.
pub(crate) fn being_kept(tx: &Tx<'_>) -> Result<Vec<TxnId>> {
    tx.query_map(
        "SELECT DISTINCT t.id FROM main.journal_redo r JOIN main.journal_txn t ON t.id = r.id / 1048576 \
         WHERE t.state = 'settled'",
        (),
        |row| Ok(TxnId(row.get(0)?)),
    )
}
