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

/// Which directories the root and the state directory were when this was last asked; none when that is not known.
pub(crate) fn home(tx: &Tx<'_>) -> Result<Option<Vec<u8>>> {
    tx.query_row("SELECT home FROM main.journal_meta WHERE id = 1", (), |row| row.get(0))
}

/// Records which directories they are.
pub(crate) fn set_home(tx: &Tx<'_>, home: &[u8]) -> Result<()> {
    tx.execute("UPDATE main.journal_meta SET home = ?1 WHERE id = 1", [home]).map(drop)
}

/// Replaces what is recorded of a guarded path.
pub(crate) fn update_image(tx: &Tx<'_>, guard: GuardId, n: i64, record: &[u8]) -> Result<()> {
    let id = super::guard::image_ids(guard).0.saturating_add(n);
    tx.execute("UPDATE main.journal_preimage SET record = ?2 WHERE id = ?1", (id, record)).map(drop)
}

/// Has the baselines of all trees made anew that no transaction guards now.
pub(crate) fn distrust_trees(tx: &Tx<'_>) -> Result<()> {
    tx.execute(
        "UPDATE main.journal_tree SET state = 'changing' WHERE id NOT IN (SELECT tree FROM main.journal_guard_tree)",
        (),
    )
    .map(drop)
}

/// A version of a path that the tree should have, unless somebody has edited it by hand.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) path: RelPath,
    pub(crate) size: u64,
    pub(crate) hash: [u8; 32],
}

/// What settled transactions left last at some paths, the newest first: of small files, so many at most.
pub(crate) fn expected(tx: &Tx<'_>, largest: u64, most: usize) -> Result<Vec<Expected>> {
    /// So many changes are looked through.
    const CHANGES: i64 = 4096;
    let rows = tx.query_map(
        "SELECT c.path, c.size, c.hash, c.kind FROM main.journal_change c JOIN main.journal_txn t ON t.id = c.txn \
         WHERE t.state = 'settled' AND t.rolled_back = 0 ORDER BY c.txn DESC, c.n DESC LIMIT ?1",
        [CHANGES],
        |row| {
            let hash = row.get_ref(2)?.as_blob().ok().and_then(|hash| hash.try_into().ok());
            let size = row.get::<_, Option<u64>>(1).unwrap_or(None);
            Ok((RelPath::from_stored(&row.get::<_, Vec<u8>>(0)?).ok(), size, hash))
        },
    )?;
    let mut seen = std::collections::HashSet::new();
    let mut found = Vec::new();
    for (path, size, hash) in rows {
        let Some(path) = path.filter(|path| seen.insert(path.clone())) else { continue };
        if let (Some(size), Some(hash)) = (size, hash)
            && size <= largest
            && found.len() < most
        {
            found.push(Expected { path, size, hash });
        }
    }
    Ok(found)
}
